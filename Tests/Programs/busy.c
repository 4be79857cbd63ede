// Computes and allocates, a given amount of it: what a program pays for the preload library while it needs no swapping.
//   busy --calibrate MS    prints how many rounds take that long
//   busy --rounds N        does them
#include "common.h"

enum { BLOCKS = 256, MOST_BYTES = 256 << 10 };

static uint8_t *blocks[BLOCKS];

/// Replaces some blocks by others of 16 bytes to 256 KiB, so from the heap as well as from mappings of their own, writes all of them,
/// and reads them back.
static uint64_t round_of_work(Rng *rng, uint64_t sum) {
  for (int i = 0; i < 16; i++) {
    uint64_t k = rng_below(rng, BLOCKS), bytes = 16 + rng_log(rng, MOST_BYTES - 16);
    free(blocks[k]);
    if (!(blocks[k] = malloc(bytes))) die("no memory");
    memset(blocks[k], (int)sum, bytes);
    for (uint64_t at = 0; at + 8 <= bytes; at += 8) {
      uint64_t word;
      memcpy(&word, blocks[k] + at, 8);
      sum = mix64(sum ^ word);
    }
  }
  return sum;
}

int main(int argc, char **argv) {
  uint64_t rounds = 0, ms = 0, sum = 1;
  const char *value;
  for (int i = 1; i < argc; i++) {
    if ((value = option_value(argc, argv, &i, "--rounds"))) rounds = parse_number("--rounds", value);
    else if ((value = option_value(argc, argv, &i, "--calibrate"))) ms = parse_number("--calibrate", value);
    else die("usage: busy --rounds N | --calibrate MS");
  }
  Rng rng = {1};
  uint64_t end = now_ns() + ms * 1000000, done = 0;
  for (; done < rounds || (ms && now_ns() < end); done++) sum = round_of_work(&rng, sum);
  // The sum is used, so nothing of the work is left out.
  if (ms) printf("%llu\n", (unsigned long long)(done + (sum == 0)));
  return sum == 0;
}
