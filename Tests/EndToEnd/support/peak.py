"""Where swapped pages lay when there were most of them: peak.py CONTROL_SOCKET

Asks for the status every 50 ms until SIGTERM or until nobody answers any more, then prints as JSON the numbers of pages by where they
lay at that moment, and the most that lay in areas at any time.
"""
import http.client
import json
import os
import signal
import socket
import sys
import time


class Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=30)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def status(path):
    connection = Connection(path)
    try:
        connection.request("GET", "/v1/status")
        return json.load(connection.getresponse())
    finally:
        connection.close()


def places(s):
    return {
        "areas": sum(a["slots"] for a in s["areas"]),
        "pool": s["pool"]["objects"],
        "cache": s["cache"]["pages"],
        "zero": s["zero"]["pages"],
    }


stopping = False


def stop(*_):
    global stopping
    stopping = True


signal.signal(signal.SIGTERM, stop)
peak, most, samples = {"areas": 0, "pool": 0, "cache": 0, "zero": 0}, 0, 0
while not stopping:
    try:
        now = places(status(sys.argv[1]))
    except (OSError, http.client.HTTPException):
        break
    samples += 1
    most = max(most, now["areas"])
    if sum(now.values()) > sum(peak.values()):
        peak = now
    time.sleep(0.05)
json.dump({**peak, "total": sum(peak.values()), "most_in_areas": most, "samples": samples}, sys.stdout)
sys.stdout.flush()
# Not by way of the interpreter's end, where SIGTERM has its default meaning again.
os._exit(0)
