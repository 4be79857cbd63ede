# shellcheck shell=bash
# shellcheck disable=SC2034  # settings for Tests/EndToEnd/run
# Paths that are no swap area and areas that are none any more: one line, the documented status, nothing changed or left behind.

# On a disk: the directory of the case may lie in memory.
swap_directory() {
  [[ -z $NATIVE ]] || skip "it is about vswapd"
  AREAS=$(mktemp -d /var/tmp/vswap-areas.XXXXXX)
  trap 'end_of_case; leave_areas' EXIT
  case $(stat -f -c %T "$AREAS") in tmpfs | ramfs) skip "/var/tmp lies in memory" ;; esac
}
leave_areas() {
  local device
  for device in ${LOOPS-}; do
    umount "$device" 2>/dev/null || true
    losetup --detach "$device" 2>/dev/null || true
  done
  rm -rf "$AREAS"
}

sums() { find "$AREAS" -type f -exec sha256sum {} + | sort; }

# refused_untouched PATTERN ARG...: swapon fails so, and every file is as it was.
refused_untouched() {
  local pattern=$1 before
  shift
  before=$(sums)
  says 1 "$pattern" ctl swapon "$@"
  [[ $(sums) == "$before" ]] || fail "swapon $* has changed a file, made one or removed one"
  [[ $(ctl swapon --show --json) == "$AREAS_BEFORE" ]] || fail "swapon $* has changed the areas"
}

case_swap_errors_options() {
  [[ -z $NATIVE ]] || skip "it is about vswapd"
  local text
  says 64 'path' "$BIN/vswapctl" swapon
  says 64 'path' "$BIN/vswapctl" swapon --show /swap0
  says 64 'path' "$BIN/vswapctl" swapoff
  says 64 'path' "$BIN/vswapctl" swapoff --all /swap0
  for text in 12X -1 0 1M 2097151 1.5G 99999999999999999999; do
    says 64 'size' "$BIN/vswapctl" swapon "$CASE_DIR/swap0" --size "$text"
  done
  for text in x -1 32768 1.5; do says 64 'priority' "$BIN/vswapctl" swapon "$CASE_DIR/swap0" "--priority=$text"; done
  for text in '' swap0 swap0: :2M swap0:1M swap0:64X swap0:2M:x swap0:2M:-2 swap0:2M:32768 swap0:2M:; do
    says 125 '--swap.*path:size' "$BIN/vswapctl" run --embedded --swap "$text" -- true
    says 64 '--swap.*path:size' "$BIN/vswapd" serve --runtime-dir run --swap "$text"
  done
  [[ ! -e run && ! -e swap0 ]] || fail "refused options left something behind"
  echo '{"swap": [{"path": "swap0", "size": "2M"}]}' >bad.json
  says 1 'bad.json.*absolute path' "$BIN/vswapd" serve --config bad.json
  echo '{"swap": [{"path": "/swap0", "size": 2}]}' >bad.json
  says 1 'bad.json.*string' "$BIN/vswapd" serve --config bad.json
}

