// Programs that change who they are and what they see: users, capabilities, namespaces, keys, rules.
#include "habit.h"

#include <grp.h>
#include <sched.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <linux/landlock.h>
#include <linux/securebits.h>
#include <sys/mount.h>
#include <sys/stat.h>

#ifndef SYS_landlock_create_ruleset
#error "kernel headers from 5.13 on are needed"
#endif

enum { NOBODY = 65534 };

/// Works with memory as the one that it is now.
static int work(void) {
  void *own = filled(8 * MIB, 2);
  let_leave(own, 8 * MIB);
  size_t wrong = wrong_pages(own, 8 * MIB, 2) + wrong_pages(ballast, BALLAST_BYTES, 1);
  munmap(own, 8 * MIB);
  tell("%zu pages are wrong", wrong);
  return wrong != 0;
}

static int drop_user(void) {
  tell("setgroups: %s", outcome(setgroups(0, NULL)));
  tell("setresgid: %s", outcome(setresgid(NOBODY, NOBODY, NOBODY)));
  tell("setresuid: %s", outcome(setresuid(NOBODY, NOBODY, NOBODY)));
  tell("back: %s", outcome(setuid(0)));
  tell("user %d group %d", getuid(), getgid());
  work();
  pid_t child = fork();
  if (child == 0) {
    sleep_ms(700);
    _exit(work());
  }
  tell_end("child", child);
  return 0;
}

static int becomes_nobody(void) { return drop_user(); }

static int becomes_nobody_in_child(void) { return in_child("child", drop_user); }

static void *sleeps(void *argument) {
  sleep_ms(400);
  return argument;
}

static int becomes_nobody_with_threads(void) {
  pthread_t thread = started(sleeps, NULL);
  tell("setgid: %s", outcome(setgid(NOBODY)));
  tell("setuid: %s", outcome(setuid(NOBODY)));
  pthread_join(thread, NULL);
  return work();
}

static int capabilities(uint64_t kept) {
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct data[2] = {{(uint32_t)kept, (uint32_t)kept, 0}, {(uint32_t)(kept >> 32), (uint32_t)(kept >> 32), 0}};
  return (int)syscall(SYS_capset, &header, data);
}

/// Capabilities belong to a thread, libc changes users in all threads: each has to be allowed to.
static int changes_user_with_few_capabilities(void) {
  tell("capset: %s", outcome(capabilities(1u << CAP_SETUID | 1u << CAP_SETGID)));
  tell("setgid: %s", outcome(setgid(NOBODY)));
  tell("setuid: %s", outcome(setuid(NOBODY)));
  return work();
}

static int takes_capabilities_then_changes_user(void) {
  prctl(PR_SET_KEEPCAPS, 1);
  tell("setuid: %s", outcome(setuid(NOBODY)));
  tell("capset: %s", outcome(capabilities(1u << CAP_SETUID)));
  tell("setuid: %s", outcome(setuid(NOBODY - 1)));
  tell("capset: %s", outcome(capabilities(0)));
  tell("setuid without: %s", outcome(setuid(NOBODY - 2)));
  return work();
}

static int has_no_capabilities(void) {
  tell("capset: %s", outcome(capabilities(0)));
  tell("chroot: %s", outcome(chroot("/")));
  work();
  return in_child("child", work);
}

static int is_not_dumpable(void) {
  tell("PR_SET_DUMPABLE: %s", outcome(prctl(PR_SET_DUMPABLE, 0)));
  work();
  return in_child("child", work);
}

static int locks_its_bits(void) {
  tell("PR_SET_SECUREBITS: %s", outcome(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NO_SETUID_FIXUP)));
  return work();
}

static int leave_namespace(int flags) {
  tell("unshare: %s", outcome(unshare(flags)));
  work();
  return in_child("child", work);
}

static int leaves_user_namespace(void) { return leave_namespace(CLONE_NEWUSER); }
static int leaves_mount_namespace(void) { return leave_namespace(CLONE_NEWNS); }
static int leaves_pid_namespace(void) { return leave_namespace(CLONE_NEWPID); }
static int leaves_all_namespaces(void) { return leave_namespace(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET); }

static int become_root_of_namespace(void) {
  if (unshare(CLONE_NEWUSER)) return skip("unshare: %s", strerror(errno));
  int file = open("/proc/self/uid_map", O_WRONLY);
  tell("uid_map: %s", outcome(write(file, "0 65534 1", 9)));
  close(file);
  tell("user %d", getuid());
  tell("unshare(CLONE_NEWNS): %s", outcome(unshare(CLONE_NEWNS)));
  return work();
}

static int nobody_becomes_root_of_namespace(void) {
  if (setresuid(NOBODY, NOBODY, NOBODY)) return skip("setresuid: %s", strerror(errno));
  prctl(PR_SET_DUMPABLE, 1);
  return in_child("child", become_root_of_namespace);
}

static int enters(const char *kind, int flags) {
  char path[64];
  snprintf(path, sizeof path, "/proc/self/ns/%s", kind);
  int file = open(path, O_RDONLY | O_CLOEXEC);
  tell("setns(%s): %s", kind, outcome(setns(file, flags)));
  close(file);
  return 0;
}

