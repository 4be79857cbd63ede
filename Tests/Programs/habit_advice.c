// madvise(2) and its kin by every way to call them: what was discarded stays so, what was not is there.
#include "habit.h"

#include <sys/uio.h>
#include <sys/syscall.h>

enum { COLLAPSE = 25, GUARD_INSTALL = 102, GUARD_REMOVE = 103, DONTNEED_LOCKED = 24, POPULATE_READ = 22, POPULATE_WRITE = 23 };

typedef enum { BY_LIBC, BY_SYSCALL, BY_PROCESS, WAYS } Way;
static const char *const way_names[] = {"madvise", "syscall", "process_madvise"};

static long advise(Way way, void *at, size_t bytes, int advice) {
  if (way == BY_LIBC) return madvise(at, bytes, advice);
  if (way == BY_SYSCALL) return syscall(SYS_madvise, at, bytes, advice);
  int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
  struct iovec range = {at, bytes};
  long result = process_madvise(self, &range, 1, advice, 0);
  int error = errno;
  close(self);
  errno = error;
  return result == (long)bytes ? 0 : result;
}

static void tell_content(const char *what, const void *at, uint64_t key) {
  size_t wrong = wrong_pages(at, SMALL_BYTES, key), nonzero = nonzero_pages(at, SMALL_BYTES);
  tell("%s: %s", what, wrong == 0 ? "as written" : nonzero == 0 ? "zeros" : "something else");
}

static int leaves_content(int advice) {
  for (Way way = 0; way < WAYS; way++) {
    void *at = filled(SMALL_BYTES, 2);
    let_leave(at, SMALL_BYTES);
    advise(way, at, SMALL_BYTES, advice);
    tell_content(way_names[way], at, 2);
    munmap(at, SMALL_BYTES);
  }
  return 0;
}

static int discards(int advice, bool tell_result) {
  for (Way way = 0; way < WAYS; way++) {
    uint8_t *at = filled(3 * SMALL_BYTES, 2);
    fill_pages(at + SMALL_BYTES, SMALL_BYTES, 3);
    let_leave(at, 3 * SMALL_BYTES);
    long result = advise(way, at + SMALL_BYTES, SMALL_BYTES, advice);
    if (tell_result) tell("%s: %s", way_names[way], outcome(result));
    tell_content("middle", at + SMALL_BYTES, 3);
    fill_pages(at + SMALL_BYTES, SMALL_BYTES, 4);
    let_leave(at, 3 * SMALL_BYTES);
    tell_content("written again", at + SMALL_BYTES, 4);
    tell_content("before", at, 2);
    tell("after: %d", block_check((uint64_t *)(void *)(at + 2 * SMALL_BYTES), page_tag(2, 2 * SMALL_PAGES, 0)));
    munmap(at, 3 * SMALL_BYTES);
  }
  return 0;
}

static int dontneed(void) { return discards(MADV_DONTNEED, true); }

/// Freed pages keep their content or are zeros until they are written again.
static int lazily_freed(void) {
  for (Way way = 0; way < WAYS; way++) {
    void *at = filled(SMALL_BYTES, 2);
    let_leave(at, SMALL_BYTES);
    tell("%s: %s", way_names[way], outcome(advise(way, at, SMALL_BYTES, MADV_FREE)));
    size_t other = 0;
    for (int page = 0; page < SMALL_PAGES; page++) {
      const uint64_t *words = (const uint64_t *)at + page * PAGE_BYTES / 8;
      other += *words != 0 && block_check(words, page_tag(2, (size_t)page, 0)) >= 0;
    }
    tell("neither: %zu", other);
    fill_pages(at, SMALL_BYTES, 3);
    let_leave(at, SMALL_BYTES);
    tell_content("written again", at, 3);
    munmap(at, SMALL_BYTES);
  }
  return 0;
}

static int discard_of_locked(void) {
  for (Way way = 0; way < WAYS; way++) {
    void *at = filled(SMALL_BYTES, 2);
    let_leave(at, SMALL_BYTES);
    tell("mlock: %s", outcome(mlock(at, SMALL_BYTES)));
    tell("DONTNEED: %s", outcome(advise(way, at, SMALL_BYTES, MADV_DONTNEED)));
    tell_content("locked", at, 2);
    tell("DONTNEED_LOCKED: %s", outcome(advise(way, at, SMALL_BYTES, DONTNEED_LOCKED)));
    tell_content("discarded", at, 2);
    munmap(at, SMALL_BYTES);
  }
  return 0;
}

static int guard(Way install, Way remove) {
  uint8_t *at = filled(SMALL_BYTES, 2);
  let_leave(at, SMALL_BYTES);
  long result = advise(install, at, SMALL_BYTES, GUARD_INSTALL);
  tell("install by %s: %s", way_names[install], outcome(result));
  if (result == 0) {
    int raised = 0;
    for (int page = 0; page < SMALL_PAGES; page += 7) raised += read_signal(at + page * PAGE_BYTES) == SIGSEGV;
    tell("%d of 10 raise SIGSEGV", raised);
  }
  tell("remove by %s: %s", way_names[remove], outcome(advise(remove, at, SMALL_BYTES, GUARD_REMOVE)));
  tell_content("then", at, 2);
  munmap(at, SMALL_BYTES);
  return 0;
}

