/* The table of tasks: their pipes, their output, their end. */
#ifndef TASKS_H
#define TASKS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "ring.h"

enum {
    TASKS_MAX = 512,
    FINISHED_KEPT = 256,
    OUTPUT_MAX = 1 << 20,    /* retained for each stream */
    OUTPUT_WINDOW = 256 << 10, /* sent to a connection beyond what it acknowledged */
    STDIN_MAX = 64 << 10,
    ARGV_KEPT = 4 << 10, /* of the arguments, for lists */
};

struct conn;
struct task;

struct output {
    struct task *task;
    int fd;        /* our end of the pipe, -1 when it was read to its end */
    int64_t left;  /* bytes to read yet, -1: until end of file */
    uint64_t sent; /* to the attached connection */
    uint64_t acked;
    struct ring ring;
};

struct task {
    uint32_t id; /* 0: a free slot */
    pid_t pid;   /* leader of its session and process group */
    bool detached, exited, exit_sent;
    int code;
    int pty; /* N of /dev/pts/N, -1: none */
    int leader_lives;   /* a terminal's holder sees this pipe close when the leader has ended, or -1 */
    int64_t drained_by; /* a terminal whose end does not come is waited for until then */
    struct conn *conn;
    int in; /* our end of the stdin pipe, or -1 */
    bool in_eof; /* the service has closed it */
    struct ring input;
    uint64_t window_told;
    struct output out[2];
    char *argv; /* NUL-terminated strings */
    uint32_t argc;
    size_t argv_size;
};

struct start {
    char **argv, **env; /* env has room for two more */
    const char *user, *cwd;
    uint16_t rows, cols;
    bool tty, input, detached;
};

void tasks_setup(void);
void tasks_watch(void);
/* Collect ended children, ours and orphans. Returns false when there are no children at all. */
bool tasks_reap(void);
/* Returns NULL with `kind` (enum error_kind), errno and, for a bad user, a sentence in `why`. */
struct task *task_start(const struct start *s, int *kind, char *why, size_t why_size);
struct task *task_find(uint32_t id);
struct task *task_next(const struct task *after);
bool task_done(const struct task *t);
bool task_stdin_closed(const struct task *t);
/* Make `c` the task's only attachment; offsets as in ATTACH. False if one lies beyond what was written. */
bool task_attach(struct task *t, struct conn *c, const uint64_t offsets[2]);
/* The connection has gone. */
void task_detached_from(struct task *t);
/* Send what the attached connection may have: output, then the exit. */
void task_push(struct task *t);
/* Whether somebody waits for the exit of a task. */
bool tasks_awaited(void);
/* False: the frame breaks the rules. */
bool task_acked(struct task *t, unsigned stream, uint64_t offset);
bool task_input(struct task *t, uint64_t offset, const uint8_t *data, size_t length);
bool task_input_eof(struct task *t, uint64_t offset);
uint64_t task_input_limit(const struct task *t);
void task_window(struct task *t);
int task_signal(const struct task *t, int number);
void task_release(struct task *t);
/* In a forked holder: give back the memory of all output. */
void tasks_forget(void);

#endif
