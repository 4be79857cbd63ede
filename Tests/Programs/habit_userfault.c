// Programs with a userfaultfd of their own.
#include "habit.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <linux/userfaultfd.h>

// Headers before 6.8 lack it.
#ifndef UFFDIO_MOVE
#define UFFD_FEATURE_MOVE (1 << 16)
struct uffdio_move {
  uint64_t dst, src, len, mode;
  int64_t move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, 0x05, struct uffdio_move)
#endif

static int made(uint64_t features) {
  int descriptor = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
  struct uffdio_api api = {.api = UFFD_API, .features = features};
  if (descriptor >= 0 && ioctl(descriptor, UFFDIO_API, &api)) {
    close(descriptor);
    return -1;
  }
  return descriptor;
}

static long enter(int descriptor, void *at, size_t bytes, uint64_t mode) {
  struct uffdio_register range = {.range = {(uintptr_t)at, bytes}, .mode = mode};
  return ioctl(descriptor, UFFDIO_REGISTER, &range);
}

static long leave(int descriptor, void *at, size_t bytes) {
  struct uffdio_range range = {(uintptr_t)at, bytes};
  return ioctl(descriptor, UFFDIO_UNREGISTER, &range);
}

typedef struct {
  int descriptor;
  int faults;
  bool protects;
} Server;

/// Answers faults: removes the write protection, or delivers the page's number.
static void *serve(void *argument) {
  Server *server = argument;
  struct pollfd waiting = {.fd = server->descriptor, .events = POLLIN};
  static uint64_t page[PAGE_BYTES / 8];
  while (poll(&waiting, 1, 2000) > 0) {
    struct uffd_msg message;
    if (read(server->descriptor, &message, sizeof message) != sizeof message) break;
    if (message.event != UFFD_EVENT_PAGEFAULT) continue;
    uint64_t at = message.arg.pagefault.address & ~(uint64_t)(PAGE_BYTES - 1);
    server->faults++;
    if (message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) {
      struct uffdio_writeprotect off = {.range = {at, PAGE_BYTES}};
      ioctl(server->descriptor, UFFDIO_WRITEPROTECT, &off);
    } else {
      page[0] = at / PAGE_BYTES;
      struct uffdio_copy copy = {.dst = at, .src = (uintptr_t)page, .len = PAGE_BYTES, .mode = server->protects ? UFFDIO_COPY_MODE_WP : 0};
      ioctl(server->descriptor, UFFDIO_COPY, &copy);
    }
  }
  return NULL;
}

static int serves_missing_pages_of(uint8_t *at) {
  Server server = {.descriptor = made(0)};
  if (server.descriptor < 0) return skip("userfaultfd: %s", strerror(errno));
  tell("register: %s", outcome(enter(server.descriptor, at, SMALL_BYTES, UFFDIO_REGISTER_MODE_MISSING)));
  tell("MADV_DONTNEED: %s", outcome(madvise(at, SMALL_BYTES, MADV_DONTNEED)));
  pthread_t thread = started(serve, &server);
  size_t wrong = 0;
  for (int page = 0; page < SMALL_PAGES; page++) wrong += *(uint64_t *)(void *)(at + page * PAGE_BYTES) != (uintptr_t)(at + page * PAGE_BYTES) / PAGE_BYTES;
  let_leave(at, SMALL_BYTES);
  for (int page = 0; page < SMALL_PAGES; page++) wrong += *(uint64_t *)(void *)(at + page * PAGE_BYTES) != (uintptr_t)(at + page * PAGE_BYTES) / PAGE_BYTES;
  tell("unregister: %s", outcome(leave(server.descriptor, at, SMALL_BYTES)));
  pthread_cancel(thread);
  pthread_join(thread, NULL);
  tell("%zu pages are wrong, %d faults", wrong, server.faults);
  fill_pages(at, SMALL_BYTES, 5);
  let_leave(at, SMALL_BYTES);
  tell("%zu pages are wrong afterwards", wrong_pages(at, SMALL_BYTES, 5));
  close(server.descriptor);
  return 0;
}

