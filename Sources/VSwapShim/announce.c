// New memory is announced to the daemon before the program uses it, while the group is near its limit: what is registered by then cannot
// grow unseen. It costs what a page fault does, and is one: the thread notes the range in the ring and touches a *bell*, a page of a registered
// range that nobody has touched before. The daemon registers what was announced and then fills the page.
//
//   mmap          memory that may be written; MAP_POPULATE is left out where it would fill memory at one stroke
//   mprotect      reservations that can be written from now on, as V8 and glibc's arenas make them
//   sbrk          the heap of programs with an allocator of their own
//
// Mappings that libc makes for itself, and raw system calls, are found by the daemon's own looks.
#include <errno.h>
#include <dlfcn.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "raw.h"
#include "shim.h"

#define EXPORTED __attribute__((visibility("default")))
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
// Registered memory is remembered in pieces of that many bytes, so that mprotect back and forth is announced once.
#define PIECE_SHIFT 18
#define PIECES 1024u

// The program's threads use these, the agent the first one before it serves. A child goes on with the same bells: those that were rung are there.
static uint8_t *bells;
static atomic_uint rung;
static atomic_uint advised;
static atomic_uint_least64_t pieces[PIECES];

void shim_make_bells(void) {
  if (!bells) {
    // Between guards, so that it does not become one with the program's memory.
    size_t length = VSWAP_BELLS * SHIM_PAGE;
    long base = raw(SYS_mmap, NULL, length + 2 * SHIM_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base < 0 && base > -4096) return;
    if (raw(SYS_mprotect, base + SHIM_PAGE, length, PROT_READ) != 0) return;
    bells = (uint8_t *)base + SHIM_PAGE;
  }
  shim->ring->bells = (uintptr_t)bells;
}

void shim_note_advice(void) { atomic_store_explicit(&advised, 1, memory_order_relaxed); }

/// Whether memory of that length has to be announced. Not in a child that has no ring.
static bool is_wanted(size_t length) {
  if (!shim_is_ours() || !bells || vswap_load(&shim->phase) != SHIM_ATTACHED) return false;
  return length / SHIM_PAGE >= vswap_load(&shim->ring->announce_from);
}

static atomic_uint_least64_t *piece_at(uint64_t address) { return &pieces[(address >> PIECE_SHIFT) % PIECES]; }

static void remember(uint64_t start, uint64_t end) {
  uint64_t size = 1ull << PIECE_SHIFT, most = PIECES * size;
  if (end - start > most) end = start + most;
  for (uint64_t at = (start + size - 1) & -size; at + size <= end; at += size)
    atomic_store_explicit(piece_at(at), at, memory_order_relaxed);
}

static void forget(uint64_t start, uint64_t length) {
  uint64_t size = 1ull << PIECE_SHIFT, end = start + length;
  for (unsigned index = 0; index < PIECES; index++) {
    uint64_t at = atomic_load_explicit(&pieces[index], memory_order_relaxed);
    if (at != 0 && at < end && start < at + size) atomic_store_explicit(&pieces[index], 0, memory_order_relaxed);
  }
}

static bool is_known(uint64_t start, uint64_t length) {
  uint64_t size = 1ull << PIECE_SHIFT, end = start + length;
  if (length > PIECES * size) return false;
  for (uint64_t at = start & -size; at < end; at += size)
    if (atomic_load_explicit(piece_at(at), memory_order_relaxed) != at) return false;
  return true;
}

/// Returns when the daemon has registered the range, if it can. `plain`: nothing of it is to be left alone at a fork, or is a stack.
static void announce(uint64_t start, uint64_t length, bool plain) {
  int error = errno;
  unsigned index = atomic_fetch_add_explicit(&rung, 1, memory_order_relaxed) % VSWAP_BELLS;
  // Half of the bells at a time can be used again. The other half is in use meanwhile.
  unsigned half = VSWAP_BELLS / 2;
  if (index % half == 0) {
    uint8_t *others = bells + (index == 0 ? half : 0) * SHIM_PAGE;
    raw(SYS_madvise, others, half * SHIM_PAGE, MADV_DONTNEED);
  }
  struct vswap_announcement *entry = &shim->ring->announcements[index];
  entry->start = (start & ~(uint64_t)(SHIM_PAGE - 1)) | (plain ? VSWAP_ANNOUNCED_PLAIN : 0);
  entry->end = (start + length + SHIM_PAGE - 1) & ~(uint64_t)(SHIM_PAGE - 1);
  atomic_thread_fence(memory_order_release);
  (void)*(volatile uint8_t *)(bells + index * SHIM_PAGE);
  // What is registered around it.
  uint64_t low = entry->start, high = entry->end;
  if (low % SHIM_PAGE == 0 && low <= start && start + length <= high) remember(low, high);
  errno = error;
}

void shim_announce(void *address, size_t length) {
  if (address != MAP_FAILED && is_wanted(length)) announce((uintptr_t)address, length, false);
}

/// What libc makes of what the kernel returns.
static long told(long result) {
  if (result >= 0 || result < -4095) return result;
  errno = (int)-result;
  return -1;
}

static void *map(void *address, size_t length, int protection, int flags, int descriptor, off_t offset) {
  bool ours = (flags & MAP_ANONYMOUS) && (flags & MAP_TYPE) == MAP_PRIVATE && !(flags & (MAP_HUGETLB | MAP_GROWSDOWN));
  bool wanted = ours && is_wanted(length);
  if (ours && flags & MAP_STACK) shim_note_advice();
  // Filled at one stroke it would be there before anybody could make room. Pages come when they are touched.
  if (wanted) flags &= ~MAP_POPULATE;
  void *made = (void *)told(raw(SYS_mmap, address, length, protection, flags, descriptor, offset));
  if (!wanted || made == MAP_FAILED) return made;
  forget((uintptr_t)made, length);
  // What is locked cannot be evicted, and was filled by now.
  if (protection & PROT_WRITE && !(flags & MAP_LOCKED)) announce((uintptr_t)made, length, !(flags & MAP_STACK));
  return made;
}

EXPORTED void *mmap(void *address, size_t length, int protection, int flags, int descriptor, off_t offset) {
  return map(address, length, protection, flags, descriptor, offset);
}

EXPORTED void *mmap64(void *address, size_t length, int protection, int flags, int descriptor, off64_t offset) {
  return map(address, length, protection, flags, descriptor, offset);
}

EXPORTED int mprotect(void *address, size_t length, int protection) {
  int result = (int)told(raw(SYS_mprotect, address, length, protection));
  if (result != 0 || !(protection & PROT_WRITE) || !is_wanted(length) || is_known((uintptr_t)address, length)) return result;
  announce((uintptr_t)address, length, !atomic_load_explicit(&advised, memory_order_relaxed));
  return result;
}

EXPORTED void *sbrk(intptr_t increment) {
  static void *(*real)(intptr_t) = NULL;
  if (!real) {
    void *next = dlsym(RTLD_NEXT, "sbrk");
    memcpy(&real, &next, sizeof(real));
  }
  void *before = real(increment);
  if (increment > 0 && before != (void *)-1) shim_announce(before, (size_t)increment);
  return before;
}
