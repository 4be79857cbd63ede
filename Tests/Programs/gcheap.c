// What a garbage collector does to memory, with every object checked: threads allocate in nurseries, copy what is
// alive into old regions, discard nurseries with MADV_DONTNEED, evacuate sparse regions, move large objects with
// mremap. A marker thread walks the heaps of the others meanwhile.
//
// What each object must hold follows from its root entry; those live in a shared mapping that cannot be evicted.
#include "common.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>

enum {
  NURSERY_BYTES = 1 << 20,
  REGION_BYTES = 256 << 10,
  MOST_REGIONS = 4096,
  MOST_ROOTS = 1 << 16,
  SMALL_BYTES = 8 << 10,   // larger ones get mappings of their own
  LARGE_BYTES = 512 << 10,
  MOST_THREADS = 32,
};

typedef struct {
  uint64_t id, bytes;  // and the payload behind it, in 8-byte words that follow from the id
} Object;

typedef struct {
  uint64_t id, bytes;
  Object *at;
  int32_t region;  // -1: nursery, -2: mapping of its own
} Root;

typedef struct {
  uint8_t *base;
  uint64_t used, live;
} Region;

typedef struct {
  pthread_mutex_t lock;
  pthread_t thread;
  Rng rng;
  int index;
  uint8_t *nursery;
  uint64_t nursery_used, live, live_most, next_id;
  int32_t filling;  // region that survivors are copied to, or -1
  uint64_t allocated, copied, moved, discarded, evacuated, checked;
  Region region[MOST_REGIONS];
  uint32_t roots;
  Root root[MOST_ROOTS];
} Heap;

static Heap *heaps;
static uint64_t seed;
static _Atomic bool stop;

static uint64_t payload_word(uint64_t id, uint64_t i) {
  switch (id & 3) {
  case 0: return id;
  case 1: return mix64(id + i);
  case 2: return 0x7f0000000000u + (id << 12) + i * 16;
  default: return i % 16 ? 0 : id;
  }
}

__attribute__((noreturn)) static void wrong(Heap *h, const Root *r, const char *what, uint64_t offset, uint64_t expected, uint64_t found) {
  dprintf(2, "gcheap: FAILED seed=%llu thread=%d object %llu of %llu bytes at %p, %s, offset %llu: expected %016llx, found %016llx\n",
          (unsigned long long)seed, h->index, (unsigned long long)r->id, (unsigned long long)r->bytes, (void *)r->at, what,
          (unsigned long long)offset, (unsigned long long)expected, (unsigned long long)found);
  _exit(1);
}

static void check(Heap *h, const Root *r, const char *when) {
  const uint64_t *words = (const uint64_t *)(r->at + 1);
  if (r->at->id != r->id) wrong(h, r, when, 0, r->id, r->at->id);
  if (r->at->bytes != r->bytes) wrong(h, r, when, 8, r->bytes, r->at->bytes);
  for (uint64_t i = 0; i < (r->bytes - sizeof(Object)) / 8; i++)
    if (words[i] != payload_word(r->id, i)) wrong(h, r, when, sizeof(Object) + i * 8, payload_word(r->id, i), words[i]);
  h->checked++;
}

static void *map(uint64_t bytes) {
  void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) die("mmap of %llu bytes: %s", (unsigned long long)bytes, strerror(errno));
  return at;
}

