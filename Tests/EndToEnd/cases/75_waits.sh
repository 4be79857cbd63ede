# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # settings for Tests/EndToEnd/run; SEED is from the library
# Nothing waits for ever on what a target controls: beside one that is stopped in the middle of an eviction, or lies, everybody else is
# served, its area is retired, commands are answered, and the daemon leaves as soon as it can.

# shellcheck source=SCRIPTDIR/90_swap.sh
source "$(dirname "${BASH_SOURCE[0]}")/90_swap.sh"

# A program beside it that must not notice anything.
start_witness() {
  mkfifo witness.in witness.out
  ctl run --limit 16M -- "$PROGRAMS/churn" --size 48 --threads 2 --seed "$SEED" <witness.in >witness.out &
  WITNESS=$!
  exec {WITNESS_IN}>witness.in {WITNESS_OUT}<witness.out
  IFS= read -r -t $((100 * VSWAP_SLOWNESS)) ANSWER <&"$WITNESS_OUT" || fail "the witness does not start"
}

end_witness() {
  printf 'stop\n' >&"$WITNESS_IN"
  IFS= read -r -t $((100 * VSWAP_SLOWNESS)) ANSWER <&"$WITNESS_OUT" || fail "the witness does not answer"
  [[ $ANSWER == right* ]] || fail "the witness says: $ANSWER"
  exec {WITNESS_IN}>&- {WITNESS_OUT}<&-
  wait "$WITNESS" || fail "the witness ended with status $?"
}

# start_liar OPTION...: most of it in the area "a"; there is room for all of it in "b", but not in the pool.
start_liar() {
  require_disk
  start_daemon --pool-limit 2M --swap "$CASE_DIR/a:128M" 2>daemon.err
  start_program 24M "$PROGRAMS/liar" --size 96 --seed "$SEED" "$@"
  wait_until 60 area_holds "$CASE_DIR/a" 4000 || fail "hardly anything comes into the area: $(ctl status --json)"
  ctl swapon "$CASE_DIR/b" --size 128M
  start_witness
}

# lie WHICH: with a command under way.
lie() {
  ask "lie $1"
  [[ $ANSWER == "ready to lie" ]] || fail "after 'lie $1': $ANSWER"
  # Asks for evictions, also where half of what is resident is a child's.
  ctl limit "$GROUP" 6M
  read_answer
  [[ $ANSWER == lied ]] || fail "after 'lie $1': $ANSWER"
}

is_silent() { status_is "next((t['state'] for g in s['groups'] for t in g['targets'] if t['pid'] == $PID), 'gone')" silent; }
has_told() { grep -q "$1" daemon.err; }

# Whoever asks for something of it is told, in a moment.
require_refusals() {
  wait_until 20 is_silent || fail "it is not said to be silent: $(ctl status --json)"
  ctl limit "$GROUP" none
  says 1 "process $PID does not answer" ctl restore "$PID"
  says 1 "process $PID does not answer" ctl detach "$PID"
  says 1 "process $PID does not answer" ctl evict "$PID"
}

# The daemon does not leave while somebody's pages are here, and says whose.
require_stay() {
  kill -TERM "$DAEMON"
  wait_until 60 has_told "cannot leave: .*($PID)" || fail "the daemon does not say whom it stays for: $(<daemon.err)"
  daemon_answers || fail "the daemon has gone"
}

# It has got rid of everybody by itself.
require_end() {
  local status=0
  wait "$DAEMON" || status=$?
  DAEMON=
  ((status == 0)) || fail "the daemon ended with status $status: $(<daemon.err)"
  [[ ! -e $RUNTIME/control.sock && ! -e $CASE_DIR/b ]] || fail "the daemon left something behind"
}

seconds_stopped_with_gate=300
case_stopped_with_gate() {
  start_liar
  ask fork
  local child=${ANSWER#child }
  lie stop
  # The child is served by the same pager.
  kill -USR1 "$child"
  read_answer
  [[ $ANSWER == right ]] || fail "the child of the program that is stopped says: $ANSWER"
  require_refusals
  off "$CASE_DIR/a"
  end_witness
  require_stay
  kill -CONT "$PID"
  require_end
  ask_right verify
  end_program
}

# It runs, and keeps the gate until it is killed.
seconds_gate_kept=300
case_gate_kept() {
  start_liar
  lie gate
  require_refusals
  off "$CASE_DIR/a"
  end_witness
  require_stay
  kill -KILL "$PID"
  end_input
  wait "$RUNNER" || true
  require_end
}

# The gate is free, and a command never ends. Faults are served.
seconds_command_without_end=300
case_command_without_end() {
  start_liar
  lie silent
  require_refusals
  off "$CASE_DIR/a"
  ask_right verify
  end_witness
  require_stay
  end_program
  require_end
}

# Reading would block for ever. The pages go back, and the session ends.
is_told_of_blocking() { has_told "ended the session of liar ($PID): the userfaultfd's O_NONBLOCK was cleared"; }
seconds_blocking_descriptor=300
case_blocking_descriptor() {
  start_liar
  lie block
  wait_until 60 is_told_of_blocking || fail "nobody was told: $(<daemon.err)"
  ask_right verify
  off "$CASE_DIR/a"
  end_witness
  ask_right verify
  end_program
  stop_daemon
}

# A child's descriptor can block whatever the daemon does. Whoever waits for its pager frees that.
seconds_blinking_descriptor=300
case_blinking_descriptor() {
  start_liar --forked
  lie blink
  off "$CASE_DIR/a"
  end_witness
  kill -TERM "$DAEMON"
  require_end
  ask_right verify
  end_program
}
