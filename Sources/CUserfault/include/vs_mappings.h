// PROCMAP_QUERY of /proc/PID/maps (Linux 6.11): one mapping of a process by its address, instead of the list of all.
#ifndef VS_MAPPINGS_H
#define VS_MAPPINGS_H

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>

// linux/fs.h of 6.11
struct vs_procmap_query {
  uint64_t size;
  uint64_t query_flags;
  uint64_t query_addr;
  uint64_t vma_start;
  uint64_t vma_end;
  uint64_t vma_flags;
  uint64_t vma_page_size;
  uint64_t vma_offset;
  uint64_t inode;
  uint32_t dev_major;
  uint32_t dev_minor;
  uint32_t vma_name_size;
  uint32_t build_id_size;
  uint64_t vma_name_addr;
  uint64_t build_id_addr;
};
#define VS_PROCMAP_QUERY _IOWR('f', 17, struct vs_procmap_query)
#define VS_QUERY_COVERING_OR_NEXT 0x10
_Static_assert(sizeof(struct vs_procmap_query) == 104, "struct procmap_query of linux/fs.h");

// "[anon:", 80 characters of the program's choice, "]".
#define VS_MAPPING_NAME 128

/// Bytes, half open.
struct vs_mapping {
  uint64_t start;
  uint64_t end;
  uint64_t inode;
  uint8_t readable;
  uint8_t writable;
  uint8_t shared;
  uint8_t is_heap;   // or has a name that the program gave it: plain memory all the same
  uint8_t is_stack;  // the main thread's, which grows down
  uint8_t is_named;
};

static inline int vs_query_mapping(int maps, struct vs_procmap_query *query) {
  return ioctl(maps, VS_PROCMAP_QUERY, query) == 0 ? 0 : -errno;
}

/// The mapping that holds `address`, or with `next` the first one after it. Returns 0, -ENOENT where there is none, -ESRCH when the
/// address space has gone, -ENOTTY where the kernel does not know the call, or another -errno.
static inline int vs_mapping_at(int maps, uint64_t address, int next, struct vs_mapping *mapping) {
  char name[VS_MAPPING_NAME];
  struct vs_procmap_query query = {
      .size = sizeof(query),
      .query_flags = next ? VS_QUERY_COVERING_OR_NEXT : 0,
      .query_addr = address,
      .vma_name_size = sizeof(name),
      .vma_name_addr = (uintptr_t)name,
  };
  name[0] = 0;
  int result = vs_query_mapping(maps, &query);
  if (result == -ENAMETOOLONG) {
    // A file's: the path is of no interest.
    query.vma_name_size = 0;
    query.vma_name_addr = 0;
    strcpy(name, "/");
    result = vs_query_mapping(maps, &query);
  }
  *mapping = (struct vs_mapping){
      .start = query.vma_start,
      .end = query.vma_end,
      .inode = query.inode,
      .readable = query.vma_flags & 1,
      .writable = query.vma_flags >> 1 & 1,
      .shared = query.vma_flags >> 3 & 1,
      .is_heap = strcmp(name, "[heap]") == 0 || strncmp(name, "[anon:", 6) == 0,
      .is_stack = strcmp(name, "[stack]") == 0,
      .is_named = name[0] != 0,
  };
  return result;
}

#endif
