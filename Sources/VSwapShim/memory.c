// What the compiler calls by itself to copy and clear structures: the library's own, so that the agent gets neither into
// libc, nor into what a program has put in libc's place (sanitizers do).
#include <stddef.h>
#include <stdint.h>

__attribute__((optimize("no-tree-loop-distribute-patterns"))) void *memcpy(void *restrict to, const void *restrict from,
                                                                           size_t length) {
  uint8_t *out = to;
  const uint8_t *in = from;
  while (length-- > 0) *out++ = *in++;
  return to;
}

__attribute__((optimize("no-tree-loop-distribute-patterns"))) void *memset(void *to, int value, size_t length) {
  uint8_t *out = to;
  while (length-- > 0) *out++ = (uint8_t)value;
  return to;
}
