"""Compares the habits of a program without and with vswapd: habits.py RUNTIME-DIRECTORY PROGRAM [--held] [--without NAMES] [NAME...]

Each habit (PROGRAM --list) has to print the same and end the same. Under vswapd it runs below a limit of 16M, and evictions of all that there
is are asked for all the time. With --held none are asked for, and the group must stay below twice the limit. Several run at a time.
With --commands PROGRAM is a file instead, with a name and a command of the shell in each line.
Environment: VSWAP_BIN, CASE_DIR, VSWAP_SLOWNESS. Writes evictions and faults to CASE_DIR/counts; a line for each habit that differs, status 1 then.
"""
import argparse
import concurrent.futures
import difflib
import glob
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading

LIMIT = 16 << 20
SECONDS = 100 * int(os.environ.get("VSWAP_SLOWNESS", "1"))
AT_A_TIME = 4
MARK = "VSWAP_HABIT"
binaries = os.environ["VSWAP_BIN"]


class Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=10)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def ask(path, method, route, body=None):
    connection = Connection(path)
    try:
        connection.request(method, route, json.dumps(body) if body else None)
        reply = connection.getresponse()
        return reply.status, json.load(reply)
    finally:
        connection.close()


def marked(name):
    """The processes of a habit, whatever became of their parents."""
    wanted = f"{MARK}={name}".encode()
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            with open(path, "rb") as file:
                if wanted in file.read().split(b"\0"):
                    yield int(path.split("/")[2])
        except OSError:
            pass


def describe(name):
    for pid in marked(name):
        for task in glob.glob(f"/proc/{pid}/task/*"):
            facts = []
            for fact in ("comm", "wchan", "syscall", "stack"):
                try:
                    with open(f"{task}/{fact}") as file:
                        facts.append(" < ".join(re.sub(r"^\[[^]]*\] |\+.*", "", line) for line in file.read().split("\n")[:5]))
                except OSError:
                    pass
            print(f"  process {pid} thread {os.path.basename(task)}: {'; '.join(facts)}", file=sys.stderr)


def outcome(name, command, limited):
    """How it ended and what it said; what it said on standard error."""
    environment = {**os.environ, MARK: name}
    if limited:
        environment["VSWAP_HABIT_EVICTED"] = "1"
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
        cwd=os.environ["CASE_DIR"])
    try:
        output, errors = process.communicate(timeout=SECONDS)
        status = process.returncode
        return (128 - status if status < 0 else status, output), errors
    except subprocess.TimeoutExpired:
        describe(name)
        for pid in marked(name):
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        output, errors = process.communicate()
        return ("hangs", output), errors


def difference(want, got):
    """The lines that only one of them has: - without vswapd, + with it."""
    lines = [line for line in difflib.ndiff(want[1].splitlines(), got[1].splitlines()) if line[:1] in "-+"]
    if want[0] != got[0]:
        lines += [f"- ends with {want[0]}", f"+ ends with {got[0]}"]
    return "; ".join(lines)


class Watch(threading.Thread):
    """Asks for evictions, and remembers what each group had at most."""

    def __init__(self, path, evicting):
        super().__init__(daemon=True)
        self.path, self.evicting = path, evicting
        self.ended = threading.Event()
        self.resident, self.counts = {}, {}

    def run(self):
        while not self.ended.wait(0.02 if self.evicting else 0.05):
            try:
                _, status = ask(self.path, "GET", "/v1/status")
                for group in status["groups"]:
                    name = group["id"].rsplit("-", 1)[0]
                    self.resident[name] = max(self.resident.get(name, 0), group["resident_bytes"])
                    for target in group["targets"]:
                        key = group["id"], target["pid"]
                        self.counts[key] = target["evictions"], target["faults"]
                    if self.evicting:
                        ask(self.path, "POST", "/v1/evict", {"target": group["id"]})
            except (OSError, ValueError, KeyError, http.client.HTTPException):
                pass  # the daemon says itself in the end whether it is there


def habits(program):
    """The command of each habit, below a name of its own: its group is called like it then."""
    links = f"{os.environ['CASE_DIR']}/habits"
    os.makedirs(links, exist_ok=True)
    commands = {}
    for name in subprocess.run([program, "--list"], check=True, capture_output=True, text=True).stdout.split():
        commands[name] = [f"{links}/{name}", name]
        if not os.path.exists(f"{links}/{name}"):
            os.symlink(program, f"{links}/{name}")
    return commands


def shell_commands(path):
    with open(path) as file:
        return {name: ["sh", "-c", command] for name, command in (line.split(maxsplit=1) for line in file if line.strip())}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("runtime")
    parser.add_argument("program")
    parser.add_argument("--held", action="store_true")
    parser.add_argument("--commands", action="store_true")
    parser.add_argument("--without", type=str.split, default=[], metavar="NAMES")
    parser.add_argument("names", nargs="*")
    options = parser.parse_intermixed_args()
    path = f"{options.runtime}/control.sock"
    commands = shell_commands(options.program) if options.commands else habits(options.program)
    names = [name for name in options.names or commands if name not in options.without]
    watch = Watch(path, not options.held)
    watch.start()
    run = [f"{binaries}/vswapctl", "--socket", path, "run", "--limit", str(LIMIT), "--"]

    def compare(name):
        want, _ = outcome(name, commands[name], False)
        got, errors = outcome(name, run + commands[name], True)
        return name, want, got, errors

    bad = 0
    with concurrent.futures.ThreadPoolExecutor(1 if options.held else AT_A_TIME) as pool:
        for name, want, got, errors in pool.map(compare, names):
            if got != want:
                bad += 1
                print(f"{name}: {difference(want, got)}{', says: ' + ' '.join(errors.split())[-300:] if errors.strip() else ''}", flush=True)
            elif want[0] == 77:
                print(f"# {name} {want[1].strip()}", flush=True)
            elif want[0] == "hangs":
                bad += 1
                print(f"{name}: hangs even without vswapd", flush=True)
            if options.held and watch.resident.get(name, 0) > 2 * LIMIT:
                bad += 1
                print(f"{name}: {watch.resident[name] >> 20} MiB resident under {LIMIT >> 20}M", flush=True)
    watch.ended.set()
    watch.join()
    with open(f"{os.environ['CASE_DIR']}/counts", "a") as file:
        file.write(f"{sum(c[0] for c in watch.counts.values())} {sum(c[1] for c in watch.counts.values())}\n")
    try:
        if ask(path, "GET", "/v1/status")[0] != 200:
            raise OSError("no status")
    except (OSError, ValueError) as error:
        bad += 1
        print(f"the daemon: {error}")
    return bad > 0


try:
    status = main()
except Exception as error:  # whoever only reads what was compared has to see it
    print(f"{sys.argv[1:]}: {error!r}")
    raise
sys.exit(status)
