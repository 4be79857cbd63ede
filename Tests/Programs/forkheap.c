// Forks with an allocator of its own, whose fork handlers come after those of the preload library: it is locked in the child until they
// have run. And children made by _Fork and clone, for which no handler runs, while another thread calls mremap.
//   forkheap --children N [--size MiB] [--seed N]
// Prints "right N", or which child ended how.
#include "common.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { HEADER_BYTES = 16, CLASSES = 40, MOST_BLOCKS = 1 << 16, RANGE_PAGES = 256, WAIT_SECONDS = 20 };
static const size_t arena_bytes = (size_t)1 << 30;

// --- the allocator: powers of two from one mapping ---

typedef struct Free {
  struct Free *next;
} Free;

static pthread_mutex_t arena_lock = PTHREAD_MUTEX_INITIALIZER;
static uint8_t *arena;
static size_t arena_used;
static Free *free_blocks[CLASSES];

static unsigned class_of(size_t size) { return size <= 16 ? 4 : 64 - (unsigned)__builtin_clzll(size - 1); }

static void *carve(unsigned class) {
  size_t bytes = ((size_t)1 << class) + HEADER_BYTES;
  if (!arena) arena = mmap(NULL, arena_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (arena == MAP_FAILED || class >= CLASSES || bytes > arena_bytes - arena_used) return NULL;
  uint8_t *block = arena + arena_used + HEADER_BYTES;
  arena_used += bytes;
  memcpy(block - HEADER_BYTES, &class, sizeof class);
  return block;
}

void *malloc(size_t size) {
  unsigned class = class_of(size);
  pthread_mutex_lock(&arena_lock);
  Free *block = class < CLASSES ? free_blocks[class] : NULL;
  if (block) free_blocks[class] = block->next;
  else block = carve(class);
  pthread_mutex_unlock(&arena_lock);
  if (!block) errno = ENOMEM;
  return block;
}

static unsigned class_of_block(const void *block) {
  unsigned class;
  memcpy(&class, (const uint8_t *)block - HEADER_BYTES, sizeof class);
  return class;
}

void free(void *block) {
  if (!block) return;
  Free **list = &free_blocks[class_of_block(block)];
  pthread_mutex_lock(&arena_lock);
  ((Free *)block)->next = *list;
  *list = block;
  pthread_mutex_unlock(&arena_lock);
}

void *calloc(size_t count, size_t size) {
  size_t bytes;
  if (__builtin_mul_overflow(count, size, &bytes)) return NULL;
  void *block = malloc(bytes);
  // A call that the compiler does not turn into one of calloc.
  if (block) explicit_bzero(block, bytes);
  return block;
}

void *realloc(void *block, size_t size) {
  if (!block) return malloc(size);
  size_t had = (size_t)1 << class_of_block(block);
  if (size <= had) return block;
  void *larger = malloc(size);
  if (larger) memcpy(larger, block, had);
  if (larger) free(block);
  return larger;
}

static void lock_arena(void) { pthread_mutex_lock(&arena_lock); }
static void unlock_arena(void) { pthread_mutex_unlock(&arena_lock); }

// --- what is checked ---

static uint64_t *block_at[MOST_BLOCKS];
static uint64_t tag_at[MOST_BLOCKS];
static uint32_t blocks;
static uint8_t *range;
static uint64_t seed;
static _Atomic bool stop;

static uint64_t *new_block(uint64_t tag) {
  uint64_t *block = malloc(PAGE_BYTES - HEADER_BYTES);
  if (!block) _exit(3);
  block_fill(block, tag);
  return block;
}

static void check_inherited(Rng *rng, unsigned count) {
  for (unsigned i = 0; i < count; i++) {
    uint64_t which = rng_below(rng, blocks);
    if (block_check(block_at[which], tag_at[which]) >= 0) _exit(4);
  }
}

/// A child with all its handlers run.
static void use_heap(Rng *rng) {
  uint64_t *mine[64], tag[64];
  check_inherited(rng, 64);
  for (int i = 0; i < 64; i++) mine[i] = new_block(tag[i] = tag_random(rng));
  for (int i = 0; i < 64; i++) {
    if (block_check(mine[i], tag[i]) >= 0) _exit(5);
    free(mine[i]);
  }
}

static void check_range(const uint8_t *at, uint32_t first) {
  for (uint32_t page = first; page < RANGE_PAGES; page++)
    if (at[(size_t)page * PAGE_BYTES] != (uint8_t)(page | 1)) _exit(6);
}

static int wait_for(pid_t child) {
  int status = 0;
  uint64_t end = now_ns() + WAIT_SECONDS * 1000000000ull;
  while (waitpid(child, &status, WNOHANG) == 0) {
    if (now_ns() > end) {
      kill(child, SIGKILL);
      waitpid(child, &status, 0);
      return -1;
    }
    usleep(200);
  }
  return status;
}

/// A child without any handlers run: it may not use the heap, but fork, and that child may use it.
static void use_memory(Rng *rng) {
  check_inherited(rng, 64);
  if (madvise(range, PAGE_BYTES * RANGE_PAGES / 2, MADV_FREE) != 0) _exit(7);
  range[0] = 77;
  uint8_t *moved = mremap(range, RANGE_PAGES * PAGE_BYTES, 2 * RANGE_PAGES * PAGE_BYTES, MREMAP_MAYMOVE);
  if (moved == MAP_FAILED) _exit(8);
  if (moved[0] != 77 || moved[RANGE_PAGES * PAGE_BYTES] != 0) _exit(9);
  check_range(moved, RANGE_PAGES / 2);
  pid_t child = fork();
  if (child < 0) _exit(10);
  if (child == 0) {
    use_heap(rng);
    moved = mremap(moved, 2 * RANGE_PAGES * PAGE_BYTES, RANGE_PAGES * PAGE_BYTES, MREMAP_MAYMOVE);
    if (moved == MAP_FAILED) _exit(11);
    check_range(moved, RANGE_PAGES / 2);
    _exit(0);
  }
  int status = wait_for(child);
  if (status != 0) _exit(status == -1 ? 12 : 13);
}

/// Holds whatever mremap holds, most of the time.
static void *keep_moving(void *argument) {
  size_t bytes = 4 * PAGE_BYTES;
  uint8_t *at = argument;
  while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
    size_t other = bytes == 4 * PAGE_BYTES ? 8 * PAGE_BYTES : 4 * PAGE_BYTES;
    at = mremap(at, bytes, other, MREMAP_MAYMOVE);
    if (at == MAP_FAILED) die("mremap: %s", strerror(errno));
    bytes = other;
    if (at[0] != 99) die("what was moved is another page");
  }
  return NULL;
}

