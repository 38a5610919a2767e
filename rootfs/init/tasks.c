#include "tasks.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "conns.h"
#include "loop.h"
#include "pty.h"
#include "sinks.h"
#include "spawn.h"
#include "wire.h"

#define DEFAULT_PATH "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

enum { DRAIN_TIME = 1000, WINDOW_STEP = 16 << 10 };

static struct task tasks[TASKS_MAX];
static uint32_t last_id;

void tasks_setup(void) { spawn_setup(); }

struct task *task_find(uint32_t id) {
    for (size_t i = 0; i < TASKS_MAX; i++)
        if (id && tasks[i].id == id)
            return &tasks[i];
    return NULL;
}

struct task *task_next(const struct task *after) {
    for (size_t i = after ? (size_t)(after - tasks) + 1 : 0; i < TASKS_MAX; i++)
        if (tasks[i].id)
            return &tasks[i];
    return NULL;
}

bool task_done(const struct task *t) { return t->exited && t->out[0].fd < 0 && t->out[1].fd < 0; }

bool task_stdin_closed(const struct task *t) { return t->in < 0; }

void tasks_forget(void) {
    for (struct task *t = NULL; (t = task_next(t));) {
        ring_free(&t->input);
        ring_free(&t->out[0].ring);
        ring_free(&t->out[1].ring);
    }
}

/* ---- input ---- */

static void close_input(struct task *t) {
    if (t->in < 0)
        return;
    close(t->in);
    t->in = -1;
    t->input.taken = t->input.end; /* what nobody reads any more counts as dealt with */
    ring_free(&t->input);
    task_window(t);
}

uint64_t task_input_limit(const struct task *t) { return t->input.taken + STDIN_MAX; }

void task_window(struct task *t) {
    uint64_t limit = task_input_limit(t);
    bool drained = t->input.taken == t->input.end && limit != t->window_told;
    if (!t->conn || (t->in >= 0 && !drained && limit - t->window_told < WINDOW_STEP))
        return;
    uint8_t frame[17];
    struct writer w = {frame, frame, frame + sizeof frame};
    write_u64(&w, t->input.end);
    write_u64(&w, limit);
    write_u8(&w, t->in < 0);
    t->window_told = limit;
    conn_send(t->conn, WINDOW, 0, &(struct iovec){frame, sizeof frame}, 1);
}

static void feed(void *subject) {
    struct task *t = subject;
    struct iovec pieces[2];
    if (t->in < 0)
        return;
    int count = ring_view(&t->input, t->input.taken, STDIN_MAX, pieces);
    ssize_t n = count ? writev(t->in, pieces, count) : 0;
    if (n < 0 && errno != EAGAIN && errno != EINTR)
        return close_input(t);
    if (n > 0)
        ring_take(&t->input, t->input.taken + (uint64_t)n);
    if (t->in_eof && t->input.taken == t->input.end)
        return close_input(t);
    task_window(t);
}

bool task_input(struct task *t, uint64_t offset, const uint8_t *data, size_t length) {
    if (t->in < 0 || t->in_eof)
        return true;
    if (offset > t->input.end)
        return false;
    size_t known = (size_t)(t->input.end - offset) < length ? (size_t)(t->input.end - offset) : length;
    if (length - known > task_input_limit(t) - t->input.end || !ring_add(&t->input, data + known, length - known))
        return false;
    feed(t);
    return true;
}

bool task_input_eof(struct task *t, uint64_t offset) {
    if (t->in < 0 || t->in_eof)
        return true;
    if (offset != t->input.end)
        return false;
    t->in_eof = true;
    feed(t);
    return true;
}

/* ---- output ---- */

static size_t waiting_in(int fd) {
    int n = 0;
    return ioctl(fd, FIONREAD, &n) == 0 && n > 0 ? (size_t)n : 0;
}

static void end_output(struct output *o, bool eof) {
    if (o->fd < 0)
        return;
    if (eof)
        close(o->fd);
    else
        sink_add(o->fd);
    o->fd = -1;
}

