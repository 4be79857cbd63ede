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

# A program whose agent is stopped and continued while it waits for the daemon's answer (a freezer, a debugger) took that for no answer: the
# call it waits in ends with EINTR then, though no handler ran.
case_stopped_while_attaching() {
  [[ -z $NATIVE ]] || skip "it needs vswapd"
  [[ $(cat "/proc/$PPID/wchan") != 0 ]] || skip "this kernel does not tell what a thread waits for"
  local status=0
  start_daemon
  kill -STOP "$DAEMON"
  VSWAP_SOCKET=$RUNTIME/attach.sock VSWAP_REQUIRED=1 LD_PRELOAD=$BIN/libvswap.so "$PROGRAMS/fill" --size 8 --verify --seed "$SEED" &
  local program=$!
  # shellcheck disable=SC2317  # wait_until calls these
  find_agent() {
    local pid
    for pid in $(processes_marked "$VSWAP_E2E_CASE"); do
      if [[ $(cat "/proc/$pid/comm" 2>/dev/null) == vswap-agent ]]; then agent=$pid; fi
    done
    [[ -n $agent ]]
  }
  local agent=
  wait_until 10 find_agent || fail "the program has no agent"
  # shellcheck disable=SC2317
  waits_for_the_daemon() { grep -qs wait_for_more_packets "/proc/$agent/wchan"; }
  # shellcheck disable=SC2317
  is_stopped() { grep -qs '^State:[[:space:]]*T' "/proc/$agent/status"; }
  wait_until 10 waits_for_the_daemon || fail "the agent does not wait for the daemon: $(cat "/proc/$agent/wchan")"
  for _ in 1 2 3; do
    kill -STOP "$program" "$agent"
    wait_until 10 is_stopped || fail "the agent does not stop"
    kill -CONT "$agent" "$program"
    wait_until 10 waits_for_the_daemon || fail "the agent waits no longer: $(cat "/proc/$agent/wchan")"
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

# --- peers that take their time ---

threads_of_daemon() { find "/proc/$DAEMON/task" -mindepth 1 -maxdepth 1 | wc -l; }
has_few_threads() { (($(threads_of_daemon) <= $1)); }

# Thousands of connections that say nothing neither take the daemon's threads and descriptors nor keep another user's program waiting.
seconds_silent_handshakes=60
needs_silent_handshakes="python3"
case_silent_handshakes() {
  [[ -z $NATIVE ]] || skip "it needs vswapd"
  ((EUID == 0)) || skip "only root can become somebody else"
  local threads peer
  start_daemon
  chmod 711 "$CASE_DIR"
  threads=$(threads_of_daemon)
  "$PYTHON" "$SUPPORT/slow_peer.py" crowd "$RUNTIME/attach.sock" 65534 1000 >ready &
  peer=$!
  wait_until 20 grep -q ready ready || fail "the connections are not there"
  say "threads: $threads, with the crowd $(threads_of_daemon)"
  has_few_threads $((threads + 64)) || fail "$(threads_of_daemon) threads instead of $threads"
  ctl run --limit 16M -- "$PROGRAMS/fill" --size 32 --verify --seed "$SEED" || fail "root's program ended with status $?"
  kill "$peer"
  wait "$peer" 2>/dev/null || true
  wait_until 20 has_few_threads "$threads" || fail "threads are left: $(threads_of_daemon) instead of $threads"
  stop_daemon
}

# All messages of a handshake have one deadline: one that comes just in time each time is too late in the end.
seconds_slow_handshake=60
needs_slow_handshake="python3"
case_slow_handshake() {
  [[ -z $NATIVE ]] || skip "it needs vswapd"
  local version
  version=$(sed -n 's/^#define VSWAP_VERSION \([0-9]*\).*/\1/p' "$SUPPORT/../../../Sources/CVSwapWire/include/vswap_wire.h")
  start_daemon
  "$PYTHON" "$SUPPORT/slow_peer.py" trickle "$RUNTIME/attach.sock" "$version" >answers || fail "the peer ended with status $?"
  say "$(<answers)"
  grep -q '^then.*none in time' answers || fail "the handshake went on: $(<answers)"
  stop_daemon
}

# Commands that wait for a stopped program, idle clients and such that neither write nor read: the status is there all the same.
seconds_slow_control=120
needs_slow_control="python3"
case_slow_control() {
  [[ -z $NATIVE ]] || skip "it needs vswapd"
  start_daemon
  start_program 16M "$PROGRAMS/swapfill" --size 48 --seed "$SEED"
  ctl limit "$GROUP" none
  kill -STOP "$PID"
  "$PYTHON" "$SUPPORT/slow_control.py" "$RUNTIME/control.sock" "$PID" >slowest || fail "the status was not there"
  remark "slowest-ms=$(<slowest)"
  kill -CONT "$PID"
  end_program
  stop_daemon
}

# accept(2) fails for a while: what comes later is served.
seconds_accept_errors=60
needs_accept_errors="strace"
case_accept_errors() {
  [[ -z $NATIVE ]] || skip "it needs vswapd"
  local error
  start_daemon
  for error in ENOBUFS EPROTO EPERM; do
    strace -f -qq -o trace -e trace=accept4 -e "inject=accept4:error=$error:when=1..3" -p "$DAEMON" &
    local tracer=$!
    wait_until 20 grep -q "^TracerPid:[[:space:]]*$tracer" "/proc/$DAEMON/status" || skip "strace cannot trace the daemon"
    VSWAP_SOCKET=$RUNTIME/attach.sock VSWAP_REQUIRED=1 LD_PRELOAD=$BIN/libvswap.so "$PROGRAMS/fill" --size 8 || fail "after $error: status $?"
    kill "$tracer"
    wait "$tracer" 2>/dev/null || true
    grep -q "$error.*INJECTED" trace || fail "$error was not met: $(<trace)"
  done
  stop_daemon
}

# A daemon that accepts nobody: the library waits for a while, and the program runs without.
seconds_full_backlog=120
needs_full_backlog="python3"
case_full_backlog() {
  [[ -z $NATIVE ]] || skip "it needs libvswap.so"
  local path=$CASE_DIR/attach.sock
  "$PYTHON" -c '
import signal, socket, sys
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(sys.argv[1])
listener.listen(0)
peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
peer.connect(sys.argv[1])
print("full", flush=True)
signal.pause()' "$path" >full &
  local peer=$!
  wait_until 20 grep -q full full || fail "the peer does not listen"
  LD_PRELOAD=$BIN/libvswap.so VSWAP_SOCKET=$path "$PROGRAMS/fill" --size 8 --verify --seed "$SEED" || fail "the program ended with status $?"
  kill "$peer"
  wait "$peer" 2>/dev/null || true
}

# --- what an agent gets ---

# Nice values of the agents of this case's programs.
agents_nice() {
  local pid
  for pid in $(processes_marked "$VSWAP_E2E_CASE"); do
    if grep -qsx vswap-agent "/proc/$pid/comm"; then cut -d ' ' -f 19 "/proc/$pid/stat"; fi
  done
}
all_are_ordinary() { [[ $(agents_nice | sort -u) == 0 ]]; }

# The agent has its share of the CPU while it evicts, and not a moment longer.
seconds_agent_nice=60
case_agent_nice() {
  [[ -z $NATIVE ]] || skip "it needs vswapd"
  start_daemon
  start_program 16M "$PROGRAMS/swapfill" --size 48 --seed "$SEED"
  ask_right verify
  remark "nice=$(agents_nice)"
  wait_until 20 all_are_ordinary || fail "the agent of a program that rests is still favoured: $(agents_nice)"
  end_program
  stop_daemon
}
