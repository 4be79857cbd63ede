# shellcheck shell=bash
# shellcheck disable=SC2034  # settings for Tests/EndToEnd/run
# --limit auto: what a program does not use goes, what it uses comes back.

auto_group() { status "[g['$1'] for g in s['groups'] if g['id'] == '$GROUP'][0]"; }
group_has() { [[ $(status "[$1 for g in s['groups'] if g['id'] == '$GROUP'][0]") == True ]]; }

seconds_auto=300
case_auto() {
  [[ -z $NATIVE ]] || skip "it is about vswapd"
  local began=$SECONDS low
  start_daemon
  start_program auto "$PROGRAMS/workset" --size 256 --working 64 --seed "$SEED"
  [[ $(auto_group limit_mode) == auto ]] || fail "the mode is $(auto_group limit_mode)"

  say "three quarters are not used"
  wait_until 120 group_has "g['resident_bytes'] <= 128 * $MIB and g['limit_bytes'] <= 128 * $MIB" ||
    fail "resident $(auto_group resident_bytes), limit $(auto_group limit_bytes)"
  low=$(auto_group limit_bytes)
  remark "half-after=$((SECONDS - began))s"
  [[ $(ctl status) == *"auto, "* ]] || fail "status for people: $(ctl status)"

  say "another quarter is used"
  ask "move 128"
  wait_until 60 group_has "g['limit_bytes'] >= $low + 16 * $MIB" || fail "the limit stays at $(auto_group limit_bytes), after $low"

  say "everything is read"
  ask_right verify
  ask_right verify

  say "other limits, and back"
  ctl limit "$GROUP" 64M
  group_has "g['limit_mode'] == 'fixed' and g['limit_bytes'] == 64 * $MIB" || fail "the limit is not 64M"
  wait_until 60 group_has "g['resident_bytes'] <= 66 * $MIB" || fail "64M are not reached: $(auto_group resident_bytes)"
  ctl limit "$GROUP" none
  group_has "g['limit_mode'] == 'none' and g['limit_bytes'] == 0" || fail "the limit is not none"
  ctl limit "$GROUP" auto
  group_has "g['limit_mode'] == 'auto' and g['limit_bytes'] > 0" || fail "the limit is not auto"
  ask_right verify
  end_program
  stop_daemon
}

# By its environment, and with a program that does nothing.
seconds_auto_idle=180
case_auto_idle() {
  [[ -z $NATIVE ]] || skip "it is about vswapd"
  start_daemon
  mkfifo to
  env "LD_PRELOAD=$BIN/libvswap.so" "VSWAP_SOCKET=$RUNTIME/attach.sock" VSWAP_LIMIT=auto VSWAP_GROUP=idle VSWAP_REQUIRED=1 \
    "$PROGRAMS/swapfill" --size 64 --seed "$SEED" <to >idle.out &
  PID=$!
  exec {TO}>to
  GROUP=idle
  wait_until 20 grep -q ready idle.out || fail "the program does not start"
  [[ $(auto_group limit_mode) == auto ]] || fail "the mode is $(auto_group limit_mode)"
  # The keeper looks at the group a moment later.
  wait_until 20 group_has "g['resident_bytes'] >= 60 * $MIB" || fail "it is filled, but has $(auto_group resident_bytes)"
  wait_until 90 group_has "g['resident_bytes'] <= 56 * $MIB" || fail "it stays at $(auto_group resident_bytes)"
  exec {TO}>&-
  wait "$PID" || fail "the program ended with status $?"
  stop_daemon
}
