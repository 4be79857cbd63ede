// The calls that the library stands in for, each because the kernel tells the daemon nothing, or too late:
//
//   pthread_create  to know stacks and thread control blocks, which must stay resident
//   mremap          a range over several mappings, one of them registered, is left half moved (6.17+) or refused; and one call
//                   at a time, none during fork, since the kernel's events of several threads arrive in any order
//   realloc         calls mremap inside libc, where nobody sees it; the same order for those
//   fork            to start the child's agent after all fork handlers, since that allocates, and an allocator may have its locks until then
//   madvise         WIPEONFORK, DONTFORK and GUARD_INSTALL change what a hole in the range means, without an event
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shim.h"
#include "vs_userfault.h"

#define EXPORTED __attribute__((visibility("default")))
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
// Smaller blocks are no mappings of their own: M_MMAP_THRESHOLD is 128 KiB at least, unless somebody changed it.
#define SMALL_BLOCK ((size_t)64 * 1024)
// struct pthread of glibc begins at the thread pointer and is smaller than this.
#define THREAD_BLOCK (2 * SHIM_PAGE)
// Beside the holder's number in `order`: somebody waits for it.
#define ORDER_WAITED 0x80000000u
// A thread-local variable of any other model would need more than libc: a function of the dynamic linker's.
#define THREAD_LOCAL static __thread __attribute__((tls_model("initial-exec")))

int (*shim_real_pthread_create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
static pid_t (*real_fork)(void);

/// One bit for each fork of this thread that is under way, the innermost lowest: whether it began the order. A signal handler that forks
/// leaves it as it was.
THREAD_LOCAL uint64_t fork_orders;
/// How often this thread is inside our fork().
THREAD_LOCAL uint32_t forks;

/// A child made by _Fork(3) or clone(2) itself never went through our fork handler: the state is its parent's, and the ring is not there.
static bool is_ours(void) { return shim_ready() && shim->process == (uint32_t)syscall(SYS_getpid); }

/// Asks the daemon to let go of a range. Between this and `end_request` it registers and evicts nothing here.
static bool begin_request(uint32_t kind, uint64_t start, uint64_t end) {
  struct vswap_request *request = &shim->ring->request;
  while (vswap_load(&request->state) == VSWAP_REQUEST_DONE) {
    if (vswap_load(&shim->phase) != SHIM_ATTACHED) return false;
    shim_futex_wait(&request->state, VSWAP_REQUEST_DONE, 100);
  }
  request->kind = kind;
  request->start = start;
  request->end = end;
  vswap_store(&request->state, VSWAP_REQUEST_ASKED);
  vswap_add(&shim->ring->doorbell, 1);
  shim_futex_wake(&shim->ring->doorbell);
  while (vswap_load(&request->state) == VSWAP_REQUEST_ASKED) {
    if (vswap_load(&shim->phase) != SHIM_ATTACHED) return false;
    shim_futex_wait(&request->state, VSWAP_REQUEST_ASKED, 100);
  }
  return true;
}

static void end_request(void) {
  vswap_store(&shim->ring->request.state, VSWAP_REQUEST_DONE);
  vswap_add(&shim->ring->doorbell, 1);
  shim_futex_wake(&shim->ring->doorbell);
}

static long plain_call(long number, const long *arguments) {
  return syscall(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4]);
}

/// The mutex of Drepper, "Futexes are tricky", whose word names the holder like that of a PI futex: so a signal handler finds out at any
/// moment. Who has it may come back: a fork handler or an allocator that calls mremap. false: the thread has the order already.
static bool begin_order(void) {
  uint32_t waited = 0;
  for (;;) {
    uint32_t self = (uint32_t)syscall(SYS_gettid), held = vswap_load(&shim->order);
    if ((held & ~ORDER_WAITED) == self) return false;
    if (held == 0) {
      if (!vswap_replace(&shim->order, 0, self | waited)) continue;
      if ((uint32_t)syscall(SYS_gettid) == self) return true;
      // This is a child that a signal handler forked meanwhile, with another number.
      vswap_store(&shim->order, 0);
    } else if (held & ORDER_WAITED || vswap_replace(&shim->order, held, held | ORDER_WAITED)) {
      shim_futex_wait(&shim->order, held | ORDER_WAITED, -1);
      // Others may wait still.
      waited = ORDER_WAITED;
    }
  }
}

static void end_order(void) {
  // In a child that a signal handler forked meanwhile nobody has it, or another thread.
  if ((vswap_load(&shim->order) & ~ORDER_WAITED) != (uint32_t)syscall(SYS_gettid)) return;
  if (vswap_exchange(&shim->order, 0) & ORDER_WAITED) vs_futex_wake(&shim->order, 1);
}

/// While nothing is registered it is enough to be counted: the daemon registers nothing then. Returns the process that was counted in,
/// or 0: something is registered.
static uint32_t begin_counted(void) {
  vswap_add(&shim->ring->callers, 1);
  if (vswap_add(&shim->ring->registered, 0) == 0) return shim->process;
  vswap_add(&shim->ring->callers, -1u);
  return 0;
}

