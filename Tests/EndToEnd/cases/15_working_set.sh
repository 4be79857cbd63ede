# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # settings for Tests/EndToEnd/run; SEED is from the library
# The working set stays resident: hits are within five points of what LRU reaches with all of the limit on the same accesses.

# keeps ZIPF-OPTION...: 128 MiB under a limit of 32 MiB.
keeps() {
  limited 32M "$PROGRAMS/zipf" --size 128 --limit 32 --warm-up 150000 --accesses 300000 --seed "$SEED" "$@" >zipf.json ||
    fail "zipf ended with status $?"
  cat zipf.json
  remark "$(query '"hits=%.1f%%/lru=%.1f%%" % (100 * s["hit_rate"], 100 * s["lru_hit_rate"])' <zipf.json)"
  [[ $(query 's["hit_rate"] >= s["lru_hit_rate"] - 0.05' <zipf.json) == True ]] || fail "too few hits: $(<zipf.json)"
}

case_working_set_skewed() {
  keeps
  require_swapping
}

# Each fourth access goes through all of memory in order: it must not push the working set out.
case_working_set_scan() {
  keeps --scan 4
  require_swapping
}
