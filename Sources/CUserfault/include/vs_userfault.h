// userfaultfd(2) and its relatives, for kernels newer than the installed headers: Debian 12 ships those of 6.1, which lack
// UFFDIO_MOVE (6.8), UFFDIO_POISON (6.6) and PAGEMAP_SCAN (6.7). Ioctl numbers are macros that Swift cannot import,
// hence the inline functions. All return what the system call returns, or -errno. VS_CALL is how a system call is made:
// by libc, unless who includes this has another way (the preload library's agent).
#ifndef VS_USERFAULT_H
#define VS_USERFAULT_H

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef _UFFDIO_MOVE
#define _UFFDIO_MOVE (0x05)
struct uffdio_move {
  uint64_t dst;
  uint64_t src;
  uint64_t len;
  uint64_t mode;
  int64_t move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, _UFFDIO_MOVE, struct uffdio_move)
#endif
#ifndef _UFFDIO_POISON
#define _UFFDIO_POISON (0x08)
struct uffdio_poison {
  struct uffdio_range range;
  uint64_t mode;
  int64_t updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, _UFFDIO_POISON, struct uffdio_poison)
#endif
#define VS_FEATURE_POISON (1u << 14)
#define VS_FEATURE_MOVE (1u << 16)
#define VS_FEATURES_WANTED                                                                            \
  (UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | \
   UFFD_FEATURE_THREAD_ID)
#define VS_FEATURES_NEEDED (VS_FEATURES_WANTED | VS_FEATURE_MOVE)

// linux/fs.h of 6.7
struct vs_page_region {
  uint64_t start;
  uint64_t end;
  uint64_t categories;
};
struct vs_pm_scan_arg {
  uint64_t size;
  uint64_t flags;
  uint64_t start;
  uint64_t end;
  uint64_t walk_end;
  uint64_t vec;
  uint64_t vec_len;
  uint64_t max_pages;
  uint64_t category_inverted;
  uint64_t category_mask;
  uint64_t category_anyof_mask;
  uint64_t return_mask;
};
#define VS_PAGEMAP_SCAN _IOWR('f', 16, struct vs_pm_scan_arg)
#define VS_PAGE_IS_FILE (1u << 2)
#define VS_PAGE_IS_PRESENT (1u << 3)
#define VS_PAGE_IS_SWAPPED (1u << 4)
#define VS_PAGE_IS_PFNZERO (1u << 5)
#define VS_PAGE_IS_GUARD (1u << 8)  // Linux 6.15
_Static_assert(sizeof(struct vs_pm_scan_arg) == 96, "struct pm_scan_arg of linux/fs.h");
_Static_assert(sizeof(struct uffd_msg) == 32, "struct uffd_msg of linux/userfaultfd.h");

static inline long vs_result(long value) { return value < 0 ? -errno : value; }
#ifndef VS_CALL
#define VS_CALL(...) vs_result(syscall(__VA_ARGS__))
#endif
static inline long vs_ioctl(int descriptor, unsigned long request, void *argument) {
  return VS_CALL(SYS_ioctl, descriptor, request, argument);
}

static inline int vs_uffd_new(int device) {
  return (int)vs_ioctl(device, USERFAULTFD_IOC_NEW, (void *)(uintptr_t)(O_CLOEXEC | O_NONBLOCK));
}

/// Negotiates the API. Returns 0 and the kernel's features, or -errno.
static inline int vs_uffd_api(int uffd, uint64_t wanted, uint64_t *features) {
  struct uffdio_api api = {.api = UFFD_API, .features = wanted};
  int result = (int)vs_ioctl(uffd, UFFDIO_API, &api);
  *features = api.features;
  return result;
}

static inline int vs_uffd_register(int uffd, uint64_t start, uint64_t length) {
  struct uffdio_register arg = {.range = {start, length}, .mode = UFFDIO_REGISTER_MODE_MISSING};
  return (int)vs_ioctl(uffd, UFFDIO_REGISTER, &arg);
}

static inline int vs_uffd_unregister(int uffd, uint64_t start, uint64_t length) {
  struct uffdio_range range = {start, length};
  return (int)vs_ioctl(uffd, UFFDIO_UNREGISTER, &range);
}

static inline int vs_uffd_wake(int uffd, uint64_t start, uint64_t length) {
  struct uffdio_range range = {start, length};
  return (int)vs_ioctl(uffd, UFFDIO_WAKE, &range);
}

/// Bytes copied, or -errno when none was.
static inline int64_t vs_uffd_copy(int uffd, uint64_t destination, const void *source, uint64_t length) {
  struct uffdio_copy copy = {.dst = destination, .src = (uintptr_t)source, .len = length};
  long result = vs_ioctl(uffd, UFFDIO_COPY, &copy);
  if (result == 0) return (int64_t)length;
  return copy.copy > 0 ? copy.copy : result;
}

static inline int64_t vs_uffd_zeropage(int uffd, uint64_t start, uint64_t length) {
  struct uffdio_zeropage zero = {.range = {start, length}};
  long result = vs_ioctl(uffd, UFFDIO_ZEROPAGE, &zero);
  if (result == 0) return (int64_t)length;
  return zero.zeropage > 0 ? zero.zeropage : result;
}

