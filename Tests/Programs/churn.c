// Threads that check and rewrite pages flat out, while somebody moves the pages about. What each page must hold is a tag in shared
// memory, which nobody evicts. Forks now and then: the child checks every page as it was at the fork, and ends.
// Says "ready PID" on standard output once all pages are written. Lines on standard input:
//   figures   "rounds N forks M", or what is wrong
//   stop      ends the threads and checks every page: "right rounds N forks M", status 0, or what is wrong, status 1
// Ends at once, with status 0, when standard input does.
#include "common.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { MOST_THREADS = 64, RUN_PAGES = 16 };

typedef struct {
  _Atomic bool wrong, stopping;
  char what[256];  // by whoever set `wrong` first
  _Atomic uint64_t rounds;
} Shared;

typedef struct {
  pthread_t thread;
  uint64_t first, pages;
  Rng rng;
} Worker;

static Shared *shared;
static uint8_t *memory;
static uint64_t *tags, *tags_at_fork;
static uint64_t pages, seed = 1, forks;
static Worker workers[MOST_THREADS];
// Held for writing by a fork: a child must not meet a page that is half written. Threads that never rest must let it in.
static pthread_rwlock_t writing = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;

static uint64_t block_tag(uint64_t tag, int block) {
  uint64_t x = tag + (uint64_t)block;
  return tag == 0 ? 0 : (mix64(x) & ~3ull) | (x & 3) | 8;
}

static void write_page(uint64_t page, uint64_t tag) {
  uint64_t *words = (uint64_t *)(void *)(memory + page * PAGE_BYTES);
  for (int b = 0; b < PAGE_BLOCKS; b++) block_fill(words + b * BLOCK_WORDS, block_tag(tag, b));
  tags[page] = tag;
}

static bool check_page(uint64_t page, const uint64_t *expected, const char *who) {
  const uint64_t *words = (const uint64_t *)(const void *)(memory + page * PAGE_BYTES);
  for (int b = 0; b < PAGE_BLOCKS; b++) {
    int word = block_check(words + b * BLOCK_WORDS, block_tag(expected[page], b));
    if (word < 0) continue;
    if (!atomic_exchange(&shared->wrong, true))
      snprintf(shared->what, sizeof shared->what, "wrong page %llu at %p, word %d is %016llx, seen by %s, seed=%llu", (unsigned long long)page,
               (const void *)words, b * BLOCK_WORDS + word, (unsigned long long)words[b * BLOCK_WORDS + word], who, (unsigned long long)seed);
    return false;
  }
  return true;
}

/// One in eight is all zero.
static uint64_t new_tag(Rng *rng) { return rng_chance(rng, 8) ? 0 : rng_next(rng) | 4; }

/// Runs of neighbours and single pages, half of them read only.
static void *churn(void *argument) {
  Worker *w = argument;
  while (!atomic_load(&shared->stopping) && !atomic_load(&shared->wrong)) {
    uint64_t first = rng_below(&w->rng, w->pages), count = rng_chance(&w->rng, 4) ? 1 + rng_below(&w->rng, RUN_PAGES) : 1;
    bool rewriting = rng_chance(&w->rng, 2);
    pthread_rwlock_rdlock(&writing);
    for (uint64_t i = first; i < first + count && i < w->pages; i++) {
      if (check_page(w->first + i, tags, "a thread") && rewriting) write_page(w->first + i, new_tag(&w->rng));
    }
    pthread_rwlock_unlock(&writing);
    atomic_fetch_add(&shared->rounds, 1);
  }
  return NULL;
}

static bool check_all(const uint64_t *expected, const char *who) {
  for (uint64_t page = 0; page < pages; page++)
    if (!check_page(page, expected, who)) return false;
  return true;
}

/// The child of a program with threads: nothing but system calls and its own memory.
static pid_t fork_checker(void) {
  pthread_rwlock_wrlock(&writing);
  memcpy(tags_at_fork, tags, pages * sizeof *tags);
  pid_t child = fork();
  if (child == 0) _exit(check_all(tags_at_fork, "a forked child") ? 0 : 1);
  pthread_rwlock_unlock(&writing);
  if (child < 0) die("fork: %s", strerror(errno));
  forks++;
  return child;
}

