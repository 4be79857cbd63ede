// Measures what one touch of a page costs. Allocates memory of mixed content, says "ready PID" on standard output,
// waits for a line on standard input (meanwhile somebody evicts the memory), then touches each page once and prints
// the latencies as JSON. Content is verified: after each touch, or after all of them with --verify-last, so that nothing goes on
// in the time between two touches. --order stride:K goes through the memory in steps of K pages, downwards if K is below 0, then once more from the
// next page on, until all have been touched. With --threads N as many threads take turns with the touches: what one costs is measured in each,
// "seconds" is the time until the last has ended. With --cycles N all of it happens N times. The program's own tables are locked: nobody evicts
// them.
#include "content.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>

#define MOST_THREADS 64

static int by_size(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return x < y ? -1 : x > y;
}

/// The word of a page that is touched, and what a writing touch leaves there.
static size_t touched_word(uint32_t page) { return page % 500; }
static uint64_t written_word(uint64_t seed, uint32_t page) { return mix64(seed ^ ((uint64_t)page << 32)); }

static void verify_page(const uint8_t *page, uint64_t seed, uint32_t i, Content content, bool written) {
  uint64_t expected[PAGE_BYTES / 8];
  fill_page((uint8_t *)expected, seed, i, content);
  if (written) expected[touched_word(i)] = written_word(seed, i);
  if (memcmp(page, expected, PAGE_BYTES) == 0) return;
  dprintf(2, "faultlat: FAILED seed=%llu page %u at %p is wrong\n", (unsigned long long)seed, i, (const void *)page);
  _exit(1);
}

/// Memory for the program's own tables, all of it resident and locked.
static void *locked_memory(size_t bytes) {
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED) die("mmap: %s", strerror(errno));
  // Without the right to lock it is measured all the same.
  (void)!mlock(memory, bytes);
  return memory;
}

/// The order of the touches: a permutation of the pages.
static void make_plan(uint32_t *plan, uint32_t pages, const char *order, Rng *rng) {
  if (strncmp(order, "stride:", 7) == 0) {
    int64_t step = strtoll(order + 7, NULL, 10), width = step < 0 ? -step : step;
    uint32_t n = 0;
    for (int64_t first = 0; first < width; first++)
      for (int64_t i = first; i < pages; i += width) plan[n++] = (uint32_t)(step < 0 ? pages - 1 - i : i);
    return;
  }
  for (uint32_t i = 0; i < pages; i++) plan[i] = i;
  for (uint32_t i = pages - 1; strcmp(order, "random") == 0 && i > 0; i--) {
    uint32_t k = (uint32_t)rng_below(rng, i + 1), keep = plan[i];
    plan[i] = plan[k];
    plan[k] = keep;
  }
}

static bool is_order(const char *order, uint64_t pages) {
  if (strcmp(order, "random") == 0 || strcmp(order, "sequential") == 0) return true;
  if (strncmp(order, "stride:", 7) != 0) return false;
  char *end;
  long long step = strtoll(order + 7, &end, 10);
  return *end == 0 && end != order + 7 && step != 0 && step > -(long long)pages && step < (long long)pages;
}

/// What all threads share, and does not change while they touch.
typedef struct {
  uint8_t *memory;
  const uint32_t *plan;
  const uint64_t *present;
  /// Nanoseconds of each touch, by its place in the plan; 0: the page had not left.
  uint32_t *cost;
  uint64_t seed, touches, threads;
  Content content;
  bool writing, verifying_last;
  pthread_barrier_t begin;
} Work;

typedef struct {
  Work *work;
  uint64_t number;
  /// Nanoseconds at which it began and ended, and what verifying took in between.
  uint64_t start, end, verifying;
} Toucher;

/// Every so manieth touch of the plan.
static void *touch(void *argument) {
  Toucher *me = argument;
  Work *w = me->work;
  pthread_barrier_wait(&w->begin);
  me->start = now_ns();
  for (uint64_t n = me->number; n < w->touches; n += w->threads) {
    uint32_t i = w->plan[n];
    uint8_t *page = w->memory + (size_t)i * PAGE_BYTES;
    volatile uint64_t *word = (volatile uint64_t *)(void *)page + touched_word(i);
    uint64_t value = written_word(w->seed, i), before = now_ns();
    if (w->writing) *word = value;
    else (void)*word;
    uint64_t took = now_ns() - before;
    w->cost[n] = w->present[i] >> 63 ? 0 : took > UINT32_MAX ? UINT32_MAX : took == 0 ? 1 : (uint32_t)took;
    if (w->verifying_last) continue;
    before = now_ns();
    verify_page(page, w->seed, i, w->content, w->writing);
    me->verifying += now_ns() - before;
  }
  me->end = now_ns();
  return NULL;
}

/// Returns the seconds that it took, without verifying.
static double touch_all(Work *work) {
  Toucher touchers[MOST_THREADS] = {0};
  pthread_t threads[MOST_THREADS];
  uint64_t longest = 0, start = UINT64_MAX;
  if (pthread_barrier_init(&work->begin, NULL, (unsigned)work->threads) != 0) die("pthread_barrier_init fails");
  for (uint64_t n = 0; n < work->threads; n++) touchers[n] = (Toucher){.work = work, .number = n};
  for (uint64_t n = 1; n < work->threads; n++)
    if (pthread_create(&threads[n], NULL, touch, &touchers[n]) != 0) die("pthread_create fails");
  touch(&touchers[0]);
  for (uint64_t n = 1; n < work->threads; n++)
    if (pthread_join(threads[n], NULL) != 0) die("pthread_join fails");
  pthread_barrier_destroy(&work->begin);
  for (uint64_t n = 0; n < work->threads; n++)
    if (touchers[n].start < start) start = touchers[n].start;
  for (uint64_t n = 0; n < work->threads; n++) {
    uint64_t took = touchers[n].end - start - touchers[n].verifying;
    if (took > longest) longest = took;
  }
  return (double)longest / 1e9;
}

