# shellcheck shell=bash
# shellcheck disable=SC2034,SC2016  # settings for Tests/EndToEnd/run
# Whatever the machine is like: its awk, the folder's name, the umask, the service manager.

# Every awk that is installed reads what scripts/soundness and the tests give it.
needs_scripts_awk="awk"
seconds_scripts_awk=240
case_scripts_awk() {
  [[ -z $NATIVE ]] || skip "it is about scripts"
  local root name tried=()
  root=$(cd "$SUPPORT/../../.." && pwd)
  for name in mawk gawk original-awk busybox; do
    command -v "$name" >/dev/null || continue
    mkdir -p "$name"
    if [[ $name == busybox ]]; then
      printf '#!/bin/sh\nexec busybox awk "$@"\n' >"$name/awk"
    else
      printf '#!/bin/sh\nexec %s "$@"\n' "$name" >"$name/awk"
    fi
    chmod 755 "$name/awk"
    PATH=$CASE_DIR/$name:$PATH "$root/scripts/soundness" layers imports "hot path" >"$name.out" 2>&1 ||
      fail "with $name: $(<"$name.out")"
    # gawk warns of what it takes in another way than it is meant.
    ! grep -q 'warning' "$name.out" || fail "with $name: $(<"$name.out")"
    tried+=("$name")
  done
  remark "awk=${tried[*]}"
  ((${#tried[@]})) || skip "none of mawk, gawk, original-awk and busybox is installed"
  # All of them see the same functions.
  for name in "${tried[@]:1}"; do
    diff <(grep functions: "${tried[0]}.out") <(grep functions: "$name.out") || fail "$name sees other functions than ${tried[0]}"
  done
}

# The library of an installation whose path LD_PRELOAD cannot hold.
case_path_space() {
  [[ -z $NATIVE ]] || skip "it is about vswapd"
  local place="$CASE_DIR/a folder: 1\$"
  mkdir "$place"
  cp "$BIN/vswapd" "$BIN/vswapctl" "$BIN/libvswap.so" "$place/"
  BIN=$place
  limited 16M "$PROGRAMS/fill" --size 64 --verify --seed "$SEED" || fail "status $? with an embedded daemon"
  require_swapping

  say "a daemon that runs; descendants load it as well"
  start_daemon
  limited 16M sh -c '"$@" && env' sh "$PROGRAMS/fill" --size 64 --verify --seed "$SEED" >out || fail "status $? with a daemon"
  [[ $(sed -n 's/^LD_PRELOAD=//p' out) == "$RUNTIME"/preload-*/libvswap.so ]] || fail "$(grep LD_PRELOAD out)"
  (($(status "s['ended_groups'][-1]['totals']['evictions']") > 0)) || fail "it was not limited"
  say "two runs at a time share the link; another's is refused"
  ctl run -- sleep 1 &
  ctl run -- true || fail "two at a time"
  wait $! || fail "the first of two"
  local link
  link=$(echo "$RUNTIME"/preload-*/libvswap.so)
  ln -sf /nonexistent "$link"
  says 125 'is something else' ctl run -- true
  stop_daemon
  [[ ! -e $RUNTIME ]] || fail "left behind: $(ls -lR "$RUNTIME")"

  say "a runtime directory that LD_PRELOAD cannot name either"
  RUNTIME="$CASE_DIR/run time"
  start_daemon
  says 125 'ld_preload can name neither' ctl run -- true
  stop_daemon
}

# A daemon that is started with a umask of 077 serves other users' programs all the same.
needs_umask="setpriv"
case_umask() {
  [[ -z $NATIVE ]] || skip "it is about vswapd"
  ((EUID == 0)) || skip "only root can become somebody else"
  chmod 755 "$CASE_DIR"
  cp "$BIN/libvswap.so" "$PROGRAMS/fill" .
  chmod 755 libvswap.so fill
  umask 077
  echo '{"attach_everyone": true}' >config.json
  start_daemon --config config.json
  setpriv --reuid 65534 --regid 65534 --clear-groups env "LD_PRELOAD=$CASE_DIR/libvswap.so" VSWAP_LIMIT=16M VSWAP_REQUIRED=1 \
    "VSWAP_SOCKET=$RUNTIME/attach.sock" ./fill --size 64 --verify --seed "$SEED" || fail "status $? as another user"
  stop_daemon
}

# As a service of a real systemd: see support/service.sh.
needs_service="systemctl unshare nsenter setpriv"
seconds_service=240
case_service() {
  [[ -z $NATIVE ]] || skip "it is about vswapd"
  ((EUID == 0)) || skip "only root can start a systemd"
  [[ $(stat -f -c %T "$CASE_DIR") != tmpfs ]] || skip "$CASE_DIR is on tmpfs, and areas need a disk"
  local root status=0
  root=$(cd "$SUPPORT/../../.." && pwd)
  "$SUPPORT/systemd_sandbox" --share "$CASE_DIR" --share "$root" bash "$SUPPORT/service.sh" 2> >(tee errors >&2) || status=$?
  if ((status == 125)); then skip "$(grep '^systemd_sandbox: ' errors | tail -n 1)"; fi
  ((status == 0)) || fail "$(grep '^FAIL: ' errors || echo "it ended with status $status")"
}

# Without a service the status lists the embedded daemons, and commands reach each of them.
case_embedded_found() {
  [[ -z $NATIVE ]] || skip "it is about vswapd"
  local fifo=$CASE_DIR/other.fifo other
  mkfifo to from "$fifo"
  # First, so that it does not inherit the other program's input.
  "$BIN/vswapctl" run --embedded -- sh -c 'read -r _ <"$0"' "$fifo" &
  other=$!
  "$BIN/vswapctl" run --embedded --limit 16M -- "$PROGRAMS/swapfill" --size 48 --seed "$SEED" <to >from &
  RUNNER=$!
  exec {TO}>to {FROM}<from
  read_answer
  PID=${ANSWER#ready }
  # Where there is a service the status is the service's.
  # shellcheck disable=SC2317  # wait_until calls it
  listed() { [[ $("$BIN/vswapctl" status 2>&1) =~ (^|$'\n')\ *[0-9]+\ +$PID\ +swapfill\ +swapfill-$PID\ .*/control\.sock ]]; }
  if [[ ! -S /run/vswapd/control.sock || $EUID != 0 ]]; then
    wait_until 20 listed || fail "it is not listed: $("$BIN/vswapctl" status 2>&1)"
  fi
  embedded() { "$BIN/vswapctl" --embedded-of "$@"; }
  [[ $(embedded "$PID" status --json | query "s['groups'][0]['id']") == "swapfill-$PID" ]] || fail "not found by its process"
  [[ $(embedded "$RUNNER" status --json | query "s['groups'][0]['id']") == "swapfill-$PID" ]] || fail "not found by vswapctl's process"
  [[ $(embedded "swapfill-$PID" status --json | query "s['groups'][0]['id']") == "swapfill-$PID" ]] || fail "not found by its group"
  says 1 "no embedded daemon.*'no-such-name'" embedded no-such-name status
  says 1 "no embedded daemon" "$BIN/vswapctl" swapoff /nowhere --embedded-of no-such-name
  says 64 'either --socket or --embedded-of' "$BIN/vswapctl" --socket /x --embedded-of 1 status
  ctl() { embedded "$PID" "$@"; }
  if [[ $(stat -f -c %T "$CASE_DIR") != tmpfs ]]; then
    ctl swapon "$CASE_DIR/area" --size 16M
    [[ $(ctl swapon --show) == *"$CASE_DIR/area"* ]] || fail "swapon --show: $(ctl swapon --show)"
    ctl swapoff "$CASE_DIR/area"
  fi
  ctl limit "swapfill-$PID" none
  ctl restore "$PID"
  ask_right verify
  end_program
  echo >"$fifo"
  wait "$other" || fail "the other one ended with status $?"
}

# What runs without the library is told, as far as it lives long enough to be seen.
needs_outsiders="cc"
case_outsiders() {
  [[ -z $NATIVE ]] || skip "it is about vswapd"
  printf '#include <unistd.h>\nint main(int c, char **v) { char b; (void)c; (void)v; return read(0, &b, 1) < 0; }\n' >waiter.c
  cc -static waiter.c -o frozen 2>/dev/null || cp "$(command -v cat)" frozen
  mkfifo fifo
  # They stay while they can be seen: two looks are half a second apart at most.
  "$BIN/vswapctl" run --embedded --stats -- sh -c 'env -i ./frozen <fifo & cat <fifo & env -i sh -c "exec cat" <fifo & wait' 2>stats &
  local runner=$!
  exec {TO}>fifo
  sleep $((3 * VSWAP_SLOWNESS))
  exec {TO}>&-
  wait "$runner" || fail "status $?: $(<stats)"
  grep -q 'at least 2 processes outside of the group (\(frozen, cat\|cat, frozen\))' stats || fail "it says: $(<stats)"
  "$BIN/vswapctl" run --embedded --stats -- sh -c 'sleep 1; sh -c "sleep 1"' 2>stats
  ! grep -q outside stats || fail "all are inside, and it says: $(<stats)"
}

# AddressSanitizer's shared library wants to be the first one; the program's own options stay.
needs_address_sanitizer="gcc"
case_address_sanitizer() {
  [[ -z $NATIVE ]] || skip "it is about vswapd"
  cat >sanitized.c <<'SOURCE'
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int main(int count, char **arguments) {
  enum { BLOCKS = 3000, BYTES = 16384 };
  static unsigned char *blocks[BLOCKS];
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < BLOCKS; i++) {
      if (!blocks[i]) blocks[i] = malloc(BYTES);
      else for (int k = 0; k < BYTES; k += 512) if (blocks[i][k] != (unsigned char)(i + round - 1)) return 1;
      memset(blocks[i], i + round, BYTES);
    }
  }
  if (count > 1) blocks[0][BYTES + atoi(arguments[1])] = 1;
  for (int i = 0; i < BLOCKS; i++) free(blocks[i]);
  puts("right");
  return 0;
}
SOURCE
  local compiler tried=() status
  for compiler in gcc clang; do
    command -v "$compiler" >/dev/null || continue
    "$compiler" -g -fsanitize=address sanitized.c -o sanitized 2>"$compiler.err" || continue
    tried+=("$compiler")
    # Whether it looks for leaks is another matter: that stops all threads at the end.
    export ASAN_OPTIONS=detect_leaks=0:exitcode=23
    limited 24M ./sanitized >out || fail "$compiler's: status $?"
    [[ $(<out) == right ]] || fail "$compiler's: $(<out)"
    status=0
    limited 24M ./sanitized 1 >out 2>err || status=$?
    ((status == 23)) || fail "$compiler's: status $status instead of the 23 of ASAN_OPTIONS: $(<err)"
    grep -q heap-buffer-overflow err || fail "$compiler's finds nothing: $(<err)"
  done
  ((${#tried[@]})) || skip "no compiler has AddressSanitizer here"
  remark "compilers=${tried[*]}"
  require_swapping
  [[ $(ASAN_OPTIONS=verify_asan_link_order=1:a=b "$BIN/vswapctl" run --embedded -- sh -c 'echo "$ASAN_OPTIONS"') == \
    verify_asan_link_order=0:verify_asan_link_order=1:a=b ]] || fail "the user's own options do not come last"
}

# What a service manager says to a process by its number is said to the program.
case_listen_pid() {
  [[ -z $NATIVE ]] || skip "it is about vswapd"
  local names='LISTEN_PID WATCHDOG_PID SYSTEMD_EXEC_PID' name
  # The shell's number becomes vswapctl's.
  (LISTEN_PID=$BASHPID LISTEN_FDS=1 LISTEN_PIDFDID=5 WATCHDOG_PID=$BASHPID SYSTEMD_EXEC_PID=$BASHPID \
    exec "$BIN/vswapctl" run --embedded -- \
    sh -c 'echo "$$"; for name in $0 LISTEN_PIDFDID LISTEN_FDS; do eval "echo $name=\${$name-unset}"; done' "$names") >out
  local own
  own=$(head -n 1 out)
  for name in $names; do grep -qx "$name=$own" out || fail "$name is not $own: $(<out)"; done
  grep -qx LISTEN_PIDFDID=unset out || fail "LISTEN_PIDFDID still names another process: $(<out)"
  grep -qx LISTEN_FDS=1 out || fail "LISTEN_FDS is lost"
  # What is somebody else's stays.
  [[ $(LISTEN_PID=1 "$BIN/vswapctl" run --embedded -- sh -c 'echo "$LISTEN_PID"') == 1 ]] || fail "another's LISTEN_PID changes"
}

# Names with newlines, control sequences and bytes that are no UTF-8 are shown escaped and mean what was named.
case_escaped_names() {
  [[ -z $NATIVE ]] || skip "it is about vswapd"
  local name=$'pro\ngram\e[2J' group=$'gr\xff\nup' area=$'ar\nea \\x41'
  local shown='ar\x0Aea \x5Cx41'
  start_daemon
  cp "$PROGRAMS/swapfill" "$name"
  mkfifo to from
  env "LD_PRELOAD=$BIN/libvswap.so" "VSWAP_SOCKET=$RUNTIME/attach.sock" VSWAP_LIMIT=16M "VSWAP_GROUP=$group" VSWAP_REQUIRED=1 \
    "./$name" --size 32 --seed "$SEED" <to >from &
  RUNNER=$!
  exec {TO}>to {FROM}<from
  read_answer
  PID=${ANSWER#ready }
  ctl status >out
  grep -qF "pro\\x0Agram\\x1B[2J" out || fail "the program is shown in another way: $(cat -v out)"
  grep -qF 'gr\xFF\x0Aup' out || fail "the group is shown in another way: $(cat -v out)"
  ! grep -q $'\e' out || fail "a control sequence reaches the terminal"
  [[ $(status "s['groups'][0]['id']") == 'gr\xFF\x0Aup' ]] || fail "JSON: $(ctl status --json)"
  ctl limit 'gr\xFF\x0Aup' 8M || fail "the group is not found as it is shown"
  says 64 'utf-8' ctl limit "$group" 8M
  if [[ $(stat -f -c %T "$CASE_DIR") != tmpfs ]]; then
    ctl swapon "$area" --size 16M >out
    [[ $(<out) == "$CASE_DIR/$shown: "* && $(wc -l <out) == 1 ]] || fail "swapon says: $(<out)"
    [[ -f $area ]] || fail "another file was made: $(ls -b)"
    ctl swapon --show | grep -qF "$CASE_DIR/$shown " || fail "--show: $(ctl swapon --show)"
    says 1 "nothing|no |not" ctl swapoff "$CASE_DIR/other"
    ctl swapoff "$CASE_DIR/$shown" || fail "it is not found as it is shown"
    [[ ! -e $area ]] || fail "it is still there"
    ctl swapon "$area" --size 16M
    ctl swapoff "$area" || fail "it is not found as it was typed"
    says 64 'utf-8' ctl swapon $'/tmp/\xff' --size 16M
  fi
  ask_right verify
  end_program
  stop_daemon
}
