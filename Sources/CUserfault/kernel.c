#include "vs_kernel.h"
#include "vs_userfault.h"

#include <malloc.h>
#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <link.h>
#include <linux/fs.h>
#include <linux/kcmp.h>
#include <linux/magic.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#ifndef MCL_ONFAULT
#define MCL_ONFAULT 4
#endif
#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT 1
#endif

static int result_of(long value) { return value < 0 ? -errno : (int)value; }

int vs_eventfd(void) { return result_of(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)); }

int vs_semaphore(void) {
  int fd = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE);
  return fd < 0 ? -errno : fd;
}

int vs_semaphore_take(int fd) {
  uint64_t one;
  while (read(fd, &one, sizeof(one)) < 0)
    if (errno != EINTR) return -errno;
  return 0;
}

void vs_yield_to_programs(int nice) {
  // Best effort: at the usual niceness it works just as well.
  (void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), nice);
}

int vs_eventfd_signal(int fd) {
  uint64_t one = 1;
  while (write(fd, &one, sizeof(one)) < 0)
    if (errno != EINTR) return errno == EAGAIN ? 0 : -errno;
  return 0;
}

void vs_eventfd_clear(int fd) {
  // The flags of an open file belong to everybody who has it: O_NONBLOCK would be the target's to clear.
  uint64_t count;
  struct iovec buffer = {&count, sizeof(count)};
  while (preadv2(fd, &buffer, 1, -1, RWF_NOWAIT) < 0 && errno == EINTR) {
  }
}

uint64_t vs_stack_limit(pid_t process) {
  const uint64_t usual = 8 << 20;
  struct rlimit limit;
  if (syscall(SYS_prlimit64, process, RLIMIT_STACK, NULL, &limit) != 0) return usual;
  return limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur < usual ? usual : limit.rlim_cur;
}

int vs_uffd_can_read_now(int uffd) {
  // Too short for a message: none is taken.
  char byte;
  struct iovec buffer = {&byte, 1};
  return preadv2(uffd, &buffer, 1, -1, RWF_NOWAIT) >= 0 || errno != EOPNOTSUPP;
}

int64_t vs_uffd_read_now(int uffd, void *messages, size_t length) {
  struct iovec buffer = {messages, length};
  return vs_result(preadv2(uffd, &buffer, 1, -1, RWF_NOWAIT));
}

int64_t vs_uffd_read(int uffd, void *messages, size_t length) { return vs_result(read(uffd, messages, length)); }

int vs_uffd_unblock(int uffd) {
  int flags = fcntl(uffd, F_GETFL);
  if (flags < 0) return -errno;
  if (flags & O_NONBLOCK) return 0;
  return fcntl(uffd, F_SETFL, flags | O_NONBLOCK) < 0 ? -errno : 1;
}

int vs_uffd_has_message(int uffd) {
  struct pollfd descriptor = {.fd = uffd, .events = POLLIN};
  if (poll(&descriptor, 1, 0) <= 0) return 0;
  return descriptor.revents & POLLERR ? -EINVAL : 1;
}

static void do_nothing(int number) { (void)number; }

int vs_let_interrupt(void) {
  struct sigaction action = {.sa_handler = do_nothing};
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR2);
  if (sigaction(SIGUSR2, &action, NULL) != 0) return -errno;
  return -pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

int vs_interrupt(pid_t thread) { return result_of(syscall(SYS_tgkill, getpid(), thread, SIGUSR2)); }

int vs_epoll(void) { return result_of(epoll_create1(EPOLL_CLOEXEC)); }

int vs_epoll_add(int epoll, int fd) {
  struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
  return result_of(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
}

void vs_epoll_remove(int epoll, int fd) { (void)epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL); }

int vs_epoll_next(int epoll) {
  struct epoll_event event;
  return epoll_wait(epoll, &event, 1, 0) == 1 ? event.data.fd : -1;
}

int vs_wait_readable(int fd, uint64_t microseconds) {
  struct pollfd descriptor = {.fd = fd, .events = POLLIN};
  struct timespec time = {(time_t)(microseconds / 1000000), (long)(microseconds % 1000000) * 1000};
  return ppoll(&descriptor, 1, &time, NULL) > 0;
}

