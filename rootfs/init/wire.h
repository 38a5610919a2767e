/* Frames on the wire: their numbers, and reading and writing their fields. PROTOCOL.md describes them. */
#ifndef WIRE_H
#define WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    PROTOCOL_OLDEST = 1,
    PROTOCOL_NEWEST = 1,
    PROTOCOL_MAGIC = 0x41544e52, /* "RNTA" */
    HEADER_SIZE = 8,
    FRAME_MAX = 2 << 20, /* the kernel takes no longer argument list either */
    GREETING_MAX = 64,   /* until HELLO was understood */
    CHUNK = 64 << 10,    /* payload of one OUTPUT or STDIN frame */
};

enum request {
    HELLO = 1,
    START,
    ATTACH,
    STDIN,
    STDIN_EOF,
    ACK,
    RESIZE,
    SIGNAL,
    LIST,
    RELEASE,
    OPEN,
    MKDIRS,
    STOP,
    QUIESCE,
    REQUESTS,
};

enum answer {
    WELCOME = 0x81,
    OK,
    ERROR,
    TASK,
    OUTPUT,
    EXIT,
    WINDOW,
    DETACHED,
    DESCRIPTOR,
};

enum error_kind {
    BAD_FRAME = 1,
    NO_SUCH_TASK,
    BAD_USER,
    TOO_MANY,
    SYSTEM,
    BAD_OFFSET,
    STILL_RUNNING,
};

enum start_flags { START_TTY = 1, START_STDIN = 2, START_DETACHED = 4 };

enum task_flags { TASK_TTY = 1, TASK_DETACHED = 2, TASK_ATTACHED = 4, TASK_EXITED = 8, TASK_DONE = 16, TASK_STDIN_CLOSED = 32 };

#define OFFSET_OLDEST UINT64_MAX /* in ATTACH: from the oldest retained byte */

/* Fields of a received payload. One that is missing or malformed makes the reader bad; the caller asks once, at the end. */
struct reader {
    const uint8_t *at, *end;
    bool bad;
};

uint8_t read_u8(struct reader *r);
uint16_t read_u16(struct reader *r);
uint32_t read_u32(struct reader *r);
uint64_t read_u64(struct reader *r);
const char *read_str(struct reader *r);
/* A counted list of strings as a NULL-terminated vector with room for `spare` more; NULL (and bad) if malformed. */
char **read_list(struct reader *r, size_t spare);
/* Everything that is left. */
size_t read_rest(struct reader *r, const uint8_t **data);
bool read_complete(const struct reader *r);

/* A payload to send, in a buffer of the caller's that is large enough for the frame by construction. */
struct writer {
    uint8_t *start, *at, *end;
};

void write_u8(struct writer *w, uint8_t value);
void write_u16(struct writer *w, uint16_t value);
void write_u32(struct writer *w, uint32_t value);
void write_u64(struct writer *w, uint64_t value);
void write_bytes(struct writer *w, const void *data, size_t length);
void write_header(struct writer *w, uint32_t payload, uint16_t type, uint16_t tag);

#endif
