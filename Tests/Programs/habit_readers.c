// Who reads and writes memory that is out, other than by an instruction: system calls, other processes, whoever walks all of it.
#include "habit.h"

#include <sched.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <linux/io_uring.h>

typedef struct {
  uintptr_t start, end;
  char flags[5];
  char name[128];
} Range;

/// The mappings of a process, private ones with these flags.
static int mappings(pid_t pid, const char *flags, Range *ranges, int most) {
  char path[64], line[512];
  int count = 0;
  snprintf(path, sizeof path, "/proc/%d/maps", pid);
  FILE *file = fopen(path, "r");
  while (file && count < most && fgets(line, sizeof line, file)) {
    Range *range = &ranges[count];
    range->name[0] = 0;
    if (sscanf(line, "%lx-%lx %4s %*s %*s %*s %127s", &range->start, &range->end, range->flags, range->name) < 3) continue;
    if (strncmp(range->flags, flags, strlen(flags)) == 0 && strncmp(range->name, "[v", 2) != 0) count++;
  }
  if (file) fclose(file);
  return count;
}

static Range ranges[4096];
enum { MOST_RANGES = sizeof ranges / sizeof *ranges };

/// A conservative collector or a dumper within the process.
static int walks_all_memory(void) {
  int count = mappings(getpid(), "r", ranges, MOST_RANGES), raised = 0;
  volatile uint64_t sum = 0;
  for (int i = 0; i < count; i++)
    for (uintptr_t at = ranges[i].start; at < ranges[i].end; at += PAGE_BYTES) {
      if (ranges[i].name[0] == '/') raised += read_signal((uint8_t *)at) == SIGSEGV;
      else sum = sum + *(volatile uint8_t *)at;
    }
  tell("%d raise SIGSEGV", raised);
  sleep_ms(200);
  uint8_t *more = filled(8 * MIB, 2);
  let_leave(more, 8 * MIB);
  tell("%zu pages are wrong", wrong_pages(more, 8 * MIB, 2));
  return 0;
}

/// Read and written back unchanged, as copying collectors do.
static int writes_all_memory(void) {
  int count = mappings(getpid(), "rw-p", ranges, MOST_RANGES);
  for (int i = 0; i < count; i++) {
    if (strcmp(ranges[i].name, "[stack]") == 0) continue;
    for (uintptr_t at = ranges[i].start; at < ranges[i].end; at += PAGE_BYTES) {
      volatile uint8_t *byte = (volatile uint8_t *)at;
      __atomic_fetch_add(byte, 0, __ATOMIC_RELAXED);
    }
  }
  uint8_t *more = filled(8 * MIB, 2);
  let_leave(more, 8 * MIB);
  tell("%zu pages are wrong", wrong_pages(more, 8 * MIB, 2));
  return 0;
}

static int writes_all_memory_to_a_file(void) {
  int count = mappings(getpid(), "rw-p", ranges, MOST_RANGES), file = open("/dev/null", O_WRONLY), pipe_ends[2];
  size_t failed = 0;
  if (pipe(pipe_ends)) die("pipe");
  for (int i = 0; i < count; i++)
    for (uintptr_t at = ranges[i].start; at < ranges[i].end; at += PAGE_BYTES) {
      uint8_t page[PAGE_BYTES];
      if (write(pipe_ends[1], (void *)at, PAGE_BYTES) != PAGE_BYTES) failed++;
      else if (read(pipe_ends[0], page, PAGE_BYTES) != PAGE_BYTES) failed++;
    }
  close(file);
  tell("%zu pages could not be written", failed);
  return 0;
}

