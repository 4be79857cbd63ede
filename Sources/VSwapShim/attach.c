// The handshake, by the agent: its descriptor table is its own, so the program neither sees nor closes nor inherits any
// descriptor of the library, and the library keeps none of the program's open.
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include "vs_userfault.h"

#define HANDSHAKE_SECONDS 20

static bool fail(const char *what) {
  // It may come from a peer that is no daemon: one line of text whatever it is.
  size_t length = 0;
  for (; what[length] && length < sizeof(shim->failure) - 1; length++)
    shim->failure[length] = what[length] >= ' ' && what[length] <= '~' ? what[length] : '?';
  shim->failure[length] = 0;
  return false;
}

/// Whether a call on the socket is to be made again: a signal interrupted it. Being stopped and continued does that too, and work that
/// io_uring completes for this thread, whether there are handlers or not: a socket that gives up after some time does not start again by itself.
static bool interrupted(long result) { return result == -EINTR; }

static bool connect_to(const char *path) {
  if (!path[0]) return false;
  long fd = raw(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (fd < 0) return false;
  struct timeval time = {HANDSHAKE_SECONDS, 0};
  struct sockaddr_un name = {.sun_family = AF_UNIX};
  memcpy(name.sun_path, path, sizeof(name.sun_path) - 1);
  long result = raw(SYS_setsockopt, fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof(time));
  // connect(2) to a daemon that does not accept waits as long as a send does.
  if (result == 0) result = raw(SYS_setsockopt, fd, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof(time));
  if (result == 0) {
    do result = raw(SYS_connect, fd, &name, sizeof(name));
    while (interrupted(result));
  }
  if (result != 0) {
    raw(SYS_close, fd);
    return false;
  }
  shim->socket = (int)fd;
  return true;
}

static bool send_message(const void *data, size_t length, int descriptor) {
  struct iovec vector = {(void *)data, length};
  union {
    char buffer[CMSG_SPACE(sizeof(int))];
    struct cmsghdr align;
  } control = {{0}};
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
  if (descriptor >= 0) {
    message.msg_control = control.buffer;
    message.msg_controllen = sizeof(control.buffer);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &descriptor, sizeof(int));
  }
  long sent;
  do sent = raw(SYS_sendmsg, shim->socket, &message, MSG_NOSIGNAL);
  while (interrupted(sent));
  return sent == (long)length;
}

/// Receives a welcome and exactly `count` descriptors.
static bool receive_welcome(struct vswap_welcome *welcome, int *descriptors, size_t count) {
  struct iovec vector = {welcome, sizeof(*welcome)};
  union {
    char buffer[CMSG_SPACE(sizeof(int) * VSWAP_WELCOME_DESCRIPTORS)];
    struct cmsghdr align;
  } control;
  struct msghdr message = {.msg_iov = &vector,
                           .msg_iovlen = 1,
                           .msg_control = control.buffer,
                           .msg_controllen = sizeof(control.buffer)};
  long length;
  do length = raw(SYS_recvmsg, shim->socket, &message, MSG_CMSG_CLOEXEC);
  while (interrupted(length));
  if (length != (long)sizeof(*welcome) || welcome->magic != VSWAP_MAGIC)
    return fail("the daemon closed the connection or speaks another version");
  welcome->text[VSWAP_TEXT_MAX - 1] = 0;
  if (welcome->status != VSWAP_OK) return fail(welcome->text);
  if (count == 0) return true;
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  if (!header || header->cmsg_type != SCM_RIGHTS || header->cmsg_len != CMSG_LEN(sizeof(int) * count))
    return fail("the daemon passed the wrong descriptors");
  memcpy(descriptors, CMSG_DATA(header), sizeof(int) * count);
  return true;
}

/// mmap(2). NULL: it failed.
static void *map(void *place, size_t length, int flags, int descriptor) {
  long result = raw(SYS_mmap, place, length, PROT_READ | PROT_WRITE, flags, descriptor, 0);
  return result < 0 && result > -4096 ? NULL : (void *)result;
}

static bool map_shared(int ring, int family) {
  shim->ring = map(NULL, sizeof(struct vswap_ring), MAP_SHARED, ring);
  if (!shim->ring) return fail("mapping the ring failed");
  raw(SYS_madvise, shim->ring, sizeof(struct vswap_ring), MADV_DONTFORK);
  shim_make_bells();
  // In a child the parent's page is there, and the program's threads look at it while they wait for us (shim_grow_up), or fork: the new one
  // takes its place in one step.
  struct vswap_family *page = map(shim->family, SHIM_PAGE, shim->family ? MAP_SHARED | MAP_FIXED : MAP_SHARED, family);
  if (!page) return fail("mapping the family page failed");
  shim->family = page;
  raw(SYS_close, ring);
  raw(SYS_close, family);
  return true;
}

/// The context of the outbox. It has no events; agent.c registers the outbox while it uses it.
static bool make_staging_context(int device) {
  uint64_t features;
  shim->staging_uffd = vs_uffd_new(device);
  if (shim->staging_uffd < 0) return fail("the kernel gave no userfaultfd");
  return vs_uffd_api(shim->staging_uffd, 0, &features) == 0 || fail("the kernel gave no userfaultfd for the outbox");
}

bool shim_attach(enum vswap_kind kind, uint64_t token) {
  if (!connect_to(shim->path) && !connect_to(shim->fallback_path)) return fail("no daemon answers");
  struct vswap_hello hello = {.magic = VSWAP_MAGIC,
                              .version = VSWAP_VERSION,
                              .kind = kind,
                              .agent = vswap_load(&shim->agent),
                              .token = kind == VSWAP_CHILD ? token : shim->pass,
                              .limit_bytes = shim->limit};
  memcpy(hello.group, shim->group, sizeof(hello.group));
  memcpy(hello.name, shim->name, sizeof(hello.name));
  struct vswap_welcome welcome;
  int descriptors[VSWAP_WELCOME_DESCRIPTORS];
  if (!send_message(&hello, sizeof(hello), shim->pidfd)) return fail("the daemon closed the connection");
  if (!receive_welcome(&welcome, descriptors, VSWAP_WELCOME_DESCRIPTORS)) return false;
  if (shim_map_staging() != 0) return fail("mapping the staging area failed");
  if (!map_shared(descriptors[0], descriptors[1])) return false;
  shim->doorbell = descriptors[2];
  // The last descriptor is the device. A child gets its inherited context too, in a message of its own.
  int device = descriptors[3];
  if (!make_staging_context(device)) return false;
  if (kind == VSWAP_NEW) {
    shim->uffd = vs_uffd_new(device);
    if (shim->uffd < 0) return fail("the kernel gave no userfaultfd");
  } else if (!receive_welcome(&welcome, &shim->uffd, 1)) {
    return false;
  }
  raw(SYS_close, device);
  struct vswap_attach attach = {.magic = VSWAP_MAGIC,
                                .identity_address = (uintptr_t)shim->identity,
                                .staging_address = (uintptr_t)shim->staging};
  memcpy(attach.private_start, shim->private_start, sizeof(attach.private_start));
  memcpy(attach.private_end, shim->private_end, sizeof(attach.private_end));
  if (!send_message(&attach, sizeof(attach), kind == VSWAP_NEW ? shim->uffd : -1))
    return fail("the daemon closed the connection");
  if (!receive_welcome(&welcome, NULL, 0)) return false;
  if (kind == VSWAP_CHILD) return true;  // of its parent's group
  memcpy(shim->group, welcome.text, sizeof(shim->group));
  shim->group[sizeof(shim->group) - 1] = 0;
  shim->pass = welcome.token;
  return true;
}
