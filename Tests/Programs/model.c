// The model test: random memory operations against a shadow of what memory must hold.
//
// The shadow is no copy: every 512 bytes are described by a 64-bit tag (common.h). Tags, page states, the history of
// each page and all bookkeeping live in a MAP_SHARED memfd, which no private-memory pager can evict: when memory and
// shadow differ, memory is wrong.
//
// Memory is divided into zones. The main thread owns zone 0 and is the one that forks; every further thread owns a
// zone of its own, so that one thread unmaps and discards while others fault. Each zone's sequence of operations
// depends on the seed alone: the same seed with --threads 0 repeats exactly ("outcome" in the summary is a hash
// over every operation and its result; it is the same with and without a pager).
#include "common.h"

#include <fcntl.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

enum {
  EVENTS = 16,             // history kept per page
  TRACES = 24,             // steps kept per zone
  ZONES = 17,              // the main thread's and at most 16 threads'
  GAP_PAGES = 16,          // between zone 0 and the others, so that their mappings never merge
  FILE_BLOCKS = 4096,      // 2 MiB per temporary file
  SPAN_BLOCKS = 512,       // longest transfer of one system call
  ALLOCATIONS = 128,       // live malloc blocks per zone
  ALLOCATION_BYTES = 512 << 10,
  HEAP_PAGES = 2048,       // sbrk
  CHILDREN = 3,            // forked children that live at the same time
  DEPTH = 2,               // children of children
  LOCKED_PAGES = 256,      // mlocked at the same time: what is locked cannot be evicted
  LONG_LIFE_MS = 750,      // beyond the 500 ms after which a child becomes a target of its own
};

#define OPERATIONS(X)                                                                                                  \
  X(map, 60) X(map_fixed, 25) X(unmap, 35) X(write_pages, 120) X(write_part, 120) X(verify, 200) X(populate, 15)       \
  X(dontneed, 40) X(free, 25) X(wipe_on_fork, 8) X(dont_fork, 8) X(huge_page, 6) X(protect_none, 15)                   \
  X(protect_read, 15) X(protect_write, 45) X(lock, 8) X(unlock, 10) X(mremap_grow, 20) X(mremap_shrink, 15)            \
  X(mremap_move, 30) X(mremap_resize, 15) X(mremap_several, 12) X(mremap_dontunmap, 15) X(mremap_out, 20)              \
  X(fork_quick, 3) X(fork_work, 3) X(fork_long, 1) X(vfork_exec, 2) X(spawn, 2) X(threads, 6) X(pipe, 25)              \
  X(file_write, 20) X(file_read, 20) X(file_vector, 20) X(direct_write, 12) X(direct_read, 12) X(uring, 30)            \
  X(remote, 20) X(heap, 25) X(allocate, 60)

typedef enum {
#define X(name, weight) OP_##name,
  OPERATIONS(X)
#undef X
  OP_count,
  // These appear in histories only.
  OP_forked = OP_count,
  OP_moved_away,
  OP_thread,
  OP_found_zero,
  OP_found_old,
  OP_event_count
} Op;

static const char *const op_names[OP_event_count] = {
#define X(name, weight) #name,
    OPERATIONS(X)
#undef X
    "forked", "moved_away", "thread", "found_zero", "found_old"};

static const unsigned op_weights[OP_count] = {
#define X(name, weight) weight,
    OPERATIONS(X)
#undef X
};

enum { LOCKED = 1, WIPE_ON_FORK = 2, DONT_FORK = 4, PINNED = 8, FREED = 16, HUGE_PAGE = 32, ATTRIBUTES = LOCKED | WIPE_ON_FORK | DONT_FORK | HUGE_PAGE };

typedef struct {
  uint32_t step;
  uint8_t op, depth, first, count;  // blocks of the page that the operation changed
  uint64_t argument;
} Event;

typedef struct {
  uint64_t tag[PAGE_BLOCKS];
  uint32_t region, origin;  // which mmap made it and where: adjacent pages of one region are one kernel VMA
  uint8_t mapped, prot, flags;
  uint8_t maybe;  // bit per block: after MADV_FREE this block holds its tag *or* zeros, all such blocks alike
  uint8_t dirty;  // written since MADV_FREE: what it is now, it stays
  uint8_t mixed;  // discarded again after that: blocks may be zeros one by one
  uint8_t events;
  Event event[EVENTS];
} Page;

typedef struct {
  int descriptor;  // -1: not opened, -2: not available
  uint64_t tag[FILE_BLOCKS];
} File;

typedef struct {
  uint8_t *memory;
  uint64_t bytes, tag;
} Allocation;

typedef struct {
  int descriptor;  // -1: not opened, -2: not available
  int pipe[2];
  uint8_t *rings;
  struct io_uring_sqe *entries;
  size_t ring_bytes, entry_bytes;
  struct io_uring_params params;
  uint32_t first, count;              // pinned pages; count 0: no buffer registered
  uint32_t lives;                     // uses left before the buffer is unregistered
  uint32_t pending_block, pending;    // a read that waits for data: blocks from the first pinned page on
} Uring;

typedef struct {
  pid_t pid;
  uint32_t step;
} Child;

/// One step of a zone: where it happened, as far as it was chosen at random.
typedef struct {
  uint32_t step;
  int16_t op, result;  // result: errno, -1 nothing to do, -2 not finished
  uint32_t first[2], count[2], place;
} Trace;

typedef struct {
  Rng rng;
  int index, depth;
  uint32_t step, pages, target, mapped, locked, regions;
  Trace trace[TRACES];  // the last steps
  uintptr_t base;
  uint64_t outcome, checked_pages;
  uint64_t done[OP_count];
  uint32_t mremaps, mremaps_refused, forks, free_zero, free_old;
  File file, direct;
  Uring uring;
  Allocation allocation[ALLOCATIONS];
  uintptr_t heap_base;
  uint32_t heap_pages, heap_abandoned;
  Page heap[HEAP_PAGES];
  Child child[CHILDREN];
  Page page[];
} Zone;

typedef struct {
  uint64_t seed;
  uint32_t zones;
  _Atomic bool stop, failed;
  bool op_enabled[OP_count];
  unsigned op_total;
  bool verbose, worker_state_known;
  pid_t root, helper;
  int helper_socket;
  bool no_remote;
  int remote_errno, uring_errno, direct_errno;
  char self[512];
  size_t zone_offset[ZONES];
} Shared;

static Shared *shared;
static size_t shared_bytes;
static pthread_rwlock_t quiet;  // operations of worker threads hold it for reading, a fork that wants them still for writing
static __thread Zone *current;  // for the signal handler

static Zone *zone_at(uint32_t index) { return (Zone *)((char *)shared + shared->zone_offset[index]); }
static uint8_t *address_of(const Zone *z, uint32_t page) { return (uint8_t *)z->base + (uintptr_t)page * PAGE_BYTES; }

// --- failure ---

static void print_history(const Page *p) {
  unsigned shown = p->events < EVENTS ? p->events : EVENTS;
  dprintf(2, "  state: %s prot=%d flags=%s%s%s%s%s%s maybe=%02x dirty=%d region=%u+%u\n",
          p->mapped ? "mapped" : "hole", p->prot, p->flags & LOCKED ? "L" : "", p->flags & WIPE_ON_FORK ? "W" : "",
          p->flags & DONT_FORK ? "D" : "", p->flags & PINNED ? "P" : "", p->flags & FREED ? "F" : "",
          p->flags & HUGE_PAGE ? "H" : "", p->maybe, p->dirty, p->region, p->origin);
  dprintf(2, "  last operations on this page (newest first): step operation depth blocks argument\n");
  for (unsigned i = 0; i < shown; i++) {
    const Event *e = &p->event[(uint8_t)(p->events - 1 - i) % EVENTS];
    dprintf(2, "    %8u %-16s %u  %u+%u  %#llx\n", e->step, op_names[e->op], e->depth, e->first, e->count,
            (unsigned long long)e->argument);
  }
}

/// The last steps of every zone: what other threads did at the time matters as well.
static void print_steps(void) {
  for (uint32_t zi = 0; zi < shared->zones; zi++) {
    Zone *z = zone_at(zi);
    dprintf(2, "  last steps of zone %u at %p (newest first): step operation pages [pages] [destination] result\n", zi, (void *)z->base);
    for (uint32_t i = 0; i < TRACES && i < z->step; i++) {
      const Trace *t = &z->trace[(z->step - i) % TRACES];
      dprintf(2, "    %8u %-16s", t->step, op_names[t->op]);
      for (int k = 0; k < 2; k++)
        if (t->count[k]) dprintf(2, " %u+%u", t->first[k], t->count[k]);
      if (t->place != UINT32_MAX) dprintf(2, " -> %u", t->place);
      dprintf(2, "%s%s\n", t->result > 0 ? " refused: " : "", t->result == -2 ? " (not finished)" : t->result < 0 ? " (nothing)" : t->result > 0 ? strerror(t->result) : "");
    }
  }
}

static void print_mapping(uintptr_t address) {
  static char text[1 << 16];
  int file = open("/proc/self/smaps", O_RDONLY | O_CLOEXEC);
  size_t used = 0;
  ssize_t got;
  bool ours = false;
  if (file < 0) return;
  while ((got = read(file, text + used, sizeof text - 1 - used)) > 0) {
    char *line = text, *end;
    used += (size_t)got;
    text[used] = 0;
    while ((end = strchr(line, '\n'))) {
      unsigned long long from, to;
      *end = 0;
      if (sscanf(line, "%llx-%llx", &from, &to) == 2) ours = address >= from && address < to;
      if (ours && (strstr(line, "VmFlags") || strstr(line, "Anonymous") || strstr(line, "Rss") || strchr(line, '-')))
        dprintf(2, "  %s\n", line);
      line = end + 1;
    }
    used = strlen(line);
    memmove(text, line, used);
  }
  close(file);
}

__attribute__((noreturn)) static void stop_failed(void) {
  if (shared) {
    Zone *z = zone_at(0);
    if (getpid() == shared->root)
      for (int i = 0; i < CHILDREN; i++)
        if (z->child[i].pid > 0) kill(z->child[i].pid, SIGKILL);
  }
  _exit(1);
}

/// Only the first thread that fails reports.
static void report_once(void) {
  if (atomic_exchange(&shared->failed, true)) {
    sleep_ms(3000);
    _exit(1);
  }
}

__attribute__((noreturn, format(printf, 2, 3))) static void fail(Zone *z, const char *format, ...) {
  char line[400];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  report_once();
  dprintf(2, "model: FAILED seed=%llu zone=%d step=%u depth=%d pid=%d: %s\n", (unsigned long long)shared->seed, z->index,
          z->step, z->depth, getpid(), line);
  stop_failed();
}

/// Says whose content this block looks like.
static void print_origin(const uint64_t *found) {
  for (uint32_t zi = 0; zi < shared->zones; zi++) {
    Zone *z = zone_at(zi);
    for (uint32_t i = 0; i < z->pages; i++) {
      Page *p = &z->page[i];
      for (int b = 0; b < PAGE_BLOCKS; b++)
        if (p->mapped && p->tag[b] && block_check(found, p->tag[b]) < 0) {
          dprintf(2, "  what was found belongs to zone %u page %u block %d at %p (tag %#llx)\n", zi, i, b,
                  (void *)address_of(z, i), (unsigned long long)p->tag[b]);
          return;
        }
      for (unsigned e = 0; e < EVENTS && e < p->events; e++)
        if (p->event[e].argument > 8 && block_check(found, p->event[e].argument) < 0) {
          dprintf(2, "  what was found was once written to zone %u page %u at %p, step %u (tag %#llx)\n", zi, i,
                  (void *)address_of(z, i), p->event[e].step, (unsigned long long)p->event[e].argument);
          return;
        }
    }
  }
  if (block_check(found, 0) < 0)
    dprintf(2, "  what was found is all zero\n");
  else
    dprintf(2, "  what was found belongs to no page\n");
}

