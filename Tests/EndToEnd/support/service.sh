#!/usr/bin/env bash
# What case_service does beside a systemd of its own: the unit's life, with programs of other users.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=SCRIPTDIR/library.sh
source "$here/library.sh"
project=$(cd "$here/../../.." && pwd)
cd "$CASE_DIR"
RUNTIME=/run/vswapd
LIBRARY=/usr/lib/$(uname -m)-linux-gnu/vswapd/libvswap.so
BIN=/usr/bin

# Everything that has our name, but for what is shared with the machine.
ours() { find / -xdev -name '*vswap*' ! -path "$CASE_DIR*" ! -path "$project*" 2>/dev/null | sort; }
property() { systemctl show --value --property "$1" vswapd.service; }
says_status() { [[ $(property StatusText) =~ $1 ]]; }
journal() { journalctl --no-pager --output cat --unit vswapd.service | tail -n 20 >&2; }

# A program of another user, as start_program has it.
start_other() {
  setpriv --reuid 65534 --regid 65534 --clear-groups env -i "LD_PRELOAD=$LIBRARY" VSWAP_LIMIT=16M VSWAP_GROUP=another \
    VSWAP_REQUIRED=1 ./swapfill --size 64 --seed "$SEED" <to >from &
  RUNNER=$!
  exec {TO}>to {FROM}<from
  read_answer
  [[ $ANSWER =~ ^ready\ ([0-9]+)$ ]] || fail "the program said '$ANSWER'"
  PID=${BASH_REMATCH[1]}
}

ours >before
say "install and start"
"$project/scripts/install"
# Two lines of the configuration, with their comment signs gone.
sed -i -e 's|// "pool_limit": "2G",|"pool_limit": "8M",|' -e 's|// "attach_everyone": true,|"attach_everyone": true,|' /etc/vswapd/vswapd.json
systemctl start vswapd.service || {
  journal
  fail "the service does not start"
}
[[ $(property ActiveState) == active ]] || fail "it is $(property ActiveState)"
says_status '^Serving nobody$' || fail "its status is '$(property StatusText)'"
[[ $(stat -c '%a %U' /run/vswapd) == '755 root' ]] || fail "/run/vswapd: $(stat -c '%a %U' /run/vswapd)"
[[ $(stat -c '%a %U' /var/lib/vswapd) == '700 root' ]] || fail "/var/lib/vswapd: $(stat -c '%a %U' /var/lib/vswapd)"

say "a program of another user attaches by its environment"
mkfifo to from
chown 65534 to from
cp "$PROGRAMS/swapfill" swapfill
chmod 755 swapfill .
start_other
status_is "[t['pid'] for g in s['groups'] for t in g['targets']]" "[$PID]" || fail "it is not served: $(ctl status --json)"
wait_until 20 says_status '^Serving 1 process, [0-9.]+ MiB swapped$' || fail "the status stays '$(property StatusText)'"
say "status: $(property StatusText)"

say "an area comes and goes while the program runs"
ctl swapon "$CASE_DIR/area" --size 128M
ctl limit another 4M
in_area() { (($(status "s['areas'][0]['used_bytes']") > MIB)); }
wait_until 60 in_area || fail "nothing is written to the area: $(ctl status --json)"
ask_right verify

say "a unit that may execute from /usr/lib and its own program alone"
cp "$PROGRAMS/swapfill" /usr/local/bin/confined
cat >/run/systemd/system/confined.service <<UNIT
[Service]
Type=oneshot
ExecStart=/usr/local/bin/confined --size 48 --seed $SEED
StandardInput=data
StandardInputText=verify
StandardOutput=file:/run/unit.out
Environment=LD_PRELOAD=$LIBRARY VSWAP_LIMIT=16M VSWAP_GROUP=unit VSWAP_REQUIRED=1
NoExecPaths=/
ExecPaths=/usr/lib /usr/local/bin/confined
DynamicUser=yes
PrivateDevices=yes
CapabilityBoundingSet=
UNIT
systemctl daemon-reload
systemctl start confined.service || fail "the unit failed: $(systemctl --no-pager status confined.service)"
rm /run/systemd/system/confined.service
grep -qx right /run/unit.out || fail "the unit says '$(</run/unit.out)'"
status_is "any(g['id'] == 'unit' and g['totals']['evictions'] > 0 for g in s['ended_groups'])" True ||
  fail "the unit did not swap: $(ctl status --json)"

say "the area goes again"
ctl limit another none
ctl swapoff "$CASE_DIR/area"
[[ ! -e $CASE_DIR/area ]] || fail "swapoff leaves its file"
ask_right verify

say "stop gives everything back"
ctl evict "$PID"
(($(status "sum(g['swapped_pages'] for g in s['groups'])") > 0)) || fail "nothing is swapped"
systemctl stop vswapd.service
[[ $(property Result) == success ]] || {
  journal
  fail "the service ended with $(property Result)"
}
ask_right verify
(($(sed -n 's/^RssAnon:[[:space:]]*\([0-9]*\) kB/\1/p' "/proc/$PID/status") >= 65536)) || fail "not all has come back"
[[ ! -e /run/vswapd ]] || fail "/run/vswapd is still there: $(ls -l /run/vswapd)"

say "a program that is stopped gets its pages when it goes on; meanwhile the service waits"
systemctl start vswapd.service
end_program
start_other
kill -STOP "$PID"
systemctl stop --no-block vswapd.service
wait_until 20 says_status '^Giving 1 process their pages back' || fail "the status is '$(property StatusText)'"
kill -CONT "$PID"
ask_right verify
stopped() { [[ $(property ActiveState) == inactive ]]; }
wait_until 60 stopped || fail "it is $(property ActiveState): $(property StatusText)"
[[ $(property Result) == success ]] || fail "the service ended with $(property Result)"
ask_right verify
end_program

say "uninstalled while it runs"
systemctl start vswapd.service
cp "$project/systemd/vswapd.json" /etc/vswapd/vswapd.json
"$project/scripts/install" --uninstall
[[ $(systemctl show --value --property LoadState vswapd.service) == not-found ]] || fail "systemd still knows the unit"
ours >after
diff before after >&2 || fail "left behind"