static int serves_fresh_memory(void) { return serves_missing_pages_of(mapped(SMALL_BYTES, PROT_READ | PROT_WRITE, 0)); }

static int serves_used_memory(void) {
  uint8_t *at = filled(SMALL_BYTES, 2);
  let_leave(at, SMALL_BYTES);
  return serves_missing_pages_of(at);
}

/// As a monitor of a memory cache registers the heap: what is there stays.
static int registers_part_of_used_memory(void) {
  uint8_t *at = filled(4 * SMALL_BYTES, 2);
  let_leave(at, 4 * SMALL_BYTES);
  int descriptor = made(0);
  if (descriptor < 0) return skip("userfaultfd: %s", strerror(errno));
  tell("register: %s", outcome(enter(descriptor, at + SMALL_BYTES, SMALL_BYTES, UFFDIO_REGISTER_MODE_MISSING)));
  sleep_ms(300);
  tell("%zu pages are wrong", wrong_pages(at, 4 * SMALL_BYTES, 2));
  tell("again: %s", outcome(enter(made(0), at + SMALL_BYTES, SMALL_BYTES, UFFDIO_REGISTER_MODE_MISSING)));
  close(descriptor);
  let_leave(at, 4 * SMALL_BYTES);
  tell("%zu pages are wrong after the end", wrong_pages(at, 4 * SMALL_BYTES, 2));
  return 0;
}

static int protects_used_memory(void) {
  uint8_t *at = filled(SMALL_BYTES, 2);
  let_leave(at, SMALL_BYTES);
  Server server = {.descriptor = made(UFFD_FEATURE_PAGEFAULT_FLAG_WP)};
  if (server.descriptor < 0) return skip("userfaultfd: %s", strerror(errno));
  tell("register: %s", outcome(enter(server.descriptor, at, SMALL_BYTES, UFFDIO_REGISTER_MODE_WP)));
  size_t wrong = wrong_pages(at, SMALL_BYTES, 2);
  struct uffdio_writeprotect on = {.range = {(uintptr_t)at, SMALL_BYTES}, .mode = UFFDIO_WRITEPROTECT_MODE_WP};
  tell("protect: %s", outcome(ioctl(server.descriptor, UFFDIO_WRITEPROTECT, &on)));
  pthread_t thread = started(serve, &server);
  wrong += wrong_pages(at, SMALL_BYTES, 2);
  for (int page = 0; page < SMALL_PAGES; page++) *(volatile uint64_t *)(void *)(at + page * PAGE_BYTES + 8) = (uint64_t)page;
  for (int page = 0; page < SMALL_PAGES; page++) wrong += *(volatile uint64_t *)(void *)(at + page * PAGE_BYTES + 8) != (uint64_t)page;
  tell("unregister: %s", outcome(leave(server.descriptor, at, SMALL_BYTES)));
  pthread_cancel(thread);
  pthread_join(thread, NULL);
  tell("%zu pages are wrong, %d faults", wrong, server.faults);
  close(server.descriptor);
  let_leave(at, SMALL_BYTES);
  for (int page = 0; page < SMALL_PAGES; page++) wrong += *(volatile uint64_t *)(void *)(at + page * PAGE_BYTES + 8) != (uint64_t)page;
  tell("%zu pages are wrong afterwards", wrong);
  return 0;
}

