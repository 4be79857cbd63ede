"""Flips a bit in each 16 KiB of a file, at a random place, and waits until that is on the disk: flip.py FILE SEED"""
import os
import random
import sys

STEP = 16384

rng = random.Random(int(sys.argv[2]))
file = os.open(sys.argv[1], os.O_RDWR)
for start in range(0, os.fstat(file).st_size - STEP + 1, STEP):
    offset = start + rng.randrange(STEP)
    byte = os.pread(file, 1, offset)[0]
    os.pwrite(file, bytes([byte ^ 1 << rng.randrange(8)]), offset)
os.fsync(file)
