# shellcheck shell=bash
# shellcheck disable=SC2034  # settings for Tests/EndToEnd/run
# What vswapctl does to programs that run, and what is left when they have gone.

# A program that touches and checks all of its memory each time it is told to.
start_touching() {
  mkfifo go
  "$BIN/vswapctl" --socket "$RUNTIME/control.sock" run --limit 256M -- \
    "$PROGRAMS/faultlat" --size 64 --cycles 5 --seed "$SEED" <go >touched &
  RUNNER=$!
  exec 9>go
  CYCLE=0
  wait_ready
  PID=$(sed -n 's/^ready //p' touched | head -n 1)
}
is_ready() { (($(grep -c '^ready' touched) > CYCLE)); }
wait_ready() { wait_until 60 is_ready || fail "the program does not go on"; }
touch_all() {
  echo go >&9
  CYCLE=$((CYCLE + 1))
  wait_ready
  say "cycle $CYCLE: $(tail -n 2 touched | head -n 1)"
}
end_touching() {
  echo go >&9
  exec 9>&-
  wait "$RUNNER" || fail "the program found wrong content, or ended with status $?"
}
swapped() { status "sum(t['swapped_pages'] for g in s['groups'] for t in g['targets'])"; }

seconds_control=120
case_control() {
  [[ -z $NATIVE ]] || skip "it controls vswapd"
  local group pages before
  start_daemon
  start_touching
  status_is "len(s['groups'])" 1 || fail "one group expected: $(status "s['groups']")"
  group=$(status "s['groups'][0]['id']")
  [[ $group == faultlat-$PID ]] || fail "the group is called $group"
  status_is "s['groups'][0]['targets'][0]['pid']" "$PID" || fail "the target is not $PID"
  status_is "s['groups'][0]['targets'][0]['name']" faultlat || fail "the target is not called faultlat"

  say "evict by process, part and all"
  ctl evict "$PID" --size 8M
  pages=$(swapped)
  ((pages >= 1900 && pages <= 3000)) || fail "8M evicted are $pages pages"
  ctl evict "$PID"
  pages=$(swapped)
  ((pages > 16000)) || fail "all evicted are $pages pages"
  touch_all
  [[ $(tail -n 2 touched | head -n 1 | query "s['absent'] > 16000") == True ]] || fail "hardly anything was evicted"
  pages=$(swapped)
  ((pages < 2000)) || fail "$pages pages are still out after all were touched"

  say "evict by group, restore by process"
  ctl evict "$group"
  ctl restore "$PID"
  pages=$(swapped)
  ((pages == 0)) || fail "$pages pages are still out after restore"
  touch_all
  [[ $(tail -n 2 touched | head -n 1 | query "s['absent'] < 400") == True ]] || fail "restored pages were not there"

  say "limit"
  ctl limit "$group" 24M
  status_is "s['groups'][0]['limit_bytes']" $((24 * MIB)) || fail "the limit is not 24M"
  wait_until 10 status_is "s['groups'][0]['resident_bytes'] <= ${MIB} * 26" True || fail "the lower limit is not reached"
  touch_all
  ctl limit "$group" none
  status_is "s['groups'][0]['limit_bytes']" 0 || fail "the limit is not none"
  ctl restore "$group"
  pages=$(swapped)
  ((pages == 0)) || fail "$pages pages are still out after restore"

  say "detach"
  ctl evict "$PID"
  ctl detach "$PID"
  wait_until 10 status_is "sum(len(g['targets']) for g in s['groups'])" 0 || fail "the target is still there"
  touch_all
  [[ $(tail -n 2 touched | head -n 1 | query "s['absent'] < 400") == True ]] || fail "detached without restoring"
  kill -0 "$PID" || fail "the program has gone"
  says 1 "$PID|no " ctl evict "$PID"
  end_touching
  wait_until 10 status_is "s['pool']['objects'] + s['cache']['pages'] + s['zero']['pages']" 0 ||
    fail "slots are left: $(ctl status --json)"
  before=$(ctl status)
  [[ $before == *vswapd* ]] || fail "status for people: $before"
  stop_daemon
}

# timed ARG...: vswapctl does not take long however busy the program is.
timed() {
  local start=${EPOCHREALTIME/[.,]/} took
  ctl "$@"
  took=$(((${EPOCHREALTIME/[.,]/} - start) / 1000))
  say "vswapctl $*: $took ms"
  ((took <= 10000 * VSWAP_SLOWNESS)) || fail "vswapctl $* took $took ms"
}

# A restore and limits while the program is busy with its memory.
seconds_control_busy=150
case_control_busy() {
  [[ -z $NATIVE ]] || skip "it controls vswapd"
  local runner group i
  start_daemon
  ctl run --limit 64M --stats -- "$PROGRAMS/gcheap" --seed "$SEED" --seconds 40 --size 64 2>busy.err &
  runner=$!
  wait_until 10 status_is "len(s['groups'])" 1 || fail "no group"
  group=$(status "s['groups'][0]['id']")
  for i in 1 2 3; do
    timed evict "$group"
    timed limit "$group" 24M
    sleep 0.5
    timed limit "$group" none
    timed restore "$group"
    timed limit "$group" $((32 + i))M
    timed evict "$group" --size 4M
    sleep 0.3
  done
  timed detach "$(status "s['groups'][0]['targets'][0]['pid']")"
  wait "$runner" || fail "gcheap ended with status $?: $(<busy.err)"
  cat busy.err
  count_stats busy.err
  require_swapping
  stop_daemon
}