/// Whether the child has ended. A child that did not find all right, or could not end by itself, is wrong.
static bool reap(pid_t child, int options) {
  int status = 0;
  if (waitpid(child, &status, options) != child) return false;
  if ((!WIFEXITED(status) || WEXITSTATUS(status) != 0) && !atomic_exchange(&shared->wrong, true))
    snprintf(shared->what, sizeof shared->what, "wrong: a forked child ended with wait status %#x, seed=%llu", status, (unsigned long long)seed);
  return true;
}

/// Returns whether all is right so far.
static bool say(const char *prefix) {
  bool right = !atomic_load(&shared->wrong);
  if (right) printf("%srounds %llu forks %llu\n", prefix, (unsigned long long)atomic_load(&shared->rounds), (unsigned long long)forks);
  else printf("%s\n", shared->what);
  fflush(stdout);
  return right;
}

__attribute__((noreturn)) static void stop(uint64_t threads, pid_t child) {
  atomic_store(&shared->stopping, true);
  for (uint64_t i = 0; i < threads; i++) pthread_join(workers[i].thread, NULL);
  if (child > 0) reap(child, 0);
  check_all(tags, "the last check");
  exit(say("right ") ? 0 : 1);
}

static void *map_shared(size_t bytes) {
  void *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) die("mmap of %zu bytes: %s", bytes, strerror(errno));
  return start;
}

static void start_workers(uint64_t threads) {
  for (uint64_t i = 0; i < threads; i++) {
    Worker *w = &workers[i];
    w->first = pages / threads * i;
    w->pages = pages / threads;
    w->rng.state = mix64(seed + i);
    if ((errno = pthread_create(&w->thread, NULL, churn, w))) die("pthread_create: %s", strerror(errno));
  }
}

/// Obeys standard input, and forks every so many milliseconds unless the last child is still there.
__attribute__((noreturn)) static void serve(uint64_t threads, uint64_t fork_ms) {
  char line[64];
  pid_t child = 0;
  uint64_t next_fork = now_ns() + fork_ms * 1000000;
  for (;;) {
    struct pollfd input = {.fd = 0, .events = POLLIN};
    int ready = poll(&input, 1, fork_ms ? 5 : -1);
    if (child > 0 && reap(child, WNOHANG)) child = 0;
    if (fork_ms && child == 0 && now_ns() >= next_fork) {
      child = fork_checker();
      next_fork = now_ns() + fork_ms * 1000000;
    }
    if (ready <= 0) continue;
    ssize_t n = read(0, line, sizeof line - 1);  // whoever commands waits for the answer: one line at a time
    if (n <= 0) _exit(0);
    line[n] = 0;
    if (strcmp(line, "figures\n") == 0) say("");
    else if (strcmp(line, "stop\n") == 0) stop(threads, child);
    else die("'%s' is neither figures nor stop", line);
  }
}

int main(int argc, char **argv) {
  uint64_t size = 64, threads = 2, fork_ms = 0;
  const char *value;
  for (int i = 1; i < argc; i++) {
    if ((value = option_value(argc, argv, &i, "--size"))) size = parse_number("--size", value);
    else if ((value = option_value(argc, argv, &i, "--threads"))) threads = parse_number("--threads", value);
    else if ((value = option_value(argc, argv, &i, "--fork-ms"))) fork_ms = parse_number("--fork-ms", value);
    else if ((value = option_value(argc, argv, &i, "--seed"))) seed = parse_number("--seed", value);
    else die("usage: churn [--size MiB] [--threads N] [--fork-ms N] [--seed N]");
  }
  if (threads < 1 || threads > MOST_THREADS) die("--threads: 1...%d", MOST_THREADS);
  if (size == 0 || size > 1 << 16) die("--size: 1...%d", 1 << 16);
  pages = size * 256;
  shared = map_shared(sizeof *shared);
  tags = map_shared(pages * sizeof *tags);
  tags_at_fork = map_shared(pages * sizeof *tags);
  memory = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) die("mmap of %llu MiB: %s", (unsigned long long)size, strerror(errno));
  Rng rng = {mix64(seed)};
  for (uint64_t page = 0; page < pages; page++) write_page(page, new_tag(&rng));
  printf("ready %d\n", getpid());
  fflush(stdout);
  start_workers(threads);
  serve(threads, fork_ms);
}
