# shellcheck shell=bash
# What cases use. In a case: $CASE_DIR is its own directory and the current one, $VSWAP_SEED its seed.
# shellcheck disable=SC2034  # variables for the cases

# shellcheck source=SCRIPTDIR/processes.sh
source "$(dirname "${BASH_SOURCE[0]}")/processes.sh"

# A path as LD_PRELOAD can name it, and as words of a command line.
plain_path() {
  if [[ $2 =~ ^[A-Za-z0-9/._+-]*$ ]]; then
    echo "$2"
  else
    ln -sfn "$2" "$CASE_DIR/.$1"
    echo "$CASE_DIR/.$1"
  fi
}
BIN=$(plain_path bin "$VSWAP_BIN")
PROGRAMS=$(plain_path programs "$VSWAP_PROGRAMS")
VSWAP_BIN=$BIN VSWAP_PROGRAMS=$PROGRAMS
SUPPORT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SEED=$VSWAP_SEED
NATIVE=$VSWAP_NATIVE
PYTHON=$VSWAP_PYTHON
MIB=1048576

fail() {
  printf 'FAIL: %s\n' "$*" >&2
  exit 1
}

skip() {
  printf '%s\n' "$*" >"$CASE_DIR/skip"
  exit 77
}

# A figure for the result line.
remark() { printf '%s\n' "$*" >>"$CASE_DIR/remarks"; }

say() { printf '# %s\n' "$*" >&2; }

# Adds the figures that `vswapctl run --stats` left in a file to those of the case.
count_stats() {
  local line evictions=0 faults=0
  line=$(grep -a '^vswap: ' "$1" | tail -n 1) || fail "no summary by --stats"
  [[ $line =~ \ ([0-9]+)\ pages?\ evicted ]] && evictions=${BASH_REMATCH[1]}
  [[ $line =~ \ ([0-9]+)\ faulted\ in ]] && faults=${BASH_REMATCH[1]}
  printf '%s %s\n' "$evictions" "$faults" >>"$CASE_DIR/counts"
}

# More options of `vswapctl run` for what is limited.
LIMITED_OPTIONS=()

# limited LIMIT CMD...: runs a program under a limit, with the case's daemon if it has started one, else with one of its own.
limited() {
  local limit=$1 err status=0 by=("$BIN/vswapctl" run --embedded)
  shift
  if [[ -n $NATIVE ]]; then
    "$@"
    return
  fi
  err=$(mktemp "$CASE_DIR/limited.XXXXXX")
  [[ -z $DAEMON ]] || by=(ctl run)
  "${by[@]}" --limit "$limit" "${LIMITED_OPTIONS[@]}" --stats -- "$@" 2>"$err" || status=$?
  cat "$err" >&2
  ((status != 125)) || fail "vswapctl could not run $1"
  count_stats "$err"
  return "$status"
}

# What was limited so far did swap.
require_swapping() {
  [[ -z $NATIVE ]] || return 0
  local evictions faults
  read -r evictions faults < <(awk '{ e += $1; f += $2 } END { print e + 0, f + 0 }' "$CASE_DIR/counts" /dev/null)
  say "evictions $evictions, faults $faults"
  ((evictions > 0)) || fail "nothing was evicted: the limit was not tested"
  ((faults > 0)) || fail "nothing was faulted in: eviction was not tested"
}

# native NAME CMD...: runs a program without a limit and remembers its most memory under that name.
native() {
  local name=$1
  shift
  "$PROGRAMS/sampler" --self --output "$CASE_DIR/$name.memory" -- "$@"
  say "$name without a limit: $(sed 's/.*"max_bytes": \([0-9]*\).*/\1/' "$CASE_DIR/$name.memory") bytes at most"
}

# A quarter of that, at least 8 MiB.
quarter() {
  local most
  most=$(sed 's/.*"max_bytes": \([0-9]*\).*/\1/' "$CASE_DIR/$1.memory")
  ((most >= 32 * MIB)) || most=$((32 * MIB))
  echo $((most / 4))
}

# compare NAME CMD...: the program's output is the same without and with a limit of a quarter of its memory.
compare() {
  local name=$1
  shift
  native "$name" "$@" >"$CASE_DIR/$name.native" || fail "$1 fails even without a limit"
  [[ -s $CASE_DIR/$name.native ]] || fail "$1 prints nothing"
  local limit
  limit=$(quarter "$name")
  say "limit $limit"
  limited "$limit" "$@" >"$CASE_DIR/$name.limited" || fail "$1 ended with status $? under a limit of $limit"
  cmp "$CASE_DIR/$name.native" "$CASE_DIR/$name.limited" || fail "$1 prints something else under a limit"
}

