// Programs that restrict their own system calls.
#include "habit.h"

static const int sockets_and_threads[] = {SYS_socket, SYS_socketpair, SYS_connect, SYS_clone3};
static const int identity_calls[] = {SYS_getpid, SYS_gettid, SYS_futex};
static const int library_calls[] = {SYS_socket, SYS_connect, SYS_sendmsg, SYS_recvmsg, SYS_ioctl, SYS_userfaultfd, SYS_eventfd2,
                                    SYS_memfd_create, SYS_close_range, SYS_unshare, SYS_pidfd_open, SYS_process_vm_readv};
#define COUNT(array) (int)(sizeof(array) / sizeof *(array))

static int live_a_second(void) {
  void *own = filled(4 * MIB, 2);
  sleep_ms(1000);
  return wrong_pages(own, 4 * MIB, 2) || check_ballast();
}

static int fork_without_sockets(void) {
  if (filter_calls(sockets_and_threads, COUNT(sockets_and_threads), SECCOMP_RET_KILL_PROCESS, 0)) return skip("seccomp: %s", strerror(errno));
  return in_child("child", live_a_second);
}

static int fork_with_refused_calls(void) {
  if (filter_calls(library_calls, COUNT(library_calls), SECCOMP_RET_ERRNO | EPERM, 0)) return skip("seccomp: %s", strerror(errno));
  return in_child("child", live_a_second);
}

static int fork_with_killing_calls(void) {
  if (filter_calls(library_calls, COUNT(library_calls), SECCOMP_RET_KILL_PROCESS, 0)) return skip("seccomp: %s", strerror(errno));
  return in_child("child", live_a_second);
}

static int fork_with_trapping_calls(void) {
  if (filter_calls(library_calls, COUNT(library_calls), SECCOMP_RET_TRAP, 0)) return skip("seccomp: %s", strerror(errno));
  return in_child("child", live_a_second);
}

static int exec_under_filter(uint32_t action) {
  if (filter_calls(library_calls, COUNT(library_calls), action, 0)) return skip("seccomp: %s", strerror(errno));
  pid_t child = fork();
  if (child == 0) {
    execl("/bin/sh", "sh", "-c", "echo executed", NULL);
    _exit(127);
  }
  tell_end("child", child);
  return 0;
}

static int exec_under_trapping_filter(void) { return exec_under_filter(SECCOMP_RET_TRAP); }
static int exec_under_refusing_filter(void) { return exec_under_filter(SECCOMP_RET_ERRNO | EPERM); }
static int exec_under_killing_filter(void) { return exec_under_filter(SECCOMP_RET_KILL_PROCESS); }

/// What the library adds to calls that it stands in for is none of what a filter has to know.
static int no_calls_of_others(void) {
  uint8_t *two = filled(2 * SMALL_BYTES, 2);
  let_leave(two, 2 * SMALL_BYTES);
  if (filter_calls(identity_calls, COUNT(identity_calls), SECCOMP_RET_KILL_PROCESS, 0)) return skip("seccomp: %s", strerror(errno));
  uint8_t *block = malloc(MIB);
  memset(block, 5, MIB);
  block = realloc(block, 2 * MIB);
  size_t wrong = 0;
  for (size_t i = 0; i < MIB; i++) wrong += block[i] != 5;
  tell("realloc: %zu bytes are wrong", wrong);
  uint8_t *moved = mremap(two, 2 * SMALL_BYTES, 4 * SMALL_BYTES, MREMAP_MAYMOVE);
  tell("mremap: %s", outcome(moved == MAP_FAILED ? -1 : 0));
  tell("%zu pages are wrong", moved == MAP_FAILED ? 0 : wrong_pages(moved, 2 * SMALL_BYTES, 2));
  tell("madvise: %s", outcome(madvise(moved, SMALL_BYTES, MADV_DONTFORK)));
  return 0;
}