__attribute__((noreturn)) static void mismatch(Zone *z, const Page *p, const uint64_t *memory, int block, int word) {
  uint64_t expected[BLOCK_WORDS], found[BLOCK_WORDS];
  const uint64_t *words = memory + block * BLOCK_WORDS;
  memcpy(found, words, sizeof found);
  block_fill(expected, p->tag[block]);
  if (word < 0) word = 0;
  report_once();
  dprintf(2,
          "model: MISMATCH seed=%llu zone=%d step=%u depth=%d pid=%d address=%p block=%d word=%d tag=%#llx\n"
          "  expected %016llx %016llx, found %016llx %016llx%s\n",
          (unsigned long long)shared->seed, z->index, z->step, z->depth, getpid(), (const void *)(words + word), block, word,
          (unsigned long long)p->tag[block], (unsigned long long)expected[word],
          (unsigned long long)expected[(word + 1) % BLOCK_WORDS], (unsigned long long)found[word],
          (unsigned long long)found[(word + 1) % BLOCK_WORDS], p->maybe ? " (or zeros: MADV_FREE)" : "");
  for (int b = 0; b < PAGE_BLOCKS; b++)
    dprintf(2, "  block %d: tag %#18llx %s%s\n", b, (unsigned long long)p->tag[b],
            block_check(memory + b * BLOCK_WORDS, p->tag[b]) < 0 ? "right" : "WRONG",
            block_check(memory + b * BLOCK_WORDS, 0) < 0 ? " (is zero)" : "");
  print_origin(found);
  print_history(p);
  print_mapping((uintptr_t)memory);
  print_steps();
  for (int i = 0; i < 3; i++) {
    sleep_ms(20);
    dprintf(2, "  %d ms later the word is %016llx\n", (i + 1) * 20, (unsigned long long)words[word]);
  }
  stop_failed();
}

static void on_fault(int signal, siginfo_t *info, void *context) {
  uintptr_t address = (uintptr_t)info->si_addr;
  (void)context;
  report_once();
  dprintf(2, "model: SIGNAL %d seed=%llu zone=%d step=%u depth=%d pid=%d address=%p code=%d\n", signal,
          (unsigned long long)shared->seed, current ? current->index : -1, current ? current->step : 0,
          current ? current->depth : -1, getpid(), (void *)address, info->si_code);
  for (uint32_t zi = 0; zi < shared->zones; zi++) {
    Zone *z = zone_at(zi);
    if (address >= z->base && address < z->base + (uintptr_t)z->pages * PAGE_BYTES) {
      dprintf(2, "  zone %u page %zu\n", zi, (size_t)((address - z->base) / PAGE_BYTES));
      print_history(&z->page[(address - z->base) / PAGE_BYTES]);
    }
  }
  print_mapping(address);
  print_steps();
  stop_failed();
}

// --- the shadow ---

static void note(Zone *z, Page *p, Op op, int first, int count, uint64_t argument) {
  Event *e = &p->event[p->events % EVENTS];
  *e = (Event){z->step, (uint8_t)op, (uint8_t)z->depth, (uint8_t)first, (uint8_t)count, argument};
  p->events++;
  if (p->events == 0) p->events = 2 * EVENTS;  // stays "full" after the counter wraps
}

static void note_range(Zone *z, Op op, uint32_t first, uint32_t count, uint64_t argument) {
  for (uint32_t i = first; i < first + count; i++) note(z, &z->page[i], op, 0, 0, argument);
}

static void forget_content(Page *p) {
  memset(p->tag, 0, sizeof p->tag);
  p->maybe = p->dirty = p->mixed = 0;
  p->flags &= (uint8_t)~FREED;
}

static void set_flags(Zone *z, Page *p, uint8_t flags) {
  if ((p->flags ^ flags) & LOCKED) z->locked += flags & LOCKED ? 1u : -1u;
  p->flags = flags;
}

static void set_hole(Zone *z, Op op, uint32_t first, uint32_t count) {
  for (uint32_t i = first; i < first + count; i++) {
    Page *p = &z->page[i];
    if (!p->mapped) continue;
    z->mapped--;
    set_flags(z, p, 0);
    p->mapped = p->prot = 0;
    forget_content(p);
    note(z, p, op, 0, 0, 0);
  }
}

static void set_mapped(Zone *z, Op op, uint32_t first, uint32_t count) {
  z->regions++;
  for (uint32_t i = first; i < first + count; i++) {
    Page *p = &z->page[i];
    if (!p->mapped) z->mapped++;
    set_flags(z, p, 0);
    p->mapped = 1;
    p->prot = PROT_READ | PROT_WRITE;
    p->region = z->regions;
    p->origin = i;
    forget_content(p);
    note(z, p, op, 0, 0, 0);
  }
}

/// Blocks [first, first + count) of the page now hold `tag`.
static void set_tags(Zone *z, Page *p, Op op, int first, int count, const uint64_t *tag) {
  uint8_t bits = (uint8_t)(((1u << count) - 1) << first);
  memcpy(&p->tag[first], tag, (size_t)count * sizeof *tag);
  if (count == PAGE_BLOCKS) {
    p->maybe = p->dirty = p->mixed = 0;
    p->flags &= (uint8_t)~FREED;
  } else if (p->maybe) {
    p->maybe &= (uint8_t)~bits;
    p->dirty = 1;
  }
  note(z, p, op, first, count, tag[0]);
}

/// Compares a page's memory, wherever it is at the moment, with its shadow.
static void check(Zone *z, Page *p, const void *memory) {
  const uint64_t *words = memory;
  int zeros = 0, olds = 0, uncertain = 0, last = 0;
  z->checked_pages++;
  for (int b = 0; b < PAGE_BLOCKS; b++) {
    const uint64_t *block = words + b * BLOCK_WORDS;
    if (!(p->maybe >> b & 1) || p->tag[b] == 0) {
      int word = block_check(block, p->tag[b]);
      if (word >= 0) mismatch(z, p, words, b, word);
      continue;
    }
    uncertain++;
    last = b;
    if (block_check(block, p->tag[b]) < 0)
      olds++;
    else if (block_check(block, 0) < 0)
      zeros++;
    else
      mismatch(z, p, words, b, block_check(block, p->tag[b]));
  }
  if (uncertain == 0) return;
  if (p->mixed) {
    for (int b = 0; b < PAGE_BLOCKS; b++)
      if ((p->maybe >> b & 1) && block_check(words + b * BLOCK_WORDS, 0) < 0) {
        p->tag[b] = 0;
        p->maybe &= (uint8_t) ~(1u << b);
      }
    if (p->dirty) p->maybe = 0;
    return;
  }
  if (olds != uncertain && zeros != uncertain) mismatch(z, p, words, last, 0);
  if (zeros == uncertain) {
    for (int b = 0; b < PAGE_BLOCKS; b++)
      if (p->maybe >> b & 1) p->tag[b] = 0;
    p->maybe = 0;
    z->free_zero++;
    note(z, p, OP_found_zero, 0, 0, 0);
  } else if (p->dirty) {
    p->maybe = 0;
    z->free_old++;
    note(z, p, OP_found_old, 0, 0, 0);
  }
}

static void check_range(Zone *z, uint32_t first, uint32_t count) {
  for (uint32_t i = first; i < first + count; i++)
    if (z->page[i].mapped && (z->page[i].prot & PROT_READ)) check(z, &z->page[i], address_of(z, i));
}

static void write_blocks(Zone *z, Rng *rng, Op op, Page *p, void *memory, int first, int count) {
  uint64_t tag[PAGE_BLOCKS];
  uint64_t *words = memory;
  bool zero = rng_chance(rng, 16);
  for (int b = 0; b < count; b++) tag[b] = zero ? 0 : tag_random(rng);
  for (int b = 0; b < count; b++) block_fill(words + (first + b) * BLOCK_WORDS, tag[b]);
  set_tags(z, p, op, first, count, tag);
}

static void write_page(Zone *z, Op op, uint32_t i) {
  write_blocks(z, &z->rng, op, &z->page[i], address_of(z, i), 0, PAGE_BLOCKS);
}

// --- choosing where ---

typedef bool (*Want)(const Page *);
static bool any_hole(const Page *p) { return !p->mapped; }
static bool replaceable(const Page *p) { return !(p->flags & PINNED); }
static bool loose(const Page *p) { return p->mapped && !(p->flags & PINNED); }
static bool readable(const Page *p) { return p->mapped && (p->prot & PROT_READ); }
static bool writable(const Page *p) { return p->mapped && (p->prot & PROT_WRITE); }
static bool source(const Page *p) { return readable(p) && !(p->flags & FREED); }
static bool settled(const Page *p) { return writable(p) && !(p->flags & (FREED | PINNED)); }
static bool discardable(const Page *p) { return loose(p) && !(p->flags & LOCKED); }
static bool lockable(const Page *p) { return writable(p) && !(p->flags & (PINNED | LOCKED)); }
static bool locked(const Page *p) { return loose(p) && (p->flags & LOCKED); }
static bool wiped(const Page *p) { return loose(p) && (p->flags & WIPE_ON_FORK); }
static bool unforked(const Page *p) { return loose(p) && (p->flags & DONT_FORK); }
static bool huge(const Page *p) { return loose(p) && (p->flags & HUGE_PAGE); }

static bool one_mapping(const Page *a, const Page *b) {
  return b->mapped && a->region == b->region && b->origin == a->origin + (uint32_t)(b - a) && a->prot == b->prot &&
         (a->flags & ATTRIBUTES) == (b->flags & ATTRIBUTES);
}

/// A random run of at most `most` pages that all fulfil `want`.
static bool pick(Zone *z, Want want, uint32_t most, uint32_t *first, uint32_t *count) {
  uint32_t wanted = (uint32_t)rng_log(&z->rng, most);
  for (int attempt = 0; attempt < 24; attempt++) {
    uint32_t start = (uint32_t)rng_below(&z->rng, z->pages), n = 0;
    while (n < wanted && start + n < z->pages && want(&z->page[start + n])) n++;
    if (n == 0) continue;
    *first = start;
    *count = n;
    Trace *t = &z->trace[z->step % TRACES];
    int k = t->count[0] ? 1 : 0;
    t->first[k] = start;
    t->count[k] = n;
    return true;
  }
  return false;
}

/// As pick, of pages that one mmap made and nothing has divided since.
static bool pick_mapping(Zone *z, uint32_t most, uint32_t *first, uint32_t *count) {
  uint32_t n = 1;
  if (!pick(z, loose, most, first, count)) return false;
  while (n < *count && one_mapping(&z->page[*first], &z->page[*first + n])) n++;
  *count = n;
  return true;
}