static int reads_itself(void) {
  uint8_t copy[PAGE_BYTES];
  size_t wrong = 0, failed = 0;
  int file = open("/proc/self/mem", O_RDONLY);
  for (size_t page = 0; page < BALLAST_BYTES / PAGE_BYTES; page += 13) {
    struct iovec here = {copy, PAGE_BYTES}, there = {ballast + page * PAGE_BYTES, PAGE_BYTES};
    if (process_vm_readv(getpid(), &here, 1, &there, 1, 0) != PAGE_BYTES) failed++;
    else wrong += block_check((uint64_t *)(void *)copy, page_tag(1, page, 0)) >= 0;
  }
  close(file);
  tell("process_vm_readv: %zu failed, %zu are wrong", failed, wrong);
  return 0;
}

static int writes_itself(void) {
  uint8_t *at = filled(SMALL_BYTES, 2), *other = filled(SMALL_BYTES, 3);
  let_leave(at, SMALL_BYTES);
  struct iovec here = {other, SMALL_BYTES}, there = {at, SMALL_BYTES};
  tell("process_vm_writev: %zd", process_vm_writev(getpid(), &here, 1, &there, 1, 0));
  tell("%zu pages are wrong", wrong_pages(at, SMALL_BYTES, 3));
  return 0;
}

/// A compiler that writes code into pages that are not writable, most of which were never touched.
static volatile bool compiling = true;
static void *works_meanwhile(void *argument) {
  uint8_t *more = filled(BALLAST_BYTES, 2);
  while (compiling) fill_pages(more, BALLAST_BYTES, 2);
  munmap(more, BALLAST_BYTES);
  return argument;
}

static int writes_by_memory_file(void) {
  pthread_t worker = started(works_meanwhile, NULL);
  sleep_ms(200);
  int file = open("/proc/self/mem", O_RDWR), failed = 0, wrong = 0;
  uint8_t code[PAGE_BYTES];
  memset(code, 0x90, sizeof code);
  for (int round = 0; round < 60; round++) {
    uint8_t *at = mapped(MIB, PROT_READ | PROT_WRITE, 0);
    at[0] = 1;
    sleep_ms(5);
    mprotect(at, MIB, PROT_READ | PROT_EXEC);
    for (size_t page = 0; page < 256; page += 64) {
      failed += pwrite(file, code, sizeof code, (off_t)(uintptr_t)(at + page * PAGE_BYTES)) != (ssize_t)sizeof code;
      wrong += at[page * PAGE_BYTES + 100] != 0x90;
    }
    munmap(at, MIB);
  }
  compiling = false;
  pthread_join(worker, NULL);
  tell("%d writes failed, %d are wrong", failed, wrong);
  return 0;
}

static int reads_child(void) {
  pid_t child = fork();
  if (child == 0) {
    fill_pages(ballast, BALLAST_BYTES, 7);
    for (;;) pause();
  }
  sleep_ms(1000);
  int count = mappings(child, "rw-p", ranges, MOST_RANGES);
  size_t short_reads = 0, wrong = 0;
  static uint8_t copy[PAGE_BYTES];
  for (int i = 0; i < count; i++)
    for (uintptr_t at = ranges[i].start; at < ranges[i].end; at += PAGE_BYTES) {
      struct iovec here = {copy, PAGE_BYTES}, there = {(void *)at, PAGE_BYTES};
      if (process_vm_readv(child, &here, 1, &there, 1, 0) != PAGE_BYTES) short_reads++;
      if (at >= (uintptr_t)ballast && at < (uintptr_t)ballast + BALLAST_BYTES)
        wrong += block_check((uint64_t *)(void *)copy, page_tag(7, (at - (uintptr_t)ballast) / PAGE_BYTES, 0)) >= 0;
    }
  tell("%zu pages could not be read, %zu are wrong", short_reads, wrong);
  kill(child, SIGKILL);
  tell_end("child", child);
  return 0;
}

static int traced(void) {
  ptrace(PTRACE_TRACEME, 0, 0, 0);
  raise(SIGSTOP);
  return wrong_pages(ballast, BALLAST_BYTES, 1) != 0;
}

