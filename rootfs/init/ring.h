/* A byte stream's latest part, by absolute offset:
 *
 *     start ≤ taken ≤ end        start: oldest byte kept, taken: what was acknowledged, end: bytes ever written
 *
 * Memory grows with what nobody took yet, from 4 KiB to `max`; taken bytes stay readable until their room is needed. */
#ifndef RING_H
#define RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct ring {
    uint8_t *data;
    size_t size; /* a power of two, or 0 */
    size_t max;
    bool lossy; /* full: drop the oldest bytes instead of taking no more */
    uint64_t start, taken, end, lost;
};

/* How many bytes can be added now (growing if need be). */
size_t ring_room(const struct ring *r);
/* Read up to `limit` bytes from a descriptor: like read(2), ENOSPC if there is no room. */
ssize_t ring_read(struct ring *r, int fd, size_t limit);
/* Add bytes that fit in ring_room(); false if memory is short. */
bool ring_add(struct ring *r, const uint8_t *data, size_t length);
/* Up to `limit` bytes from offset `from` (start ≤ from ≤ end) as one or two pieces; returns their number. */
int ring_view(const struct ring *r, uint64_t from, size_t limit, struct iovec pieces[2]);
/* Acknowledge everything before an offset. */
void ring_take(struct ring *r, uint64_t upto);
void ring_free(struct ring *r);

#endif
