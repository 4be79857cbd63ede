// An agent that lies: it attaches like the preload library, and then breaks its side of the protocol in one way. Written against vswap_wire.h, not
// with the library. It ends with 0 when it was refused or served to the end of its time; what happens to it does not matter, but to nobody else may
// anything happen. `--list` prints the lies.
#include "habit.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <linux/fuse.h>
#include <linux/userfaultfd.h>

#include "../../Sources/CVSwapWire/include/vswap_wire.h"

enum { MEMORY_BYTES = 24 * MIB, STAGING_BYTES = VSWAP_BANK_PAGES * PAGE_BYTES };

static const char *socket_path;
static uint64_t seconds = 1;
static Rng rng = {1};

static struct {
  int connection, context, device, doorbell, ring_file;
  struct vswap_ring *ring;
  struct vswap_family *family;
  uint8_t *identity, *staging, *memory;
} self;

// --- attaching ---

static void transmit(const void *message, size_t bytes, const int *descriptors, int count) {
  union {
    char buffer[CMSG_SPACE(8 * sizeof(int))];
    struct cmsghdr align;
  } control = {{0}};
  struct iovec vector = {(void *)(uintptr_t)message, bytes};
  struct msghdr header = {.msg_iov = &vector, .msg_iovlen = 1};
  if (count) {
    header.msg_control = control.buffer;
    header.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
    struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
    *rights = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN((size_t)count * sizeof(int))};
    memcpy(CMSG_DATA(rights), descriptors, (size_t)count * sizeof(int));
  }
  if (sendmsg(self.connection, &header, MSG_NOSIGNAL) < 0) exit(0);
}

/// A welcome with its descriptors. Ends the program where it is refused.
static void welcomed(int *descriptors) {
  union {
    char buffer[CMSG_SPACE(VSWAP_WELCOME_DESCRIPTORS * sizeof(int))];
    struct cmsghdr align;
  } control;
  struct vswap_welcome welcome = {0};
  struct iovec vector = {&welcome, sizeof welcome};
  struct msghdr header = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control.buffer, .msg_controllen = sizeof control.buffer};
  if (recvmsg(self.connection, &header, 0) != sizeof welcome || welcome.status != VSWAP_OK) {
    tell("refused: %.100s", welcome.text);
    exit(0);
  }
  struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
  if (descriptors && rights) memcpy(descriptors, CMSG_DATA(rights), VSWAP_WELCOME_DESCRIPTORS * sizeof(int));
}