# wait_until SECONDS CMD...: until the command succeeds.
wait_until() {
  local end=$((SECONDS + $1 * VSWAP_SLOWNESS))
  shift
  until "$@"; do
    ((SECONDS < end)) || return 1
    sleep 0.05
  done
}

# query EXPRESSION <JSON: a Python expression over `s`, the document.
query() {
  "$PYTHON" -c '
import json, sys
s = json.load(sys.stdin)
print(eval(sys.argv[1]))' "$1"
}

# --- a daemon that runs for the whole case ---

RUNTIME=$CASE_DIR/run
DAEMON=

# A case that fails ends its daemon, so that what it leaves behind is not reported as well.
end_daemon() {
  if [[ -n $DAEMON ]] && kill -TERM "$DAEMON" 2>/dev/null; then
    say "ending the daemon"
    for _ in 1 2 3 4 5 6 7 8 9 10; do
      kill -0 "$DAEMON" 2>/dev/null || return 0
      sleep 0.2
    done
    kill -KILL "$DAEMON" 2>/dev/null || true
  fi
}

# What else has to be undone, however the case ends: a command, run once the daemon has gone.
AT_END=()

end_of_case() {
  end_daemon
  if ((${#AT_END[@]})); then "${AT_END[@]}" || true; fi
}
trap end_of_case EXIT

daemon_answers() { "$BIN/vswapctl" --socket "$RUNTIME/control.sock" status --json >/dev/null 2>&1; }

start_daemon() {
  "$BIN/vswapd" serve --runtime-dir "$RUNTIME" "$@" &
  DAEMON=$!
  wait_until 20 daemon_answers || fail "the daemon does not answer"
}

stop_daemon() {
  local status=0
  kill -TERM "$DAEMON"
  wait "$DAEMON" || status=$?
  DAEMON=
  ((status == 0)) || fail "the daemon ended with status $status after SIGTERM"
  [[ ! -e $RUNTIME/control.sock && ! -e $RUNTIME/attach.sock ]] || fail "the daemon left its sockets behind"
}

ctl() { "$BIN/vswapctl" --socket "$RUNTIME/control.sock" "$@"; }

# status EXPRESSION
status() { ctl status --json | query "$1"; }

# status_is EXPRESSION VALUE
status_is() { [[ $(status "$1") == "$2" ]]; }

# --- a program that does what it is told, line by line (swapfill, churn) ---

# start_program LIMIT CMD...: leaves its process in PID, its group in GROUP.
start_program() {
  local limit=$1
  shift
  rm -f to from
  mkfifo to from
  "$BIN/vswapctl" --socket "$RUNTIME/control.sock" run --limit "$limit" -- "$@" <to >from &
  RUNNER=$!
  exec {TO}>to {FROM}<from
  read_answer
  [[ $ANSWER =~ ^ready\ ([0-9]+)$ ]] || fail "$1 said '$ANSWER'"
  PID=${BASH_REMATCH[1]}
  GROUP=$(status "next((g['id'] for g in s['groups'] for t in g['targets'] if t['pid'] == $PID), '')")
  [[ -n $GROUP ]] || fail "$1 is not among the targets: $(status "s['groups']")"
}

read_answer() {
  IFS= read -r -t $((200 * VSWAP_SLOWNESS)) ANSWER <&"$FROM" || {
    describe_hang "$VSWAP_E2E_CASE" >&2
    fail "the program does not answer"
  }
}

# ask COMMAND: leaves the program's answer in ANSWER.
ask() {
  (trap '' PIPE && printf '%s\n' "$1" >&"$TO") 2>/dev/null || fail "the program has gone before '$1'"
  read_answer
  say "$1: $ANSWER"
}

# The end of its input ends a program.
end_input() { exec {TO}>&- {FROM}<&-; }

end_program() {
  end_input
  wait "$RUNNER" || fail "the program ended with status $?"
}

# ask_right COMMAND: everything the program looked at was right.
ask_right() {
  ask "$1"
  [[ $ANSWER == right* ]] || fail "after $1: $ANSWER"
}

# --- what commands say ---

# says STATUS PATTERN CMD...: ends with that status, prints one line on stderr that matches, and nothing on stdout.
says() {
  local expected=$1 pattern=$2 status=0
  shift 2
  "$@" >"$CASE_DIR/says.out" 2>"$CASE_DIR/says.err" </dev/null || status=$?
  local text
  text=$(<"$CASE_DIR/says.err")
  say "$* -> $status: $text"
  ((status == expected)) || fail "$*: status $status instead of $expected: $text"
  [[ $(wc -l <"$CASE_DIR/says.err") == 1 ]] || fail "$*: not one line but: $text"
  [[ ${text,,} =~ $pattern ]] || fail "$*: '$text' does not match '$pattern'"
  [[ ! -s $CASE_DIR/says.out ]] || fail "$*: prints on standard output: $(<"$CASE_DIR/says.out")"
}
