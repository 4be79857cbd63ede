# shellcheck shell=bash
# shellcheck disable=SC2034  # settings for Tests/EndToEnd/run
# Habits of real programs, one small program each (habit_*.c): they print and end as without vswapd, while all that they have is evicted all the time.

# What differs from a run without vswapd.
declare -A differs=(
  [waits]='subreaper first_of_a_namespace'
  [filters]='no_calls_of_others'
  [tools]='valgrind'
)

compare_habits() { "$PYTHON" "$SUPPORT/habits.py" "$RUNTIME" "$@" >>compared || true; }

# What was compared since the daemon was started was the same.
require_sameness() {
  grep '^#' compared >&2 || true
  if grep -v '^#' compared >differences; then fail "$(wc -l <differences) differ: $(cat differences)"; fi
  require_swapping
  stop_daemon
}

# same_habits KIND: those of one program.
same_habits() {
  [[ -z $NATIVE ]] || skip "it compares with vswapd"
  start_daemon
  compare_habits "$PROGRAMS/habit_$1" --without "${differs[$1]-}"
  require_sameness
}

seconds_habits_ends=240 seconds_habits_waits=240 seconds_habits_identity=240 seconds_habits_advice=240 seconds_habits_mappings=300 seconds_habits_forks=240
case_habits_ends() { same_habits ends; }
case_habits_waits() { same_habits waits; }
case_habits_filters() { same_habits filters; }
case_habits_identity() { same_habits identity; }
case_habits_advice() { same_habits advice; }
case_habits_mappings() { same_habits mappings; }
case_habits_readers() { same_habits readers; }
case_habits_userfault() { same_habits userfault; }
case_habits_forks() { same_habits forks; }

# The same without evictions that are asked for: the limit alone has to hold them.
case_habits_held() {
  [[ -z $NATIVE ]] || skip "it compares with vswapd"
  start_daemon
  compare_habits "$PROGRAMS/habit_ends" --held main_leaves_worker_grows
  compare_habits "$PROGRAMS/habit_mappings" --held locked_ranges
  require_sameness
}

# tool NAME PROGRAM COMMAND: a line of `commands`, where the program that it needs is installed.
tool() {
  if command -v "$2" >/dev/null; then printf '%s %s\n' "$1" "$3" >>commands; else say "$1: $2 is not installed"; fi
}

# Debuggers, sandboxes, and what else starts and looks at other people's programs.
seconds_habits_tools=240
case_habits_tools() {
  [[ -z $NATIVE ]] || skip "it compares with vswapd"
  local works="$PROGRAMS/fill --size 24 --verify >/dev/null && echo right"
  tool unshare_user unshare "unshare -Ur sh -c 'id -u; $works'"
  tool unshare_mount unshare "unshare -m sh -c '$works'"
  tool unshare_pid unshare "unshare -pf --mount-proc sh -c 'echo \$\$; $works'"
  tool unshare_pid_without_fork unshare "unshare -p sh -c 'exec $PROGRAMS/fill --size 24 --verify >/dev/null'; echo \$?"
  tool unshare_all unshare "unshare -Urmpif sh -c '$works'"
  tool nsenter_mount nsenter "nsenter -t \$\$ -m sh -c '$works'"
  tool setpriv_user setpriv "setpriv --reuid 65534 --regid 65534 --clear-groups sh -c 'id -u; $works'"
  tool setpriv_capabilities setpriv "setpriv --bounding-set -all --inh-caps -all --no-new-privs sh -c '$works'"
  tool su su "su -s /bin/sh nobody -c 'id -un; $works'"
  tool chroot chroot "chroot / sh -c '$works'"
  tool setsid setsid "setsid -w sh -c '$works'"
  tool man man "man -P cat true 2>&1 | cksum"
  tool bwrap bwrap "bwrap --dev-bind / / --unshare-all --die-with-parent sh -c '$works'"
  tool gdb_runs gdb "gdb -nx -batch -ex run -ex 'print 6 * 7' --args $PROGRAMS/fill --size 24 --verify 2>&1 | grep -cE 'exited normally|= 42'"
  tool gdb_attaches gdb "$PROGRAMS/fill --size 24 --hold-ms 3000 --verify >/dev/null & p=\$!; sleep 1; gdb -nx -batch -p \$p -ex 'print 6 * 7' 2>/dev/null | grep -c '= 42'; wait \$p; echo \$?"
  tool strace strace "strace -f -o /dev/null sh -c '$works'"
  tool strace_attaches strace "$PROGRAMS/fill --size 24 --hold-ms 3000 --verify >/dev/null & p=\$!; sleep 1; timeout 1 strace -f -o /dev/null -p \$p 2>/dev/null; wait \$p; echo \$?"
  tool valgrind valgrind "valgrind -q --error-exitcode=3 $PROGRAMS/fill --size 8 --verify >/dev/null; echo \$?"
  tool python "$PYTHON" "$PYTHON -W error -c 'import os, subprocess; p = os.fork(); p or os._exit(5); print(os.waitstatus_to_exitcode(os.wait()[1])); print(subprocess.run([\"true\"]).returncode)'"
  cat >leaks.c <<'END'
#include <stdlib.h>
#include <string.h>
int main(void) {
  static char *kept[400];
  for (int i = 0; i < 400; i++) memset(kept[i] = malloc(100000), 1, 100000);
  for (int i = 0; i < 400; i++)
    if (kept[i][i] != 1) return 1;
  return 0;
}
END
  if cc -O1 -fsanitize=leak -o leaks leaks.c 2>/dev/null; then tool leak_sanitizer cc "./leaks; echo \$?"; else say "leak_sanitizer: cc has none"; fi
  start_daemon
  compare_habits commands --commands --without "${differs[tools]-}"
  require_sameness
}
