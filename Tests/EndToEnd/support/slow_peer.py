"""A client of the attach socket that takes its time.

  slow_peer.py crowd PATH USER N     N connections of that user that say nothing; prints "ready" and waits to be killed
  slow_peer.py trickle PATH VERSION  one that needs a little less than the daemon's 10 s for each of its messages; says what it was answered
"""

import os
import resource
import signal
import socket
import struct
import sys
import time


def connect(path):
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    peer.connect(path)
    return peer


def crowd(path, user, count):
    resource.setrlimit(resource.RLIMIT_NOFILE, (count + 64, count + 64))
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    peers = [connect(path) for _ in range(count)]
    print("ready", len(peers), flush=True)
    signal.pause()


def trickle(path, version):
    with connect(path) as peer:
        time.sleep(7)
        hello = struct.pack("<IIIIQQ", 0x70617776, version, 1, os.getpid(), 0, 0)
        hello += b"slow".ljust(64, b"\0") + b"slow".ljust(16, b"\0")
        socket.send_fds(peer, [hello], [os.pidfd_open(os.getpid())])
        _, descriptors, _, _ = socket.recv_fds(peer, 4096, 8)
        print("welcome", len(descriptors), flush=True)
        time.sleep(7)
        try:
            # What is wrong with this message is not looked at any more.
            peer.send(bytes(24 + 4 * 16))
        except BrokenPipeError:
            pass
        answer = peer.recv(4096)
        print("then", answer[16:].split(b"\0")[0].decode() if answer else "closed", flush=True)


if sys.argv[1] == "crowd":
    crowd(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
else:
    trickle(sys.argv[2], int(sys.argv[3]))