/// A place for `count` pages that does not overlap [first, first + avoid); unused room rather than not.
static bool pick_place(Zone *z, uint32_t count, uint32_t first, uint32_t avoid, uint32_t *place) {
  if (count >= z->pages) return false;
  for (int attempt = 0; attempt < 16; attempt++) {
    uint32_t start = (uint32_t)rng_below(&z->rng, z->pages - count), n = 0;
    if (start < first + avoid && first < start + count) continue;
    while (n < count && (attempt < 10 ? any_hole : replaceable)(&z->page[start + n])) n++;
    if (n < count) continue;
    *place = start;
    z->trace[z->step % TRACES].place = start;
    return true;
  }
  return false;
}

/// Blocks that lie one after the other in memory; every page fulfils `want`.
typedef struct {
  uint32_t page, block, count;  // first page, first block in it, number of blocks
} Span;

static bool pick_span(Zone *z, Want want, uint32_t most, Span *span) {
  uint32_t pages;
  if (!pick(z, want, most / PAGE_BLOCKS, &span->page, &pages)) return false;
  span->block = (uint32_t)rng_below(&z->rng, PAGE_BLOCKS);
  span->count = pages * PAGE_BLOCKS - span->block;
  if (rng_chance(&z->rng, 2)) span->count = 1 + (uint32_t)rng_below(&z->rng, span->count);
  return true;
}

static uint8_t *span_address(Zone *z, Span s) { return address_of(z, s.page) + s.block * BLOCK_BYTES; }

static void span_tags(Zone *z, Span s, uint64_t *tags) {
  for (uint32_t i = 0, b = s.block; i < s.count; i++, b++) tags[i] = z->page[s.page + b / PAGE_BLOCKS].tag[b % PAGE_BLOCKS];
}

static void set_span_tags(Zone *z, Op op, Span s, const uint64_t *tags) {
  uint32_t page = s.page, block = s.block, left = s.count;
  while (left) {
    uint32_t n = PAGE_BLOCKS - block < left ? PAGE_BLOCKS - block : left;
    set_tags(z, &z->page[page], op, (int)block, (int)n, tags);
    tags += n;
    left -= n;
    block = 0;
    page++;
  }
}

static void check_span(Zone *z, Span s) { check_range(z, s.page, (s.block + s.count + PAGE_BLOCKS - 1) / PAGE_BLOCKS); }

// --- operations ---
// Each returns 0 when done, an errno when the kernel refused and nothing changed, -1 when it found nothing to do.

