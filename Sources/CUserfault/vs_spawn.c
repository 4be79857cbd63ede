#include "vs_spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1U << 2)
#endif

bool vs_has_file_capabilities(const char *path) { return getxattr(path, "security.capability", NULL, 0) > 0; }

bool vs_no_new_privileges(void) { return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1; }

int vs_pipe(int ends[2]) { return pipe2(ends, O_CLOEXEC); }

/// The signals whose disposition vswapctl (or NIO inside it) changes.
static const int changed_signals[] = {SIGINT, SIGQUIT, SIGTERM, SIGHUP, SIGPIPE, SIGCHLD};
enum { CHANGED_SIGNALS = sizeof changed_signals / sizeof changed_signals[0] };

static sigset_t inherited_mask;
static struct sigaction inherited_actions[CHANGED_SIGNALS];

void vs_signals_save(void) {
  sigprocmask(SIG_BLOCK, NULL, &inherited_mask);
  for (int i = 0; i < CHANGED_SIGNALS; i++) sigaction(changed_signals[i], NULL, &inherited_actions[i]);
}

static void restore_signals(void) {
  for (int i = 0; i < CHANGED_SIGNALS; i++) sigaction(changed_signals[i], &inherited_actions[i], NULL);
  sigprocmask(SIG_SETMASK, &inherited_mask, NULL);
}

/// The signals that vs_wait_forwarding takes.
static sigset_t awaited_signals(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGHUP);
  sigaddset(&set, SIGCHLD);
  return set;
}

void vs_signals_hold(void) {
  struct sigaction action = {.sa_handler = SIG_IGN};
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGQUIT, &action, NULL);
  action.sa_handler = SIG_DFL;  // an inherited SIG_IGN would let the kernel reap the command before we do
  sigaction(SIGCHLD, &action, NULL);
  sigset_t set = awaited_signals();
  sigprocmask(SIG_BLOCK, &set, NULL);
}

/// Whether `entry` ("NAME=value") is for the variable that `change` ("NAME=value" or "NAME") is for.
static int same_name(const char *entry, const char *change) {
  size_t length = strcspn(change, "=");
  return strncmp(entry, change, length) == 0 && entry[length] == '=';
}

static int is_changed(const char *entry, char *const *changes) {
  for (; *changes; changes++) {
    if (same_name(entry, *changes)) return 1;
  }
  return 0;
}

static size_t count(char *const *list) {
  size_t n = 0;
  while (list[n]) n++;
  return n;
}

/// The inherited environment with `changes` made, room for `spare` more entries, and NULL; `*used` counts the
/// entries. To be freed, or NULL.
static char **edited_environment(char *const *changes, size_t spare, size_t *used) {
  extern char **environ;
  char **result = calloc(count(environ) + count(changes) + spare + 1, sizeof *result);
  if (!result) return NULL;
  size_t n = 0;
  for (char **entry = environ; *entry; entry++) {
    if (!is_changed(*entry, changes)) result[n++] = *entry;
  }
  for (char *const *change = changes; *change; change++) {
    if (strchr(*change, '=')) result[n++] = *change;
  }
  *used = n;
  return result;
}

/// Writes `value` in decimal and a NUL; returns where the NUL is. snprintf is not async-signal-safe.
static char *put_decimal(char *out, unsigned value) {
  char digits[12];
  int n = 0;
  do {
    digits[n++] = (char)('0' + value % 10);
    value /= 10;
  } while (value);
  while (n) *out++ = digits[--n];
  *out = '\0';
  return out;
}

/// In the child: replaces the process, or reports errno through `report` and ends.
static void execute(const struct vs_program *program, char *const *environment, int report) {
  execve(program->path, program->argv, environment);
  int error = errno;
  ssize_t written = write(report, &error, sizeof error);
  _exit(written == sizeof error ? 126 : 127);
}

/// In the parent: what `execute` reported. Returns `child`, or -errno after reaping it.
static pid_t await_exec(pid_t child, int report) {
  int error = 0;
  ssize_t got;
  do got = read(report, &error, sizeof error);
  while (got < 0 && errno == EINTR);
  if (got != sizeof error) return child;
  while (waitpid(child, NULL, 0) < 0 && errno == EINTR) continue;
  return -error;
}

static const char group_name[] = "VSWAP_GROUP=";
static const char required_name[] = "VSWAP_REQUIRED=";
enum { DECIMAL_ROOM = 12 };

/// Variables of a service manager that hold the number of the process they are for, each with its "=".
static const char *const manager_names[] = {"LISTEN_PID=", "WATCHDOG_PID=", "SYSTEMD_EXEC_PID="};
enum { MANAGER_NAMES = sizeof manager_names / sizeof manager_names[0], MANAGER_ROOM = 32 };

/// Room for those that name this process: the command is to find its own number there.
struct manager_variables {
  char *numbers[MANAGER_NAMES];
  char text[MANAGER_NAMES][MANAGER_ROOM];
};