int64_t vs_available_pages(void) {
  long kilobytes = 0;
  char line[128];
  FILE *file = fopen("/proc/meminfo", "re");
  if (!file) return 0;
  while (fgets(line, sizeof(line), file))
    if (sscanf(line, "MemAvailable: %ld", &kilobytes) == 1) break;
  fclose(file);
  return kilobytes / 4;
}

int vs_thread_start(size_t stack_size, void *(*start)(void *), void *argument) {
  pthread_attr_t attributes;
  pthread_t thread;
  sigset_t all, before;
  int error = pthread_attr_init(&attributes);
  if (error != 0) return -error;
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, stack_size);
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  error = pthread_create(&thread, &attributes, start, argument);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
  return -error;
}

void vs_name_thread(const char *name) { (void)pthread_setname_np(pthread_self(), name); }

static int name_of(const char *path, struct sockaddr_un *name) {
  memset(name, 0, sizeof(*name));
  name->sun_family = AF_UNIX;
  if (strlen(path) >= sizeof(name->sun_path)) return -ENAMETOOLONG;
  strcpy(name->sun_path, path);
  return 0;
}

int vs_seqpacket_listen(const char *path, mode_t mode) {
  struct sockaddr_un name;
  int error = name_of(path, &name);
  if (error != 0) return error;
  int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno;
  // The mode must be right from the first instant, not only after a chmod.
  mode_t before = umask(0777 & ~mode);
  error = bind(fd, (struct sockaddr *)&name, sizeof(name)) != 0 ? -errno : 0;
  umask(before);
  if (error == 0 && listen(fd, 512) != 0) error = -errno;
  if (error == 0) return fd;
  close(fd);
  return error;
}

int vs_accept(int fd) { return result_of(accept4(fd, NULL, NULL, SOCK_CLOEXEC)); }

int vs_peer_of(int fd, struct vs_peer *peer) {
  struct ucred credentials;
  socklen_t length = sizeof(credentials);
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) return -errno;
  *peer = (struct vs_peer){credentials.pid, credentials.uid, credentials.gid};
  return 0;
}

int vs_peer_is_in_group(int fd, gid_t group) {
  // As many as a process can have (NGROUPS_MAX).
  socklen_t length = 65536 * sizeof(gid_t);
  gid_t *groups = malloc(length);
  if (!groups) return -ENOMEM;
  int result = getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &length) != 0 ? -errno : 0;
  for (size_t index = 0; result == 0 && index < length / sizeof(gid_t); index++) result = groups[index] == group;
  free(groups);
  return result;
}

int64_t vs_group_named(const char *name) {
  struct group entry, *found = NULL;
  char text[16384];
  int error = getgrnam_r(name, &entry, text, sizeof(text), &found);
  if (error != 0) return -error;
  return found ? (int64_t)found->gr_gid : -ENOENT;
}

#define DESCRIPTORS 8

/// Waits until a socket is ready for `events`, or has failed. 0, or -ETIMEDOUT at `deadline`.
static int wait_until(int fd, short events, uint64_t deadline) {
  struct pollfd socket = {.fd = fd, .events = events};
  while (true) {
    uint64_t now = vs_monotonic_ns();
    if (now >= deadline) return -ETIMEDOUT;
    uint64_t left = deadline - now;
    struct timespec time = {(time_t)(left / 1000000000), (long)(left % 1000000000)};
    int ready = ppoll(&socket, 1, &time, NULL);
    if (ready > 0) return 0;
    if (ready < 0 && errno != EINTR) return -errno;
  }
}

/// Whether a call that must not block is to be made again, since the socket has become ready; else `*error` says why not.
static bool again(int fd, ssize_t result, short events, uint64_t deadline, int *error) {
  if (result >= 0) return false;
  *error = -errno;
  if (errno == EINTR) return true;
  if (errno != EAGAIN) return false;
  *error = wait_until(fd, events, deadline);
  return *error == 0;
}

