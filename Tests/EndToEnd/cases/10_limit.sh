# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # settings for Tests/EndToEnd/run; SEED is from the library
# The limit holds against programs that fill memory as fast as they can: limit + max(5 %, 16 MiB), sampled every 2 ms.

# holds LIMIT CMD...
holds() {
  local limit=$1 err=$CASE_DIR/holds.err status=0 over
  shift
  if [[ -n $NATIVE ]]; then
    "$PROGRAMS/sampler" --limit "$limit" --output holds.json -- sh -c '"$@"; exit $?' sh "$@"
    return
  fi
  "$PROGRAMS/sampler" --limit "$limit" --output holds.json -- \
    "$BIN/vswapctl" run --embedded --limit "$limit" --stats -- "$@" 2>"$err" || status=$?
  cat "$err" holds.json
  ((status == 0)) || fail "$1 ended with status $status"
  count_stats "$err"
  (($(query 's["samples"]' <holds.json) >= 20)) || fail "hardly sampled"
  remark "most=$(query '"%.1fM" % (s["max_bytes"] / 2**20)' <holds.json)/$((limit / MIB))M"
  over=$(query 's["over_allowed_samples"]' <holds.json)
  ((over == 0)) || fail "$over of $(query 's["samples"]' <holds.json) samples are over the allowance"
}

case_limit_mapping() {
  holds $((64 * MIB)) "$PROGRAMS/fill" --size 512 --verify --seed "$SEED"
  require_swapping
}

case_limit_touch() {
  holds $((64 * MIB)) "$PROGRAMS/fill" --size 768 --touch --verify --seed "$SEED"
  require_swapping
}

case_limit_threads() {
  holds $((64 * MIB)) "$PROGRAMS/fill" --size 512 --threads 4 --verify --seed "$SEED"
  holds $((64 * MIB)) "$PROGRAMS/fill" --size 512 --threads 4 --touch --chunk $((256 << 10)) --verify --seed "$SEED"
  require_swapping
}

case_limit_malloc() {
  holds $((64 * MIB)) "$PROGRAMS/fill" --size 384 --malloc --chunk 65536 --verify --seed "$SEED"
  holds $((64 * MIB)) "$PROGRAMS/fill" --size 384 --malloc --chunk 1048576 --verify --threads 2 --seed "$SEED"
  require_swapping
}

# One limit for all processes of the group.
case_limit_processes() {
  # shellcheck disable=SC2016
  holds $((64 * MIB)) sh -c 'for i in 1 2 3; do "$1" --size 96 --verify --seed "$2$i" & pids="$pids $!"; done
    for pid in $pids; do wait "$pid" || exit 1; done' sh "$PROGRAMS/fill" "$SEED"
  require_swapping
}

# Nearly all of a large limit is resident: the allowance is 5 % here.
seconds_limit_large=240
case_limit_large() {
  holds $((512 * MIB)) "$PROGRAMS/fill" --size 1280 --threads 2 --touch --verify --seed "$SEED"
  require_swapping
}