static void greet(struct vswap_hello hello, int pidfd) {
  self.connection = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  struct sockaddr_un name = {.sun_family = AF_UNIX};
  strncpy(name.sun_path, socket_path, sizeof name.sun_path - 1);
  const struct timeval patience = {15, 0};
  setsockopt(self.connection, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  setsockopt(self.connection, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  if (connect(self.connection, (struct sockaddr *)&name, sizeof name)) die("connect: %s", strerror(errno));
  transmit(&hello, sizeof hello, &pidfd, pidfd >= 0);
}

static struct vswap_hello honest_hello(void) {
  struct vswap_hello hello = {.magic = VSWAP_MAGIC, .version = VSWAP_VERSION, .kind = VSWAP_NEW, .agent = (uint32_t)getpid(), .limit_bytes = 8 * MIB};
  memcpy(hello.name, "hostile", 8);
  return hello;
}

static int own_pidfd(void) { return (int)syscall(SYS_pidfd_open, getpid(), 0); }

static void take_welcome(void) {
  int passed[VSWAP_WELCOME_DESCRIPTORS];
  welcomed(passed);
  self.ring_file = passed[0];
  self.ring = mmap(NULL, sizeof *self.ring, PROT_READ | PROT_WRITE, MAP_SHARED, passed[0], 0);
  self.family = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, passed[1], 0);
  self.doorbell = passed[2];
  self.device = passed[3];
  self.context = ioctl(self.device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
  if (self.ring == MAP_FAILED || self.family == MAP_FAILED || self.context < 0) die("the welcome is of no use");
}

/// Its mappings, with guard pages between: none becomes one with another.
static uint8_t *apart(size_t bytes) {
  uint8_t *at = mapped(bytes + 2 * PAGE_BYTES, PROT_NONE, 0);
  mprotect(at + PAGE_BYTES, bytes, PROT_READ | PROT_WRITE);
  return at + PAGE_BYTES;
}

static struct vswap_attach honest_attach(void) {
  self.identity = apart(PAGE_BYTES);
  self.staging = apart(STAGING_BYTES);
  self.memory = apart(MEMORY_BYTES);
  return (struct vswap_attach){.magic = VSWAP_MAGIC,
                               .identity_address = (uintptr_t)self.identity,
                               .staging_address = (uintptr_t)self.staging,
                               .private_start = {(uintptr_t)self.identity, (uintptr_t)self.staging},
                               .private_end = {(uintptr_t)self.identity + PAGE_BYTES, (uintptr_t)self.staging + STAGING_BYTES}};
}

static void attach(void) {
  greet(honest_hello(), own_pidfd());
  take_welcome();
  struct vswap_attach message = honest_attach();
  transmit(&message, sizeof message, &self.context, 1);
  welcomed(NULL);
  self.memory = apart(MEMORY_BYTES);
}

// --- serving, with a lie ---

static uint64_t deadline;
static bool goes_on(void) {
  struct pollfd end = {.fd = self.connection, .events = POLLIN};
  return now_ns() < deadline && poll(&end, 1, 0) == 0 && !self.ring->leave;
}

static void ring_bell(void) {
  const uint64_t one = 1;
  if (write(self.doorbell, &one, sizeof one) < 0) return;
}

/// Memory that comes and goes, so that there is something to evict. It may wait for ever: its pager need not serve who lies.
static void *grow(void *argument) {
  for (uint64_t key = 1;; key++) fill_pages(self.memory, MEMORY_BYTES, key);
  return argument;
}

typedef void Answer(uint32_t bank);

/// Waits for commands and answers each by `answer`, or by doing nothing.
static int serve_by(Answer *answer) {
  attach();
  started(grow, NULL);
  uint32_t done[VSWAP_BANKS] = {0};
  while (goes_on()) {
    for (uint32_t bank = 0; bank < VSWAP_BANKS; bank++) {
      uint32_t sequence = vswap_load(&self.ring->bank[bank].sequence);
      if (sequence == done[bank]) continue;
      done[bank] = sequence;
      if (answer) answer(bank);
      ring_bell();
    }
    struct timespec brief = {0, 1000000};
    uint32_t bell = vswap_load(&self.ring->doorbell);
    syscall(SYS_futex, &self.ring->doorbell, 0, bell, &brief, NULL, 0);
  }
  return 0;
}

static void publish(uint32_t bank, uint32_t count, bool finished) {
  vswap_store(&self.ring->bank[bank].record_count, count);
  if (finished) vswap_store(&self.ring->bank[bank].finished, self.ring->bank[bank].sequence);
}

static struct vswap_run first_run(uint32_t bank) { return self.ring->bank[bank].runs[0]; }

static void record(uint32_t bank, uint32_t index, uint64_t address, uint32_t pages, uint32_t run) {
  self.ring->bank[bank].records[index] = (struct vswap_record){address, pages, run};
}

static void of_a_run_not_given(uint32_t bank) {
  record(bank, 0, first_run(bank).address, 1, self.ring->bank[bank].run_count);
  publish(bank, 1, true);
}

static void outside_of_its_run(uint32_t bank) {
  record(bank, 0, first_run(bank).address + first_run(bank).pages * (uint64_t)PAGE_BYTES, 1, 0);
  publish(bank, 1, true);
}

static void of_everything(uint32_t bank) {
  record(bank, 0, 0, UINT32_MAX, 0);
  publish(bank, 1, true);
}

static void more_than_there_are(uint32_t bank) { publish(bank, VSWAP_BANK_PAGES + 1, true); }
static void counts_backwards(uint32_t bank) { publish(bank, UINT32_MAX, true); }

static void twice(uint32_t bank) {
  struct vswap_run run = first_run(bank);
  for (uint32_t i = 0; i < 4; i++) record(bank, i, run.address, 1, 0);
  publish(bank, self.ring->bank[bank].run_count > 3 || run.pages > 3 ? 4 : 1, true);
}

/// Says that all has left, with content that it never had: everything is still there.
static void what_never_left(uint32_t bank) {
  struct vswap_bank *given = &self.ring->bank[bank];
  for (uint32_t i = 0; i < given->run_count && i < VSWAP_BANK_PAGES; i++) record(bank, i, given->runs[i].address, given->runs[i].pages, i);
  memset(self.ring->frames[bank], 0x5a, sizeof self.ring->frames[bank]);
  publish(bank, given->run_count, true);
}

static void finished_before_its_records(uint32_t bank) {
  vswap_store(&self.ring->bank[bank].finished, self.ring->bank[bank].sequence);
  ring_bell();
  what_never_left(bank);
}

static void records_that_change(uint32_t bank) {
  what_never_left(bank);
  for (int i = 0; i < 20000; i++) {
    struct vswap_record *at = &self.ring->bank[bank].records[rng_below(&rng, 4)];
    __atomic_store_n(&at->address, i % 2 ? rng_next(&rng) : first_run(bank).address, __ATOMIC_RELAXED);
    __atomic_store_n(&at->pages, (uint32_t)rng_below(&rng, 300), __ATOMIC_RELAXED);
  }
}

static void random_records(uint32_t bank) {
  for (uint32_t i = 0; i < VSWAP_BANK_PAGES; i++)
    record(bank, i, first_run(bank).address + (rng_below(&rng, 64) << 12), (uint32_t)rng_below(&rng, 20), (uint32_t)rng_below(&rng, 8));
  publish(bank, (uint32_t)rng_below(&rng, VSWAP_BANK_PAGES), rng_chance(&rng, 2));
}

static void wrong_command(uint32_t bank) {
  vswap_store(&self.ring->bank[bank].finished, self.ring->bank[bank].sequence + 1 + (uint32_t)rng_below(&rng, 3));
}

static void command_is_changed(uint32_t bank) {
  struct vswap_bank *given = &self.ring->bank[bank];
  for (int i = 0; i < 8; i++) given->runs[i] = (struct vswap_run){rng_next(&rng), (uint32_t)rng_next(&rng), 0};
  given->run_count = UINT32_MAX;
  given->sequence += 17;
  random_records(bank);
}

static int lie_of_a_run_not_given(void) { return serve_by(of_a_run_not_given); }
static int lie_outside_of_its_run(void) { return serve_by(outside_of_its_run); }
static int lie_of_everything(void) { return serve_by(of_everything); }
static int lie_more_than_there_are(void) { return serve_by(more_than_there_are); }
static int lie_counts_backwards(void) { return serve_by(counts_backwards); }
static int lie_twice(void) { return serve_by(twice); }
static int lie_what_never_left(void) { return serve_by(what_never_left); }
static int lie_finished_before_its_records(void) { return serve_by(finished_before_its_records); }
static int lie_records_that_change(void) { return serve_by(records_that_change); }
static int lie_random_records(void) { return serve_by(random_records); }
static int lie_wrong_command(void) { return serve_by(wrong_command); }
static int lie_command_is_changed(void) { return serve_by(command_is_changed); }

/// Writes into one part of the ring all the time, and otherwise answers at random.
static int word_by(size_t offset, size_t bytes) {
  attach();
  started(grow, NULL);
  uint8_t *at = (uint8_t *)self.ring + offset;
  while (goes_on()) {
    for (size_t word = 0; word < bytes / 4; word++)
      __atomic_store_n((uint32_t *)(void *)at + word, rng_chance(&rng, 2) ? (uint32_t)rng_below(&rng, 5) : (uint32_t)rng_next(&rng), __ATOMIC_RELAXED);
    if (rng_chance(&rng, 50)) random_records((uint32_t)rng_below(&rng, VSWAP_BANKS));
    if (rng_chance(&rng, 100)) ring_bell();
  }
  return 0;
}

#define PART(field) word_by(offsetof(struct vswap_ring, field), sizeof((struct vswap_ring *)0)->field)
static int scribbled_generation(void) { return PART(generation); }
static int scribbled_callers(void) { return PART(callers); }
static int scribbled_registered(void) { return PART(registered); }
static int scribbled_request(void) { return PART(request); }
static int scribbled_held(void) { return PART(held); }
static int scribbled_deserted(void) { return PART(deserted); }
static int scribbled_head(void) { return word_by(0, offsetof(struct vswap_ring, gate)); }

static int scribbled_family(void) {
  attach();
  started(grow, NULL);
  while (goes_on()) {
    for (size_t word = 0; word < sizeof *self.family / 4; word++) ((uint32_t *)self.family)[word] = 1 + (uint32_t)rng_below(&rng, 40000);
    ring_bell();
    sleep_ms(1);
  }
  return 0;
}

static int requests_for_everything(void) {
  attach();
  started(grow, NULL);
  while (goes_on()) {
    struct vswap_request *request = &self.ring->request;
    request->kind = (uint32_t)rng_below(&rng, 4);
    request->start = rng_chance(&rng, 2) ? 0 : rng_next(&rng);
    request->end = rng_chance(&rng, 2) ? UINT64_MAX : rng_next(&rng) >> 20;
    vswap_store(&request->state, VSWAP_REQUEST_ASKED);
    ring_bell();
    for (int i = 0; i < 20 && vswap_load(&request->state) == VSWAP_REQUEST_ASKED; i++) sleep_ms(1);
    vswap_store(&request->state, VSWAP_REQUEST_DONE);
    ring_bell();
  }
  return 0;
}

static int faults_in_its_own_pages(void) {
  attach();
  started(grow, NULL);
  uint64_t sum = 0;
  while (goes_on()) {
    madvise(self.identity, PAGE_BYTES, MADV_DONTNEED);
    sum += *(volatile uint64_t *)(void *)self.identity;
    *(volatile uint8_t *)self.identity = 7;
    madvise(self.staging, STAGING_BYTES, MADV_DONTNEED);
    for (int i = 0; i < 16; i++) self.staging[rng_below(&rng, VSWAP_BANK_PAGES) * PAGE_BYTES] = (uint8_t)sum;
  }
  return 0;
}

static int fills_and_reads_by_itself(void) {
  attach();
  started(grow, NULL);
  static uint8_t page[PAGE_BYTES];
  while (goes_on()) {
    uint64_t at = (uintptr_t)self.memory + (rng_below(&rng, MEMORY_BYTES / PAGE_BYTES) << 12);
    struct uffdio_copy copy = {.dst = at, .src = (uintptr_t)page, .len = PAGE_BYTES};
    ioctl(self.context, UFFDIO_COPY, &copy);
    struct uffd_msg messages[4];
    if (read(self.context, messages, sizeof messages) < 0 && rng_chance(&rng, 4)) madvise((void *)at, PAGE_BYTES, MADV_DONTNEED);
    struct uffdio_range range = {at, PAGE_BYTES};
    if (rng_chance(&rng, 8)) ioctl(self.context, UFFDIO_WAKE, &range);
    if (rng_chance(&rng, 500)) {
      range = (struct uffdio_range){(uintptr_t)self.memory, MEMORY_BYTES};
      ioctl(self.context, UFFDIO_UNREGISTER, &range);
    }
  }
  return 0;
}

static int forks_and_eats_the_events(void) {
  attach();
  started(grow, NULL);
  while (goes_on()) {
    pid_t child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (child == 0) {
      munmap(self.memory, MEMORY_BYTES / 2);
      for (size_t i = 0; i < MEMORY_BYTES / 2; i += 64 * PAGE_BYTES) (void)*(volatile uint8_t *)(self.memory + MEMORY_BYTES / 2 + i);
      _exit(0);
    }
    struct uffd_msg message;
    for (int i = 0; i < 20; i++)
      if (read(self.context, &message, sizeof message) == sizeof message && message.event == UFFD_EVENT_FORK) close((int)message.arg.fork.ufd);
    sleep_ms(10);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
  }
  return 0;
}

static int closes_and_shrinks(void) {
  attach();
  started(grow, NULL);
  tell("ftruncate: %s", outcome(ftruncate(self.ring_file, 0)));
  tell("punch: %s", outcome(fallocate(self.ring_file, 3, 0, sizeof *self.ring)));
  sleep_ms(300);
  close(self.ring_file);
  close(self.device);
  close(self.doorbell);
  munmap(self.ring, sizeof *self.ring);
  sleep_ms(500);
  close(self.context);
  sleep_ms(500);
  return 0;
}

static int leaves_the_socket(void) {
  attach();
  started(grow, NULL);
  sleep_ms(500);
  close(self.connection);
  sleep_ms(1000);
  return 0;
}

static int floods_the_doorbell(void) {
  attach();
  started(grow, NULL);
  const uint64_t most = UINT64_MAX - 1;
  fcntl(self.doorbell, F_SETFL, O_NONBLOCK);
  while (goes_on())
    if (write(self.doorbell, &most, sizeof most) < 0) ring_bell();
  return 0;
}

static int speaks_after_the_handshake(void) {
  attach();
  for (int i = 0; i < 100; i++) {
    uint64_t noise[32];
    for (int j = 0; j < 32; j++) noise[j] = rng_next(&rng);
    transmit(noise, rng_below(&rng, sizeof noise) + 1, &self.context, (int)rng_below(&rng, 2));
    sleep_ms(2);
  }
  return 0;
}

// --- lies of the handshake ---

static int greets_with(struct vswap_hello hello, int pidfd) {
  greet(hello, pidfd);
  take_welcome();
  struct vswap_attach message = honest_attach();
  transmit(&message, sizeof message, &self.context, 1);
  welcomed(NULL);
  tell("served");
  return 0;
}

static int speaks_for_its_parent(void) {
  int parent = (int)syscall(SYS_pidfd_open, getppid(), 0);
  return greets_with(honest_hello(), parent);
}

static int speaks_for_the_first_process(void) { return greets_with(honest_hello(), (int)syscall(SYS_pidfd_open, 1, 0)); }
static int speaks_for_nobody(void) { return greets_with(honest_hello(), -1); }
static int speaks_for_a_file(void) { return greets_with(honest_hello(), open("/dev/null", O_RDONLY)); }

static int is_somebodys_child(void) {
  struct vswap_hello hello = honest_hello();
  hello.kind = VSWAP_CHILD;
  hello.token = rng_below(&rng, 64);
  return greets_with(hello, own_pidfd());
}

static int has_another_agent(void) {
  struct vswap_hello hello = honest_hello();
  hello.agent = 1;
  hello.limit_bytes = 1;
  return greets_with(hello, own_pidfd());
}

static int has_no_room(void) {
  struct vswap_hello hello = honest_hello();
  hello.limit_bytes = UINT64_MAX - 1;
  memset(hello.group, 0xff, sizeof hello.group);
  return greets_with(hello, own_pidfd());
}

static int attaches_with(struct vswap_attach message, int descriptor) {
  transmit(&message, sizeof message, &descriptor, descriptor >= 0);
  welcomed(NULL);
  tell("served");
  self.memory = apart(MEMORY_BYTES);
  started(grow, NULL);
  while (goes_on()) sleep_ms(10);
  return 0;
}

static int passes(int (*make)(void)) {
  greet(honest_hello(), own_pidfd());
  take_welcome();
  return attaches_with(honest_attach(), make());
}

static int null_device(void) { return open("/dev/null", O_RDWR); }
static int its_connection(void) { return self.connection; }
static int the_device(void) { return self.device; }
static int the_ring(void) { return self.ring_file; }
static int nothing(void) { return -1; }

static int passes_null(void) { return passes(null_device); }
static int passes_its_connection(void) { return passes(its_connection); }
static int passes_the_device(void) { return passes(the_device); }
static int passes_the_ring(void) { return passes(the_ring); }
static int passes_nothing(void) { return passes(nothing); }

/// The userfaultfd of a child, with the same addresses.
static int of_a_child(void) {
  int ends[2], made = -1;
  if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends)) die("socketpair");
  if (fork() == 0) {
    self.connection = ends[1];
    made = ioctl(self.device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    transmit("x", 1, &made, 1);
    for (unsigned i = 0; i < 100 * seconds; i++) sleep_ms(10);
    _exit(0);
  }
  union {
    char buffer[CMSG_SPACE(sizeof(int))];
    struct cmsghdr align;
  } control;
  char byte;
  struct iovec vector = {&byte, 1};
  struct msghdr header = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control.buffer, .msg_controllen = sizeof control.buffer};
  if (recvmsg(ends[0], &header, 0) != 1) die("recvmsg");
  memcpy(&made, CMSG_DATA(CMSG_FIRSTHDR(&header)), sizeof made);
  return made;
}