int64_t vs_send(int fd, const void *data, size_t length, const int *descriptors, size_t count, uint64_t deadline) {
  struct iovec vector = {(void *)data, length};
  union {
    char buffer[CMSG_SPACE(sizeof(int) * DESCRIPTORS)];
    struct cmsghdr align;
  } control;
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
  if (count > DESCRIPTORS) return -EINVAL;
  if (count > 0) {
    memset(&control, 0, sizeof(control));
    message.msg_control = control.buffer;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * count);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * count);
    memcpy(CMSG_DATA(header), descriptors, sizeof(int) * count);
  }
  ssize_t sent;
  int error = 0;
  do sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  while (again(fd, sent, POLLOUT, deadline, &error));
  return sent < 0 ? error : sent;
}

int64_t vs_receive(int fd, void *data, size_t length, int *descriptor, uint64_t deadline) {
  struct iovec vector = {data, length};
  union {
    char buffer[CMSG_SPACE(sizeof(int) * DESCRIPTORS)];
    struct cmsghdr align;
  } control;
  struct msghdr message = {
      .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control.buffer, .msg_controllen = sizeof(control.buffer)};
  *descriptor = -1;
  ssize_t received;
  int error = 0;
  do {
    // The kernel has written to them when it refused the call before.
    message.msg_controllen = sizeof(control.buffer);
    received = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  } while (again(fd, received, POLLIN, deadline, &error));
  if (received < 0) return error;
  for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t index = 0; index < count; index++) {
      int passed;
      memcpy(&passed, CMSG_DATA(header) + index * sizeof(int), sizeof(int));
      if (*descriptor < 0) *descriptor = passed;
      else close(passed);
    }
  }
  return message.msg_flags & MSG_TRUNC ? -EMSGSIZE : received;
}

int vs_cpu_of_thread(pid_t thread) {
  char path[64], text[1024];
  // Not /proc/TID/stat: that adds up the times of all threads of the process.
  snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", thread, thread);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -errno;
  ssize_t length = read(fd, text, sizeof(text) - 1);
  close(fd);
  if (length <= 0) return -ESRCH;
  text[length] = 0;
  // Field 39, counted from the state, which is the third and follows the name in parentheses.
  char *field = strrchr(text, ')');
  for (int number = 3; field && number <= 39; number++) field = strchr(field + 1, ' ');
  return field ? atoi(field + 1) : -EINVAL;
}

struct vs_growth vs_growth_of_mremap(pid_t thread) {
  const struct vs_growth none = {0, 0};
  char path[64], text[256];
  snprintf(path, sizeof(path), "/proc/%d/syscall", thread);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return none;
  ssize_t length = read(fd, text, sizeof(text) - 1);
  close(fd);
  if (length <= 0) return none;
  text[length] = 0;
  long number;
  unsigned long long address, before, after, flags, to;
  if (sscanf(text, "%ld %llx %llx %llx %llx %llx", &number, &address, &before, &after, &flags, &to) != 6) return none;
  // The kernel rounds lengths up to pages.
  before = (before + 4095) & ~4095ull;
  after = (after + 4095) & ~4095ull;
  if (number != SYS_mremap || after <= before) return none;
  return (struct vs_growth){flags & MREMAP_FIXED ? to + before : 0, after - before};
}

int vs_set_cpu(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  return result_of(sched_setaffinity(0, sizeof(set), &set));
}

int vs_unset_cpu(void) {
  cpu_set_t set;
  if (sched_getaffinity(getpid(), sizeof(set), &set) != 0) return -errno;
  return result_of(sched_setaffinity(0, sizeof(set), &set));
}

// struct sched_attr as of Linux 3.14; glibc declares it from 2.41 on.
struct attributes {
  uint32_t size, policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime, deadline, period;
};

/// Nanoseconds; the kernel knows none that is shorter.
static const uint64_t shortest_slice = 100000;

/// An ordinary thread (0: the calling one) with the shortest slice, or where the kernel does not take that, as nice at least.
static int set_weight(pid_t thread, int nice) {
  struct attributes attributes = {.size = sizeof(attributes), .policy = SCHED_OTHER, .nice = nice, .runtime = shortest_slice};
  if (syscall(SYS_sched_setattr, thread, &attributes, 0) == 0) return 0;
  if (thread == 0) thread = (pid_t)syscall(SYS_gettid);
  return result_of(setpriority(PRIO_PROCESS, (id_t)thread, nice));
}