static int serves_minor_faults(void) {
  int file = memfd_create("habit", 0), descriptor = made(UFFD_FEATURE_MINOR_SHMEM);
  if (descriptor < 0) return skip("userfaultfd: %s", strerror(errno));
  if (ftruncate(file, SMALL_BYTES)) die("ftruncate");
  uint8_t *first = mmap(NULL, SMALL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  uint8_t *second = mmap(NULL, SMALL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  fill_pages(first, SMALL_BYTES, 2);
  tell("register: %s", outcome(enter(descriptor, second, SMALL_BYTES, UFFDIO_REGISTER_MODE_MINOR)));
  struct uffdio_continue all = {.range = {(uintptr_t)second, SMALL_BYTES}};
  tell("continue: %s", outcome(ioctl(descriptor, UFFDIO_CONTINUE, &all)));
  tell("%zu pages are wrong", wrong_pages(second, SMALL_BYTES, 2));
  return 0;
}

static int raises_signals(void) {
  uint8_t *at = filled(SMALL_BYTES, 2);
  let_leave(at, SMALL_BYTES);
  int descriptor = made(UFFD_FEATURE_SIGBUS);
  if (descriptor < 0) return skip("userfaultfd: %s", strerror(errno));
  tell("register: %s", outcome(enter(descriptor, at, SMALL_BYTES, UFFDIO_REGISTER_MODE_MISSING)));
  tell("%zu pages are wrong", wrong_pages(at, SMALL_BYTES, 2));
  madvise(at, SMALL_BYTES, MADV_DONTNEED);
  tell("discarded: signal %d", read_signal(at));
  tell("unregister: %s", outcome(leave(descriptor, at, SMALL_BYTES)));
  tell("then: signal %d", read_signal(at));
  return 0;
}

static uint8_t *of_parent;
static int verify_of_parent(void) { return wrong_pages(of_parent, SMALL_BYTES, 2) != 0; }

static int forks_with_its_own(void) {
  of_parent = filled(SMALL_BYTES, 2);
  let_leave(of_parent, SMALL_BYTES);
  int descriptor = made(0);
  if (descriptor < 0) return skip("userfaultfd: %s", strerror(errno));
  tell("register: %s", outcome(enter(descriptor, of_parent, SMALL_BYTES, UFFDIO_REGISTER_MODE_MISSING)));
  in_child("child", verify_of_parent);
  tell("%zu pages are wrong", wrong_pages(of_parent, SMALL_BYTES, 2));
  return 0;
}

static int moves_pages(void) {
  uint8_t *from = filled(SMALL_BYTES, 2), *to = mapped(SMALL_BYTES, PROT_READ | PROT_WRITE, 0);
  int descriptor = made(UFFD_FEATURE_MOVE);
  if (descriptor < 0) return skip("userfaultfd: %s", strerror(errno));
  tell("register: %s", outcome(enter(descriptor, to, SMALL_BYTES, UFFDIO_REGISTER_MODE_MISSING)));
  wrong_pages(from, SMALL_BYTES, 2);
  size_t moved = 0;
  for (int page = 0; page < SMALL_PAGES; page++) {
    // The page has to be there: swapped out ones are the program's to touch, as with the kernel's own swap.
    for (int attempt = 0; attempt < 200; attempt++) {
      (void)*(volatile uint8_t *)(from + page * PAGE_BYTES);
      struct uffdio_move one = {.dst = (uintptr_t)to + (uintptr_t)page * PAGE_BYTES, .src = (uintptr_t)from + (uintptr_t)page * PAGE_BYTES, .len = PAGE_BYTES};
      if (ioctl(descriptor, UFFDIO_MOVE, &one) == 0) {
        moved++;
        break;
      }
    }
  }
  tell("%zu pages moved", moved);
  close(descriptor);
  let_leave(to, SMALL_BYTES);
  tell("%zu pages are wrong", wrong_pages(to, SMALL_BYTES, 2));
  return 0;
}

static int from_the_device(void) {
  int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  if (device < 0) return skip("/dev/userfaultfd: %s", strerror(errno));
  int descriptor = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC);
  struct uffdio_api api = {.api = UFFD_API};
  ioctl(descriptor, UFFDIO_API, &api);
  uint8_t *at = filled(SMALL_BYTES, 2);
  let_leave(at, SMALL_BYTES);
  tell("register: %s", outcome(enter(descriptor, at, SMALL_BYTES, UFFDIO_REGISTER_MODE_WP)));
  tell("%zu pages are wrong", wrong_pages(at, SMALL_BYTES, 2));
  return 0;
}

HABITS(HABIT(serves_fresh_memory), HABIT(serves_used_memory), HABIT(registers_part_of_used_memory), HABIT(protects_used_memory),
       HABIT(serves_minor_faults), HABIT(raises_signals), HABIT(forks_with_its_own), HABIT(moves_pages), HABIT(from_the_device))
