# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # settings for Tests/EndToEnd/run; SEED is from the library
# stress-ng's own checks, with more memory than the limit.

stress() {
  local limit=$1
  shift
  limited "$limit" stress-ng --temp-path "$CASE_DIR" --seed "$SEED" --verify --metrics-brief --timeout 10s "$@" ||
    fail "stress-ng ended with status $?"
  require_swapping
}

needs_stress_vm="stress-ng"
case_stress_vm() { stress 48M --vm 2 --vm-bytes 192M --vm-method all; }

needs_stress_mremap="stress-ng"
case_stress_mremap() { stress 16M --mremap 2 --mremap-bytes 64M; }

needs_stress_mmap="stress-ng"
case_stress_mmap() { stress 32M --mmap 2 --mmap-bytes 64M; }

needs_stress_malloc="stress-ng"
case_stress_malloc() { stress 48M --malloc 2 --malloc-bytes 192M --malloc-touch; }

needs_stress_fork="stress-ng"
case_stress_fork() { stress 24M --fork 2 --vm 1 --vm-bytes 64M; }
