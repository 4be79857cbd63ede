"""A large C file: large_source.py SEED FUNCTIONS FILE"""
import random
import sys

seed, functions, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
rng = random.Random(seed)
with open(path, "w") as file:
    file.write("#include <stdint.h>\n")
    for f in range(functions):
        # Much to keep in memory, and a little to optimise.
        file.write(f"static const uint64_t table{f}[1024] = {{{', '.join(str(rng.getrandbits(60)) for _ in range(1024))}}};\n")
        for i in range(20):
            file.write(f"struct part{f}_{i} {{ uint32_t a, b; const char *name; struct part{f}_{max(i - 1, 0)} *next; }};\n")
            file.write(f"static inline uint32_t get{f}_{i}(const struct part{f}_{i} *p) {{ return p ? p->a * {i + 1}u + p->b : {f}u; }}\n")
        file.write(f"uint64_t work{f}(uint32_t a, const struct part{f}_3 *p, const char *s) {{\n  uint64_t x = {rng.getrandbits(31)}u;\n")
        for i in range(4):
            file.write(f"  for (uint32_t i = 0; i < a; i++) x = x * {rng.getrandbits(16) | 1}u + table{f}[(i + {i * 7}u) & 1023];\n")
            file.write(f"  switch ((x >> {i}) & 3) {{ case 0: x ^= a; break; case 1: x += s[{i}]; break; case 2: x -= get{f}_3(p); break; }}\n")
        file.write("  return x;\n}\n")