static int all_threads_filtered(void) {
  if (syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &(uint32_t){SECCOMP_RET_KILL_PROCESS})) return skip("no KILL_PROCESS");
  tell("TSYNC: %ld", filter_calls((const int[]){SYS_uname}, 1, SECCOMP_RET_ERRNO | EACCES, SECCOMP_FILTER_FLAG_TSYNC));
  tell("uname: %s", outcome(syscall(SYS_uname, ballast)));
  return check_ballast();
}

/// A browser's: everything that starts or opens anything kills, in every thread.
static int all_threads_sealed(void) {
  static const int calls[] = {SYS_socket,   SYS_connect, SYS_sendmsg, SYS_recvmsg,       SYS_ioctl,          SYS_userfaultfd,      SYS_openat, SYS_open,
                              SYS_execve,   SYS_fork,    SYS_vfork,   SYS_clone3,        SYS_process_vm_readv, SYS_process_vm_writev, SYS_ptrace, SYS_kill,
                              SYS_pidfd_open, SYS_unshare};
  tell("TSYNC: %ld", filter_calls(calls, COUNT(calls), SECCOMP_RET_KILL_PROCESS, SECCOMP_FILTER_FLAG_TSYNC));
  void *more = filled(8 * MIB, 2);
  for (int round = 0; round < 3; round++) {
    sleep_ms(100);
    tell("%zu pages are wrong", wrong_pages(more, 8 * MIB, 2) + wrong_pages(ballast, BALLAST_BYTES, 1));
  }
  return 0;
}

static int be_strict(void) {
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT)) return 1;
  size_t wrong = wrong_pages(ballast, BALLAST_BYTES, 1);
  syscall(SYS_exit, wrong ? 3 : 0);
  return 1;
}

static int be_strict_and_call(void) {
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT)) return 1;
  syscall(SYS_getppid);
  return 1;
}

static int strict_mode(void) {
  in_child("computes", be_strict);
  return in_child("calls", be_strict_and_call);
}


static void *sleeps(void *argument) {
  sleep_ms(200);
  return argument;
}

/// A thread with another filter stands in the way of TSYNC; the program's own one only.
static void *has_filter(void *argument) {
  filter_calls((const int[]){SYS_uname}, 1, SECCOMP_RET_ERRNO | EACCES, 0);
  return sleeps(argument);
}

static int threads_in_the_way(void) {
  pthread_t thread = started(has_filter, NULL);
  sleep_ms(50);
  long result = filter_calls((const int[]){SYS_uname}, 1, SECCOMP_RET_ERRNO | EACCES, SECCOMP_FILTER_FLAG_TSYNC);
  tell("TSYNC: %s", result > 0 ? "a thread is in the way" : outcome(result));
  pthread_join(thread, NULL);
  return 0;
}

static int seen_in_status(void) {
  char line[256];
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  FILE *file = fopen("/proc/self/status", "r");
  while (file && fgets(line, sizeof line, file))
    if (strncmp(line, "NoNewPrivs", 10) == 0 || strncmp(line, "Seccomp", 7) == 0) {
      line[strcspn(line, "\n")] = 0;
      tell("%s", line);
    }
  if (file) fclose(file);
  return 0;
}

static void on_trap(int signal, siginfo_t *info, void *context) {
  (void)signal;
  (void)context;
  tell("trap of call %d", info->si_syscall == SYS_uname ? 1 : 0);
}

static int trap_is_handled(void) {
  struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
  sigaction(SIGSYS, &action, NULL);
  filter_calls((const int[]){SYS_uname}, 1, SECCOMP_RET_TRAP, SECCOMP_FILTER_FLAG_TSYNC);
  syscall(SYS_uname, 0);
  return check_ballast();
}

HABITS(HABIT(fork_without_sockets), HABIT(fork_with_refused_calls), HABIT(fork_with_killing_calls), HABIT(fork_with_trapping_calls),
       HABIT(exec_under_trapping_filter), HABIT(exec_under_refusing_filter), HABIT(exec_under_killing_filter), HABIT(no_calls_of_others),
       HABIT(all_threads_filtered), HABIT(all_threads_sealed), HABIT(strict_mode), HABIT(threads_in_the_way), HABIT(seen_in_status),
       HABIT(trap_is_handled))
