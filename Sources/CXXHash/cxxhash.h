// libxxhash: checks what comes back from a swap area. The 64-bit variant of XXH3.
#pragma once
#include <stddef.h>
#include <xxhash.h>

static inline unsigned long long vs_hash(const void *bytes, size_t length, unsigned long long seed) {
  return XXH3_64bits_withSeed(bytes, length, seed);
}
