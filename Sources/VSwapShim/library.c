// Entry, exit and fork: where the library comes into a process, and what it does when the process becomes two.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <ucontext.h>
#include <unistd.h>

#include "shim.h"
#include "vs_userfault.h"

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
// Static TLS of the main thread lies below its control block.
#define MAIN_TLS (64 * 1024)
#define EXIT_CANNOT_ATTACH 125

// Initialised, so that it lies in a file-backed page.
struct shim *shim = (struct shim *)1;

long shim_futex_wait(uint32_t *word, uint32_t expected, int milliseconds) { return vs_futex_wait(word, expected, milliseconds); }

static uint8_t *map_between_guards(size_t length) {
  long base = raw(SYS_mmap, 0, length + 2 * SHIM_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base < 0 && base > -4096) return NULL;
  uint8_t *inside = (uint8_t *)base + SHIM_PAGE;
  if (raw(SYS_mprotect, inside, length, PROT_READ | PROT_WRITE) == 0) return inside;
  raw(SYS_munmap, base, length + 2 * SHIM_PAGE);
  return NULL;
}

/// State, stack, identity page and mark, each between guard pages, so that none merges with the program's memory.
static bool map_private(void) {
  size_t state = (sizeof(struct shim) + SHIM_PAGE - 1) & ~(SHIM_PAGE - 1);
  size_t total = state + SHIM_PAGE + SHIM_STACK + SHIM_PAGE + SHIM_PAGE + SHIM_PAGE;
  uint8_t *base = map_between_guards(total);
  if (!base) return false;
  struct shim *made = (struct shim *)base;
  made->stack = base + state + SHIM_PAGE;
  made->identity = made->stack + SHIM_STACK + SHIM_PAGE;
  made->mark = made->identity + SHIM_PAGE;
  if (raw(SYS_mprotect, base + state, SHIM_PAGE, PROT_NONE) != 0 ||
      raw(SYS_mprotect, made->stack + SHIM_STACK, SHIM_PAGE, PROT_NONE) != 0 ||
      // The identity page as well: the daemon may put a token there to find out whose memory this is, and a child's is another one.
      raw(SYS_madvise, made->identity, 2 * SHIM_PAGE, MADV_WIPEONFORK) != 0) {
    raw(SYS_munmap, base - SHIM_PAGE, total + 2 * SHIM_PAGE);
    return false;
  }
  *made->mark = 1;
  made->private_start[0] = (uintptr_t)base - SHIM_PAGE;
  made->private_end[0] = (uintptr_t)base + total + SHIM_PAGE;
  shim = made;
  return true;
}

long shim_map_staging(void) {
  size_t length = 2 * SHIM_STAGING + SHIM_PAGE;
  uint8_t *base = map_between_guards(length);
  if (!base) return -ENOMEM;
  shim->staging = base;
  shim->outbox = base + SHIM_STAGING + SHIM_PAGE;
  shim->staging_protection = PROT_READ | PROT_WRITE;
  shim->private_start[1] = (uintptr_t)base - SHIM_PAGE;
  shim->private_end[1] = (uintptr_t)base + length + SHIM_PAGE;
  // A huge page in the staging area would have to be split at once.
  raw(SYS_madvise, base, length, MADV_NOHUGEPAGE);
  // A program that locks what it will map has this locked as well.
  raw(SYS_munlock, base, length);
  long result = raw(SYS_mprotect, base + SHIM_STAGING, SHIM_PAGE, PROT_NONE);
  return result != 0 ? result : raw(SYS_madvise, base - SHIM_PAGE, length + 2 * SHIM_PAGE, MADV_DONTFORK);
}

static bool parse_size(const char *text, uint64_t *bytes) {
  char *end;
  errno = 0;
  if (*text < '0' || *text > '9') return false;
  unsigned long long value = strtoull(text, &end, 10);
  int shift = 0;
  if (*end == 'K' || *end == 'k') shift = 10;
  if (*end == 'M' || *end == 'm') shift = 20;
  if (*end == 'G' || *end == 'g') shift = 30;
  if (shift) end++;
  if (errno != 0 || *end || (value << shift) >> shift != value) return false;
  *bytes = (uint64_t)value << shift;
  return true;
}

