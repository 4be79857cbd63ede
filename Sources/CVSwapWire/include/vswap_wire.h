// The protocol between the daemon and the preload library, defined once for both.
//
// Attach socket (SOCK_SEQPACKET, one message per packet):
//
//   agent -> daemon   hello      who I am, which group and limit I want; + a pidfd of the program
//   daemon -> agent   welcome    + ring memfd, family memfd, eventfd, /dev/userfaultfd
//   daemon -> agent   welcome    + the userfaultfd inherited over fork (children only)
//   agent -> daemon   attach     where my mappings are; + the new target's userfaultfd
//   daemon -> agent   welcome    the group's name and pass: the target is served from here on
//
// Afterwards the socket only tells each side when the other has gone. All work goes through the
// ring: a memfd made and sealed by the daemon, two command banks that alternate, and one frame per page of
// a bank that carries the content of an evicted page. The daemon trusts nothing that it reads from the ring:
// it copies first and checks every address and count against the command it gave.
#ifndef VSWAP_WIRE_H
#define VSWAP_WIRE_H

#include <stdint.h>

#define VSWAP_MAGIC 0x70617776u
#define VSWAP_VERSION 2u
#define VSWAP_PAGE 4096u

/// limit_bytes of a hello: as little as the program does with.
static const uint64_t VSWAP_LIMIT_AUTO = UINT64_MAX;

#define VSWAP_GROUP_MAX 64
#define VSWAP_NAME_MAX 16
#define VSWAP_TEXT_MAX 160
#define VSWAP_PRIVATE_RANGES 4

/// Pages (and therefore runs) of one command. 256 pages: 1 MiB of staging in the target.
#define VSWAP_BANK_PAGES 256u
#define VSWAP_BANKS 2u
/// Most pages that the agent moves between two looks at the ring's generation, with the gate in its hand.
#define VSWAP_PIECE_PAGES 16u

/// Announcements that are under way at most.
#define VSWAP_BELLS 256u

enum vswap_kind { VSWAP_NEW = 1, VSWAP_CHILD = 2 };
enum vswap_status { VSWAP_OK = 0, VSWAP_REFUSED = 1 };

struct vswap_hello {
  uint32_t magic;
  uint32_t version;
  uint32_t kind;
  uint32_t agent;        // the agent's process number, as faults name it: in the target's namespace
  uint64_t token;        // VSWAP_CHILD: what the identity page says; VSWAP_NEW: the pass of the group that it was started in, or 0
  uint64_t limit_bytes;  // 0: none; or VSWAP_LIMIT_AUTO
  char group[VSWAP_GROUP_MAX];
  char name[VSWAP_NAME_MAX];
};

struct vswap_welcome {
  uint32_t magic;
  uint32_t status;
  uint64_t token;             // with the last one: the pass of the group, for what the program starts
  char text[VSWAP_TEXT_MAX];  // with the last one: the group's name; VSWAP_REFUSED: why
};

struct vswap_attach {
  uint32_t magic;
  uint32_t reserved;
  uint64_t identity_address;  // one page that is never touched, except by a forked child that asks who it is; wiped on fork
  uint64_t staging_address;   // VSWAP_BANK_PAGES pages, to be registered with the target's userfaultfd
  // Never registered, never evicted, because the agent touches them: the library's own two mappings, and the data of libc
  // and of the dynamic linker.
  uint64_t private_start[VSWAP_PRIVATE_RANGES];
  uint64_t private_end[VSWAP_PRIVATE_RANGES];
};

struct vswap_run {
  uint64_t address;
  uint32_t pages;
  uint32_t reserved;
};

/// Pages [address, address + pages) left the target; their content is in the frames that follow the
/// frames of the records before.
struct vswap_record {
  uint64_t address;
  uint32_t pages;
  uint32_t run;
};

#define VSWAP_WELCOME_DESCRIPTORS 4

struct vswap_bank {
  // Written by the daemon while the bank is idle.
  uint32_t sequence;  // a new value is a new command
  uint32_t reserved;
  uint32_t generation;  // the command is abandoned when the ring's generation is another one
  uint32_t run_count;
  struct vswap_run runs[VSWAP_BANK_PAGES];
  // Written by the agent.
  uint32_t finished __attribute__((aligned(64)));  // sequence of the command that has ended
  uint32_t record_count;                           // records that are complete, frames included
  uint32_t busy_pages;                             // pages left resident: shared with a child, or pinned
  uint32_t refused_pages;                          // pages left resident: the kernel does not move them
  struct vswap_record records[VSWAP_BANK_PAGES];
};

