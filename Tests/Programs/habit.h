// What the programs habit_*.c share. Each holds habits of real programs that have to end, print and compute the same with and without vswapd.
// A habit prints what came out on standard output, one line per thing that a program can notice, nothing that differs between two runs.
#pragma once

#include "common.h"

#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <linux/filter.h>
#include <linux/seccomp.h>

typedef struct {
  const char *name;
  int (*run)(void);
} Habit;

enum { MIB = 1 << 20, SKIPPED = 77, BALLAST_BYTES = 24 * MIB, SMALL_PAGES = 64, SMALL_BYTES = SMALL_PAGES * PAGE_BYTES };

/// A line on standard output.
__attribute__((format(printf, 1, 2))) static inline void tell(const char *format, ...) {
  char line[512];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(line, sizeof line - 1, format, arguments);
  va_end(arguments);
  if (length < 0) length = 0;
  if (length > (int)sizeof line - 2) length = sizeof line - 2;
  line[length] = '\n';
  if (write(1, line, (size_t)length + 1) < 0) _exit(4);
}

/// What a call that says -1 and errno came to.
static inline const char *outcome(long result) { return result == -1 ? strerrorname_np(errno) : "ok"; }

__attribute__((format(printf, 1, 2))) static inline int skip(const char *format, ...) {
  char line[256];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  tell("skipped: %s", line);
  return SKIPPED;
}

// --- memory with a content that depends on its page's number ---

static inline uint64_t page_tag(uint64_t key, size_t page, int block) {
  return (mix64(key * 0x10001 + page * PAGE_BLOCKS + (uint64_t)block) & ~3ull) | (page & 3) | 8;
}

static inline void fill_pages(void *at, size_t bytes, uint64_t key) {
  for (size_t page = 0; page < bytes / PAGE_BYTES; page++)
    for (int b = 0; b < PAGE_BLOCKS; b++)
      block_fill((uint64_t *)at + page * PAGE_BYTES / 8 + (size_t)b * BLOCK_WORDS, page_tag(key, page, b));
}

/// The number of pages whose content is not what `fill_pages` wrote.
static inline size_t wrong_pages(const void *at, size_t bytes, uint64_t key) {
  size_t wrong = 0;
  for (size_t page = 0; page < bytes / PAGE_BYTES; page++) {
    bool right = true;
    for (int b = 0; b < PAGE_BLOCKS; b++)
      right = right && block_check((const uint64_t *)at + page * PAGE_BYTES / 8 + (size_t)b * BLOCK_WORDS, page_tag(key, page, b)) < 0;
    wrong += !right;
  }
  return wrong;
}

static inline size_t nonzero_pages(const void *at, size_t bytes) {
  size_t count = 0;
  for (size_t page = 0; page < bytes / PAGE_BYTES; page++) {
    bool zero = true;
    for (int i = 0; i < PAGE_BYTES / 8; i++) zero = zero && ((const uint64_t *)at)[page * PAGE_BYTES / 8 + (size_t)i] == 0;
    count += !zero;
  }
  return count;
}