static void *map_pages(uint64_t pages) {
  void *at = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) die("mmap: %s", strerror(errno));
  return at;
}

static void fork_one(uint64_t number, Rng *own) {
  pid_t child = number % 3 == 0 ? fork() : number % 3 == 1 ? _Fork() : (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
  if (child < 0) die("fork: %s", strerror(errno));
  if (child == 0) {
    if (number % 3 == 0) use_heap(own);
    else use_memory(own);
    _exit(0);
  }
  int status = wait_for(child);
  if (status == 0) return;
  if (status == -1) die("child %llu did not end, seed=%llu", (unsigned long long)number, (unsigned long long)seed);
  die("child %llu ended with wait status %#x, seed=%llu", (unsigned long long)number, status, (unsigned long long)seed);
}

int main(int argc, char **argv) {
  uint64_t children = 300, size = 32;
  const char *value;
  for (int i = 1; i < argc; i++) {
    if ((value = option_value(argc, argv, &i, "--children"))) children = parse_number("--children", value);
    else if ((value = option_value(argc, argv, &i, "--size"))) size = parse_number("--size", value);
    else if ((value = option_value(argc, argv, &i, "--seed"))) seed = parse_number("--seed", value);
    else die("usage: forkheap --children N [--size MiB] [--seed N]");
  }
  if (size < 1 || size << 20 > (uint64_t)MOST_BLOCKS * PAGE_BYTES) die("--size: 1...%d", MOST_BLOCKS * PAGE_BYTES >> 20);
  pthread_atfork(lock_arena, unlock_arena, unlock_arena);
  Rng rng = {mix64(seed)};
  range = map_pages(RANGE_PAGES);
  for (uint32_t page = 0; page < RANGE_PAGES; page++) range[(size_t)page * PAGE_BYTES] = (uint8_t)(page | 1);
  for (; blocks < (size << 20) / PAGE_BYTES; blocks++) block_at[blocks] = new_block(tag_at[blocks] = tag_random(&rng));
  uint8_t *moving = map_pages(4);
  moving[0] = 99;
  pthread_t mover;
  if ((errno = pthread_create(&mover, NULL, keep_moving, moving))) die("pthread_create: %s", strerror(errno));
  for (uint64_t i = 0; i < children; i++) {
    Rng own = {rng_next(&rng)};
    fork_one(i, &own);
    check_inherited(&rng, 256);
  }
  atomic_store(&stop, true);
  pthread_join(mover, NULL);
  check_range(range, 0);
  printf("right %llu\n", (unsigned long long)children);
}