static int guard_pages(void) {
  for (Way way = 0; way < WAYS; way++) guard(way, (way + 1) % WAYS);
  return 0;
}

static int guard_pages_keep_what_is_beside(void) {
  uint8_t *at = filled(4 * SMALL_BYTES, 2);
  let_leave(at, 4 * SMALL_BYTES);
  for (int page = 0; page < 4 * SMALL_PAGES; page += 2) advise(BY_PROCESS, at + page * PAGE_BYTES, PAGE_BYTES, GUARD_INSTALL);
  let_leave(at, 4 * SMALL_BYTES);
  size_t wrong = 0, raised = 0;
  for (int page = 0; page < 4 * SMALL_PAGES; page++) {
    if (page % 2 == 0) raised += read_signal(at + page * PAGE_BYTES) == SIGSEGV;
    else wrong += block_check((uint64_t *)(void *)(at + page * PAGE_BYTES), page_tag(2, (size_t)page, 0)) >= 0;
  }
  tell("%zu raise SIGSEGV, %zu beside are wrong", raised, wrong);
  return 0;
}

static uint8_t *inherited;
static int tell_inherited(void) {
  int raised = read_signal(inherited);
  if (raised) tell("child: signal %d", raised);
  else tell_content("child", inherited, 2);
  return 0;
}

static int changes_inheritance(int advice, int undo) {
  for (Way way = 0; way < WAYS; way++) {
    inherited = filled(SMALL_BYTES, 2);
    let_leave(inherited, SMALL_BYTES);
    tell("%s: %s", way_names[way], outcome(advise(way, inherited, SMALL_BYTES, advice)));
    let_leave(inherited, SMALL_BYTES);
    in_child("child", tell_inherited);
    tell_content("parent", inherited, 2);
    tell("undone: %s", outcome(advise(way, inherited, SMALL_BYTES, undo)));
    let_leave(inherited, SMALL_BYTES);
    in_child("child", tell_inherited);
    munmap(inherited, SMALL_BYTES);
  }
  return 0;
}

static int wiped_on_fork(void) { return changes_inheritance(MADV_WIPEONFORK, MADV_KEEPONFORK); }
static int not_inherited(void) { return changes_inheritance(MADV_DONTFORK, MADV_DOFORK); }

static int collapse(void) { return leaves_content(COLLAPSE); }
static int cold(void) { return leaves_content(MADV_COLD); }
static int pageout(void) { return leaves_content(MADV_PAGEOUT); }
static int willneed(void) { return leaves_content(MADV_WILLNEED); }
static int mergeable(void) { return leaves_content(MADV_MERGEABLE); }
static int hugepage(void) { return leaves_content(MADV_HUGEPAGE); }
static int nohugepage(void) { return leaves_content(MADV_NOHUGEPAGE); }
static int dontdump(void) { return leaves_content(MADV_DONTDUMP); }
static int populated_for_reading(void) { return leaves_content(POPULATE_READ); }
static int populated_for_writing(void) { return leaves_content(POPULATE_WRITE); }

/// Populating more than the limit ends, and what was written before stays.
static int populates_much(void) {
  uint8_t *much = mapped(64ul * MIB, PROT_READ | PROT_WRITE, 0);
  tell("POPULATE_WRITE: %s", outcome(madvise(much, 64ul * MIB, POPULATE_WRITE)));
  tell("%zu pages hold something", nonzero_pages(much, 64ul * MIB));
  return 0;
}

static int mapped_populated(void) {
  uint8_t *much = mapped(64ul * MIB, PROT_READ | PROT_WRITE, MAP_POPULATE);
  tell("%zu pages hold something", nonzero_pages(much, 64ul * MIB));
  return 0;
}

static int several_ranges_at_once(void) {
  uint8_t *at = filled(4 * SMALL_BYTES, 2);
  let_leave(at, 4 * SMALL_BYTES);
  int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
  struct iovec ranges[] = {{at, PAGE_BYTES}, {at + 2 * SMALL_BYTES, SMALL_BYTES}, {at + SMALL_BYTES, PAGE_BYTES}};
  tell("process_madvise: %zd", process_madvise(self, ranges, 3, MADV_DONTNEED, 0));
  tell("%zu pages hold something", nonzero_pages(at, 4 * SMALL_BYTES));
  ranges[1].iov_base = (void *)1;
  tell("misaligned: %zd", process_madvise(self, ranges, 3, MADV_DONTNEED, 0));
  return 0;
}

HABITS(HABIT(dontneed), HABIT(lazily_freed), HABIT(discard_of_locked), HABIT(guard_pages), HABIT(guard_pages_keep_what_is_beside),
       HABIT(wiped_on_fork), HABIT(not_inherited), HABIT(collapse), HABIT(cold), HABIT(pageout), HABIT(willneed), HABIT(mergeable),
       HABIT(hugepage), HABIT(nohugepage), HABIT(dontdump), HABIT(populated_for_reading), HABIT(populated_for_writing),
       HABIT(populates_much), HABIT(mapped_populated), HABIT(several_ranges_at_once))