facts_of_daemon() {
  # Descriptors, threads, resident memory (anonymous and shared) in KiB.
  echo "$(find "/proc/$DAEMON/fd" -mindepth 1 | wc -l) $(find "/proc/$DAEMON/task" -mindepth 1 -maxdepth 1 | wc -l)" \
    "$(awk '/^Rss(Anon|Shmem)/ { sum += $2 } END { print sum }' "/proc/$DAEMON/status")"
}
# No more descriptors and threads than before, when a connection of ours may not have been closed yet.
nothing_left() {
  local descriptors threads before=$1
  read -r descriptors threads _ < <(facts_of_daemon)
  status_is "len(s['groups']) + s['pool']['objects'] + s['cache']['pages'] + s['zero']['pages']" 0 &&
    ((descriptors <= ${before% *} && threads <= ${before#* }))
}

kill_targets() {
  local pid
  for pid in $(status "' '.join(str(t['pid']) for g in s['groups'] for t in g['targets'])"); do kill -KILL "$pid" 2>/dev/null || true; done
}

# killed_in_the_middle TENTHS: three targets that die with pages out, after so many tenths of a second of that.
killed_in_the_middle() {
  local runner
  # shellcheck disable=SC2016
  ctl run --limit 8M -- sh -c '"$0" --size 32 --hold-ms 60000 & "$0" --size 32 --hold-ms 60000 & wait' "$PROGRAMS/fill" &
  runner=$!
  wait_until 20 status_is "[len(g['targets']) for g in s['groups']], sum(t['swapped_pages'] > 0 for g in s['groups'] for t in g['targets']) > 1" \
    "([3], True)" || fail "nothing was evicted: $(ctl status --json)"
  sleep "0.$1"
  kill_targets
  wait "$runner" || true
}

# Threads ask the daemon for ranges without pause, and the target ends while one waits for its answer: the daemon must outlive it.
seconds_killed_in_requests=60
case_killed_in_requests() {
  [[ -z $NATIVE ]] || skip "it is about vswapd"
  local i runner
  start_daemon
  for ((i = 0; i < 25; i++)); do
    ctl run --limit 8M -- "$PROGRAMS/model" --seed $((SEED + i)) --size 32 --steps 1000000 --threads 3 \
      --ops map,write_pages,write_part,verify,wipe_on_fork,dont_fork,mremap_move >/dev/null &
    runner=$!
    wait_until 10 status_is "sum(g['totals']['faults'] for g in s['groups']) > 50" True || fail "run $i: nothing came back"
    sleep "0.0$((RANDOM % 90 + 10))"
    kill_targets
    wait "$runner" || true
    wait_until 10 status_is "len(s['groups'])" 0 || fail "run $i: a group is still there, or the daemon has gone: $(ctl status --json)"
  done
  stop_daemon
}

# A thousand targets that live for a moment, and some that die in the middle of things.
seconds_thousand=300
case_thousand() {
  [[ -z $NATIVE ]] || skip "it is about vswapd"
  local warm after i
  start_daemon
  # What is made once and kept is made now.
  ctl run --limit 16M -- "$PROGRAMS/fill" --size 64 --verify >/dev/null
  killed_in_the_middle 5
  wait_until 10 status_is "len(s['groups'])" 0 || fail "a group is still there: $(ctl status --json)"
  sleep 0.5
  warm=$(facts_of_daemon)
  say "descriptors, threads, KiB: $warm"
  # shellcheck disable=SC2016
  ctl run --limit 64M -- sh -c 'i=0; while [ $i -lt 800 ]; do /bin/true || exit 1; i=$((i + 1)); done' || fail "a loop of /bin/true"
  for ((i = 0; i < 60; i++)); do ctl run --limit 64M -- /bin/true || fail "/bin/true $i"; done
  # shellcheck disable=SC2016
  ctl run --limit 16M --stats -- sh -c 'i=0; while [ $i -lt 100 ]; do "$0" --size 20 --touch --verify >/dev/null || exit 1; i=$((i + 1)); done' \
    "$PROGRAMS/fill" 2>small.err || fail "a loop of small programs: $(<small.err)"
  count_stats small.err
  for ((i = 0; i < 10; i++)); do killed_in_the_middle $((i % 5)); done
  wait_until 10 nothing_left "$(cut -d ' ' -f 1,2 <<<"$warm")" ||
    fail "left behind: $(facts_of_daemon) instead of $warm, $(ctl status --json)"
  after=$(facts_of_daemon)
  say "descriptors, threads, KiB: $after"
  ((${after##* } <= ${warm##* } + 8192)) || fail "the daemon's memory has grown from ${warm##* } to ${after##* } KiB"
  remark "daemon=${warm// /,}->${after// /,}"
  stop_daemon
}
