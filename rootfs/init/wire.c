#include "wire.h"

#include <stdlib.h>
#include <string.h>

/* Little endian, byte by byte: no alignment, no host order. */
static uint64_t read_number(struct reader *r, size_t size) {
    if (r->bad || (size_t)(r->end - r->at) < size) {
        r->bad = true;
        return 0;
    }
    uint64_t value = 0;
    for (size_t i = 0; i < size; i++)
        value |= (uint64_t)r->at[i] << (8 * i);
    r->at += size;
    return value;
}

uint8_t read_u8(struct reader *r) { return (uint8_t)read_number(r, 1); }
uint16_t read_u16(struct reader *r) { return (uint16_t)read_number(r, 2); }
uint32_t read_u32(struct reader *r) { return (uint32_t)read_number(r, 4); }
uint64_t read_u64(struct reader *r) { return read_number(r, 8); }

const char *read_str(struct reader *r) {
    const uint8_t *nul = r->bad ? NULL : memchr(r->at, 0, (size_t)(r->end - r->at));
    if (!nul) {
        r->bad = true;
        return "";
    }
    const char *string = (const char *)r->at;
    r->at = nul + 1;
    return string;
}

char **read_list(struct reader *r, size_t spare) {
    uint32_t count = read_u32(r);
    /* Each string takes a byte at least, so a lie about the count can't make us reserve more than the frame is worth. */
    if (r->bad || count > (size_t)(r->end - r->at)) {
        r->bad = true;
        return NULL;
    }
    char **list = calloc(count + spare + 1, sizeof *list);
    if (!list) {
        r->bad = true;
        return NULL;
    }
    for (uint32_t i = 0; i < count; i++)
        list[i] = (char *)read_str(r);
    if (r->bad) {
        free(list);
        return NULL;
    }
    return list;
}

size_t read_rest(struct reader *r, const uint8_t **data) {
    if (r->bad)
        return 0;
    *data = r->at;
    r->at = r->end;
    return (size_t)(r->end - *data);
}

bool read_complete(const struct reader *r) { return !r->bad && r->at == r->end; }

static void write_number(struct writer *w, uint64_t value, size_t size) {
    if ((size_t)(w->end - w->at) < size)
        abort(); /* a frame of ours that does not fit is a mistake in this program */
    for (size_t i = 0; i < size; i++)
        *w->at++ = (uint8_t)(value >> (8 * i));
}

void write_u8(struct writer *w, uint8_t value) { write_number(w, value, 1); }
void write_u16(struct writer *w, uint16_t value) { write_number(w, value, 2); }
void write_u32(struct writer *w, uint32_t value) { write_number(w, value, 4); }
void write_u64(struct writer *w, uint64_t value) { write_number(w, value, 8); }

void write_bytes(struct writer *w, const void *data, size_t length) {
    if ((size_t)(w->end - w->at) < length)
        abort();
    if (length)
        memcpy(w->at, data, length);
    w->at += length;
}

void write_header(struct writer *w, uint32_t payload, uint16_t type, uint16_t tag) {
    write_u32(w, payload);
    write_u16(w, type);
    write_u16(w, tag);
}
