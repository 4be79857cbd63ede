// Every way to make a process, from every place.
#include "habit.h"

#include <sched.h>
#include <spawn.h>
#include <pty.h>
#include <linux/sched.h>

extern char **environ;

static int verify(void) { return wrong_pages(ballast, BALLAST_BYTES, 1) != 0; }

static int change_and_verify(void) {
  fill_pages(ballast, BALLAST_BYTES / 2, 2);
  uint8_t *own = filled(4 * MIB, 3);
  let_leave(own, 4 * MIB);
  return wrong_pages(ballast, BALLAST_BYTES / 2, 2) || wrong_pages(own, 4 * MIB, 3);
}

static int changes_in_child(void) {
  for (int i = 0; i < 3; i++) in_child("child", change_and_verify);
  return 0;
}

static int change_slowly(void) {
  sleep_ms(700);
  return change_and_verify();
}

static int changes_in_old_child(void) { return in_child("old child", change_slowly); }

static int many_short_forks(void) {
  int failed = 0, status;
  for (int i = 0; i < 200; i++) {
    pid_t child = fork();
    if (child == 0) _exit(wrong_pages(ballast + (size_t)(i % 64) * 64 * PAGE_BYTES, PAGE_BYTES, 1) == 2);
    if (waitpid(child, &status, 0) != child || status) failed++;
  }
  tell("%d failed", failed);
  return 0;
}

static int many_at_a_time(void) {
  enum { COUNT = 100 };
  int failed = 0, status;
  for (int i = 0; i < COUNT; i++)
    if (fork() == 0) {
      sleep_ms(800);
      _exit(wrong_pages(ballast, 64 * PAGE_BYTES, 1) != 0);
    }
  for (int i = 0; i < COUNT; i++)
    if (wait(&status) < 0 || status) failed++;
  tell("%d failed", failed);
  return 0;
}

static int nested(int depth) {
  if (depth == 0) return verify();
  int status;
  pid_t child = fork();
  if (child == 0) _exit(nested(depth - 1));
  if (waitpid(child, &status, 0) != child || !WIFEXITED(status)) return 9;
  return WEXITSTATUS(status) ?: verify();
}

static int nested_forks(void) {
  tell("status %d", nested(6));
  return 0;
}

static int execute(const char *command) {
  execl("/bin/sh", "sh", "-c", command, NULL);
  return 127;
}

static int execute_two(void) { return execute("exit 21"); }
static int execute_chain(void) { return execute("exec sh -c 'exec sh -c \"exit 22\"'"); }
static int execute_nothing(void) {
  execl("/nothing", "nothing", NULL);
  return errno == ENOENT ? 23 : 24;
}

static int executes(void) {
  in_child("shell", execute_two);
  in_child("chain", execute_chain);
  return in_child("nothing", execute_nothing);
}

__attribute__((noinline)) static pid_t vfork_child(bool executing) {
  pid_t child = vfork();
  if (child == 0) {
    if (executing) execl("/bin/sh", "sh", "-c", "exit 7", NULL);
    _exit(executing ? 127 : 7);
  }
  return child;
}

static int vforks(void) {
  int failed = 0, status;
  for (int i = 0; i < 30; i++) {
    pid_t child = vfork_child(i % 2 == 0);
    if (waitpid(child, &status, 0) != child || WEXITSTATUS(status) != 7) failed++;
  }
  tell("%d failed", failed);
  return 0;
}

static int spawns(void) {
  char *arguments[] = {"sh", "-c", "exit 8", NULL};
  int failed = 0, status;
  for (int i = 0; i < 20; i++) {
    pid_t child;
    if (posix_spawn(&child, "/bin/sh", NULL, NULL, arguments, environ)) failed++;
    else if (waitpid(child, &status, 0) != child || WEXITSTATUS(status) != 8) failed++;
  }
  tell("%d failed", failed);
  tell("system: %d", WEXITSTATUS(system("exit 9")));
  FILE *output = popen("echo said", "r");
  char line[32] = "";
  if (output && fgets(line, sizeof line, output)) line[strcspn(line, "\n")] = 0;
  tell("popen: %s, %d", line, output ? pclose(output) : -1);
  return 0;
}

