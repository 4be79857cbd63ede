# shellcheck shell=bash
# shellcheck disable=SC2034,SC2016  # settings for Tests/EndToEnd/run
# Bad input: one line that says what is wrong, the documented status, nothing left behind.

run() { "$BIN/vswapctl" run --embedded "$@"; }
only_vswapd() { [[ -z $NATIVE ]] || skip "it is about vswapd"; }

case_errors_options() {
  only_vswapd
  says 125 'unknown option|bogus' run --bogus -- true
  says 125 'no program' run --limit 64M
  says 125 'unexpected|after --' run true
  says 125 'limit' run --limit
  local size
  for size in 12X -1 '' 64MB 1.5G ' 64M' 0x10 0 1K 99999999999999999999 9999999999G; do
    says 125 '--limit' run --limit "$size" -- true
    says 125 '--pool-limit' run --pool-limit "$size" -- true
    says 64 '--pool-limit' "$BIN/vswapd" serve --runtime-dir run --pool-limit "$size"
  done
  says 64 'command|subcommand' "$BIN/vswapctl"
  says 64 'bogus' "$BIN/vswapctl" bogus
  says 64 'bogus' "$BIN/vswapctl" status --bogus
  says 64 'pid|argument' "$BIN/vswapctl" evict
  says 64 'size' "$BIN/vswapctl" evict 1 --size 0
  says 64 'process id|valid|invalid' "$BIN/vswapctl" detach zero
  says 64 'limit' "$BIN/vswapctl" limit group 1K
  says 64 'socket' "$BIN/vswapctl" --socket "/$(printf 'x%.0s' {1..200})" status
  says 64 'command' "$BIN/vswapd"
  says 64 'bogus' "$BIN/vswapd" serve --bogus
  [[ ! -e run ]] || fail "a refused daemon left its directory behind"
}

case_errors_programs() {
  only_vswapd
  says 127 'not found' run --limit 64M -- no-such-program-anywhere
  says 127 'not found' run --limit 64M -- /no/such/program
  says 127 'not found' run --limit 64M -- ./no-such-program
  printf '#!/bin/sh\nexit 0\n' >plain
  chmod 644 plain
  says 126 'permission denied|executable' run -- ./plain
  says 126 'directory' run -- "$CASE_DIR"
  printf '#!/no/such/interpreter\n' >script
  chmod 755 script
  says 126 'interpreter' run -- ./script
  head -c 100 "$(command -v ls)" >stump
  chmod 755 stump
  says 126 'not a program|cannot run|format' run -- ./stump
  printf 'exit 9\n' >shell
  chmod 755 shell
  local status=0
  run -- ./shell || status=$?
  ((status == 9)) || fail "a script without #!: status $status"
}

needs_errors_static="cc"
case_errors_static() {
  only_vswapd
  printf 'int main(void) { return 0; }\n' >empty.c
  cc -static empty.c -o static 2>/dev/null || skip "cc -static does not work here (libc.a is missing)"
  says 125 'statically linked' run -- ./static
}

case_errors_setuid() {
  only_vswapd
  ((EUID == 0)) || skip "only root can make a program set-user-ID for another user"
  cp /bin/true setuid
  chown 65534 setuid
  chmod 4755 setuid
  chmod 755 "$CASE_DIR"
  if findmnt -no OPTIONS -T setuid 2>/dev/null | grep -q nosuid; then skip "/tmp is mounted nosuid"; fi
  says 125 'set-user-id' run -- ./setuid
  chown 0 setuid
  chmod 4755 setuid
  run -- ./setuid || fail "a program that is set-user-ID for this very user is refused"
}

# Whatever the program does comes through.
case_errors_status() {
  only_vswapd
  local status=0 code
  for code in 0 1 7 125 126 127 255; do
    status=0
    run -- sh -c "exit $code" || status=$?
    ((status == code)) || fail "status $status instead of $code"
  done
  for code in KILL TERM SEGV ABRT; do
    status=0
    (ulimit -c 0 && run -- sh -c "kill -$code \$\$") || status=$?
    ((status == 128 + $(kill -l "$code"))) || fail "status $status after SIG$code"
  done
  [[ $(echo hello | run -- cat) == hello ]] || fail "standard input does not arrive"
  [[ $(run -- sh -c 'echo out; echo err >&2' 2>&1 >/dev/null) == err ]] || fail "standard error holds more than the program's"
  [[ $(A='b c' run -- sh -c 'echo "$A $#" "$1"' sh 'x  y') == 'b c 1 x  y' ]] || fail "environment or arguments do not arrive"
  cd /
  [[ $(run -- pwd) == / ]] || fail "the working directory is another one"
  cd "$CASE_DIR" || exit
  # A signal to vswapctl goes to the program.
  "$BIN/vswapctl" run --embedded -- sh -c 'trap "exit 33" TERM; : >trapped; while :; do sleep 0.05; done' &
  local runner=$!
  wait_until 20 test -e trapped || fail "the program does not start"
  kill -TERM "$runner"
  status=0
  wait "$runner" || status=$?
  ((status == 33)) || fail "status $status after SIGTERM to vswapctl"
}