/// From <linux/sched.h>, which does not go with <sched.h>.
static const uint64_t reset_on_fork = 1;

int vs_favour_agent(pid_t thread, struct vs_weight *before) {
  struct attributes now = {0};
  if (syscall(SYS_sched_getattr, thread, &now, sizeof(now), 0) != 0) return -errno;
  // A real-time thread needs no favour.
  if (now.policy != SCHED_OTHER && now.policy != SCHED_BATCH && now.policy != SCHED_IDLE) return -EINVAL;
  *before = (struct vs_weight){.policy = (int32_t)now.policy, .nice = now.nice, .flags = now.flags};
  struct attributes favoured = {
      .size = sizeof(favoured), .policy = SCHED_OTHER, .flags = reset_on_fork, .nice = -19, .runtime = shortest_slice};
  return result_of(syscall(SYS_sched_setattr, thread, &favoured, 0));
}

int vs_restore_weight(pid_t thread, struct vs_weight before) {
  struct attributes attributes = {
      .size = sizeof(attributes), .policy = (uint32_t)before.policy, .flags = before.flags & reset_on_fork, .nice = before.nice};
  return result_of(syscall(SYS_sched_setattr, thread, &attributes, 0));
}

uint64_t vs_cpu_time_of_thread(pid_t thread) {
  char path[64], text[128];
  snprintf(path, sizeof(path), "/proc/%d/task/%d/schedstat", thread, thread);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  ssize_t length = read(fd, text, sizeof(text) - 1);
  close(fd);
  if (length <= 0) return 0;
  text[length] = 0;
  return strtoull(text, NULL, 10);
}

int vs_humble_thread(void) { return set_weight(0, 19); }

int vs_is_guest(void) {
#if defined(__x86_64__) || defined(__i386__)
  unsigned int a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & (1u << 31)) != 0;
#else
  return 0;
#endif
}

int vs_run_delay(uint64_t *delay, uint64_t *runs) {
  char text[128];
  int fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -errno;
  ssize_t length = read(fd, text, sizeof(text) - 1);
  close(fd);
  if (length <= 0) return -EINVAL;
  text[length] = 0;
  unsigned long long spent, waited, times;
  if (sscanf(text, "%llu %llu %llu", &spent, &waited, &times) != 3) return -EINVAL;
  *delay = waited;
  *runs = times;
  return 0;
}

int vs_set_cpu_share(int share, int shares) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int cpu = share; cpu < CPU_SETSIZE; cpu += shares) CPU_SET(cpu, &set);
  return result_of(sched_setaffinity(0, sizeof(set), &set));
}

int vs_current_cpu(void) { return sched_getcpu(); }

int64_t vs_resident_pages(int statm) {
  char text[128];
  ssize_t length = pread(statm, text, sizeof(text) - 1, 0);
  if (length <= 0) return length < 0 ? -errno : -ESRCH;
  text[length] = 0;
  // Not by sscanf, which takes longer than the kernel: it is done for every target many times a second.
  int64_t fields[3];
  const char *at = text;
  for (int index = 0; index < 3; index++) {
    if (*at < '0' || *at > '9') return -EINVAL;
    for (fields[index] = 0; *at >= '0' && *at <= '9'; at++) fields[index] = fields[index] * 10 + (*at - '0');
    while (*at == ' ') at++;
  }
  return fields[1] > fields[2] ? fields[1] - fields[2] : 0;
}

