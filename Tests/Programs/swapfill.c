// Memory for somebody to swap out and in again. Fills it with mixed content, says "ready PID" on standard output and
// then does what lines on standard input say, each answered by one line:
//   verify           reads every page: "right", or what is wrong, and ends with status 1
//   verify-sigbus N  the same of the first N pages (all without N), but lets pages be lost: "right N lost M"
//   cpu              "cpu USER SYSTEM": seconds that all of its threads have used so far
//   quit             ends with status 0; so does the end of standard input
#include "content.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>

static uint8_t *memory;
static uint64_t pages, seed = 1;
static sigjmp_buf lost_page;

static bool is_right(uint64_t index) {
  uint8_t expected[PAGE_BYTES];
  fill_page(expected, seed, index, MIXED);
  return memcmp(memory + index * PAGE_BYTES, expected, PAGE_BYTES) == 0;
}

__attribute__((noreturn)) static void report_wrong(uint64_t index) {
  const uint64_t *words = (const uint64_t *)(void *)(memory + index * PAGE_BYTES);
  printf("wrong page %llu of %llu at %p seed=%llu: %016llx %016llx ...\n", (unsigned long long)index, (unsigned long long)pages,
         (const void *)words, (unsigned long long)seed, (unsigned long long)words[0], (unsigned long long)words[1]);
  exit(1);
}

static void verify(void) {
  for (uint64_t i = 0; i < pages; i++)
    if (!is_right(i)) report_wrong(i);
  printf("right\n");
}

static void on_bus_error(int number) {
  (void)number;
  siglongjmp(lost_page, 1);
}

/// SA_NODEFER: a jump out of the handler must not leave the signal blocked, and saving the mask for each page costs a system call.
static void verify_sigbus(uint64_t count) {
  struct sigaction action = {.sa_handler = on_bus_error, .sa_flags = SA_NODEFER};
  sigaction(SIGBUS, &action, NULL);
  // Whoever calls this with 0 wants all that it needs of the program's own memory to be there before anything is lost.
  if (sigsetjmp(lost_page, 0) == 0) raise(SIGBUS);
  volatile uint64_t right = 0, lost = 0;
  for (volatile uint64_t i = 0; i < count; i++) {
    if (sigsetjmp(lost_page, 0) != 0) {
      lost++;
      continue;
    }
    if (!is_right(i)) report_wrong(i);
    right++;
  }
  signal(SIGBUS, SIG_DFL);
  printf("right %llu lost %llu\n", (unsigned long long)right, (unsigned long long)lost);
}

static void print_cpu(void) {
  struct rusage usage;
  if (getrusage(RUSAGE_SELF, &usage) < 0) die("getrusage: %s", strerror(errno));
  printf("cpu %ld.%06ld %ld.%06ld\n", (long)usage.ru_utime.tv_sec, (long)usage.ru_utime.tv_usec, (long)usage.ru_stime.tv_sec,
         (long)usage.ru_stime.tv_usec);
}

/// A mapping that has nothing to do with the memory above: of a sparse file, with a page touched every 2 MiB, so that
/// there are page tables for all of it. A private one is written to once: swapoff(2) walks the tables of mappings that have anonymous
/// pages, and does not look at others.
static void map_unrelated(uint64_t bytes, const char *directory, bool private) {
  char path[4096];
  snprintf(path, sizeof path, "%s/unrelated.XXXXXX", directory);
  int file = mkstemp(path);
  if (file < 0) die("%s: %s", path, strerror(errno));
  unlink(path);
  if (ftruncate(file, (off_t)bytes) < 0) die("%s: cannot be made %llu bytes long: %s", path, (unsigned long long)bytes, strerror(errno));
  int protection = private ? PROT_READ | PROT_WRITE : PROT_READ, flags = private ? MAP_PRIVATE | MAP_NORESERVE : MAP_SHARED;
  uint8_t *start = mmap(NULL, bytes, protection, flags, file, 0);
  if (start == MAP_FAILED) die("mmap of %llu bytes: %s", (unsigned long long)bytes, strerror(errno));
  close(file);
  // Without it, each touch would read the pages around it.
  if (madvise(start, bytes, MADV_RANDOM) < 0) die("madvise: %s", strerror(errno));
  for (uint64_t at = 0; at < bytes; at += 2 << 20)
    if (*(volatile uint8_t *)(start + at)) die("%s: a hole that is not zero", path);
  if (private) *(volatile uint8_t *)start = 1;
}

static void obey(const char *line) {
  unsigned long long count = pages;
  if (strcmp(line, "verify") == 0) verify();
  else if (sscanf(line, "verify-sigbus %llu", &count) == 1 || strcmp(line, "verify-sigbus") == 0)
    verify_sigbus(count < pages ? count : pages);
  else if (strcmp(line, "cpu") == 0) print_cpu();
  else if (strcmp(line, "quit") == 0) exit(0);
  else die("'%s' is none of verify, verify-sigbus [N], cpu, quit", line);
  fflush(stdout);
}

int main(int argc, char **argv) {
  uint64_t size = 64, unrelated = 0;
  const char *value, *directory = "/var/tmp";
  bool private = false;
  for (int i = 1; i < argc; i++) {
    if ((value = option_value(argc, argv, &i, "--size"))) size = parse_number("--size", value);
    else if ((value = option_value(argc, argv, &i, "--seed"))) seed = parse_number("--seed", value);
    else if ((value = option_value(argc, argv, &i, "--unrelated"))) unrelated = parse_number("--unrelated", value);
    else if ((value = option_value(argc, argv, &i, "--directory"))) directory = value;
    else if (strcmp(argv[i], "--private") == 0) private = true;
    else
      die("usage: swapfill [--size MiB] [--seed N] [--unrelated GiB [--private] [--directory DIR]]\n"
          "  --unrelated: maps a sparse file in DIR (default /var/tmp) besides, shared and read-only, or private");
  }
  if (size == 0 || size > 1 << 20) die("--size: 1...%d", 1 << 20);
  if (unrelated > 1 << 14) die("--unrelated: at most %d", 1 << 14);
  if (unrelated) map_unrelated(unrelated << 30, directory, private);
  pages = size * 256;
  memory = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) die("mmap of %llu MiB: %s", (unsigned long long)size, strerror(errno));
  for (uint64_t i = 0; i < pages; i++) fill_page(memory + i * PAGE_BYTES, seed, i, MIXED);
  printf("ready %d\n", getpid());
  fflush(stdout);
  char line[128];
  while (fgets(line, sizeof line, stdin)) {
    line[strcspn(line, "\n")] = 0;
    obey(line);
  }
  return 0;
}