seconds_swap_errors_paths=60
case_swap_errors_paths() {
  swap_directory
  start_daemon
  AREAS_BEFORE=$(ctl swapon --show --json)
  local free file
  says 1 'does not exist.*size' ctl swapon "$AREAS/swap0"
  says 1 'no such file' ctl swapon "$AREAS/no/swap0" --size 2M
  says 1 'from 2.0 mib to 512.0 gib' ctl swapon "$AREAS/swap0" --size 513G
  free=$(($(stat -f -c '%a * %S' "$AREAS") / MIB))
  ((free > 500 * 1024)) || says 1 'not enough space.*free' ctl swapon "$AREAS/swap0" --size $((free + 64))M
  [[ -z $(ls "$AREAS") ]] || fail "left behind: $(ls "$AREAS")"

  mkdir "$AREAS/directory"
  mkfifo "$AREAS/pipe"
  ln -s nowhere "$AREAS/link"
  head -c 4194304 /dev/urandom >"$AREAS/foreign"
  head -c 4194304 /dev/zero >"$AREAS/zeros"
  : >"$AREAS/empty"
  head -c 4194304 /dev/zero >"$AREAS/kernel"
  chmod 600 "$AREAS/kernel"
  mkswap "$AREAS/kernel" >/dev/null 2>&1 || printf SWAPSPACE2 | dd of="$AREAS/kernel" bs=1 seek=4086 conv=notrunc status=none
  refused_untouched 'directory' "$AREAS/directory" --size 2M
  refused_untouched 'pipe' "$AREAS/pipe" --size 2M
  refused_untouched 'link' "$AREAS/link" --size 2M
  refused_untouched 'socket' "$RUNTIME/control.sock"
  refused_untouched 'character device' /dev/null --size 2M
  for file in foreign zeros empty; do
    refused_untouched 'no swap area of vswapd' "$AREAS/$file"
    refused_untouched 'no swap area of vswapd' "$AREAS/$file" --size 4M
  done
  refused_untouched 'swap of the kernel' "$AREAS/kernel"
  if [[ $(stat -f -c %T /dev/shm 2>/dev/null) == tmpfs ]]; then
    refused_untouched 'memory.*tmpfs' "/dev/shm/vswap-$$" --size 2M
    [[ ! -e /dev/shm/vswap-$$ ]] || fail "a file is left in /dev/shm"
  fi
  says 1 'no swap area' ctl swapoff "$AREAS/foreign"
  says 1 'no swap area' ctl swapoff "$AREAS/nothing"
  ctl swapoff --all || fail "swapoff --all without areas"
  [[ -z $(ctl swapon --show) ]] || fail "there are areas: $(ctl swapon --show)"
  stop_daemon
}

case_swap_errors_areas() {
  swap_directory
  start_daemon
  ctl swapon "$AREAS/swap0" --size 4M || fail "swapon"
  [[ $(stat -c '%a %s' "$AREAS/swap0") == '600 4194304' ]] || fail "the file is $(stat -c '%a %s' "$AREAS/swap0")"
  status_is "[(a['path'], a['type'], a['size_bytes'], a['used_bytes'], a['priority'], a['state']) for a in s['areas']]" \
    "[('$AREAS/swap0', 'file', 4194304, 0, -2, 'active')]" || fail "the areas are $(ctl swapon --show --json)"
  AREAS_BEFORE=$(ctl swapon --show --json)

  say "twice"
  ln -s swap0 "$AREAS/link"
  says 1 'already' ctl swapon "$AREAS/swap0"
  says 1 'already' ctl swapon "$AREAS/link" --size 4M
  says 125 'swapon' ctl run --swap "$AREAS/swap1:2M" -- true
  says 1 'another vswapd' "$BIN/vswapd" serve --runtime-dir other --swap "$AREAS/swap1:2M" --swap "$AREAS/swap0:4M"
  says 125 'another vswapd' "$BIN/vswapctl" run --embedded --swap "$AREAS/swap1:2M" --swap "$AREAS/swap0:4M" -- true
  [[ ! -e other && ! -e $AREAS/swap1 ]] || fail "a daemon that could not start left something behind"
  [[ $(ctl swapon --show --json) == "$AREAS_BEFORE" ]] || fail "the areas have changed"

  say "off"
  ctl swapoff "$AREAS/link" --dry-run || fail "dry run"
  [[ $(ctl swapon --show --json) == "$AREAS_BEFORE" ]] || fail "a dry run has changed the areas"
  [[ $(ctl swapoff --json "$AREAS/link" | query "s['state'], s['slots'], s['lost']") == "('off', 0, 0)" ]] || fail "swapoff"
  [[ ! -e $AREAS/swap0 ]] || fail "the file is still there"
  says 1 'no swap area' ctl swapoff "$AREAS/swap0"
  stop_daemon
  [[ $(ls "$AREAS") == link ]] || fail "left behind: $(ls "$AREAS")"

  say "what a killed daemon leaves can be used again"
  start_daemon --swap "$AREAS/swap0:4M:7"
  status_is "[a['priority'] for a in s['areas']]" "[7]" || fail "the areas are $(ctl swapon --show --json)"
  kill -KILL "$DAEMON"
  wait "$DAEMON" 2>/dev/null || true
  [[ -e $AREAS/swap0 ]] || fail "no file to test with"
  start_daemon
  says 1 'area of 4.0 mib' ctl swapon "$AREAS/swap0" --size 2M
  ctl swapon "$AREAS/swap0" --size 4M || fail "swapon of what was left"
  stop_daemon
  [[ ! -e $AREAS/swap0 ]] || fail "the file is still there after the daemon's end"

  say "embedded"
  "$BIN/vswapctl" run --embedded --swap "$AREAS/swap:0:2M" --swap "$AREAS/swap1:2M:3" -- test -e "$AREAS/swap:0" ||
    fail "run --swap"
  wait_until 5 test ! -e "$AREAS/swap:0" || fail "the embedded daemon's area is still there"
}