static int traces_child(void) {
  int status, stops = 0;
  pid_t child = fork();
  if (child == 0) _exit(traced());
  waitpid(child, &status, 0);
  ptrace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_EXITKILL);
  while (WIFSTOPPED(status)) {
    stops++;
    ptrace(PTRACE_SYSCALL, child, 0, 0);
    if (waitpid(child, &status, 0) != child) break;
  }
  tell_status("traced child", status);
  tell("it stopped: %s", stops > 1 ? "yes" : "no");
  return 0;
}

/// A leak checker: stops the threads of its parent and reads the memory that they share.
static int freeze_and_read(void *argument) {
  pid_t leader = *(pid_t *)argument;
  int status, wrong = 0;
  if (ptrace(PTRACE_SEIZE, leader, 0, 0)) return 2;
  ptrace(PTRACE_INTERRUPT, leader, 0, 0);
  if (waitpid(leader, &status, __WALL) != leader) return 4;
  wrong = wrong_pages(ballast, BALLAST_BYTES, 1) != 0;
  ptrace(PTRACE_DETACH, leader, 0, 0);
  return wrong;
}

static int stops_its_world(void) {
  static uint8_t stack[256 << 10] __attribute__((aligned(16)));
  pid_t self = getpid();
  prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
  for (int round = 0; round < 5; round++) {
    pid_t tracer = clone(freeze_and_read, stack + sizeof stack, CLONE_VM | CLONE_FS | CLONE_FILES, &self);
    int status;
    while (waitpid(tracer, &status, __WALL) < 0 && errno == EINTR) {
    }
    tell_status("tracer", status);
  }
  return 0;
}

static int moves_by_calls(void) {
  int ends[2], sockets[2];
  uint8_t *from = filled(SMALL_BYTES, 2), *to = filled(SMALL_BYTES, 3);
  if (pipe(ends) || socketpair(AF_UNIX, SOCK_STREAM, 0, sockets)) die("pipe");
  for (int page = 0; page < SMALL_PAGES; page++) {
    if (page % 16 == 0) {
      let_leave(from, SMALL_BYTES);
      let_leave(to + page * PAGE_BYTES, (size_t)(SMALL_PAGES - page) * PAGE_BYTES);
    }
    struct iovec out = {from + page * PAGE_BYTES, PAGE_BYTES}, in = {to + page * PAGE_BYTES, PAGE_BYTES};
    if (page % 3 == 0) {
      if (writev(ends[1], &out, 1) != PAGE_BYTES || readv(ends[0], &in, 1) != PAGE_BYTES) tell("pipe: %s", outcome(-1));
    } else if (page % 3 == 1) {
      struct msghdr sent = {.msg_iov = &out, .msg_iovlen = 1}, received = {.msg_iov = &in, .msg_iovlen = 1};
      if (sendmsg(sockets[0], &sent, 0) != PAGE_BYTES || recvmsg(sockets[1], &received, MSG_WAITALL) != PAGE_BYTES) tell("socket: %s", outcome(-1));
    } else if (vmsplice(ends[1], &out, 1, 0) != PAGE_BYTES || read(ends[0], in.iov_base, PAGE_BYTES) != PAGE_BYTES) {
      tell("vmsplice: %s", outcome(-1));
    }
  }
  tell("%zu pages are wrong", wrong_pages(to, SMALL_BYTES, 2));
  return 0;
}