static void end_counted(uint32_t process) {
  // A child that a signal handler forked meanwhile has another ring, or none.
  if (process == (uint32_t)syscall(SYS_getpid)) vswap_add(&shim->ring->callers, -1u);
}

/// One system call at a time; with `kind`, with the daemon's hands off the range. Signals wait: a handler that did the same would write
/// over the request.
static long call_ordered(uint32_t kind, uint64_t start, uint64_t length, long number, const long *arguments) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  bool first = begin_order();
  bool held = kind != 0 && vswap_load(&shim->phase) == SHIM_ATTACHED &&
              begin_request(kind, start & ~(SHIM_PAGE - 1), (start + length + SHIM_PAGE - 1) & ~(SHIM_PAGE - 1));
  long result = plain_call(number, arguments);
  int error = errno;
  if (held) end_request();
  if (first) end_order();
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  errno = error;
  return result;
}

/// An mremap under way while its address space is copied could be told before or after the fork.
void shim_before_fork(void) {
  bool first = is_ours() && begin_order();
  fork_orders = fork_orders << 1 | first;
}

void shim_after_fork(void) {
  bool first = fork_orders & 1;
  fork_orders >>= 1;
  if (first) end_order();
}

bool shim_after_fork_in_child(void) {
  fork_orders >>= 1;
  shim->order = 0;
  return forks > 0;
}

/// Starts the child's agent, which our fork handler has left to us.
EXPORTED pid_t fork(void) {
  if (!real_fork) shim_find_real();
  forks++;
  pid_t child = real_fork();
  forks--;
  if (child != 0 || !is_ours() || vswap_load(&shim->phase) != SHIM_NEWBORN) return child;
  int error = errno;
  shim_start_agent();
  errno = error;
  return child;
}

/// Of libc's own realloc, and only of blocks that may be mappings of their own. Other allocators call mremap where it can be seen, and
/// could do so with a lock of theirs held.
EXPORTED void *realloc(void *block, size_t size) {
  static void *(*real)(void *, size_t) = NULL;
  static bool is_libc = false;
  if (!real) {
    void *next = dlsym(RTLD_NEXT, "realloc");
    is_libc = next == dlsym(RTLD_NEXT, "__libc_realloc");
    memcpy(&real, &next, sizeof(real));
  }
  if (!is_libc || !block || size < SMALL_BLOCK || !is_ours()) return real(block, size);
  uint32_t phase = vswap_load(&shim->phase);
  // A young child's memory is registered, and it has no ring to be counted in.
  if (phase != SHIM_ATTACHED && phase != SHIM_YOUNG) return real(block, size);
  uint32_t counted = phase == SHIM_ATTACHED ? begin_counted() : 0;
  bool first = !counted && begin_order();
  void *result = real(block, size);
  int error = errno;
  if (counted) end_counted(counted);
  if (first) end_order();
  errno = error;
  return result;
}

/// The call itself, and around it whatever keeps the daemon from registering or evicting what the call is about to change.
static long call(uint32_t kind, uint64_t start, uint64_t length, long number, const long *arguments) {
  bool ours = is_ours();
  if (ours && vswap_load(&shim->phase) == SHIM_YOUNG) shim_grow_up();
  if (!ours || vswap_load(&shim->phase) != SHIM_ATTACHED) return plain_call(number, arguments);
  uint32_t counted = begin_counted();
  if (!counted) return call_ordered(kind, start, length, number, arguments);
  long result = plain_call(number, arguments);
  int error = errno;
  end_counted(counted);
  errno = error;
  return result;
}

EXPORTED void *mremap(void *address, size_t old_length, size_t length, int flags, ...) {
  void *destination = NULL;
  if (flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) {
    va_list list;
    va_start(list, flags);
    destination = va_arg(list, void *);
    va_end(list);
  }
  long arguments[5] = {(long)address, (long)old_length, (long)length, flags, (long)destination};
  // A single page cannot lie in two mappings: nothing has to be let go of.
  uint32_t kind = old_length > SHIM_PAGE ? VSWAP_RELEASE_SPANNED : 0;
  return (void *)call(kind, (uintptr_t)address, old_length, SYS_mremap, arguments);
}

/// MADV_FREE may drop the pages at once. Here it does: the daemon cannot tell pages that the kernel will drop some day from those
/// that were written again, and would never evict them.
static int free_pages(void *address, size_t length) {
  int result = (int)syscall(SYS_madvise, address, length, MADV_FREE);
  bool served = is_ours() && vswap_load(&shim->phase) == SHIM_ATTACHED && vswap_load(&shim->ring->registered) != 0;
  if (result == 0 && served) return (int)syscall(SYS_madvise, address, length, MADV_DONTNEED);
  return result;
}

EXPORTED int madvise(void *address, size_t length, int advice) {
  long arguments[5] = {(long)address, (long)length, advice, 0, 0};
  if (advice == MADV_FREE) return free_pages(address, length);
  bool silent = advice == MADV_WIPEONFORK || advice == MADV_DONTFORK || advice == MADV_GUARD_INSTALL;
  if (!silent || length == 0) return (int)syscall(SYS_madvise, arguments[0], arguments[1], arguments[2]);
  return (int)call(VSWAP_RELEASE_RANGE, (uintptr_t)address, length, SYS_madvise, arguments);
}