/// A thread of the target asks the daemon to let go of a range before the target changes it in a way
/// that the kernel's events do not describe. Held until the thread says that it is done.
enum vswap_request_state {
  VSWAP_REQUEST_NONE = 0,
  VSWAP_REQUEST_ASKED = 1,
  VSWAP_REQUEST_GRANTED = 2,
  VSWAP_REQUEST_DONE = 3,
};
enum vswap_request_kind {
  VSWAP_RELEASE_RANGE = 1,   // restore and unregister every mapping that touches the range
  VSWAP_RELEASE_SPANNED = 2  // the same, unless one registered mapping holds all of the range
};
struct vswap_request {
  uint32_t state;  // futex
  uint32_t kind;
  uint64_t start;
  uint64_t end;
};

/// New memory, noted by the thread that is about to use it, in bytes. The daemon answers with the registered mapping that holds it.
struct vswap_announcement {
  uint64_t start;  // with VSWAP_ANNOUNCED_PLAIN added: as mmap makes it, without advice or a stack in it
  uint64_t end;
};
#define VSWAP_ANNOUNCED_PLAIN 1u

struct vswap_ring {
  uint32_t magic;
  uint32_t version;
  uint32_t generation __attribute__((aligned(64)));  // daemon, under the gate
  uint32_t registered;                               // daemon: mappings registered with the userfaultfd
  uint32_t held;                                     // daemon: pages that only the daemon has
  uint32_t taken;                                    // daemon: pages taken from records, ever; follows `held`
  uint32_t doorbell __attribute__((aligned(64)));    // futex the agent sleeps on
  uint32_t leave;                                    // daemon: everything is restored and unregistered, or the program has gone: end
  uint32_t deserted;                                 // agent: the thread that the program began with has ended or executed
  // Threads of the target inside a call that the daemon would have to be asked for if anything were registered.
  uint32_t callers __attribute__((aligned(64)));
  // 0 free, 1 held, 2 held and waited for. The agent holds it around {check the generation, MOVE, copy, publish},
  // the daemon around {read events, apply}: this is what puts evictions and events into one order.
  uint32_t gate __attribute__((aligned(64)));
  struct vswap_request request __attribute__((aligned(64)));
  struct vswap_bank bank[VSWAP_BANKS] __attribute__((aligned(4096)));
  uint8_t frames[VSWAP_BANKS][VSWAP_BANK_PAGES][VSWAP_PAGE] __attribute__((aligned(4096)));
  // Daemon: new memory of that many pages or more is to be announced.
  uint32_t announce_from __attribute__((aligned(64)));
  // Library, before it attaches: where its VSWAP_BELLS bells are, one page each; 0: it announces nothing.
  uint64_t bells __attribute__((aligned(64)));
  // A thread that touches the bell with the same number has filled its entry.
  struct vswap_announcement announcements[VSWAP_BELLS];
};

/// Shared by a target and everything it forks, until a child has its own agent.
struct vswap_family {
  uint32_t promote;  // futex: a new value tells agents of young children to attach now
  uint32_t next;     // where the next child writes its process number
  uint32_t children[64];
};

_Static_assert(sizeof(struct vswap_hello) == 32 + VSWAP_GROUP_MAX + VSWAP_NAME_MAX, "hello has no padding");
_Static_assert(sizeof(struct vswap_attach) == 24 + 16 * VSWAP_PRIVATE_RANGES, "attach has no padding");
_Static_assert(sizeof(struct vswap_run) == 16 && sizeof(struct vswap_record) == 16, "runs are 16 bytes");

static inline uint32_t *vswap_family_promote(struct vswap_family *family) { return &family->promote; }
static inline uint32_t *vswap_family_next(struct vswap_family *family) { return &family->next; }
static inline uint32_t vswap_family_child(const struct vswap_family *family, uint32_t place) {
  return __atomic_load_n(&family->children[place % 64], __ATOMIC_RELAXED);
}

