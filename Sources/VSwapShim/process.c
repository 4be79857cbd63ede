// How the agent comes into being: a process that shares the program's address space, and nothing else.
//
// UFFDIO_MOVE wants a task of the target's own address space. A thread would do, but a thread is a member of the
// program: it keeps the process alive after the last other thread has ended, it is in the way of unshare(2) and setns(2),
// it is counted in /proc/self/task, killed by execve(2) and stopped by a signal. clone(CLONE_VM) without CLONE_THREAD
// makes a process that does the same work and is none of that (LeakSanitizer's tracer is made so).
//
// It is made by an intermediate that is waited for at once. So it is init's child: the program never gets it from
// wait(2), with no option, and has no zombie of it.
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/kcmp.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <asm/unistd.h>

#include "shim.h"
#include "vs_userfault.h"

#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE (1U << 1)
#endif
#define KERNEL_SIGNAL_BYTES 8
/// The intermediate's stack, at the low end of the agent's, which it has left before that gets there.
#define INTERMEDIATE_STACK (16 * 1024)

/// clone(2) onto a stack of its own. `start` does not return.
static long clone_onto(unsigned long flags, uint8_t *stack_end, void (*start)(void), uint32_t *child, void *threads) {
  void (**place)(void) = (void (**)(void))(stack_end - 16);
  *place = start;
#if defined(__x86_64__)
  register long r10 __asm__("r10") = (long)child;
  register long r8 __asm__("r8") = (long)threads;
  long result;
  __asm__ volatile(
      "syscall\n\t"
      "testq %%rax, %%rax\n\t"
      "jnz 1f\n\t"
      "xorl %%ebp, %%ebp\n\t"
      "movq (%%rsp), %%rax\n\t"
      "callq *%%rax\n\t"
      "ud2\n"
      "1:"
      : "=a"(result)
      : "a"(SYS_clone), "D"(flags), "S"(place), "d"(child), "r"(r10), "r"(r8)
      : "rcx", "r11", "memory");
  return result;
#else
  register long x8 __asm__("x8") = SYS_clone;
  register long x0 __asm__("x0") = (long)flags;
  register long x1 __asm__("x1") = (long)place;
  register long x2 __asm__("x2") = (long)child;
  register long x3 __asm__("x3") = (long)threads;
  register long x4 __asm__("x4") = (long)child;
  __asm__ volatile(
      "svc #0\n\t"
      "cbnz x0, 1f\n\t"
      "ldr x16, [sp]\n\t"
      "blr x16\n\t"
      "brk #0\n"
      "1:"
      : "+r"(x0)
      : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
      : "x16", "x30", "memory");
  return x0;
#endif
}

static void begin_agent(void) {
  shim_run_agent();
  raw(SYS_exit_group, SHIM_AGENT_STATUS);
}

/// CLONE_FILES until the agent has a table of its own, made without ever copying the program's descriptors into it. Everything
/// else is the agent's alone: no CLONE_FS, or setns(2) and set-user-ID programs would mind.
static long clone_agent(void) {
  uint8_t *end = shim->stack + SHIM_STACK;
  // Where a thread has its control block the agent has nothing; code that looks there by mistake finds zeros.
  shim->no_threads[0] = (uintptr_t)shim->no_threads;
  return clone_onto(CLONE_VM | CLONE_FILES | CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID, end, begin_agent,
                    &shim->agent, shim->no_threads);
}

static void begin_intermediate(void) {
  clone_agent();
  raw(SYS_exit_group, 0);
}

/// An orphan goes to the next process that has asked for orphans, or to process 1. Where that is the program itself an agent
/// made by an intermediate would be a child that it has to wait for; made directly, with no signal at its end, only
/// __WALL and __WCLONE show it.
static void clone_by_intermediate(void) {
  uint32_t ignored = 0;
  long middle = clone_onto(CLONE_VM | CLONE_FILES | CLONE_VFORK | CLONE_SETTLS, shim->stack + INTERMEDIATE_STACK,
                           begin_intermediate, &ignored, shim->no_threads);
  if (middle <= 0) return;
  while (raw(SYS_wait4, middle, 0, __WALL, 0) == -EINTR) {
  }
}

bool shim_start_agent(void) {
  uint64_t all = ~0ull, before = 0;
  // A filter that traps a call tells so by SIGSYS, which a thread that blocks it does not survive.
  all &= ~(1ull << (SIGSYS - 1));
  vswap_store(&shim->agent, 0);
  raw(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, KERNEL_SIGNAL_BYTES);
  if (shim->adopting) {
    clone_agent();
  } else {
    clone_by_intermediate();
  }
  raw(SYS_rt_sigprocmask, SIG_SETMASK, &before, 0, KERNEL_SIGNAL_BYTES);
  return shim_has_agent();
}