void shim_find_real(void) {
  void *create = dlsym(RTLD_NEXT, "pthread_create"), *next_fork = dlsym(RTLD_NEXT, "fork");
  memcpy(&shim_real_pthread_create, &create, sizeof(create));
  memcpy(&real_fork, &next_fork, sizeof(next_fork));
}

static void free_entry(struct shim_thread *entry) {
  entry->thread = 0;
  __atomic_store_n(&entry->high, 0, __ATOMIC_RELEASE);
}

static struct shim_thread *take_free_entry(void) {
  for (uint32_t index = 0; index < SHIM_THREADS; index++) {
    struct shim_thread *entry = &shim->threads[index];
    uint64_t empty = 0;
    if (!__atomic_compare_exchange_n(&entry->high, &empty, 1, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) continue;
    uint32_t used = vswap_load(&shim->thread_slots);
    while (used < index + 1 && !vswap_replace(&shim->thread_slots, used, index + 1)) used = vswap_load(&shim->thread_slots);
    return entry;
  }
  return NULL;
}

static bool free_if_dead(struct shim_thread *entry) {
  uint32_t thread = vswap_load(&entry->thread);
  if (thread == 0 || syscall(SYS_tgkill, syscall(SYS_getpid), thread, 0) == 0 || errno != ESRCH) return false;
  free_entry(entry);
  return true;
}

struct shim_thread *shim_new_thread_entry(void) {
  struct shim_thread *entry = take_free_entry();
  if (entry) return entry;
  for (uint32_t index = 0; index < SHIM_THREADS; index++) free_if_dead(&shim->threads[index]);
  entry = take_free_entry();
  if (!entry) vswap_store(&shim->overflow, 1);
  return entry;
}

void shim_protect_thread(struct shim_thread *entry, uint64_t stack_size) {
  uint64_t block = (uint64_t)(uintptr_t)__builtin_thread_pointer() & ~(SHIM_PAGE - 1);
  uint64_t reach = stack_size + THREAD_BLOCK;
  entry->low = block > reach ? block - reach : 0;
  __atomic_store_n(&entry->high, block + THREAD_BLOCK, __ATOMIC_RELEASE);
  vswap_store(&entry->thread, (uint32_t)syscall(SYS_gettid));
}

uint32_t shim_evictable(uint64_t address, uint32_t pages) {
  if (vswap_load(&shim->overflow)) return 0;
  uint64_t end = address + pages * SHIM_PAGE;
  uint32_t used = vswap_load(&shim->thread_slots);
  for (uint32_t index = 0; index < used; index++) {
    uint64_t high = __atomic_load_n(&shim->threads[index].high, __ATOMIC_ACQUIRE);
    uint64_t low = shim->threads[index].low;
    if (high <= 1 || address >= high || end <= low) continue;
    if (address >= low) return 0;
    end = low;
  }
  return (uint32_t)((end - address) / SHIM_PAGE);
}

void shim_forget_dead_threads(void) {
  uint32_t used = vswap_load(&shim->thread_slots);
  for (uint32_t looks = 0; looks < 8 && looks < used; looks++) {
    free_if_dead(&shim->threads[shim->sweep++ % used]);
  }
}

void shim_keep_only_this_thread(void) {
  uint64_t here = (uintptr_t)__builtin_thread_pointer();
  bool found = false;
  for (uint32_t index = 0; index < shim->thread_slots; index++) {
    struct shim_thread *entry = &shim->threads[index];
    if (entry->high > 1 && here >= entry->low && here < entry->high && !found) {
      found = true;
      vswap_store(&entry->thread, (uint32_t)syscall(SYS_gettid));
    } else {
      free_entry(entry);
    }
  }
}

static void *run_thread(void *argument) {
  struct shim_thread *entry = argument;
  void *(*start)(void *) = entry->start;
  void *value = entry->argument;
  shim_protect_thread(entry, entry->low);
  return start(value);
}

EXPORTED int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
  if (!shim_real_pthread_create) shim_find_real();
  if (!shim_ready() || vswap_load(&shim->phase) == SHIM_FAILED)
    return shim_real_pthread_create(thread, attributes, start, argument);
  size_t size = 0;
  pthread_attr_t defaults;
  if (attributes) {
    pthread_attr_getstacksize(attributes, &size);
  } else if (pthread_getattr_default_np(&defaults) == 0) {
    pthread_attr_getstacksize(&defaults, &size);
    pthread_attr_destroy(&defaults);
  }
  struct shim_thread *entry = shim_new_thread_entry();
  if (!entry) return shim_real_pthread_create(thread, attributes, start, argument);
  entry->start = start;
  entry->argument = argument;
  entry->low = size;
  int result = shim_real_pthread_create(thread, attributes, run_thread, entry);
  if (result != 0) free_entry(entry);
  return result;
}
