// A signal handler that calls mremap, and now and then forks, in a thread that is in the middle of realloc: it needs what the interrupted
// call may just be taking, or giving back.
//   interrupts [--seconds N]
// Prints "right" and how often what happened.
#include "common.h"

#include <malloc.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { HANDLER_PAGES = 4, LEAST_BYTES = 256 << 10, FORK_EVERY = 256 };

static uint8_t *handled;
static size_t handled_pages = HANDLER_PAGES;
static volatile uint64_t signals, children;
static timer_t timer;
static Rng rng = {1};

/// Once, so that a handler that takes long is not followed by the next at once.
static void set_timer(void) {
  struct itimerspec soon = {{0, 0}, {0, 10000 + (long)rng_below(&rng, 50000)}};
  if (timer_settime(timer, 0, &soon, NULL) != 0) die("setting the timer: %s", strerror(errno));
}

static void fork_one(void) {
  pid_t child = fork();
  if (child < 0) die("fork: %s", strerror(errno));
  if (child == 0) _exit(handled[0] == 99 ? 0 : 3);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (status != 0) die("a child ended with wait status %#x", status);
  children++;
}

static void handle(int number) {
  int error = errno;
  (void)number;
  size_t pages = handled_pages == HANDLER_PAGES ? 2 * HANDLER_PAGES : HANDLER_PAGES;
  handled = mremap(handled, handled_pages * PAGE_BYTES, pages * PAGE_BYTES, MREMAP_MAYMOVE);
  if (handled == MAP_FAILED || handled[0] != 99) die("mremap in the handler: %s", strerror(errno));
  handled_pages = pages;
  signals++;
  if (signals % FORK_EVERY == 0) fork_one();
  set_timer();
  errno = error;
}

static void start_timer(void) {
  struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART};
  struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
  if (sigaction(SIGUSR1, &action, NULL) || timer_create(CLOCK_MONOTONIC, &event, &timer)) die("making the timer: %s", strerror(errno));
  set_timer();
}

int main(int argc, char **argv) {
  uint64_t seconds = 5, size = 24 << 20, calls = 0;
  const char *value;
  for (int i = 1; i < argc; i++) {
    if ((value = option_value(argc, argv, &i, "--seconds"))) seconds = parse_number("--seconds", value);
    else die("usage: interrupts [--seconds N]");
  }
  // Mappings of their own: only then realloc holds no lock of libc's that the handler's fork would wait for.
  mallopt(M_MMAP_THRESHOLD, 128 << 10);
  // More than the limit, so that something is registered.
  uint64_t *much = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  handled = mmap(NULL, HANDLER_PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (much == MAP_FAILED || handled == MAP_FAILED) die("mmap: %s", strerror(errno));
  for (uint64_t i = 0; i < size / 8; i += 512) much[i] = i + 1;
  handled[0] = 99;
  uint8_t *block = malloc(LEAST_BYTES);
  if (!block) die("malloc: %s", strerror(errno));
  block[LEAST_BYTES - 1] = 77;
  start_timer();
  uint64_t end = now_ns() + seconds * 1000000000ull;
  for (; now_ns() < end; calls++) {
    block = realloc(block, (size_t)LEAST_BYTES * (1 + (calls + 1) % 2));
    if (!block || block[LEAST_BYTES - 1] != 77) die("realloc: another page");
    uint64_t word = calls * 512 % (size / 8);
    if (much[word] != word + 1) die("another page at word %llu", (unsigned long long)word);
  }
  printf("right calls=%llu signals=%llu children=%llu\n", (unsigned long long)calls, (unsigned long long)signals, (unsigned long long)children);
  fflush(stdout);
  _exit(0);
}
