// Waiting for any child, in a process that orphans come to (process 1 of a namespace, PR_SET_CHILD_SUBREAPER).
//
// There the agents of its descendants end as its children: they are orphans from the start (process.c). A program that
// counts its children must not find them. So in such a process a wait for any child looks at who has ended before it takes
// it, and takes agents by itself. Its own agent, which gives no signal, shows with __WALL: that option is left out.
#include <errno.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "shim.h"

#define EXPORTED __attribute__((visibility("default")))
/// What waitid(2) reports as it is asked to; WEXITED is always wanted.
#define REPORTED (WSTOPPED | WCONTINUED)

static pid_t (*real_wait4)(pid_t, int *, int, struct rusage *);
static int (*real_waitid)(idtype_t, id_t, siginfo_t *, int);

void shim_find_waits(void) {
  shim_find_next("wait4", &real_wait4);
  shim_find_next("waitid", &real_waitid);
}

static bool is_adopting(void) { return shim_is_ours() && shim->adopting; }

/// An agent ends with a status of its own, leads a process group, and has marked itself by a limit that means nothing to it. /proc need
/// not be there, or show this namespace. Where its user is another one than the program's by now, the limit cannot be asked for.
static bool is_agent(const siginfo_t *found) {
  if (found->si_code != CLD_EXITED || found->si_status != SHIM_AGENT_STATUS) return false;
  if (raw(SYS_getpgid, found->si_pid) != found->si_pid) return false;
  struct rlimit64 mark;
  long result = raw(SYS_prlimit64, found->si_pid, RLIMIT_MSGQUEUE, 0, &mark);
  return result == -EPERM || (result == 0 && mark.rlim_cur == SHIM_AGENT_MARK);
}

/// The next child that is none of our agents and has something to report, which it keeps. Returns as waitid(2), and its number; 0: none yet.
static int find_child(int options, pid_t *child) {
  for (;;) {
    siginfo_t found = {0};
    int result = real_waitid(P_ALL, 0, &found, options | WNOWAIT);
    *child = found.si_pid;
    if (result != 0 || found.si_pid == 0 || !is_agent(&found)) return result;
    real_wait4(found.si_pid, NULL, WNOHANG, NULL);
  }
}

static pid_t wait_any(int *status, int options, struct rusage *usage) {
  int kept = options & (WNOHANG | REPORTED | __WNOTHREAD);
  for (;;) {
    pid_t child;
    if (find_child(kept | WEXITED, &child) != 0) return -1;
    if (child == 0) return 0;
    // Another thread may have been faster.
    pid_t taken = real_wait4(child, status, kept | WNOHANG, usage);
    if (taken > 0 || (taken < 0 && errno != ECHILD)) return taken;
  }
}

EXPORTED pid_t wait4(pid_t process, int *status, int options, struct rusage *usage) {
  if (!real_wait4) shim_find_waits();
  if (process != -1 || options & __WCLONE || !is_adopting()) return real_wait4(process, status, options, usage);
  return wait_any(status, options, usage);
}

EXPORTED pid_t waitpid(pid_t process, int *status, int options) { return wait4(process, status, options, NULL); }
EXPORTED pid_t wait3(int *status, int options, struct rusage *usage) { return wait4(-1, status, options, usage); }
EXPORTED pid_t wait(int *status) { return wait4(-1, status, 0, NULL); }

EXPORTED int waitid(idtype_t type, id_t which, siginfo_t *found, int options) {
  if (!real_waitid) shim_find_waits();
  if (type != P_ALL || options & __WCLONE || !(options & WEXITED) || !is_adopting()) return real_waitid(type, which, found, options);
  for (;;) {
    pid_t child;
    if (find_child(options & ~__WALL, &child) != 0) return -1;
    int result = real_waitid(child ? P_PID : P_ALL, (id_t)child, found, (options & ~__WALL) | WNOHANG);
    bool isTaken = result != 0 ? errno != ECHILD : child == 0 || !found || found->si_pid != 0;
    if (isTaken) return result;
  }
}