static pid_t clone_plainly(uint64_t flags) {
  struct clone_args arguments = {.flags = flags, .exit_signal = SIGCHLD};
  return (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
}

static int clones(void) {
  pid_t child = clone_plainly(0);
  if (child == 0) _exit(verify());
  tell_end("clone3", child);
  child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
  if (child == 0) _exit(verify());
  tell_end("clone", child);
  child = clone_plainly(CLONE_CLEAR_SIGHAND);
  if (child == 0) _exit(verify());
  tell_end("clone3 without handlers", child);
#ifdef SYS_fork
  child = (pid_t)syscall(SYS_fork);
  if (child == 0) _exit(verify());
  tell_end("fork by call", child);
#endif
  child = _Fork();
  if (child == 0) _exit(verify());
  tell_end("_Fork", child);
  return 0;
}

/// Such children have memory of their own to map, move and discard.
static int clone_maps_and_moves(void) {
  pid_t child = clone_plainly(0);
  if (child == 0) {
    uint8_t *own = filled(4 * MIB, 3);
    uint8_t *moved = mremap(own, 4 * MIB, 8 * MIB, MREMAP_MAYMOVE);
    int status = moved == MAP_FAILED || wrong_pages(moved, 4 * MIB, 3) || nonzero_pages(moved + 4 * MIB, 4 * MIB);
    madvise(ballast, SMALL_BYTES, MADV_DONTNEED);
    _exit(status || nonzero_pages(ballast, SMALL_BYTES) || block_check((uint64_t *)(void *)(ballast + SMALL_BYTES), page_tag(1, SMALL_PAGES, 0)) >= 0);
  }
  tell_end("child", child);
  return 0;
}

static int shares_memory(void *argument) {
  *(volatile int *)argument = 1;
  return wrong_pages(ballast, BALLAST_BYTES, 1) != 0;
}

static int clones_that_share_memory(void) {
  static uint8_t stack[256 << 10] __attribute__((aligned(16)));
  volatile int done = 0;
  int status;
  pid_t child = clone(shares_memory, stack + sizeof stack, CLONE_VM | SIGCHLD, (void *)&done);
  tell_end("shares", child);
  child = clone(shares_memory, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, (void *)&done);
  tell_end("shares, parent waits", child);
  child = clone(shares_memory, stack + sizeof stack, CLONE_VM | CLONE_FILES | CLONE_FS | CLONE_SIGHAND, (void *)&done);
  tell("without signal: %s", waitpid(child, &status, __WCLONE) == child && status == 0 ? "ok" : "no");
  tell("done %d", done);
  return 0;
}

static int becomes_daemon(void) {
  int answers[2];
  if (pipe(answers)) die("pipe");
  pid_t child = fork();
  if (child == 0) {
    if (daemon(1, 1)) _exit(1);
    sleep_ms(700);
    int status = change_and_verify();
    if (write(answers[1], &status, sizeof status) != sizeof status) _exit(1);
    _exit(0);
  }
  tell_end("parent", child);
  int status = -1;
  close(answers[1]);
  tell("answer: %s", read(answers[0], &status, sizeof status) == sizeof status ? "yes" : "no");
  tell("daemon: %d", status);
  return 0;
}

static int in_a_terminal(void) {
  int terminal;
  pid_t child = forkpty(&terminal, NULL, NULL, NULL);
  if (child < 0) return skip("forkpty: %s", strerror(errno));
  if (child == 0) _exit(verify());
  char text[64];
  while (read(terminal, text, sizeof text) > 0) {
  }
  tell_end("child", child);
  return 0;
}

static void *forks_in_thread(void *argument) {
  for (int i = 0; i < 5; i++) in_child("child of a thread", verify);
  return argument;
}

static int forks_from_a_thread(void) {
  pthread_join(started(forks_in_thread, NULL), NULL);
  return 0;
}

static volatile bool stopping;
static void *allocates(void *argument) {
  unsigned seed = (unsigned)(intptr_t)argument;
  while (!stopping) {
    size_t bytes = 100 + (size_t)(rand_r(&seed) % 100000);
    char *block = malloc(bytes);
    memset(block, 1, bytes);
    block = realloc(block, bytes * 2);
    free(block);
  }
  return NULL;
}

static int forks_while_others_allocate(void) {
  pthread_t threads[3];
  int failed = 0, status;
  for (int i = 0; i < 3; i++) threads[i] = started(allocates, (void *)(intptr_t)(i + 1));
  for (int i = 0; i < 60; i++) {
    pid_t child = fork();
    if (child == 0) {
      if (i % 2) execl("/bin/true", "true", NULL);
      char *block = malloc(1000000);
      memset(block, 2, 1000000);
      free(block);
      _exit(0);
    }
    if (waitpid(child, &status, 0) != child || status) failed++;
  }
  stopping = true;
  for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
  tell("%d failed", failed);
  return 0;
}

static int forks_twice(void) {
  int answers[2];
  if (pipe(answers)) die("pipe");
  pid_t child = fork();
  if (child == 0) {
    if (fork() == 0) {
      sleep_ms(600);
      char answer = (char)('0' + change_and_verify());
      if (write(answers[1], &answer, 1) != 1) _exit(1);
    }
    _exit(0);
  }
  tell_end("child", child);
  char answer = '?';
  close(answers[1]);
  if (read(answers[0], &answer, 1) != 1) answer = '!';
  tell("orphan: %c", answer);
  return 0;
}

static int move_in_child(void) {
  uint8_t *moved = mremap(ballast, BALLAST_BYTES, 2ul * BALLAST_BYTES, MREMAP_MAYMOVE);
  if (moved == MAP_FAILED) return 5;
  return wrong_pages(moved, BALLAST_BYTES, 1) || nonzero_pages(moved + BALLAST_BYTES, 64 * PAGE_BYTES);
}

static int child_moves_what_it_inherits(void) { return in_child("child", move_in_child); }

static int unmap_in_child(void) {
  munmap(ballast + BALLAST_BYTES / 2, BALLAST_BYTES / 2);
  madvise(ballast, BALLAST_BYTES / 4, MADV_DONTNEED);
  return nonzero_pages(ballast, BALLAST_BYTES / 4) != 0;
}

static int child_ends_what_it_inherits(void) {
  in_child("child", unmap_in_child);
  return verify();
}

static volatile sig_atomic_t forked_in_handler;
static void fork_in_handler(int signal) {
  (void)signal;
  pid_t child = fork();
  int status = -1;
  if (child == 0) _exit(0);
  waitpid(child, &status, 0);
  forked_in_handler += status == 0;
}

static int forks_in_signal_handler(void) {
  signal(SIGUSR1, fork_in_handler);
  for (int i = 0; i < 20; i++) {
    raise(SIGUSR1);
    wrong_pages(ballast + i * SMALL_BYTES, SMALL_BYTES, 1);
  }
  tell("%d children", (int)forked_in_handler);
  return 0;
}

static int grow_in_child(void) {
  size_t wrong = 0;
  for (int i = 0; i < 8; i++) {
    void *more = filled(8 * MIB, 10 + (uint64_t)i);
    wrong += wrong_pages(more, 8 * MIB, 10 + (uint64_t)i);
  }
  return wrong != 0;
}

/// Held to the limit: see the case.
static int children_grow(void) {
  for (int i = 0; i < 2; i++) in_child("child", grow_in_child);
  return 0;
}

static int parent_ends_first(void) {
  int answers[2];
  if (pipe(answers)) die("pipe");
  pid_t child = fork();
  if (child == 0) {
    pid_t inner = fork();
    if (inner == 0) {
      for (int i = 0; i < 10; i++) {
        sleep_ms(100);
        if (verify()) _exit(1);
      }
      if (write(answers[1], "r", 1) != 1) _exit(1);
      _exit(0);
    }
    kill(getpid(), SIGKILL);
  }
  tell_end("child", child);
  char answer = '?';
  close(answers[1]);
  if (read(answers[0], &answer, 1) != 1) answer = '!';
  tell("grandchild: %c", answer);
  return 0;
}

HABITS(HABIT(changes_in_child), HABIT(changes_in_old_child), HABIT(many_short_forks), HABIT(many_at_a_time), HABIT(nested_forks),
       HABIT(executes), HABIT(vforks), HABIT(spawns), HABIT(clones), HABIT(clone_maps_and_moves), HABIT(clones_that_share_memory),
       HABIT(becomes_daemon), HABIT(in_a_terminal), HABIT(forks_from_a_thread), HABIT(forks_while_others_allocate), HABIT(forks_twice),
       HABIT(child_moves_what_it_inherits), HABIT(child_ends_what_it_inherits), HABIT(forks_in_signal_handler), HABIT(children_grow),
       HABIT(parent_ends_first))