static bool parse_limit(const char *text, uint64_t *bytes) {
  if (strcmp(text, "auto") == 0) {
    *bytes = VSWAP_LIMIT_AUTO;
    return true;
  }
  return parse_size(text, bytes) && *bytes != VSWAP_LIMIT_AUTO;
}

static void copy_text(char *to, size_t size, const char *from) {
  size_t length = strnlen(from, size - 1);
  memcpy(to, from, length);
  to[length] = 0;
}

static void say(const char *what) {
  char line[VSWAP_TEXT_MAX + 64];
  int length = snprintf(line, sizeof(line), "vswap: %s: %s\n", shim->name, what);
  if (length > 0 && write(2, line, (size_t)length) < 0) return;
}

/// Either nobody asked for certainty, and the program runs on without the daemon, or it ends here.
static void give_up(const char *why) {
  vswap_store(&shim->phase, SHIM_FAILED);
  if (shim->required || shim->debug) say(why);
  if (shim->required) _exit(EXIT_CANNOT_ATTACH);
}

static void read_name(void) {
  copy_text(shim->name, sizeof(shim->name), program_invocation_short_name);
}

static void default_socket(void) {
  const char *runtime = secure_getenv("XDG_RUNTIME_DIR");
  copy_text(shim->fallback_path, sizeof(shim->fallback_path), "/run/vswapd/attach.sock");
  if (geteuid() != 0 && runtime) snprintf(shim->path, sizeof(shim->path), "%s/vswapd/attach.sock", runtime);
}

/// What the environment asks for. Returns what is wrong with it, or NULL.
static const char *read_environment(void) {
  const char *path = secure_getenv("VSWAP_SOCKET"), *limit = secure_getenv("VSWAP_LIMIT");
  const char *group = secure_getenv("VSWAP_GROUP"), *required = secure_getenv("VSWAP_REQUIRED");
  const char *pass = secure_getenv("VSWAP_PASS");
  const char *debug = secure_getenv("VSWAP_DEBUG");
  shim->debug = debug && strcmp(debug, "1") == 0;
  // "1" means everyone; a number means just that process, so that `vswapctl run` can insist on CMD alone.
  shim->required = required && (strcmp(required, "1") == 0 || strtol(required, NULL, 10) == (long)getpid());
  read_name();
  if (path && strlen(path) >= sizeof(shim->path)) return "VSWAP_SOCKET is too long for a socket";
  if (path) copy_text(shim->path, sizeof(shim->path), path);
  if (!path) default_socket();
  if (limit && !parse_limit(limit, &shim->limit)) return "VSWAP_LIMIT is no size: write a number and K, M or G, or auto";
  if (group && strlen(group) >= sizeof(shim->group)) return "VSWAP_GROUP is longer than 63 characters";
  if (group) copy_text(shim->group, sizeof(shim->group), group);
  shim->pass = pass ? strtoull(pass, NULL, 16) : 0;
  return NULL;
}

/// What this program starts belongs to its group, and shares its limit, whatever user it becomes.
static void hand_on_group(void) {
  char pass[17];
  snprintf(pass, sizeof(pass), "%016llx", (unsigned long long)shim->pass);
  setenv("VSWAP_GROUP", shim->group, 1);
  setenv("VSWAP_PASS", pass, 1);
}

/// One object's writable segments, from the first to the end of .bss.
static int find_data(struct dl_phdr_info *object, size_t size, void *wanted) {
  (void)size;
  uint64_t low = UINT64_MAX, high = 0;
  bool holds = false;
  for (int index = 0; index < object->dlpi_phnum; index++) {
    const ElfW(Phdr) *header = &object->dlpi_phdr[index];
    if (header->p_type != PT_LOAD) continue;
    uint64_t start = object->dlpi_addr + header->p_vaddr, end = start + header->p_memsz;
    holds = holds || ((uintptr_t)wanted >= start && (uintptr_t)wanted < end);
    if (!(header->p_flags & PF_W)) continue;
    if (start < low) low = start;
    if (end > high) high = end;
  }
  if (!holds || high == 0) return 0;
  int place = shim->private_end[2] == 0 ? 2 : 3;
  shim->private_start[place] = low & ~(SHIM_PAGE - 1);
  shim->private_end[place] = (high + SHIM_PAGE - 1) & ~(SHIM_PAGE - 1);
  return 1;
}

