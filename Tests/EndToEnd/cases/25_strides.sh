# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # settings for Tests/EndToEnd/run; SEED is from the library
# Walks through memory in steps of several pages (Tests/Programs/faultlat.c), while what they leave behind is evicted again: what is brought in ahead
# of them is verified at each touch.

# walk OPTION...: with every step, upwards and downwards, reading and writing.
walk() {
  local step write
  for step in 2 4 7 -7 16 64 -64 -300 512; do
    for write in '' --write; do
      limited 16M "$PROGRAMS/faultlat" --no-wait --size 48 --cycles 2 --order stride:$step --seed "$SEED" ${write:+"$write"} "$@" ||
        fail "step $step $write $*: status $?"
    done
  done
  require_swapping
}

seconds_strides=200
case_strides() { walk; }

seconds_strides_threads=200
case_strides_threads() { walk --threads 3; }

# Whether a control group of this process, or one above it, limits its CPU time.
has_cpu_quota() {
  local controllers path place
  while IFS=: read -r _ controllers path; do
    if [[ ,$controllers, == *,cpu,* ]]; then place=/sys/fs/cgroup/cpu; elif [[ -z $controllers ]]; then place=/sys/fs/cgroup; else continue; fi
    while :; do
      grep -qs '^[0-9]' "$place$path/cpu.max" "$place$path/cpu.cfs_quota_us" && return 0
      [[ $path == */* ]] || break
      path=${path%/*}
    done
  done </proc/self/cgroup
  return 1
}

# While a program faults much the kernel polls where it would halt a CPU. Not before, not for longer, and not when the daemon is killed meanwhile.
case_idle_cpus_poll() {
  [[ -z $NATIVE ]] || skip "it needs vswapd"
  local cpus
  cpus=$(getconf _NPROCESSORS_ONLN)
  if ! grep -q '^flags.* hypervisor' /proc/cpuinfo || ((cpus < 2 || cpus > 4)); then skip "it is for virtual machines of two to four CPUs"; fi
  grep -qsx POLL /sys/devices/system/cpu/cpu0/cpuidle/state0/name || skip "this machine's idle driver cannot poll"
  ! has_cpu_quota || skip "a control group limits the CPU time"
  [[ -w /dev/cpu_dma_latency ]] || skip "it takes the right to write to /dev/cpu_dma_latency"
  latency() { od -An -td4 -N4 /dev/cpu_dma_latency | tr -d ' '; }
  # shellcheck disable=SC2317  # wait_until calls them
  polls() { (($(latency) == 0)); }
  # shellcheck disable=SC2317
  halts() { (($(latency) > 0)); }
  halts || skip "somebody else has CPUs poll"
  start_daemon
  start_program 32M "$PROGRAMS/churn" --size 96 --threads 2 --seed "$SEED"
  wait_until 20 polls || fail "CPUs halt: $(status "s['groups'][0]['totals']")"
  ask_right stop
  end_program
  wait_until 20 halts || fail "CPUs poll though nothing happens"
  start_program 32M "$PROGRAMS/churn" --size 96 --threads 2 --seed "$SEED"
  wait_until 20 polls || fail "CPUs halt the second time: $(status "s['groups'][0]['totals']")"
  kill -KILL "$DAEMON"
  wait "$DAEMON" 2>/dev/null || true
  DAEMON=
  wait_until 20 halts || fail "CPUs poll though the daemon has gone"
  end_input
  wait "$RUNNER" 2>/dev/null || true
}