static uint64_t mapping_bytes(uint64_t bytes) { return (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES; }

static void release(Heap *h, Root *r) {
  h->live -= r->bytes;
  if (r->region >= 0) h->region[r->region].live -= r->bytes;
  if (r->region == -2 && munmap(r->at, mapping_bytes(r->bytes))) die("munmap: %s", strerror(errno));
  *r = h->root[--h->roots];
}

/// Copies an object to the region being filled.
static void evacuate(Heap *h, Root *r) {
  Region *to = h->filling >= 0 ? &h->region[h->filling] : NULL;
  if (to == NULL || to->used + r->bytes > REGION_BYTES) {
    int32_t i = 0;
    while (i < MOST_REGIONS && h->region[i].used) i++;
    if (i == MOST_REGIONS) die("too many regions");
    h->filling = i;
    to = &h->region[i];
    if (to->base == NULL) to->base = map(REGION_BYTES);
  }
  memcpy(to->base + to->used, r->at, r->bytes);
  if (r->region >= 0) h->region[r->region].live -= r->bytes;
  r->at = (Object *)(void *)(to->base + to->used);
  r->region = h->filling;
  to->used += r->bytes;
  to->live += r->bytes;
}

static void discard(Heap *h, uint8_t *base, uint64_t bytes) {
  if (madvise(base, bytes, MADV_DONTNEED)) die("MADV_DONTNEED: %s", strerror(errno));
  h->discarded += bytes;
  for (int n = 0; n < 4; n++) {
    uint64_t *word = (uint64_t *)(void *)(base + rng_below(&h->rng, bytes / 8) * 8);
    if (*word) {
      dprintf(2, "gcheap: FAILED seed=%llu thread=%d discarded memory at %p holds %016llx\n", (unsigned long long)seed, h->index,
              (void *)word, (unsigned long long)*word);
      _exit(1);
    }
  }
}

static void collect(Heap *h) {
  for (uint32_t i = 0; i < h->roots; i++)
    if (h->root[i].region == -1) {
      check(h, &h->root[i], "in the nursery");
      evacuate(h, &h->root[i]);
      h->copied++;
    }
  discard(h, h->nursery, NURSERY_BYTES);
  h->nursery_used = 0;
  // Sparse regions.
  for (int32_t i = 0; i < MOST_REGIONS; i++) {
    Region *from = &h->region[i];
    if (i == h->filling || from->used < REGION_BYTES / 2 || from->live > from->used / 2) continue;
    for (uint32_t k = 0; k < h->roots; k++)
      if (h->root[k].region == i) {
        check(h, &h->root[k], "in an old region");
        evacuate(h, &h->root[k]);
        h->evacuated++;
      }
    if (from->live) die("region accounting is wrong");
    from->used = 0;
    if (rng_chance(&h->rng, 3)) {
      if (munmap(from->base, REGION_BYTES)) die("munmap: %s", strerror(errno));
      from->base = NULL;
    } else {
      discard(h, from->base, REGION_BYTES);
    }
  }
  // Compaction of large objects: moved without copying.
  for (uint32_t i = 0; i < h->roots; i++) {
    Root *r = &h->root[i];
    if (r->region != -2 || !rng_chance(&h->rng, 4)) continue;
    uint64_t bytes = mapping_bytes(r->bytes);
    void *place = map(bytes), *at = mremap(r->at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, place);
    if (at != place) die("mremap: %s", strerror(errno));
    r->at = at;
    h->moved++;
    if (rng_chance(&h->rng, 4)) check(h, r, "after a move");
  }
}

static void allocate(Heap *h) {
  bool large = rng_chance(&h->rng, 200);
  uint64_t bytes = sizeof(Object) + 8 * rng_log(&h->rng, ((large ? LARGE_BYTES : SMALL_BYTES) - sizeof(Object)) / 8);
  if (large && bytes < SMALL_BYTES) bytes += SMALL_BYTES;
  while (h->roots == MOST_ROOTS || h->live + bytes > h->live_most) {
    Root *r = &h->root[rng_below(&h->rng, h->roots)];
    check(h, r, "when it dies");
    release(h, r);
  }
  if (!large && h->nursery_used + bytes > NURSERY_BYTES) collect(h);
  Root *r = &h->root[h->roots++];
  r->id = h->next_id++;
  r->bytes = bytes;
  r->region = large ? -2 : -1;
  r->at = large ? map(mapping_bytes(bytes)) : (Object *)(void *)(h->nursery + h->nursery_used);
  if (!large) h->nursery_used += bytes;
  h->live += bytes;
  h->allocated++;
  uint64_t *words = (uint64_t *)(r->at + 1);
  for (uint64_t i = 0; i < (bytes - sizeof(Object)) / 8; i++) {
    if (i % 64 == 0 && words[i]) wrong(h, r, "fresh memory", sizeof(Object) + i * 8, 0, words[i]);
    words[i] = payload_word(r->id, i);
  }
  r->at->id = r->id;
  r->at->bytes = bytes;
}

static void *run(void *argument) {
  Heap *h = argument;
  while (!atomic_load(&stop)) {
    pthread_mutex_lock(&h->lock);
    for (int i = 0; i < 64; i++) {
      allocate(h);
      if (rng_chance(&h->rng, 4)) check(h, &h->root[rng_below(&h->rng, h->roots)], "at a random access");
    }
    pthread_mutex_unlock(&h->lock);
  }
  return NULL;
}

int main(int argc, char **argv) {
  uint64_t threads = 2, seconds = 5, size = 64;
  const char *value;
  seed = now_ns() ^ (uint64_t)getpid() << 32;
  for (int i = 1; i < argc; i++) {
    if ((value = option_value(argc, argv, &i, "--seed"))) seed = parse_number("--seed", value);
    else if ((value = option_value(argc, argv, &i, "--threads"))) threads = parse_number("--threads", value);
    else if ((value = option_value(argc, argv, &i, "--seconds"))) seconds = parse_number("--seconds", value);
    else if ((value = option_value(argc, argv, &i, "--size"))) size = parse_number("--size", value);
    else die("usage: gcheap [--seed N] [--threads N] [--seconds N] [--size MiB]");
  }
  if (threads < 1 || threads > MOST_THREADS) die("--threads: 1...%d", MOST_THREADS);
  heaps = mmap(NULL, threads * sizeof(Heap), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (heaps == MAP_FAILED) die("mmap: %s", strerror(errno));
  uint64_t start = now_ns();
  Rng seeds = {seed};
  for (uint64_t i = 0; i < threads; i++) {
    Heap *h = &heaps[i];
    pthread_mutex_init(&h->lock, NULL);
    h->index = (int)i;
    h->rng.state = rng_next(&seeds);
    h->nursery = map(NURSERY_BYTES);
    h->live_most = (size << 20) / threads * 3 / 5;  // old regions are half full on average
    h->next_id = (i << 40) + 16;
    h->filling = -1;
    if ((errno = pthread_create(&h->thread, NULL, run, h))) die("pthread_create: %s", strerror(errno));
  }
  // The marker.
  Rng rng = {rng_next(&seeds)};
  while (now_ns() - start < seconds * 1000000000u) {
    Heap *h = &heaps[rng_below(&rng, threads)];
    pthread_mutex_lock(&h->lock);
    for (uint32_t n = 0; n < 256 && h->roots; n++) check(h, &h->root[rng_below(&rng, h->roots)], "by the marker");
    pthread_mutex_unlock(&h->lock);
    sleep_ms(5);
  }
  atomic_store(&stop, true);
  uint64_t allocated = 0, copied = 0, moved = 0, discarded = 0, evacuated = 0, checked = 0, live = 0;
  for (uint64_t i = 0; i < threads; i++) {
    Heap *h = &heaps[i];
    if ((errno = pthread_join(h->thread, NULL))) die("pthread_join: %s", strerror(errno));
    for (uint32_t k = 0; k < h->roots; k++) check(h, &h->root[k], "at the end");
    allocated += h->allocated;
    copied += h->copied;
    moved += h->moved;
    discarded += h->discarded;
    evacuated += h->evacuated;
    checked += h->checked;
    live += h->live;
  }
  printf("gcheap: ok seed=%llu threads=%llu live=%lluM allocated=%llu copied=%llu evacuated=%llu moved=%llu discarded=%lluM checked=%llu\n",
         (unsigned long long)seed, (unsigned long long)threads, (unsigned long long)(live >> 20), (unsigned long long)allocated,
         (unsigned long long)copied, (unsigned long long)evacuated, (unsigned long long)moved, (unsigned long long)(discarded >> 20),
         (unsigned long long)checked);
  return 0;
}
