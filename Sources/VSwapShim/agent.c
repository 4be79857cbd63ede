// The agent: moves pages out of the target, because UFFDIO_MOVE works on the caller's own memory only.
#include <asm/unistd.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

#include "shim.h"
#include "vs_userfault.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE (1U << 1)
#endif

// How many pages move while the gate is held: the daemon's pager waits that long at most, some 20 us.
#define PIECE VSWAP_PIECE_PAGES
// A child that lives shorter than this never gets an agent: fork followed by exec stays cheap.
#define YOUNG_MILLISECONDS 500
// How often an idle agent looks whether the daemon is still there.
#define IDLE_MILLISECONDS 1000
// The same whether the program has ended, at first, once the thread that it began with has.
#define DESERTED_MILLISECONDS 2
// Consecutive pages of a run that may turn out shared or pinned before the rest of the run is left alone.
#define BUSY_LIMIT 32u
// The same of pages that the kernel does not move at all: the mapping is of a kind that nobody knew of.
#define REFUSED_LIMIT 4u

/// What is left of the command being executed.
struct eviction {
  struct vswap_bank *bank;
  uint8_t *frames;
  uint32_t staged;   // pages moved so far: the next free staging page and frame
  uint32_t dropped;  // staging pages below this one are empty again
  uint32_t records;
  bool abandoned;
  bool cleared;  // the staging area was emptied of what others had put there
};

static void ring_doorbell_of_daemon(void) {
  uint64_t one = 1;
  while (raw(SYS_write, shim->doorbell, &one, sizeof(one)) == -EINTR) {
  }
}

/// Not memcpy, see shim.h.
static void copy_pages(uint8_t *to, const uint8_t *from, size_t pages) {
#ifdef __x86_64__
  size_t words = pages * SHIM_PAGE / 8;
  __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(words) : : "memory");
#else
  for (size_t offset = 0; offset < pages * SHIM_PAGE; offset += 8)
    *(volatile uint64_t *)(to + offset) = *(const volatile uint64_t *)(from + offset);
#endif
}

/// What the kernel says of a page (pagemap). false: it says nothing.
static bool read_pagemap(uint64_t address, uint64_t *entry) {
  return shim->pagemap >= 0 &&
         raw(SYS_pread64, shim->pagemap, entry, sizeof(*entry), address / SHIM_PAGE * sizeof(*entry)) == sizeof(*entry);
}

/// After a fork pages are not exclusive until they are written again, even when the child has long gone. Where this process is
/// the only one that maps the page (pagemap bit 56), a write fault that writes nothing makes it exclusive.
static bool unshare_page(uint64_t address) {
  uint64_t entry = 0;
  if (!read_pagemap(address, &entry)) return false;
  if (!(entry >> 63) || !(entry >> 56 & 1)) return false;
  return raw(SYS_madvise, address, SHIM_PAGE, MADV_POPULATE_WRITE) == 0;
}

static void publish(struct eviction *work, uint32_t run, uint64_t address, uint32_t pages) {
  copy_pages(work->frames + work->staged * SHIM_PAGE, shim->staging + work->staged * SHIM_PAGE, pages);
  work->bank->records[work->records] = (struct vswap_record){.address = address, .pages = pages, .run = run};
  work->records++;
  work->staged += pages;
  shim->published += pages;
  vswap_store(&work->bank->record_count, work->records);
}

static bool daemon_gone(void) {
  char byte;
  long length = raw(SYS_recvfrom, shim->socket, &byte, 1, MSG_DONTWAIT | MSG_PEEK, 0, 0);
  return length == 0 || (length < 0 && length != -EAGAIN && length != -EINTR);
}

/// false: the daemon died with the gate in its hand, or it says leave: the program, which can write here, may have taken the gate with it.
static bool enter_gate(void) {
  uint32_t *gate = &shim->ring->gate;
  if (vswap_replace(gate, 0, 1)) return true;
  while (vswap_exchange(gate, 2) != 0) {
    shim_futex_wait(gate, 2, 100);
    if (daemon_gone() || vswap_load(&shim->ring->leave)) return false;
  }
  return true;
}

