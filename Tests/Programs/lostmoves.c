// The program churn, on a kernel that moves pages without telling: of every third UFFDIO_MOVE that succeeds nothing is told, and of every third one
// page less. Linux 6.18 does that once in some 100 million pages, when an entry of the page table changes while it looks.
#include "churn.c"

#include <stdarg.h>
#include <sys/syscall.h>

#include "../../Sources/CUserfault/include/vs_userfault.h"

/// The preload library calls this one. It runs on a thread that must not touch memory which may be evicted: nothing static here.
int ioctl(int descriptor, unsigned long request, ...) {
  va_list arguments;
  va_start(arguments, request);
  struct uffdio_move *move = va_arg(arguments, struct uffdio_move *);
  va_end(arguments);
  long result = syscall(SYS_ioctl, descriptor, request, move);
  if (request != UFFDIO_MOVE || result != 0) return (int)result;
  uint64_t which = move->src / PAGE_BYTES % 3;
  if (which == 2) return 0;
  move->move = which == 0 || move->len == PAGE_BYTES ? -EEXIST : (int64_t)(move->len - PAGE_BYTES);
  errno = move->move < 0 ? EEXIST : EAGAIN;
  return -1;
}
