/* Connections from the service: frames in, frames out, one descriptor on the way. */
#ifndef CONNS_H
#define CONNS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum { CONNS_MAX = 320 };

struct task;

struct conn {
    int fd; /* -1: a free slot */
    bool greeted;
    bool closing;      /* as soon as everything is sent */
    struct task *task; /* what it is attached to */
    uint8_t *in;
    size_t in_length, in_size;
    uint8_t *out; /* what the socket did not take yet */
    size_t out_length, out_at;
    int out_fd; /* goes with the first byte of `out`, or -1 */
};

/* Listen at `path`; returns -1 and errno. Unless `any_peer`, only peers outside our pid namespace are served. */
int conns_setup(const char *path, bool any_peer);
void conns_watch(void);
/* Nothing waits to be sent: only then are requests read and output is handed on, which bounds `out`. */
bool conn_idle(const struct conn *c);
/* Send a frame whose payload is given in up to three pieces. */
void conn_send(struct conn *c, uint16_t type, uint16_t tag, const struct iovec *pieces, int count);
void conn_send_fd(struct conn *c, uint16_t tag, int fd);
void conn_close(struct conn *c);
/* Close once everything is sent. */
void conn_finish(struct conn *c);
/* Close every connection, also those not accepted yet; `last` after what it has to send. */
void conns_quiesce(struct conn *last);

#endif
