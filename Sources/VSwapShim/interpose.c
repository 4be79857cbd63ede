// The calls that the library stands in for, each because the kernel tells the daemon nothing, or too late:
//
//   pthread_create   to know stacks and thread control blocks, which must stay resident
//   mremap           a range over several mappings, one of them registered, is left half moved (6.17+) or refused; and one
//                    call at a time, none during fork, since the kernel's events of several threads arrive in any order
//   realloc          calls mremap inside libc, where nobody sees it; the same order for those
//   mmap ...         announce.c: new memory is announced near the limit
//   madvise, process_madvise
//                    WIPEONFORK, DONTFORK and GUARD_INSTALL change what a hole in the range means, without an event
//   ioctl            a mapping has one userfaultfd: it is given back when the program registers it with its own
//   prctl            a filter that the program sets is none for an agent of its children; who adopts orphans adopts agents
//   wait and such    see wait.c
//   read and write   see selfmem.c
//   setuid and such  the agent of a young child is made anew, with what the child may do from then on
//   syscall          the same calls by their number
#include <dlfcn.h>
#include <errno.h>
#include <grp.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "shim.h"
#include "vs_userfault.h"

#define EXPORTED __attribute__((visibility("default")))
#define IOV_MAX_RANGES 1024
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
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

static int (*real_pthread_create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

/// One bit for each fork of this thread that is under way, the innermost lowest: whether it began the order. A signal handler that forks
/// leaves it as it was.
THREAD_LOCAL uint64_t fork_orders;
/// This thread's number, once it was asked for.
THREAD_LOCAL uint32_t self;

uint32_t shim_self(void) {
  if (self == 0) self = (uint32_t)raw(SYS_gettid);
  return self;
}

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
  return raw(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
}

/// What libc makes of what the kernel returns.
static long told(long result) {
  if (result >= 0 || result < -4095) return result;
  errno = (int)-result;
  return -1;
}

/// The mutex of Drepper, "Futexes are tricky", whose word names the holder like that of a PI futex: so a signal handler finds out at any
/// moment. Who has it may come back: a fork handler or an allocator that calls mremap. false: the thread has the order already.
static bool begin_order(void) {
  uint32_t waited = 0;
  for (;;) {
    uint32_t mine = shim_self(), held = vswap_load(&shim->order);
    if ((held & ~ORDER_WAITED) == mine) return false;
    if (held == 0) {
      if (!vswap_replace(&shim->order, 0, mine | waited)) continue;
      if (shim_self() == mine) return true;
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
  if ((vswap_load(&shim->order) & ~ORDER_WAITED) != shim_self()) return;
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
  if (shim_is_ours() && process == shim->process) vswap_add(&shim->ring->callers, -1u);
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
  if (held) end_request();
  if (first) end_order();
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return result;
}

/// An mremap under way while its address space is copied could be told before or after the fork.
void shim_before_fork(void) {
  bool first = shim_is_ours() && begin_order();
  fork_orders = fork_orders << 1 | first;
}

void shim_after_fork(void) {
  bool first = fork_orders & 1;
  fork_orders >>= 1;
  if (first) end_order();
}

void shim_after_fork_in_child(void) {
  fork_orders >>= 1;
  self = 0;
  shim->order = 0;
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
  if (!is_libc || !block || size < SMALL_BLOCK || !shim_is_ours()) return real(block, size);
  uint32_t phase = vswap_load(&shim->phase);
  // A young child's memory is registered, and it has no ring to be counted in.
  if (phase != SHIM_ATTACHED && phase != SHIM_YOUNG && phase != SHIM_GROWING) return real(block, size);
  uint32_t counted = phase == SHIM_ATTACHED ? begin_counted() : 0;
  bool first = !counted && begin_order();
  void *result = real(block, size);
  int error = errno;
  if (counted) end_counted(counted);
  if (first) end_order();
  errno = error;
  return result;
}

/// The call itself, and around it whatever keeps the daemon from registering or evicting what the call is about to change. Returns what
/// the kernel returns.
static long call(uint32_t kind, uint64_t start, uint64_t length, long number, const long *arguments) {
  if (!shim_is_ours()) return plain_call(number, arguments);
  uint32_t phase = vswap_load(&shim->phase);
  if (phase == SHIM_YOUNG || phase == SHIM_GROWING) shim_grow_up();
  if (vswap_load(&shim->phase) != SHIM_ATTACHED) return plain_call(number, arguments);
  uint32_t counted = begin_counted();
  if (!counted) return call_ordered(kind, start, length, number, arguments);
  long result = plain_call(number, arguments);
  end_counted(counted);
  return result;
}

static long call_mremap(const long *arguments) {
  // A single page cannot lie in two mappings: nothing has to be let go of.
  uint32_t kind = (size_t)arguments[1] > SHIM_PAGE ? VSWAP_RELEASE_SPANNED : 0;
  return call(kind, (uint64_t)arguments[0], (uint64_t)arguments[1], SYS_mremap, arguments);
}

/// MADV_FREE may drop the pages at once. Here it does: the daemon cannot tell pages that the kernel will drop some day from those
/// that were written again, and would never evict them.
static long free_pages(const long *arguments) {
  long result = plain_call(SYS_madvise, arguments);
  bool served = shim_is_ours() && vswap_load(&shim->phase) == SHIM_ATTACHED && vswap_load(&shim->ring->registered) != 0;
  return result == 0 && served ? raw(SYS_madvise, arguments[0], arguments[1], MADV_DONTNEED) : result;
}

/// Advice that changes what a hole means, without an event.
static bool is_silent(int advice) {
  return advice == MADV_WIPEONFORK || advice == MADV_DONTFORK || advice == MADV_GUARD_INSTALL;
}

static long call_madvise(const long *arguments) {
  int advice = (int)arguments[2];
  if (advice == MADV_FREE) return free_pages(arguments);
  // Each page is a fault then, which waits until there is room.
  if (advice == MADV_POPULATE_WRITE) shim_announce((void *)arguments[0], (size_t)arguments[1]);
  if (!is_silent(advice) || arguments[1] == 0) return plain_call(SYS_madvise, arguments);
  shim_note_advice();
  return call(VSWAP_RELEASE_RANGE, (uint64_t)arguments[0], (uint64_t)arguments[1], SYS_madvise, arguments);
}

/// The same of several ranges: the kernel takes such advice only from a process about itself. What is let go of is what lies between the
/// lowest and the highest of them.
static long call_process_madvise(const long *arguments) {
  const struct iovec *ranges = (const struct iovec *)arguments[1];
  uint64_t low = UINT64_MAX, high = 0;
  if (!is_silent((int)arguments[3]) || !ranges || arguments[2] <= 0 || arguments[2] > IOV_MAX_RANGES)
    return plain_call(SYS_process_madvise, arguments);
  shim_note_advice();
  for (long index = 0; index < arguments[2]; index++) {
    uint64_t start = (uintptr_t)ranges[index].iov_base, end = start + ranges[index].iov_len;
    if (start < low) low = start;
    if (end > high) high = end;
  }
  return call(VSWAP_RELEASE_RANGE, low, high > low ? high - low : 0, SYS_process_madvise, arguments);
}

/// Memory that the daemon has registered is refused to the program's own userfaultfd (EBUSY): it is given back, and asked for again.
static long call_ioctl(const long *arguments) {
  long result = plain_call(SYS_ioctl, arguments);
  if (result != -EBUSY || (unsigned long)arguments[1] != UFFDIO_REGISTER) return result;
  const struct uffdio_register *asked = (const struct uffdio_register *)arguments[2];
  return call(VSWAP_RELEASE_RANGE, asked->range.start, asked->range.len, SYS_ioctl, arguments);
}

static void note_filter(bool is_set) {
  if (is_set && shim_is_ours()) shim->filtered = true;
}

static long call_prctl(const long *arguments) {
  long result = plain_call(SYS_prctl, arguments);
  note_filter(result >= 0 && (int)arguments[0] == PR_SET_SECCOMP);
  if (result >= 0 && (int)arguments[0] == PR_SET_CHILD_SUBREAPER && shim_is_ours())
    shim->adopting = shim->process == 1 || arguments[1] != 0;
  return result;
}

static long call_seccomp(const long *arguments) {
  long result = plain_call(SYS_seccomp, arguments);
  note_filter(result >= 0 && ((unsigned)arguments[0] == SECCOMP_SET_MODE_FILTER || (unsigned)arguments[0] == SECCOMP_SET_MODE_STRICT));
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
  const long arguments[6] = {(long)address, (long)old_length, (long)length, flags, (long)destination};
  void *made = (void *)told(call_mremap(arguments));
  if (length > old_length) shim_announce(made, length);
  return made;
}

EXPORTED int madvise(void *address, size_t length, int advice) {
  const long arguments[6] = {(long)address, (long)length, advice};
  return (int)told(call_madvise(arguments));
}

EXPORTED ssize_t process_madvise(int process, const struct iovec *ranges, size_t count, int advice, unsigned flags) {
  const long arguments[6] = {process, (long)ranges, (long)count, advice, (long)flags};
  return told(call_process_madvise(arguments));
}

EXPORTED int ioctl(int descriptor, unsigned long request, ...) {
  va_list list;
  va_start(list, request);
  const long arguments[6] = {descriptor, (long)request, va_arg(list, long)};
  va_end(list);
  return (int)told(call_ioctl(arguments));
}

EXPORTED int prctl(int option, ...) {
  va_list list;
  va_start(list, option);
  const long arguments[6] = {option, va_arg(list, long), va_arg(list, long), va_arg(list, long), va_arg(list, long)};
  va_end(list);
  return (int)told(call_prctl(arguments));
}

/// What syscall(2) comes to for one of these: see syscall.S.
__attribute__((visibility("hidden"), used)) long shim_seen_call(long number, long a, long b, long c, long d, long e, long f) {
  const long arguments[6] = {a, b, c, d, e, f};
  switch (number) {
    case SYS_mremap: return call_mremap(arguments);
    case SYS_madvise: return call_madvise(arguments);
    case SYS_process_madvise: return call_process_madvise(arguments);
    case SYS_ioctl: return call_ioctl(arguments);
    case SYS_prctl: return call_prctl(arguments);
    case SYS_seccomp: return call_seccomp(arguments);
    default: return plain_call(number, arguments);
  }
}

__attribute__((visibility("hidden"), used)) long shim_told(long result) { return told(result); }

// MARK: - Credentials

/// The agent of a young child sleeps with all that the child could do when it was forked, and could be made to use it. So it ends before the child
/// gives that up, and begins anew. One that speaks with the daemon already has nothing left that would matter (process.c).
static bool begin_credentials(void) {
  if (!shim_is_ours()) return false;
  if (vswap_load(&shim->phase) == SHIM_YOUNG && shim_stop_young_agent()) return true;
  if (vswap_load(&shim->phase) == SHIM_GROWING) shim_grow_up();
  return false;
}

static void end_credentials(bool stopped) {
  if (!stopped) return;
  int error = errno;
  vswap_store(&shim->phase, SHIM_YOUNG);
  if (!shim_start_agent()) vswap_store(&shim->phase, SHIM_FAILED);
  errno = error;
}

#define CREDENTIALS(name, parameters, arguments)                       \
  EXPORTED int name parameters {                                       \
    static int (*real) parameters;                                     \
    if (!real) shim_find_next(#name, &real);                                \
    bool stopped = begin_credentials();                                \
    int result = real arguments;                                       \
    end_credentials(stopped);                                          \
    return result;                                                     \
  }

void shim_find_next(const char *name, void *place) {
  void *next = dlsym(RTLD_NEXT, name);
  memcpy(place, &next, sizeof(next));
}

CREDENTIALS(setuid, (uid_t user), (user))
CREDENTIALS(setgid, (gid_t group), (group))
CREDENTIALS(seteuid, (uid_t user), (user))
CREDENTIALS(setegid, (gid_t group), (group))
CREDENTIALS(setreuid, (uid_t user, uid_t effective), (user, effective))
CREDENTIALS(setregid, (gid_t group, gid_t effective), (group, effective))
CREDENTIALS(setresuid, (uid_t user, uid_t effective, uid_t saved), (user, effective, saved))
CREDENTIALS(setresgid, (gid_t group, gid_t effective, gid_t saved), (group, effective, saved))
CREDENTIALS(capset, (void *header, const void *sets), (header, sets))
CREDENTIALS(setgroups, (size_t count, const gid_t *groups), (count, groups))

// MARK: - Threads

void shim_find_real(void) {
  shim_find_next("pthread_create", &real_pthread_create);
  shim_find_waits();
  shim_find_self_memory();
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
  if (thread == 0 || raw(SYS_tgkill, shim->process, thread, 0) != -ESRCH) return false;
  // Another one may have freed it, and a new thread have taken it.
  if (vswap_replace(&entry->thread, thread, 0)) __atomic_store_n(&entry->high, 0, __ATOMIC_RELEASE);
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
  vswap_store(&entry->thread, shim_self());
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
      vswap_store(&entry->thread, shim_self());
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
  if (!real_pthread_create) shim_find_real();
  if (!shim_ready() || vswap_load(&shim->phase) == SHIM_FAILED)
    return real_pthread_create(thread, attributes, start, argument);
  size_t size = 0;
  pthread_attr_t defaults;
  if (attributes) {
    pthread_attr_getstacksize(attributes, &size);
  } else if (pthread_getattr_default_np(&defaults) == 0) {
    pthread_attr_getstacksize(&defaults, &size);
    pthread_attr_destroy(&defaults);
  }
  struct shim_thread *entry = shim_new_thread_entry();
  if (!entry) return real_pthread_create(thread, attributes, start, argument);
  entry->start = start;
  entry->argument = argument;
  entry->low = size;
  int result = real_pthread_create(thread, attributes, run_thread, entry);
  if (result != 0) free_entry(entry);
  return result;
}
