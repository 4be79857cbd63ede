# shellcheck shell=bash
# shellcheck disable=SC2034  # settings for Tests/EndToEnd/run
# Programs of several users and in several PID namespaces.

# A program of another user, which has to reach what it needs.
STRANGER=65534
STRANGERS=65533
as_stranger() { setpriv --reuid "$STRANGER" --regid "$STRANGER" --clear-groups "$@"; }

only_root() {
  [[ -z $NATIVE ]] || skip "it is about vswapd"
  ((EUID == 0)) || skip "only root can become somebody else"
  chmod 755 "$CASE_DIR"
  mkdir bin
  cp "$BIN/libvswap.so" "$PROGRAMS/fill" "$PROGRAMS/swapfill" bin/
  # Where everybody can read it, wherever the build is.
  export VSWAP_SHIM=$CASE_DIR/bin/libvswap.so
}

# The variables with which a program attaches by itself: attaching LIMIT [NAME=VALUE...]
attaching() {
  local limit=$1
  shift
  printf '%s\n' "LD_PRELOAD=$CASE_DIR/bin/libvswap.so" "VSWAP_SOCKET=$RUNTIME/attach.sock" "VSWAP_LIMIT=$limit" VSWAP_REQUIRED=1 "$@"
}

# The device is for the daemon's own user, root and a group, unless everybody may have it.
needs_users_policy="setpriv"
case_users_policy() {
  only_root
  local variables
  echo '{"attach_group": "no-such-group"}' >config.json
  says 1 'attach_group' "$BIN/vswapd" serve --runtime-dir "$RUNTIME" --config config.json
  mapfile -t variables < <(attaching 16M)
  start_daemon
  says 125 "user $STRANGER may not" as_stranger env "${variables[@]}" bin/fill --size 8
  stop_daemon
  echo '{"attach_everyone": true}' >config.json
  start_daemon --config config.json
  as_stranger env "${variables[@]}" bin/fill --size 32 --verify --seed "$SEED" || fail "everybody may, and the program ended with status $?"
  stop_daemon
  # Any group will do.
  echo "{\"attach_group\": \"$(getent group daemon | cut -d : -f 1)\"}" >config.json
  start_daemon --config config.json
  says 125 "user $STRANGER may not.*group daemon" as_stranger env "${variables[@]}" bin/fill --size 8
  setpriv --reuid "$STRANGER" --regid "$STRANGER" --groups "$(getent group daemon | cut -d : -f 3)" env "${variables[@]}" \
    bin/fill --size 32 --verify --seed "$SEED" || fail "a member of the group may, and the program ended with status $?"
  stop_daemon
}

# Nobody else's program is served by a daemon for one command; what the command starts is, whatever user it becomes.
needs_users_embedded="setpriv"
case_users_embedded() {
  only_root
  "$BIN/vswapctl" run --embedded --limit 16M --stats -- setpriv --reuid "$STRANGER" --regid "$STRANGER" --clear-groups \
    bin/fill --size 48 --verify --seed "$SEED" 2>err || fail "status $?: $(<err)"
  count_stats err
  require_swapping
}

# What a program starts is of its group, as another user and in another PID namespace too.
needs_users_descendants="setpriv unshare"
case_users_descendants() {
  only_root
  local namespace=()
  unshare -pf --mount-proc true 2>/dev/null && namespace=(unshare -pf --mount-proc)
  start_daemon
  ctl run --limit 16M --stats -- "${namespace[@]}" setpriv --reuid "$STRANGER" --regid "$STRANGER" --clear-groups \
    bin/fill --size 48 --verify --seed "$SEED" 2>err || fail "status $?: $(<err)"
  count_stats err
  require_swapping
  stop_daemon
}

# A daemon that serves everybody, and no members yet.
begin_members() {
  only_root
  NAMESPACE=()
  MEMBERS=()
  MEMBER_INPUTS=()
  echo '{"attach_everyone": true}' >config.json
  start_daemon --config config.json
}

# start_member NAME USER LIMIT [NAME=VALUE...]: a program that holds memory, with input and output in files of that name.
start_member() {
  local name=$1 user=$2 limit=$3 variables
  shift 3
  mapfile -t variables < <(attaching "$limit" "$@")
  mkfifo "$name.to"
  "${NAMESPACE[@]}" setpriv --reuid "$user" --regid "$user" --clear-groups env "${variables[@]}" \
    bin/swapfill --size 32 --seed "$SEED" <"$name.to" >"$name.out" &
  MEMBERS+=("$!")
  exec {MEMBER}>"$name.to"
  MEMBER_INPUTS+=("$MEMBER")
  wait_until 60 grep -q ready "$name.out" || fail "$name does not start: $(<"$name.out")"
}

end_members() {
  local index
  for index in "${!MEMBERS[@]}"; do
    MEMBER=${MEMBER_INPUTS[index]}
    exec {MEMBER}>&-
  done
  for index in "${MEMBERS[@]}"; do wait "$index" || fail "a program ended with status $?"; done
}