static inline void *mapped(size_t bytes, int protection, int flags) {
  void *at = mmap(NULL, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  if (at == MAP_FAILED) die("mmap of %zu bytes: %s", bytes, strerror(errno));
  return at;
}

static inline void *filled(size_t bytes, uint64_t key) {
  void *at = mapped(bytes, PROT_READ | PROT_WRITE, 0);
  fill_pages(at, bytes, key);
  return at;
}

/// Where evictions are asked for all the time: until none of the pages is resident, for half a second at most.
static inline void let_leave(const void *at, size_t bytes) {
  if (getenv("VSWAP_HABIT_EVICTED") == NULL) return;
  static unsigned char present[BALLAST_BYTES / PAGE_BYTES];
  if (bytes > BALLAST_BYTES) bytes = BALLAST_BYTES;
  for (int attempt = 0; attempt < 50; attempt++) {
    size_t resident = 0;
    if (mincore((void *)(uintptr_t)at, bytes, present) == 0)
      for (size_t page = 0; page < bytes / PAGE_BYTES; page++) resident += present[page] & 1;
    if (resident == 0) return;
    sleep_ms(10);
  }
}

// --- processes ---

static inline void tell_status(const char *who, int status) {
  if (WIFSIGNALED(status))
    tell("%s: signal %d", who, WTERMSIG(status));
  else
    tell("%s: status %d", who, WEXITSTATUS(status));
}

static inline void tell_end(const char *who, pid_t child) {
  int status = 0;
  pid_t ended;
  while ((ended = waitpid(child, &status, 0)) < 0 && errno == EINTR) {
  }
  if (ended != child)
    tell("%s: waitpid: %s", who, outcome(-1));
  else
    tell_status(who, status);
}

/// Runs `work` in a child and tells how that ended.
static inline int in_child(const char *who, int (*work)(void)) {
  pid_t child = fork();
  if (child < 0) {
    tell("%s: fork: %s", who, outcome(-1));
    return 1;
  }
  if (child == 0) _exit(work());
  tell_end(who, child);
  return 0;
}

static inline pthread_t started(void *(*work)(void *), void *argument) {
  pthread_t thread;
  if ((errno = pthread_create(&thread, NULL, work, argument))) die("pthread_create: %s", strerror(errno));
  return thread;
}

// --- system call filters ---

/// Does `action` for each of the calls and allows all others. `flags` as of seccomp(2).
static inline long filter_calls(const int *calls, int count, uint32_t action, unsigned flags) {
  struct sock_filter code[48] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))};
  int used = 1;
  for (int i = 0; i < count && used < 45; i++) {
    code[used++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)calls[i], 0, 1);
    code[used++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, action);
  }
  code[used++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  struct sock_fprog program = {(unsigned short)used, code};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -1;
  return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

// --- accesses that may raise a signal ---

static sigjmp_buf access_failed;
static void on_bad_access(int signal) { siglongjmp(access_failed, signal); }

/// 0, or the signal that reading the byte raised.
static inline int read_signal(const volatile uint8_t *at) {
  struct sigaction action = {.sa_handler = on_bad_access, .sa_flags = SA_NODEFER}, former[2];
  sigaction(SIGSEGV, &action, &former[0]);
  sigaction(SIGBUS, &action, &former[1]);
  int raised = sigsetjmp(access_failed, 1);
  if (raised == 0) (void)*at;
  sigaction(SIGSEGV, &former[0], NULL);
  sigaction(SIGBUS, &former[1], NULL);
  return raised;
}

// --- the program around a habit ---

static uint8_t *ballast;

static inline int check_ballast(void) {
  size_t wrong = wrong_pages(ballast, BALLAST_BYTES, 1);
  if (wrong) tell("ballast: %zu pages are wrong", wrong);
  return wrong != 0;
}

/// `--list` prints the habits' names; else argv[1] is one. Ends with its status, or 3 where memory is wrong.
static inline int habit_main(int argc, char **argv, const Habit *habits, size_t count) {
  if (argc == 2 && strcmp(argv[1], "--list") == 0) {
    for (size_t i = 0; i < count; i++) puts(habits[i].name);
    return 0;
  }
  const struct rlimit no_core = {0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  for (size_t i = 0; i < count; i++) {
    if (argc != 2 || strcmp(argv[1], habits[i].name) != 0) continue;
    ballast = filled(BALLAST_BYTES, 1);
    int status = habits[i].run();
    return check_ballast() ? 3 : status;
  }
  die("usage: %s HABIT | --list", program_invocation_short_name);
}

#define HABIT(name) {#name, name}
#define HABITS(...)                                                                      \
  int main(int argc, char **argv) {                                                      \
    static const Habit habits[] = {__VA_ARGS__};                                         \
    return habit_main(argc, argv, habits, sizeof habits / sizeof *habits);               \
  }