case_errors_daemon() {
  only_vswapd
  start_daemon
  says 1 'already|another' "$BIN/vswapd" serve --runtime-dir "$RUNTIME"
  daemon_answers || fail "the first daemon has gone"
  says 1 '4194304|no ' ctl evict 4194304
  says 1 'nobody|no ' ctl restore nobody
  says 1 'nobody|no ' ctl limit nobody 64M
  says 1 '4194304|no ' ctl detach 4194304
  says 125 'pool-limit' ctl run --pool-limit 64M -- true
  ctl run --limit 64M -- true || fail "the daemon does not serve after all that"

  say "stale sockets"
  kill -KILL "$DAEMON"
  wait "$DAEMON" 2>/dev/null || true
  [[ -S $RUNTIME/control.sock ]] || fail "no stale socket to test with"
  says 1 'no daemon answers' ctl status
  start_daemon
  ctl run --limit 64M -- true || fail "the second daemon does not serve"
  stop_daemon
  says 1 'no daemon answers' ctl status

  say "configuration files"
  says 1 'missing.json' "$BIN/vswapd" serve --config missing.json
  echo '{"runtime_dir": 1' >bad.json
  says 1 'bad.json' "$BIN/vswapd" serve --config bad.json
  echo '{"runtime_dirr": "/run/x"}' >bad.json
  says 1 'runtime_dirr' "$BIN/vswapd" serve --config bad.json
  echo '{"pool_limit": "lots"}' >bad.json
  says 1 'pool_limit' "$BIN/vswapd" serve --config bad.json
  : >file
  says 1 'file' "$BIN/vswapd" serve --runtime-dir file
  says 1 'file' "$BIN/vswapd" serve --runtime-dir file/below
  says 1 '.' "$BIN/vswapd" serve --runtime-dir "$CASE_DIR/$(printf 'x%.0s' {1..120})"
}

# As somebody without privileges.
needs_errors_privileges="setpriv"
case_errors_privileges() {
  only_vswapd
  ((EUID == 0)) || skip "only root can become somebody else"
  local nobody=(setpriv --reuid 65534 --regid 65534 --clear-groups env -u XDG_RUNTIME_DIR)
  chmod 755 "$CASE_DIR"
  mkdir bin
  mkdir -m 555 closed
  cp "$BIN/vswapd" "$BIN/vswapctl" "$BIN/libvswap.so" bin/
  mkdir -m 700 own
  chown 65534 own
  # Root, but for the right to write where root may not.
  local tame=(setpriv "--bounding-set=-dac_override,-dac_read_search")
  says 1 'closed' "${tame[@]}" bin/vswapd serve --runtime-dir closed/run
  says 1 'closed' "${tame[@]}" bin/vswapd serve --runtime-dir closed
  says 1 'xdg_runtime_dir' "${nobody[@]}" bin/vswapd serve
  says 1 'xdg_runtime_dir' "${nobody[@]}" bin/vswapctl status
  # Where everybody may open /dev/userfaultfd the right to follow forks is missing.
  says 1 'userfaultfd|permission|cap_sys_ptrace' "${nobody[@]}" bin/vswapd serve --runtime-dir own/run
  says 125 'userfaultfd|permission|cap_sys_ptrace' "${nobody[@]}" bin/vswapctl run --embedded --limit 64M -- true
  start_daemon
  says 1 'may not connect|permission' "${nobody[@]}" bin/vswapctl --socket "$RUNTIME/control.sock" status
  stop_daemon
}

# The preload library by itself: it fails open unless told otherwise.
case_preload() {
  only_vswapd
  local without=(env "LD_PRELOAD=$BIN/libvswap.so" "VSWAP_SOCKET=$CASE_DIR/nowhere")
  [[ $("${without[@]}" sh -c 'echo fine' 2>&1) == fine ]] || fail "it does not run without a daemon"
  says 125 'vswap' "${without[@]}" VSWAP_REQUIRED=1 /bin/true
  [[ $("${without[@]}" VSWAP_LIMIT=lots sh -c 'echo fine' 2>&1) == fine ]] || fail "a bad VSWAP_LIMIT stops the program"
  start_daemon
  local joined=(env "LD_PRELOAD=$BIN/libvswap.so" "VSWAP_SOCKET=$RUNTIME/attach.sock" VSWAP_LIMIT=16M VSWAP_GROUP=mine VSWAP_REQUIRED=1)
  [[ $("${joined[@]}" sh -c 'echo fine' 2>&1) == fine ]] || fail "it prints something by itself"
  "${joined[@]}" "$PROGRAMS/fill" --size 64 --verify --seed "$SEED"
  wait_until 5 status_is "any(g['id'] == 'mine' and g['totals']['evictions'] > 0 for g in s['ended_groups'])" True ||
    fail "no figures of the group: $(ctl status --json)"
  # What it starts does not inherit a descriptor.
  [[ $("${joined[@]}" sh -c 'ls -l /proc/self/fd' | grep -c 'userfaultfd\|attach\|vswap\|memfd') == 0 ]] ||
    say "a program that is itself a target sees descriptors of its own agent"
  stop_daemon
}

# Garbage on both sockets ends that connection and nothing else.
needs_garbage="python3"
case_garbage() {
  only_vswapd
  start_daemon
  "$PYTHON" "$SUPPORT/garbage.py" "$RUNTIME" "$SEED"
  ctl run --limit 16M -- "$PROGRAMS/fill" --size 64 --verify --seed "$SEED" || fail "the daemon does not serve after garbage"
  wait_until 10 status_is "len(s['groups']) + s['pool']['objects'] + s['cache']['pages'] + s['zero']['pages']" 0 ||
    fail "something is left: $(ctl status --json)"
  stop_daemon
}
