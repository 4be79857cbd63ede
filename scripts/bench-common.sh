# shellcheck shell=bash
# What the benchmarks share. They set `directory`, for what is measured and for sockets, and `runtime` in it.
# shellcheck disable=SC2034,SC2154  # variables for, and of, whoever sources this

bin=$PWD/.build/release programs=$PWD/.build/programs

die() {
  echo "bench: $*" >&2
  exit 1
}

# require_build EXECUTABLE TEST-PROGRAM
require_build() {
  [[ -x $bin/$1 && -x $programs/$2 ]] || die "there is no build; run scripts/build first"
}

ctl() { "$bin/vswapctl" --socket "$runtime/control.sock" "$@"; }
# figure EXPRESSION <JSON: a Python expression over `s`, the document.
figure() { python3 -c "import json,sys; s=json.load(sys.stdin); print($1)"; }
wait_for() {
  local i
  for ((i = 0; i < 600; i++)); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.05
  done
  die "no answer from: $*"
}

# note NAME VALUE: one more measurement; median NAME: the middle one, with the least and the most.
note() { echo "$2" >>"$directory/$1"; }
median() {
  sort -g "$directory/$1" | awk '{ v[NR] = $1 } END { printf "%s (%s ... %s)", v[int((NR + 1) / 2)], v[1], v[NR] }'
}

machine() { echo "$(uname -sr), $(nproc) x $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"; }
