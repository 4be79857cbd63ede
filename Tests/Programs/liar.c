// A target whose agent does not keep to the protocol, or does not answer; what it swaps out is its own, and may hurt nobody else.
// Fills memory with mixed content, says "ready PID" and does what lines on standard input say, each answered by a line:
//   lie gate     takes the gate, "ready to lie", and keeps it; once a command is out: "lied"
//   lie stop     the same, and stops itself; once it is continued it leaves the gate
//   lie silent   hides a command from the agent, so that it is never answered
//   lie block    "ready to lie"; clears O_NONBLOCK of the userfaultfd, which the daemon has as well: "lied"
//   lie blink    clears and sets it from then on without a pause
//   fork         a child by _Fork, which never gets an agent: "child PID". On SIGUSR1 it reads everything: "right" or "wrong"
//   verify       reads every page: "right" or "wrong"
//   quit         ends with status 0; so does the end of standard input
// With --forked it does all of this in a child, whose userfaultfd comes from the kernel's fork event.
#include "content.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "../../Sources/CUserfault/include/vs_userfault.h"
#include "../../Sources/CVSwapWire/include/vswap_wire.h"

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL
#endif

static uint8_t *memory;
static uint64_t pages, seed = 1;

static void say(const char *line) {
  if (write(STDOUT_FILENO, line, strlen(line)) < 0) _exit(1);
}

static void verify(void) {
  uint8_t expected[PAGE_BYTES];
  for (uint64_t i = 0; i < pages; i++) {
    fill_page(expected, seed, i, MIXED);
    if (memcmp(memory + i * PAGE_BYTES, expected, PAGE_BYTES) != 0) return say("wrong\n");
  }
  say("right\n");
}

static void pause_ms(long milliseconds) {
  struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
  nanosleep(&time, NULL);
}

static struct vswap_ring *find_ring(void) {
  char line[512];
  FILE *maps = fopen("/proc/self/maps", "r");
  unsigned long long start = 0;
  if (!maps) die("/proc/self/maps: %s", strerror(errno));
  while (fgets(line, sizeof line, maps))
    if (strstr(line, "memfd:vswapd-ring") && sscanf(line, "%llx-", &start) == 1) break;
  fclose(maps);
  if (start == 0) die("not attached: there is no ring");
  return (struct vswap_ring *)(uintptr_t)start;
}

static uint32_t commands_out(struct vswap_ring *ring) {
  uint32_t count = 0;
  for (uint32_t bank = 0; bank < VSWAP_BANKS; bank++)
    if (vswap_load(&ring->bank[bank].sequence) != vswap_load(&ring->bank[bank].finished)) count++;
  return count;
}

static void leave(struct vswap_ring *ring) {
  if (vswap_exchange(&ring->gate, 0) == 2) vs_futex_wake(&ring->gate, 1);
}

/// Takes the gate, says so, and waits until so many commands are out for good: one whose last page was moved before ends by itself.
/// From then on no page that was swapped out comes back, so only the stack is touched.
static void take_gate(struct vswap_ring *ring, uint32_t commands) {
  while (vswap_exchange(&ring->gate, 2) != 0) pause_ms(1);
  say("ready to lie\n");
  while (commands_out(ring) < commands) pause_ms(1);
  pause_ms(100);
  while (commands_out(ring) < commands) pause_ms(1);
}

/// The agent is at the older one, or about to be.
static void hide_newer_command(struct vswap_ring *ring) {
  uint32_t newer = (int32_t)(ring->bank[0].sequence - ring->bank[1].sequence) < 0 ? 1 : 0;
  vswap_store(&ring->bank[newer].sequence, vswap_load(&ring->bank[newer].finished));
}

/// Gets the userfaultfds out of another descriptor table. Returns how many it has so far.
static int steal_from(pid_t task, unsigned flags, int *found, int count, int most) {
  char path[300], target[64];
  snprintf(path, sizeof path, "/proc/%d/fd", task);
  DIR *directory = opendir(path);
  int pidfd = (int)syscall(SYS_pidfd_open, task, flags);
  for (struct dirent *entry; directory && pidfd >= 0 && (entry = readdir(directory));) {
    snprintf(path, sizeof path, "/proc/%d/fd/%s", task, entry->d_name);
    ssize_t length = readlink(path, target, sizeof target - 1);
    if (length <= 0) continue;
    target[length] = 0;
    if (strcmp(target, "anon_inode:[userfaultfd]") != 0 || count == most) continue;
    int stolen = (int)syscall(SYS_pidfd_getfd, pidfd, atoi(entry->d_name), 0);
    if (stolen >= 0) found[count++] = stolen;
  }
  if (directory) closedir(directory);
  if (pidfd >= 0) close(pidfd);
  return count;
}