static inline uint32_t vswap_load(const uint32_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
static inline void vswap_store(uint32_t *word, uint32_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }
static inline uint32_t vswap_exchange(uint32_t *word, uint32_t value) {
  return __atomic_exchange_n(word, value, __ATOMIC_ACQ_REL);
}
static inline uint32_t vswap_add(uint32_t *word, uint32_t value) {
  return __atomic_add_fetch(word, value, __ATOMIC_ACQ_REL);
}
/// Returns whether `*word` was `expected` and is now `desired`.
static inline int vswap_replace(uint32_t *word, uint32_t expected, uint32_t desired) {
  return __atomic_compare_exchange_n(word, &expected, desired, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

// For the daemon. Swift does not import structures with large or over-aligned fields, so to it the ring is opaque.
static inline struct vswap_ring *vswap_ring_at(void *memory) { return (struct vswap_ring *)memory; }
static inline uint64_t vswap_ring_size(void) { return sizeof(struct vswap_ring); }
static inline void vswap_ring_begin(struct vswap_ring *ring) {
  ring->magic = VSWAP_MAGIC;
  ring->version = VSWAP_VERSION;
  ring->announce_from = UINT32_MAX;
}
static inline uint32_t *vswap_gate(struct vswap_ring *ring) { return &ring->gate; }
static inline uint32_t *vswap_generation(struct vswap_ring *ring) { return &ring->generation; }
static inline uint32_t *vswap_doorbell(struct vswap_ring *ring) { return &ring->doorbell; }
static inline uint32_t *vswap_leave(struct vswap_ring *ring) { return &ring->leave; }
static inline uint32_t *vswap_deserted(struct vswap_ring *ring) { return &ring->deserted; }
static inline uint32_t *vswap_registered(struct vswap_ring *ring) { return &ring->registered; }
static inline uint32_t *vswap_callers(struct vswap_ring *ring) { return &ring->callers; }
static inline uint32_t *vswap_taken(struct vswap_ring *ring) { return &ring->taken; }
static inline uint32_t *vswap_held(struct vswap_ring *ring) { return &ring->held; }
static inline uint32_t *vswap_announce_from(struct vswap_ring *ring) { return &ring->announce_from; }
static inline uint64_t vswap_bells(struct vswap_ring *ring) { return __atomic_load_n(&ring->bells, __ATOMIC_ACQUIRE); }
static inline struct vswap_announcement vswap_announcement_at(struct vswap_ring *ring, uint32_t index) {
  const struct vswap_announcement *entry = &ring->announcements[index % VSWAP_BELLS];
  return (struct vswap_announcement){__atomic_load_n(&entry->start, __ATOMIC_ACQUIRE), __atomic_load_n(&entry->end, __ATOMIC_RELAXED)};
}
static inline void vswap_answer(struct vswap_ring *ring, uint32_t index, struct vswap_announcement answer) {
  struct vswap_announcement *entry = &ring->announcements[index % VSWAP_BELLS];
  __atomic_store_n(&entry->start, answer.start, __ATOMIC_RELAXED);
  __atomic_store_n(&entry->end, answer.end, __ATOMIC_RELEASE);
}
static inline struct vswap_request *vswap_request_of(struct vswap_ring *ring) { return &ring->request; }
static inline const uint8_t *vswap_frames_of(struct vswap_ring *ring, uint32_t bank) { return &ring->frames[bank][0][0]; }
static inline uint32_t vswap_records(struct vswap_ring *ring, uint32_t bank) {
  return vswap_load(&ring->bank[bank].record_count);
}
/// The agent may write meanwhile: each field is read once.
static inline struct vswap_record vswap_record_at(struct vswap_ring *ring, uint32_t bank, uint32_t index) {
  const struct vswap_record *record = &ring->bank[bank].records[index];
  return (struct vswap_record){.address = __atomic_load_n(&record->address, __ATOMIC_RELAXED),
                               .pages = __atomic_load_n(&record->pages, __ATOMIC_RELAXED),
                               .run = __atomic_load_n(&record->run, __ATOMIC_RELAXED)};
}
static inline uint32_t vswap_finished(struct vswap_ring *ring, uint32_t bank) {
  return vswap_load(&ring->bank[bank].finished);
}
/// Writes a command into an idle bank; the new sequence number, stored last, is what makes it one.
static inline void vswap_give(struct vswap_ring *ring, uint32_t bank, uint32_t sequence, const struct vswap_run *runs,
                              uint32_t count) {
  struct vswap_bank *idle = &ring->bank[bank];
  for (uint32_t index = 0; index < count; index++) idle->runs[index] = runs[index];
  idle->run_count = count;
  idle->record_count = 0;
  idle->busy_pages = 0;
  idle->refused_pages = 0;
  idle->generation = vswap_load(&ring->generation);
  vswap_store(&idle->sequence, sequence);
}

// For tests that play the agent.
static inline void vswap_play_record(struct vswap_ring *ring, uint32_t bank, uint32_t index, struct vswap_record record) {
  ring->bank[bank].records[index] = record;
}
static inline void vswap_play_count(struct vswap_ring *ring, uint32_t bank, uint32_t count) {
  vswap_store(&ring->bank[bank].record_count, count);
}
static inline uint32_t vswap_play_sequence(struct vswap_ring *ring, uint32_t bank) { return ring->bank[bank].sequence; }
static inline void vswap_play_finished(struct vswap_ring *ring, uint32_t bank, uint32_t sequence) {
  vswap_store(&ring->bank[bank].finished, sequence);
}

#endif
