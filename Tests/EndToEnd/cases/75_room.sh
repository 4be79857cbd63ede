# shellcheck shell=bash
# shellcheck disable=SC2034  # settings for Tests/EndToEnd/run
# Where the daemon runs out of something, programs wait or keep their pages. Nothing is lost.

only_vswapd() { [[ -z $NATIVE ]] || skip "it is about vswapd"; }

# --- sizes and numbers ---

case_room_extreme_numbers() {
  only_vswapd
  local most=9223372036854775807 number
  start_daemon
  start_program 64M "$PROGRAMS/swapfill" --size 16 --seed "$SEED"
  for number in $most 9223372036854771712 9223372036854775808 18446744073709551615 1e30 -1 0; do
    "$PYTHON" "$SUPPORT/requests.py" "$RUNTIME/control.sock" "$GROUP" "$PID" "$number" || fail "the daemon does not answer with $number"
  done
  ctl evict "$GROUP" --size $most || fail "evict --size $most"
  [[ $(status "sum(g['swapped_pages'] for g in s['groups']) > 3000") == True ]] || fail "not all was evicted: $(status "s['groups']")"
  ask_right verify
  ctl limit "$GROUP" $most || fail "limit $most"
  says 1 'cannot be a swap area' ctl swapon "$CASE_DIR/a" --size $most
  ask_right verify
  end_program
  stop_daemon
}

# --- descriptors ---

# Leaves the daemon no descriptor but those that it keeps for forks, and sees to it that there never is one: connections that say nothing.
HOLDER=
end_holder() { [[ -z $HOLDER ]] || kill "$HOLDER" 2>/dev/null || true; }
take_descriptors() {
  local highest
  highest=$(find "/proc/$DAEMON/fd" -mindepth 1 -printf '%f\n' | sort -n | tail -n 1)
  prlimit --pid "$DAEMON" --nofile=$((highest + 1)):$((highest + 1)) || skip "prlimit does not work here"
  "$PYTHON" "$SUPPORT/hold_connections.py" "$RUNTIME/attach.sock" 400 &
  HOLDER=$!
  AT_END=(end_holder)
  wait_until 20 has_no_descriptors || fail "the daemon still has descriptors"
}
has_no_descriptors() {
  local limit
  limit=$(prlimit --pid "$DAEMON" --nofile --output SOFT --noheadings)
  (($(find "/proc/$DAEMON/fd" -mindepth 1 -printf '.' | wc -c) >= limit - 1))
}

needs_room_descriptors_forks=prlimit
seconds_room_descriptors_forks=200
case_room_descriptors_forks() {
  only_vswapd
  start_daemon
  start_program 4M "$PROGRAMS/scatter" --pieces 500 --seed "$SEED"
  ask_right fill
  ctl evict "$GROUP"
  take_descriptors
  ask_right "fork 100"
  ask_right verify
  end_holder
  end_program
  stop_daemon
}

# The directory of the page table grows at 384, 768 and 1536 pieces.
needs_room_descriptors_tables=prlimit
case_room_descriptors_tables() {
  only_vswapd
  start_daemon
  start_program 4M "$PROGRAMS/scatter" --pieces 3000 --seed "$SEED"
  take_descriptors
  ask_right fill
  ask_right verify
  ask_right fill
  ask_right verify
  end_holder
  end_program
  stop_daemon
}
