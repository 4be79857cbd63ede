# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # settings for Tests/EndToEnd/run; SEED is from the library
# Swap areas: what lies in them comes back right, whatever becomes of the area meanwhile.

# shellcheck source=SCRIPTDIR/30_programs.sh
source "$(dirname "${BASH_SOURCE[0]}")/30_programs.sh"
# shellcheck source=SCRIPTDIR/50_control.sh
source "$(dirname "${BASH_SOURCE[0]}")/50_control.sh"
# shellcheck source=SCRIPTDIR/25_strides.sh
source "$(dirname "${BASH_SOURCE[0]}")/25_strides.sh"

# Areas are files in the case's directory.
require_disk() {
  [[ -z $NATIVE ]] || skip "it is about vswapd"
  [[ $(stat -f -c %T "$CASE_DIR") != tmpfs ]] || skip "$CASE_DIR is on tmpfs, and areas need a disk"
}

# --- what is in areas ---

# area PATH KEY: a figure of the area, "gone" if there is no such area.
area() { status "next((a['$2'] for a in s['areas'] if a['path'] == '$1'), 'gone')"; }
slots_in_areas() { status "sum(a['slots'] for a in s['areas'])"; }
area_holds() {
  local slots
  slots=$(area "$1" slots)
  [[ $slots != gone ]] && ((slots >= $2))
}

# Until the number of slots in areas has been the same for a second. Leaves it in SLOTS.
settle() {
  local before=-1 same=0 end=$((SECONDS + 100 * VSWAP_SLOWNESS))
  while ((same < 5)); do
    ((SECONDS < end)) || fail "the areas do not come to rest: $(status "s['areas']")"
    sleep 0.2
    SLOTS=$(slots_in_areas)
    if ((SLOTS == before)); then same=$((same + 1)); else same=0; fi
    before=$SLOTS
  done
  say "$SLOTS slots in areas: $(status "[(a['path'], a['slots'], a['used_bytes']) for a in s['areas']]")"
}

hold_slots() { (($(slots_in_areas) >= $1)); }

# Pages the program out, and sees that at least so many lie in areas.
evict_to_areas() {
  ctl evict "$PID"
  wait_until 60 hold_slots "$1" || true
  settle
  ((SLOTS >= $1)) || fail "only $SLOTS slots are in areas instead of $1: $(ctl status --json)"
}

# What swapon --show says, independent of its format: whether it names the path.
is_shown() { [[ $(ctl swapon --show --json | query "\"'$1'\" in str(s)") == True ]]; }
is_active() { [[ $(area "$1" state) == active ]]; }
# Neither draining nor on its way back. Leaves what it is in DECIDED.
is_decided() {
  DECIDED=$(area "$1" state)
  [[ $DECIDED == @(active|gone) ]]
}

# last_line FILE EXPRESSION: of the object with which swapoff --json ends.
last_line() { tail -n 1 "$1" | query "$2"; }

