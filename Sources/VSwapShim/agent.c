// The agent: one thread inside the target that moves pages out of it, because UFFDIO_MOVE works on the caller's own memory only.
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shim.h"
#include "vs_userfault.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE (1U << 1)
#endif

// How many pages move while the gate is held: the daemon's pager waits that long at most, some 20 us.
#define PIECE 16u
// A child that lives shorter than this never gets an agent: fork followed by exec stays cheap.
#define YOUNG_MILLISECONDS 500
// How often an idle agent looks whether the daemon is still there.
#define IDLE_MILLISECONDS 1000
// Consecutive pages of a run that may turn out shared or pinned before the rest of the run is left alone.
#define BUSY_LIMIT 32u

/// What is left of the command being executed.
struct eviction {
  struct vswap_bank *bank;
  uint8_t *frames;
  uint32_t staged;  // pages moved so far: the next free staging page and frame
  uint32_t records;
  bool abandoned;
};

static void ring_doorbell_of_daemon(void) {
  uint64_t one = 1;
  while (syscall(SYS_write, shim->doorbell, &one, sizeof(one)) < 0 && errno == EINTR) {
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
         syscall(SYS_pread64, shim->pagemap, entry, sizeof(*entry), address / SHIM_PAGE * sizeof(*entry)) == sizeof(*entry);
}

/// After a fork pages are not exclusive until they are written again, even when the child has long gone. Where this process is
/// the only one that maps the page (pagemap bit 56), a write fault that writes nothing makes it exclusive.
static bool unshare_page(uint64_t address) {
  uint64_t entry = 0;
  if (!read_pagemap(address, &entry)) return false;
  if (!(entry >> 63) || !(entry >> 56 & 1)) return false;
  return syscall(SYS_madvise, address, SHIM_PAGE, MADV_POPULATE_WRITE) == 0;
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
  long length = syscall(SYS_recvfrom, shim->socket, &byte, 1, MSG_DONTWAIT | MSG_PEEK, NULL, NULL);
  return length == 0 || (length < 0 && errno != EAGAIN && errno != EINTR);
}

/// false: the daemon died with the gate in its hand.
static bool enter_gate(void) {
  uint32_t *gate = &shim->ring->gate;
  if (vswap_replace(gate, 0, 1)) return true;
  while (vswap_exchange(gate, 2) != 0) {
    shim_futex_wait(gate, 2, 100);
    if (daemon_gone()) return false;
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
  return syscall(SYS_mincore, address, SHIM_PAGE, &resident) == 0 && (resident & 1);
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

static void evict_run(struct eviction *work, uint32_t index) {
  uint64_t address = work->bank->runs[index].address;
  uint32_t left = work->bank->runs[index].pages, busy = 0, tries = 0;
  while (left > 0 && !work->abandoned && busy < BUSY_LIMIT) {
    uint32_t pages = left < PIECE ? left : PIECE;
    int64_t moved = move_piece(work, index, address, pages);
    uint32_t done = 1;
    if (moved > 0) {
      done = (uint32_t)moved;
      busy = 0;
    } else if (moved == -ECANCELED) {
      work->abandoned = true;
      return;
    } else if (moved == -EAGAIN && tries < 3) {
      // An event is unread, or the page is locked for a moment.
      tries++;
      syscall(SYS_sched_yield);
      continue;
    } else if (moved == -EINVAL && pages > 1) {
      // The run crosses the border of a mapping that was split since: page by page.
      moved = move_piece(work, index, address, 1);
      if (moved <= 0) work->bank->refused_pages++;
    } else if (moved == -EBUSY && tries == 0 && unshare_page(address)) {
      tries = 1;
      continue;
    } else if (moved == -EBUSY || moved == -EAGAIN) {
      work->bank->busy_pages++;
      busy++;
    } else if (moved != -ENOENT) {
      work->bank->refused_pages++;
    }
    tries = 0;
    address += done * SHIM_PAGE;
    left -= done;
  }
}

/// Empties the staging area without an event: on into the outbox, whose context has no events, and dropped there.
static void drop_staged(uint32_t pages) {
  uint64_t length = pages * SHIM_PAGE, offset = 0;
  while (offset < length) {
    int64_t moved = move_pages(shim->staging_uffd, (uintptr_t)shim->outbox + offset, (uintptr_t)shim->staging + offset, length - offset);
    if (moved == -EAGAIN || moved == -EBUSY) {
      syscall(SYS_sched_yield);
      continue;
    }
    if (moved <= 0) {
      // Nothing the kernel should say here. The staging area must be empty for the next command all the same.
      syscall(SYS_madvise, shim->staging, length, MADV_DONTNEED);
      break;
    }
    offset += (uint64_t)moved;
  }
  syscall(SYS_madvise, shim->outbox, length, MADV_DONTNEED);
}

static void evict(uint32_t index) {
  shim_forget_dead_threads();
  struct vswap_bank *bank = &shim->ring->bank[index];
  struct eviction work = {.bank = bank, .frames = &shim->ring->frames[index][0][0]};
  for (uint32_t run = 0; run < bank->run_count && !work.abandoned; run++) evict_run(&work, run);
  // The daemon may look at the content now; dropping our copy takes a while.
  uint32_t sequence = bank->sequence;
  if (work.staged > 0) drop_staged(work.staged);
  vswap_store(&bank->finished, sequence);
  ring_doorbell_of_daemon();
}

/// Whether a command was executed. `leave` is set by VSWAP_LEAVE.
static bool execute_oldest(bool *leave) {
  int chosen = -1;
  for (int index = 0; index < (int)VSWAP_BANKS; index++) {
    struct vswap_bank *bank = &shim->ring->bank[index];
    if (vswap_load(&bank->sequence) == bank->finished) continue;
    if (chosen < 0 || (int32_t)(bank->sequence - shim->ring->bank[chosen].sequence) < 0) chosen = index;
  }
  if (chosen < 0) return false;
  if (shim->ring->bank[chosen].operation == VSWAP_LEAVE) {
    *leave = true;
  } else {
    evict((uint32_t)chosen);
  }
  return true;
}

/// Lets a thread that waits for the daemon go on without it.
static void abandon_request(void) {
  struct vswap_request *request = &shim->ring->request;
  if (vswap_replace(&request->state, VSWAP_REQUEST_ASKED, VSWAP_REQUEST_GRANTED)) shim_futex_wake(&request->state);
}

void shim_serve(void) {
  bool leave = false;
  uint32_t seen = vswap_load(&shim->ring->doorbell) - 1;
  while (!leave) {
    uint32_t bell = vswap_load(&shim->ring->doorbell);
    // Whoever changes the state of a request rings afterwards, so a bell not seen before is the only time to look.
    if (bell != seen && vswap_load(&shim->ring->request.state) != VSWAP_REQUEST_NONE) ring_doorbell_of_daemon();
    seen = bell;
    if (execute_oldest(&leave)) continue;
    shim_futex_wait(&shim->ring->doorbell, bell, IDLE_MILLISECONDS);
    if (daemon_gone()) {
      // With pages that only the daemon had, or was about to take, the program cannot go on: it would read zeros. Without, it can.
      bool lost = vswap_load(&shim->ring->taken) != shim->published || vswap_load(&shim->ring->held) != 0;
      if (lost) syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
      leave = true;
    }
  }
  vswap_store(&shim->phase, SHIM_IDLE);
  abandon_request();
}

/// Who am I? Only a forked child asks: its daemon answers the fault on this page with the child's token.
static uint64_t read_token(void) {
  if (shim_madvise(shim->identity, SHIM_PAGE, MADV_DONTNEED) != 0) return 0;
  return *(volatile uint64_t *)shim->identity;
}

static void settle(bool attached) {
  vswap_store(&shim->phase, attached ? SHIM_ATTACHED : SHIM_FAILED);
  shim_futex_wake(&shim->phase);
}

static void *agent(void *argument) {
  (void)argument;
  bool young = vswap_load(&shim->phase) != SHIM_STARTING;
  if (young) shim_futex_wait(&shim->family->promote, shim->family_value, YOUNG_MILLISECONDS);
  // A descriptor table of our own, made without ever copying the program's descriptors into it. Debugging keeps stderr.
  if (syscall(SYS_close_range, shim->debug ? 3u : 0u, ~0u, CLOSE_RANGE_UNSHARE) != 0) {
    settle(false);
    return NULL;
  }
  uint64_t token = young ? read_token() : 0;
  bool attached = (!young || token != 0) && shim_attach(young ? VSWAP_CHILD : VSWAP_NEW, token);
  settle(attached);
  if (attached) shim_serve();
  // Ends the thread; its descriptor table goes with it.
  return NULL;
}

bool shim_start_agent(void) {
  pthread_attr_t attributes;
  pthread_t thread;
  sigset_t all, before;
  if (!shim_real_pthread_create || pthread_attr_init(&attributes) != 0) return false;
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  sigfillset(&all);
  bool ready = pthread_attr_setstack(&attributes, shim->stack, SHIM_STACK) == 0;
  pthread_sigmask(SIG_SETMASK, &all, &before);
  ready = ready && shim_real_pthread_create(&thread, &attributes, agent, NULL) == 0;
  // Not earlier: pthread_create allocates, and whoever calls mremap in a young child waits for its agent.
  vswap_replace(&shim->phase, SHIM_NEWBORN, ready ? SHIM_YOUNG : SHIM_FAILED);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
  return ready;
}

void shim_grow_up(void) {
  while (vswap_load(&shim->phase) == SHIM_YOUNG) {
    vswap_add(&shim->family->promote, 1);
    syscall(SYS_futex, &shim->family->promote, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
    shim_futex_wait(&shim->phase, SHIM_YOUNG, 10);
  }
}
