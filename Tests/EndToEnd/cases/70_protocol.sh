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
