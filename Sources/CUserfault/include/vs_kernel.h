// What Swift cannot reach by itself: macros (CMSG_*, EFD_*, _IOW numbers), variadic calls, and threads whose start
// routine is a plain function. All return what the system call returns, or -errno.
#ifndef VS_KERNEL_H
#define VS_KERNEL_H

#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/types.h>

/// Passed with the credentials that the kernel attests.
struct vs_peer {
  int32_t pid;
  uint32_t uid;
  uint32_t gid;
};

int vs_eventfd(void);
/// Adds one to an eventfd. Never blocks: a counter that is full already wakes its reader.
int vs_eventfd_signal(int fd);
/// Empties an eventfd. Never blocks, also where somebody else who has it cleared its O_NONBLOCK.
void vs_eventfd_clear(int fd);

/// Whether vs_uffd_read_now works: from Linux 6.10 on, and not for the userfaultfd of a fork event.
int vs_uffd_can_read_now(int uffd);
/// Reads messages. Returns bytes or -errno; -EAGAIN: there are none. O_NONBLOCK is a flag of the open file, which
/// the target has as well and may clear: the first one does not wait all the same.
int64_t vs_uffd_read_now(int uffd, void *messages, size_t length);
int64_t vs_uffd_read(int uffd, void *messages, size_t length);
/// Sets O_NONBLOCK, without which poll(2) says POLLERR of a userfaultfd all the time. Returns 1 if it had been
/// cleared, 0 if not, or -errno.
int vs_uffd_unblock(int uffd);
/// Whether there is a message to read: 1 or 0; -EINVAL: the descriptor would block, as poll(2) says of a userfaultfd without O_NONBLOCK.
int vs_uffd_has_message(int uffd);

/// From then on vs_interrupt ends a system call in which the calling thread waits, with EINTR. Returns 0 or -errno.
int vs_let_interrupt(void);
int vs_interrupt(pid_t thread);
/// An eventfd that counts, and taking one from it, which waits. Returns 0 or -errno.
int vs_semaphore(void);
int vs_semaphore_take(int fd);
/// The calling thread's niceness, 0 ... 19.
void vs_yield_to_programs(int nice);

/// Bytes of a process's largest stack (RLIMIT_STACK), at least the usual 8 MiB; that, too, where there is no limit or no such process.
uint64_t vs_stack_limit(pid_t process);

/// A set of descriptors that is polled as one. Adding returns 0 or -errno; what is removed must still be open.
int vs_epoll(void);
int vs_epoll_add(int epoll, int fd);
void vs_epoll_remove(int epoll, int fd);
/// One that is readable, or -1.
int vs_epoll_next(int epoll);

/// Waits until a descriptor is readable or `microseconds` have passed. Returns whether it is.
int vs_wait_readable(int fd, uint64_t microseconds);

/// Pages of memory that can be had without swapping (MemAvailable); 0 where that cannot be read.
int64_t vs_available_pages(void);

/// Starts a detached thread with all signals blocked. It may have ended, and its memory may be gone, when this returns.
int vs_thread_start(size_t stack_size, void *(*start)(void *), void *argument);
/// Names the calling thread, with at most 15 characters.
void vs_name_thread(const char *name);

/// Listens on a new SOCK_SEQPACKET socket at `path`, which must not exist. Mode `mode`.
int vs_seqpacket_listen(const char *path, mode_t mode);
/// The next connection; what is sent and received on it waits by deadlines only.
int vs_accept(int fd);
int vs_peer_of(int fd, struct vs_peer *peer);
/// Whether the peer had that supplementary group when it connected: 1, 0, or -errno.
int vs_peer_is_in_group(int fd, gid_t group);
/// The number of a group, or -errno; -ENOENT: there is none of that name.
int64_t vs_group_named(const char *name);
/// One packet with up to 8 descriptors. -ETIMEDOUT: there was no room for it until `deadline` (vs_monotonic_ns).
int64_t vs_send(int fd, const void *data, size_t length, const int *descriptors, size_t count, uint64_t deadline);
/// One packet with at most one descriptor (-1: none came). Surplus descriptors are closed. A packet longer than `length` is an
/// error (-EMSGSIZE); 0: the peer has gone; -ETIMEDOUT: nothing came until `deadline` (vs_monotonic_ns).
int64_t vs_receive(int fd, void *data, size_t length, int *descriptor, uint64_t deadline);

