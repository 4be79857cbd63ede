# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # settings for Tests/EndToEnd/run; SEED is from the library
# The limit holds against programs that fill memory as fast as they can: limit + max(5 %, 16 MiB), sampled every 2 ms.

# holds LIMIT CMD...
holds() {
  local limit=$1 err=$CASE_DIR/holds.err status=0 over
  shift
  if [[ -n $NATIVE ]]; then
    "$PROGRAMS/sampler" --limit "$limit" --output holds.json -- sh -c '"$@"; exit $?' sh "$@"
    return
  fi
  "$PROGRAMS/sampler" --limit "$limit" --output holds.json -- \
    "$BIN/vswapctl" run --embedded --limit "$limit" --stats -- "$@" 2>"$err" || status=$?
  cat "$err" holds.json
  ((status == 0)) || fail "$1 ended with status $status"
  count_stats "$err"
  (($(query 's["samples"]' <holds.json) >= 20)) || fail "hardly sampled"
  remark "most=$(query '"%.1fM" % (s["max_bytes"] / 2**20)' <holds.json)/$((limit / MIB))M"
  over=$(query 's["over_allowed_samples"]' <holds.json)
  ((over == 0)) || fail "$over of $(query 's["samples"]' <holds.json) samples are over the allowance"
}

case_limit_mapping() {
  holds $((64 * MIB)) "$PROGRAMS/fill" --size 512 --verify --seed "$SEED"
  require_swapping
}

case_limit_touch() {
  holds $((64 * MIB)) "$PROGRAMS/fill" --size 768 --touch --verify --seed "$SEED"
  require_swapping
}

case_limit_threads() {
  holds $((64 * MIB)) "$PROGRAMS/fill" --size 512 --threads 4 --verify --seed "$SEED"
  holds $((64 * MIB)) "$PROGRAMS/fill" --size 512 --threads 4 --touch --chunk $((256 << 10)) --verify --seed "$SEED"
  require_swapping
}

case_limit_malloc() {
  holds $((64 * MIB)) "$PROGRAMS/fill" --size 384 --malloc --chunk 65536 --verify --seed "$SEED"
  holds $((64 * MIB)) "$PROGRAMS/fill" --size 384 --malloc --chunk 1048576 --verify --threads 2 --seed "$SEED"
  require_swapping
}

# One limit for all processes of the group.
case_limit_processes() {
  # shellcheck disable=SC2016
  holds $((64 * MIB)) sh -c 'for i in 1 2 3; do "$1" --size 96 --verify --seed "$2$i" & pids="$pids $!"; done
    for pid in $pids; do wait "$pid" || exit 1; done' sh "$PROGRAMS/fill" "$SEED"
  require_swapping
}

# Nearly all of a large limit is resident: the allowance is 5 % here.
seconds_limit_large=240
case_limit_large() {
  holds $((512 * MIB)) "$PROGRAMS/fill" --size 1280 --threads 2 --touch --verify --seed "$SEED"
  require_swapping
}

# The group is a child's alone for a moment, when its parent has made place for another program, which belongs to it as well.
case_limit_exec() {
  # shellcheck disable=SC2016
  holds $((64 * MIB)) sh -c '(while kill -0 $$ 2>/dev/null; do :; done) & exec "$@"' sh \
    "$PROGRAMS/fill" --size 768 --touch --verify --seed "$SEED"
  require_swapping
}

# Nothing can leave a process that is stopped. The others of its group do not wait for it: they exceed the limit.
case_limit_stopped() {
  [[ -z $NATIVE ]] || skip "it is about limits"
  local filled=0
  start_daemon
  start_program 128M "$PROGRAMS/swapfill" --size 56 --seed "$SEED"
  kill -STOP "$PID"
  ctl limit "$GROUP" 32M
  VSWAP_SOCKET=$RUNTIME/attach.sock VSWAP_GROUP=$GROUP VSWAP_REQUIRED=1 LD_PRELOAD=$BIN/libvswap.so \
    timeout $((60 * VSWAP_SLOWNESS)) "$PROGRAMS/fill" --size 96 --verify --seed "$SEED" || filled=$?
  kill -CONT "$PID"
  ((filled == 0)) || fail "a program beside one that is stopped ended with status $filled"
  # Once it goes on the limit holds again.
  # shellcheck disable=SC2317  # wait_until calls it
  under_limit() { (($(status "s['groups'][0]['resident_bytes']") <= 32 * MIB)); }
  wait_until 20 under_limit || fail "the limit is not kept: $(status "s['groups']")"
  ask verify
  [[ $ANSWER == right ]] || fail "the program says $ANSWER"
  end_program
  stop_daemon
}

# Address spaces that take long to go through, and memory that a call fills at one stroke.
seconds_limit_layouts=400
case_limit_layouts() {
  holds $((16 * MIB)) "$PROGRAMS/layouts" many 20000
  holds $((16 * MIB)) "$PROGRAMS/layouts" sparse 4
  holds $((16 * MIB)) "$PROGRAMS/layouts" populate 192
  holds $((16 * MIB)) "$PROGRAMS/layouts" stacks 96
  require_swapping
}

