// Threads that move, grow, shrink and unmap mappings at addresses which the kernel picks, so that each reuses at once what another has
// just left. The daemon reads the events of different threads in another order than the calls were made in; this is
// what finds out whether it notices.
//
// munmap is called without libc, as free does it, and mremap also by realloc, inside libc.
#include "common.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { MOST_THREADS = 64, MOST_PIECES = 512, MOST_PAGES = 8 };

typedef struct {
  uint8_t *at;
  uint32_t pages;
  uint64_t tag[MOST_PAGES];  // what the first words of each page hold; 0: nothing
} Piece;

typedef struct {
  pthread_t thread;
  int index;
  Rng rng;
  uint64_t moved, dropped, reallocated, checked;
  Piece piece[MOST_PIECES];
} Worker;

static _Atomic bool stop;
static Worker *workers;
static uint64_t seed;

static void failed(const char *what) { die("%s: %s", what, strerror(errno)); }

static void check(Worker *w, const Piece *p, uint32_t page) {
  uint64_t found[2];
  memcpy(found, p->at + (size_t)page * PAGE_BYTES, sizeof found);
  w->checked++;
  if (found[0] == p->tag[page] && found[1] == ~p->tag[page]) return;
  if (p->tag[page] == 0 && found[0] == 0 && found[1] == 0) return;
  fprintf(stderr, "moves: MISMATCH seed=%llu thread=%d page %u of %u at %p: expected %llx, found %llx %llx\n", (unsigned long long)seed, w->index,
          page, p->pages, (void *)(p->at + (size_t)page * PAGE_BYTES), (unsigned long long)p->tag[page], (unsigned long long)found[0],
          (unsigned long long)found[1]);
  _exit(1);
}

static void write_page(Worker *w, Piece *p, uint32_t page) {
  uint64_t words[2];
  words[0] = p->tag[page] = rng_next(&w->rng) | 1;
  words[1] = ~words[0];
  memcpy(p->at + (size_t)page * PAGE_BYTES, words, sizeof words);
}

static void make(Worker *w, Piece *p) {
  p->pages = 1 + (uint32_t)rng_below(&w->rng, MOST_PAGES);
  p->at = mmap(NULL, (size_t)p->pages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p->at == MAP_FAILED) failed("mmap");
  for (uint32_t i = 0; i < p->pages; i++) {
    p->tag[i] = 0;
    if (!rng_chance(&w->rng, 4)) write_page(w, p, i);
  }
}

static void drop(Worker *w, Piece *p) {
  if (syscall(SYS_munmap, p->at, (size_t)p->pages * PAGE_BYTES) != 0) failed("munmap");
  p->at = NULL;
  w->dropped++;
}

/// Grows or shrinks, wherever the kernel likes.
static void resize(Worker *w, Piece *p) {
  uint32_t pages = 1 + (uint32_t)rng_below(&w->rng, MOST_PAGES);
  uint8_t *at = mremap(p->at, (size_t)p->pages * PAGE_BYTES, (size_t)pages * PAGE_BYTES, MREMAP_MAYMOVE);
  if (at == MAP_FAILED) failed("mremap");
  w->moved += at != p->at;
  p->at = at;
  for (uint32_t i = p->pages; i < pages; i++) p->tag[i] = 0;
  p->pages = pages;
}