/// Bytes poisoned, or -errno when none was.
static inline int64_t vs_uffd_poison(int uffd, uint64_t start, uint64_t length) {
  struct uffdio_poison poison = {.range = {start, length}};
  long result = vs_ioctl(uffd, UFFDIO_POISON, &poison);
  if (result == 0) return (int64_t)length;
  return poison.updated > 0 ? poison.updated : result;
}

static inline int64_t vs_uffd_continue(int uffd, uint64_t start, uint64_t length) {
  struct uffdio_continue request = {.range = {start, length}};
  long result = vs_ioctl(uffd, UFFDIO_CONTINUE, &request);
  if (result == 0) return (int64_t)length;
  return request.mapped > 0 ? request.mapped : result;
}

/// Bytes moved, or -errno when none was.
static inline int64_t vs_uffd_move(int uffd, uint64_t destination, uint64_t source, uint64_t length) {
  struct uffdio_move move = {.dst = destination, .src = source, .len = length};
  long result = vs_ioctl(uffd, UFFDIO_MOVE, &move);
  if (result == 0) return (int64_t)length;
  return move.move > 0 ? move.move : result;
}

/// Runs found or -errno; `walked` is where the next scan begins.
static inline int vs_scan(int pagemap, struct vs_pm_scan_arg *arg, uint64_t *walked) {
  int count = (int)vs_ioctl(pagemap, VS_PAGEMAP_SCAN, arg);
  *walked = arg->walk_end;
  return count;
}

/// Runs of present, private, non-zero pages of [start, end): at most `capacity` runs and `pages` pages; with `swapped`
/// also of those that the kernel has elsewhere (its swap, or while it moves them), told apart by their category. Returns the
/// number of runs or -errno; `walked` is where the next scan begins.
static inline int vs_pagemap_scan(int pagemap, uint64_t start, uint64_t end, struct vs_page_region *runs, uint64_t capacity,
                                  uint64_t pages, int swapped, uint64_t *walked) {
  uint64_t there = VS_PAGE_IS_PRESENT | (swapped ? VS_PAGE_IS_SWAPPED : 0);
  struct vs_pm_scan_arg arg = {
      .size = sizeof(arg),
      .start = start,
      .end = end,
      .vec = (uintptr_t)runs,
      .vec_len = capacity,
      .max_pages = pages,
      .category_inverted = VS_PAGE_IS_FILE | VS_PAGE_IS_PFNZERO,
      .category_mask = VS_PAGE_IS_FILE | VS_PAGE_IS_PFNZERO,
      .category_anyof_mask = there,
      .return_mask = there,
  };
  return vs_scan(pagemap, &arg, walked);
}

/// Runs of pages of [start, end) that madvise made guard pages. As `vs_pagemap_scan`; -EINVAL where the kernel cannot tell.
static inline int vs_guard_scan(int pagemap, uint64_t start, uint64_t end, struct vs_page_region *runs, uint64_t capacity,
                                uint64_t *walked) {
  struct vs_pm_scan_arg arg = {
      .size = sizeof(arg),
      .start = start,
      .end = end,
      .vec = (uintptr_t)runs,
      .vec_len = capacity,
      .category_mask = VS_PAGE_IS_GUARD,
      .return_mask = VS_PAGE_IS_GUARD,
  };
  return vs_scan(pagemap, &arg, walked);
}

static inline uint32_t vs_word_load(const uint32_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
static inline void vs_word_store(uint32_t *word, uint32_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }

/// futex(2) on memory shared between processes. `milliseconds` < 0: no time limit.
static inline int vs_futex_wait(uint32_t *word, uint32_t expected, int milliseconds) {
  struct timespec time = {milliseconds / 1000, (long)(milliseconds % 1000) * 1000000};
  return (int)VS_CALL(SYS_futex, word, FUTEX_WAIT, expected, milliseconds < 0 ? 0 : &time, 0, 0);
}

static inline int vs_futex_wake(uint32_t *word, int count) {
  return (int)VS_CALL(SYS_futex, word, FUTEX_WAKE, count, 0, 0, 0);
}

/// For loops that wait for another CPU.
static inline void vs_pause(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Macros with casts or shifts that Swift does not import.
static inline uint64_t vs_features_wanted(void) { return VS_FEATURES_WANTED; }
static inline uint64_t vs_page_is_present(void) { return VS_PAGE_IS_PRESENT; }
static inline uint64_t vs_page_is_swapped(void) { return VS_PAGE_IS_SWAPPED; }
static inline uint64_t vs_features_needed(void) { return VS_FEATURES_NEEDED; }
static inline uint32_t vs_event_pagefault(void) { return UFFD_EVENT_PAGEFAULT; }
static inline uint32_t vs_event_fork(void) { return UFFD_EVENT_FORK; }
static inline uint32_t vs_event_remap(void) { return UFFD_EVENT_REMAP; }
static inline uint32_t vs_event_remove(void) { return UFFD_EVENT_REMOVE; }
static inline uint32_t vs_event_unmap(void) { return UFFD_EVENT_UNMAP; }
static inline uint32_t vs_pagefault_write(void) { return UFFD_PAGEFAULT_FLAG_WRITE; }

#endif
