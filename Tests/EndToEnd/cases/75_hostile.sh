# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # settings for Tests/EndToEnd/run; SEED is from the library
# Agents that break their side of the protocol, one lie each (hostile.c), beside a program that verifies all that it has.

# lie NAME: whatever becomes of the liar, the daemon goes on.
lie() {
  local status=0
  say "$1"
  timeout --signal=KILL 20 "$PROGRAMS/hostile" "$RUNTIME/attach.sock" "$SEED" "$1" >lie.out 2>&1 || status=$?
  cat lie.out >&2
  # It left what the kernel still waits for, if not even a signal of its own ends it.
  ((status != 137)) || fail "$1 hangs: $(describe_hang "$VSWAP_E2E_CASE")"
  kill -0 "$DAEMON" 2>/dev/null || fail "the daemon ended at $1"
  wait_until 20 daemon_answers || fail "the daemon does not answer after $1"
}

seconds_hostile_agents=300
case_hostile_agents() {
  [[ -z $NATIVE ]] || skip "it needs vswapd"
  local name status=0 beside
  start_daemon
  # It works until its input ends.
  start_program 24M "$PROGRAMS/churn" --size 64 --threads 1 --seed "$SEED"
  beside=$RUNNER
  for name in $("$PROGRAMS/hostile" --list); do
    lie "$name"
    kill -0 "$beside" 2>/dev/null || fail "the program beside ended at $name"
  done
  ask_right stop
  end_program
  wait_until 30 status_is "len(s['groups'])" 0 || fail "groups are left: $(status "s['groups']")"
  stop_daemon
}