/// Replaces the entries that name this process by ones whose numbers are still to be written. LISTEN_PIDFDID, which
/// says the same in another way, goes where LISTEN_PID is replaced.
static void take_over(char **environment, size_t *used, struct manager_variables *variables) {
  size_t n = 0;
  for (size_t i = 0; i < *used; i++) {
    char *entry = environment[i];
    for (size_t k = 0; k < MANAGER_NAMES; k++) {
      size_t length = strlen(manager_names[k]);
      char own[DECIMAL_ROOM];
      put_decimal(own, (unsigned)getpid());
      if (variables->numbers[k] || strncmp(entry, manager_names[k], length) || strcmp(entry + length, own)) continue;
      entry = memcpy(variables->text[k], manager_names[k], length + 1);
      variables->numbers[k] = variables->text[k] + length;
    }
    environment[n++] = entry;
  }
  *used = n;
  if (!variables->numbers[0]) return;
  n = 0;
  for (size_t i = 0; i < *used; i++) {
    if (strncmp(environment[i], "LISTEN_PIDFDID=", 15) != 0) environment[n++] = environment[i];
  }
  for (size_t i = n; i < *used; i++) environment[i] = NULL;
  *used = n;
}

pid_t vs_spawn_command(const struct vs_program *program, const char *group_stem) {
  size_t used, stem = strlen(group_stem), group_size = sizeof group_name + stem + 1 + DECIMAL_ROOM;
  char **environment = edited_environment(program->changes, 2, &used);
  char *text = malloc(group_size + sizeof required_name + DECIMAL_ROOM);
  int report[2] = {-1, -1};
  pid_t child = -ENOMEM;
  struct manager_variables manager = {0};
  if (!environment || !text) goto out;
  take_over(environment, &used, &manager);
  char *group = text, *required = text + group_size;
  memcpy(group, group_name, sizeof group_name);
  memcpy(group + sizeof group_name - 1, group_stem, stem);
  group[sizeof group_name - 1 + stem] = '-';
  memcpy(required, required_name, sizeof required_name);
  environment[used] = group;
  environment[used + 1] = required;

  if (pipe2(report, O_CLOEXEC) < 0 || (child = fork()) < 0) {
    child = -errno;
    goto out;
  }
  if (child == 0) {
    restore_signals();
    put_decimal(group + sizeof group_name + stem, (unsigned)getpid());
    put_decimal(required + sizeof required_name - 1, (unsigned)getpid());
    for (size_t k = 0; k < MANAGER_NAMES; k++) {
      if (manager.numbers[k]) put_decimal(manager.numbers[k], (unsigned)getpid());
    }
    execute(program, environment, report[1]);
  }
  close(report[1]);
  report[1] = -1;
  child = await_exec(child, report[0]);
out:
  if (report[0] >= 0) close(report[0]);
  if (report[1] >= 0) close(report[1]);
  free(text);
  free(environment);
  return child;
}

/// In the child: a session, a directory and descriptors of its own.
static void become_daemon(int report, int ready, int lifeline) {
  setsid();
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(null, STDOUT_FILENO) < 0) goto failed;
  if (chdir("/") < 0) goto failed;
  if (syscall(SYS_close_range, STDERR_FILENO + 1, ~0U, CLOSE_RANGE_CLOEXEC) < 0) goto failed;
  if (fcntl(ready, F_SETFD, 0) < 0 || fcntl(lifeline, F_SETFD, 0) < 0) goto failed;
  return;
failed:;
  int error = errno;
  ssize_t written = write(report, &error, sizeof error);
  _exit(written == sizeof error ? 126 : 127);
}

pid_t vs_spawn_daemon(const struct vs_program *program, int ready_descriptor, int lifeline_descriptor) {
  size_t used;
  int report[2];
  char **environment = edited_environment(program->changes, 0, &used);
  if (!environment) return -ENOMEM;
  if (pipe2(report, O_CLOEXEC) < 0) {
    int error = errno;
    free(environment);
    return -error;
  }
  pid_t child = fork();
  if (child == 0) {
    restore_signals();
    become_daemon(report[1], ready_descriptor, lifeline_descriptor);
    execute(program, environment, report[1]);
  }
  int error = errno;
  close(report[1]);
  child = child < 0 ? -error : await_exec(child, report[0]);
  close(report[0]);
  free(environment);
  return child;
}

int vs_wait_forwarding(pid_t process, int interval, void (*look)(void *), void *context) {
  sigset_t set = awaited_signals();
  struct timespec time = {.tv_sec = interval / 1000, .tv_nsec = interval % 1000 * 1000000L};
  for (;;) {
    int status;
    pid_t ended = waitpid(process, &status, WNOHANG);
    if (ended < 0 && errno != EINTR) return -errno;
    if (ended == process) return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    int number = look ? sigtimedwait(&set, NULL, &time) : sigwaitinfo(&set, NULL);
    if (number < 0 && errno == EAGAIN) look(context);
    if (number == SIGTERM || number == SIGHUP) kill(process, number);
  }
}

int vs_wait_briefly(pid_t process, int milliseconds) {
  int handle = (int)syscall(SYS_pidfd_open, process, 0);
  if (handle < 0) return errno == ESRCH;
  struct timespec now, end;
  clock_gettime(CLOCK_MONOTONIC, &end);
  end.tv_sec += milliseconds / 1000;
  end.tv_nsec += milliseconds % 1000 * 1000000L;
  struct pollfd wait = {.fd = handle, .events = POLLIN};
  int ready, left = milliseconds;
  while ((ready = poll(&wait, 1, left)) < 0 && errno == EINTR) {
    clock_gettime(CLOCK_MONOTONIC, &now);
    long remaining = (end.tv_sec - now.tv_sec) * 1000 + (end.tv_nsec - now.tv_nsec) / 1000000;
    left = remaining > 0 ? (int)remaining : 0;
  }
  close(handle);
  return ready > 0 && waitpid(process, NULL, WNOHANG) == process;
}