/// How long the calling thread has waited for a CPU so far, in nanoseconds, and how often it got one. 0 or -errno.
int vs_run_delay(uint64_t *delay, uint64_t *runs);
/// Last CPU of a thread from /proc/PID/task/TID/stat, or -errno.
int vs_cpu_of_thread(pid_t thread);
/// New pages of a mapping that grows.
struct vs_growth {
  uint64_t start;   // where they are to be; 0: the kernel chooses
  uint64_t length;  // bytes; 0: nothing grows
};
/// How a thread that is inside mremap(2) right now lets a mapping grow. A thread that waits for a page shows its system call in
/// /proc/TID/syscall. The numbers are the caller's own, and may be any.
struct vs_growth vs_growth_of_mremap(pid_t thread);
/// Pins the calling thread.
int vs_set_cpu(int cpu);
/// Runs the calling thread wherever the process's first one may. 0 or -errno.
int vs_unset_cpu(void);
/// The calling thread gets the least share of a CPU that others want, in the shortest slices. It is an ordinary thread all the same: a CPU that runs it is
/// no idle one to the scheduler, as it would be with SCHED_IDLE. 0, or -errno.
int vs_humble_thread(void);
/// Whether this is a virtual machine; 0 where the processor does not say.
int vs_is_guest(void);
/// Keeps the calling thread on every CPU whose number leaves `share` when divided by `shares`. 0 or -errno.
int vs_set_cpu_share(int share, int shares);
/// The CPU that the calling thread runs on; -1 where the kernel does not tell.
int vs_current_cpu(void);
/// Resident anonymous pages of a process (statm: resident - shared), or -errno. `statm` is an open descriptor.
int64_t vs_resident_pages(int statm);

/// Large blocks go back to the kernel when they are freed. glibc stops to do so for all that are smaller than the largest one that was ever freed, so one
/// training of a dictionary would leave each thread's arena with the memory of a thread that has ended. And there are a few arenas, not eight per CPU: little is allocated once a thread runs. Before the first thread.
/// -EINVAL: it does not know the settings.
int vs_return_freed_memory(void);
/// Lets go of the pages of code and constants that are mapped, locked ones included: most of them are not needed again soon.
void vs_drop_code(void);
/// What is resident, and what becomes so, stays.
int vs_lock_memory(void);
/// Gives back what the allocator has, and nobody needs; with locked memory it cannot do so by itself.
void vs_return_heap(void);
/// Gives back the calling thread's stack below the frame it is called from.
void vs_return_stack(void);
/// Raises the limit of open descriptors to the hard limit (or past it, where allowed). Returns the limit now in force.
int64_t vs_raise_descriptor_limit(uint64_t wanted);
/// Ignores SIGPIPE, and blocks SIGTERM, SIGINT and SIGHUP, which then arrive at the returned signalfd.
int vs_signal_descriptor(void);
/// Next signal number from the signalfd, or -errno.
int vs_next_signal(int fd);
uint64_t vs_monotonic_ns(void);
/// Makes a thread of this process (0: the calling one) a real-time thread of the lowest priority, where the process may ask for it. 0 or -errno.
int vs_make_real_time(pid_t thread);
/// Makes the calling thread an ordinary one again, as nice as it was before. 0 or -errno.
int vs_end_real_time(void);
/// Lets a thread (0: the calling one) wake up ahead of threads that compute, where the process may ask for it. 0 or -errno.
int vs_favour_thread(pid_t thread);
/// The process that a pidfd stands for, as this process sees it; -ESRCH if it has ended, or is not to be seen from here.
pid_t vs_process_of(int pidfd);
/// Whether one of the threads of `process` has the address space of `other`: 1 or 0, or -errno where the kernel does not say.
int vs_shares_memory(pid_t other, pid_t process);
/// Whether a descriptor is a userfaultfd, and not something that answers like one.
int vs_is_userfaultfd(int fd);
/// CPU time of all threads that a process has or had, in nanoseconds, up to now; or -errno.
int64_t vs_cpu_time(pid_t process);
/// Reads 8 bytes of another process's memory, which is not waited for: what would have to be faulted in by a userfaultfd is an error. 0 or -errno.
int vs_peek(pid_t process, uint64_t address, uint64_t *value);
/// A thread's share of its CPU.
struct vs_weight {
  int32_t policy;
  int32_t nice;
  uint64_t flags;
};
/// The same for a thread of another process, which does not hand that on to what it starts; `before` is what it was. 0 or -errno.
int vs_favour_agent(pid_t thread, struct vs_weight *before);
/// Takes that back. 0 or -errno.
int vs_restore_weight(pid_t thread, struct vs_weight before);
/// CPU time that a thread has used, in nanoseconds; 0 where it cannot be read.
uint64_t vs_cpu_time_of_thread(pid_t thread);

/// Bytes of an open block device, or -errno.
int64_t vs_device_size(int fd);
/// Name of the file system at `path` if it keeps its files in memory; NULL if it does not, or cannot be asked.
const char *vs_memory_filesystem(const char *path);

#endif