// 0 free, 1 held, 2 held and waited for: see Drepper, "Futexes are tricky".
static void leave_gate(void) {
  uint32_t *gate = &shim->ring->gate;
  if (vswap_exchange(gate, 0) == 2) vs_futex_wake(gate, 1);
}

/// Whether a page is there, in memory or in the kernel's own swap.
static bool is_there(uint64_t address) {
  uint64_t entry = 0;
  unsigned char resident = 0;
  if (read_pagemap(address, &entry)) return entry >> 62 != 0;
  return raw(SYS_mincore, address, SHIM_PAGE, &resident) == 0 && (resident & 1);
}

/// What a MOVE of `length` bytes has moved: bytes, or -errno. Linux 6.18 moves pages that it does not count: if an entry of the page table changes while
/// it looks it tries again, and the error of the first try stays noted when the second one succeeds (`move_pages` in mm/userfaultfd.c). So the rest of what was
/// asked for is looked at: a page that is gone from its place and is in the other one, which was empty, has been moved.
static int64_t move_pages(int uffd, uint64_t to, uint64_t from, uint64_t length) {
  int64_t moved = vs_uffd_move(uffd, to, from, length);
  uint64_t offset = moved > 0 ? (uint64_t)moved : 0;
  if (offset == length) return moved;
  while (offset < length && is_there(to + offset) && !is_there(from + offset)) offset += SHIM_PAGE;
  return offset > 0 ? (int64_t)offset : moved;
}

/// One MOVE under the gate, of what may be evicted at that moment. Returns the pages moved, or -errno. With ECANCELED the command is to
/// be abandoned: an event has changed the address space since the daemon gave it.
static int64_t move_piece(struct eviction *work, uint32_t run, uint64_t address, uint32_t pages) {
  int64_t moved;
  if (!enter_gate()) return -ECANCELED;
  pages = shim_evictable(address, pages);
  if (vswap_load(&shim->ring->generation) != work->bank->generation) {
    moved = -ECANCELED;
  } else if (pages == 0) {
    moved = -EPERM;
  } else {
    moved = move_pages(shim->uffd, (uintptr_t)shim->staging + work->staged * SHIM_PAGE, address, pages * SHIM_PAGE);
    if (moved > 0) {
      moved /= (int64_t)SHIM_PAGE;
      publish(work, run, address, (uint32_t)moved);
    }
  }
  leave_gate();
  return moved;
}

/// Gives staging area and outbox another protection: UFFDIO_MOVE wants that of the place where a page comes from.
static bool set_protection(uint32_t protection) {
  if (raw(SYS_mprotect, shim->staging, SHIM_STAGING, protection) != 0) return false;
  if (raw(SYS_mprotect, shim->outbox, SHIM_STAGING, protection) != 0) return false;
  shim->staging_protection = protection;
  return true;
}

/// The program can lock all its memory, these areas included, and unlock the rest of it one by one.
static void unlock_staging(void) {
  raw(SYS_munlock, shim->staging, SHIM_STAGING);
  raw(SYS_munlock, shim->outbox, SHIM_STAGING);
}

/// Whoever reads all readable memory of the process, or locks it, leaves pages of zeros here. What was moved here has been
/// copied before. The kernel raises an event, which the pager has to read: outside of the gate.
static void clear_staging(struct eviction *work) {
  unlock_staging();
  raw(SYS_madvise, shim->staging, SHIM_STAGING, MADV_DONTNEED);
  work->cleared = true;
  work->dropped = work->staged;
}

/// Of memory that may be executed, or of a mapping that ends within the piece. Returns what `move_piece` does of one page.
static int64_t move_refused(struct eviction *work, uint32_t index, uint64_t address) {
  int64_t moved = move_piece(work, index, address, 1);
  if (moved != -EINVAL) return moved;
  unlock_staging();
  if (!set_protection(shim->staging_protection ^ PROT_EXEC)) return moved;
  return move_piece(work, index, address, 1);
}

