"""Large dictionaries and lists; prints a hash of all of it: work.py SEED ENTRIES"""
import hashlib
import random
import sys

seed, entries = int(sys.argv[1]), int(sys.argv[2])
rng = random.Random(seed)
table = {}
for i in range(entries):
    table[f"entry-{i * 7919 % entries:08d}"] = [i, rng.random(), f"{rng.getrandbits(256):064x}" + "swap" * (i % 40)]
for i in range(0, entries, 3):
    del table[f"entry-{i:08d}"]
rows = sorted(table.values(), key=lambda row: row[2])
columns = [list(column) for column in zip(*rows)]
index = {}
for row in rows:
    index.setdefault(row[2][:2], []).append(row)
digest = hashlib.sha256()
for name in rng.sample(sorted(table), len(table) // 4):
    digest.update(repr(table[name]).encode())
for prefix in sorted(index):
    digest.update(f"{prefix} {len(index[prefix])} {sum(row[0] for row in index[prefix])}".encode())
digest.update(repr([sum(columns[0]), round(sum(columns[1]), 6), len(columns[2])]).encode())
print(len(table), digest.hexdigest())
