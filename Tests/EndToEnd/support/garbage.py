"""Sends garbage to both sockets of a daemon: garbage.py RUNTIME-DIRECTORY SEED"""
import array
import os
import random
import socket
import sys

runtime, seed = sys.argv[1], int(sys.argv[2])
rng = random.Random(seed)


def exchange(kind, name, message, descriptors=()):
    with socket.socket(socket.AF_UNIX, kind) as peer:
        peer.settimeout(0.1)
        try:
            peer.connect(f"{runtime}/{name}")
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            peer.sendmsg([message], ancillary)
            if rng.random() < 0.5:
                return peer.recv(65536)
        except (BrokenPipeError, ConnectionResetError, ConnectionRefusedError, socket.timeout):
            pass
        return b""


hello = (0x70617776).to_bytes(4, "little")
null = os.open("/dev/null", os.O_RDWR)
for i in range(300):
    message = rng.randbytes(rng.choice([0, 1, 4, 31, 112, 113, 176, 4096]))
    if i % 3 == 0:
        message = hello + (1).to_bytes(4, "little") + rng.choice([0, 1, 2, 3]).to_bytes(4, "little") + message[12:112].ljust(100, b"\0")
    exchange(socket.SOCK_SEQPACKET, "attach.sock", message, [null] * rng.choice([0, 0, 1, 3]))
texts = [
    b"GET /v1/status", b"GET /v1/nothing HTTP/1.1\r\nHost: x\r\n\r\n", b"POST /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    b"POST /v1/evict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{\"target\"", b"POST /v1/evict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
    b"\0" * 5000, b"GET /" + b"x" * 100000 + b" HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]
for i in range(100):
    exchange(socket.SOCK_STREAM, "control.sock", rng.choice(texts + [rng.randbytes(500)]))
print(f"garbage sent, seed {seed}")
