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
