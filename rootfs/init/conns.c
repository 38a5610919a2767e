#include "conns.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "loop.h"
#include "requests.h"
#include "tasks.h"
#include "wire.h"

enum { IN_SMALLEST = 4 << 10, IN_KEPT = 128 << 10, ACCEPT_PAUSE = 100 };

static struct conn conns[CONNS_MAX];
static int listener = -1;
static bool serve_any_peer;
static int64_t accept_after; /* out of descriptors or memory: do not try again before */

int conns_setup(const char *path, bool any_peer) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    strcpy(address.sun_path, path);
    for (size_t i = 0; i < CONNS_MAX; i++)
        conns[i].fd = conns[i].out_fd = -1;
    serve_any_peer = any_peer;
    unlink(path);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    mode_t before = umask(0177);
    int result = listener < 0 ? -1 : bind(listener, (struct sockaddr *)&address, sizeof address);
    umask(before);
    return result < 0 ? -1 : listen(listener, 256);
}

bool conn_idle(const struct conn *c) { return c->fd >= 0 && !c->closing && c->out_length == 0; }

void conn_close(struct conn *c) {
    if (c->fd < 0)
        return;
    if (c->task)
        task_detached_from(c->task);
    close(c->fd);
    if (c->out_fd >= 0)
        close(c->out_fd);
    free(c->in);
    free(c->out);
    *c = (struct conn){.fd = -1, .out_fd = -1};
}

void conn_finish(struct conn *c) {
    if (c->fd < 0)
        return; /* sending the last frame closed it; a mark left here would be the slot's next connection's */
    c->closing = true;
    if (c->out_length == 0)
        conn_close(c);
}

/* Returns what the socket took, 0 if it is full, -1 if it is broken. */
static ssize_t transmit(struct conn *c, struct iovec *pieces, size_t count, int fd) {
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = count};
    if (fd >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof control.room;
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
    }
    ssize_t n = sendmsg(c->fd, &message, MSG_NOSIGNAL);
    return n >= 0 ? n : errno == EAGAIN || errno == EINTR ? 0 : -1;
}

/* Keep the part of the pieces after the first `sent` bytes behind what is kept already. */
static bool keep(struct conn *c, const struct iovec *pieces, size_t count, size_t sent) {
    size_t total = 0;
    for (size_t i = 0; i < count; i++)
        total += pieces[i].iov_len;
    if (total == sent)
        return true;
    uint8_t *out = realloc(c->out, c->out_length + total - sent);
    if (!out)
        return false;
    c->out = out;
    for (size_t i = 0; i < count; i++) {
        size_t skip = sent < pieces[i].iov_len ? sent : pieces[i].iov_len;
        memcpy(c->out + c->out_length, (uint8_t *)pieces[i].iov_base + skip, pieces[i].iov_len - skip);
        c->out_length += pieces[i].iov_len - skip;
        sent -= skip;
    }
    return true;
}

static void flush(struct conn *c) {
    while (c->out_at < c->out_length) {
        struct iovec rest = {c->out + c->out_at, c->out_length - c->out_at};
        ssize_t n = transmit(c, &rest, 1, c->out_fd);
        if (n < 0)
            return conn_close(c);
        if (n == 0)
            return;
        if (c->out_fd >= 0)
            close(c->out_fd);
        c->out_fd = -1;
        c->out_at += (size_t)n;
    }
    free(c->out);
    c->out = NULL;
    c->out_length = c->out_at = 0;
    if (c->closing)
        conn_close(c);
}

void conn_send(struct conn *c, uint16_t type, uint16_t tag, const struct iovec *pieces, int count) {
    uint8_t header[HEADER_SIZE];
    struct writer w = {header, header, header + sizeof header};
    struct iovec all[4] = {{header, sizeof header}};
    size_t payload = 0;
    for (int i = 0; i < count; i++) {
        all[i + 1] = pieces[i];
        payload += pieces[i].iov_len;
    }
    write_header(&w, (uint32_t)payload, type, tag);
    if (c->fd < 0)
        return;
    ssize_t n = c->out_length ? 0 : transmit(c, all, (size_t)count + 1, -1);
    if (n < 0 || !keep(c, all, (size_t)count + 1, (size_t)n))
        conn_close(c);
}