static int passes_a_childs(void) { return passes(of_a_child); }

/// A file that says yes to every ioctl, and is never out of events: each is a fork whose child has the daemon's descriptor of that number.
static void serve_files(int fuse) {
  static uint8_t in[1 << 17], out[8192];
  for (;;) {
    ssize_t length = read(fuse, in, sizeof in);
    if (length < (ssize_t)sizeof(struct fuse_in_header)) {
      if (errno == EINTR || errno == ENOENT) continue;
      return;
    }
    struct fuse_in_header *asked = (struct fuse_in_header *)(void *)in;
    struct fuse_out_header *head = (struct fuse_out_header *)(void *)out;
    void *body = out + sizeof *head;
    size_t bytes = 0;
    memset(out, 0, sizeof out);
    *head = (struct fuse_out_header){.unique = asked->unique};
    switch (asked->opcode) {
    case FUSE_INIT:
      *(struct fuse_init_out *)body = (struct fuse_init_out){.major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION, .max_write = 4096};
      bytes = sizeof(struct fuse_init_out);
      break;
    case FUSE_LOOKUP: {
      struct fuse_entry_out *entry = body;
      *entry = (struct fuse_entry_out){.nodeid = 2, .attr = {.ino = 2, .mode = S_IFREG | 0666, .nlink = 1, .size = 1 << 20}};
      bytes = sizeof *entry;
      break;
    }
    case FUSE_GETATTR: {
      struct fuse_attr_out *attributes = body;
      attributes->attr = (struct fuse_attr){.ino = asked->nodeid, .mode = asked->nodeid == 1 ? S_IFDIR | 0777 : S_IFREG | 0666, .nlink = 1, .size = 1 << 20};
      bytes = sizeof *attributes;
      break;
    }
    case FUSE_OPEN:
    case FUSE_OPENDIR: *(struct fuse_open_out *)body = (struct fuse_open_out){.open_flags = FOPEN_DIRECT_IO}, bytes = sizeof(struct fuse_open_out); break;
    case FUSE_IOCTL: {
      struct fuse_ioctl_in *call = (struct fuse_ioctl_in *)(void *)(asked + 1);
      bytes = sizeof(struct fuse_ioctl_out) + call->out_size;
      if (bytes > 4096) bytes = 4096;
      memcpy((uint8_t *)body + sizeof(struct fuse_ioctl_out), call + 1, bytes - sizeof(struct fuse_ioctl_out));
      break;
    }
    case FUSE_READ: {
      struct uffd_msg *message = body;
      message->event = UFFD_EVENT_FORK;
      message->arg.fork.ufd = (uint32_t)rng_below(&rng, 64);
      bytes = sizeof *message;
      break;
    }
    case FUSE_POLL: *(struct fuse_poll_out *)body = (struct fuse_poll_out){.revents = POLLIN}, bytes = sizeof(struct fuse_poll_out); break;
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET: continue;
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR:
    case FUSE_FLUSH: break;
    default: head->error = -ENOSYS;
    }
    head->len = (uint32_t)(sizeof *head + bytes);
    if (write(fuse, out, head->len) < 0 && errno != ENOENT) return;
  }
}

