# shellcheck shell=bash
# The kernel's side of the benchmarks: a memory cgroup, and swap in a file, in zswap before that file, or in zram. `restore_kernel`
# leaves the machine as it was. After bench-common.sh; whoever sources this sets `directory`, on a disk.
# What cannot be had leaves its reason in `missing`, and status 1.
# shellcheck disable=SC2034,SC2154  # variables for, and of, whoever sources this

missing='' group='' version='' swapped_on='' zram='' zram_loaded=''
swap_file=$directory/kernel
zswap=/sys/module/zswap/parameters
page_cluster=/proc/sys/vm/page-cluster
# Settings as they were, in the order in which they were changed.
changed=()
declare -A kept=()

# Nobody else is to change them meanwhile.
lock_kernel() {
  local lock
  exec {lock}>/run/lock/vswap-bench || die "/run/lock/vswap-bench cannot be opened"
  flock --nonblock "$lock" || {
    echo "waiting for another benchmark of the kernel's swap to end" >&2
    flock "$lock"
  }
}
set_kernel() {
  if [[ -z ${kept[$1]+yes} ]]; then
    kept[$1]=$(<"$1")
    changed+=("$1")
  fi
  echo "$2" >"$1"
}

# --- cgroup

# Leaves the directory in which groups are made in `groups`, and "v1" or "v2" in `version`.
find_groups() {
  groups=$(awk '$3 == "cgroup" && $4 ~ /(^|,)memory(,|$)/ { print $2; exit }' /proc/mounts) version=v1
  [[ -z $groups ]] || return 0
  groups=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts) version=v2
  grep -qw memory "$groups/cgroup.subtree_control" 2>/dev/null
}
make_group() {
  missing="there is no memory cgroup"
  find_groups || return 1
  group=$groups/vswap-bench.$$
  missing="$groups cannot be written to"
  mkdir "$group" 2>/dev/null || return 1
  missing="$group/memory.reclaim does not exist"
  [[ -e $group/memory.force_empty || -e $group/memory.reclaim ]] || return 1
  missing=
}
# start in_group CMD...
in_group() {
  echo $BASHPID >"$group/cgroup.procs"
  exec "$@"
}
# limit_group MIB
limit_group() {
  local i file=$group/memory.max
  [[ $version == v2 ]] || file=$group/memory.limit_in_bytes
  for ((i = 0; i < 50; i++)); do
    # It is refused until as much has been reclaimed.
    ! echo "$1M" 2>/dev/null >"$file" || return 0
    sleep 0.2
  done
  die "the group cannot be limited to $1 MiB"
}

swapped_kib() { sed -n 's/^VmSwap:[[:space:]]*\([0-9]*\).*/\1/p' "/proc/$pid/status" 2>/dev/null; }
# Pages in the swap cache need no reading.
cached_kib() { awk '$1 == "swapcached" { print int($2 / 1024); exit }' "$group/memory.stat"; }
# Reclaims all that it can; it fails when something is left.
reclaim() {
  if [[ $version == v1 ]]; then echo 0 >"$group/memory.force_empty"; else echo "$((size * 2))M" >"$group/memory.reclaim"; fi 2>/dev/null
}
# Takes the memory of `pid`, `size` MiB, away from it. Leaves in `squeezing_us` how long the kernel was at it.
squeeze_out() {
  local i before swapped
  squeezing_us=0
  for ((i = 0; i < 50; i++)); do
    before=${EPOCHREALTIME/[.,]/}
    reclaim || true
    squeezing_us=$((squeezing_us + ${EPOCHREALTIME/[.,]/} - before))
    swapped=$(swapped_kib) || true
    [[ -n $swapped ]] || die "the program has ended"
    ((swapped < size * 1024 * 97 / 100 || $(cached_kib) > size * 10)) || return 0
    sleep 0.2
  done
  die "only $swapped KiB of $size MiB could be squeezed out, $(cached_kib) KiB are in the swap cache"
}

# --- swap

