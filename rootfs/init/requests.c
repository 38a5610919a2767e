#include "requests.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "files.h"
#include "pty.h"
#include "stop.h"
#include "tasks.h"

static void answer(struct conn *c, uint16_t type, uint16_t tag, const struct writer *w) {
    struct iovec payload = {w->start, (size_t)(w->at - w->start)};
    conn_send(c, type, tag, &payload, 1);
}

static void refuse(struct conn *c, uint16_t tag, enum error_kind kind, int error, const char *text) {
    uint8_t frame[512];
    struct writer w = {frame, frame, frame + sizeof frame};
    size_t length = strnlen(text, 400);
    write_u16(&w, (uint16_t)kind);
    write_u32(&w, (uint32_t)error);
    write_bytes(&w, text, length);
    write_u8(&w, 0);
    answer(c, ERROR, tag, &w);
}

void request_refuse(struct conn *c, uint16_t tag, const char *why) {
    refuse(c, tag, BAD_FRAME, EPROTO, why);
    conn_finish(c);
}

/* For what returns -1 and errno. */
static void done(struct conn *c, uint16_t tag, int result) {
    if (result < 0)
        refuse(c, tag, SYSTEM, errno, strerror(errno));
    else
        conn_send(c, OK, tag, NULL, 0);
}

static void send_task(struct conn *c, uint16_t tag, const struct task *t) {
    static uint8_t frame[ARGV_KEPT + 256];
    struct writer w = {frame, frame, frame + sizeof frame};
    write_u32(&w, t->id);
    write_u32(&w, (uint32_t)t->pid);
    write_u32(&w, (t->pty >= 0 ? TASK_TTY : 0) | (t->detached ? TASK_DETACHED : 0) | (t->conn ? TASK_ATTACHED : 0) |
                      (t->exited ? TASK_EXITED : 0) | (task_done(t) ? TASK_DONE : 0) |
                      (task_stdin_closed(t) || t->in_eof ? TASK_STDIN_CLOSED : 0));
    write_u32(&w, (uint32_t)t->code);
    for (int i = 0; i < 2; i++) {
        const struct output *o = &t->out[i];
        write_u64(&w, o->ring.start);
        write_u64(&w, o->sent);
        write_u64(&w, o->ring.end);
        write_u64(&w, o->ring.lost);
    }
    write_u64(&w, t->input.end);
    write_u64(&w, task_input_limit(t));
    write_u32(&w, t->argc);
    write_bytes(&w, t->argv, t->argv_size);
    answer(c, TASK, tag, &w);
}

/* Each handler reads its payload, then asks whether it was well-formed, then acts. False: it was not. */
typedef bool handler(struct conn *c, uint16_t tag, struct reader *r);

static bool hello(struct conn *c, uint16_t tag, struct reader *r) {
    uint32_t magic = read_u32(r);
    uint16_t version = read_u16(r);
    if (r->bad || magic != PROTOCOL_MAGIC || c->greeted)
        return false;
    uint8_t frame[8];
    struct writer w = {frame, frame, frame + sizeof frame};
    write_u32(&w, PROTOCOL_MAGIC);
    write_u16(&w, PROTOCOL_OLDEST);
    write_u16(&w, PROTOCOL_NEWEST);
    c->greeted = true; /* first: sending may find the connection broken and free it */
    answer(c, WELCOME, tag, &w);
    if (version < PROTOCOL_OLDEST || version > PROTOCOL_NEWEST)
        conn_finish(c); /* it may come again and speak ours */
    return true;
}

static void start_task(struct conn *c, uint16_t tag, const struct start *s) {
    static const uint64_t from_the_beginning[2] = {OFFSET_OLDEST, OFFSET_OLDEST};
    int kind = SYSTEM;
    char why[256] = "";
    errno = ESHUTDOWN;
    struct task *t = stop_begun() ? NULL : task_start(s, &kind, why, sizeof why);
    if (!t) {
        int error = errno;
        const char *text = kind == BAD_USER ? why : kind == TOO_MANY ? "too many tasks" : strerror(error);
        refuse(c, tag, (enum error_kind)kind, error, text);
        return;
    }
    task_attach(t, c, from_the_beginning);
    send_task(c, tag, t);
}

static bool start(struct conn *c, uint16_t tag, struct reader *r) {
    uint32_t flags = read_u32(r);
    struct start s = {.tty = flags & START_TTY, .input = flags & START_STDIN, .detached = flags & START_DETACHED};
    s.rows = read_u16(r);
    s.cols = read_u16(r);
    s.user = read_str(r);
    s.cwd = read_str(r);
    s.argv = read_list(r, 0);
    s.env = read_list(r, 2);
    bool good = read_complete(r) && s.argv && s.argv[0] && s.env && !c->task;
    if (good)
        start_task(c, tag, &s);
    free(s.argv);
    free(s.env);
    return good;
}

/* The task a request names first; answers NO_SUCH_TASK by itself. */
static struct task *named_task(struct conn *c, uint16_t tag, uint32_t id) {
    struct task *t = task_find(id);
    if (!t)
        refuse(c, tag, NO_SUCH_TASK, ESRCH, "there is no such task");
    return t;
}