static int futexes(void) {
  pthread_mutex_t *mutex = mapped(SMALL_BYTES, PROT_READ | PROT_WRITE, 0);
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
  for (int i = 0; i < SMALL_PAGES; i++) pthread_mutex_init((pthread_mutex_t *)(void *)((uint8_t *)mutex + i * PAGE_BYTES), &attributes);
  let_leave(mutex, SMALL_BYTES);
  int failed = 0;
  for (int i = 0; i < SMALL_PAGES; i++) {
    pthread_mutex_t *one = (pthread_mutex_t *)(void *)((uint8_t *)mutex + i * PAGE_BYTES);
    failed += pthread_mutex_lock(one) != 0;
    if (i % 8 == 0) let_leave(one, PAGE_BYTES);
    failed += pthread_mutex_unlock(one) != 0;
  }
  tell("%d failed", failed);
  uint32_t *word = mapped(PAGE_BYTES, PROT_READ | PROT_WRITE, 0);
  *word = 5;
  let_leave(word, PAGE_BYTES);
  const struct timespec brief = {0, 10000000};
  tell("wait for 4: %s", outcome(syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, 4, &brief, NULL, 0)));
  let_leave(word, PAGE_BYTES);
  tell("wait for 5: %s", outcome(syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, 5, &brief, NULL, 0)));
  return 0;
}

static volatile sig_atomic_t handled;
static void on_other_stack(int signal) {
  (void)signal;
  volatile uint8_t local[2 * PAGE_BYTES];
  for (size_t i = 0; i < sizeof local; i += 512) local[i] = 1;
  handled += local[512];
}

static int signals_on_a_stack_that_is_out(void) {
  stack_t stack = {.ss_sp = filled(SMALL_BYTES, 2), .ss_size = SMALL_BYTES};
  struct sigaction action = {.sa_handler = on_other_stack, .sa_flags = SA_ONSTACK};
  sigaltstack(&stack, NULL);
  sigaction(SIGUSR1, &action, NULL);
  for (int i = 0; i < 20; i++) {
    let_leave(stack.ss_sp, SMALL_BYTES);
    raise(SIGUSR1);
  }
  tell("%d handled", (int)handled);
  return 0;
}

static void *count_down(void *argument) {
  for (int i = 0; i < 3; i++) sleep_ms(20);
  return argument;
}

static int threads_on_stacks_of_their_own(void) {
  pthread_t threads[8];
  void *stacks[8];
  int failed = 0;
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < 8; i++) {
      pthread_attr_t attributes;
      pthread_attr_init(&attributes);
      stacks[i] = filled(SMALL_BYTES, 2);
      let_leave(stacks[i], SMALL_BYTES);
      pthread_attr_setstack(&attributes, stacks[i], SMALL_BYTES);
      failed += pthread_create(&threads[i], &attributes, count_down, NULL) != 0;
    }
    for (int i = 0; i < 8; i++) {
      failed += pthread_join(threads[i], NULL) != 0;
      munmap(stacks[i], SMALL_BYTES);
    }
  }
  tell("%d failed", failed);
  return 0;
}