static int enters_namespaces(void) {
  static const struct {
    const char *kind;
    int flags;
  } kinds[] = {{"mnt", CLONE_NEWNS}, {"pid", CLONE_NEWPID}, {"net", CLONE_NEWNET}, {"uts", CLONE_NEWUTS},
               {"ipc", CLONE_NEWIPC}, {"cgroup", CLONE_NEWCGROUP}, {"user", CLONE_NEWUSER}};
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) enters(kinds[i].kind, kinds[i].flags);
  return in_child("child", work);
}

static int enter_other_mounts(void) {
  int there[2];
  if (pipe(there)) die("pipe");
  pid_t other = fork();
  if (other == 0) {
    long result = unshare(CLONE_NEWNS);
    if (write(there[1], &result, sizeof result) < 0) _exit(1);
    sleep_ms(5000);
    _exit(0);
  }
  long result;
  char path[64];
  if (read(there[0], &result, sizeof result) != sizeof result) die("read");
  snprintf(path, sizeof path, "/proc/%d/ns/mnt", other);
  int file = open(path, O_RDONLY);
  tell("setns(mnt): %s", outcome(setns(file, CLONE_NEWNS)));
  kill(other, SIGKILL);
  waitpid(other, NULL, 0);
  work();
  return in_child("child", work);
}

static int enters_other_mounts(void) { return in_child("child", enter_other_mounts); }

static int leave_root(void) {
  char empty[] = "/tmp/habit.XXXXXX";
  if (!mkdtemp(empty)) return skip("mkdtemp: %s", strerror(errno));
  tell("chroot: %s", outcome(chroot(empty)));
  tell("chdir: %s", outcome(chdir("/")));
  work();
  return in_child("child in an empty root", work);
}

static int remove_root(void) {
  char command[] = "rmdir /tmp/habit.?????? 2>/dev/null";
  return system(command) < 0;
}

static int changes_root(void) {
  in_child("child", leave_root);
  return remove_root();
}

static int has_own_directory_and_mask(void) {
  tell("unshare(CLONE_FS): %s", outcome(unshare(CLONE_FS)));
  tell("unshare(CLONE_FILES): %s", outcome(unshare(CLONE_FILES)));
  tell("mask %o", umask(0123));
  tell("mask %o", umask(022));
  tell("chdir: %s", outcome(chdir("/usr")));
  return work();
}

static int session_keyring(void) {
  long result = syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, "habit");
  if (result < 0) return skip("keyctl: %s", strerror(errno));
  tell("join: %s", result > 0 ? "a keyring" : "none");
  return work();
}

static int give_keyring_to_parent(void) {
  syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, "habit");
  tell("to parent: %s", outcome(syscall(SYS_keyctl, KEYCTL_SESSION_TO_PARENT)));
  return 0;
}

/// Refused where the parent has several threads.
static int keyring_to_parent(void) {
  if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, "outer") < 0) return skip("keyctl: %s", strerror(errno));
  in_child("child", give_keyring_to_parent);
  return work();
}

static int rules_for_files(void) {
  struct landlock_ruleset_attr attributes = {.handled_access_fs = LANDLOCK_ACCESS_FS_WRITE_FILE};
  int rules = (int)syscall(SYS_landlock_create_ruleset, &attributes, sizeof attributes, 0);
  if (rules < 0) return skip("landlock: %s", strerror(errno));
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  tell("restrict: %s", outcome(syscall(SYS_landlock_restrict_self, rules, 0)));
  tell("open for writing: %s", outcome(open("/dev/null", O_WRONLY)));
  work();
  return in_child("child", work);
}

static int has_a_name(void) {
  char name[17] = {0};
  prctl(PR_SET_NAME, "habit-name");
  prctl(PR_GET_NAME, name);
  tell("name %s", name);
  tell("keeps its name after work: %d", work());
  return 0;
}

static int limits_address_space(void) {
  const struct rlimit some = {512ul * MIB, 512ul * MIB};
  tell("setrlimit: %s", outcome(setrlimit(RLIMIT_AS, &some)));
  work();
  return in_child("child", work);
}

static int limits_descriptors(void) {
  const struct rlimit few = {4, 4};
  tell("setrlimit: %s", outcome(setrlimit(RLIMIT_NOFILE, &few)));
  tell("open: %d", open("/dev/null", O_RDONLY));
  tell("open: %s", outcome(open("/dev/null", O_RDONLY)));
  work();
  return in_child("child", work);
}

static int closes_all_descriptors(void) {
  tell("close_range: %s", outcome(close_range(3, ~0u, 0)));
  tell("next: %d", open("/dev/null", O_RDONLY));
  work();
  return in_child("child", work);
}

HABITS(HABIT(becomes_nobody), HABIT(becomes_nobody_in_child), HABIT(becomes_nobody_with_threads), HABIT(changes_user_with_few_capabilities),
       HABIT(takes_capabilities_then_changes_user), HABIT(has_no_capabilities), HABIT(is_not_dumpable), HABIT(locks_its_bits),
       HABIT(leaves_user_namespace), HABIT(leaves_mount_namespace), HABIT(leaves_pid_namespace), HABIT(leaves_all_namespaces),
       HABIT(nobody_becomes_root_of_namespace), HABIT(enters_namespaces), HABIT(enters_other_mounts), HABIT(changes_root),
       HABIT(has_own_directory_and_mask), HABIT(session_keyring), HABIT(keyring_to_parent), HABIT(rules_for_files), HABIT(has_a_name),
       HABIT(limits_address_space), HABIT(limits_descriptors), HABIT(closes_all_descriptors))