# Before all other swap that there may be.
swap_on() {
  missing=$(swapon --priority 32767 "$1" 2>&1) || {
    missing=${missing:-"swapon fails"}
    return 1
  }
  swapped_on=$1 missing=
}
swap_off() {
  [[ -z $swapped_on ]] || swapoff "$swapped_on" || return 1
  swapped_on=
}
# make_swap_file MIB
make_swap_file() {
  missing="swapon, mkswap or fallocate is not installed"
  command -v swapon mkswap fallocate >/dev/null || return 1
  missing="a swap file of $1 MiB cannot be made in $directory"
  fallocate -l "$1M" "$swap_file" && chmod 600 "$swap_file" && mkswap "$swap_file" >/dev/null || return 1
  missing=
}
disable_zswap() { [[ ! -w $zswap/enabled ]] || set_kernel $zswap/enabled N; }

# use_swapfile MIB, use_zswap MIB, use_zram MIB: swap of that size, ready.
use_swapfile() {
  make_swap_file "$1" && disable_zswap && swap_on "$swap_file"
}
# zswap with lzo, in as much memory as it needs, and nothing written to the file behind it.
use_zswap() {
  missing="this kernel has no zswap"
  [[ -w $zswap/enabled ]] || return 1
  missing="this kernel has no lzo for zswap"
  set_kernel $zswap/compressor lzo 2>/dev/null || return 1
  set_kernel $zswap/max_pool_percent 80
  [[ ! -w $zswap/shrinker_enabled ]] || set_kernel $zswap/shrinker_enabled N
  set_kernel $zswap/enabled Y
  zswap_before=$(zswap_kib)
  make_swap_file "$1" && swap_on "$swap_file"
}
# Memory that zswap takes, and what is in it.
zswap_kib() { sed -n 's/^Zswap:[[:space:]]*\([0-9]*\).*/\1/p' /proc/meminfo; }
zswapped_kib() { sed -n 's/^Zswapped:[[:space:]]*\([0-9]*\).*/\1/p' /proc/meminfo; }
# zram with lz4, in a device of its own.
use_zram() {
  local i number
  if [[ ! -d /sys/class/zram-control ]]; then
    missing="this kernel has no zram"
    modprobe zram 2>/dev/null || return 1
    zram_loaded=yes
  fi
  missing="no zram device can be added"
  number=$(cat /sys/class/zram-control/hot_add) || return 1
  zram=/sys/block/zram$number
  for ((i = 0; i < 40; i++)); do [[ -b /dev/zram$number ]] || sleep 0.05; done
  missing="zram of this kernel has no lz4"
  echo lz4 2>/dev/null >"$zram/comp_algorithm" || return 1
  missing="$zram does not take a size of $1 MiB"
  echo "$1M" >"$zram/disksize" && mkswap "/dev/zram$number" >/dev/null || return 1
  disable_zswap && swap_on "/dev/zram$number"
}
remove_zram() {
  local i
  for ((i = 0; i < 40; i++)); do
    [[ -d $zram ]] || break
    # Refused while something still looks at the device.
    if ! { echo 1 >"$zram/reset" && echo "${zram#/sys/block/zram}" >/sys/class/zram-control/hot_remove; } 2>/dev/null; then sleep 0.05; fi
  done
  [[ ! -d $zram ]] || echo "bench: $zram cannot be removed" >&2
  [[ -z $zram_loaded ]] || modprobe -r zram || echo "bench: the module zram cannot be removed" >&2
}

# Everything as it was. The processes have ended before.
restore_kernel() {
  local i file
  swap_off || echo "bench: $swapped_on is still in use: swapoff it and remove it" >&2
  [[ -z $zram ]] || remove_zram
  for ((i = ${#changed[@]} - 1; i >= 0; i--)); do
    file=${changed[i]}
    echo "${kept[$file]}" >"$file" || echo "bench: $file was ${kept[$file]}, and cannot be set again" >&2
  done
  changed=() kept=()
  # The last process leaves its group a moment after it has ended.
  for ((i = 0; i < 40; i++)); do
    [[ -n $group && -d $group ]] || return 0
    rmdir "$group" 2>/dev/null || sleep 0.05
  done
  echo "bench: $group cannot be removed" >&2
}
# For the trap at the end: also whatever was measured.
clean_up() {
  trap '' INT TERM HUP
  end_processes
  restore_kernel
  [[ -n $swapped_on ]] || rm -rf "$directory"
}