int main(int argc, char **argv) {
  uint64_t size = 64, seed = 1, cycles = 1, touches = 0, threads = 1;
  const char *value, *order = "random", *kind = "mixed";
  Content content = MIXED;
  bool wait = true, writing = false, verifying_last = false;
  for (int i = 1; i < argc; i++) {
    if ((value = option_value(argc, argv, &i, "--size"))) size = parse_number("--size", value);
    else if ((value = option_value(argc, argv, &i, "--seed"))) seed = parse_number("--seed", value);
    else if ((value = option_value(argc, argv, &i, "--cycles"))) cycles = parse_number("--cycles", value);
    else if ((value = option_value(argc, argv, &i, "--touches"))) touches = parse_number("--touches", value);
    else if ((value = option_value(argc, argv, &i, "--threads"))) threads = parse_number("--threads", value);
    else if ((value = option_value(argc, argv, &i, "--order"))) order = value;
    else if ((value = option_value(argc, argv, &i, "--content"))) kind = value;
    else if (strcmp(argv[i], "--no-wait") == 0) wait = false;
    else if (strcmp(argv[i], "--write") == 0) writing = true;
    else if (strcmp(argv[i], "--verify-last") == 0) verifying_last = true;
    else
      die("usage: faultlat [--size MiB] [--order random|sequential|stride:K] [--content mixed|text|pointers|random]\n"
          "  [--touches N] [--threads N] [--write] [--verify-last] [--cycles N] [--seed N] [--no-wait]");
  }
  if (strcmp(kind, "text") == 0) content = TEXT;
  else if (strcmp(kind, "pointers") == 0) content = POINTERS;
  else if (strcmp(kind, "random") == 0) content = RANDOM;
  else if (strcmp(kind, "mixed") != 0) die("--content: mixed, text, pointers or random");
  uint32_t pages = (uint32_t)(size * 256);
  if (pages == 0) die("--size: at least 1");
  if (!is_order(order, pages)) die("--order: random, sequential or stride:K, K pages of the memory upwards or, below 0, downwards");
  if (threads == 0 || threads > MOST_THREADS) die("--threads: 1 to %d", MOST_THREADS);
  if (touches == 0 || touches > pages) touches = pages;

  uint8_t *memory = mmap(NULL, (size_t)pages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) die("mmap: %s", strerror(errno));
  // Pages of 4 KiB, whoever evicts them. Kernels without huge pages refuse it.
  (void)madvise(memory, (size_t)pages * PAGE_BYTES, MADV_NOHUGEPAGE);
  uint32_t *plan = locked_memory((size_t)pages * 8), *cost = plan + pages;
  uint64_t *present = locked_memory((size_t)pages * 8);
  int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  for (uint32_t i = 0; i < pages; i++) fill_page(memory + (size_t)i * PAGE_BYTES, seed, i, content);
  Rng rng = {seed};

  for (uint64_t cycle = 0; cycle < cycles; cycle++) {
    make_plan(plan, pages, order, &rng);
    if (wait) {
      char line[64];
      printf("ready %d\n", getpid());
      fflush(stdout);
      ssize_t n = read(0, line, sizeof line);
      if (n <= 0) die("nobody said go");
    }
    if (pagemap < 0 || pread(pagemap, present, (size_t)pages * 8, (off_t)((uintptr_t)memory / PAGE_BYTES * 8)) != (ssize_t)pages * 8)
      die("pagemap: %s", strerror(errno));
    Work work = {memory, plan, present, cost, seed, touches, threads, content, writing, verifying_last, {{0}}};
    double seconds = touch_all(&work);
    uint32_t measured = 0, slow = 0;
    uint64_t sum = 0, slow_sum = 0;
    for (uint64_t n = 0; n < touches; n++) {
      uint32_t took = cost[n];
      if (took == 0) continue;
      cost[measured++] = took;
      sum += took;
      if (took <= 1000) continue;
      slow++;
      slow_sum += took;
    }
    if (verifying_last)
      for (uint32_t n = 0; n < touches; n++) verify_page(memory + (size_t)plan[n] * PAGE_BYTES, seed, plan[n], content, writing);
    qsort(cost, measured, sizeof *cost, by_size);
#define AT(fraction) (measured ? cost[(size_t)((measured - 1) * (fraction))] : 0)
    // Touches over 1 us, the last of the sorted costs: these were faults. The others found a page that had come along with one before.
#define FAULT_AT(fraction) (slow ? cost[measured - slow + (size_t)((slow - 1) * (fraction))] : 0)
    printf("{\"order\": \"%s\", \"content\": \"%s\", \"pages\": %u, \"threads\": %llu, \"touches\": %llu, \"absent\": %u, \"over_1us\": %u, \"p50_ns\": %u, "
           "\"p90_ns\": %u, \"p99_ns\": %u, \"p999_ns\": %u, \"max_ns\": %u, \"mean_ns\": %llu, \"mean_over_1us_ns\": %llu, "
           "\"p50_over_1us_ns\": %u, \"p99_over_1us_ns\": %u, \"seconds\": %.3f}\n",
           order, kind, pages, (unsigned long long)threads, (unsigned long long)touches, measured, slow, AT(0.5), AT(0.9), AT(0.99), AT(0.999), AT(1.0),
           (unsigned long long)(measured ? sum / measured : 0), (unsigned long long)(slow ? slow_sum / slow : 0), FAULT_AT(0.5),
           FAULT_AT(0.99), seconds);
    fflush(stdout);
  }
  return 0;
}
