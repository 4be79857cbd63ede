# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # settings for Tests/EndToEnd/run; SEED is from the library
# Each side of the attach socket meeting garbage from the other.

seconds_garbage_from_shims=120
case_garbage_from_shims() {
  [[ -z $NATIVE ]] || skip "it needs vswapd"
  start_daemon
  "$PYTHON" "$SUPPORT/garbage_peer.py" call "$RUNTIME/attach.sock" "$SEED" 300
  # The daemon is as before: it serves the next one, and nothing of the garbage is left.
  "$BIN/vswapctl" --socket "$RUNTIME/control.sock" run --limit 64M -- \
    "$PROGRAMS/fill" --size 128 --verify --seed "$SEED" || fail "a target after the garbage ended with status $?"
  wait_until 20 status_is "len(s['groups'])" 0 || fail "groups are left: $(status "s['groups']")"
}

case_garbage_from_the_daemon() {
  [[ -z $NATIVE ]] || skip "it needs libvswap.so"
  local status=0 path=$CASE_DIR/attach.sock
  "$PYTHON" "$SUPPORT/garbage_peer.py" serve "$path" "$SEED" >ready &
  local peer=$!
  wait_until 20 test -S "$path" || fail "the peer does not listen"
  # Open: the program runs as if the library were absent, and says nothing.
  for _ in $(seq 40); do
    LD_PRELOAD=$BIN/libvswap.so VSWAP_SOCKET=$path "$PROGRAMS/fill" --size 8 --verify --seed "$SEED" >out 2>err ||
      fail "the program ended with status $?"
    [[ ! -s err ]] || fail "output that nobody asked for: $(cat err)"
  done
  # Required: one line and 125.
  LD_PRELOAD=$BIN/libvswap.so VSWAP_SOCKET=$path VSWAP_REQUIRED=1 "$PROGRAMS/fill" --size 8 2>err || status=$?
  ((status == 125)) || fail "status $status instead of 125"
  (($(wc -l <err) == 1)) || fail "not one line: $(cat err)"
  kill "$peer"
  wait "$peer" 2>/dev/null || true
}

# A program that is stopped and continued while it waits for the daemon's answer (^Z and fg, a debugger) takes that for no answer: the call it
# waits in ends with EINTR then, though no handler ran.
case_stopped_while_attaching() {
  [[ -z $NATIVE ]] || skip "it needs vswapd"
  [[ $(cat "/proc/$$/wchan") != 0 ]] || skip "this kernel does not tell what a thread waits for"
  local status=0
  start_daemon
  kill -STOP "$DAEMON"
  VSWAP_SOCKET=$RUNTIME/attach.sock VSWAP_REQUIRED=1 LD_PRELOAD=$BIN/libvswap.so "$PROGRAMS/fill" --size 8 --verify --seed "$SEED" &
  local program=$!
  # shellcheck disable=SC2317  # wait_until calls it
  waits_for_the_daemon() { grep -qs wait_for_more_packets "/proc/$program/task"/*/wchan; }
  # shellcheck disable=SC2317
  is_stopped() { grep -qs '^State:[[:space:]]*T' "/proc/$program/status"; }
  wait_until 10 waits_for_the_daemon || fail "the program does not wait for the daemon: $(tail -vn +1 "/proc/$program/task"/*/wchan)"
  for _ in 1 2 3; do
    kill -STOP "$program"
    wait_until 10 is_stopped || fail "the program does not stop"
    kill -CONT "$program"
    wait_until 10 waits_for_the_daemon || fail "the program waits no longer: $(tail -vn +1 "/proc/$program/task"/*/wchan)"
  done
  kill -CONT "$DAEMON"
  wait "$program" || status=$?
  ((status == 0)) || fail "status $status instead of 0"
  stop_daemon
}

# --- a kernel that moves pages without telling ---

evictions() { status "sum(t['evictions'] for g in s['groups'] for t in g['targets'])"; }
has_evicted() { (($(evictions) >= $1)); }

# Linux 6.18 forgets now and then to count pages that UFFDIO_MOVE has moved. They were neither in the program nor in the daemon then, and read as zeros.
seconds_unreported_moves=200
case_unreported_moves() {
  [[ -z $NATIVE ]] || skip "it is about vswapd"
  start_daemon
  # The library with such a UFFDIO_MOVE.
  export VSWAP_SHIM=$PROGRAMS/libvswap-lostmoves.so
  start_program 24M "$PROGRAMS/churn" --size 96 --threads 2 --seed "$SEED"
  wait_until 100 has_evicted 200000 || fail "hardly anything is evicted: $(ctl status --json)"
  remark "evictions=$(evictions)"
  ask_right stop
  end_program
  stop_daemon
}
