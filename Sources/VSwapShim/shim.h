// libvswap.so: what its files share. The library holds mechanism only; every decision is the daemon's.
//
// The agent is a process of its own that shares the program's address space (process.c). It is no thread of the program:
// what the program does with its threads, its credentials, its namespaces or its filters does not concern it.
//
// Memory rules, because the agent must never fault on a page that it has evicted itself:
//  - everything that the agent touches lies in `struct shim`, on its own stack or in the ring, which are mapped here,
//    reported to the daemon as private and never registered;
//  - the only variable outside is the pointer to it, which has an initial value and so lives in a file-backed page;
//  - the agent runs no code but this library's: no function of libc's, which the program may stand in for, and no
//    thread-local variable (raw.h, memory.c);
//  - the data of libc and of the dynamic linker is private as well, since the calling thread may need it while its
//    daemon waits for it (a request, a thread's start).
#ifndef VSWAP_SHIM_H
#define VSWAP_SHIM_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "raw.h"
#include "vswap_wire.h"

#define SHIM_PAGE ((size_t)VSWAP_PAGE)
#define SHIM_STACK (64 * 1024)
#define SHIM_THREADS 16384
#define SHIM_STAGING ((size_t)VSWAP_BANK_PAGES * SHIM_PAGE)

/// By these a wait tells a dead agent from the program's children (wait.c).
#define SHIM_AGENT_STATUS 0x76
#define SHIM_AGENT_MARK 0x7673

enum shim_phase {
  SHIM_IDLE = 0,      // not attached: the program runs as if the library were absent
  SHIM_STARTING = 1,  // the agent speaks with the daemon
  SHIM_ATTACHED = 2,
  SHIM_YOUNG = 3,  // forked from an attached process, agent asleep, served by the daemon
  SHIM_FAILED = 4,
  SHIM_GROWING = 5,  // the agent of a young child speaks with the daemon
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
  uint32_t agent;         // the agent's process number; the kernel writes 0 and wakes when it ends
  uint32_t order;         // mremap and fork, one after the other: 0, or the thread that has it and a bit if others wait
  uint32_t thread_slots;  // entries of `threads` ever used
  uint32_t sweep;         // next entry of `threads` to look at
  uint32_t published;     // pages handed to the daemon, ever
  uint32_t overflow;      // more threads than entries: nothing is evicted any more
  bool debug;
  bool required;
  bool filtered;          // a system call filter is there, or came after the start
  bool adopting;          // this process is the one that orphans come to: it would have to wait for an agent
  uint64_t limit;
  uint32_t family_value;  // family->promote at the fork
  int socket, uffd, staging_uffd, doorbell, pagemap, pidfd;
  /// Held for good by the thread that the process began with: the kernel marks it when that thread ends or executes.
  pthread_mutex_t owner;
  struct vswap_ring *ring;
  struct vswap_family *family;
  uint8_t *stack;
  uint8_t *identity;
  uint8_t *mark;     // 1; 0 in a child that no fork handler ran for (MADV_WIPEONFORK)
  uint8_t *staging;  // with the target's context: a MOVE into it is refused while an event is unread
  uint8_t *outbox;   // with the agent's own context, which has no events: dropping pages from it is silent
  uint32_t staging_protection;
  uint64_t private_start[VSWAP_PRIVATE_RANGES], private_end[VSWAP_PRIVATE_RANGES];
  uint64_t no_threads[64];  // what the agent has in the place of a thread control block
  char path[108];
  char fallback_path[108];
  char group[VSWAP_GROUP_MAX];  // empty until the daemon has made a name, if none was asked for
  uint64_t pass;                // of that group, or of the one that this program was started in
  char name[VSWAP_NAME_MAX];
  char failure[VSWAP_TEXT_MAX];
  struct shim_thread threads[SHIM_THREADS];
};

/// Valid from the constructor on; (void *)1 before, and for good where the library stays out of the way.
extern struct shim *shim;
static inline bool shim_ready(void) { return shim != (struct shim *)1; }

static inline void shim_futex_wake(uint32_t *word) { raw(SYS_futex, word, 1 /* FUTEX_WAKE */, INT32_MAX); }
long shim_futex_wait(uint32_t *word, uint32_t expected, int milliseconds);

/// Maps the bells, once, and names them in the ring (announce.c).
void shim_make_bells(void);
/// Memory that appeared other than by mmap or mprotect: announced, where that is wanted.
void shim_announce(void *address, size_t length);
/// From now on not all private anonymous memory is alike: advice for forks, or a stack.
void shim_note_advice(void);

/// Maps staging and outbox. 0, or -errno.
long shim_map_staging(void);
/// Speaks with the daemon, as the agent. Returns whether the process is attached; `shim->failure` says why not.
bool shim_attach(enum vswap_kind kind, uint64_t token);

/// Starts the agent's process: of a new target, or of a forked child. Returns whether there is one.
bool shim_start_agent(void);
/// Whether the agent's process is there still.
static inline bool shim_has_agent(void) { return vswap_load(&shim->agent) != 0; }
/// Ends the agent of a young child, which has not spoken with the daemon yet. false: it does already, or has.
bool shim_stop_young_agent(void);
/// The agent gives up what it does not need to speak with the daemon, and then, `attached`, what it does not need to serve.
void shim_drop_powers(bool attached);

/// What the agent does, from its first instruction to its end.
void shim_run_agent(void);
/// Wakes the agent of a young child and waits until it has attached.
void shim_grow_up(void);

/// Fork handlers.
void shim_before_fork(void);
void shim_after_fork(void);
/// Part of the child's: nobody has the order there, and this thread has another number.
void shim_after_fork_in_child(void);

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
/// Looks up the functions that ours stand in for: at the start, since looking may allocate.
void shim_find_real(void);
void shim_find_waits(void);
void shim_find_self_memory(void);
/// What the library after us in the search order has under that name.
void shim_find_next(const char *name, void *place);

/// A child that no fork handler ran for, made by _Fork(3) or clone(2) itself: the state is its parent's, and the ring
/// is not there. Costs no system call, which a filter might not let through.
static inline bool shim_is_ours(void) { return shim_ready() && *(volatile uint8_t *)shim->mark == 1; }
/// The calling thread's number, asked for once.
uint32_t shim_self(void);

#endif