/// Code and constants are never written to (a DSO has no text relocations here), so what is let go of comes back from its file.
static int drop_code(struct dl_phdr_info *object, size_t size, void *page) {
  (void)size;
  uintptr_t mask = ~((uintptr_t)*(long *)page - 1);
  for (int i = 0; i < object->dlpi_phnum; i++) {
    const ElfW(Phdr) *segment = &object->dlpi_phdr[i];
    if (segment->p_type != PT_LOAD || segment->p_flags & PF_W) continue;
    uintptr_t start = (object->dlpi_addr + segment->p_vaddr) & mask;
    uintptr_t end = object->dlpi_addr + segment->p_vaddr + segment->p_memsz;
    // The vDSO cannot be let go of, and need not. Kernels before 5.18 do not let go of what is locked.
    if (end > start && madvise((void *)start, end - start, MADV_DONTNEED_LOCKED) != 0)
      (void)madvise((void *)start, end - start, MADV_DONTNEED);
  }
  return 0;
}

void vs_drop_code(void) {
  long page = sysconf(_SC_PAGESIZE);
  dl_iterate_phdr(drop_code, &page);
}

int vs_return_freed_memory(void) {
  return mallopt(M_MMAP_THRESHOLD, 128 << 10) == 1 && mallopt(M_ARENA_MAX, 4) == 1 ? 0 : -EINVAL;
}

static int memory_is_locked;

int vs_lock_memory(void) {
  memory_is_locked = mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0;
  return memory_is_locked ? 0 : -errno;
}

// Where glibc begins an arena's memory.
#define ARENA_ALIGNMENT ((uintptr_t)64 << 20)
#define MOST_HEAPS 64

/// Memory of the allocator: the heap, and arenas. Returns how many ranges there are.
static int find_heaps(uintptr_t (*heaps)[2]) {
  FILE *file = fopen("/proc/self/maps", "re");
  if (!file) return 0;
  char line[512], access[8];
  int count = 0;
  unsigned long start, end;
  while (count < MOST_HEAPS && fgets(line, sizeof(line), file)) {
    unsigned long inode;
    if (sscanf(line, "%lx-%lx %7s %*s %*s %lu", &start, &end, access, &inode) != 4) continue;
    if (inode != 0 || strcmp(access, "rw-p") != 0) continue;
    if (!strstr(line, "[heap]") && start % ARENA_ALIGNMENT != 0) continue;
    heaps[count][0] = start;
    heaps[count++][1] = end;
  }
  fclose(file);
  return count;
}

void vs_return_heap(void) {
  static uintptr_t heaps[MOST_HEAPS][2];
  // The allocator uses MADV_DONTNEED, which the kernel refuses where memory is locked.
  int count = memory_is_locked ? find_heaps(heaps) : 0;
  for (int index = 0; index < count; index++) (void)munlock((void *)heaps[index][0], heaps[index][1] - heaps[index][0]);
  (void)malloc_trim(0);
  // What the allocator has unmapped meanwhile need not be locked.
  for (int index = 0; index < count; index++)
    (void)syscall(SYS_mlock2, heaps[index][0], heaps[index][1] - heaps[index][0], MLOCK_ONFAULT);
}

void vs_return_stack(void) {
  pthread_attr_t attributes;
  void *low;
  size_t size;
  if (pthread_getattr_np(pthread_self(), &attributes) != 0) return;
  // Some pages are left to the functions that are called here.
  uintptr_t top = ((uintptr_t)__builtin_frame_address(0) & ~(uintptr_t)4095) - 2 * 4096;
  if (pthread_attr_getstack(&attributes, &low, &size) == 0 && top > (uintptr_t)low &&
      madvise(low, top - (uintptr_t)low, MADV_DONTNEED_LOCKED) != 0)
    (void)madvise(low, top - (uintptr_t)low, MADV_DONTNEED);
  pthread_attr_destroy(&attributes);
}

int64_t vs_raise_descriptor_limit(uint64_t wanted) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return -errno;
  struct rlimit more = {wanted, wanted > limit.rlim_max ? wanted : limit.rlim_max};
  if (setrlimit(RLIMIT_NOFILE, &more) != 0) {
    more = (struct rlimit){limit.rlim_max, limit.rlim_max};
    if (setrlimit(RLIMIT_NOFILE, &more) != 0) return -errno;
  }
  return (int64_t)more.rlim_cur;
}

int vs_signal_descriptor(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGHUP);
  if (signal(SIGPIPE, SIG_IGN) == SIG_ERR) return -errno;
  int error = pthread_sigmask(SIG_BLOCK, &set, NULL);
  if (error != 0) return -error;
  return result_of(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}