static void on_output(void *subject) {
    struct output *o = subject;
    if (o->fd < 0)
        return;
    /* As much as is there, so that the ring grows no further than needed; at least a byte, to see the end. */
    size_t limit = waiting_in(o->fd);
    limit = limit < 1 ? 1 : limit > CHUNK ? CHUNK : limit;
    if (o->left >= 0 && (uint64_t)o->left < limit)
        limit = (size_t)o->left;
    ssize_t n = ring_read(&o->ring, o->fd, limit);
    if (n > 0 && o->left > 0)
        o->left -= n;
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR && errno != ENOSPC))
        end_output(o, true);
    else if (o->left == 0)
        end_output(o, false);
    task_push(o->task);
}

static bool push_output(struct task *t, unsigned stream) {
    struct output *o = &t->out[stream];
    if (o->sent < o->ring.start)
        o->sent = o->ring.start; /* the oldest bytes were dropped meanwhile: the offset tells */
    if (o->acked < o->ring.start)
        o->acked = o->ring.start;
    uint64_t window = o->acked + OUTPUT_WINDOW;
    if (!t->conn || !conn_idle(t->conn) || o->sent >= window)
        return false;
    struct iovec pieces[3];
    uint8_t head[9];
    struct writer w = {head, head, head + sizeof head};
    size_t limit = window - o->sent < CHUNK ? (size_t)(window - o->sent) : CHUNK;
    int count = ring_view(&o->ring, o->sent, limit, pieces + 1);
    if (count == 0)
        return false;
    write_u8(&w, (uint8_t)stream);
    write_u64(&w, o->sent);
    pieces[0] = (struct iovec){head, sizeof head};
    for (int i = 1; i <= count; i++)
        o->sent += pieces[i].iov_len;
    conn_send(t->conn, OUTPUT, 0, pieces, count + 1);
    return true;
}

void task_push(struct task *t) {
    while (push_output(t, 0) | push_output(t, 1))
        ;
    if (!t->conn || !conn_idle(t->conn) || t->exit_sent || !task_done(t))
        return;
    if (t->out[0].sent < t->out[0].ring.end || t->out[1].sent < t->out[1].ring.end)
        return;
    uint8_t frame[4];
    struct writer w = {frame, frame, frame + sizeof frame};
    write_u32(&w, (uint32_t)t->code);
    t->exit_sent = true;
    conn_send(t->conn, EXIT, 0, &(struct iovec){frame, sizeof frame}, 1);
}

bool task_acked(struct task *t, unsigned stream, uint64_t offset) {
    if (stream > 1 || offset > t->out[stream].sent)
        return false;
    struct output *o = &t->out[stream];
    if (offset > o->acked)
        o->acked = offset;
    ring_take(&o->ring, offset);
    task_push(t);
    return true;
}

bool tasks_awaited(void) {
    for (struct task *t = NULL; (t = task_next(t));)
        if (t->conn && !t->exit_sent)
            return true;
    return false;
}

/* ---- attachment ---- */

bool task_attach(struct task *t, struct conn *c, const uint64_t offsets[2]) {
    for (int i = 0; i < 2; i++)
        if (offsets[i] != OFFSET_OLDEST && offsets[i] > t->out[i].ring.end)
            return false;
    if (t->conn) {
        struct conn *old = t->conn;
        old->task = NULL;
        conn_send(old, DETACHED, 0, NULL, 0);
        conn_finish(old);
    }
    for (int i = 0; i < 2; i++) {
        struct output *o = &t->out[i];
        bool gone = offsets[i] == OFFSET_OLDEST || offsets[i] < o->ring.start;
        o->sent = o->acked = gone ? o->ring.start : offsets[i];
    }
    t->exit_sent = false;
    t->window_told = task_input_limit(t);
    t->conn = c;
    c->task = t;
    return true;
}

void task_detached_from(struct task *t) { t->conn = NULL; }

/* ---- beginning ---- */

static bool evictable(const struct task *t) {
    return task_done(t) && !t->conn && t->out[0].ring.taken == t->out[0].ring.end && t->out[1].ring.taken == t->out[1].ring.end;
}

/* Nobody released the oldest finished tasks: those whose output was taken may go. */
static void evict(void) {
    size_t finished = 0;
    struct task *oldest = NULL;
    for (struct task *t = NULL; (t = task_next(t));) {
        finished += task_done(t);
        if (evictable(t) && (!oldest || t->id < oldest->id))
            oldest = t;
    }
    if (oldest && finished > FINISHED_KEPT)
        task_release(oldest);
}

