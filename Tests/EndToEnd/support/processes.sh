# shellcheck shell=bash
# The processes of a case.

# Processes that a case started, whatever became of their parents: they carry its mark.
processes_marked() {
  local environment
  for environment in /proc/[0-9]*/environ; do
    if { tr '\0' '\n' <"$environment"; } 2>/dev/null | grep -qx "VSWAP_E2E_CASE=$1"; then
      environment=${environment%/environ}
      echo "${environment#/proc/}"
    fi
  done
}

# What the threads of a case that does not end are waiting for.
describe_hang() {
  local pid task
  for pid in $(processes_marked "$1"); do
    echo "process $pid: $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null || true)"
    for task in "/proc/$pid/task"/*; do
      echo "  thread ${task##*/} $(cat "$task/comm" 2>/dev/null || true) $(sed -n 's/^State:[[:space:]]*//p' "$task/status" 2>/dev/null || true)" \
        "in $(head -n 6 "$task/stack" 2>/dev/null | sed 's/^\[[^]]*\] //; s/+.*//' | paste -sd '<' || true)" \
        "system call $(cat "$task/syscall" 2>/dev/null || true)"
    done
  done
}
