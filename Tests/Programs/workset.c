// A program with a working set: it fills its memory, and touches pages of a part of it at random without a pause, each checked or, one
// in four, written anew. On standard output "ready PID"; then it does what lines on standard input say, each answered by one line:
//   move N       the working set begins at MiB N from now on: "moved"
//   verify       reads every page of all its memory: "right", or what is wrong, and ends with status 1
//   speed        "speed TOUCHES SECONDS": since it was asked last
//   quit         ends with status 0; so does the end of standard input
#include "common.h"

#include <poll.h>
#include <sys/mman.h>

enum { TOUCHES_A_ROUND = 512 };

static uint64_t *memory, *tags;
static uint64_t pages, first, working;

static uint64_t *page_at(uint64_t index) { return memory + index * (PAGE_BYTES / 8); }

static void fill(uint64_t index, uint64_t tag) {
  tags[index] = tag;
  for (int block = 0; block < PAGE_BLOCKS; block++) block_fill(page_at(index) + block * BLOCK_WORDS, tag);
}

static void check(uint64_t index, int block) {
  int wrong = block_check(page_at(index) + block * BLOCK_WORDS, tags[index]);
  if (wrong < 0) return;
  printf("wrong page %llu of %llu block %d word %d tag %016llx: %016llx\n", (unsigned long long)index, (unsigned long long)pages, block, wrong,
         (unsigned long long)tags[index], (unsigned long long)page_at(index)[block * BLOCK_WORDS + wrong]);
  exit(1);
}

static void verify(void) {
  for (uint64_t index = 0; index < pages; index++)
    for (int block = 0; block < PAGE_BLOCKS; block++) check(index, block);
  printf("right\n");
}

static void touch(Rng *rng) {
  for (int i = 0; i < TOUCHES_A_ROUND; i++) {
    uint64_t index = first + rng_below(rng, working);
    check(index, (int)rng_below(rng, PAGE_BLOCKS));
    if (rng_chance(rng, 4)) fill(index, tag_random(rng));
  }
}

int main(int argc, char **argv) {
  uint64_t size = 256, part = 64, seed = 1, touches = 0, since;
  const char *value;
  for (int i = 1; i < argc; i++) {
    if ((value = option_value(argc, argv, &i, "--size"))) size = parse_number("--size", value);
    else if ((value = option_value(argc, argv, &i, "--working"))) part = parse_number("--working", value);
    else if ((value = option_value(argc, argv, &i, "--seed"))) seed = parse_number("--seed", value);
    else
      die("usage: workset [--size MiB] [--working MiB] [--seed N]");
  }
  if (part == 0 || size < part || size > 1 << 20) die("--working: 1 to --size; --size: at most %d", 1 << 20);
  pages = size * 256;
  working = part * 256;
  // The tags are always in use: they are no part of what may go.
  tags = mmap(NULL, pages * sizeof *tags, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memory = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (tags == MAP_FAILED || memory == MAP_FAILED) die("mmap of %llu MiB: %s", (unsigned long long)size, strerror(errno));
  Rng rng = {mix64(seed)};
  for (uint64_t index = 0; index < pages; index++) fill(index, tag_random(&rng));
  printf("ready %d\n", getpid());
  fflush(stdout);
  since = now_ns();
  for (;;) {
    touch(&rng);
    touches += TOUCHES_A_ROUND;
    struct pollfd input = {.fd = 0, .events = POLLIN};
    if (poll(&input, 1, 0) <= 0) continue;
    // One line at a time: whoever asks waits for the answer.
    char line[128];
    ssize_t length = read(0, line, sizeof line - 1);
    if (length <= 0) return 0;
    line[length] = 0;
    line[strcspn(line, "\n")] = 0;
    unsigned long long at;
    if (sscanf(line, "move %llu", &at) == 1 && at + part <= size) {
      first = at * 256;
      printf("moved\n");
    } else if (strcmp(line, "verify") == 0) {
      verify();
    } else if (strcmp(line, "speed") == 0) {
      uint64_t now = now_ns();
      printf("speed %llu %.3f\n", (unsigned long long)touches, (double)(now - since) / 1e9);
      touches = 0;
      since = now;
    } else if (strcmp(line, "quit") == 0) {
      return 0;
    } else {
      die("'%s' is none of move N, verify, speed, quit", line);
    }
    fflush(stdout);
  }
}