static struct task *free_slot(void) {
    evict();
    for (size_t i = 0; i < TASKS_MAX; i++)
        if (!tasks[i].id)
            return &tasks[i];
    return NULL;
}

/* Adds HOME and PATH where they are missing; returns HOME's value. */
static const char *complete_env(char **env, const char *home, char *buffer, size_t size) {
    const char *has_home = NULL;
    bool has_path = false;
    for (; *env; env++) {
        if (strncmp(*env, "HOME=", 5) == 0)
            has_home = *env + 5;
        has_path |= strncmp(*env, "PATH=", 5) == 0;
    }
    snprintf(buffer, size, "HOME=%s", home);
    if (!has_home)
        *env++ = buffer;
    if (!has_path)
        *env++ = DEFAULT_PATH;
    return has_home ? has_home : buffer + 5;
}

static void keep_argv(struct task *t, char **argv) {
    size_t size = 0;
    uint32_t count = 0;
    while (argv[count] && size + strlen(argv[count]) + 1 <= ARGV_KEPT)
        size += strlen(argv[count++]) + 1;
    /* Of a first argument that is too long by itself, nothing is kept: the list stays bounded. */
    t->argv = size ? malloc(size) : NULL;
    if (!t->argv)
        return;
    char *at = t->argv;
    for (uint32_t i = 0; i < count; i++)
        at = stpcpy(at, argv[i]) + 1;
    t->argc = count;
    t->argv_size = size;
}

/* Every descriptor of a start, so that one function closes whatever is not handed on. */
struct ends {
    int in[2], out[2], err[2], leader[2]; /* pipes: [0] is read, [1] written */
    struct pty pty;
};