/// To a place of the kernel's choice, reserved just before.
static void move(Worker *w, Piece *p) {
  uint8_t *to = mmap(NULL, (size_t)p->pages * PAGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (to == MAP_FAILED) failed("mmap");
  uint32_t keep = rng_chance(&w->rng, 2) ? p->pages : 1 + (uint32_t)rng_below(&w->rng, p->pages);
  if (mremap(p->at, (size_t)p->pages * PAGE_BYTES, (size_t)keep * PAGE_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to) failed("mremap");
  if (keep < p->pages && syscall(SYS_munmap, to + (size_t)keep * PAGE_BYTES, (size_t)(p->pages - keep) * PAGE_BYTES) != 0) failed("munmap");
  p->at = to;
  p->pages = keep;
  w->moved++;
}

/// What the C library does with a large block, out of the preload library's sight.
static void reallocate(Worker *w) {
  size_t bytes = 200 << 10;
  uint64_t *block = malloc(bytes);
  if (!block) failed("malloc");
  uint64_t tag = rng_next(&w->rng) | 1;
  for (size_t i = 0; i < bytes / 8; i += 512) block[i] = tag + i;
  for (int round = 0; round < 4; round++) {
    size_t larger = bytes + (16 << 10) + rng_below(&w->rng, 300 << 10);
    uint64_t *again = realloc(block, larger);
    if (!again) failed("realloc");
    block = again;
    for (size_t i = 0; i < (200u << 10) / 8; i += 512)
      if (block[i] != tag + i) {
        fprintf(stderr, "moves: MISMATCH seed=%llu thread=%d after realloc: expected %llx, found %llx\n", (unsigned long long)seed, w->index,
                (unsigned long long)(tag + i), (unsigned long long)block[i]);
        _exit(1);
      }
    bytes = larger;
    w->reallocated++;
  }
  free(block);
}

static void *work(void *argument) {
  Worker *w = argument;
  while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
    Piece *p = &w->piece[rng_below(&w->rng, MOST_PIECES)];
    if (!p->at) {
      make(w, p);
      continue;
    }
    switch (rng_below(&w->rng, 40)) {
    case 0: drop(w, p); continue;
    case 1:
    case 2:
    case 3: resize(w, p); break;
    case 4:
    case 5: move(w, p); break;
    case 6: write_page(w, p, (uint32_t)rng_below(&w->rng, p->pages)); break;
    case 7:
      if (rng_chance(&w->rng, 8)) reallocate(w);
      break;
    default: break;
    }
    check(w, p, (uint32_t)rng_below(&w->rng, p->pages));
  }
  for (int i = 0; i < MOST_PIECES; i++)
    for (uint32_t page = 0; w->piece[i].at && page < w->piece[i].pages; page++) check(w, &w->piece[i], page);
  return NULL;
}

int main(int argc, char **argv) {
  int threads = 6, seconds = 5, option;
  while ((option = getopt(argc, argv, "s:t:d:")) != -1) {
    if (option == 's') seed = strtoull(optarg, NULL, 10);
    else if (option == 't') threads = atoi(optarg);
    else if (option == 'd') seconds = atoi(optarg);
    else return 2;
  }
  if (threads < 1 || threads > MOST_THREADS || seconds < 1) {
    fprintf(stderr, "usage: moves [-s SEED] [-t THREADS] [-d SECONDS]\n");
    return 2;
  }
  // Shared, so that what is expected is never evicted.
  workers = mmap(NULL, sizeof(Worker) * (size_t)threads, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (workers == MAP_FAILED) failed("mmap");
  for (int i = 0; i < threads; i++) {
    workers[i].index = i;
    workers[i].rng.state = mix64(seed + (uint64_t)i);
    if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0) failed("pthread_create");
  }
  sleep((unsigned)seconds);
  atomic_store(&stop, true);
  uint64_t moved = 0, dropped = 0, reallocated = 0, checked = 0;
  for (int i = 0; i < threads; i++) {
    pthread_join(workers[i].thread, NULL);
    moved += workers[i].moved;
    dropped += workers[i].dropped;
    reallocated += workers[i].reallocated;
    checked += workers[i].checked;
  }
  printf("moves: right seed=%llu threads=%d moved=%llu dropped=%llu reallocated=%llu checked=%llu\n", (unsigned long long)seed, threads,
         (unsigned long long)moved, (unsigned long long)dropped, (unsigned long long)reallocated, (unsigned long long)checked);
  return 0;
}
