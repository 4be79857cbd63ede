// libxxhash: checks what comes back from a swap area (XXH3, 64 bits), and tells whether a page has changed (XXH3, 128 bits).
#pragma once
#include <stddef.h>
#include <xxhash.h>

static inline unsigned long long vs_hash(const void *bytes, size_t length, unsigned long long seed) {
  return XXH3_64bits_withSeed(bytes, length, seed);
}

typedef struct {
  unsigned long long low, high;
} VSHash128;

static inline VSHash128 vs_hash128(const void *bytes, size_t length, unsigned long long seed) {
  XXH128_hash_t hash = XXH3_128bits_withSeed(bytes, length, seed);
  return (VSHash128){hash.low64, hash.high64};
}
