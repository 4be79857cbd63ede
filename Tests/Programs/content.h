// Pages like those of real programs, which compress to somewhat less than half: text, objects full of pointers, random bytes.
#pragma once

#include "common.h"

typedef enum { TEXT, POINTERS, RANDOM, MIXED } Content;

static inline void fill_text(uint8_t *page, Rng *rng) {
  static const char *const words[] = {"the ",    "virtual ", "swap ",   "slot ",    "of ",     "a ",      "page ",   "is ",
                                      "backed ", "by ",      "memory ", "or ",      "an ",     "area ",   "and ",    "faults ",
                                      "target ", "limit ",   "kernel ", "process ", "region ", "resident ", "group ", "evicted "};
  size_t used = 0;
  while (used < PAGE_BYTES) {
    const char *word = words[rng_below(rng, sizeof words / sizeof *words)];
    for (; *word && used < PAGE_BYTES; word++) page[used++] = (uint8_t)*word;
    if (used < PAGE_BYTES && rng_chance(rng, 6)) page[used++] = (uint8_t)('0' + rng_below(rng, 10));
  }
}

/// Objects of 32 bytes: two pointers, a small number, a counter.
static inline void fill_pointers(uint8_t *page, Rng *rng, uint64_t index) {
  for (int i = 0; i < PAGE_BYTES / 32; i++) {
    uint64_t object[4] = {0x7f3a00000000u + rng_below(rng, 1 << 22) * 16, 0x7f3a00000000u + (index * 128 + (uint64_t)i) * 32,
                          rng_below(rng, 1000), (uint64_t)i};
    memcpy(page + i * 32, object, 32);
  }
}

/// The content of page `index`, a function of the seed.
static inline void fill_page(uint8_t *page, uint64_t seed, uint64_t index, Content content) {
  Rng rng = {mix64(seed + index * 0x9e37)};
  if (content == MIXED) content = (Content)(index * 10 / 4 % 3 == 2 && index % 2 ? RANDOM : index % 2 ? TEXT : POINTERS);
  switch (content) {
  case TEXT: fill_text(page, &rng); break;
  case POINTERS: fill_pointers(page, &rng, index); break;
  default:
    for (int i = 0; i < PAGE_BYTES / 8; i++) {
      uint64_t word = rng_next(&rng);
      memcpy(page + i * 8, &word, 8);
    }
  }
}