# A name belongs to a user: nobody joins, or takes, the group of another one.
needs_users_names="setpriv"
seconds_users_names=60
case_users_names() {
  begin_members
  start_member stranger "$STRANGER" 12M VSWAP_GROUP=web
  status_is "[(g['id'], g['user']) for g in s['groups']]" "[('web', $STRANGER)]" || fail "groups: $(status "s['groups']")"
  start_member root 0 20M VSWAP_GROUP=web
  start_member other "$STRANGERS" 24M VSWAP_GROUP=web
  status_is "[(g['id'], g['limit_bytes'] >> 20, len(g['targets'])) for g in s['groups']]" \
    "[('web', 20, 1), ('$STRANGERS:web', 24, 1), ('$STRANGER:web', 12, 1)]" || fail "groups: $(status "s['groups']")"
  ctl limit "$STRANGER:web" 16M
  ctl limit web 28M
  status_is "[g['limit_bytes'] >> 20 for g in s['groups']]" "[28, 24, 16]" || fail "limits: $(status "s['groups']")"
  ctl evict "$STRANGERS:web" --size 1M
  mapfile -t variables < <(attaching 16M VSWAP_GROUP=0:web)
  says 125 "group 0:web is not of user $STRANGER" as_stranger env "${variables[@]}" bin/fill --size 8
  end_members
  stop_daemon
}

# Where the daemon's own user has none of that name, a name that two others have says too little.
needs_users_ambiguous="setpriv"
seconds_users_ambiguous=60
case_users_ambiguous() {
  begin_members
  start_member stranger "$STRANGER" 16M VSWAP_GROUP=web
  start_member other "$STRANGERS" 16M VSWAP_GROUP=web
  says 1 "several groups web.*$STRANGERS:web, $STRANGER:web" ctl limit web 64M
  end_members
  stop_daemon
}

# Two containers whose program is process 1 have a group each, with and without a name.
needs_users_containers="unshare setpriv"
seconds_users_containers=60
case_users_containers() {
  only_root
  unshare -pf --mount-proc true 2>/dev/null || skip "no PID namespace can be made here"
  NAMESPACE=(unshare -pf --mount-proc)
  MEMBERS=()
  MEMBER_INPUTS=()
  start_daemon
  start_member first 0 12M
  start_member second 0 16M
  status_is "[(len(g['targets']), g['limit_bytes'] >> 20) for g in s['groups']] in ([(1, 12), (1, 16)], [(1, 16), (1, 12)])" True ||
    fail "groups: $(status "s['groups']")"
  start_member third 0 20M VSWAP_GROUP=web
  start_member fourth 0 24M VSWAP_GROUP=web
  status_is "sorted(g['limit_bytes'] >> 20 for g in s['groups'] if g['id'].startswith('0:') and g['id'].endswith(':web'))" "[20, 24]" ||
    fail "groups: $(status "s['groups']")"
  ctl limit "$(status "next(g['id'] for g in s['groups'] if g['limit_bytes'] >> 20 == 24)")" 28M
  status_is "sorted(g['limit_bytes'] >> 20 for g in s['groups'])" "[12, 16, 20, 28]" || fail "groups: $(status "s['groups']")"
  end_members
  stop_daemon
}

# Another user's programs have a quota: it bounds them, and nobody else.
needs_users_quota="setpriv"
seconds_users_quota=90
case_users_quota() {
  only_root
  NAMESPACE=()
  MEMBERS=()
  MEMBER_INPUTS=()
  local variables
  echo '{"attach_everyone": true, "user_processes": 2, "user_swapped": "8M"}' >config.json
  start_daemon --config config.json
  start_member first "$STRANGER" 8M
  wait_until 20 status_is "[g['state'] for g in s['groups'] if g['user'] == $STRANGER]" "['over_quota']" ||
    fail "no quota: $(status "s['groups']")"
  # What is on its way when the quota is met goes out all the same.
  status_is "s['groups'][0]['swapped_pages'] >= 2048 and s['groups'][0]['resident_bytes'] > 9 * $MIB" True || fail "groups: $(status "s['groups']")"
  start_member second "$STRANGER" 16M
  mapfile -t variables < <(attaching 16M)
  says 125 "user $STRANGER has 2 processes" as_stranger env "${variables[@]}" bin/fill --size 8
  ctl run --limit 8M --stats -- "$PROGRAMS/fill" --size 48 --verify --seed "$SEED" 2>err || fail "status $?: $(<err)"
  count_stats err
  require_swapping
  for MEMBER in "${MEMBER_INPUTS[@]}"; do echo verify >&"$MEMBER"; done
  wait_until 60 grep -q right first.out || fail "the first program: $(<first.out)"
  wait_until 60 grep -q right second.out || fail "the second program: $(<second.out)"
  end_members
  stop_daemon
}
