// How threads and processes end.
#include "habit.h"

static void *brief(void *argument) {
  sleep_ms(100);
  return argument;
}

static void *leaves_by_call(void *argument) {
  sleep_ms(100);
  syscall(SYS_exit, 0);
  return argument;
}

static void *ends_all(void *argument) {
  sleep_ms(100);
  _exit((int)(intptr_t)argument);
}

static void *executes(void *argument) {
  sleep_ms(100);
  execl("/bin/sh", "sh", "-c", "exit 5", NULL);
  return argument;
}

__attribute__((noreturn)) static void verify_for_ever(void) {
  for (;;) check_ballast();
}

static int main_leaves_alone(void) { pthread_exit(NULL); }

static int main_leaves_before_worker(void) {
  started(brief, NULL);
  pthread_exit(NULL);
}

static int last_thread_leaves_by_exit_call(void) {
  started(leaves_by_call, NULL);
  syscall(SYS_exit, 7);
  return 1;
}

static int only_thread_leaves_by_exit_call(void) {
  syscall(SYS_exit, 9);
  return 1;
}

static int main_leaves_worker_executes(void) {
  started(executes, NULL);
  pthread_exit(NULL);
}

static int main_leaves_worker_ends_all(void) {
  started(ends_all, (void *)6);
  pthread_exit(NULL);
}

static int main_leaves_in_child(void) {
  in_child("alone", main_leaves_alone);
  in_child("before its worker", main_leaves_before_worker);
  in_child("worker executes", main_leaves_worker_executes);
  return in_child("exit call", last_thread_leaves_by_exit_call);
}

/// Older than the time after which a child gets an agent.
static int old_and_alone(void) {
  sleep_ms(900);
  check_ballast();
  pthread_exit(NULL);
}

static int main_leaves_in_old_child(void) { return in_child("old child", old_and_alone); }

/// Without its main thread a process still grows, verifies and moves memory.
static void *works_alone(void *argument) {
  sleep_ms(100);
  uint8_t *more = filled(BALLAST_BYTES, 2);
  uint8_t *two = filled(2 * SMALL_BYTES, 3);
  let_leave(two, 2 * SMALL_BYTES);
  size_t wrong = wrong_pages(more, BALLAST_BYTES, 2);
  mprotect(two + SMALL_BYTES, SMALL_BYTES, PROT_READ);
  mprotect(two + SMALL_BYTES, SMALL_BYTES, PROT_READ | PROT_WRITE);
  uint8_t *moved = mremap(two, 2 * SMALL_BYTES, 4 * SMALL_BYTES, MREMAP_MAYMOVE);
  tell("mremap: %s", outcome(moved == MAP_FAILED ? -1 : 0));
  if (moved != MAP_FAILED) wrong += wrong_pages(moved, 2 * SMALL_BYTES, 3);
  tell("%zu pages are wrong", wrong + wrong_pages(ballast, BALLAST_BYTES, 1));
  _exit((int)(intptr_t)argument);
}

static int main_leaves_worker_grows(void) {
  started(works_alone, (void *)0);
  pthread_exit(NULL);
}

static void *filtered_thread(void *argument) {
  filter_calls((const int[]){SYS_uname}, 1, SECCOMP_RET_KILL_THREAD, 0);
  syscall(SYS_uname, 0);
  return argument;
}

static int filter_kills_one_thread(void) {
  pthread_t thread = started(filtered_thread, NULL);
  tell("join: %s", strerrorname_np(pthread_join(thread, NULL)) ?: "ok");
  return 0;
}

static int kill_me_by_filter(void) {
  filter_calls((const int[]){SYS_uname}, 1, SECCOMP_RET_KILL_THREAD, 0);
  syscall(SYS_uname, 0);
  return 0;
}

static int kill_all_by_filter(void) {
  started(brief, NULL);
  started(brief, NULL);
  filter_calls((const int[]){SYS_uname}, 1, SECCOMP_RET_KILL_PROCESS, 0);
  syscall(SYS_uname, 0);
  return 0;
}

/// The main thread is killed by its filter, the worker goes on and ends the process.
static int kill_main_by_filter(void) {
  started(ends_all, (void *)8);
  return kill_me_by_filter();
}

static int filter_kills_child(void) {
  in_child("one thread", kill_me_by_filter);
  in_child("all of its threads", kill_all_by_filter);
  return in_child("its main thread", kill_main_by_filter);
}

static int filter_kills_old_child(void) {
  pid_t child = fork();
  if (child == 0) {
    sleep_ms(900);
    _exit(kill_me_by_filter());
  }
  tell_end("old child", child);
  return 0;
}

static int filter_kills_itself(void) { return kill_me_by_filter(); }

static void *aborts(void *argument) {
  sleep_ms(50);
  abort();
  return argument;
}

static int thread_aborts(void) {
  started(aborts, NULL);
  verify_for_ever();
}

static int thread_executes(void) {
  started(executes, NULL);
  verify_for_ever();
}

static int thread_ends_all(void) {
  started(ends_all, (void *)4);
  verify_for_ever();
}

__attribute__((noreturn)) static void fills_for_ever(void) {
  for (uint64_t key = 2;; key++) munmap(filled(BALLAST_BYTES, key), BALLAST_BYTES);
}

static int killed_while_it_fills(void) {
  for (int i = 0; i < 5; i++) {
    pid_t child = fork();
    if (child == 0) fills_for_ever();
    sleep_ms(40 + 30 * (unsigned)i);
    kill(child, SIGKILL);
    tell_end("child", child);
  }
  return 0;
}

static int stop_myself(void) {
  raise(SIGSTOP);
  return check_ballast();
}

static int stopped_and_continued(void) {
  pid_t child = fork();
  int status;
  if (child == 0) _exit(stop_myself());
  tell("stopped: %s", waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status) ? "yes" : "no");
  check_ballast();
  kill(child, SIGCONT);
  tell_end("child", child);
  return 0;
}

static int terminated_by_signal(void) {
  raise(SIGTERM);
  return 1;
}

static int segmentation_fault(void) {
  volatile uint8_t *nothing = mapped(PAGE_BYTES, PROT_NONE, 0);
  return *nothing;
}

static void at_exit(void) { tell("exit handler: %zu pages are wrong", wrong_pages(ballast, BALLAST_BYTES, 1)); }

static int exit_handler_verifies(void) {
  atexit(at_exit);
  exit(12);
}

static void *exits_with_handlers(void *argument) {
  atexit(at_exit);
  exit((int)(intptr_t)argument);
}

static int thread_exits_with_handlers(void) {
  pthread_join(started(exits_with_handlers, (void *)13), NULL);
  return 1;
}

HABITS(HABIT(main_leaves_alone), HABIT(main_leaves_before_worker), HABIT(last_thread_leaves_by_exit_call),
       HABIT(only_thread_leaves_by_exit_call), HABIT(main_leaves_worker_executes), HABIT(main_leaves_worker_ends_all),
       HABIT(main_leaves_in_child), HABIT(main_leaves_in_old_child), HABIT(main_leaves_worker_grows), HABIT(filter_kills_one_thread),
       HABIT(filter_kills_child), HABIT(filter_kills_old_child), HABIT(filter_kills_itself), HABIT(thread_aborts), HABIT(thread_executes),
       HABIT(thread_ends_all), HABIT(killed_while_it_fills), HABIT(stopped_and_continued), HABIT(terminated_by_signal),
       HABIT(segmentation_fault), HABIT(exit_handler_verifies), HABIT(thread_exits_with_handlers))
