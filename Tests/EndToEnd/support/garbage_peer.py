"""Plays the other side of the attach socket, badly.

  garbage_peer.py serve PATH SEED     a daemon that answers every hello with garbage
  garbage_peer.py call PATH SEED N    N shims that send garbage and listen to what comes back
"""

import os
import random
import socket
import sys


def garbage(rng):
    kind = rng.randrange(4)
    if kind == 0:
        return b""
    if kind == 1:
        return rng.randbytes(rng.randrange(1, 4096))
    # The right magic and size, and nonsense behind it.
    return b"\x76\x77\x61\x70" + rng.randbytes(rng.choice([108, 172, 52, 12]))


def serve(path, rng):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen(16)
        print("ready", flush=True)
        while True:
            peer, _ = listener.accept()
            with peer:
                peer.recv(4096)
                answer = garbage(rng)
                if answer:
                    peer.send(answer)


def call(path, rng, count):
    for _ in range(count):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
            peer.settimeout(20)
            peer.connect(path)
            try:
                for _ in range(rng.randrange(1, 4)):
                    message = garbage(rng)
                    if not message:
                        break
                    if rng.randrange(4) == 0:
                        with open(os.devnull, "rb") as null:
                            socket.send_fds(peer, [message], [null.fileno()] * rng.randrange(1, 9))
                    else:
                        peer.send(message)
                peer.shutdown(socket.SHUT_WR)
                while peer.recv(4096):
                    pass
            except (BrokenPipeError, ConnectionResetError):
                pass


def main():
    rng = random.Random(int(sys.argv[3]))
    if sys.argv[1] == "serve":
        serve(sys.argv[2], rng)
    else:
        call(sys.argv[2], rng, int(sys.argv[4]))


main()
