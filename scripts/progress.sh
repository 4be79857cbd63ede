# shellcheck shell=bash
# One line per step of what takes long: what runs, for how long, and how far it is.

# The line that shows a step which runs, rewritten every second on a terminal. Elsewhere a new line
# every 20 s, so that a log shows that something goes on. Ends with the shell that started it.
show_step() {
  local text=$1 log=$2 from=$3 far='' next=20 parent=$$
  # Reading from this is sleeping without a process that would outlive this one.
  exec {never}<> <(:)
  trap '' INT
  while kill -0 "$parent" 2>/dev/null; do
    # What `swift build` says of itself: [done/all].
    far=$(tail -c 4096 "$log" 2>/dev/null | tr '\r' '\n' | sed -n 's/^\(\[[0-9]*\/[0-9]*\]\).*/ \1/p' | tail -n 1)
    if [[ -t 1 ]]; then
      printf '\r\033[K%s ... %d s%s' "$text" $((SECONDS - from)) "$far"
    elif ((SECONDS - from >= next)); then
      printf '%s: %d s%s\n' "$text" $((SECONDS - from)) "$far"
      next=$((next + 20))
    fi
    read -r -t 1 -u "$never" || true
  done
}

# step TEXT LOG COMMAND...: runs the command, with its output in the file LOG, and says TEXT and how
# long it took. Returns the command's status; whoever calls shows the log where that is not 0.
step() {
  local text=$1 log=$2 from=$SECONDS shower status=0
  shift 2
  : >"$log"
  [[ -t 1 ]] || printf '%s\n' "$text"
  show_step "$text" "$log" "$from" &
  shower=$!
  "$@" >>"$log" 2>&1 </dev/null || status=$?
  kill "$shower" 2>/dev/null || true
  wait "$shower" 2>/dev/null || true
  if [[ -t 1 ]]; then printf '\r\033[K'; fi
  if ((status)); then
    printf '%s: failed after %d s\n' "$text" $((SECONDS - from))
  elif [[ -t 1 ]] || ((SECONDS - from >= 20)); then
    printf '%s: done, %d s\n' "$text" $((SECONDS - from))
  fi
  return $status
}

# step_or_exit TEXT COMMAND...: the same for what cannot fail; what it said is shown where it does.
step_or_exit() {
  local log status=0 text=$1
  shift
  log=$(mktemp "${TMPDIR:-/tmp}/vswap-step.XXXXXX")
  step "$text" "$log" "$@" || status=$?
  if ((status)); then cat "$log" >&2; fi
  rm -f "$log"
  ((status == 0)) || exit "$status"
}
