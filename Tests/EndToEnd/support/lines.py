"""Unsorted lines: lines.py SEED MEBIBYTES FILE"""
import base64
import random
import sys

seed, size, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
rng = random.Random(seed)
WIDTH = 160
with open(path, "wb") as file:
    for _ in range(size):
        text = base64.b64encode(rng.randbytes(3 << 18))
        file.write(b"\n".join(text[i:i + WIDTH - 1] for i in range(0, len(text), WIDTH - 1)))
        file.write(b"\n")