static bool attach(struct conn *c, uint16_t tag, struct reader *r) {
    uint32_t id = read_u32(r);
    uint64_t offsets[2];
    offsets[0] = read_u64(r);
    offsets[1] = read_u64(r);
    if (!read_complete(r) || c->task)
        return false;
    struct task *t = named_task(c, tag, id);
    if (!t)
        return true;
    if (!task_attach(t, c, offsets)) {
        refuse(c, tag, BAD_OFFSET, ERANGE, "the offset lies beyond what the task has written");
        return true;
    }
    send_task(c, tag, t);
    if (c->fd >= 0)
        task_push(t);
    return true;
}

/* Frames about the attached task, without an answer. A task that was taken over meanwhile is no mistake of theirs. */
static bool input(struct conn *c, uint16_t tag, struct reader *r) {
    (void)tag;
    const uint8_t *data = NULL;
    uint64_t offset = read_u64(r);
    size_t length = read_rest(r, &data);
    return !r->bad && length <= CHUNK && c->task && task_input(c->task, offset, data, length);
}

static bool input_eof(struct conn *c, uint16_t tag, struct reader *r) {
    (void)tag;
    uint64_t offset = read_u64(r);
    return read_complete(r) && c->task && task_input_eof(c->task, offset);
}

static bool ack(struct conn *c, uint16_t tag, struct reader *r) {
    (void)tag;
    uint8_t stream = read_u8(r);
    uint64_t offset = read_u64(r);
    return read_complete(r) && c->task && task_acked(c->task, stream, offset);
}

static bool resize(struct conn *c, uint16_t tag, struct reader *r) {
    uint32_t id = read_u32(r);
    uint16_t rows = read_u16(r), cols = read_u16(r);
    if (!read_complete(r))
        return false;
    struct task *t = named_task(c, tag, id);
    if (t) /* without a terminal, or after its end, there is nothing to resize */
        done(c, tag, t->pty < 0 || t->exited ? 0 : pty_resize(t->pty, rows, cols));
    return true;
}

static bool signal_task(struct conn *c, uint16_t tag, struct reader *r) {
    uint32_t id = read_u32(r), number = read_u32(r);
    if (!read_complete(r))
        return false;
    struct task *t = named_task(c, tag, id);
    if (t)
        done(c, tag, task_signal(t, number <= 64 ? (int)number : -1));
    return true;
}

static bool list(struct conn *c, uint16_t tag, struct reader *r) {
    if (!read_complete(r))
        return false;
    for (struct task *t = NULL; (t = task_next(t));)
        send_task(c, tag, t);
    conn_send(c, OK, tag, NULL, 0);
    return true;
}

static bool release(struct conn *c, uint16_t tag, struct reader *r) {
    uint32_t id = read_u32(r);
    if (!read_complete(r))
        return false;
    struct task *t = named_task(c, tag, id);
    if (t && !t->exited) {
        refuse(c, tag, STILL_RUNNING, EBUSY, "the task is still running");
    } else if (t) {
        conn_send(c, OK, tag, NULL, 0); /* first: the task's connection may be this one */
        task_release(t);
    }
    return true;
}

static bool open_file(struct conn *c, uint16_t tag, struct reader *r) {
    int flags = (int)read_u32(r);
    mode_t mode = read_u32(r);
    const char *path = read_str(r);
    if (!read_complete(r))
        return false;
    int fd = file_open(path, flags, mode);
    if (fd < 0)
        done(c, tag, fd);
    else
        conn_send_fd(c, tag, fd);
    return true;
}

static bool mkdirs(struct conn *c, uint16_t tag, struct reader *r) {
    const char *path = read_str(r);
    if (!read_complete(r))
        return false;
    done(c, tag, make_directories(path));
    return true;
}

static bool stop(struct conn *c, uint16_t tag, struct reader *r) {
    uint32_t grace = read_u32(r);
    if (!read_complete(r))
        return false;
    conn_send(c, OK, tag, NULL, 0);
    stop_begin(grace);
    return true;
}

static bool quiesce(struct conn *c, uint16_t tag, struct reader *r) {
    if (!read_complete(r))
        return false;
    conn_send(c, OK, tag, NULL, 0);
    conns_quiesce(c);
    return true;
}

static handler *const handlers[REQUESTS] = {
    [HELLO] = hello,   [START] = start,         [ATTACH] = attach, [STDIN] = input,     [STDIN_EOF] = input_eof,
    [ACK] = ack,       [RESIZE] = resize,       [SIGNAL] = signal_task, [LIST] = list,  [RELEASE] = release,
    [OPEN] = open_file, [MKDIRS] = mkdirs,      [STOP] = stop,     [QUIESCE] = quiesce,
};

void request_serve(struct conn *c, uint16_t type, uint16_t tag, struct reader payload) {
    handler *serve = type < REQUESTS ? handlers[type] : NULL;
    if (!serve || (!c->greeted && type != HELLO))
        request_refuse(c, tag, "there is no such request, or it came before the greeting");
    else if (!serve(c, tag, &payload))
        request_refuse(c, tag, "the request is malformed or out of turn");
}