/// From the agent, be it a thread with descriptors of its own or another process with this one's memory.
static int steal(int *found, int most) {
  int count = 0;
  const char *const places[] = {"/proc/self/task", "/proc"};
  for (int place = 0; place < 2; place++) {
    DIR *directory = opendir(places[place]);
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
      pid_t task = (pid_t)atoi(entry->d_name);
      if (task <= 0 || task == getpid()) continue;
      if (place == 1 && syscall(SYS_kcmp, getpid(), task, KCMP_VM, 0, 0) != 0) continue;
      count = steal_from(task, place == 0 ? PIDFD_THREAD : 0, found, count, most);
    }
    if (directory) closedir(directory);
  }
  if (count == 0) die("there is no userfaultfd to be had");
  return count;
}

static void set_flags(const int *descriptors, int count, int flags) {
  for (int i = 0; i < count; i++)
    if (fcntl(descriptors[i], F_SETFL, flags) < 0) die("F_SETFL: %s", strerror(errno));
}

static int stolen[8], stolen_count;

static void *blink(void *unused) {
  (void)unused;
  while (true) {
    set_flags(stolen, stolen_count, 0);
    set_flags(stolen, stolen_count, O_NONBLOCK);
  }
  return NULL;
}

static void lie(const char *which) {
  struct vswap_ring *ring = find_ring();
  pthread_t thread;
  if (strcmp(which, "gate") == 0 || strcmp(which, "stop") == 0) {
    bool stops = which[0] == 's';
    take_gate(ring, 1);
    say("lied\n");
    while (!stops) pause_ms(1000);
    kill(getpid(), SIGSTOP);
    leave(ring);
  } else if (strcmp(which, "silent") == 0) {
    take_gate(ring, 2);
    hide_newer_command(ring);
    leave(ring);
    say("lied\n");
  } else if (strcmp(which, "block") == 0 || strcmp(which, "blink") == 0) {
    say("ready to lie\n");
    stolen_count = steal(stolen, 8);
    set_flags(stolen, stolen_count, 0);
    if (which[2] == 'i' && pthread_create(&thread, NULL, blink, NULL) != 0) die("no thread");
    say("lied\n");
  } else {
    die("'%s' is no lie", which);
  }
}

static void make_child(void) {
  char line[32];
  sigset_t set;
  int number;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  sigprocmask(SIG_BLOCK, &set, NULL);
  pid_t child = _Fork();
  if (child < 0) die("_Fork: %s", strerror(errno));
  if (child == 0) {
    sigwait(&set, &number);
    verify();
    _exit(0);
  }
  snprintf(line, sizeof line, "child %d\n", child);
  say(line);
}

static void obey(const char *line) {
  if (strncmp(line, "lie ", 4) == 0) lie(line + 4);
  else if (strcmp(line, "fork") == 0) make_child();
  else if (strcmp(line, "verify") == 0) verify();
  else if (strcmp(line, "quit") == 0) exit(0);
  else die("'%s' is none of lie, fork, verify, quit", line);
}

/// Goes on in a child. The parent ends as that does.
static void go_on_in_child(void) {
  int status;
  pid_t child = fork();
  if (child < 0) die("fork: %s", strerror(errno));
  if (child == 0) return;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

int main(int argc, char **argv) {
  uint64_t size = 64;
  const char *value;
  bool forked = false;
  for (int i = 1; i < argc; i++) {
    if ((value = option_value(argc, argv, &i, "--size"))) size = parse_number("--size", value);
    else if ((value = option_value(argc, argv, &i, "--seed"))) seed = parse_number("--seed", value);
    else if (strcmp(argv[i], "--forked") == 0) forked = true;
    else die("usage: liar [--size MiB] [--seed N] [--forked]");
  }
  if (size == 0 || size > 1 << 12) die("--size: 1...%d", 1 << 12);
  pages = size * 256;
  memory = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) die("mmap of %llu MiB: %s", (unsigned long long)size, strerror(errno));
  for (uint64_t i = 0; i < pages; i++) fill_page(memory + i * PAGE_BYTES, seed, i, MIXED);
  if (forked) go_on_in_child();
  printf("ready %d\n", getpid());
  fflush(stdout);
  char line[128];
  while (fgets(line, sizeof line, stdin)) {
    line[strcspn(line, "\n")] = 0;
    obey(line);
  }
  return 0;
}
