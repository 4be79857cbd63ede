"""Loads and checks a redis server over a unix socket: redis_client.py load|verify|change SOCKET KEYS SEED"""
import hashlib
import socket
import sys

WORDS = ("virtual swap slot page area group target fault evict limit pool cache zero agent ring region").split()
BATCH = 1000


def key(i):
    return b"key:%07d" % i


def value(i, seed, version):
    digest = hashlib.blake2b(b"%d/%d/%d" % (i, seed, version), digest_size=32).digest()
    text = " ".join(WORDS[b % len(WORDS)] for b in digest).encode()
    return text * (1 + digest[0] % 3) + digest.hex().encode()


def bulk(*arguments):
    out = b"*%d\r\n" % len(arguments)
    for argument in arguments:
        out += b"$%d\r\n%s\r\n" % (len(argument), argument)
    return out


def replies(stream, count):
    for _ in range(count):
        line = stream.readline()
        if line[:1] == b"$":
            size = int(line[1:])
            yield None if size < 0 else stream.read(size + 2)[:-2]
        elif line[:1] in (b"+", b":"):
            yield line[1:-2]
        else:
            sys.exit(f"redis says {line!r}")


def main():
    mode, path, keys, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    server = socket.socket(socket.AF_UNIX)
    server.connect(path)
    stream = server.makefile("rb", 1 << 20)
    wrong = 0
    for start in range(0, keys, BATCH):
        batch = range(start, min(start + BATCH, keys))
        if mode == "change":  # every fifth key gets its second version, every seventh goes
            requests = [bulk(b"SET", key(i), value(i, seed, 1)) for i in batch if i % 5 == 0]
            requests += [bulk(b"DEL", key(i)) for i in batch if i % 7 == 0]
        elif mode == "load":
            requests = [bulk(b"SET", key(i), value(i, seed, 0)) for i in batch]
        else:
            requests = [bulk(b"GET", key(i)) for i in batch]
        server.sendall(b"".join(requests))
        answers = list(replies(stream, len(requests)))
        if mode == "verify":
            wrong += sum(answer != value(i, seed, 0) for i, answer in zip(batch, answers))
    if wrong:
        sys.exit(f"{wrong} of {keys} values are wrong (seed {seed})")
    print(f"{mode}: {keys} keys, seed {seed}")


main()