# Programs that are stopped, their agents as well, do not keep the frames of the swap cache from the others.
case_limit_beside_stopped() {
  [[ -z $NATIVE ]] || skip "it is about limits"
  local i fd fds=() pids=() all=() pid over status=0
  start_daemon
  for ((i = 0; i < 14; i++)); do
    mkfifo "to.$i"
    ctl run -- "$PROGRAMS/swapfill" --size 12 --seed "$((SEED + i))" <"to.$i" >"from.$i" &
    exec {fd}>"to.$i"
    fds+=("$fd")
    wait_until 20 grep -q ready "from.$i" || fail "program $i does not start"
    pids+=("$(sed -n 's/^ready //p' "from.$i")")
  done
  for pid in $(processes_marked "$VSWAP_E2E_CASE"); do
    case $(cat "/proc/$pid/comm" 2>/dev/null || true) in swapfill | vswap-agent) all+=("$pid") ;; esac
  done
  kill -STOP "${all[@]}"
  for ((i = 0; i < 14; i++)); do ctl limit "swapfill-${pids[i]}" 4M; done
  "$PROGRAMS/sampler" --self --limit $((24 * MIB)) --output beside.json -- env "VSWAP_SOCKET=$RUNTIME/attach.sock" VSWAP_LIMIT=24M \
    VSWAP_REQUIRED=1 "LD_PRELOAD=$BIN/libvswap.so" "$PROGRAMS/fill" --size 384 --touch --verify --seed "$SEED" || status=$?
  kill -CONT "${all[@]}"
  cat beside.json
  ((status == 0)) || fail "the program beside them ended with status $status"
  remark "most=$(query '"%.1fM" % (s["max_bytes"] / 2**20)' <beside.json)/24M"
  over=$(query 's["over_allowed_samples"]' <beside.json)
  ((over == 0)) || fail "$over of $(query 's["samples"]' <beside.json) samples are over the allowance"
  for ((i = 0; i < 14; i++)); do
    fd=${fds[i]}
    printf 'verify\n' >&"$fd"
    wait_until 60 grep -q right "from.$i" || fail "program $i says $(tail -n 1 "from.$i")"
    exec {fd}>&-
  done
  wait_until 20 status_is "len(s['groups'])" 0 || fail "groups are left: $(status "s['groups']")"
  stop_daemon
}

# What was set for a group, and what it has done, lasts as long as the group: a program that executes another one, as start scripts do, stays in it.
case_limit_lasts_over_exec() {
  [[ -z $NATIVE ]] || skip "it is about vswapd"
  local runner fd group
  start_daemon
  mkfifo go
  # shellcheck disable=SC2016
  ctl run --limit 256M --stats -- sh -c 'read -r word && exec "$@"' sh \
    "$PROGRAMS/fill" --size 96 --verify --seed "$SEED" <go 2>exec.err &
  runner=$!
  exec {fd}>go
  wait_until 20 status_is "[len(g['targets']) for g in s['groups']]" "[1]" || fail "the shell is no target"
  group=$(status "s['groups'][0]['id']")
  ctl limit "$group" 24M
  echo go >&"$fd"
  exec {fd}>&-
  wait "$runner" || fail "the program ended with status $?: $(<exec.err)"
  cat exec.err
  count_stats exec.err
  grep -q 'limit 24.0 MiB' exec.err || fail "the limit is another one: $(<exec.err)"
  require_swapping
  status_is "[(g['id'], g['totals']['targets']) for g in s['ended_groups']]" "[('$group', 2)]" ||
    fail "not one group: $(status "s['ended_groups']")"
  stop_daemon
}

# What cannot be held is told: here a program without the preload library, in the place of one that had it.
case_limit_tells_who_is_not_held() {
  [[ -z $NATIVE ]] || skip "it is about vswapd"
  local pid
  start_daemon
  # shellcheck disable=SC2016
  ctl run --limit 64M -- sh -c 'echo $$ >pid; exec env -i "$@"' sh "$PROGRAMS/fill" --size 8 --hold-ms 100000 >/dev/null &
  wait_until 20 test -s pid || fail "the shell does not start"
  pid=$(<pid)
  wait_until 20 status_is "[(g['resident_bytes'], g['targets'], g['not_held']) for g in s['groups']]" \
    "[(0, [], [{'name': 'env', 'pid': $pid, 'reason': 'executed'}])]" || fail "status: $(status "s['groups']")"
  [[ $(ctl status) == *"$pid"*"executed a program that did not attach"* ]] || fail "status for people: $(ctl status)"
  kill -TERM "$pid"
  wait_until 20 status_is "len(s['groups'])" 0 || fail "the group is still there: $(status "s['groups']")"
  stop_daemon
}