static int op_map(Zone *z) {
  uint32_t first, count;
  if (z->mapped > z->target || !pick(z, any_hole, 512, &first, &count)) return -1;
  void *at = mmap(address_of(z, first), (size_t)count * PAGE_BYTES, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (at != address_of(z, first)) fail(z, "mmap of %u pages at %p: %s", count, (void *)address_of(z, first), strerror(errno));
  set_mapped(z, OP_map, first, count);
  if (!rng_chance(&z->rng, 6))
    for (uint32_t i = first; i < first + count; i++)
      if (!rng_chance(&z->rng, 8)) write_page(z, OP_map, i);
  return 0;
}

static int op_map_fixed(Zone *z) {
  uint32_t first, count;
  if (!pick(z, replaceable, 256, &first, &count)) return -1;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | (rng_chance(&z->rng, 4) ? MAP_POPULATE : 0);
  void *at = mmap(address_of(z, first), (size_t)count * PAGE_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (at != address_of(z, first)) fail(z, "mmap over %u pages: %s", count, strerror(errno));
  set_mapped(z, OP_map_fixed, first, count);
  if (rng_chance(&z->rng, 2)) check_range(z, first, count);
  for (uint32_t i = first; i < first + count; i++)
    if (rng_chance(&z->rng, 2)) write_page(z, OP_map_fixed, i);
  return 0;
}

static int op_unmap(Zone *z) {
  uint32_t first, count;
  if (!pick(z, replaceable, z->mapped < z->target / 2 ? 8 : 512, &first, &count)) return -1;
  if (munmap(address_of(z, first), (size_t)count * PAGE_BYTES)) fail(z, "munmap: %s", strerror(errno));
  set_hole(z, OP_unmap, first, count);
  return 0;
}

static int op_write_pages(Zone *z) {
  uint32_t first, count;
  if (!pick(z, writable, 256, &first, &count)) return -1;
  for (uint32_t i = first; i < first + count; i++) write_page(z, OP_write_pages, i);
  return 0;
}

/// Parts of scattered pages, so that most of each page must survive; sometimes by unaligned pieces.
static int op_write_part(Zone *z) {
  uint32_t first, count;
  for (int n = (int)rng_log(&z->rng, 48); n > 0; n--) {
    if (!pick(z, writable, 1, &first, &count)) return -1;
    Page *p = &z->page[first];
    int block = (int)rng_below(&z->rng, PAGE_BLOCKS), blocks = 1 + (int)rng_below(&z->rng, (uint64_t)(PAGE_BLOCKS - block));
    if (rng_chance(&z->rng, 4)) {
      uint64_t words[BLOCK_WORDS], tag = tag_random(&z->rng);
      uint8_t *to = address_of(z, first) + block * BLOCK_BYTES;
      block_fill(words, tag);
      for (size_t done = 0; done < BLOCK_BYTES;) {
        size_t piece = 1 + rng_below(&z->rng, 61);
        if (piece > BLOCK_BYTES - done) piece = BLOCK_BYTES - done;
        memcpy(to + done, (uint8_t *)words + done, piece);
        done += piece;
      }
      set_tags(z, p, OP_write_part, block, 1, &tag);
    } else {
      write_blocks(z, &z->rng, OP_write_part, p, address_of(z, first), block, blocks);
    }
  }
  return 0;
}

static int op_verify(Zone *z) {
  uint32_t first, count;
  if (!pick(z, readable, 512, &first, &count)) return -1;
  if (rng_chance(&z->rng, 4))
    for (uint32_t i = first + count; i-- > first;) check_range(z, i, 1);
  else
    check_range(z, first, count);
  return 0;
}

static int op_populate(Zone *z) {
  uint32_t first, count;
  if (!pick(z, writable, 128, &first, &count)) return -1;
  int advice = rng_chance(&z->rng, 2) ? MADV_POPULATE_READ : MADV_POPULATE_WRITE;
  if (madvise(address_of(z, first), (size_t)count * PAGE_BYTES, advice)) {
    if (errno == EINVAL) return EINVAL;  // before 5.14
    fail(z, "madvise(%d) of %u pages: %s", advice, count, strerror(errno));
  }
  note_range(z, OP_populate, first, count, (uint64_t)advice);
  check_range(z, first, count);
  return 0;
}

static int op_dontneed(Zone *z) {
  uint32_t first, count;
  if (!pick(z, discardable, 256, &first, &count)) return -1;
  if (madvise(address_of(z, first), (size_t)count * PAGE_BYTES, MADV_DONTNEED)) fail(z, "MADV_DONTNEED: %s", strerror(errno));
  for (uint32_t i = first; i < first + count; i++) {
    forget_content(&z->page[i]);
    note(z, &z->page[i], OP_dontneed, 0, 0, 0);
  }
  switch (rng_below(&z->rng, 4)) {
  case 0: check_range(z, first, count); break;
  case 1:
    for (uint32_t i = first; i < first + count; i++)
      if (writable(&z->page[i])) write_page(z, OP_dontneed, i);
    break;
  default: break;
  }
  return 0;
}

static int op_free(Zone *z) {
  uint32_t first, count;
  if (!pick(z, discardable, 256, &first, &count)) return -1;
  if (madvise(address_of(z, first), (size_t)count * PAGE_BYTES, MADV_FREE)) fail(z, "MADV_FREE: %s", strerror(errno));
  for (uint32_t i = first; i < first + count; i++) {
    Page *p = &z->page[i];
    if (p->maybe && p->dirty) p->mixed = 1;
    p->maybe = 0xff;
    p->dirty = 0;
    p->flags |= FREED;
    note(z, p, OP_free, 0, 0, 0);
    if (writable(p) && rng_chance(&z->rng, 4)) write_blocks(z, &z->rng, OP_free, p, address_of(z, i), (int)rng_below(&z->rng, PAGE_BLOCKS), 1);
  }
  return 0;
}

static int advise(Zone *z, Op op, uint8_t flag, Want have, int on, int off) {
  uint32_t first, count;
  bool set = rng_chance(&z->rng, 2);
  if (!pick(z, set ? loose : have, set ? 64 : 512, &first, &count)) return -1;
  if (madvise(address_of(z, first), (size_t)count * PAGE_BYTES, set ? on : off)) {
    if (flag == HUGE_PAGE && errno == EINVAL) return EINVAL;  // a kernel without them
    fail(z, "madvise(%d): %s", set ? on : off, strerror(errno));
  }
  for (uint32_t i = first; i < first + count; i++) {
    Page *p = &z->page[i];
    set_flags(z, p, set ? p->flags | flag : p->flags & (uint8_t)~flag);
    note(z, p, op, 0, 0, set);
  }
  return 0;
}

static int op_wipe_on_fork(Zone *z) { return advise(z, OP_wipe_on_fork, WIPE_ON_FORK, wiped, MADV_WIPEONFORK, MADV_KEEPONFORK); }
static int op_dont_fork(Zone *z) { return advise(z, OP_dont_fork, DONT_FORK, unforked, MADV_DONTFORK, MADV_DOFORK); }
static int op_huge_page(Zone *z) { return advise(z, OP_huge_page, HUGE_PAGE, huge, MADV_HUGEPAGE, MADV_NOHUGEPAGE); }

static int protect(Zone *z, Op op, uint32_t most, int prot) {
  uint32_t first, count;
  if (!pick(z, loose, most, &first, &count)) return -1;
  if (mprotect(address_of(z, first), (size_t)count * PAGE_BYTES, prot)) fail(z, "mprotect(%d): %s", prot, strerror(errno));
  for (uint32_t i = first; i < first + count; i++) {
    z->page[i].prot = (uint8_t)prot;
    note(z, &z->page[i], op, 0, 0, (uint64_t)prot);
  }
  if (rng_chance(&z->rng, 2)) check_range(z, first, count);
  return 0;
}

static int op_protect_none(Zone *z) { return protect(z, OP_protect_none, 64, PROT_NONE); }
static int op_protect_read(Zone *z) { return protect(z, OP_protect_read, 128, PROT_READ); }
static int op_protect_write(Zone *z) { return protect(z, OP_protect_write, 1024, PROT_READ | PROT_WRITE); }

static int op_lock(Zone *z) {
  uint32_t first, count;
  if (z->locked >= LOCKED_PAGES || !pick(z, lockable, 32, &first, &count)) return -1;
  if (mlock(address_of(z, first), (size_t)count * PAGE_BYTES)) {
    int error = errno;
    if (error != EPERM && error != ENOMEM && error != EAGAIN) fail(z, "mlock: %s", strerror(error));
    munlock(address_of(z, first), (size_t)count * PAGE_BYTES);
    return error;  // RLIMIT_MEMLOCK
  }
  for (uint32_t i = first; i < first + count; i++) {
    set_flags(z, &z->page[i], z->page[i].flags | LOCKED);
    note(z, &z->page[i], OP_lock, 0, 0, 0);
  }
  check_range(z, first, count);
  return 0;
}

static int op_unlock(Zone *z) {
  uint32_t first, count;
  if (!z->locked || !pick(z, locked, 256, &first, &count)) return -1;
  if (munlock(address_of(z, first), (size_t)count * PAGE_BYTES)) fail(z, "munlock: %s", strerror(errno));
  for (uint32_t i = first; i < first + count; i++) {
    set_flags(z, &z->page[i], z->page[i].flags & (uint8_t)~LOCKED);
    note(z, &z->page[i], OP_unlock, 0, 0, 0);
  }
  return 0;
}

/// The shadow of a successful move of `count` pages, `extra` new ones behind them; `keep`: MREMAP_DONTUNMAP.
static void move_shadow(Zone *z, Op op, uint32_t from, uint32_t to, uint32_t count, uint32_t extra, bool keep) {
  set_hole(z, op, to, count + extra);
  for (uint32_t i = 0; i < count; i++) {
    Page *old = &z->page[from + i], *new = &z->page[to + i];
    Page before = *old;
    *new = before;
    if (new->flags & LOCKED) z->locked++;
    z->mapped++;
    note(z, new, op, 0, 0, (uint64_t)(uintptr_t)address_of(z, from + i));
    note(z, old, OP_moved_away, 0, 0, (uint64_t)(uintptr_t)address_of(z, to + i));
    if (keep) {
      forget_content(old);
      set_flags(z, old, old->flags & (uint8_t)~LOCKED);
      old->region = z->regions + 1;  // what is left behind may or may not merge with its neighbours
      old->origin = from + i;
    } else {
      set_hole(z, OP_moved_away, from + i, 1);
    }
  }
  if (keep) z->regions++;
  for (uint32_t i = 0; i < extra; i++) {
    Page *last = &z->page[to + count - 1], *new = &z->page[to + count + i];
    new->mapped = 1;
    new->prot = last->prot;
    new->region = last->region;
    new->origin = last->origin + 1 + i;
    set_flags(z, new, last->flags & ATTRIBUTES);
    forget_content(new);
    z->mapped++;
    note(z, new, op, 0, 0, 1);
  }
}

/// A refused move has nevertheless unmapped its destination, up to which page differs between kernels.
static int move_refused(Zone *z, Op op, uint32_t from, uint32_t count, uint32_t to, uint32_t room) {
  int error = errno;
  z->mremaps_refused++;
  z->trace[z->step % TRACES].result = (int16_t)error;
  if (room) {
    munmap(address_of(z, to), (size_t)room * PAGE_BYTES);
    set_hole(z, op, to, room);
  }
  if (shared->verbose) dprintf(2, "model: step %u: %s refused: %s\n", z->step, op_names[op], strerror(error));
  check_range(z, from, count);
  return error;
}

static int op_mremap_grow(Zone *z) {
  uint32_t first, count, room = 0;
  if (z->mapped > z->target + z->target / 8 || !pick_mapping(z, 1024, &first, &count)) return -1;
  while (first + count < z->pages && one_mapping(&z->page[first], &z->page[first + count]) &&
         !(z->page[first + count].flags & PINNED))
    count++;
  while (room < 64 && first + count + room < z->pages && !z->page[first + count + room].mapped) room++;
  if (room == 0) return -1;
  uint32_t extra = (uint32_t)rng_log(&z->rng, room);
  z->mremaps++;
  void *at = mremap(address_of(z, first), (size_t)count * PAGE_BYTES, (size_t)(count + extra) * PAGE_BYTES, 0);
  if (at == MAP_FAILED) return move_refused(z, OP_mremap_grow, first, count, 0, 0);
  if (at != address_of(z, first)) fail(z, "mremap moved what may not move");
  Page *last = &z->page[first + count - 1];
  for (uint32_t i = 0; i < extra; i++) {
    Page *new = &z->page[first + count + i];
    new->mapped = 1;
    new->prot = last->prot;
    new->region = last->region;
    new->origin = last->origin + 1 + i;
    set_flags(z, new, last->flags & ATTRIBUTES);
    forget_content(new);
    z->mapped++;
    note(z, new, OP_mremap_grow, 0, 0, 0);
    if (writable(new) && rng_chance(&z->rng, 2)) write_page(z, OP_mremap_grow, first + count + i);
  }
  check_range(z, first, count + extra);
  return 0;
}

static int op_mremap_shrink(Zone *z) {
  uint32_t first, count;
  if (!pick_mapping(z, 256, &first, &count) || count < 2) return -1;
  uint32_t left = 1 + (uint32_t)rng_below(&z->rng, count - 1);
  z->mremaps++;
  void *at = mremap(address_of(z, first), (size_t)count * PAGE_BYTES, (size_t)left * PAGE_BYTES, 0);
  if (at == MAP_FAILED) return move_refused(z, OP_mremap_shrink, first, count, 0, 0);
  set_hole(z, OP_mremap_shrink, first + left, count - left);
  return 0;
}

/// Half of the moves are checked at once, the others later: moved pages may stay evicted.
static int op_mremap_move(Zone *z) {
  uint32_t first, count, place;
  if (!pick_mapping(z, 512, &first, &count) || !pick_place(z, count, first, count, &place)) return -1;
  z->mremaps++;
  void *at = mremap(address_of(z, first), (size_t)count * PAGE_BYTES, (size_t)count * PAGE_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED,
                    address_of(z, place));
  if (at == MAP_FAILED) return move_refused(z, OP_mremap_move, first, count, place, count);
  move_shadow(z, OP_mremap_move, first, place, count, 0, false);
  if (rng_chance(&z->rng, 2)) check_range(z, place, count);
  return 0;
}

static int op_mremap_resize(Zone *z) {
  uint32_t first, count, place;
  if (!pick_mapping(z, 256, &first, &count)) return -1;
  uint32_t extra = rng_chance(&z->rng, 2) ? (uint32_t)rng_log(&z->rng, 64) : 0, left = count;
  if (extra == 0 && count > 1) left = 1 + (uint32_t)rng_below(&z->rng, count - 1);
  if (!pick_place(z, left + extra, first, count, &place)) return -1;
  z->mremaps++;
  void *at = mremap(address_of(z, first), (size_t)count * PAGE_BYTES, (size_t)(left + extra) * PAGE_BYTES,
                    MREMAP_MAYMOVE | MREMAP_FIXED, address_of(z, place));
  if (at == MAP_FAILED) {
    int error = errno;
    if (left < count) {  // a refused shrinking move may have cut the tail off already
      munmap(address_of(z, first + left), (size_t)(count - left) * PAGE_BYTES);
      set_hole(z, OP_mremap_resize, first + left, count - left);
    }
    errno = error;
    return move_refused(z, OP_mremap_resize, first, left, place, left + extra);
  }
  if (left < count) set_hole(z, OP_mremap_resize, first + left, count - left);
  move_shadow(z, OP_mremap_resize, first, place, left, extra, false);
  if (rng_chance(&z->rng, 2)) check_range(z, place, left + extra);
  return 0;
}

/// Across mappings: refused up to 6.16, one after the other from 6.17 on. Half moved would be seen by check.
static int op_mremap_several(Zone *z) {
  uint32_t first, count, place;
  if (!pick(z, loose, 512, &first, &count) || !pick_place(z, count, first, count, &place)) return -1;
  z->mremaps++;
  void *at = mremap(address_of(z, first), (size_t)count * PAGE_BYTES, (size_t)count * PAGE_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED,
                    address_of(z, place));
  if (at == MAP_FAILED) return move_refused(z, OP_mremap_several, first, count, place, count);
  move_shadow(z, OP_mremap_several, first, place, count, 0, false);
  check_range(z, place, count);
  return 0;
}

static int op_mremap_dontunmap(Zone *z) {
  uint32_t first, count, place;
  if (z->mapped > z->target + z->target / 8 || !pick_mapping(z, 256, &first, &count) ||
      !pick_place(z, count, first, count, &place))
    return -1;
  z->mremaps++;
  void *at = mremap(address_of(z, first), (size_t)count * PAGE_BYTES, (size_t)count * PAGE_BYTES,
                    MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, address_of(z, place));
  if (at == MAP_FAILED) return move_refused(z, OP_mremap_dontunmap, first, count, place, count);
  move_shadow(z, OP_mremap_dontunmap, first, place, count, 0, true);
  if (rng_chance(&z->rng, 2)) check_range(z, first, count);
  if (rng_chance(&z->rng, 2)) check_range(z, place, count);
  return 0;
}

/// To wherever the kernel likes, larger, work there, and back.
static int op_mremap_out(Zone *z) {
  uint32_t first, count;
  if (!pick_mapping(z, 256, &first, &count)) return -1;
  uint32_t extra = 1 + (uint32_t)rng_below(&z->rng, 16);
  size_t size = (size_t)count * PAGE_BYTES, larger = (size_t)(count + extra) * PAGE_BYTES;
  // No room behind it: it must move. (Nobody else maps at these addresses.)
  if (first + count >= z->pages || !z->page[first + count].mapped) return -1;
  z->mremaps++;
  uint8_t *at = mremap(address_of(z, first), size, larger, MREMAP_MAYMOVE);
  if (at == MAP_FAILED) return move_refused(z, OP_mremap_out, first, count, 0, 0);
  for (uint32_t i = 0; i < count; i++) {
    Page *p = &z->page[first + i];
    note(z, p, OP_mremap_out, 0, 0, (uint64_t)(uintptr_t)at);
    if (readable(p) && !rng_chance(&z->rng, 3)) check(z, p, at + (size_t)i * PAGE_BYTES);
    if (writable(p) && rng_chance(&z->rng, 2)) write_blocks(z, &z->rng, OP_mremap_out, p, at + (size_t)i * PAGE_BYTES, 2, 3);
  }
  if (z->page[first].prot & PROT_READ)
    for (size_t i = size; i < larger; i += 8)
      if (*(uint64_t *)(at + i)) fail(z, "memory that mremap added is not zero: %p", (void *)(at + i));
  if (rng_chance(&z->rng, 16)) sleep_ms(5);
  void *back = mremap(at, larger, size, MREMAP_MAYMOVE | MREMAP_FIXED, address_of(z, first));
  if (back != address_of(z, first)) fail(z, "mremap back from %p: %s", (void *)at, strerror(errno));
  if (rng_chance(&z->rng, 2)) check_range(z, first, count);
  return 0;
}

// --- processes and threads ---

static void run_steps(Zone *z, uint32_t steps);

static Shared *snapshot(void) {
  int file = memfd_create("model-child", MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, (off_t)shared_bytes)) die("memfd: %s", strerror(errno));
  Shared *copy = mmap(NULL, shared_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (copy == MAP_FAILED) die("mmap of the shadow: %s", strerror(errno));
  close(file);
  memcpy(copy, shared, shared->worker_state_known ? shared_bytes : shared->zone_offset[0] + sizeof(Zone) + zone_at(0)->pages * sizeof(Page));
  return copy;
}

static void verify_all(Zone *z);

/// What fork leaves of a zone in the child.
static void inherit(Zone *z) {
  z->depth++;
  for (uint32_t i = 0; i < z->pages; i++) {
    Page *p = &z->page[i];
    if (!p->mapped) continue;
    if (p->flags & DONT_FORK) {
      set_hole(z, OP_forked, i, 1);
      continue;
    }
    if (p->flags & WIPE_ON_FORK) forget_content(p);
    set_flags(z, p, p->flags & (uint8_t) ~(LOCKED | PINNED));
    note(z, p, OP_forked, 0, 0, 0);
  }
  memset(z->child, 0, sizeof z->child);
}

__attribute__((noreturn)) static void run_child(Op op, Shared *copy, uint64_t seed) {
  munmap(shared, shared_bytes);
  shared = copy;
  Zone *z = current = zone_at(0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  for (uint32_t i = 0; i < shared->zones; i++) {
    if (i == 0 || shared->worker_state_known) inherit(zone_at(i));
    Zone *other = zone_at(i);
    if (other->file.descriptor >= 0) close(other->file.descriptor);
    if (other->direct.descriptor >= 0) close(other->direct.descriptor);
    other->file.descriptor = -1;
    if (other->direct.descriptor >= 0) other->direct.descriptor = -1;
    if (other->uring.descriptor >= 0) {
      close(other->uring.descriptor);
      close(other->uring.pipe[0]);
      close(other->uring.pipe[1]);
      other->uring.descriptor = -1;
      other->uring.count = other->uring.pending = 0;
    }
  }
  if (shared->helper_socket >= 0) close(shared->helper_socket);
  shared->helper_socket = -1;
  memset(z->file.tag, 0, sizeof z->file.tag);
  memset(z->direct.tag, 0, sizeof z->direct.tag);
  z->rng.state = seed;
  if (shared->worker_state_known)
    for (uint32_t i = 1; i < shared->zones; i++) verify_all(zone_at(i));
  shared->zones = 1;
  if (op == OP_fork_quick) {
    if (rng_chance(&z->rng, 4)) _exit(0);
    verify_all(z);
    run_steps(z, (uint32_t)rng_below(&z->rng, 20));
    _exit(0);
  }
  run_steps(z, 60 + (uint32_t)rng_below(&z->rng, 120));
  if (op == OP_fork_long) {
    uint64_t start = now_ns();
    while (now_ns() - start < LONG_LIFE_MS * 1000000ull) {
      z->target += z->target / 16;
      sleep_ms(50);
      run_steps(z, 4);
    }
    run_steps(z, 60);
  }
  for (int i = 0; i < CHILDREN; i++) {
    int status;
    if (z->child[i].pid <= 0) continue;
    if (waitpid(z->child[i].pid, &status, 0) != z->child[i].pid) fail(z, "waitpid: %s", strerror(errno));
    if (status) fail(z, "child of step %u ended with status %#x", z->child[i].step, status);
  }
  verify_all(z);
  _exit(0);
}

static void reap(Zone *z, int slot) {
  int status;
  Child *c = &z->child[slot];
  if (c->pid <= 0) return;
  if (waitpid(c->pid, &status, 0) != c->pid) fail(z, "waitpid: %s", strerror(errno));
  c->pid = 0;
  if (status) fail(z, "child of step %u ended with status %#x", c->step, status);
}

static int fork_child(Zone *z, Op op) {
  if (z->index != 0 || z->depth >= DEPTH) return -1;
  if (z->depth > 0 && !rng_chance(&z->rng, 3)) return -1;
  int slot = (int)(z->forks++ % CHILDREN);
  uint64_t seed = rng_next(&z->rng);
  bool still = rng_chance(&z->rng, 2) && z->depth == 0;
  reap(z, slot);
  if (still) pthread_rwlock_wrlock(&quiet);
  shared->worker_state_known = still;
  Shared *copy = snapshot();
  copy->worker_state_known = still;
  pid_t pid = fork();
  if (pid == 0) run_child(op, copy, seed);
  if (still) pthread_rwlock_unlock(&quiet);
  if (pid < 0) fail(z, "fork: %s", strerror(errno));
  munmap(copy, shared_bytes);
  z->child[slot] = (Child){pid, z->step};
  if (rng_chance(&z->rng, 3)) reap(z, slot);
  return 0;
}

static int op_fork_quick(Zone *z) { return fork_child(z, OP_fork_quick); }
static int op_fork_work(Zone *z) { return fork_child(z, OP_fork_work); }
static int op_fork_long(Zone *z) { return fork_child(z, OP_fork_long); }

static void expect_exit(Zone *z, pid_t pid, int expected) {
  int status;
  if (pid < 0) fail(z, "starting %s: %s", shared->self, strerror(errno));
  if (waitpid(pid, &status, 0) != pid) fail(z, "waitpid: %s", strerror(errno));
  if (!WIFEXITED(status) || WEXITSTATUS(status) != expected) fail(z, "a program that exits with %d ended with %#x", expected, status);
}

static int op_vfork_exec(Zone *z) {
  int code = (int)rng_below(&z->rng, 100);
  char text[8];
  snprintf(text, sizeof text, "%d", code);
  char *arguments[] = {shared->self, "--exit", text, NULL};
  pid_t pid = vfork();
  if (pid == 0) {
    execv(arguments[0], arguments);
    _exit(127);
  }
  expect_exit(z, pid, code);
  return 0;
}

static int op_spawn(Zone *z) {
  int code = (int)rng_below(&z->rng, 100), error;
  char text[8];
  pid_t pid;
  snprintf(text, sizeof text, "%d", code);
  char *arguments[] = {shared->self, "--exit", text, NULL};
  error = posix_spawn(&pid, shared->self, NULL, NULL, arguments, environ);
  if (error) fail(z, "posix_spawn: %s", strerror(error));
  expect_exit(z, pid, code);
  return 0;
}

typedef struct {
  Zone *zone;
  Rng rng;
  uint32_t first, count;
} Errand;

static void *run_errand(void *argument) {
  Errand *e = argument;
  Zone *z = current = e->zone;
  for (int round = 0; round < 2; round++)
    for (uint32_t i = e->first; i < e->first + e->count; i++) {
      Page *p = &z->page[i];
      check(z, p, address_of(z, i));
      if (rng_chance(&e->rng, 2))
        write_blocks(z, &e->rng, OP_thread, p, address_of(z, i), (int)rng_below(&e->rng, PAGE_BLOCKS), 1);
    }
  return NULL;
}

/// Short-lived threads read and write parts of one range while this one discards or replaces another.
static int op_threads(Zone *z) {
  enum { MOST = 4 };
  Errand errand[MOST];
  pthread_t thread[MOST];
  uint32_t first, count, other, others, n = 1 + (uint32_t)rng_below(&z->rng, MOST);
  if (!pick(z, writable, 512, &first, &count)) return -1;
  if (n > count) n = count;
  bool busy = pick(z, discardable, 64, &other, &others) && (other >= first + count || first >= other + others);
  for (uint32_t i = 0; i < n; i++) {
    errand[i] = (Errand){z, {rng_next(&z->rng)}, first + count / n * i, count / n};
    int error = pthread_create(&thread[i], NULL, run_errand, &errand[i]);
    if (error) fail(z, "pthread_create: %s", strerror(error));
  }
  for (int round = 0; busy && round < 6; round++) {
    bool discard = rng_chance(&z->rng, 2);
    size_t size = (size_t)others * PAGE_BYTES;
    if (discard) {
      if (madvise(address_of(z, other), size, MADV_DONTNEED)) fail(z, "MADV_DONTNEED: %s", strerror(errno));
      for (uint32_t i = other; i < other + others; i++) forget_content(&z->page[i]);
      note_range(z, OP_dontneed, other, others, 0);
    } else {
      if (munmap(address_of(z, other), size)) fail(z, "munmap: %s", strerror(errno));
      set_hole(z, OP_unmap, other, others);
      if (mmap(address_of(z, other), size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) !=
          address_of(z, other))
        fail(z, "mmap: %s", strerror(errno));
      set_mapped(z, OP_map, other, others);
    }
    check_range(z, other, others);
    for (uint32_t i = other; i < other + others; i++)
      if (writable(&z->page[i])) write_page(z, OP_threads, i);
  }
  for (uint32_t i = 0; i < n; i++)
    if ((errno = pthread_join(thread[i], NULL))) fail(z, "pthread_join: %s", strerror(errno));
  if (busy) check_range(z, other, others);
  return 0;
}

// --- system calls that read and write possibly evicted memory ---

static int temporary_file(int flags) {
  const char *directory = getenv("TMPDIR");
  char path[512];
  snprintf(path, sizeof path, "%s/vswap-model-XXXXXX", directory && *directory ? directory : "/tmp");
  int file = mkostemp(path, O_CLOEXEC | flags);
  if (file < 0) return -1;
  unlink(path);
  if (ftruncate(file, (off_t)FILE_BLOCKS * BLOCK_BYTES)) die("ftruncate: %s", strerror(errno));
  return file;
}

static bool open_file(Zone *z, File *file, int flags) {
  if (file->descriptor == -2) return false;
  if (file->descriptor >= 0) return true;
  file->descriptor = temporary_file(flags);
  if (file->descriptor >= 0) return true;
  if (flags == 0) fail(z, "temporary file: %s", strerror(errno));
  shared->direct_errno = errno;
  file->descriptor = -2;
  return false;
}

static int op_pipe(Zone *z) {
  Span from, to;
  uint64_t tags[SPAN_BLOCKS];
  int ends[2];
  if (!pick_span(z, source, 15 * PAGE_BLOCKS, &from) || !pick_span(z, writable, 15 * PAGE_BLOCKS, &to)) return -1;
  if (to.count < from.count) from.count = to.count;
  to.count = from.count;
  if (pipe2(ends, O_CLOEXEC)) fail(z, "pipe: %s", strerror(errno));
  span_tags(z, from, tags);
  size_t size = (size_t)from.count * BLOCK_BYTES, done = 0;
  ssize_t n = write(ends[1], span_address(z, from), size);
  if (n != (ssize_t)size) fail(z, "write to a pipe from %p: %zd of %zu, %s", (void *)span_address(z, from), n, size, strerror(errno));
  while (done < size) {
    size_t piece = rng_chance(&z->rng, 2) ? size - done : 1 + rng_below(&z->rng, size - done);
    n = read(ends[0], span_address(z, to) + done, piece);
    if (n <= 0) fail(z, "read from a pipe to %p: %zd, %s", (void *)(span_address(z, to) + done), n, strerror(errno));
    done += (size_t)n;
  }
  close(ends[0]);
  close(ends[1]);
  set_span_tags(z, OP_pipe, to, tags);
  if (rng_chance(&z->rng, 2)) check_span(z, to);
  return 0;
}

static void file_write(Zone *z, File *f, Span s, uint32_t at) {
  size_t size = (size_t)s.count * BLOCK_BYTES;
  ssize_t n;
  if (f == &z->direct || rng_chance(&z->rng, 2)) {
    n = pwrite(f->descriptor, span_address(z, s), size, (off_t)at * BLOCK_BYTES);
  } else {
    lseek(f->descriptor, (off_t)at * BLOCK_BYTES, SEEK_SET);
    n = write(f->descriptor, span_address(z, s), size);
  }
  if (n != (ssize_t)size) fail(z, "write to a file from %p: %zd of %zu, %s", (void *)span_address(z, s), n, size, strerror(errno));
  span_tags(z, s, &f->tag[at]);
}

static void file_read(Zone *z, Op op, File *f, Span s, uint32_t at) {
  size_t size = (size_t)s.count * BLOCK_BYTES;
  ssize_t n;
  if (f == &z->direct || rng_chance(&z->rng, 2)) {
    n = pread(f->descriptor, span_address(z, s), size, (off_t)at * BLOCK_BYTES);
  } else {
    lseek(f->descriptor, (off_t)at * BLOCK_BYTES, SEEK_SET);
    n = read(f->descriptor, span_address(z, s), size);
  }
  if (n != (ssize_t)size) fail(z, "read from a file to %p: %zd of %zu, %s", (void *)span_address(z, s), n, size, strerror(errno));
  set_span_tags(z, op, s, &f->tag[at]);
}

static int op_file_write(Zone *z) {
  Span s;
  if (!open_file(z, &z->file, 0) || !pick_span(z, source, SPAN_BLOCKS, &s)) return -1;
  file_write(z, &z->file, s, (uint32_t)rng_below(&z->rng, FILE_BLOCKS - s.count + 1));
  return 0;
}

static int op_file_read(Zone *z) {
  Span s;
  if (!open_file(z, &z->file, 0) || !pick_span(z, writable, SPAN_BLOCKS, &s)) return -1;
  file_read(z, OP_file_read, &z->file, s, (uint32_t)rng_below(&z->rng, FILE_BLOCKS - s.count + 1));
  if (rng_chance(&z->rng, 2)) check_span(z, s);
  return 0;
}

/// readv and writev over scattered pieces.
static int op_file_vector(Zone *z) {
  enum { PIECES = 8 };
  Span span[PIECES];
  struct iovec piece[PIECES];
  bool reading = rng_chance(&z->rng, 2);
  uint32_t blocks = 0;
  size_t size = 0;
  int n = 1 + (int)rng_below(&z->rng, PIECES);
  if (!open_file(z, &z->file, 0)) return -1;
  for (int i = 0; i < n; i++) {
    if (!pick_span(z, reading ? writable : source, SPAN_BLOCKS / PIECES, &span[i])) return -1;
    piece[i] = (struct iovec){span_address(z, span[i]), (size_t)span[i].count * BLOCK_BYTES};
    blocks += span[i].count;
    size += piece[i].iov_len;
  }
  uint32_t at = (uint32_t)rng_below(&z->rng, FILE_BLOCKS - blocks + 1);
  ssize_t got = reading ? preadv(z->file.descriptor, piece, n, (off_t)at * BLOCK_BYTES)
                        : pwritev(z->file.descriptor, piece, n, (off_t)at * BLOCK_BYTES);
  if (got != (ssize_t)size) fail(z, "%s: %zd of %zu, %s", reading ? "preadv" : "pwritev", got, size, strerror(errno));
  for (int i = 0; i < n; i++) {
    if (reading)
      set_span_tags(z, OP_file_vector, span[i], &z->file.tag[at]);
    else
      span_tags(z, span[i], &z->file.tag[at]);
    at += span[i].count;
  }
  if (reading)
    for (int i = 0; i < n; i++) check_span(z, span[i]);
  return 0;
}

static Span whole_pages(Span s) {
  s.count = (s.block + s.count + PAGE_BLOCKS - 1) / PAGE_BLOCKS * PAGE_BLOCKS;
  s.block = 0;
  return s;
}

static uint32_t direct_place(Zone *z, Span s) {
  return (uint32_t)rng_below(&z->rng, (FILE_BLOCKS - s.count) / PAGE_BLOCKS + 1) * PAGE_BLOCKS;
}

static int op_direct_write(Zone *z) {
  Span s;
  if (!open_file(z, &z->direct, O_DIRECT) || !pick_span(z, source, SPAN_BLOCKS, &s)) return -1;
  s = whole_pages(s);
  file_write(z, &z->direct, s, direct_place(z, s));
  return 0;
}

static int op_direct_read(Zone *z) {
  Span s;
  if (!open_file(z, &z->direct, O_DIRECT) || !pick_span(z, writable, SPAN_BLOCKS, &s)) return -1;
  s = whole_pages(s);
  file_read(z, OP_direct_read, &z->direct, s, direct_place(z, s));
  if (rng_chance(&z->rng, 2)) check_span(z, s);
  return 0;
}

// --- io_uring with a registered buffer: the kernel writes into pages that the program has not touched for long ---

static bool uring_open(Zone *z) {
  Uring *u = &z->uring;
  if (u->descriptor == -2) return false;
  if (u->descriptor >= 0) return true;
  memset(&u->params, 0, sizeof u->params);
  u->descriptor = (int)syscall(SYS_io_uring_setup, 8, &u->params);
  if (u->descriptor < 0 || !(u->params.features & IORING_FEAT_SINGLE_MMAP)) {
    shared->uring_errno = u->descriptor < 0 ? errno : ENOTSUP;
    if (u->descriptor >= 0) close(u->descriptor);
    u->descriptor = -2;
    return false;
  }
  size_t submissions = u->params.sq_off.array + u->params.sq_entries * sizeof(uint32_t);
  size_t completions = u->params.cq_off.cqes + u->params.cq_entries * sizeof(struct io_uring_cqe);
  u->ring_bytes = submissions > completions ? submissions : completions;
  u->entry_bytes = u->params.sq_entries * sizeof(struct io_uring_sqe);
  u->rings = mmap(NULL, u->ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, u->descriptor, IORING_OFF_SQ_RING);
  u->entries = mmap(NULL, u->entry_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, u->descriptor, IORING_OFF_SQES);
  if (u->rings == MAP_FAILED || u->entries == MAP_FAILED) fail(z, "mmap of the io_uring: %s", strerror(errno));
  madvise(u->rings, u->ring_bytes, MADV_DONTFORK);
  madvise(u->entries, u->entry_bytes, MADV_DONTFORK);
  if (pipe2(u->pipe, O_CLOEXEC)) fail(z, "pipe: %s", strerror(errno));
  return true;
}

static _Atomic uint32_t *uring_word(Uring *u, uint32_t offset) { return (_Atomic uint32_t *)(void *)(u->rings + offset); }

static void uring_submit(Zone *z, int opcode, int file, void *memory, size_t size, uint64_t offset) {
  Uring *u = &z->uring;
  uint32_t tail = atomic_load(uring_word(u, u->params.sq_off.tail));
  uint32_t slot = tail & *uring_word(u, u->params.sq_off.ring_mask);
  struct io_uring_sqe *e = &u->entries[slot];
  memset(e, 0, sizeof *e);
  e->opcode = (uint8_t)opcode;
  e->fd = file;
  e->addr = (uint64_t)(uintptr_t)memory;
  e->len = (uint32_t)size;
  e->off = offset;
  e->buf_index = 0;
  ((uint32_t *)(void *)(u->rings + u->params.sq_off.array))[slot] = slot;
  atomic_store(uring_word(u, u->params.sq_off.tail), tail + 1);
  long n = syscall(SYS_io_uring_enter, u->descriptor, 1, 0, 0, NULL, 0);
  if (n != 1) fail(z, "io_uring_enter: %ld, %s", n, strerror(errno));
}

static void uring_complete(Zone *z, size_t size) {
  Uring *u = &z->uring;
  uint32_t head = atomic_load(uring_word(u, u->params.cq_off.head));
  while (head == atomic_load(uring_word(u, u->params.cq_off.tail)))
    if (syscall(SYS_io_uring_enter, u->descriptor, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0 && errno != EINTR)
      fail(z, "io_uring_enter: %s", strerror(errno));
  struct io_uring_cqe *cqe =
      (struct io_uring_cqe *)(void *)(u->rings + u->params.cq_off.cqes) + (head & *uring_word(u, u->params.cq_off.ring_mask));
  int result = cqe->res;
  atomic_store(uring_word(u, u->params.cq_off.head), head + 1);
  if (result != (int)size) fail(z, "io_uring completed with %d instead of %zu", result, size);
}

static void uring_release(Zone *z) {
  Uring *u = &z->uring;
  if (u->count == 0) return;
  if (syscall(SYS_io_uring_register, u->descriptor, IORING_UNREGISTER_BUFFERS, NULL, 0) < 0)
    fail(z, "IORING_UNREGISTER_BUFFERS: %s", strerror(errno));
  for (uint32_t i = u->first; i < u->first + u->count; i++) z->page[i].flags &= (uint8_t)~PINNED;
  u->count = 0;
}

/// Data for the read that waits: the kernel writes it into the registered buffer.
static void uring_finish(Zone *z) {
  Uring *u = &z->uring;
  uint64_t tags[SPAN_BLOCKS], words[BLOCK_WORDS];
  if (u->pending == 0) return;
  Span s = {u->first + u->pending_block / PAGE_BLOCKS, u->pending_block % PAGE_BLOCKS, u->pending};
  for (uint32_t i = 0; i < s.count; i++) tags[i] = tag_random(&z->rng);
  // In one write: the read would complete with the first piece.
  uint8_t *all = mmap(NULL, s.count * BLOCK_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (all == MAP_FAILED) fail(z, "mmap: %s", strerror(errno));
  for (uint32_t i = 0; i < s.count; i++) {
    block_fill(words, tags[i]);
    memcpy(all + i * BLOCK_BYTES, words, BLOCK_BYTES);
  }
  ssize_t n = write(u->pipe[1], all, s.count * BLOCK_BYTES);
  munmap(all, s.count * BLOCK_BYTES);
  if (n != (ssize_t)(s.count * BLOCK_BYTES)) fail(z, "write to a pipe: %zd, %s", n, strerror(errno));
  uring_complete(z, s.count * BLOCK_BYTES);
  set_span_tags(z, OP_uring, s, tags);
  u->pending = 0;
  check_span(z, s);
}

static int op_uring(Zone *z) {
  Uring *u = &z->uring;
  if (!uring_open(z)) return -1;
  if (u->pending) {
    uring_finish(z);
    return 0;
  }
  if (u->count && u->lives-- == 0) {
    uring_release(z);
    return 0;
  }
  if (u->count == 0) {
    if (!pick(z, settled, 64, &u->first, &u->count)) {
      u->count = 0;
      return -1;
    }
    struct iovec buffer = {address_of(z, u->first), (size_t)u->count * PAGE_BYTES};
    if (syscall(SYS_io_uring_register, u->descriptor, IORING_REGISTER_BUFFERS, &buffer, 1) < 0) {
      u->count = 0;
      if (errno == ENOMEM) return ENOMEM;  // RLIMIT_MEMLOCK
      fail(z, "IORING_REGISTER_BUFFERS: %s", strerror(errno));
    }
    u->lives = 4 + (uint32_t)rng_below(&z->rng, 12);
    for (uint32_t i = u->first; i < u->first + u->count; i++) {
      z->page[i].flags |= PINNED;
      note(z, &z->page[i], OP_uring, 0, 0, 1);
    }
    return 0;
  }
  uint32_t block = (uint32_t)rng_below(&z->rng, u->count * PAGE_BLOCKS), most = u->count * PAGE_BLOCKS - block;
  if (most > 15 * PAGE_BLOCKS) most = 15 * PAGE_BLOCKS;
  uint32_t blocks = 1 + (uint32_t)rng_below(&z->rng, most);
  Span s = {u->first + block / PAGE_BLOCKS, block % PAGE_BLOCKS, blocks};
  switch (rng_below(&z->rng, 4)) {
  case 0:
  case 1:  // completes in a later step: until then the buffer is only waited for
    uring_submit(z, IORING_OP_READ_FIXED, u->pipe[0], span_address(z, s), s.count * BLOCK_BYTES, (uint64_t)-1);
    u->pending_block = block;
    u->pending = blocks;
    return 0;
  case 2:
    if (!open_file(z, &z->direct, O_DIRECT)) return -1;
    s = whole_pages(s);
    uint32_t at = direct_place(z, s);
    uring_submit(z, IORING_OP_READ_FIXED, z->direct.descriptor, span_address(z, s), s.count * BLOCK_BYTES, (uint64_t)at * BLOCK_BYTES);
    for (int i = 0; i < 4; i++) {  // other pages meanwhile, not those the device is writing to
      uint32_t first, count;
      if (pick(z, readable, 512, &first, &count) && (first + count <= u->first || first >= u->first + u->count))
        check_range(z, first, count);
    }
    uring_complete(z, s.count * BLOCK_BYTES);
    set_span_tags(z, OP_uring, s, &z->direct.tag[at]);
    check_span(z, s);
    return 0;
  default:
    if (!open_file(z, &z->direct, O_DIRECT)) return -1;
    s = whole_pages(s);
    uint32_t to = direct_place(z, s);
    uring_submit(z, IORING_OP_WRITE_FIXED, z->direct.descriptor, span_address(z, s), s.count * BLOCK_BYTES, (uint64_t)to * BLOCK_BYTES);
    uring_complete(z, s.count * BLOCK_BYTES);
    span_tags(z, s, &z->direct.tag[to]);
    return 0;
  }
}

// --- a helper process that reads and writes this one's memory from outside ---

typedef struct {
  uint64_t address;
  uint32_t count;
  uint8_t writing, proc_mem;
  pid_t pid;
  uint64_t tag[SPAN_BLOCKS];
} Request;

static int run_helper(int socket) {
  static Request request;
  static uint64_t memory[SPAN_BLOCKS * BLOCK_WORDS];
  while (read(socket, &request, sizeof request) == (ssize_t)sizeof request) {
    size_t size = (size_t)request.count * BLOCK_BYTES;
    struct iovec here = {memory, size}, there = {(void *)(uintptr_t)request.address, size};
    int32_t answer = 0;
    ssize_t n = -1;
    if (request.writing)
      for (uint32_t i = 0; i < request.count; i++) block_fill(memory + i * BLOCK_WORDS, request.tag[i]);
    if (request.proc_mem) {
      char path[64];
      snprintf(path, sizeof path, "/proc/%d/mem", request.pid);
      int file = open(path, O_RDWR | O_CLOEXEC);
      if (file >= 0) {
        n = request.writing ? pwrite(file, memory, size, (off_t)request.address) : pread(file, memory, size, (off_t)request.address);
        close(file);
      }
    }
    // The kernel reaches into another process through /proc/PID/mem without being able to wait for a page (get_user_pages_remote
    // without FAULT_FLAG_ALLOW_RETRY): an evicted page is an error there, never wrong content. process_vm_readv waits.
    if (n != (ssize_t)size) {
      n = request.writing ? process_vm_writev(request.pid, &here, 1, &there, 1, 0) : process_vm_readv(request.pid, &here, 1, &there, 1, 0);
    }
    if (n < 0) answer = -errno;
    else if ((size_t)n != size) answer = -EIO;
    else if (!request.writing)
      for (uint32_t i = 0; i < request.count && answer == 0; i++)
        if (block_check(memory + i * BLOCK_WORDS, request.tag[i]) >= 0) answer = (int32_t)i + 1;
    if (write(socket, &answer, sizeof answer) != sizeof answer) break;
  }
  return 0;
}

static void start_helper(void) {
  int ends[2];
  char text[16];
  pid_t pid;
  shared->helper_socket = -1;
  if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends)) die("socketpair: %s", strerror(errno));
  fcntl(ends[0], F_SETFD, FD_CLOEXEC);
  snprintf(text, sizeof text, "%d", ends[1]);
  char *arguments[] = {shared->self, "--helper", text, NULL};
  if ((errno = posix_spawn(&pid, shared->self, NULL, NULL, arguments, environ))) die("posix_spawn: %s", strerror(errno));
  close(ends[1]);
  prctl(PR_SET_PTRACER, pid, 0, 0, 0);  // where yama allows descendants only
  shared->helper = pid;
  shared->helper_socket = ends[0];
}

static int op_remote(Zone *z) {
  static Request request;
  Span s;
  if (z->index != 0 || z->depth > 0 || shared->helper_socket < 0) return -1;
  bool writing = rng_chance(&z->rng, 2), proc_mem = rng_chance(&z->rng, 3);
  if (!pick_span(z, writing ? writable : source, SPAN_BLOCKS, &s)) return -1;
  request = (Request){.address = (uint64_t)(uintptr_t)span_address(z, s), .count = s.count, .writing = writing, .proc_mem = proc_mem, .pid = getpid()};
  if (writing)
    for (uint32_t i = 0; i < s.count; i++) request.tag[i] = tag_random(&z->rng);
  else
    span_tags(z, s, request.tag);
  if (shared->no_remote) return -1;
  int32_t answer = 0;
  if (write(shared->helper_socket, &request, sizeof request) != (ssize_t)sizeof request ||
      read(shared->helper_socket, &answer, sizeof answer) != sizeof answer)
    fail(z, "the helper process is gone");
  if (answer == -EPERM || answer == -EACCES || answer == -ENOSYS) {
    shared->no_remote = true;
    shared->remote_errno = -answer;
    return -1;
  }
  if (answer < 0) fail(z, "%s from outside at %p: %s", writing ? "write" : "read", (void *)span_address(z, s), strerror(-answer));
  if (answer > 0) {
    uint32_t block = s.block + (uint32_t)answer - 1;
    dprintf(2, "model: seed=%llu step=%u: a process that reads from outside (%s) found wrong content in block %u of %p\n",
            (unsigned long long)shared->seed, z->step, proc_mem ? "/proc/PID/mem" : "process_vm_readv", answer - 1, (void *)span_address(z, s));
    print_history(&z->page[s.page + block / PAGE_BLOCKS]);
    check_span(z, s);
    fail(z, "and this process itself reads the right content");
  }
  if (writing) set_span_tags(z, OP_remote, s, request.tag);
  if (writing && rng_chance(&z->rng, 2)) check_span(z, s);
  return 0;
}

// --- heap ---

/// sbrk up and down; the main thread only, and only as long as malloc has not grown the heap behind it.
static int op_heap(Zone *z) {
  if (z->index != 0) return -1;
  Rng rng = {rng_next(&z->rng)};  // its own: what malloc does with the heap must not change the sequence
  uint8_t *base = (uint8_t *)z->heap_base;
  bool ours = z->heap_base && sbrk(0) == base + (size_t)z->heap_pages * PAGE_BYTES;
  if (z->heap_base && !ours) {
    for (uint32_t i = 0; i < z->heap_pages; i++) check(z, &z->heap[i], base + (size_t)i * PAGE_BYTES);
    z->heap_base = 0;
    z->heap_pages = 0;
    if (++z->heap_abandoned > 16) return -1;
  }
  if (z->heap_base == 0) {
    if (z->heap_abandoned > 16) return -1;
    uintptr_t now = (uintptr_t)sbrk(0);
    if (sbrk((intptr_t)(-now & (PAGE_BYTES - 1))) == (void *)-1) return errno;
    z->heap_base = (uintptr_t)sbrk(0);
    z->heap_pages = 0;
    base = (uint8_t *)z->heap_base;
  }
  uint32_t n = (uint32_t)rng_log(&rng, 256);
  switch (rng_below(&rng, 5)) {
  case 0:
  case 1:
    if (z->heap_pages + n > HEAP_PAGES) return -1;
    if (sbrk((intptr_t)n * PAGE_BYTES) != base + (size_t)z->heap_pages * PAGE_BYTES) fail(z, "sbrk: %s", strerror(errno));
    for (uint32_t i = z->heap_pages; i < z->heap_pages + n; i++) {
      Page *p = &z->heap[i];
      forget_content(p);
      p->mapped = 1;
      p->prot = PROT_READ | PROT_WRITE;
      note(z, p, OP_heap, 0, 0, 1);
      if (rng_chance(&rng, 4)) check(z, p, base + (size_t)i * PAGE_BYTES);
      if (!rng_chance(&rng, 4)) write_blocks(z, &rng, OP_heap, p, base + (size_t)i * PAGE_BYTES, 0, PAGE_BLOCKS);
    }
    z->heap_pages += n;
    return 0;
  case 2:
    if (n > z->heap_pages) n = z->heap_pages;
    for (uint32_t i = z->heap_pages - n; i < z->heap_pages; i++) check(z, &z->heap[i], base + (size_t)i * PAGE_BYTES);
    if (sbrk(-(intptr_t)n * PAGE_BYTES) == (void *)-1) fail(z, "sbrk: %s", strerror(errno));
    z->heap_pages -= n;
    return 0;
  default:
    for (; n > 0 && z->heap_pages; n--) {
      uint32_t i = (uint32_t)rng_below(&rng, z->heap_pages);
      check(z, &z->heap[i], base + (size_t)i * PAGE_BYTES);
      write_blocks(z, &rng, OP_heap, &z->heap[i], base + (size_t)i * PAGE_BYTES, (int)rng_below(&rng, PAGE_BLOCKS), 1);
    }
    return 0;
  }
}

static uint64_t piece_tag(uint64_t tag, uint64_t piece) { return (mix64(tag + piece * 0x1000) & ~3ull) | (piece + tag) % 3 | 8; }

static void fill_bytes(uint8_t *memory, uint64_t from, uint64_t to, uint64_t tag) {
  uint64_t words[BLOCK_WORDS];
  for (uint64_t piece = from / BLOCK_BYTES; piece * BLOCK_BYTES < to; piece++) {
    uint64_t start = piece * BLOCK_BYTES < from ? from : piece * BLOCK_BYTES;
    uint64_t end = (piece + 1) * BLOCK_BYTES > to ? to : (piece + 1) * BLOCK_BYTES;
    block_fill(words, piece_tag(tag, piece));
    memcpy(memory + start, (uint8_t *)words + start % BLOCK_BYTES, end - start);
  }
}

static void check_bytes(Zone *z, const uint8_t *memory, uint64_t bytes, uint64_t tag) {
  uint64_t words[BLOCK_WORDS];
  for (uint64_t piece = 0; piece * BLOCK_BYTES < bytes; piece++) {
    uint64_t start = piece * BLOCK_BYTES, size = bytes - start < BLOCK_BYTES ? bytes - start : BLOCK_BYTES;
    block_fill(words, piece_tag(tag, piece));
    if (memcmp(memory + start, words, size) != 0) {
      for (uint64_t i = 0; i < size; i++)
        if (memory[start + i] != ((uint8_t *)words)[i]) {
          dprintf(2, "model: malloc block %p+%llu of %llu bytes: expected %02x, found %02x\n", (const void *)memory,
                  (unsigned long long)(start + i), (unsigned long long)bytes, ((uint8_t *)words)[i], memory[start + i]);
          print_mapping((uintptr_t)memory + start + i);
          break;
        }
      fail(z, "malloc'd memory has changed");
    }
  }
}

static void check_allocation(Zone *z, Allocation *a) {
  if (a->memory) check_bytes(z, a->memory, a->bytes, a->tag);
}

static int op_allocate(Zone *z) {
  for (int n = 1 + (int)rng_below(&z->rng, 8); n > 0; n--) {
    Allocation *a = &z->allocation[rng_below(&z->rng, ALLOCATIONS)];
    uint64_t bytes = rng_log(&z->rng, ALLOCATION_BYTES);
    if (a->memory == NULL) {
      bool zeroed = rng_chance(&z->rng, 3);
      a->memory = zeroed ? calloc(1, bytes) : malloc(bytes);
      if (a->memory == NULL) fail(z, "malloc of %llu bytes", (unsigned long long)bytes);
      if (zeroed)
        for (uint64_t i = 0; i < bytes; i++)
          if (a->memory[i]) fail(z, "calloc'd memory is not zero: %p+%llu", (void *)a->memory, (unsigned long long)i);
      a->bytes = bytes;
      a->tag = rng_next(&z->rng);
      fill_bytes(a->memory, 0, bytes, a->tag);
    } else if (rng_chance(&z->rng, 3)) {
      check_allocation(z, a);
      free(a->memory);
      a->memory = NULL;
    } else {
      uint8_t *memory = realloc(a->memory, bytes);
      if (memory == NULL) fail(z, "realloc to %llu bytes", (unsigned long long)bytes);
      a->memory = memory;
      if (bytes > a->bytes) {
        check_bytes(z, memory, a->bytes, a->tag);
        fill_bytes(memory, a->bytes, bytes, a->tag);
      }
      a->bytes = bytes;
      check_allocation(z, a);
    }
  }
  return 0;
}

// --- running ---

static int (*const operations[OP_count])(Zone *) = {
#define X(name, weight) op_##name,
    OPERATIONS(X)
#undef X
};

static Op choose(Zone *z) {
  uint64_t at = rng_below(&z->rng, shared->op_total);
  for (int op = 0; op < OP_count; op++) {
    if (!shared->op_enabled[op]) continue;
    if (at < op_weights[op]) return (Op)op;
    at -= op_weights[op];
  }
  return OP_verify;
}

static void step(Zone *z) {
  Op op = choose(z);
  z->step++;
  if (z->mapped < z->target * 3 / 4 && rng_chance(&z->rng, 4)) op = OP_map;
  if (shared->verbose) dprintf(2, "model: zone %d depth %d step %u %s\n", z->index, z->depth, z->step, op_names[op]);
  Trace *trace = &z->trace[z->step % TRACES];
  *trace = (Trace){z->step, (int16_t)op, -2, {0, 0}, {0, 0}, UINT32_MAX};
  int result = operations[op](z);
  trace->result = (int16_t)result;
  if (result == 0) z->done[op]++;
  if (op == OP_heap) result = 0;
  z->outcome = mix64(z->outcome ^ ((uint64_t)op << 32 | (uint32_t)result)) + z->mapped;
  if (z->step % 512 == 0) {
    uint32_t start = (uint32_t)rng_below(&z->rng, z->pages), n = z->pages / 8;
    check_range(z, start, start + n > z->pages ? z->pages - start : n);
  }
}

static void run_steps(Zone *z, uint32_t steps) {
  while (steps-- > 0) step(z);
}

static void verify_all(Zone *z) {
  check_range(z, 0, z->pages);
  for (int i = 0; i < ALLOCATIONS; i++) check_allocation(z, &z->allocation[i]);
  if (z->heap_base)
    for (uint32_t i = 0; i < z->heap_pages; i++) check(z, &z->heap[i], (void *)(z->heap_base + (uintptr_t)i * PAGE_BYTES));
}

static void fill(Zone *z) {
  while (z->mapped < z->target) op_map(z);
}

static void *run_worker(void *argument) {
  Zone *z = current = zone_at((uint32_t)(uintptr_t)argument);
  pthread_rwlock_rdlock(&quiet);
  fill(z);
  pthread_rwlock_unlock(&quiet);
  while (!atomic_load(&shared->stop)) {
    pthread_rwlock_rdlock(&quiet);
    step(z);
    pthread_rwlock_unlock(&quiet);
  }
  pthread_rwlock_rdlock(&quiet);
  if (z->uring.descriptor >= 0) {
    uring_finish(z);
    uring_release(z);
  }
  pthread_rwlock_unlock(&quiet);
  return NULL;
}

static bool listed(const char *list, const char *name) {
  size_t length = strlen(name);
  for (const char *at = list; at; at = strchr(at, ',')) {
    if (*at == ',') at++;
    if (strncmp(at, name, length) == 0 && (at[length] == ',' || at[length] == 0)) return true;
  }
  return false;
}

static void usage(void) {
  dprintf(2, "usage: model [--seed N] [--steps N | --seconds N] [--size MiB] [--threads N] [--ops LIST] [--without LIST] [--verbose]\n"
             "operations:");
  for (int op = 0; op < OP_count; op++) dprintf(2, " %s", op_names[op]);
  dprintf(2, "\n");
}

int main(int argc, char **argv) {
  uint64_t seed = now_ns() ^ (uint64_t)getpid() << 32, steps = 6000, seconds = 0, size = 96, threads = 2;
  const char *only = NULL, *without = "", *value;
  bool verbose = false;
  for (int i = 1; i < argc; i++) {
    if ((value = option_value(argc, argv, &i, "--exit"))) return atoi(value);
    else if ((value = option_value(argc, argv, &i, "--helper"))) return run_helper(atoi(value));
    else if ((value = option_value(argc, argv, &i, "--seed"))) seed = parse_number("--seed", value);
    else if ((value = option_value(argc, argv, &i, "--steps"))) steps = parse_number("--steps", value);
    else if ((value = option_value(argc, argv, &i, "--seconds"))) seconds = parse_number("--seconds", value);
    else if ((value = option_value(argc, argv, &i, "--size"))) size = parse_number("--size", value);
    else if ((value = option_value(argc, argv, &i, "--threads"))) threads = parse_number("--threads", value);
    else if ((value = option_value(argc, argv, &i, "--ops"))) only = value;
    else if ((value = option_value(argc, argv, &i, "--without"))) without = value;
    else if (strcmp(argv[i], "--verbose") == 0) verbose = true;
    else {
      usage();
      return 2;
    }
  }
  if (sysconf(_SC_PAGESIZE) != PAGE_BYTES) die("pages are not 4096 bytes");
  if (threads >= ZONES) die("--threads: at most %d", ZONES - 1);
  if (size < 4 || size > 65536) die("--size: 4...65536 MiB");

  uint64_t start = now_ns();
  uint32_t zones = 1 + (uint32_t)threads;
  uint32_t target = (uint32_t)(size * 256);  // pages
  uint32_t targets[ZONES], pages[ZONES], total = 0;
  for (uint32_t i = 0; i < zones; i++) {
    targets[i] = threads == 0 ? target : i == 0 ? target / 2 : target / 2 / (uint32_t)threads;
    if (targets[i] < 64) targets[i] = 64;
    pages[i] = targets[i] * 2;
    total += pages[i];
  }
  size_t offset = (sizeof(Shared) + 63) / 64 * 64;
  size_t offsets[ZONES];
  for (uint32_t i = 0; i < zones; i++) {
    offsets[i] = offset;
    offset += (sizeof(Zone) + pages[i] * sizeof(Page) + 63) / 64 * 64;
  }
  shared_bytes = (offset + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
  int file = memfd_create("model-shadow", MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, (off_t)shared_bytes)) die("memfd: %s", strerror(errno));
  shared = mmap(NULL, shared_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (shared == MAP_FAILED) die("mmap of the shadow: %s", strerror(errno));
  close(file);
  memcpy(shared->zone_offset, offsets, sizeof offsets);
  shared->seed = seed;
  shared->zones = zones;
  shared->verbose = verbose;
  shared->root = getpid();
  ssize_t length = readlink("/proc/self/exe", shared->self, sizeof shared->self - 1);
  if (length <= 0) die("readlink: %s", strerror(errno));
  for (int op = 0; op < OP_count; op++) {
    shared->op_enabled[op] = (only == NULL || listed(only, op_names[op])) && !listed(without, op_names[op]);
    if (shared->op_enabled[op]) shared->op_total += op_weights[op];
  }
  if (shared->op_total == 0) die("--ops: no such operation");

  // Addresses far below where the kernel maps by itself: nobody else's mapping ever falls into a hole of ours.
  static const uintptr_t bases[] = {0x100000000000, 0x3000000000, 0x1000000000};
  size_t bytes = (size_t)(total + GAP_PAGES) * PAGE_BYTES;
  uintptr_t base = 0;
  for (size_t i = 0; i < sizeof bases / sizeof *bases && !base; i++) {
    void *at = mmap((void *)bases[i], bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    if (at == MAP_FAILED) continue;
    munmap(at, bytes);
    if (at == (void *)bases[i]) base = bases[i];
  }
  if (!base) die("no address range of %zu bytes is free", bytes);
  Rng seeds = {seed};
  for (uint32_t i = 0; i < zones; i++) {
    Zone *z = zone_at(i);
    z->index = (int)i;
    z->rng.state = rng_next(&seeds);
    z->base = base;
    z->pages = pages[i];
    z->target = targets[i];
    z->file.descriptor = z->direct.descriptor = z->uring.descriptor = -1;
    base += (uintptr_t)(pages[i] + (i == 0 ? GAP_PAGES : 0)) * PAGE_BYTES;
  }

  struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigaction(SIGSEGV, &action, NULL);
  sigaction(SIGBUS, &action, NULL);
  pthread_rwlockattr_t attributes;
  pthread_rwlockattr_init(&attributes);
  pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
  pthread_rwlock_init(&quiet, &attributes);
  if (shared->op_enabled[OP_remote]) start_helper();
  else shared->helper_socket = -1;

  pthread_t worker[ZONES];
  for (uint32_t i = 1; i < zones; i++)
    if ((errno = pthread_create(&worker[i], NULL, run_worker, (void *)(uintptr_t)i))) die("pthread_create: %s", strerror(errno));
  Zone *z = current = zone_at(0);
  fill(z);
  if (seconds) {
    while (now_ns() - start < seconds * 1000000000u) step(z);
  } else {
    run_steps(z, (uint32_t)steps);
  }
  if (z->uring.descriptor >= 0) {
    uring_finish(z);
    uring_release(z);
  }
  atomic_store(&shared->stop, true);
  for (uint32_t i = 1; i < zones; i++)
    if ((errno = pthread_join(worker[i], NULL))) die("pthread_join: %s", strerror(errno));
  for (int i = 0; i < CHILDREN; i++) reap(z, i);
  uint64_t all_steps = 0, checked = 0, mremaps = 0, refused = 0;
  for (uint32_t i = 0; i < zones; i++) {
    Zone *other = zone_at(i);
    verify_all(other);
    all_steps += other->step;
    checked += other->checked_pages;
    mremaps += other->mremaps;
    refused += other->mremaps_refused;
  }
  if (shared->helper_socket >= 0) {
    close(shared->helper_socket);
    waitpid(shared->helper, NULL, 0);
  }
  char unavailable[160] = "";
  size_t used = 0;
  if (shared->uring_errno) used += (size_t)snprintf(unavailable + used, sizeof unavailable - used, " io_uring(%s)", strerror(shared->uring_errno));
  if (shared->direct_errno) used += (size_t)snprintf(unavailable + used, sizeof unavailable - used, " O_DIRECT(%s)", strerror(shared->direct_errno));
  if (shared->remote_errno) used += (size_t)snprintf(unavailable + used, sizeof unavailable - used, " process_vm(%s)", strerror(shared->remote_errno));
  printf("model: ok seed=%llu steps=%u/%llu threads=%llu checked_pages=%llu forks=%u mremap=%llu refused=%llu "
         "free_zero=%u free_old=%u outcome=%016llx seconds=%.2f unavailable=[%s]\n",
         (unsigned long long)seed, z->step, (unsigned long long)all_steps, (unsigned long long)threads, (unsigned long long)checked,
         z->forks, (unsigned long long)mremaps, (unsigned long long)refused, z->free_zero, z->free_old,
         (unsigned long long)z->outcome, (double)(now_ns() - start) / 1e9, *unavailable ? unavailable + 1 : "");
  if (shared->verbose)
    for (int op = 0; op < OP_count; op++) printf("  %-18s %llu\n", op_names[op], (unsigned long long)z->done[op]);
  return 0;
}
