// How vswapctl starts and awaits other programs. C, because between fork and exec only async-signal-safe code
// may run (Swift may allocate anywhere), and because posix_spawn cannot tell the child its own process id in
// its environment.
//
// One launch per process: the saved signal state is global. Not thread-safe; call from one thread.
#ifndef VS_SPAWN_H
#define VS_SPAWN_H

#include <stdbool.h>
#include <sys/types.h>

// Whether the file carries capabilities (setcap(8)), which make the dynamic loader ignore LD_PRELOAD.
bool vs_has_file_capabilities(const char *path);

// Whether this process and its children can gain no privileges: set-user-ID bits have no effect then.
bool vs_no_new_privileges(void);

// pipe2(ends, O_CLOEXEC), which glibc hides from Swift. Returns 0, or -1 with errno.
int vs_pipe(int ends[2]);

// Remembers the signal mask and the dispositions this process was started with, so that the programs it
// launches start with the same. Call first, before anything (NIO ignores SIGPIPE) changes them.
void vs_signals_save(void);

// Prepares for waiting: SIGINT and SIGQUIT ignored (the terminal sends them to the command as well), SIGTERM,
// SIGHUP and SIGCHLD held back for vs_wait_forwarding.
void vs_signals_hold(void);

// What a launched program is given. `argv` ends with NULL. `changes` ends with NULL and edits the inherited
// environment: "NAME=value" sets, "NAME" alone removes.
struct vs_program {
  const char *path;
  char *const *argv;
  char *const *changes;
};

// Starts the command in this process group, with VSWAP_GROUP="<group_stem>-<pid>" and VSWAP_REQUIRED="<pid>"
// added to its environment, where pid is its own. LISTEN_PID, WATCHDOG_PID and SYSTEMD_EXEC_PID, which a service
// manager sets for one process, become its number where they are this process's. Returns the process id, or -errno of fork, pipe, malloc or
// execve.
pid_t vs_spawn_command(const struct vs_program *program, const char *group_stem);

// Starts a daemon in a session of its own, in "/", with /dev/null as input and output and this process's
// stderr; of the other open descriptors it inherits these two only. Returns as vs_spawn_command.
pid_t vs_spawn_daemon(const struct vs_program *program, int ready_descriptor, int lifeline_descriptor);

// Waits for `process` to end and passes SIGTERM and SIGHUP on to it. Needs vs_signals_hold. Calls `look`, unless
// that is NULL, with `context` whenever `interval` milliseconds have passed without a signal. Returns the exit
// status, 128 + N after signal N, or -errno.
int vs_wait_forwarding(pid_t process, int interval, void (*look)(void *), void *context);

// Waits at most `milliseconds` for the child `process` to end, and reaps it. Returns 1 if it ended, 0 if it
// lives on.
int vs_wait_briefly(pid_t process, int milliseconds);

#endif