static void find_libraries(void) {
  void *in_libc = dlsym(RTLD_NEXT, "gnu_get_libc_version");
  if (in_libc) dl_iterate_phdr(find_data, in_libc);
  dl_iterate_phdr(find_data, (void *)getauxval(AT_BASE));
}

/// The kernel gives this lock back when the calling thread ends or executes something: that is how the agent learns of it.
static void own_process(void) {
  pthread_mutexattr_t robust;
  pthread_mutexattr_init(&robust);
  pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(&shim->owner, &robust);
  pthread_mutexattr_destroy(&robust);
  pthread_mutex_lock(&shim->owner);
}

static void in_child(void) {
  shim_after_fork_in_child();
  *shim->mark = 1;
  uint32_t phase = vswap_load(&shim->phase);
  shim->process = (uint32_t)getpid();
  shim->adopting = shim->process == 1;
  if (phase != SHIM_ATTACHED && phase != SHIM_YOUNG && phase != SHIM_GROWING) return;
  // The agent, the ring and the staging area stayed behind with the parent.
  shim->ring = NULL;
  shim->published = 0;
  shim_keep_only_this_thread();
  own_process();
  shim->family_value = vswap_load(&shim->family->promote);
  uint32_t place = vswap_add(&shim->family->next, 1) - 1;
  shim->family->children[place % 64] = shim->process;
  // A filter that the program has set itself need not let through what an agent does. The parent's pager serves this child.
  vswap_store(&shim->phase, shim->filtered ? SHIM_FAILED : SHIM_YOUNG);
  if (!shim->filtered && !shim_start_agent()) vswap_store(&shim->phase, SHIM_FAILED);
}

/// A filter that was there before the program may trap a call that only this library makes. Then the call fails, here and in
/// the agent, which has this handler for good.
static void trapped(int signal, siginfo_t *information, void *context) {
  (void)signal;
  (void)information;
  ucontext_t *interrupted = context;
#if defined(__x86_64__)
  interrupted->uc_mcontext.gregs[REG_RAX] = -ENOSYS;
#else
  interrupted->uc_mcontext.regs[0] = (unsigned long long)-ENOSYS;
#endif
}

/// Until the agent has spoken with the daemon, or has ended: nobody else knows that one was made.
static void await_agent(void) {
  while (vswap_load(&shim->phase) == SHIM_STARTING) {
    shim_futex_wait(&shim->phase, SHIM_STARTING, 10);
    if (!shim_has_agent() && vswap_replace(&shim->phase, SHIM_STARTING, SHIM_FAILED))
      copy_text(shim->failure, sizeof(shim->failure), "the agent was ended: a system call filter does not let it work");
  }
}

static void attach(void) {
  struct sigaction catch = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO | SA_NODEFER}, before;
  sigaction(SIGSYS, &catch, &before);
  own_process();
  shim->adopting = shim->process == 1;
  int adopts = 0;
  if (prctl(PR_GET_CHILD_SUBREAPER, &adopts, 0, 0, 0) == 0 && adopts) shim->adopting = true;
  if (pthread_atfork(shim_before_fork, shim_after_fork, in_child) != 0 || !shim_start_agent()) {
    give_up("starting the agent failed");
  } else {
    await_agent();
    if (vswap_load(&shim->phase) == SHIM_FAILED) {
      give_up(shim->failure);
    } else {
      hand_on_group();
      if (shim->debug) say("attached");
    }
  }
  sigaction(SIGSYS, &before, NULL);
}

__attribute__((constructor)) static void enter(void) {
  int error = errno;
  shim_find_real();
  if (!map_private()) return;
  shim->process = (uint32_t)getpid();
  find_libraries();
  const char *wrong = read_environment();
  struct shim_thread *entry = shim_new_thread_entry();
  if (entry) shim_protect_thread(entry, MAIN_TLS);
  vswap_store(&shim->phase, SHIM_STARTING);
  if (wrong) {
    give_up(wrong);
  } else {
    attach();
  }
  errno = error;
}
