// Fills memory as fast as it can, to test that a limit holds against it. Prints the seconds it took.
#include "common.h"

#include <pthread.h>
#include <sys/mman.h>

typedef struct {
  pthread_t thread;
  uint64_t index, pages, chunk_pages, chunks;
  uint8_t **chunk;
  uint64_t wrong;
} Filler;

static enum { MODE_MMAP, MODE_MALLOC } mode = MODE_MMAP;
static bool touch_only;
static uint64_t seed = 1;

static uint64_t page_tag(const Filler *f, uint64_t page, int block) {
  return (mix64(seed + (f->index << 40) + page * PAGE_BLOCKS + (uint64_t)block) & ~3ull) | (page & 3) | 8;
}

static uint8_t *page_at(const Filler *f, uint64_t page) {
  return f->chunk[page / f->chunk_pages] + page % f->chunk_pages * PAGE_BYTES;
}

static void *fill(void *argument) {
  Filler *f = argument;
  for (uint64_t c = 0, page = 0; c < f->chunks; c++) {
    size_t bytes = f->chunk_pages * PAGE_BYTES;
    if (mode == MODE_MMAP) {
      f->chunk[c] = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (f->chunk[c] == MAP_FAILED) die("mmap of %zu bytes: %s", bytes, strerror(errno));
    } else {
      f->chunk[c] = malloc(bytes + 8);
      if (f->chunk[c] == NULL) die("malloc of %zu bytes", bytes);
    }
    for (uint64_t end = page + f->chunk_pages; page < end; page++) {
      uint64_t *words = (uint64_t *)(void *)page_at(f, page);
      if (touch_only)
        *words = page_tag(f, page, 0);
      else
        for (int b = 0; b < PAGE_BLOCKS; b++) block_fill(words + b * BLOCK_WORDS, page_tag(f, page, b));
    }
  }
  return NULL;
}

static void *verify(void *argument) {
  Filler *f = argument;
  for (uint64_t page = 0; page < f->pages; page++) {
    const uint64_t *words = (const uint64_t *)(void *)page_at(f, page);
    bool right = true;
    if (touch_only)
      right = *words == page_tag(f, page, 0);
    else
      for (int b = 0; b < PAGE_BLOCKS; b++) right = right && block_check(words + b * BLOCK_WORDS, page_tag(f, page, b)) < 0;
    if (right) continue;
    if (f->wrong++ == 0)
      dprintf(2, "fill: FAILED seed=%llu thread %llu page %llu at %p is wrong\n", (unsigned long long)seed, (unsigned long long)f->index,
              (unsigned long long)page, (const void *)words);
  }
  return NULL;
}

static void all(Filler *fillers, uint64_t threads, void *(*work)(void *)) {
  for (uint64_t i = 0; i < threads; i++)
    if ((errno = pthread_create(&fillers[i].thread, NULL, work, &fillers[i]))) die("pthread_create: %s", strerror(errno));
  for (uint64_t i = 0; i < threads; i++)
    if ((errno = pthread_join(fillers[i].thread, NULL))) die("pthread_join: %s", strerror(errno));
}

int main(int argc, char **argv) {
  uint64_t size = 256, threads = 1, chunk = 0, hold_ms = 0, wrong = 0;
  bool verifying = false;
  const char *value;
  for (int i = 1; i < argc; i++) {
    if ((value = option_value(argc, argv, &i, "--size"))) size = parse_number("--size", value);
    else if ((value = option_value(argc, argv, &i, "--threads"))) threads = parse_number("--threads", value);
    else if ((value = option_value(argc, argv, &i, "--chunk"))) chunk = parse_number("--chunk", value);
    else if ((value = option_value(argc, argv, &i, "--seed"))) seed = parse_number("--seed", value);
    else if ((value = option_value(argc, argv, &i, "--hold-ms"))) hold_ms = parse_number("--hold-ms", value);
    else if (strcmp(argv[i], "--malloc") == 0) mode = MODE_MALLOC;
    else if (strcmp(argv[i], "--touch") == 0) touch_only = true;
    else if (strcmp(argv[i], "--verify") == 0) verifying = true;
    else
      die("usage: fill [--size MiB] [--threads N] [--chunk BYTES] [--malloc] [--touch] [--verify] [--hold-ms N] [--seed N]\n"
          "  one mapping per thread, or chunks by mmap or by malloc (small ones come from the heap); --touch writes one word per page");
  }
  if (threads < 1 || threads > 256) die("--threads: 1...256");
  Filler *fillers = calloc(threads, sizeof *fillers);
  for (uint64_t i = 0; i < threads; i++) {
    Filler *f = &fillers[i];
    f->index = i;
    f->pages = (size << 20) / PAGE_BYTES / threads;
    f->chunk_pages = chunk ? (chunk + PAGE_BYTES - 1) / PAGE_BYTES : f->pages;
    f->chunks = f->pages / f->chunk_pages;
    f->pages = f->chunks * f->chunk_pages;
    f->chunk = calloc(f->chunks, sizeof *f->chunk);
    if (f->chunk == NULL || f->chunks == 0) die("--size, --threads and --chunk do not fit together");
  }
  uint64_t start = now_ns();
  all(fillers, threads, fill);
  double seconds = (double)(now_ns() - start) / 1e9;
  if (hold_ms) sleep_ms((unsigned)hold_ms);
  if (verifying) all(fillers, threads, verify);
  for (uint64_t i = 0; i < threads; i++) wrong += fillers[i].wrong;
  printf("fill: %s size=%lluM threads=%llu seconds=%.3f%s\n", wrong ? "WRONG" : "ok", (unsigned long long)size, (unsigned long long)threads,
         seconds, verifying ? " verified" : "");
  return wrong ? 1 : 0;
}