static void evict_run(struct eviction *work, uint32_t index) {
  uint64_t address = work->bank->runs[index].address;
  uint32_t left = work->bank->runs[index].pages, busy = 0, refused = 0, tries = 0;
  while (left > 0 && !work->abandoned && busy < BUSY_LIMIT && refused < REFUSED_LIMIT) {
    uint32_t pages = left < PIECE ? left : PIECE, done = 1;
    int64_t moved = move_piece(work, index, address, pages);
    if (moved == -EEXIST && !work->cleared) {
      clear_staging(work);
      continue;
    }
    if (moved == -EINVAL) moved = move_refused(work, index, address);
    if (moved > 0) {
      done = (uint32_t)moved;
      busy = refused = 0;
    } else if (moved == -ECANCELED) {
      work->abandoned = true;
      return;
    } else if (moved == -EAGAIN && tries < 3) {
      // An event is unread, or the page is locked for a moment.
      tries++;
      raw(SYS_sched_yield);
      continue;
    } else if (moved == -EBUSY && tries == 0 && unshare_page(address)) {
      tries = 1;
      continue;
    } else if (moved == -EBUSY || moved == -EAGAIN) {
      work->bank->busy_pages++;
      busy++;
    } else if (moved != -ENOENT) {
      work->bank->refused_pages++;
      refused++;
    }
    tries = 0;
    address += done * SHIM_PAGE;
    left -= done;
  }
}

/// Moves [from, to) of the staging area into the outbox. false: the kernel does not.
static bool empty_staging(uint64_t from, uint64_t to) {
  while (from < to) {
    int64_t moved = move_pages(shim->staging_uffd, (uintptr_t)shim->outbox + from, (uintptr_t)shim->staging + from, to - from);
    if (moved == -EAGAIN || moved == -EBUSY) {
      raw(SYS_sched_yield);
      continue;
    }
    if (moved <= 0) return false;
    from += (uint64_t)moved;
  }
  return true;
}

/// Empties the staging area without an event: on into the outbox, whose context has no events, and dropped there. The outbox is
/// registered only meanwhile, since nobody answers faults there: a reader of all the process's memory waits until it is not.
static void drop_staged(const struct eviction *work) {
  uint64_t from = work->dropped * SHIM_PAGE, to = work->staged * SHIM_PAGE;
  if (from == to) return;
  bool empty = vs_uffd_register(shim->staging_uffd, (uintptr_t)shim->outbox, SHIM_STAGING) == 0 && empty_staging(from, to);
  vs_uffd_unregister(shim->staging_uffd, (uintptr_t)shim->outbox, SHIM_STAGING);
  if (!empty) {
    // Somebody touched the outbox, or locked it. The staging area must be empty for the next command all the same.
    unlock_staging();
    raw(SYS_madvise, shim->staging, SHIM_STAGING, MADV_DONTNEED);
  }
  raw(SYS_madvise, shim->outbox, SHIM_STAGING, MADV_DONTNEED);
}

static void evict(uint32_t index) {
  shim_forget_dead_threads();
  struct vswap_bank *bank = &shim->ring->bank[index];
  struct eviction work = {.bank = bank, .frames = &shim->ring->frames[index][0][0]};
  for (uint32_t run = 0; run < bank->run_count && !work.abandoned; run++) evict_run(&work, run);
  // The daemon may look at the content now; dropping our copy takes a while.
  uint32_t sequence = bank->sequence;
  drop_staged(&work);
  vswap_store(&bank->finished, sequence);
  ring_doorbell_of_daemon();
}

/// Whether a command was executed.
static bool execute_oldest(void) {
  int chosen = -1;
  for (int index = 0; index < (int)VSWAP_BANKS; index++) {
    struct vswap_bank *bank = &shim->ring->bank[index];
    if (vswap_load(&bank->sequence) == bank->finished) continue;
    if (chosen < 0 || (int32_t)(bank->sequence - shim->ring->bank[chosen].sequence) < 0) chosen = index;
  }
  if (chosen < 0) return false;
  evict((uint32_t)chosen);
  return true;
}

