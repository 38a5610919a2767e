#include "ring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    SMALLEST = 4 << 10,
    SMALL = 64 << 10,     /* up to here a ring may always grow */
    ALL_RINGS = 64 << 20, /* beyond this, large rings grow no more: back-pressure comes earlier, nothing else changes */
};

static size_t all_rings;

static bool may_grow(const struct ring *r) {
    return r->size < r->max && (r->size < SMALL || all_rings + r->size <= ALL_RINGS);
}

static size_t untaken(const struct ring *r) { return (size_t)(r->end - r->taken); }

size_t ring_room(const struct ring *r) {
    size_t most = may_grow(r) ? r->max : r->size;
    return r->lossy ? most : most - untaken(r);
}

static int pieces_at(const struct ring *r, uint64_t from, size_t length, struct iovec pieces[2]) {
    size_t at = (size_t)from & (r->size - 1);
    size_t first = r->size - at < length ? r->size - at : length;
    pieces[0] = (struct iovec){r->data + at, first};
    pieces[1] = (struct iovec){r->data, length - first};
    return length == 0 ? 0 : length > first ? 2 : 1;
}

static bool grow(struct ring *r) {
    struct ring bigger = *r;
    bigger.size = r->size ? r->size * 2 : SMALLEST;
    bigger.data = malloc(bigger.size);
    if (!bigger.data) {
        r->max = r->size; /* so that ring_room() promises no more */
        return false;
    }
    struct iovec old[2], new[2];
    uint64_t at = r->start;
    for (int i = 0, n = r->size ? ring_view(r, r->start, r->size, old) : 0; i < n; i++) {
        uint8_t *from = old[i].iov_base;
        int m = pieces_at(&bigger, at, old[i].iov_len, new);
        for (int j = 0; j < m; j++) {
            memcpy(new[j].iov_base, from, new[j].iov_len);
            from += new[j].iov_len;
        }
        at += old[i].iov_len;
    }
    all_rings += bigger.size - r->size;
    free(r->data);
    *r = bigger;
    return true;
}

/* Make room for `wanted` bytes after the untaken ones, or for as many as possible; returns how many. */
static size_t reserve(struct ring *r, size_t wanted) {
    while (r->size < untaken(r) + wanted && may_grow(r) && grow(r))
        ;
    size_t room = r->lossy ? r->size : r->size - untaken(r);
    return wanted < room ? wanted : room;
}

static void added(struct ring *r, size_t length) {
    r->end += length;
    if (r->end - r->start > r->size)
        r->start = r->end - r->size;
    if (r->taken < r->start) {
        r->lost += r->start - r->taken;
        r->taken = r->start;
    }
}

ssize_t ring_read(struct ring *r, int fd, size_t limit) {
    struct iovec pieces[2];
    size_t length = reserve(r, limit);
    if (length == 0) {
        errno = ENOSPC;
        return -1;
    }
    ssize_t n = readv(fd, pieces, pieces_at(r, r->end, length, pieces));
    if (n > 0)
        added(r, (size_t)n);
    return n;
}

bool ring_add(struct ring *r, const uint8_t *data, size_t length) {
    if (reserve(r, length) < length)
        return false;
    struct iovec pieces[2];
    int n = pieces_at(r, r->end, length, pieces);
    for (int i = 0; i < n; i++) {
        memcpy(pieces[i].iov_base, data, pieces[i].iov_len);
        data += pieces[i].iov_len;
    }
    added(r, length);
    return true;
}

int ring_view(const struct ring *r, uint64_t from, size_t limit, struct iovec pieces[2]) {
    size_t length = r->end - from < limit ? (size_t)(r->end - from) : limit;
    return length ? pieces_at(r, from, length, pieces) : 0;
}

void ring_take(struct ring *r, uint64_t upto) {
    if (upto > r->taken)
        r->taken = upto < r->end ? upto : r->end;
}

void ring_free(struct ring *r) {
    free(r->data);
    all_rings -= r->size;
    r->data = NULL;
    r->size = r->max = 0;
}