bool shim_stop_young_agent(void) {
  if (!vswap_replace(&shim->phase, SHIM_YOUNG, SHIM_IDLE)) return false;
  uint32_t agent = vswap_load(&shim->agent);
  if (agent == 0) return true;
  raw(SYS_kill, agent, SIGKILL);
  while (shim_has_agent()) shim_futex_wait(&shim->agent, agent, 10);
  if (shim->adopting) raw(SYS_wait4, agent, 0, __WALL, 0);
  return true;
}

// MARK: - What the agent may do

#define ARGUMENT(index) (offsetof(struct seccomp_data, args) + (index) * 8)
#define LOAD(offset) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)(offset))
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
/// Lets a call through.
#define PASS(number) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (number), 0, 1), ALLOW
/// Lets a call through whose argument is the value; the number is loaded again for the next rule.
#define PASS_IF(number, index, value)                                                            \
  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (number), 0, 4), LOAD(ARGUMENT(index)),                     \
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(value), 0, 1), ALLOW, LOAD(offsetof(struct seccomp_data, nr))
#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#else
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#endif
#define BEGIN                                                                                          \
  LOAD(offsetof(struct seccomp_data, arch)), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0),   \
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS), LOAD(offsetof(struct seccomp_data, nr))
/// To serve: nothing that its credentials could do and the program's threads could not.
#define SERVING                                                                                                        \
  PASS_IF(SYS_ioctl, 1, UFFDIO_MOVE), PASS(SYS_futex), PASS(__NR_futex_waitv), PASS(SYS_clock_gettime),                   \
      PASS_IF(SYS_ioctl, 1, UFFDIO_REGISTER), PASS_IF(SYS_ioctl, 1, UFFDIO_UNREGISTER), PASS(SYS_write),                   \
      PASS(SYS_recvfrom), PASS(SYS_pread64), PASS(SYS_madvise), PASS(SYS_mincore), PASS(SYS_mprotect), PASS(SYS_munlock),  \
      PASS(SYS_sched_yield), PASS(SYS_ppoll), PASS(SYS_rt_sigreturn), PASS_IF(SYS_tgkill, 2, 0), PASS(SYS_kcmp), PASS_IF(SYS_pidfd_send_signal, 1, SIGKILL),       \
      PASS(SYS_exit), PASS(SYS_exit_group)
/// To speak with the daemon.
#define ATTACHING                                                                                                     \
  PASS_IF(SYS_socket, 0, AF_UNIX), PASS(SYS_connect), PASS(SYS_setsockopt), PASS(SYS_sendmsg), PASS(SYS_recvmsg),         \
      PASS(SYS_close), PASS(SYS_mmap), PASS(SYS_munmap), PASS_IF(SYS_ioctl, 1, USERFAULTFD_IOC_NEW),                      \
      PASS_IF(SYS_ioctl, 1, UFFDIO_API), PASS_IF(SYS_prctl, 0, PR_SET_SECCOMP)
#define REFUSE BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM)

static const struct sock_filter attaching[] = {BEGIN, SERVING, ATTACHING, REFUSE};
static const struct sock_filter serving[] = {BEGIN, SERVING, REFUSE};

static void set_filter(const struct sock_filter *rules, size_t count) {
  struct sock_fprog program = {(unsigned short)count, (struct sock_filter *)rules};
  raw(SYS_prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0);
}

/// Its user stays what the program's was when the agent was made, and the program can write its memory. So it keeps no
/// capability but the one to end the program, whose user may be another one by then, and a filter leaves it only what it does.
/// The smaller set of capabilities does not touch the flag that lets the program be traced and dumped.
static void drop_capabilities(void) {
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct sets[2] = {{0}};
  if (raw(SYS_capget, &header, sets) != 0) return;
  for (int index = 0; index < 2; index++) {
    uint32_t kept = index == 0 ? 1u << CAP_KILL : 0;
    sets[index].permitted &= kept;
    sets[index].effective = sets[index].permitted;
    sets[index].inheritable = 0;
  }
  raw(SYS_capset, &header, sets);
}

void shim_drop_powers(bool attached) {
  if (attached) return set_filter(serving, sizeof(serving) / sizeof(serving[0]));
  drop_capabilities();
  raw(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  set_filter(attaching, sizeof(attaching) / sizeof(attaching[0]));
}