/// Lets a thread that waits for the daemon go on without it.
static void abandon_request(void) {
  struct vswap_request *request = &shim->ring->request;
  if (vswap_replace(&request->state, VSWAP_REQUEST_ASKED, VSWAP_REQUEST_GRANTED)) shim_futex_wake(&request->state);
}

// MARK: - The program's end

/// Who began the program, or has forked this child, holds this lock. The kernel takes it from a thread that ends or executes.
static uint32_t *owner_word(void) { return (uint32_t *)&shim->owner.__data.__lock; }
static bool owner_is_gone(void) { return vswap_load(owner_word()) & FUTEX_OWNER_DIED; }

/// Waits until the word has another value, somebody wakes, the owner has gone, or the time is over. Returns whether it is.
static bool wait_for(uint32_t *word, uint32_t expected, int milliseconds) {
  struct timespec until;
  uint32_t held = __atomic_or_fetch(owner_word(), FUTEX_WAITERS, __ATOMIC_ACQ_REL);
  if (held & FUTEX_OWNER_DIED || raw(SYS_clock_gettime, CLOCK_MONOTONIC, &until) != 0) {
    return shim_futex_wait(word, expected, milliseconds) == -ETIMEDOUT;
  }
  until.tv_sec += milliseconds / 1000;
  until.tv_nsec += milliseconds % 1000 * 1000000L;
  if (until.tv_nsec >= 1000000000L) {
    until.tv_sec++;
    until.tv_nsec -= 1000000000L;
  }
  struct futex_waitv words[2] = {{.val = expected, .uaddr = (uintptr_t)word, .flags = FUTEX_32},
                                 {.val = held, .uaddr = (uintptr_t)owner_word(), .flags = FUTEX_32}};
  long result = raw(__NR_futex_waitv, words, 2, 0, &until, CLOCK_MONOTONIC);
  if (result == -ENOSYS || result == -EPERM || result == -EINVAL) result = shim_futex_wait(word, expected, milliseconds);
  return result == -ETIMEDOUT;
}

/// Whether one of the program's threads has this address space still. The process may have ended, or execute something else.
static bool program_lives(void) {
  if (!owner_is_gone()) return true;
  uint32_t used = vswap_load(&shim->thread_slots);
  for (uint32_t index = 0; index < used; index++) {
    uint32_t thread = vswap_load(&shim->threads[index].thread);
    if (thread != 0 && raw(SYS_kcmp, vswap_load(&shim->agent), thread, KCMP_VM, 0, 0) == 0) return true;
  }
  return false;
}

/// Whether the process still has this address space, where its robust list did not tell. A process whose first thread has ended has none, which
/// the daemon finds out.
static bool seems_deserted(void) {
  return owner_is_gone() || raw(SYS_kcmp, vswap_load(&shim->agent), shim->process, KCMP_VM, 0, 0) > 0;
}

/// Whether all threads of the process have ended.
static bool program_ended(void) {
  struct pollfd process = {.fd = shim->pidfd, .events = POLLIN};
  struct timespec none = {0, 0};
  return raw(SYS_ppoll, &process, 1, &none, 0, 0) > 0;
}

/// The daemon has gone. With pages that only it had, or was about to take, the program cannot go on: it would read zeros. Without, it can.
static void end_without_daemon(void) {
  bool lost = vswap_load(&shim->ring->taken) != shim->published || vswap_load(&shim->ring->held) != 0;
  if (lost && program_lives()) raw(SYS_pidfd_send_signal, shim->pidfd, SIGKILL, 0, 0);
}

