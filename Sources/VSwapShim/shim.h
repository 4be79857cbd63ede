// libvswap.so: what its files share. The library holds mechanism only; every decision is the daemon's.
//
// Memory rules, because the agent must never fault on a page that it has evicted itself:
//  - everything that the agent touches lies in `struct shim`, on its own stack or in the ring, which are mapped here, reported to
//    the daemon as private and never registered;
//  - the only variable outside is the pointer to it, which has an initial value and so lives in a file-backed page;
//  - while it serves, the agent calls nothing of libc but syscall(): even memcpy looks at a variable in libc's .bss, and calls are
//    bound at load time, because binding one lazily touches the dynamic linker's heap;
//  - the data of libc and of the dynamic linker is private as well, for the signal with which setuid(2) and its like reach
//    every thread: its handler may run while the agent holds the gate.
#ifndef VSWAP_SHIM_H
#define VSWAP_SHIM_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vswap_wire.h"

#define SHIM_PAGE ((size_t)VSWAP_PAGE)
#define SHIM_STACK (256 * 1024)
#define SHIM_THREADS 16384
#define SHIM_STAGING ((size_t)VSWAP_BANK_PAGES * SHIM_PAGE)

enum shim_phase {
  SHIM_IDLE = 0,      // not attached: the program runs as if the library were absent
  SHIM_STARTING = 1,  // the agent speaks with the daemon
  SHIM_ATTACHED = 2,
  SHIM_YOUNG = 3,  // forked from an attached process, agent asleep, served by the daemon
  SHIM_FAILED = 4,
  SHIM_NEWBORN = 5,  // the same without an agent yet: calls go straight to the kernel, since nobody could be waited for
};

/// Stack, static TLS and thread control block of a thread: must stay resident, since the kernel writes into
/// them at a moment when it takes no page faults (CLONE_CHILD_CLEARTID).
struct shim_thread {
  uint64_t low;
  uint64_t high;  // 0: free, 1: being filled in
  void *(*start)(void *);
  void *argument;
  uint32_t thread;  // 0: not running yet
};

struct shim {
  uint32_t process;       // whose state this is
  uint32_t phase;         // enum shim_phase, futex
  uint32_t order;         // mremap and fork, one after the other: 0, or the thread that has it and a bit if others wait
  uint32_t thread_slots;  // entries of `threads` ever used
  uint32_t sweep;         // next entry of `threads` to look at
  uint32_t published;     // pages handed to the daemon, ever
  uint32_t overflow;      // more threads than entries: nothing is evicted any more
  bool debug;
  bool required;
  uint64_t limit;
  uint32_t family_value;  // family->promote at the fork
  int socket, uffd, staging_uffd, doorbell, pagemap;
  struct vswap_ring *ring;
  struct vswap_family *family;
  uint8_t *stack;
  uint8_t *identity;
  uint8_t *staging;  // with the target's context: a MOVE into it is refused while an event is unread
  uint8_t *outbox;   // with the agent's own context, which has no events: dropping pages from it is silent
  uint64_t private_start[VSWAP_PRIVATE_RANGES], private_end[VSWAP_PRIVATE_RANGES];
  char path[108];
  char fallback_path[108];
  char group[VSWAP_GROUP_MAX];
  char name[VSWAP_NAME_MAX];
  char failure[VSWAP_TEXT_MAX];
  struct shim_thread threads[SHIM_THREADS];
};

/// Valid from the constructor on; (void *)1 before, and for good where the library stays out of the way.
extern struct shim *shim;
static inline bool shim_ready(void) { return shim != (struct shim *)1; }

/// madvise(2) itself: the function of that name is the library's own, for the program.
int shim_madvise(void *address, size_t length, int advice);
void shim_futex_wait(uint32_t *word, uint32_t expected, int milliseconds);
void shim_futex_wake(uint32_t *word);

/// Maps staging and outbox. Returns whether it could.
bool shim_map_staging(void);
/// Speaks with the daemon from the agent's thread. Returns whether the process is attached; `shim->failure` says why not.
bool shim_attach(enum vswap_kind kind, uint64_t token);
/// Starts the agent's thread with all signals blocked, of a new target or of a newborn child.
bool shim_start_agent(void);
/// Serves the ring until the daemon says leave or goes away.
void shim_serve(void);
/// Wakes the agent of a young child and waits until it has attached.
void shim_grow_up(void);

/// Fork handlers.
void shim_before_fork(void);
void shim_after_fork(void);
/// Part of the child's. Returns whether our fork() will start the agent, once every other handler has run.
bool shim_after_fork_in_child(void);

/// Length in pages of the prefix of [address, address + pages) that may be evicted; 0: the first page may not.
uint32_t shim_evictable(uint64_t address, uint32_t pages);
/// Protects the calling thread's control block, and the range [low, high) of a stack around it.
void shim_protect_thread(struct shim_thread *entry, uint64_t stack_size);
struct shim_thread *shim_new_thread_entry(void);
/// Looks at a few entries and frees those whose thread has ended. An entry outlives its thread's last instruction on
/// purpose: the kernel's write into the control block comes later.
void shim_forget_dead_threads(void);
/// In a forked child: only the calling thread is left.
void shim_keep_only_this_thread(void);
/// Looks up the functions that ours stand in for.
void shim_find_real(void);
extern int (*shim_real_pthread_create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

#endif