# off PATH: a swapoff that must succeed and lose nothing. Output in off.NAME, so that several may run at once.
off() {
  local out=$CASE_DIR/off.${1##*/}
  ctl swapoff "$1" --json >"$out" 2>"$out.err" || fail "swapoff $1: status $?: $(<"$out.err") $(tail -n 1 "$out")"
  say "swapoff $1: $(tail -n 1 "$out")"
  [[ $(last_line "$out" "s['state'] + ' ' + str(s['lost'])") == "off 0" ]] || fail "swapoff $1: $(tail -n 1 "$out")"
  [[ $(area "$1" state) == gone ]] || fail "$1 is still there: $(status "s['areas']")"
  ! is_shown "$1" || fail "$1 is still shown: $(ctl swapon --show)"
}

# When all programs have gone, areas hold nothing.
areas_empty() { status_is "sum(a['slots'] + a['used_bytes'] for a in s['areas'])" 0; }
require_empty_areas() { wait_until 20 areas_empty || fail "areas still hold something: $(ctl status --json)"; }

# pause_up_to MS: a random moment.
pause_up_to() {
  local ms=$((RANDOM % ($1 + 1)))
  sleep "$((ms / 1000)).$(printf '%03d' $((ms % 1000)))"
}

start_peak() {
  "$PYTHON" "$SUPPORT/peak.py" "$1" >peak.json &
  PEAK=$!
}
# Leaves in peak.json where pages lay when most were swapped.
end_peak() {
  kill -TERM "$PEAK" 2>/dev/null || true
  wait "$PEAK" || fail "the sampler ended with status $?"
  say "at the peak: $(<peak.json)"
}
peak() { query "$1" <peak.json; }

# --- the real programs again ---

# mostly_in_area CASE: a case of 30_programs.sh with so small a pool that most of what is swapped lies in an area.
mostly_in_area() {
  require_disk
  start_daemon --pool-limit 2M --swap "$CASE_DIR/area:2G"
  start_peak "$RUNTIME/control.sock"
  "$1"
  end_peak
  remark "in_area=$(peak "'%d/%d' % (s['areas'], s['total'])")"
  # The swap cache is as large for small programs as for large ones.
  [[ $(peak "s['areas'] * 2 >= s['total'] - s['cache'] > 0") == True ]] || fail "less than half lay in the area: $(<peak.json)"
  require_empty_areas
  off "$CASE_DIR/area"
  stop_daemon
}

needs_swap_programs_redis=$needs_redis
seconds_swap_programs_redis=$((seconds_redis * 2))
case_swap_programs_redis() { mostly_in_area case_redis; }

needs_swap_programs_python=$needs_python
seconds_swap_programs_python=$((seconds_python * 2))
case_swap_programs_python() { PYTHON_ENTRIES=60000 mostly_in_area case_python; }

needs_swap_programs_sort=$needs_sort
seconds_swap_programs_sort=$((seconds_sort * 2))
case_swap_programs_sort() { SORT_MIB=150 mostly_in_area case_sort; }

needs_swap_programs_sqlite=$needs_sqlite
seconds_swap_programs_sqlite=$((seconds_sqlite * 2))
case_swap_programs_sqlite() { mostly_in_area case_sqlite; }

needs_swap_programs_gcc=$needs_gcc
seconds_swap_programs_gcc=$((seconds_gcc * 2))
case_swap_programs_gcc() { mostly_in_area case_gcc; }

# --- an embedded daemon with an area ---

# model_in_area SEED: the model under a limit, with the embedded daemon's status sampled.
model_in_area() {
  local model
  rm -f socket
  # shellcheck disable=SC2016
  limited 24M sh -c 'printf "%s\n" "$VSWAP_SOCKET" >socket.new && mv socket.new socket && exec "$@"' sh \
    "$PROGRAMS/model" --seed "$1" --size 96 --steps 1200 --threads 2 &
  model=$!
  wait_until 20 test -s socket || fail "the program does not start"
  start_peak "$(dirname "$(<socket)")/control.sock"
  wait "$model" || fail "seed $1"
  end_peak
  (($(peak "s['most_in_areas']") > 0)) || fail "the area was not used"
  # The daemon outlives the program by what it has to clear away.
  wait_until 20 test ! -e "$CASE_DIR/a" || fail "the embedded daemon left its area behind"
}

seconds_swap_run=600
case_swap_run() {
  require_disk
  LIMITED_OPTIONS=(--pool-limit 4M --swap "$CASE_DIR/a:64M")
  local i
  for i in 0 1; do model_in_area $((SEED + i)); done
  remark "seeds=$SEED...$((SEED + 1))"
  require_swapping
}

# --- clean copies ---

# Pages that are only read go back to where they were: nothing is compressed or written again. They do not keep the area from going, either.
seconds_swap_clean_copies=200
case_swap_clean_copies() {
  require_disk
  local before stored copies
  start_daemon --pool-limit 4M --swap "$CASE_DIR/a:256M"
  start_touching
  evict_to_areas 8000
  before=$(status "s['pool']['stored_original_bytes'] // 4096")
  for _ in 1 2; do
    touch_all
    copies=$(status "s['pool']['clean_copies']")
    ((copies >= 8000)) || fail "only $copies copies are kept: $(status "s['pool']")"
    evict_to_areas 8000
  done
  stored=$(($(status "s['pool']['stored_original_bytes'] // 4096") - before))
  copies=$(status "s['pool']['reused_copies']")
  remark "reused=$copies compressed_again=$stored"
  ((copies >= 16000)) || fail "only $copies copies were of use: $(status "s['pool']")"
  # What was in the pool, which is full, or in the cache has no copy.
  ((stored < 16000)) || fail "$stored pages were compressed again"
  touch_all
  off "$CASE_DIR/a"
  status_is "s['pool']['clean_copies']" 0 || fail "copies are left: $(status "s['pool']")"
  ctl evict "$PID"
  touch_all
  end_touching
  stop_daemon
}

# Walks in steps of several pages, most of which are read ahead from an area.
seconds_swap_strides=200
case_swap_strides() {
  require_disk
  LIMITED_OPTIONS=(--pool-limit 2M --swap "$CASE_DIR/a:128M")
  walk
}

# --- swapoff while the program never rests ---

CHURN_LIMIT=48M

# start_churn OPTION...: a program that rewrites 192 MiB from two threads, most of it in area "a".
start_churn() {
  start_program $CHURN_LIMIT "$PROGRAMS/churn" --size "${CHURN_MIB:-192}" --threads 2 --seed "$SEED" "$@"
}
end_churn() {
  ask_right stop
  end_program
}
# Room for everything, or for a quarter of it.
make_room() { ctl limit "$GROUP" none; }
squeeze() {
  ctl limit "$GROUP" $CHURN_LIMIT
  wait_until 60 area_holds "$CASE_DIR/a" 4000 || fail "hardly anything comes into the area: $(ctl status --json)"
}

# churn_through_swapoff OPTION...: swapoff, swapon and again.
churn_through_swapoff() {
  local i
  start_daemon --pool-limit 4M --swap "$CASE_DIR/a:256M"
  start_churn "$@"
  for ((i = 0; i < 6; i++)); do
    squeeze
    make_room
    off "$CASE_DIR/a"
    ctl swapon "$CASE_DIR/a" --size 256M
    ask figures
    [[ $ANSWER == rounds* ]] || fail "after swapoff $i: $ANSWER"
  done
  end_churn
  require_empty_areas
  stop_daemon
}

seconds_swap_off_busy=300
case_swap_off_busy() {
  require_disk
  churn_through_swapoff
}

seconds_swap_off_busy_forks=400
case_swap_off_busy_forks() {
  require_disk
  churn_through_swapoff --fork-ms 40
  [[ ! $ANSWER =~ forks\ [0-3]$ ]] || fail "it hardly forked: $ANSWER"
  remark "forks=${ANSWER##* }"
}

# Three areas in turn: one is retired into the others while one is added.
seconds_swap_off_busy_added=300
case_swap_off_busy_added() {
  require_disk
  RANDOM=$((SEED % 32768))
  local i areas=("$CASE_DIR/a" "$CASE_DIR/b" "$CASE_DIR/c") retired moved=0
  start_daemon --pool-limit 4M --swap "${areas[0]}:256M" --swap "${areas[1]}:256M"
  start_churn
  for ((i = 0; i < 9; i++)); do
    wait_until 60 area_holds "${areas[i % 3]}" 2000 || fail "hardly anything comes into ${areas[i % 3]}: $(ctl status --json)"
    off "${areas[i % 3]}" &
    retired=$!
    pause_up_to 100
    ctl swapon "${areas[(i + 2) % 3]}" --size 256M
    wait $retired || fail "swapoff $i"
    moved=$((moved + $(last_line "off.$(basename "${areas[i % 3]}")" "s['to_areas']")))
  done
  end_churn
  ((moved > 0)) || fail "nothing went from area to area"
  remark "between_areas=$moved"
  require_empty_areas
  stop_daemon
}

# A swapoff that is interrupted after at most so many milliseconds; leaves its state in STATE: off, refused, or "none" when it had no
# time to say. It is timeout that signals, because it never signals a process that has ended: its number may be somebody else's by then.
interrupt_swapoff() {
  local ms=$((1 + RANDOM % $1))
  timeout --foreground --signal=INT "$((ms / 1000)).$(printf '%03d' $((ms % 1000)))" \
    "$BIN/vswapctl" --socket "$RUNTIME/control.sock" swapoff "$CASE_DIR/a" --json >interrupted 2>interrupted.err || true
  STATE=$(last_line interrupted "s.get('state', 'none')" 2>/dev/null) || STATE=none
}

seconds_swap_off_cancelled=900
case_swap_off_cancelled() {
  require_disk
  RANDOM=$((SEED % 32768))
  local tries longest early=0 late=0 told=0
  start_daemon --pool-limit 4M --swap "$CASE_DIR/a:256M"
  start_churn
  squeeze
  make_room
  # How long one takes that nobody interrupts.
  longest=$(date +%s%N)
  off "$CASE_DIR/a"
  longest=$((($(date +%s%N) - longest) / 1000000 + 5))
  ctl swapon "$CASE_DIR/a" --size 256M
  for ((tries = 0; early < 50 && tries < 300; tries++)); do
    squeeze
    make_room
    interrupt_swapoff $longest
    wait_until 20 is_decided "$CASE_DIR/a" || fail "neither active nor gone after $STATE: $(status "s['areas']")"
    if [[ $(<interrupted.err) == *cancelled* ]]; then
      # What vswapctl says of it is true.
      [[ $DECIDED == active && $(<interrupted.err) == *"stays active" || $DECIDED == gone && $(<interrupted.err) == *"had just been retired" ]] ||
        fail "$CASE_DIR/a is $DECIDED after: $(<interrupted.err)"
      told=$((told + 1))
    fi
    if [[ $DECIDED == active ]]; then
      # There is room for everything.
      [[ $STATE == none ]] || fail "said to be $STATE, but active: $(<interrupted) $(status "s['areas']")"
      early=$((early + 1))
      longest=$((longest + longest / 16 + 1))
    else
      [[ $STATE == off || $STATE == none ]] || fail "gone after $STATE"
      late=$((late + 1))
      # About every second one is to come in time, however long a swapoff takes on this machine.
      ((longest <= 10)) || longest=$((longest - longest / 16 - 1))
      ctl swapon "$CASE_DIR/a" --size 256M
    fi
  done
  remark "cancelled=$early off=$late told=$told"
  ((told > 0)) || fail "vswapctl never said what became of it"
  ((early == 50)) || fail "only $early of $tries were interrupted in time"
  ask figures
  squeeze
  make_room
  off "$CASE_DIR/a"
  status_is "len(s['areas'])" 0 || fail "an area is left: $(status "s['areas']")"
  [[ ! -e $CASE_DIR/a ]] || fail "the area's file is left"
  end_churn
  stop_daemon
}

# The program ends, by itself or by a signal, in the middle of a swapoff.
seconds_swap_off_exit=300
case_swap_off_exit() {
  require_disk
  RANDOM=$((SEED % 32768))
  local i retired status
  start_daemon --pool-limit 4M --swap "$CASE_DIR/a:256M"
  for ((i = 0; i < 8; i++)); do
    start_churn
    squeeze
    make_room
    off "$CASE_DIR/a" &
    retired=$!
    pause_up_to 150
    ((i % 2)) || kill -KILL "$PID"
    end_input
    status=0
    wait "$RUNNER" || status=$?
    ((status == 0 || status == 137)) || fail "the program ended with status $status"
    wait $retired || fail "swapoff $i"
    wait_until 20 status_is "len(s['groups'])" 0 || fail "the group is left: $(ctl status --json)"
    ctl swapon "$CASE_DIR/a" --size 256M
  done
  require_empty_areas
  wait_until 20 status_is "s['pool']['objects'] + s['cache']['pages'] + s['zero']['pages']" 0 || fail "slots are left: $(ctl status --json)"
  stop_daemon
}

# --- faulty storage: right or SIGBUS, never wrong ---

FAULTY_PAGES=$((96 * 256))

# A program of 96 MiB that lies in area "a" for the most part and does not touch its memory.
start_faulty() {
  require_disk
  start_daemon --pool-limit 4M --swap "$CASE_DIR/a:128M"
  start_program 256M "$PROGRAMS/swapfill" --size 96 --seed "$SEED"
  evict_to_areas $((FAULTY_PAGES / 2))
  # Brings in what the program needs for itself, so that it is not that which is lost.
  ask "verify-sigbus 0"
  sync -d "$CASE_DIR/a"
}

# Reads everything, twice: what is lost stays lost, and nothing else. Leaves the number of lost pages in LOST.
require_right_or_lost() {
  local before
  ask verify-sigbus
  before=$ANSWER
  [[ $ANSWER =~ ^right\ ([0-9]+)\ lost\ ([0-9]+)$ ]] || fail "$ANSWER"
  LOST=${BASH_REMATCH[2]}
  ((BASH_REMATCH[1] + LOST == FAULTY_PAGES)) || fail "not all pages were read: $ANSWER"
  ((BASH_REMATCH[1] > 0 && LOST > 0)) || fail "all or nothing is lost: $ANSWER"
  remark "lost=$LOST/$FAULTY_PAGES"
  ask verify-sigbus
  [[ $ANSWER == "$before" ]] || fail "first $before, then $ANSWER"
}
require_counted() { (($(area "$CASE_DIR/a" read_errors) > 0)) || fail "no read error is counted: $(status "s['areas']")"; }
end_faulty() {
  end_program
  require_empty_areas
  off "$CASE_DIR/a"
  stop_daemon
}

# A restore and the end of the session find them, too: the kernel is not to fill them with zeros afterwards.
case_swap_faulty_restore() {
  start_faulty
  "$PYTHON" "$SUPPORT/flip.py" "$CASE_DIR/a" "$SEED"
  ctl restore "$PID"
  require_right_or_lost
  require_counted
  ctl detach "$PID"
  ask verify-sigbus
  [[ $ANSWER == "right $((FAULTY_PAGES - LOST)) lost $LOST" ]] || fail "$ANSWER after the end of the session, $LOST were lost before"
  end_faulty
}

case_swap_faulty_flip() {
  start_faulty
  "$PYTHON" "$SUPPORT/flip.py" "$CASE_DIR/a" "$SEED"
  require_right_or_lost
  require_counted
  end_faulty
}

case_swap_faulty_truncate() {
  start_faulty
  # Half of what is in use, wherever that lies.
  truncate -s $(($(area "$CASE_DIR/a" used_bytes) / 2)) "$CASE_DIR/a"
  require_right_or_lost
  require_counted
  end_faulty
}

# swapoff of a damaged area moves all that can be read and says what cannot.
case_swap_faulty_off() {
  start_faulty
  "$PYTHON" "$SUPPORT/flip.py" "$CASE_DIR/a" "$SEED"
  ctl swapoff "$CASE_DIR/a" --json >off.json || say "swapoff: status $?"
  say "$(tail -n 1 off.json)"
  [[ $(last_line off.json "s['state']") == off ]] || fail "not off: $(tail -n 1 off.json)"
  [[ $(area "$CASE_DIR/a" state) == gone ]] || fail "still there: $(status "s['areas']")"
  require_right_or_lost
  [[ $(last_line off.json "s['lost'] >= $LOST") == True ]] || fail "$LOST pages are lost, but swapoff says $(tail -n 1 off.json)"
  end_program
  stop_daemon
}

# The daemon has its own descriptor.
case_swap_unlinked() {
  start_faulty
  rm "$CASE_DIR/a"
  ask_right verify
  evict_to_areas $((FAULTY_PAGES / 2))
  ask_right verify
  end_faulty
}

# --- block devices ---

LOOP=
detach_loop() { [[ -z $LOOP ]] || losetup --detach "$LOOP"; }

needs_swap_loop="losetup"
case_swap_loop() {
  require_disk
  ((EUID == 0)) || skip "only root can set up loop devices"
  fallocate -l 128M image
  LOOP=$(losetup --find --show image 2>losetup.err) || skip "there are no loop devices here: $(<losetup.err)"
  AT_END=(detach_loop)
  start_daemon --pool-limit 4M
  ctl swapon "$LOOP"
  is_active "$LOOP" || fail "it is not active: $(status "s['areas']")"
  [[ $(area "$LOOP" type) != file ]] || fail "a block device is called a file"
  start_program 256M "$PROGRAMS/swapfill" --size 96 --seed "$SEED"
  evict_to_areas 10000
  ask_right verify
  evict_to_areas 10000
  off "$LOOP"
  ask_right verify
  [[ -b $LOOP ]] || fail "swapoff removed the device"
  say "again, and away with it while it is empty"
  ctl swapon "$LOOP"
  evict_to_areas 10000
  ask_right verify
  end_program
  require_empty_areas
  off "$LOOP"
  losetup --detach "$LOOP"
  LOOP=
  [[ -z $(losetup --associated image) ]] || fail "the daemon still holds the device"
  stop_daemon
}

# --- a file system that others fill: an area keeps the blocks that it has, or is tried again ---

unmount_image() { ! mountpoint -q "$CASE_DIR/mounted" || umount "$CASE_DIR/mounted"; }
allocated() { stat -c '%b * %B' "$1"; }
fill_mounted() { ! dd if=/dev/zero of=mounted/filler bs=64K status=none 2>dd.err || fail "the file system is not full"; }

# An area of 64 MiB on a file system of 128, which was in use and is empty.
start_small() {
  require_disk
  ((EUID == 0)) || skip "only root can mount"
  truncate -s 128M image
  mkfs.ext4 -q image
  mkdir mounted
  mount -o loop image mounted 2>mount.err || skip "this cannot be mounted here: $(<mount.err)"
  AT_END=(unmount_image)
  start_daemon --pool-limit 4M
  ctl swapon "$CASE_DIR/mounted/a" --size 64M
  start_program 256M "$PROGRAMS/swapfill" --size 48 --seed "$SEED"
  evict_to_areas 4000
  end_program
  wait_until 20 areas_empty || fail "something is left in the area: $(status "s['areas']")"
}

needs_swap_full_file_system="mkfs.ext4 mount losetup dd"
case_swap_full_file_system() {
  start_small
  fill_mounted
  (($(allocated mounted/a) >= 64 * MIB)) || fail "the area has not all of its blocks: $(allocated mounted/a)"
  start_program 256M "$PROGRAMS/swapfill" --size 48 --seed "$SEED"
  evict_to_areas 4000
  [[ $(area "$CASE_DIR/mounted/a" state) == active ]] || fail "$(status "s['areas']")"
  (($(area "$CASE_DIR/mounted/a" write_errors) == 0)) || fail "writes failed: $(status "s['areas']")"
  ask_right verify
  end_program
  off "$CASE_DIR/mounted/a"
  stop_daemon
  umount mounted
}

# --- a file system that cannot do direct I/O: ext4 that journals its data ---

needs_swap_indirect="mkfs.ext4 mount losetup"
case_swap_indirect() {
  require_disk
  ((EUID == 0)) || skip "only root can mount"
  truncate -s 400M image
  mkfs.ext4 -q image
  mkdir mounted
  mount -o loop,data=journal image mounted 2>mount.err || skip "this cannot be mounted here: $(<mount.err)"
  AT_END=(unmount_image)
  start_daemon --pool-limit 4M --swap "$CASE_DIR/mounted/a:200M"
  start_program 256M "$PROGRAMS/swapfill" --size 96 --seed "$SEED"
  evict_to_areas 10000
  ask_right verify
  evict_to_areas 10000
  off "$CASE_DIR/mounted/a"
  ask_right verify
  end_program
  stop_daemon
  unmount_image
}

# --- two areas ---

# start_two AREA...: a program beside a daemon with these areas.
start_two() {
  require_disk
  local one options=()
  for one; do options+=(--swap "$CASE_DIR/$one"); done
  start_daemon --pool-limit 4M "${options[@]}"
  start_program 256M "$PROGRAMS/swapfill" --size 128 --seed "$SEED"
}
end_two() {
  ask_right verify
  end_program
  require_empty_areas
  ctl swapoff --all
  status_is "len(s['areas'])" 0 || fail "an area is left: $(status "s['areas']")"
  stop_daemon
}

# The higher priority fills first, and is skipped once it is full.
case_swap_two_priorities() {
  start_two low:128M:3 high:32M:7
  [[ $(area "$CASE_DIR/low" priority) == 3 && $(area "$CASE_DIR/high" priority) == 7 ]] || fail "other priorities: $(status "s['areas']")"
  ctl evict "$PID" --size 32M
  settle
  area_holds "$CASE_DIR/high" 1 || fail "nothing in the area of the higher priority"
  ! area_holds "$CASE_DIR/low" 1 || fail "the lower priority is used while there is room in the higher one: $(status "s['areas']")"
  evict_to_areas 15000
  area_holds "$CASE_DIR/low" 1 || fail "a full area is not skipped: $(status "s['areas']")"
  [[ $(status "all(a['used_bytes'] <= a['size_bytes'] for a in s['areas'])") == True ]] || fail "more than full: $(status "s['areas']")"
  (($(area "$CASE_DIR/high" used_bytes) >= 16 * MIB)) || fail "the higher priority is not full: $(status "s['areas']")"
  ask_right verify
  say "everything out again, the higher one retired into the lower one"
  evict_to_areas 15000
  ctl limit "$GROUP" 16M
  off "$CASE_DIR/high"
  area_holds "$CASE_DIR/low" 15000 || fail "not in the other area: $(ctl status --json)"
  end_two
}

case_swap_two_equal() {
  start_two a:128M:5 b:128M:5
  evict_to_areas 15000
  [[ $(status "min(a['slots'] for a in s['areas']) * 3 >= max(a['slots'] for a in s['areas'])") == True ]] ||
    fail "not shared evenly: $(status "s['areas']")"
  end_two
}

# --- swapoff without room ---

facts_of_area() { status "[(a['path'], a['slots'], a['used_bytes'], a['state']) for a in s['areas']]"; }

case_swap_refused() {
  require_disk
  local before
  start_daemon --pool-limit 4M --swap "$CASE_DIR/a:128M"
  start_program 256M "$PROGRAMS/swapfill" --size 128 --seed "$SEED"
  evict_to_areas 15000
  ctl limit "$GROUP" 16M
  before=$(facts_of_area)
  says 1 'room.*[0-9]|[0-9].*room' ctl swapoff "$CASE_DIR/a"
  ctl swapoff "$CASE_DIR/a" --json >refused.json 2>refused.err && fail "no room, but status 0"
  [[ $(last_line refused.json "s['state']") == refused ]] || fail "not refused: $(<refused.json) $(<refused.err)"
  ctl swapoff --all >/dev/null 2>&1 && fail "--all without room: status 0"
  ctl swapoff "$CASE_DIR/a" --dry-run || say "--dry-run without room: status $?"
  [[ $(facts_of_area) == "$before" ]] || fail "a refused swapoff changed something: first $before, then $(facts_of_area)"
  is_shown "$CASE_DIR/a" || fail "it is not shown any more"
  ask_right verify

  say "with room"
  ctl limit "$GROUP" none
  evict_to_areas 15000
  before=$(facts_of_area)
  ctl swapoff "$CASE_DIR/a" --dry-run
  [[ $(facts_of_area) == "$before" ]] || fail "--dry-run changed something: first $before, then $(facts_of_area)"
  off "$CASE_DIR/a"
  ask_right verify
  end_program
  stop_daemon
}