needs_swap_errors_devices="losetup mkfs.ext4 mkfs.ext2 mkswap"
case_swap_errors_devices() {
  swap_directory
  ((EUID == 0)) || skip "only root can make a loop device"
  head -c 16777216 /dev/zero >"$AREAS/disk"
  LOOPS=$(losetup --find --show "$AREAS/disk") || skip "there is no loop device to be had"
  start_daemon
  AREAS_BEFORE=$(ctl swapon --show --json)
  says 1 'only 16.0 mib' ctl swapon "$LOOPS" --size 32M

  mkfs.ext4 -q -F "$LOOPS"
  says 1 'did not write' ctl swapon "$LOOPS"
  mkdir "$AREAS/mounted"
  mount "$LOOPS" "$AREAS/mounted"
  says 1 'mounted or in use' ctl swapon "$LOOPS"
  umount "$LOOPS"
  mount "$LOOPS" "$AREAS/mounted" || fail "the file system is damaged"
  mount -o remount,ro "$LOOPS"
  says 1 'read-only' ctl swapon "$AREAS/mounted/swap0" --size 2M
  umount "$LOOPS"

  say "a file system that reserves no blocks by itself"
  mkfs.ext2 -q -F "$LOOPS"
  mount "$LOOPS" "$AREAS/mounted"
  ctl swapon "$AREAS/mounted/swap0" --size 4M || fail "swapon on ext2"
  (($(stat -c '%b * %B' "$AREAS/mounted/swap0") >= 4194304)) || fail "the file has not all of its blocks"
  says 1 'not enough space' ctl swapon "$AREAS/mounted/swap1" --size 16M
  ctl swapoff "$AREAS/mounted/swap0" || fail "swapoff on ext2"
  umount "$LOOPS"

  mkswap "$LOOPS" >/dev/null 2>&1
  says 1 'swap of the kernel' ctl swapon "$LOOPS"
  if swapon "$LOOPS" 2>/dev/null; then
    says 1 'in use|kernel' ctl swapon "$LOOPS"
    swapoff "$LOOPS"
  fi
  [[ $(ctl swapon --show --json) == "$AREAS_BEFORE" ]] || fail "the areas have changed"

  dd if=/dev/zero of="$LOOPS" bs=1M count=16 status=none
  ctl swapon "$LOOPS" || fail "swapon of a blank device"
  status_is "[(a['type'], a['size_bytes']) for a in s['areas']]" "[('device', 16777216)]" || fail "no area on the device"
  says 1 'already' ctl swapon "$LOOPS"
  ctl swapoff --all || fail "swapoff"
  [[ -b $LOOPS ]] || fail "the device has been removed"
  cmp -n 1048576 "$LOOPS" /dev/zero || fail "the signature is still on the device"
  stop_daemon
}
