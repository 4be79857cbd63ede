// What a process sees of its children, threads and groups: nobody else's are among them.
#include "habit.h"

#include <dirent.h>
#include <sched.h>

enum { CHILDREN = 6 };

static void tell_nobody(const char *call, long result) { tell("%s: %s", call, result > 0 ? "a process" : result == 0 ? "nothing" : outcome(-1)); }

static int no_children(void) {
  siginfo_t info;
  check_ballast();
  tell_nobody("waitpid(-1)", waitpid(-1, NULL, WNOHANG));
  tell_nobody("waitpid(__WALL)", waitpid(-1, NULL, WNOHANG | __WALL));
  tell_nobody("waitpid(__WCLONE)", waitpid(-1, NULL, WNOHANG | __WCLONE));
  tell_nobody("waitpid(0)", waitpid(0, NULL, WNOHANG));
  tell_nobody("waitid", waitid(P_ALL, 0, &info, WEXITED | WSTOPPED | WCONTINUED | WNOHANG | __WALL) ?: 0);
  return 0;
}

static int fill_a_while(unsigned ms) {
  void *own = filled(4 * MIB, 2);
  sleep_ms(ms);
  return wrong_pages(own, 4 * MIB, 2) || check_ballast();
}

/// Waits until there are no children any more, and counts the ones that are not among `children`.
static int tell_foreign(const pid_t *children, int count) {
  int foreign = 0, own = 0, failed = 0, status;
  pid_t ended;
  while ((ended = waitpid(-1, &status, __WALL)) > 0 || (ended < 0 && errno == EINTR)) {
    if (ended < 0) continue;
    bool known = false;
    for (int i = 0; i < count; i++) known = known || children[i] == ended;
    own += known;
    foreign += !known;
    failed += status != 0;
  }
  tell("%d children, %d foreign ones, %d failed, then %s", own, foreign, failed, outcome(-1));
  return foreign || failed;
}

static int start_children(pid_t *children, unsigned ms) {
  for (int i = 0; i < CHILDREN; i++)
    if ((children[i] = fork()) == 0) _exit(fill_a_while(ms));
  return CHILDREN;
}

static int own_children_only(void) {
  pid_t children[CHILDREN];
  return tell_foreign(children, start_children(children, 900));
}

static pid_t known[CHILDREN];
static volatile sig_atomic_t signals_of_others, signals;
static void on_child(int signal, siginfo_t *info, void *context) {
  (void)signal;
  (void)context;
  bool ours = false;
  for (int i = 0; i < CHILDREN; i++) ours = ours || known[i] == info->si_pid;
  signals++;
  signals_of_others += !ours;
}

static int signals_of_own_children_only(void) {
  struct sigaction action = {.sa_sigaction = on_child, .sa_flags = SA_SIGINFO};
  sigset_t held, former;
  sigemptyset(&held);
  sigaddset(&held, SIGCHLD);
  sigaction(SIGCHLD, &action, NULL);
  sigprocmask(SIG_BLOCK, &held, &former);
  start_children(known, 700);
  sigprocmask(SIG_SETMASK, &former, NULL);
  tell_foreign(known, CHILDREN);
  tell("signals of others: %d, any: %s", (int)signals_of_others, signals ? "yes" : "no");
  return 0;
}

static int ignored_children(void) {
  signal(SIGCHLD, SIG_IGN);
  pid_t children[CHILDREN];
  return tell_foreign(children, start_children(children, 600));
}

/// Orphans come to a subreaper. Here each child leaves one.
static int subreaper(void) {
  int orphans[2], foreign = 0, reaped = 0;
  pid_t all[2 * CHILDREN], child, orphan;
  if (pipe(orphans)) die("pipe");
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  for (int i = 0; i < CHILDREN; i++) {
    if ((child = fork()) == 0) {
      orphan = fork();
      if (orphan == 0) _exit(fill_a_while(700));
      if (write(orphans[1], &orphan, sizeof orphan) != sizeof orphan) _exit(1);
      if (i % 2) execl("/bin/true", "true", NULL);
      _exit(fill_a_while(100));
    }
    all[2 * i] = child;
    if (read(orphans[0], &all[2 * i + 1], sizeof orphan) != sizeof orphan) die("read");
  }
  while ((child = waitpid(-1, NULL, __WALL)) > 0) {
    bool ours = false;
    for (int i = 0; i < 2 * CHILDREN; i++) ours = ours || all[i] == child;
    reaped++;
    foreign += !ours;
  }
  tell("%d reaped, %d foreign ones", reaped, foreign);
  return 0;
}

