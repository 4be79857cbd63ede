# shellcheck shell=bash
# What the benchmarks share. They set `directory`, for what is measured and for sockets, and `runtime` in it.
# Environment: VSWAP_BIN (where vswapd, vswapctl and libvswap.so are), VSWAP_PROGRAMS (the test programs), VSWAP_BENCH_DIR (where swap
# files are made, default /var/tmp).
# shellcheck disable=SC2034,SC2154  # variables for, and of, whoever sources this

# Numbers are written and read with points.
export LC_ALL=C.UTF-8

bin=${VSWAP_BIN:-$PWD/.build/release} programs=${VSWAP_PROGRAMS:-$PWD/.build/programs}
place=${VSWAP_BENCH_DIR:-/var/tmp}
daemon='' runner=''

die() {
  echo "bench: $*" >&2
  exit 1
}

# require_build EXECUTABLE TEST-PROGRAM
require_build() {
  [[ -x $bin/$1 && -x $programs/$2 ]] || die "there is no $1 or no $2; run scripts/build first"
}
# require_disk MIB: of `place`.
require_disk() {
  local free
  [[ -d $place ]] || die "$place is no directory; set VSWAP_BENCH_DIR"
  [[ $(stat -f -c %T "$place") != tmpfs ]] || die "$place is on tmpfs: set VSWAP_BENCH_DIR to a directory on a disk"
  free=$(df --output=avail -B1M "$place" | tail -n 1)
  ((free >= $1)) || die "$place has $((free)) MiB free instead of $1; set VSWAP_BENCH_DIR"
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

machine() { echo "$(uname -sr), $(nproc) x $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"; }

# --- measurements

# record MEASURED MEMBERS...: one measurement, as members of a JSON object, in a line of $VSWAP_BENCH_RESULTS, if that is set.
record() {
  local measured=$1
  shift
  [[ -z ${VSWAP_BENCH_RESULTS-} ]] || echo "{\"measured\": \"$measured\", \"run\": ${VSWAP_BENCH_RUN:-1}, $*}" >>"$VSWAP_BENCH_RESULTS"
}
# skip REASON: what cannot be measured here, which is no failure. The status tells scripts/bench.
skip() {
  echo "skipped: $*" >&2
  exit 77
}

# timed CMD...: prints the seconds it took: wall, user, system.
timed() {
  python3 -c '
import resource, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_DFL)
start = time.monotonic()
status = subprocess.run(sys.argv[1:]).returncode
wall, usage = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
print(f"{wall:.4f} {usage.ru_utime:.4f} {usage.ru_stime:.4f}")
sys.exit(status)' "$@"
}

# --- the daemon

# start_daemon OPTION...
# shellcheck disable=SC2120  # there may be none
start_daemon() {
  "$bin/vswapd" serve --runtime-dir "$runtime" "$@" &
  daemon=$!
  wait_for ctl status
}
stop_daemon() {
  kill -TERM "$daemon"
  wait "$daemon" || die "the daemon ended with status $?"
  daemon=
}
only_group() { ctl status --json | figure 's["groups"][0]["id"]'; }

# Most MiB of the daemon's pool, at run time.
limit_pool() {
  local reply
  reply=$(curl -sS --fail-with-body --unix-socket "$runtime/control.sock" -X POST -H 'Content-Type: application/json' \
    -d "{\"limit_bytes\": $(($1 << 20))}" http://localhost/v1/pool) || die "the pool's limit cannot be changed: $reply"
}

# settle FIGURE LEAST: until a figure of the status has been the same for a second; it has to be LEAST then.
settle() {
  local i before=-1 same=0 now=0
  for ((i = 0; i < 600 && same < 5; i++)); do
    sleep 0.2
    now=$(ctl status --json | figure "$1")
    if ((now == before)); then same=$((same + 1)); else same=0; fi
    before=$now
  done
  ((now >= $2)) || die "$1 is $now instead of $2: $(ctl status --json)"
}

# --- a program that says "ready PID" and then does what it is told on its standard input

# start CMD...: leaves its process in `pid`.
start() {
  rm -f "$directory/to" "$directory/from"
  mkfifo "$directory/to" "$directory/from"
  "$@" <"$directory/to" >"$directory/from" &
  runner=$!
  exec {to}>"$directory/to" {from}<"$directory/from"
  hear
  [[ $answer =~ ^ready\ ([0-9]+)$ ]] || die "the program said '$answer'"
  pid=${BASH_REMATCH[1]}
}
tell() {
  kill -0 "$runner" 2>/dev/null || die "the program has ended"
  echo "$1" >&"$to"
}
hear() { IFS= read -r -t 600 answer <&"$from" || die "the program does not answer"; }
finish() {
  exec {to}>&- {from}<&-
  wait "$runner" || die "the program ended with status $?"
  runner=
}

# Ends what was started. A program that waits for a page ends when the daemon does.
end_processes() {
  [[ -z $runner ]] || kill "$runner" 2>/dev/null || true
  [[ -z $daemon ]] || kill "$daemon" 2>/dev/null || true
  wait 2>/dev/null || true
}