static void shut(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void shut_all(struct ends *e) {
    int *pipes[] = {e->in, e->out, e->err, e->leader};
    for (size_t i = 0; i < sizeof pipes / sizeof *pipes; i++) {
        shut(&pipes[i][0]);
        shut(&pipes[i][1]);
    }
    shut(&e->pty.master);
    shut(&e->pty.slave);
}

static bool open_ends(struct ends *e, const struct start *s, uid_t owner) {
    *e = (struct ends){{-1, -1}, {-1, -1}, {-1, -1}, {-1, -1}, {-1, -1, -1}};
    if ((s->input && pipe2(e->in, O_CLOEXEC) < 0) || pipe2(e->out, O_CLOEXEC) < 0)
        return false;
    if (s->tty)
        return pipe2(e->leader, O_CLOEXEC) == 0 && pty_open(&e->pty, s->rows, s->cols, owner) == 0;
    return pipe2(e->err, O_CLOEXEC) == 0;
}

static pid_t launch(const struct start *s, const struct identity *who, const char *home, struct ends *e) {
    struct program p = {
        .argv = s->argv, .env = s->env, .cwd = s->cwd, .home = home, .user = s->user, .who = who, .tty = e->pty.slave};
    p.stdio[0] = !s->input ? -1 : s->tty ? e->pty.slave : e->in[0];
    p.stdio[1] = s->tty ? e->pty.slave : e->out[1];
    p.stdio[2] = s->tty ? e->pty.slave : e->err[1];
    pid_t pid = spawn(&p);
    if (pid > 0 && s->tty && pty_hold(&e->pty, e->in[0], e->out[1], e->leader[0]) < 0) {
        int error = errno;
        kill(pid, SIGKILL); /* reaped as an orphan */
        errno = error;
        return -1;
    }
    return pid;
}

static int adopt(int *fd) {
    int kept = *fd;
    *fd = -1;
    if (kept >= 0)
        fcntl(kept, F_SETFL, O_NONBLOCK);
    return kept;
}

static void record(struct task *t, const struct start *s, pid_t pid, struct ends *e) {
    if (++last_id == 0)
        last_id = 1;
    *t = (struct task){.id = last_id, .pid = pid, .detached = s->detached, .pty = s->tty ? e->pty.number : -1};
    t->in = adopt(&e->in[1]);
    t->leader_lives = adopt(&e->leader[1]);
    t->input.max = STDIN_MAX;
    t->out[0].fd = adopt(&e->out[0]);
    t->out[1].fd = adopt(&e->err[0]);
    for (int i = 0; i < 2; i++) {
        t->out[i].task = t;
        t->out[i].left = -1;
        t->out[i].ring.max = OUTPUT_MAX;
        t->out[i].ring.lossy = s->detached;
    }
    keep_argv(t, s->argv);
}

struct task *task_start(const struct start *s, int *kind, char *why, size_t why_size) {
    static struct identity who;
    static char buffer[sizeof who.home + 8];
    struct ends e;
    struct task *t = free_slot();
    *kind = TOO_MANY;
    if (!t)
        return NULL;
    *kind = BAD_USER;
    if (!identity_find(s->user, &who, why, why_size))
        return NULL;
    const char *home = complete_env(s->env, who.home, buffer, sizeof buffer);
    *kind = SYSTEM;
    pid_t pid = open_ends(&e, s, who.change ? who.uid : geteuid()) ? launch(s, &who, home, &e) : -1;
    int error = errno;
    if (pid > 0)
        record(t, s, pid, &e);
    shut_all(&e);
    errno = error;
    return pid > 0 ? t : NULL;
}

/* ---- end ---- */

int task_signal(const struct task *t, int number) {
    if (t->exited)
        return 0;
    int result = kill(-t->pid, number);
    /* Just forked, it may not have made its group yet. */
    return result < 0 && errno == ESRCH ? kill(t->pid, number) : result;
}

/* Before the leader is reaped, so that its number can't name another group yet. */
static void ended(struct task *t, int code) {
    if (!t->detached)
        kill(-t->pid, SIGKILL);
    t->exited = true;
    t->code = code;
    close_input(t);
    shut(&t->leader_lives);
    t->drained_by = loop_now() + DRAIN_TIME;
    for (int i = 0; i < 2 && !t->detached && t->pty < 0; i++) {
        struct output *o = &t->out[i];
        /* What is in the pipe now is all the task wrote. A descendant that lives on may write for ever. */
        o->left = o->fd < 0 ? 0 : (int64_t)waiting_in(o->fd);
        if (o->left == 0)
            end_output(o, false);
    }
    task_push(t);
}

static struct task *led_by(pid_t pid) {
    for (struct task *t = NULL; (t = task_next(t));)
        if (t->pid == pid && !t->exited)
            return t;
    return NULL;
}

bool tasks_reap(void) {
    for (;;) {
        siginfo_t info = {0};
        if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) < 0)
            return errno != ECHILD;
        if (info.si_pid == 0)
            return true;
        struct task *t = led_by(info.si_pid);
        if (t)
            ended(t, info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status);
        waitid(P_PID, (id_t)info.si_pid, NULL, WEXITED);
    }
}

void task_release(struct task *t) {
    if (t->conn) {
        struct conn *c = t->conn;
        c->task = NULL;
        t->conn = NULL;
        conn_send(c, DETACHED, 0, NULL, 0);
        conn_finish(c);
    }
    close_input(t);
    for (int i = 0; i < 2; i++) {
        end_output(&t->out[i], t->pty >= 0); /* a holder is to go with its task */
        ring_free(&t->out[i].ring);
    }
    free(t->argv);
    *t = (struct task){0};
}

/* A terminal's end is told by its holder, which comes when the last slave closes. A program can keep one open beyond the
 * session's end, though: do not wait for that one. */
static void watch_drain(struct task *t) {
    struct output *o = &t->out[0];
    if (!t->exited || t->detached || t->pty < 0 || o->fd < 0 || !loop_deadline(&t->drained_by, DRAIN_TIME))
        return;
    if (waiting_in(o->fd)) {
        t->drained_by = loop_now() + DRAIN_TIME; /* nobody takes it yet */
        return;
    }
    end_output(o, true);
    task_push(t);
}

void tasks_watch(void) {
    for (struct task *t = NULL; (t = task_next(t));) {
        watch_drain(t);
        if (t->in >= 0 && t->input.taken < t->input.end)
            loop_watch(t->in, POLLOUT, feed, t);
        for (int i = 0; i < 2; i++)
            if (t->out[i].fd >= 0 && ring_room(&t->out[i].ring))
                loop_watch(t->out[i].fd, POLLIN, on_output, &t->out[i]);
    }
}