static int of_its_own_file_system(void) {
  char options[128], place[] = "hostile.XXXXXX", path[64];
  int fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
  snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fuse);
  if (fuse < 0 || !mkdtemp(place) || mount("hostile", place, "fuse.hostile", MS_NOSUID | MS_NODEV, options)) {
    tell("refused: no FUSE here (%s)", strerror(errno));
    exit(SKIPPED);
  }
  // A process of its own, or this one could not end: it would wait for its own answer.
  if (fork() == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    serve_files(fuse);
    _exit(0);
  }
  close(fuse);
  snprintf(path, sizeof path, "%s/file", place);
  int file = open(path, O_RDWR | O_NONBLOCK);
  umount2(place, MNT_DETACH);
  rmdir(place);
  if (file < 0) die("open: %s", strerror(errno));
  return file;
}

static int passes_a_file_that_forges_events(void) { return passes(of_its_own_file_system); }

/// Places that are none of its mappings.
static int attaches_elsewhere(void) {
  static const uint64_t places[] = {0, 1, 4095, 4096, 1ull << 47, 1ull << 63, UINT64_MAX, UINT64_MAX - 4095, UINT64_MAX & ~0xfffull, 0x7ffff7ff0000};
  greet(honest_hello(), own_pidfd());
  take_welcome();
  struct vswap_attach message = honest_attach();
  uint64_t place = places[rng_below(&rng, sizeof places / sizeof *places)];
  if (rng_chance(&rng, 2)) message.identity_address = place;
  else message.staging_address = place;
  return attaches_with(message, self.context);
}

