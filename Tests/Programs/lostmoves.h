// The preload library on a kernel that moves pages without telling: of every third UFFDIO_MOVE that succeeds nothing is told, and
// of every third one page less. Linux 6.18 does that once in some 100 million pages, when an entry of the page table changes while
// it looks. Included before anything else of the library (scripts/build), so that its calls of vs_uffd_move are these.
#ifndef __ASSEMBLER__
#include "raw.h"
#define vs_uffd_move honest_uffd_move
#include "vs_userfault.h"
#undef vs_uffd_move

static inline int64_t vs_uffd_move(int uffd, uint64_t destination, uint64_t source, uint64_t length) {
  int64_t moved = honest_uffd_move(uffd, destination, source, length);
  uint64_t which = source / 4096 % 3;
  if (moved != (int64_t)length || which == 2) return moved;
  return which == 0 || length == 4096 ? -EEXIST : (int64_t)(length - 4096);
}
#endif