int vs_next_signal(int fd) {
  struct signalfd_siginfo info;
  ssize_t length = read(fd, &info, sizeof(info));
  return length == sizeof(info) ? (int)info.ssi_signo : -errno;
}

uint64_t vs_monotonic_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000ull + (uint64_t)time.tv_nsec;
}

int vs_make_real_time(pid_t thread) {
  // Without SCHED_RESET_ON_FORK: who may only ask for a real-time priority (RLIMIT_RTPRIO) could not give that up again.
  struct sched_param parameter = {.sched_priority = 1};
  return result_of(sched_setscheduler(thread, SCHED_RR, &parameter));
}

int vs_end_real_time(void) {
  // The kernel has kept the nice value, and the slice that was asked for.
  struct sched_param none = {0};
  return result_of(sched_setscheduler(0, SCHED_OTHER, &none));
}

int vs_favour_thread(pid_t thread) {
  // Since Linux 6.12 a thread may ask for a shorter slice, and then gets the CPU from a thread with a longer one at once; nice alone lets
  // that run to the end of its own. Before, the runtime is ignored.
  return set_weight(thread, -19);
}

pid_t vs_process_of(int pidfd) {
  char path[64], line[128];
  int process = -ESRCH;
  snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", pidfd);
  FILE *file = fopen(path, "re");
  if (!file) return -errno;
  while (fgets(line, sizeof(line), file))
    if (sscanf(line, "Pid: %d", &process) == 1) break;
  fclose(file);
  return process > 0 ? process : -ESRCH;
}

int64_t vs_cpu_time(pid_t process) {
  struct timespec time;
  // What clock_getcpuclockid makes of it, without asking the kernel whether there is such a process: it says so here.
  clockid_t clock = (clockid_t)(~(unsigned)process << 3 | 2);
  if (clock_gettime(clock, &time) != 0) return -errno;
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

int vs_peek(pid_t process, uint64_t address, uint64_t *value) {
  char path[32];
  snprintf(path, sizeof(path), "/proc/%d/mem", process);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -errno;
  ssize_t length = pread(fd, value, sizeof(*value), (off_t)address);
  int error = length < 0 ? -errno : -EFAULT;
  close(fd);
  return length == sizeof(*value) ? 0 : error;
}

int vs_shares_memory(pid_t other, pid_t process) {
  char path[64];
  snprintf(path, sizeof(path), "/proc/%d/task", process);
  DIR *threads = opendir(path);
  if (!threads) return errno == ENOENT ? 0 : -errno;
  int result = 0;
  for (struct dirent *entry; result == 0 && (entry = readdir(threads));) {
    if (entry->d_name[0] == '.') continue;
    long same = syscall(SYS_kcmp, other, atoi(entry->d_name), KCMP_VM, 0, 0);
    // A thread that has just ended is none.
    if (same == 0) result = 1;
    else if (same < 0 && errno != ESRCH) result = -errno;
  }
  closedir(threads);
  return result;
}

int vs_is_userfaultfd(int fd) {
  // A file of FUSE may answer ioctls as it likes; its name always has a folder in front.
  char path[64], name[64];
  snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
  ssize_t length = readlink(path, name, sizeof(name) - 1);
  if (length < 0) return 0;
  name[length] = 0;
  return strcmp(name, "anon_inode:[userfaultfd]") == 0;
}

int64_t vs_device_size(int fd) {
  uint64_t size = 0;
  if (ioctl(fd, BLKGETSIZE64, &size) != 0) return -errno;
  return size > INT64_MAX ? -EOVERFLOW : (int64_t)size;
}

const char *vs_memory_filesystem(const char *path) {
  struct statfs facts;
  if (statfs(path, &facts) != 0) return NULL;
  switch ((uint32_t)facts.f_type) {
    case TMPFS_MAGIC: return "tmpfs";
    case RAMFS_MAGIC: return "ramfs";
    case HUGETLBFS_MAGIC: return "hugetlbfs";
    default: return NULL;
  }
}
