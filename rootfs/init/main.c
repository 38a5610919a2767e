/* runta-init: pid 1 of every runtime. It runs tasks for the service, keeps their output, reaps orphans; see PROTOCOL.md. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "conns.h"
#include "loop.h"
#include "sinks.h"
#include "stop.h"
#include "tasks.h"

struct options {
    const char *socket;
    bool any_peer;
};

static void parse(int argc, char **argv, struct options *o) {
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--socket") == 0 && i + 1 < argc) {
            o->socket = argv[++i];
        } else if (strcmp(argv[i], "--any-peer") == 0) {
            o->any_peer = true;
        } else {
            dprintf(STDERR_FILENO, "usage: runta-init [--socket PATH] [--any-peer]\n");
            _exit(2);
        }
    }
}

/* 0, 1 and 2 must be taken before anything else is opened; / serves where there is no /dev/null. */
static int open_placeholder(void) {
    int fd = open("/dev/null", O_RDWR);
    return fd >= 0 ? fd : open("/", O_RDONLY);
}

static void fill_stdio(void) {
    int fd = open_placeholder();
    while (fd >= 0 && fd <= STDERR_FILENO)
        fd = open_placeholder();
    if (fd >= 0)
        close(fd);
}

/* A file of the host that we were started with could not be dumped. */
static void replace_stdio(void) {
    int fd = open_placeholder();
    for (int i = 0; fd >= 0 && i <= STDERR_FILENO; i++)
        dup2(fd, i);
    if (fd > STDERR_FILENO)
        close(fd);
}

/* Whatever the caller ignored or blocked, tasks are to start with the defaults. The C library keeps a few signals for
 * itself and refuses them to signal(3); the kernel's own structure, all zero, is the default on every architecture. */
static void reset_signals(void) {
    static const unsigned long defaults[8];
    for (int number = 1; number <= 64; number++)
        syscall(SYS_rt_sigaction, number, defaults, NULL, 8);
    signal(SIGPIPE, SIG_IGN);
}

int main(int argc, char **argv) {
    struct options o = {.socket = "/run/runta/init.sock"};
    parse(argc, argv, &o);
    fill_stdio();
    syscall(SYS_close_range, 3u, ~0u, 0u);
    reset_signals();
    umask(0); /* OPEN says the exact mode */
    if (getpid() != 1)
        prctl(PR_SET_CHILD_SUBREAPER, 1);
    loop_setup();
    tasks_setup();
    sinks_setup();
    if (conns_setup(o.socket, o.any_peer) < 0) {
        dprintf(STDERR_FILENO, "runta-init: %s: %s\n", o.socket, strerror(errno));
        return 1;
    }
    if (getpid() == 1)
        replace_stdio();
    for (;;) {
        stop_watch();
        tasks_watch(); /* first: ending a drain may leave connections something to send */
        sinks_watch();
        conns_watch();
        loop_wait();
        tasks_reap(); /* always: while descriptors are ready, ppoll delivers no signal */
        loop_dispatch();
    }
}
