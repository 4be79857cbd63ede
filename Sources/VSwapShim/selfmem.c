// /proc/self/mem: how a just-in-time compiler writes to memory that it has mapped without the right to write.
//
// The kernel reaches the page without waiting for anybody, so one that is out, or was never touched in a registered
// mapping, is EIO. Such a call is made again after the pages were asked for in a way that waits (process_vm_readv). Nothing is
// done before a call fails.
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include "shim.h"

#define EXPORTED __attribute__((visibility("default")))
/// A page can leave again between the two calls.
#define ATTEMPTS 100

static ssize_t (*real_pread)(int, void *, size_t, off_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_read)(int, void *, size_t);
static ssize_t (*real_write)(int, const void *, size_t);

void shim_find_self_memory(void) {
  shim_find_next("pread64", &real_pread);
  shim_find_next("pwrite64", &real_pwrite);
  shim_find_next("read", &real_read);
  shim_find_next("write", &real_write);
}

/// Appends a number. A signal handler may read and write, so nothing of libc's that takes a lock or memory.
static void put_number(char *text, size_t *length, uint32_t number) {
  char digits[10];
  size_t count = 0;
  do digits[count++] = (char)('0' + number % 10);
  while ((number /= 10) > 0);
  while (count > 0) text[(*length)++] = digits[--count];
}

/// Whether the descriptor is this process's own memory: "/proc/PID/mem".
static bool is_own_memory(int descriptor) {
  char path[32] = "/proc/self/fd/", own[32] = "/proc/", name[32];
  size_t length = 14;
  put_number(path, &length, (uint32_t)descriptor);
  path[length] = 0;
  long size = raw(SYS_readlinkat, AT_FDCWD, path, name, sizeof(name));
  length = 6;
  put_number(own, &length, shim->process);
  for (const char *end = "/mem"; *end; end++) own[length++] = *end;
  if (size != (long)length) return false;
  for (size_t index = 0; index < length; index++)
    if (own[index] != name[index]) return false;
  return true;
}

/// Whether a call that failed may go well now. The pages of [address, address + length) were asked for.
static bool fetch(ssize_t result, int descriptor, uint64_t address, size_t length) {
  int error = errno;
  if (result >= 0 || error != EIO || !shim_is_ours() || !is_own_memory(descriptor)) return false;
  bool any = false;
  uint64_t last = (address + (length > 0 ? length - 1 : 0)) & ~(SHIM_PAGE - 1);
  for (uint64_t page = address & ~(SHIM_PAGE - 1); page <= last; page += SHIM_PAGE) {
    uint8_t byte;
    struct iovec to = {&byte, 1}, from = {(void *)page, 1};
    if (raw(SYS_process_vm_readv, shim->process, &to, 1, &from, 1, 0) != 1) break;
    any = true;
  }
  errno = error;
  return any;
}

/// Where a call without a place of its own would begin.
static uint64_t place_of(int descriptor) { return (uint64_t)raw(SYS_lseek, descriptor, 0, SEEK_CUR); }

EXPORTED ssize_t pread64(int descriptor, void *buffer, size_t length, off_t place) {
  if (!real_pread) shim_find_self_memory();
  ssize_t result = real_pread(descriptor, buffer, length, place);
  for (int tries = 0; tries < ATTEMPTS && fetch(result, descriptor, (uint64_t)place, length); tries++)
    result = real_pread(descriptor, buffer, length, place);
  return result;
}

EXPORTED ssize_t pwrite64(int descriptor, const void *buffer, size_t length, off_t place) {
  if (!real_pwrite) shim_find_self_memory();
  ssize_t result = real_pwrite(descriptor, buffer, length, place);
  for (int tries = 0; tries < ATTEMPTS && fetch(result, descriptor, (uint64_t)place, length); tries++)
    result = real_pwrite(descriptor, buffer, length, place);
  return result;
}

EXPORTED ssize_t pread(int descriptor, void *buffer, size_t length, off_t place) {
  return pread64(descriptor, buffer, length, place);
}

EXPORTED ssize_t pwrite(int descriptor, const void *buffer, size_t length, off_t place) {
  return pwrite64(descriptor, buffer, length, place);
}

EXPORTED ssize_t read(int descriptor, void *buffer, size_t length) {
  if (!real_read) shim_find_self_memory();
  ssize_t result = real_read(descriptor, buffer, length);
  for (int tries = 0; tries < ATTEMPTS && fetch(result, descriptor, place_of(descriptor), length); tries++)
    result = real_read(descriptor, buffer, length);
  return result;
}

EXPORTED ssize_t write(int descriptor, const void *buffer, size_t length) {
  if (!real_write) shim_find_self_memory();
  ssize_t result = real_write(descriptor, buffer, length);
  for (int tries = 0; tries < ATTEMPTS && fetch(result, descriptor, place_of(descriptor), length); tries++)
    result = real_write(descriptor, buffer, length);
  return result;
}
