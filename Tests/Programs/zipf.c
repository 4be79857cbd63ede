// Touches pages as skewed programs do (Zipf) and counts how often the page was there: how well eviction knows the working set.
// Beside it stands what LRU would have reached with LIMIT of the same memory on the same trace.
#include "common.h"

#include <fcntl.h>
#include <math.h>
#include <sys/mman.h>

static uint64_t seed = 1, pages, skew = 99, scan_every;
static uint8_t *memory;
static uint8_t *version;  // of each page's content

// --- the trace ---

typedef struct {
  Rng rng;
  uint64_t count, scanned;
} Trace;

static double exponent, integral_least, integral_most, surely;

static double integral(double x) { return pow(x, 1 - exponent) / (1 - exponent); }

static double integral_inverse(double y) { return pow(y * (1 - exponent), 1 / (1 - exponent)); }

static void zipf_prepare(void) {
  exponent = (double)skew / 100;
  integral_least = integral(1.5) - 1;
  integral_most = integral((double)pages + 0.5);
  surely = 2 - integral_inverse(integral(2.5) - pow(2, -exponent));
}

/// A rank from 1 on with probability ~ rank^-exponent, without a table: rejection-inversion (Hoermann and Derflinger, 1996).
static uint64_t zipf_rank(Rng *rng) {
  while (true) {
    double uniform = (double)(rng_next(rng) >> 11) * 0x1p-53;
    double y = integral_most + uniform * (integral_least - integral_most);
    double x = integral_inverse(y), rank = floor(x + 0.5);
    if (rank < 1) rank = 1;
    if (rank > (double)pages) rank = (double)pages;
    if (rank - x <= surely || y >= integral(rank + 0.5) - pow(rank, -exponent)) return (uint64_t)rank;
  }
}

/// A permutation of the pages, so that no two ranks are neighbours but by chance.
static uint64_t scatter(uint64_t rank) {
  unsigned bits = 64 - (unsigned)__builtin_clzll((pages - 1) | 3);
  uint64_t mask = (1ull << bits) - 1, x = rank;
  do
    for (uint64_t round = 0; round < 3; round++) {
      x = (x * 0x9e3779b97f4a7c15u + mix64(seed + round)) & mask;
      x ^= x >> (bits / 2);
    }
  while (x >= pages);
  return x;
}

/// `*counts`: whether a hit is to be counted. Those of the scan are not: they come by reading ahead.
static uint64_t trace_next(Trace *trace, bool *counts) {
  trace->count++;
  *counts = !scan_every || trace->count % scan_every != 0;
  return *counts ? scatter(zipf_rank(&trace->rng) - 1) : trace->scanned++ % pages;
}

// --- memory ---

static uint64_t tag_of(uint64_t page, uint64_t block) {
  return (mix64(seed + ((page * PAGE_BLOCKS + block) << 8) + version[page]) & ~3ull) | (page & 3) | 8;
}

static void page_fill(uint64_t page) {
  uint64_t *words = (uint64_t *)(void *)(memory + page * PAGE_BYTES);
  for (uint64_t b = 0; b < PAGE_BLOCKS; b++) block_fill(words + b * BLOCK_WORDS, tag_of(page, b));
}

static bool page_check(uint64_t page) {
  const uint64_t *words = (const uint64_t *)(void *)(memory + page * PAGE_BYTES);
  for (uint64_t b = 0; b < PAGE_BLOCKS; b++)
    if (block_check(words + b * BLOCK_WORDS, tag_of(page, b)) >= 0) return false;
  return true;
}

static bool is_present(int pagemap, uint64_t page) {
  uint64_t entry;
  off_t place = (off_t)((uintptr_t)memory / PAGE_BYTES + page) * 8;
  if (pread(pagemap, &entry, sizeof entry, place) != sizeof entry) die("pagemap: %s", strerror(errno));
  return entry >> 63;
}

