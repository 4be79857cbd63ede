"""Clients of the control socket that keep the daemon busy, and one that asks for the status meanwhile.

  slow_control.py PATH PID

60 wait for a restore of PID, 64 say nothing, 32 stop in the middle of a request, 32 do not read their answer. Prints the longest time that
the status and the metrics took, in milliseconds.
"""

import json
import socket
import sys
import time


def connect(path):
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(path)
    return peer


def request(method, path, body=None):
    text = "" if body is None else json.dumps(body)
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()


def ask(path, what):
    start = time.monotonic()
    with connect(path) as peer:
        peer.sendall(request("GET", what).replace(b"Host: x", b"Connection: close"))
        answer = b""
        while part := peer.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
    return (time.monotonic() - start) * 1000


def main():
    path, pid = sys.argv[1], int(sys.argv[2])
    restores = []
    for _ in range(60):
        restores.append(connect(path))
        restores[-1].sendall(request("POST", "/v1/restore", {"target": pid}))
    kept = [connect(path) for _ in range(64)]
    for _ in range(32):
        kept.append(connect(path))
        kept[-1].sendall(b"POST /v1/evict HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
        kept.append(connect(path))
        kept[-1].sendall(request("GET", "/v1/status") * 100)
    worst = max(ask(path, what) for _ in range(10) for what in ("/v1/status", "/metrics"))
    print(f"{worst:.1f}", flush=True)
    print(sum(1 for peer in restores if is_open(peer)), "restores are under way", file=sys.stderr)


def is_open(peer):
    peer.setblocking(False)
    try:
        return peer.recv(1, socket.MSG_PEEK) == b"x"
    except BlockingIOError:
        return True


main()
