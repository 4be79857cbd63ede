// liburing for Swift: what of it are macros or inline functions with structures that Swift does not import. Status codes are -errno.
#ifndef VS_URING_H
#define VS_URING_H

#include <features.h>
#include <liburing.h>
#include <stdint.h>
#include <stdlib.h>

/// A ring with one registered buffer and a sparse table of registered files.
struct vs_uring {
  struct io_uring ring;
  uint32_t queued;  // entries that the kernel has not been told of
};

static inline int vs_uring_create(struct vs_uring **made, uint32_t entries, uint32_t files, void *buffer, uint64_t length) {
  struct vs_uring *ring = calloc(1, sizeof(*ring));
  if (!ring) return -ENOMEM;
  struct io_uring_params parameters = {.flags = IORING_SETUP_CLAMP};
  int status = io_uring_queue_init_params(entries, &ring->ring, &parameters);
  if (status < 0) {
    free(ring);
    return status;
  }
  struct iovec vector = {buffer, length};
  status = io_uring_register_buffers(&ring->ring, &vector, 1);
  if (status == 0) status = io_uring_register_files_sparse(&ring->ring, files);
  if (status < 0) {
    io_uring_queue_exit(&ring->ring);
    free(ring);
    return status;
  }
  *made = ring;
  return 0;
}

static inline void vs_uring_destroy(struct vs_uring *ring) {
  io_uring_queue_exit(&ring->ring);
  free(ring);
}

static inline int vs_uring_descriptor(const struct vs_uring *ring) { return ring->ring.ring_fd; }

/// -1 as `descriptor` empties the place.
static inline int vs_uring_set_file(struct vs_uring *ring, uint32_t place, int descriptor) {
  int status = io_uring_register_files_update(&ring->ring, place, &descriptor, 1);
  return status < 0 ? status : 0;
}

/// Returns whether there was an entry. `buffer` lies within the registered one.
static inline int vs_uring_queue(struct vs_uring *ring, int write, uint32_t file, void *buffer, uint32_t length, uint64_t offset,
                                 uint64_t token) {
  struct io_uring_sqe *entry = io_uring_get_sqe(&ring->ring);
  if (!entry) return 0;
  if (write) io_uring_prep_write_fixed(entry, (int)file, buffer, length, offset, 0);
  else io_uring_prep_read_fixed(entry, (int)file, buffer, length, offset, 0);
  entry->flags |= IOSQE_FIXED_FILE;
  io_uring_sqe_set_data64(entry, token);
  ring->queued++;
  return 1;
}

/// Tells the kernel about what is queued, and waits for `wanted` completions (0: none).
static inline int vs_uring_submit(struct vs_uring *ring, uint32_t wanted) {
  int status = io_uring_submit_and_wait(&ring->ring, wanted);
  if (status >= 0) ring->queued -= (uint32_t)status < ring->queued ? (uint32_t)status : ring->queued;
  return status;
}

static inline uint32_t vs_uring_queued(const struct vs_uring *ring) { return ring->queued; }

/// Returns whether there was a completion.
static inline int vs_uring_complete(struct vs_uring *ring, uint64_t *token, int32_t *result) {
  struct io_uring_cqe *entry;
  if (io_uring_peek_cqe(&ring->ring, &entry) != 0 || !entry) return 0;
  *token = io_uring_cqe_get_data64(entry);
  *result = entry->res;
  io_uring_cqe_seen(&ring->ring, entry);
  return 1;
}

#endif