/// Reads every page of the trace, writes one in four anew. Returns hits after the warm-up.
static uint64_t touch(uint64_t warm_up, uint64_t accesses, uint64_t *wrong) {
  int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (pagemap < 0) die("pagemap: %s", strerror(errno));
  Trace trace = {.rng = {seed}};
  uint64_t hits = 0;
  bool counts;
  for (uint64_t i = 0; i < warm_up + accesses; i++) {
    uint64_t page = trace_next(&trace, &counts);
    if (i >= warm_up && counts) hits += is_present(pagemap, page);
    if (!page_check(page) && (*wrong)++ == 0)
      dprintf(2, "zipf: FAILED seed=%llu page %llu at %p is wrong at access %llu\n", (unsigned long long)seed, (unsigned long long)page,
              (const void *)(memory + page * PAGE_BYTES), (unsigned long long)i);
    if (i % 4 == 0) {
      version[page]++;
      page_fill(page);
    }
  }
  close(pagemap);
  return hits;
}

// --- LRU ---

/// Hits of LRU with room for `room` pages, on the same accesses. The list is a ring with `pages` as its head, the latest first.
static uint64_t lru_hits(uint64_t warm_up, uint64_t accesses, uint64_t room) {
  uint32_t *next = calloc(pages + 1, sizeof *next), *previous = calloc(pages + 1, sizeof *previous), head = (uint32_t)pages;
  bool *is_in = calloc(pages, sizeof *is_in);
  if (!next || !previous || !is_in) die("no memory for the list");
  next[head] = previous[head] = head;
  Trace trace = {.rng = {seed}};
  uint64_t hits = 0, used = 0;
  bool counts = false;
  for (uint64_t i = 0; i < pages + warm_up + accesses; i++) {
    // Memory is filled in the order of its pages first.
    uint32_t page = (uint32_t)(i < pages ? i : trace_next(&trace, &counts)), out = page;
    if (is_in[page]) hits += counts && i >= pages + warm_up;
    else if (used++ >= room) out = previous[head];
    if (is_in[out]) {
      next[previous[out]] = next[out];
      previous[next[out]] = previous[out];
      is_in[out] = false;
    }
    is_in[page] = true;
    next[page] = next[head];
    previous[page] = head;
    previous[next[head]] = page;
    next[head] = page;
  }
  free(next);
  free(previous);
  free(is_in);
  return hits;
}

int main(int argc, char **argv) {
  uint64_t size = 256, limit = 64, accesses = 1000000, warm_up = 500000, wrong = 0;
  const char *value;
  for (int i = 1; i < argc; i++) {
    if ((value = option_value(argc, argv, &i, "--size"))) size = parse_number("--size", value);
    else if ((value = option_value(argc, argv, &i, "--limit"))) limit = parse_number("--limit", value);
    else if ((value = option_value(argc, argv, &i, "--accesses"))) accesses = parse_number("--accesses", value);
    else if ((value = option_value(argc, argv, &i, "--warm-up"))) warm_up = parse_number("--warm-up", value);
    else if ((value = option_value(argc, argv, &i, "--skew"))) skew = parse_number("--skew", value);
    else if ((value = option_value(argc, argv, &i, "--scan"))) scan_every = parse_number("--scan", value);
    else if ((value = option_value(argc, argv, &i, "--seed"))) seed = parse_number("--seed", value);
    else
      die("usage: zipf [--size MiB] [--limit MiB] [--accesses N] [--warm-up N] [--skew N] [--scan N] [--seed N]\n"
          "  --skew: hundredths of the exponent, 0 is uniform; --scan: each N-th access goes through memory in order");
  }
  pages = (size << 20) / PAGE_BYTES;
  if (pages < 4 || pages >= UINT32_MAX || skew == 100 || accesses < 2 || scan_every == 1) die("bad --size, --skew or --accesses");
  zipf_prepare();
  memory = mmap(NULL, size << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  version = calloc(pages, 1);
  if (memory == MAP_FAILED || !version) die("no memory");
  for (uint64_t page = 0; page < pages; page++) page_fill(page);
  uint64_t hits = touch(warm_up, accesses, &wrong);
  uint64_t counted = accesses;
  if (scan_every) counted -= (warm_up + accesses) / scan_every - warm_up / scan_every;
  uint64_t ideal = lru_hits(warm_up, accesses, (limit << 20) / PAGE_BYTES);
  printf("{\"wrong\": %llu, \"accesses\": %llu, \"hit_rate\": %.4f, \"lru_hit_rate\": %.4f}\n", (unsigned long long)wrong,
         (unsigned long long)counted, (double)hits / (double)counted, (double)ideal / (double)counted);
  return wrong ? 1 : 0;
}