/// The first process of a PID namespace gets the orphans, and ends all others when it ends.
static int be_first(void) {
  pid_t children[CHILDREN];
  tell("process %d", getpid());
  int status = tell_foreign(children, start_children(children, 700));
  for (int i = 0; i < CHILDREN; i++)
    if ((children[i] = fork()) == 0) execl("/bin/true", "true", NULL);
  status |= tell_foreign(children, CHILDREN);
  if ((children[0] = fork()) == 0)
    for (;;) pause();
  sleep_ms(600);
  tell("kill(-1): %s", outcome(kill(-1, SIGKILL)));
  tell_end("child", children[0]);
  return status;
}

static int first_of_a_namespace(void) {
  if (unshare(CLONE_NEWPID)) return skip("unshare(CLONE_NEWPID): %s", strerror(errno));
  return in_child("first", be_first);
}

static int count_tasks(void) {
  int count = 0;
  DIR *tasks = opendir("/proc/self/task");
  for (struct dirent *entry; tasks && (entry = readdir(tasks));) count += entry->d_name[0] != '.';
  if (tasks) closedir(tasks);
  return count;
}

static void *count_in_thread(void *argument) {
  tell("%d tasks beside a second thread", count_tasks());
  return argument;
}

static void tell_line(const char *path, const char *key) {
  char line[256];
  FILE *file = fopen(path, "r");
  while (file && fgets(line, sizeof line, file))
    if (strncmp(line, key, strlen(key)) == 0) {
      line[strcspn(line, "\n")] = 0;
      tell("%s", line);
    }
  if (file) fclose(file);
}

static int tasks_of_a_child(void) {
  sleep_ms(800);
  tell("%d tasks of a child", count_tasks());
  return 0;
}

static int task_count(void) {
  tell("%d tasks", count_tasks());
  tell_line("/proc/self/status", "Threads:");
  pthread_join(started(count_in_thread, NULL), NULL);
  return in_child("child", tasks_of_a_child);
}

static int listed_children(void) {
  char path[64], text[256];
  snprintf(path, sizeof path, "/proc/self/task/%d/children", getpid());
  int file = open(path, O_RDONLY);
  ssize_t length = file < 0 ? -1 : read(file, text, sizeof text);
  tell("children: %zd bytes", length);
  return 0;
}

static volatile sig_atomic_t group_signals;
static void on_group(int signal) {
  (void)signal;
  group_signals++;
}

static int signal_own_group(void) {
  setpgid(0, 0);
  signal(SIGUSR1, on_group);
  tell("kill(0): %s", outcome(kill(0, SIGUSR1)));
  tell("signals: %d", (int)group_signals);
  return check_ballast();
}

static int kill_own_group(void) {
  setpgid(0, 0);
  if (fork() == 0)
    for (;;) check_ballast();
  sleep_ms(100);
  kill(0, SIGKILL);
  return 0;
}

static int process_group(void) {
  in_child("signalled", signal_own_group);
  return in_child("killed", kill_own_group);
}

static int lead_session(void) {
  tell("setsid: %s", outcome(setsid()));
  tell("leader: %s", getsid(0) == getpid() && getpgrp() == getpid() ? "yes" : "no");
  return check_ballast();
}

static int session(void) { return in_child("child", lead_session); }

static int death_pipe[2];
static void *fork_and_leave(void *argument) {
  pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGUSR1);
    if (write(death_pipe[1], "x", 1) != 1) _exit(1);
    for (;;) check_ballast();
  }
  char ready;
  if (read(death_pipe[0], &ready, 1) != 1) die("read");
  *(pid_t *)argument = child;
  return NULL;
}

/// The signal comes when the thread ends that forked, not when the process does.
static int parent_death_signal(void) {
  pid_t child;
  if (pipe(death_pipe)) die("pipe");
  pthread_join(started(fork_and_leave, &child), NULL);
  tell_end("child", child);
  return 0;
}

static int waits_without_reaping(void) {
  siginfo_t info = {0};
  pid_t child = fork();
  if (child == 0) _exit(3);
  long result = waitid(P_ALL, 0, &info, WEXITED | WNOWAIT);
  tell("waitid(WNOWAIT): %s, own: %s", outcome(result), info.si_pid == child ? "yes" : "no");
  tell_end("child", child);
  return 0;
}

HABITS(HABIT(no_children), HABIT(own_children_only), HABIT(signals_of_own_children_only), HABIT(ignored_children), HABIT(subreaper),
       HABIT(first_of_a_namespace), HABIT(task_count), HABIT(listed_children), HABIT(process_group), HABIT(session),
       HABIT(parent_death_signal), HABIT(waits_without_reaping))
