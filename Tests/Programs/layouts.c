// Address spaces of unusual shape, filled and verified.
//   layouts many COUNT      so many mappings of two pages, each above a page without access
//   layouts sparse TIB      a reservation with a page in use per GiB, and 64 MiB of ordinary memory, used three times
//   layouts populate MIB    MAP_POPULATE, then MADV_POPULATE_WRITE
//   layouts stacks MIB      memory without huge pages right above a guard page, as large as given
#define _GNU_SOURCE
#include <sys/mman.h>

#include "common.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#define PAGE 4096ul

static uint8_t *map(size_t length, int protection, int flags) {
  void *made = mmap(NULL, length, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
  if (made == MAP_FAILED) die("mmap");
  return made;
}

static uint64_t value_of(uint64_t place) { return place * 0x9e3779b97f4a7c15ull + 1; }

static void fill(uint8_t *page, uint64_t place) {
  for (size_t word = 0; word < PAGE / 8; word += 8) ((uint64_t *)page)[word] = value_of(place + word);
}

static void verify(const uint8_t *page, uint64_t place) {
  for (size_t word = 0; word < PAGE / 8; word += 8) {
    if (((const uint64_t *)page)[word] == value_of(place + word)) continue;
    fprintf(stderr, "layouts: word %zu of page %llu is wrong\n", word, (unsigned long long)place);
    exit(1);
  }
}

static void many(size_t count) {
  uint8_t **made = (uint8_t **)map(count * sizeof(*made), PROT_READ | PROT_WRITE, 0);
  for (size_t index = 0; index < count; index++) {
    made[index] = map(3 * PAGE, PROT_NONE, 0);
    if (mprotect(made[index] + PAGE, 2 * PAGE, PROT_READ | PROT_WRITE) != 0) die("mprotect");
    for (size_t page = 0; page < 2; page++) fill(made[index] + (1 + page) * PAGE, 2 * index + page);
  }
  for (size_t index = 0; index < count; index++)
    for (size_t page = 0; page < 2; page++) verify(made[index] + (1 + page) * PAGE, 2 * index + page);
}

static void sparse(size_t tebibytes) {
  size_t pages = tebibytes << 10, ordinary = (64ul << 20) / PAGE;
  uint8_t *wide = map(tebibytes << 40, PROT_READ | PROT_WRITE, 0);
  for (size_t page = 0; page < pages; page++) fill(wide + (page << 30), page);
  uint8_t *memory = map(ordinary * PAGE, PROT_READ | PROT_WRITE, 0);
  for (size_t round = 0; round < 3; round++)
    for (size_t page = 0; page < ordinary; page++) fill(memory + page * PAGE, round + page);
  for (size_t page = 0; page < pages; page++) verify(wide + (page << 30), page);
  for (size_t page = 0; page < ordinary; page++) verify(memory + page * PAGE, 2 + page);
}

static void use(uint8_t *memory, size_t length) {
  for (size_t page = 0; page < length / PAGE; page++) fill(memory + page * PAGE, page);
  for (size_t page = 0; page < length / PAGE; page++) verify(memory + page * PAGE, page);
  munmap(memory, length);
}

static void populate(size_t length) {
  use(map(length, PROT_READ | PROT_WRITE, MAP_POPULATE), length);
  uint8_t *memory = map(length, PROT_READ | PROT_WRITE, 0);
  if (madvise(memory, length, MADV_POPULATE_WRITE) != 0) die("MADV_POPULATE_WRITE");
  use(memory, length);
}

static void stacks(size_t length) {
  uint8_t *memory = map(length + PAGE, PROT_NONE, 0) + PAGE;
  if (mprotect(memory, length, PROT_READ | PROT_WRITE) != 0) die("mprotect");
  if (madvise(memory, length, MADV_NOHUGEPAGE) != 0) die("MADV_NOHUGEPAGE");
  use(memory, length);
}

int main(int count, char **arguments) {
  size_t size = count == 3 ? strtoul(arguments[2], NULL, 10) : 0;
  if (size > 0 && strcmp(arguments[1], "many") == 0) many(size);
  else if (size > 0 && strcmp(arguments[1], "sparse") == 0) sparse(size);
  else if (size > 0 && strcmp(arguments[1], "populate") == 0) populate(size << 20);
  else if (size > 0 && strcmp(arguments[1], "stacks") == 0) stacks(size << 20);
  else return 2;
  puts("layouts: right");
  return 0;
}