void conn_send_fd(struct conn *c, uint16_t tag, int fd) {
    /* Requests are served only while `out` is empty, so the descriptor leads its frame. */
    uint8_t header[HEADER_SIZE];
    struct writer w = {header, header, header + sizeof header};
    write_header(&w, 0, DESCRIPTOR, tag);
    struct iovec frame = {header, sizeof header};
    c->out_fd = fd;
    if (keep(c, &frame, 1, 0))
        flush(c);
    else
        conn_close(c);
}

/* Serve the complete frames at the head of `in`. Stops when an answer is stuck or the connection ends. */
static void serve(struct conn *c) {
    size_t done = 0;
    while (conn_idle(c) && c->in_length - done >= HEADER_SIZE) {
        struct reader head = {c->in + done, c->in + c->in_length, false};
        uint32_t payload = read_u32(&head);
        uint16_t type = read_u16(&head), tag = read_u16(&head);
        if (payload > (c->greeted ? FRAME_MAX : GREETING_MAX))
            return request_refuse(c, tag, "the frame is too long");
        if (c->in_length - done - HEADER_SIZE < payload)
            break;
        request_serve(c, type, tag, (struct reader){head.at, head.at + payload, false});
        done += HEADER_SIZE + payload;
    }
    if (c->fd < 0 || done == 0)
        return;
    memmove(c->in, c->in + done, c->in_length - done);
    c->in_length -= done;
}

/* Room for the frame that has begun, or for a small one. The length was checked by serve(). */
static bool make_room(struct conn *c) {
    size_t needed = IN_SMALLEST;
    if (c->in_length >= HEADER_SIZE) {
        struct reader head = {c->in, c->in + c->in_length, false};
        needed = HEADER_SIZE + (size_t)read_u32(&head);
    }
    bool oversized = c->in_size > IN_KEPT && c->in_length == 0;
    if (needed <= c->in_size && !oversized)
        return c->in_length < c->in_size;
    uint8_t *in = realloc(c->in, needed);
    if (!in)
        return false;
    c->in = in;
    c->in_size = needed;
    return true;
}

static void on_readable(struct conn *c) {
    serve(c); /* what was left when an answer got stuck */
    if (!conn_idle(c))
        return;
    if (!make_room(c))
        return conn_close(c);
    ssize_t n = recv(c->fd, c->in + c->in_length, c->in_size - c->in_length, 0);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        return conn_close(c);
    if (n > 0) {
        c->in_length += (size_t)n;
        serve(c);
    }
}

static void on_ready(void *subject) {
    struct conn *c = subject;
    if (c->fd >= 0 && c->out_length)
        flush(c);
    if (!conn_idle(c))
        return;
    if (c->task)
        task_push(c->task);
    if (conn_idle(c))
        on_readable(c);
}

/* A process inside could otherwise read the output of every task and run as root whatever its own user. */
static bool may_connect(int fd) {
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (serve_any_peer)
        return true;
    /* A pid that has no number here belongs to a process outside. */
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.pid == 0;
}

static struct conn *free_slot(void) {
    for (size_t i = 0; i < CONNS_MAX; i++)
        if (conns[i].fd < 0)
            return &conns[i];
    return NULL;
}

static void on_connection(void *subject) {
    (void)subject;
    struct conn *c;
    while ((c = free_slot())) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0) {
            if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
                accept_after = loop_now() + ACCEPT_PAUSE;
            return;
        }
        if (!may_connect(fd)) {
            close(fd);
            continue;
        }
        *c = (struct conn){.fd = fd, .out_fd = -1};
        on_readable(c); /* the greeting is mostly there already */
    }
}

void conns_watch(void) {
    if (free_slot() && (!accept_after || loop_deadline(&accept_after, ACCEPT_PAUSE))) {
        accept_after = 0;
        loop_watch(listener, POLLIN, on_connection, NULL);
    }
    for (size_t i = 0; i < CONNS_MAX; i++)
        if (conns[i].fd >= 0)
            loop_watch(conns[i].fd, conns[i].out_length ? POLLOUT : POLLIN, on_ready, &conns[i]);
}

void conns_quiesce(struct conn *last) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0;)
        close(fd);
    for (size_t i = 0; i < CONNS_MAX; i++)
        if (&conns[i] != last)
            conn_close(&conns[i]);
    conn_finish(last);
}
