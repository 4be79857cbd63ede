// How programs make, change, move, lock and end mappings whose pages are out.
#include "habit.h"

#include <sys/ipc.h>
#include <sys/shm.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 0x08
#endif

static uint8_t *left(size_t bytes, uint64_t key) {
  uint8_t *at = filled(bytes, key);
  let_leave(at, bytes);
  return at;
}

static void tell_wrong(const char *what, const void *at, size_t bytes, uint64_t key) {
  tell("%s: %zu pages are wrong", what, wrong_pages(at, bytes, key));
}

static int mapped_over(void) {
  uint8_t *at = left(3 * SMALL_BYTES, 2);
  uint8_t *again = mmap(at + SMALL_BYTES, SMALL_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  tell("same place: %s", again == at + SMALL_BYTES ? "yes" : "no");
  tell("%zu pages hold something", nonzero_pages(again, SMALL_BYTES));
  tell_wrong("before", at, SMALL_BYTES, 2);
  fill_pages(again, SMALL_BYTES, 3);
  let_leave(at, 3 * SMALL_BYTES);
  tell_wrong("new", again, SMALL_BYTES, 3);
  void *taken = mmap(at, SMALL_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  tell("not replaced: %s", outcome(taken == MAP_FAILED ? -1 : 0));
  return 0;
}

static int unmapped_and_mapped(void) {
  for (int round = 0; round < 20; round++) {
    uint8_t *at = left(SMALL_BYTES, 2 + (uint64_t)round);
    munmap(at + 8 * PAGE_BYTES, 16 * PAGE_BYTES);
    uint8_t *hole = mmap(at + 8 * PAGE_BYTES, 16 * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (hole == MAP_FAILED || nonzero_pages(hole, 16 * PAGE_BYTES) || wrong_pages(at, 8 * PAGE_BYTES, 2 + (uint64_t)round)) tell("wrong in round %d", round);
    munmap(at, SMALL_BYTES);
  }
  return 0;
}

static int moved_and_grown(void) {
  uint8_t *at = left(2 * SMALL_BYTES, 2);
  uint8_t *place = mapped(8 * SMALL_BYTES, PROT_NONE, 0);
  uint8_t *there = mremap(at, 2 * SMALL_BYTES, 4 * SMALL_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, place);
  tell("fixed: %s", there == place ? "ok" : outcome(-1));
  tell_wrong("moved", there, 2 * SMALL_BYTES, 2);
  tell("%zu new pages hold something", nonzero_pages(there + 2 * SMALL_BYTES, 2 * SMALL_BYTES));
  let_leave(there, 4 * SMALL_BYTES);
  there = mremap(there, 4 * SMALL_BYTES, SMALL_BYTES, 0);
  tell_wrong("shrunk", there, SMALL_BYTES, 2);
  there = mremap(there, SMALL_BYTES, 4 * SMALL_BYTES, MREMAP_MAYMOVE);
  tell("%zu pages of the cut off part hold something", nonzero_pages(there + SMALL_BYTES, 3 * SMALL_BYTES));
  tell_wrong("grown", there, SMALL_BYTES, 2);
  return 0;
}

static int moved_but_not_unmapped(void) {
  uint8_t *at = left(SMALL_BYTES, 2);
  uint8_t *there = mremap(at, SMALL_BYTES, SMALL_BYTES, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
  if (there == MAP_FAILED) return skip("DONTUNMAP: %s", strerror(errno));
  tell("%zu pages of the old place hold something", nonzero_pages(at, SMALL_BYTES));
  tell_wrong("new place", there, SMALL_BYTES, 2);
  fill_pages(at, SMALL_BYTES, 3);
  let_leave(at, SMALL_BYTES);
  tell_wrong("old place", at, SMALL_BYTES, 3);
  tell_wrong("new place", there, SMALL_BYTES, 2);
  return 0;
}

static int moved_over_several(void) {
  uint8_t *at = left(4 * SMALL_BYTES, 2);
  mprotect(at + SMALL_BYTES, SMALL_BYTES, PROT_READ);
  let_leave(at, 4 * SMALL_BYTES);
  uint8_t *place = mapped(4 * SMALL_BYTES, PROT_NONE, 0);
  uint8_t *there = mremap(at, 4 * SMALL_BYTES, 4 * SMALL_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, place);
  tell("%s", there == MAP_FAILED ? outcome(-1) : "moved");
  if (there != MAP_FAILED) tell_wrong("moved", there, 4 * SMALL_BYTES, 2);
  return 0;
}

static int moved_by_call(void) {
  uint8_t *at = left(SMALL_BYTES, 2);
  uint8_t *there = (uint8_t *)syscall(SYS_mremap, at, SMALL_BYTES, 4 * SMALL_BYTES, MREMAP_MAYMOVE, NULL);
  tell("%s", outcome(there == MAP_FAILED ? -1 : 0));
  tell_wrong("moved", there, SMALL_BYTES, 2);
  syscall(SYS_munmap, there, SMALL_BYTES);
  uint8_t *again = (uint8_t *)syscall(SYS_mmap, there, SMALL_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  tell("%zu pages hold something", nonzero_pages(again, SMALL_BYTES));
  return 0;
}

static int breaks(void) {
  uint8_t *start = sbrk(0);
  start += -(uintptr_t)start % PAGE_BYTES;
  tell("grow: %s", outcome(brk(start + 2 * SMALL_BYTES)));
  fill_pages(start, 2 * SMALL_BYTES, 2);
  let_leave(start, 2 * SMALL_BYTES);
  tell("shrink: %s", outcome(brk(start + SMALL_BYTES)));
  tell_wrong("kept", start, SMALL_BYTES, 2);
  tell("grow: %s", outcome(brk(start + 4 * SMALL_BYTES)));
  tell("%zu new pages hold something", nonzero_pages(start + SMALL_BYTES, 3 * SMALL_BYTES));
  tell_wrong("kept", start, SMALL_BYTES, 2);
  tell("shrink by call: %s", (void *)syscall(SYS_brk, start) == start ? "ok" : "no");
  return 0;
}

static int grows_downwards(void) {
  uint8_t *room = mapped(8 * MIB, PROT_NONE, 0);
  munmap(room, 8 * MIB);
  uint8_t *top = mmap(room + 8 * MIB - SMALL_BYTES, SMALL_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0);
  if (top == MAP_FAILED) return skip("mmap: %s", strerror(errno));
  fill_pages(top, SMALL_BYTES, 2);
  let_leave(top, SMALL_BYTES);
  uint8_t *at = top;
  for (int page = 0; page < SMALL_PAGES; page++) {
    at -= PAGE_BYTES;
    *(volatile uint64_t *)(void *)at = (uint64_t)page;
  }
  let_leave(at, SMALL_BYTES);
  size_t wrong = 0;
  for (int page = 0; page < SMALL_PAGES; page++) wrong += *(uint64_t *)(void *)(top - (page + 1) * PAGE_BYTES) != (uint64_t)page;
  tell("%zu pages below are wrong", wrong);
  tell_wrong("above", top, SMALL_BYTES, 2);
  return 0;
}

static int protections_change(void) {
  uint8_t *at = left(SMALL_BYTES, 2);
  static const int protections[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC, PROT_WRITE, PROT_READ | PROT_WRITE | PROT_EXEC};
  for (int round = 0; round < 12; round++) {
    int protection = protections[round % 6];
    tell("mprotect %d: %s", protection, outcome(mprotect(at, SMALL_BYTES, protection)));
    let_leave(at, SMALL_BYTES);
    tell("reading: signal %d", read_signal(at + 3 * PAGE_BYTES));
    if (protection & PROT_READ) tell_wrong("content", at, SMALL_BYTES, 2);
  }
  return 0;
}

static int flips_pages(void) {
  uint8_t *at = left(SMALL_BYTES, 2);
  for (int round = 0; round < 30; round++)
    for (int page = 0; page < SMALL_PAGES; page += 2 + round % 3) mprotect(at + page * PAGE_BYTES, PAGE_BYTES, round % 2 ? PROT_READ | PROT_WRITE : PROT_NONE);
  mprotect(at, SMALL_BYTES, PROT_READ | PROT_WRITE);
  tell_wrong("content", at, SMALL_BYTES, 2);
  return 0;
}

/// Held to the limit: see the case.
static int writable_and_executable(void) {
  uint8_t *at = mapped(48ul * MIB, PROT_READ | PROT_WRITE | PROT_EXEC, 0);
  for (int round = 0; round < 2; round++) {
    fill_pages(at, 48ul * MIB, 2 + (uint64_t)round);
    sleep_ms(300);
    tell_wrong("content", at, 48ul * MIB, 2 + (uint64_t)round);
  }
  return 0;
}

static int generates_code(void) {
#ifdef __x86_64__
  static const uint8_t code[] = {0x8d, 0x47, 0x05, 0xc3};  // lea eax, [rdi + 5]; ret
  uint8_t *at = mapped(SMALL_BYTES, PROT_READ | PROT_WRITE | PROT_EXEC, 0);
  for (int page = 0; page < SMALL_PAGES; page++) {
    memcpy(at + page * PAGE_BYTES, code, sizeof code);
    at[page * PAGE_BYTES + 2] = (uint8_t)page;
  }
  let_leave(at, SMALL_BYTES);
  int wrong = 0;
  for (int page = 0; page < SMALL_PAGES; page++) wrong += ((int (*)(int))(uintptr_t)(at + page * PAGE_BYTES))(100) != 100 + page;
  mprotect(at, SMALL_BYTES, PROT_READ | PROT_EXEC);
  let_leave(at, SMALL_BYTES);
  for (int page = 0; page < SMALL_PAGES; page++) wrong += ((int (*)(int))(uintptr_t)(at + page * PAGE_BYTES))(7) != 7 + page;
  tell("%d functions are wrong", wrong);
  return 0;
#else
  return skip("code for x86-64 only");
#endif
}

static int protection_keys(void) {
  int key = pkey_alloc(0, 0);
  if (key < 0) return skip("pkey_alloc: %s", strerror(errno));
  uint8_t *at = left(SMALL_BYTES, 2);
  tell("pkey_mprotect: %s", outcome(pkey_mprotect(at, SMALL_BYTES, PROT_READ | PROT_WRITE, key)));
  tell_wrong("content", at, SMALL_BYTES, 2);
  let_leave(at, SMALL_BYTES);
  pkey_set(key, PKEY_DISABLE_ACCESS);
  tell("closed: signal %d", read_signal(at));
  pkey_set(key, 0);
  tell_wrong("content", at, SMALL_BYTES, 2);
  return 0;
}

static int locked_ranges(void) {
  uint8_t *at = left(SMALL_BYTES, 2);
  tell("mlock: %s", outcome(mlock(at, SMALL_BYTES / 2)));
  tell("mlock2: %s", outcome(mlock2(at + SMALL_BYTES / 2, SMALL_BYTES / 2, MLOCK_ONFAULT)));
  tell_wrong("locked", at, SMALL_BYTES, 2);
  tell("munlock: %s", outcome(munlock(at, SMALL_BYTES)));
  let_leave(at, SMALL_BYTES);
  tell_wrong("unlocked", at, SMALL_BYTES, 2);
  uint8_t *locked = mapped(MIB, PROT_READ | PROT_WRITE, MAP_LOCKED);
  tell("grown: %s", outcome((locked = mremap(locked, MIB, 8 * MIB, MREMAP_MAYMOVE)) == MAP_FAILED ? -1 : 0));
  tell("%zu pages hold something", nonzero_pages(locked, 8 * MIB));
  return 0;
}

static int verify_child(void) {
  void *own = filled(4 * MIB, 3);
  sleep_ms(700);
  return wrong_pages(own, 4 * MIB, 3) || wrong_pages(ballast, BALLAST_BYTES, 1);
}

static int lock_all(int flags, bool unlocking) {
  uint8_t *at = left(SMALL_BYTES, 2);
  tell("mlockall: %s", outcome(mlockall(flags)));
  if (unlocking) tell("munlockall: %s", outcome(munlockall()));
  uint8_t *more = filled(4 * MIB, 4);
  let_leave(more, 4 * MIB);
  tell_wrong("before", at, SMALL_BYTES, 2);
  tell_wrong("after", more, 4 * MIB, 4);
  return in_child("child", verify_child);
}

static int locks_all_current(void) { return lock_all(MCL_CURRENT, true); }
static int locks_all_current_for_ever(void) { return lock_all(MCL_CURRENT, false); }
static int locks_all_future(void) { return lock_all(MCL_FUTURE, true); }
static int locks_all_future_for_ever(void) { return lock_all(MCL_FUTURE, false); }
static int locks_all(void) { return lock_all(MCL_CURRENT | MCL_FUTURE, false); }
static int locks_all_on_fault(void) { return lock_all(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT, false); }

static int executes_with_all_locked(void) {
  mlockall(MCL_CURRENT | MCL_FUTURE);
  pid_t child = fork();
  if (child == 0) execl("/bin/sh", "sh", "-c", "echo executed", NULL);
  tell_end("child", child);
  return 0;
}

static int sealed(void) {
#ifndef SYS_mseal
  enum { SYS_mseal = 462 };
#endif
  uint8_t *at = left(SMALL_BYTES, 2);
  if (syscall(SYS_mseal, at, SMALL_BYTES, 0)) return skip("mseal: %s", strerror(errno));
  tell_wrong("sealed", at, SMALL_BYTES, 2);
  tell("munmap: %s", outcome(munmap(at, SMALL_BYTES)));
  tell("mremap: %s", outcome(mremap(at, SMALL_BYTES, 2 * SMALL_BYTES, MREMAP_MAYMOVE) == MAP_FAILED ? -1 : 0));
  fill_pages(at, SMALL_BYTES, 3);
  let_leave(at, SMALL_BYTES);
  tell_wrong("written", at, SMALL_BYTES, 3);
  return 0;
}

static int droppable(void) {
  uint8_t *at = mmap(NULL, SMALL_BYTES, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_DROPPABLE, -1, 0);
  if (at == MAP_FAILED) return skip("MAP_DROPPABLE: %s", strerror(errno));
  fill_pages(at, SMALL_BYTES, 2);
  sleep_ms(200);
  size_t other = 0;
  for (int page = 0; page < SMALL_PAGES; page++) {
    const uint64_t *words = (const uint64_t *)(void *)at + page * PAGE_BYTES / 8;
    other += *words != 0 && block_check(words, page_tag(2, (size_t)page, 0)) >= 0;
  }
  tell("%zu pages are neither as written nor zeros", other);
  return 0;
}

static int sparse_reservation(void) {
  size_t bytes = 4ul << 40, step = 1ul << 30;
  uint8_t *at = mapped(bytes, PROT_READ | PROT_WRITE, MAP_NORESERVE);
  for (size_t i = 0; i < bytes; i += step) *(uint64_t *)(void *)(at + i) = i + 1;
  uint8_t *much = filled(48ul * MIB, 2);
  size_t wrong = wrong_pages(much, 48ul * MIB, 2);
  sleep_ms(500);
  for (size_t i = 0; i < bytes; i += step) wrong += *(uint64_t *)(void *)(at + i) != i + 1;
  tell("%zu pages are wrong", wrong);
  return 0;
}

static int many_mappings(void) {
  enum { COUNT = 8000, PAGES = 2 };
  static uint8_t *at[COUNT];
  for (int i = 0; i < COUNT; i++) {
    at[i] = mapped((PAGES + 1) * PAGE_BYTES, PROT_NONE, 0);
    mprotect(at[i], PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE);
    fill_pages(at[i], PAGES * PAGE_BYTES, (uint64_t)i);
  }
  size_t wrong = 0;
  for (int i = 0; i < COUNT; i++) wrong += wrong_pages(at[i], PAGES * PAGE_BYTES, (uint64_t)i);
  tell("%zu pages are wrong", wrong);
  for (int i = 0; i < COUNT; i++) munmap(at[i], (PAGES + 1) * PAGE_BYTES);
  return 0;
}

static int files_and_shared_memory(void) {
  int file = memfd_create("habit", 0);
  if (ftruncate(file, SMALL_BYTES)) die("ftruncate");
  uint8_t *shared = mmap(NULL, SMALL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  fill_pages(shared, SMALL_BYTES, 2);
  uint8_t *private = mmap(NULL, SMALL_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
  tell_wrong("private", private, SMALL_BYTES, 2);
  for (int page = 0; page < SMALL_PAGES; page += 2) private[page * PAGE_BYTES] ^= 255;
  let_leave(private, SMALL_BYTES);
  tell("%zu pages differ", wrong_pages(private, SMALL_BYTES, 2));
  tell_wrong("shared", shared, SMALL_BYTES, 2);
  tell("MADV_DONTNEED: %s", outcome(madvise(private, SMALL_BYTES, MADV_DONTNEED)));
  tell_wrong("private again", private, SMALL_BYTES, 2);
  int segment = shmget(IPC_PRIVATE, SMALL_BYTES, IPC_CREAT | 0600);
  uint8_t *place = left(SMALL_BYTES, 3);
  uint8_t *attached = segment < 0 ? (uint8_t *)-1 : shmat(segment, place, SHM_REMAP);
  if (segment >= 0) shmctl(segment, IPC_RMID, NULL);
  tell("shmat over private memory: %s", attached == place ? "ok" : outcome(-1));
  if (attached == place) {
    tell("%zu pages hold something", nonzero_pages(attached, SMALL_BYTES));
    fill_pages(attached, SMALL_BYTES, 4);
    tell_wrong("segment", attached, SMALL_BYTES, 4);
    tell("shmdt: %s", outcome(shmdt(attached)));
  }
  return 0;
}

static int read_only_data(void) {
  uint8_t *at = left(SMALL_BYTES, 2);
  mprotect(at, SMALL_BYTES, PROT_READ);
  sleep_ms(200);
  tell_wrong("content", at, SMALL_BYTES, 2);
  tell("munmap: %s", outcome(munmap(at, SMALL_BYTES)));
  return 0;
}

static int small_guard_below_no_hugepages(void) {
  uint8_t *at = mapped(24 * MIB + PAGE_BYTES, PROT_READ | PROT_WRITE, 0);
  mprotect(at, PAGE_BYTES, PROT_NONE);
  madvise(at + PAGE_BYTES, 24 * MIB, MADV_NOHUGEPAGE);
  fill_pages(at + PAGE_BYTES, 24 * MIB, 2);
  tell_wrong("content", at + PAGE_BYTES, 24 * MIB, 2);
  return 0;
}

HABITS(HABIT(mapped_over), HABIT(unmapped_and_mapped), HABIT(moved_and_grown), HABIT(moved_but_not_unmapped), HABIT(moved_over_several),
       HABIT(moved_by_call), HABIT(breaks), HABIT(grows_downwards), HABIT(protections_change), HABIT(flips_pages),
       HABIT(writable_and_executable), HABIT(generates_code), HABIT(protection_keys), HABIT(locked_ranges), HABIT(locks_all_current),
       HABIT(locks_all_current_for_ever), HABIT(locks_all_future), HABIT(locks_all_future_for_ever), HABIT(locks_all),
       HABIT(locks_all_on_fault), HABIT(executes_with_all_locked), HABIT(sealed), HABIT(droppable), HABIT(sparse_reservation),
       HABIT(many_mappings), HABIT(files_and_shared_memory), HABIT(read_only_data), HABIT(small_guard_below_no_hugepages))
