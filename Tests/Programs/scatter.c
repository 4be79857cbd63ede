// One page in every 2 MiB of a sparse mapping: each needs a piece of the daemon's page table to itself. Says "ready PID" on standard
// output and then does what lines on standard input say, each answered by one line:
//   fill      writes every page, the second time with another content: "right"
//   verify    reads every page: "right", or what is wrong, and ends with status 1
//   fork N    as many children, one after the other, each of which reads every page: "right", or which child ended how
//   quit      ends with status 0; so does the end of standard input
#include "content.h"

#include <sys/mman.h>
#include <sys/wait.h>

static const size_t step = (size_t)2 << 20;
static uint8_t *memory;
static uint64_t pieces = 1024, seed = 1, fills;

static uint8_t *page_of(uint64_t piece) { return memory + piece * step + piece % 512 * PAGE_BYTES; }

static void fill(void) {
  fills++;
  for (uint64_t i = 0; i < pieces; i++) fill_page(page_of(i), seed + fills, i, MIXED);
}

/// The first piece that is wrong, or `pieces`.
static uint64_t first_wrong(void) {
  uint8_t expected[PAGE_BYTES];
  for (uint64_t i = 0; i < pieces; i++) {
    fill_page(expected, seed + fills, i, MIXED);
    if (memcmp(page_of(i), expected, PAGE_BYTES) != 0) return i;
  }
  return pieces;
}

static void verify(void) {
  uint64_t wrong = first_wrong();
  if (wrong < pieces) {
    printf("wrong page %llu of %llu seed=%llu\n", (unsigned long long)wrong, (unsigned long long)pieces, (unsigned long long)seed);
    exit(1);
  }
}

static void fork_children(unsigned long long count) {
  for (unsigned long long number = 0; number < count; number++) {
    pid_t child = fork();
    if (child < 0) die("fork: %s", strerror(errno));
    if (child == 0) _exit(first_wrong() < pieces ? 9 : 0);
    int status;
    if (waitpid(child, &status, 0) != child) die("waitpid: %s", strerror(errno));
    if (status == 0) continue;
    printf("child %llu ended with wait status %#x seed=%llu\n", number, (unsigned)status, (unsigned long long)seed);
    exit(1);
  }
}

static void obey(const char *line) {
  unsigned long long count;
  if (strcmp(line, "fill") == 0) fill();
  else if (strcmp(line, "verify") == 0) verify();
  else if (sscanf(line, "fork %llu", &count) == 1) fork_children(count);
  else if (strcmp(line, "quit") == 0) exit(0);
  else die("'%s' is none of fill, verify, fork N, quit", line);
  printf("right\n");
  fflush(stdout);
}

int main(int argc, char **argv) {
  const char *value;
  for (int i = 1; i < argc; i++) {
    if ((value = option_value(argc, argv, &i, "--pieces"))) pieces = parse_number("--pieces", value);
    else if ((value = option_value(argc, argv, &i, "--seed"))) seed = parse_number("--seed", value);
    else die("usage: scatter [--pieces N] [--seed N]");
  }
  if (pieces == 0 || pieces > 1 << 16) die("--pieces: 1...%d", 1 << 16);
  // A piece more, so that it does not matter where the pieces of the page table begin.
  memory = mmap(NULL, (pieces + 1) * step, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) die("mmap of %llu pieces: %s", (unsigned long long)pieces, strerror(errno));
  if (madvise(memory, (pieces + 1) * step, MADV_NOHUGEPAGE) != 0 && errno != EINVAL) die("madvise: %s", strerror(errno));
  printf("ready %d\n", getpid());
  fflush(stdout);
  char line[128];
  while (fgets(line, sizeof line, stdin)) {
    line[strcspn(line, "\n")] = 0;
    obey(line);
  }
  return 0;
}
