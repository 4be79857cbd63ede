// Children that call mremap while they are growing up: the call waits until the library's agent has attached, and the agent changes
// what the caller is looking at meanwhile.
//   growup --children N [--seed N]
// Prints "right N", or which child ended how.
#include "common.h"

#include <sys/mman.h>
#include <sys/wait.h>

enum { BLOCK_PAGES = 64 };

__attribute__((noreturn)) static void grow_up(uint8_t *block, Rng *rng) {
  // Somewhere in the agent's way from its first instruction to the end of its handshake.
  uint64_t end = now_ns() + rng_below(rng, 2000000);
  while (now_ns() < end) {
  }
  uint8_t *moved = mremap(block, BLOCK_PAGES * PAGE_BYTES, 2 * BLOCK_PAGES * PAGE_BYTES, MREMAP_MAYMOVE);
  if (moved == MAP_FAILED) _exit(3);
  for (int i = 0; i < BLOCK_PAGES; i++)
    if (moved[i * PAGE_BYTES] != (uint8_t)(i + 1)) _exit(4);
  _exit(0);
}

int main(int argc, char **argv) {
  uint64_t children = 1000, seed = 1;
  const char *value;
  for (int i = 1; i < argc; i++) {
    if ((value = option_value(argc, argv, &i, "--children"))) children = parse_number("--children", value);
    else if ((value = option_value(argc, argv, &i, "--seed"))) seed = parse_number("--seed", value);
    else die("usage: growup --children N [--seed N]");
  }
  Rng rng = {mix64(seed)};
  uint8_t *block = mmap(NULL, BLOCK_PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (block == MAP_FAILED) die("mmap: %s", strerror(errno));
  for (int i = 0; i < BLOCK_PAGES; i++) block[i * PAGE_BYTES] = (uint8_t)(i + 1);
  for (uint64_t i = 0; i < children; i++) {
    Rng own = {rng_next(&rng)};
    pid_t child = fork();
    if (child < 0) die("fork: %s", strerror(errno));
    if (child == 0) grow_up(block, &own);
    int status = 0;
    if (waitpid(child, &status, 0) != child) die("waitpid: %s", strerror(errno));
    if (status != 0) die("child %llu ended with wait status %#x, seed=%llu", (unsigned long long)i, status, (unsigned long long)seed);
  }
  printf("right %llu\n", (unsigned long long)children);
}