/// Serves the ring until the daemon says leave or goes away, or the program ends. Where the program executes something else it is the daemon that
/// finds out: it may look at it.
static void serve(void) {
  bool told = false, look = false;
  int idle = IDLE_MILLISECONDS;
  uint32_t seen = vswap_load(&shim->ring->doorbell) - 1;
  while (!vswap_load(&shim->ring->leave)) {
    uint32_t bell = vswap_load(&shim->ring->doorbell);
    // Whoever changes the state of a request rings afterwards, so a bell not seen before is the only time to look.
    if (bell != seen && vswap_load(&shim->ring->request.state) != VSWAP_REQUEST_NONE) ring_doorbell_of_daemon();
    seen = bell;
    if (!told && (owner_is_gone() || (look && seems_deserted()))) {
      told = true;
      idle = DESERTED_MILLISECONDS;
      vswap_store(&shim->ring->deserted, 1);
      ring_doorbell_of_daemon();
    }
    if (execute_oldest()) continue;
    look = wait_for(&shim->ring->doorbell, bell, idle);
    if (told && program_ended()) break;
    if (told && idle < IDLE_MILLISECONDS) idle *= 2;
    if (daemon_gone()) {
      end_without_daemon();
      break;
    }
  }
  vswap_store(&shim->phase, SHIM_IDLE);
  abandon_request();
}

// MARK: - Beginning

/// Who am I? Only a forked child asks: its daemon answers the fault on this page with the child's token.
static uint64_t read_token(void) {
  if (raw(SYS_madvise, shim->identity, SHIM_PAGE, MADV_DONTNEED) != 0) return 0;
  return *(volatile uint64_t *)shim->identity;
}

static void settle(bool attached) {
  vswap_store(&shim->phase, attached ? SHIM_ATTACHED : SHIM_FAILED);
  shim_futex_wake(&shim->phase);
}

/// Becomes a process that has nothing of the program's but its memory. Debugging keeps stderr.
static bool part(void) {
  if (raw(SYS_close_range, shim->debug ? 3u : 0u, ~0u, CLOSE_RANGE_UNSHARE) != 0) return false;
  raw(SYS_prctl, PR_SET_NAME, "vswap-agent", 0, 0, 0);
  // Signals for the program's process group, or from its terminal, pass by. Not a session of its own: the scheduler would
  // weigh the agent against the whole program then, and a program that computes would keep it waiting.
  raw(SYS_setpgid, 0, 0);
  // It uses no message queues; whoever finds its remains knows it by that.
  struct rlimit64 mark = {SHIM_AGENT_MARK, SHIM_AGENT_MARK};
  raw(SYS_prlimit64, 0, RLIMIT_MSGQUEUE, &mark, 0);
  return true;
}

/// Gets ready to speak with the daemon. Not before a child has grown old: most children end or execute something before, and a filter
/// takes the kernel longer than all the rest of an agent's beginning.
static bool prepare(void) {
  shim->pidfd = (int)raw(SYS_pidfd_open, shim->process, 0);
  shim->pagemap = (int)raw(SYS_openat, AT_FDCWD, "/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  shim_drop_powers(false);
  return shim->pidfd >= 0;
}

/// A child that lives long enough gets served like its parent. false: it has ended, or executes something else, or changes its
/// credentials right now.
static bool grow_old(void) {
  wait_for(&shim->family->promote, shim->family_value, YOUNG_MILLISECONDS);
  return !seems_deserted() && vswap_replace(&shim->phase, SHIM_YOUNG, SHIM_GROWING);
}

void shim_run_agent(void) {
  bool young = vswap_load(&shim->phase) != SHIM_STARTING;
  bool ready = part();
  if (young && !grow_old()) return;
  ready = ready && prepare();
  uint64_t token = young && ready ? read_token() : 0;
  bool attached = ready && (!young || token != 0) && shim_attach(young ? VSWAP_CHILD : VSWAP_NEW, token);
  if (attached) shim_drop_powers(true);
  settle(attached);
  if (attached) serve();
}

void shim_grow_up(void) {
  uint32_t phase;
  while ((phase = vswap_load(&shim->phase)) == SHIM_YOUNG || phase == SHIM_GROWING) {
    if (!shim_has_agent()) {
      vswap_replace(&shim->phase, phase, SHIM_FAILED);
      return;
    }
    vswap_add(&shim->family->promote, 1);
    shim_futex_wake(&shim->family->promote);
    shim_futex_wait(&shim->phase, phase, 10);
  }
}