static int identity_is_staging(void) {
  greet(honest_hello(), own_pidfd());
  take_welcome();
  struct vswap_attach message = honest_attach();
  message.identity_address = message.staging_address + 5 * PAGE_BYTES;
  return attaches_with(message, self.context);
}

static int private_ranges_are_nonsense(void) {
  greet(honest_hello(), own_pidfd());
  take_welcome();
  struct vswap_attach message = honest_attach();
  for (int i = 0; i < VSWAP_PRIVATE_RANGES; i++) {
    message.private_start[i] = rng_chance(&rng, 3) ? UINT64_MAX : rng_next(&rng);
    message.private_end[i] = rng_chance(&rng, 3) ? 0 : rng_next(&rng);
  }
  return attaches_with(message, self.context);
}

/// Whoever the connection belongs to executes another program, set-user-ID perhaps, and somebody else goes on in its name.
static int executes_in_between(void) {
  greet(honest_hello(), own_pidfd());
  take_welcome();
  struct vswap_attach message = honest_attach();
  pid_t helper = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
  if (helper == 0) {
    sleep_ms(200);
    self.context = ioctl(self.device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    transmit(&message, sizeof message, &self.context, 1);
    welcomed(NULL);
    tell("served");
    _exit(0);
  }
  execl("/bin/sleep", "sleep", "1", NULL);
  return 0;
}

int main(int argc, char **argv) {
  static const Habit lies[] = {
      {"records_of_a_run_not_given", lie_of_a_run_not_given}, {"records_outside_of_their_run", lie_outside_of_its_run}, {"records_of_everything", lie_of_everything},
      {"more_records_than_there_are", lie_more_than_there_are}, {"a_count_below_zero", lie_counts_backwards}, {"the_same_page_twice", lie_twice},
      {"what_never_left", lie_what_never_left}, {"finished_before_its_records", lie_finished_before_its_records}, {"records_that_change", lie_records_that_change},
      {"random_records", lie_random_records}, {"finished_another_command", lie_wrong_command}, {"a_command_that_it_changes", lie_command_is_changed},
      HABIT(scribbled_generation), HABIT(scribbled_callers), HABIT(scribbled_registered), HABIT(scribbled_request), HABIT(scribbled_held), HABIT(scribbled_deserted),
      HABIT(scribbled_head), HABIT(scribbled_family), HABIT(requests_for_everything), HABIT(faults_in_its_own_pages), HABIT(fills_and_reads_by_itself),
      HABIT(forks_and_eats_the_events), HABIT(closes_and_shrinks), HABIT(leaves_the_socket), HABIT(floods_the_doorbell), HABIT(speaks_after_the_handshake),
      HABIT(speaks_for_its_parent), HABIT(speaks_for_the_first_process), HABIT(speaks_for_nobody), HABIT(speaks_for_a_file), HABIT(is_somebodys_child),
      HABIT(has_another_agent), HABIT(has_no_room), HABIT(passes_null), HABIT(passes_its_connection), HABIT(passes_the_device), HABIT(passes_the_ring),
      HABIT(passes_nothing), HABIT(passes_a_childs), HABIT(passes_a_file_that_forges_events), HABIT(attaches_elsewhere), HABIT(identity_is_staging),
      HABIT(private_ranges_are_nonsense), HABIT(executes_in_between)};
  if (argc == 2 && strcmp(argv[1], "--list") == 0) {
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) puts(lies[i].name);
    return 0;
  }
  if (argc != 4) die("usage: hostile SOCKET SEED LIE | --list");
  socket_path = argv[1];
  rng.state = parse_number("SEED", argv[2]);
  // It need not get anywhere itself.
  const struct rlimit no_core = {0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  alarm((unsigned)seconds + 8);
  signal(SIGPIPE, SIG_IGN);
  deadline = now_ns() + seconds * 1000000000u;
  for (size_t i = 0; i < sizeof lies / sizeof *lies; i++)
    if (strcmp(argv[3], lies[i].name) == 0) _exit(lies[i].run());
  die("no such lie: %s", argv[3]);
}
