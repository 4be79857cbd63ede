// What the test programs share: a seeded generator, content that is a function of a 64-bit tag, option parsing.
// A tag says what 512 bytes hold, so that a program can check memory without keeping a copy of it.
#pragma once

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1  // include this file first
#endif

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PAGE_BYTES = 4096, BLOCK_BYTES = 512, BLOCK_WORDS = BLOCK_BYTES / 8, PAGE_BLOCKS = PAGE_BYTES / BLOCK_BYTES };

typedef struct {
  uint64_t state;
} Rng;

static inline uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

static inline uint64_t rng_next(Rng *rng) { return mix64(rng->state += 0x9e3779b97f4a7c15u); }

static inline uint64_t rng_below(Rng *rng, uint64_t bound) { return bound ? rng_next(rng) % bound : 0; }

/// 1...most, small numbers as likely as large ones per power of two.
static inline uint64_t rng_log(Rng *rng, uint64_t most) {
  unsigned bits = 64 - (unsigned)__builtin_clzll(most | 1);
  uint64_t value = 1 + rng_below(rng, 1ull << rng_below(rng, bits + 1));
  return value > most ? most : value;
}

static inline bool rng_chance(Rng *rng, unsigned one_in) { return rng_below(rng, one_in) == 0; }

// --- content of 512 bytes, by tag ---
// 0: all zero. Else the two lowest bits name the kind: 0 the tag repeated, 1 random words (incompressible),
// 2 ascending pointers, 3 all zero but for one word. A tag that is not 0 never describes all zeros.

static inline uint64_t tag_of_kind(Rng *rng, unsigned kind) {
  uint64_t tag = (rng_next(rng) & ~3ull) | kind;
  return tag < 8 ? tag + 0x1000 : tag;
}

static inline uint64_t tag_random(Rng *rng) {
  uint64_t kind = rng_below(rng, 8);
  if (kind == 7) return 0;
  return tag_of_kind(rng, kind < 2 ? 0 : kind < 5 ? 1 : kind == 5 ? 2 : 3);
}

static inline void block_fill(uint64_t *words, uint64_t tag) {
  uint64_t x = tag;
  if (tag == 0) {
    memset(words, 0, BLOCK_BYTES);
    return;
  }
  switch (tag & 3) {
  case 0:
    for (int i = 0; i < BLOCK_WORDS; i++) words[i] = tag;
    break;
  case 1:
    for (int i = 0; i < BLOCK_WORDS; i++) {
      x ^= x << 13;
      x ^= x >> 7;
      x ^= x << 17;
      words[i] = x;
    }
    break;
  case 2:
    x = 0x7f0000000000u | (tag & 0xffffffff0u);
    for (int i = 0; i < BLOCK_WORDS; i++) words[i] = x + (uint64_t)i * 48;
    break;
  default:
    memset(words, 0, BLOCK_BYTES);
    words[(tag >> 8) % BLOCK_WORDS] = tag;
  }
}

/// The index of the first word that is not what `tag` says, or -1.
static inline int block_check(const uint64_t *words, uint64_t tag) {
  uint64_t x = tag;
  if (tag == 0) {
    for (int i = 0; i < BLOCK_WORDS; i++)
      if (words[i] != 0) return i;
    return -1;
  }
  switch (tag & 3) {
  case 0:
    for (int i = 0; i < BLOCK_WORDS; i++)
      if (words[i] != tag) return i;
    return -1;
  case 1:
    for (int i = 0; i < BLOCK_WORDS; i++) {
      x ^= x << 13;
      x ^= x >> 7;
      x ^= x << 17;
      if (words[i] != x) return i;
    }
    return -1;
  case 2:
    x = 0x7f0000000000u | (tag & 0xffffffff0u);
    for (int i = 0; i < BLOCK_WORDS; i++)
      if (words[i] != x + (uint64_t)i * 48) return i;
    return -1;
  default:
    for (int i = 0; i < BLOCK_WORDS; i++)
      if (words[i] != ((unsigned)i == (tag >> 8) % BLOCK_WORDS ? tag : 0)) return i;
    return -1;
  }
}

// --- time, options, failure ---

static inline uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void sleep_ms(unsigned ms) {
  struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};
  while (nanosleep(&t, &t) < 0 && errno == EINTR) {
  }
}

__attribute__((noreturn, format(printf, 1, 2))) static inline void die(const char *format, ...) {
  char line[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  dprintf(2, "%s: %s\n", program_invocation_short_name, line);
  _exit(2);
}

static inline uint64_t parse_number(const char *option, const char *text) {
  char *end;
  errno = 0;
  uint64_t value = strtoull(text, &end, 0);
  if (errno || end == text || *end || *text == '-') die("%s: '%s' is not a number", option, text);
  return value;
}

/// The value of option `name` when argv[*i] is that option: "--name VALUE"; moves *i to the value.
static inline const char *option_value(int argc, char **argv, int *i, const char *name) {
  if (strcmp(argv[*i], name) != 0) return NULL;
  if (*i + 1 >= argc) die("%s needs a value", name);
  return argv[++*i];
}