static int ring_of_calls(void) {
  struct io_uring_params parameters = {0};
  int ring = (int)syscall(SYS_io_uring_setup, 8, &parameters);
  if (ring < 0) return skip("io_uring: %s", strerror(errno));
  size_t sq_bytes = parameters.sq_off.array + parameters.sq_entries * 4, cq_bytes = parameters.cq_off.cqes + parameters.cq_entries * sizeof(struct io_uring_cqe);
  uint8_t *sq = mmap(NULL, sq_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
  uint8_t *cq = mmap(NULL, cq_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
  struct io_uring_sqe *entries = mmap(NULL, parameters.sq_entries * sizeof *entries, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
  uint8_t *buffer = filled(SMALL_BYTES, 2), *plain = filled(SMALL_BYTES, 3);
  let_leave(buffer, SMALL_BYTES);
  struct iovec fixed = {buffer, SMALL_BYTES};
  long result = syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &fixed, 1);
  tell("register: %s", outcome(result));
  int file = memfd_create("habit", 0);
  for (int step = 0; step < 4 && result == 0; step++) {
    let_leave(plain, SMALL_BYTES);
    sleep_ms(50);
    uint32_t tail = *(uint32_t *)(void *)(sq + parameters.sq_off.tail), mask = *(uint32_t *)(void *)(sq + parameters.sq_off.ring_mask);
    struct io_uring_sqe *entry = &entries[tail & mask];
    *entry = (struct io_uring_sqe){.fd = file, .len = SMALL_BYTES};
    static const uint8_t codes[] = {IORING_OP_WRITE_FIXED, IORING_OP_READ, IORING_OP_WRITE, IORING_OP_READ_FIXED};
    entry->opcode = codes[step];
    entry->addr = (uintptr_t)(step == 0 || step == 3 ? buffer : plain);
    if (step == 2) fill_pages(plain, SMALL_BYTES, 4), let_leave(plain, SMALL_BYTES);
    ((uint32_t *)(void *)(sq + parameters.sq_off.array))[tail & mask] = tail & mask;
    __atomic_store_n((uint32_t *)(void *)(sq + parameters.sq_off.tail), tail + 1, __ATOMIC_RELEASE);
    syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0);
    uint32_t *head = (uint32_t *)(void *)(cq + parameters.cq_off.head);
    struct io_uring_cqe *done = (struct io_uring_cqe *)(void *)(cq + parameters.cq_off.cqes) + (*head & *(uint32_t *)(void *)(cq + parameters.cq_off.ring_mask));
    tell("step %d: %d", step, done->res);
    __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
    if (step == 1) tell("%zu pages read are wrong", wrong_pages(plain, SMALL_BYTES, 2));
    if (step == 3) tell("%zu pages read into the fixed buffer are wrong", wrong_pages(buffer, SMALL_BYTES, 4));
  }
  return 0;
}

static int direct_io(void) {
  char path[] = "./habit.XXXXXX";
  int file = mkostemp(path, O_DIRECT);
  if (file < 0) return skip("O_DIRECT: %s", strerror(errno));
  unlink(path);
  uint8_t *out = filled(8 * SMALL_BYTES, 2), *in = mapped(8 * SMALL_BYTES, PROT_READ | PROT_WRITE, 0);
  let_leave(out, 8 * SMALL_BYTES);
  ssize_t result = pwrite(file, out, 8 * SMALL_BYTES, 0);
  if (result < 0) return skip("O_DIRECT: %s", strerror(errno));
  tell("written: %zd", result);
  fill_pages(in, 8 * SMALL_BYTES, 3);
  let_leave(in, 8 * SMALL_BYTES);
  tell("read: %zd", pread(file, in, 8 * SMALL_BYTES, 0));
  let_leave(in, 8 * SMALL_BYTES);
  tell("%zu pages are wrong", wrong_pages(in, 8 * SMALL_BYTES, 2));
  aio_context_t context = 0;
  if (syscall(SYS_io_setup, 4, &context) == 0) {
    fill_pages(in, 8 * SMALL_BYTES, 4);
    let_leave(in, 8 * SMALL_BYTES);
    struct iocb read_all = {.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (uint32_t)file, .aio_buf = (uintptr_t)in, .aio_nbytes = 8 * SMALL_BYTES};
    struct iocb *list[] = {&read_all};
    struct io_event event;
    tell("submitted: %ld", syscall(SYS_io_submit, context, 1, list));
    tell("completed: %ld", syscall(SYS_io_getevents, context, 1, 1, &event, NULL));
    tell("%zu pages are wrong", wrong_pages(in, 8 * SMALL_BYTES, 2));
    syscall(SYS_io_destroy, context);
  }
  return 0;
}

HABITS(HABIT(walks_all_memory), HABIT(writes_all_memory), HABIT(writes_all_memory_to_a_file), HABIT(reads_itself), HABIT(writes_itself),
       HABIT(writes_by_memory_file), HABIT(reads_child), HABIT(traces_child), HABIT(stops_its_world), HABIT(moves_by_calls), HABIT(futexes),
       HABIT(signals_on_a_stack_that_is_out), HABIT(threads_on_stacks_of_their_own), HABIT(ring_of_calls), HABIT(direct_io))
