#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { NOT_EXECUTABLE = 126, NOT_FOUND = 127 };

static struct rlimit files;

void spawn_setup(void) {
    getrlimit(RLIMIT_NOFILE, &files);
    struct rlimit more = {.rlim_cur = files.rlim_max < 4096 ? files.rlim_max : 4096, .rlim_max = files.rlim_max};
    if (more.rlim_cur > files.rlim_cur)
        setrlimit(RLIMIT_NOFILE, &more);
}

/* Say on the task's own stderr what failed, as a shell would. */
static _Noreturn void give_up(const char *what, const char *name, int code) {
    int error = errno;
    dprintf(STDERR_FILENO, "runta: %s %s: %s\n", what, name, strerror(error));
    _exit(code);
}

/* A rootfs without /dev/null gets a pipe nobody writes to: end of file just the same. */
static int open_null(void) {
    int ends[2], fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (fd < 0 && pipe2(ends, O_CLOEXEC) == 0) {
        close(ends[1]);
        fd = ends[0];
    }
    return fd;
}

static void take_stdio(const struct program *p) {
    int in = p->stdio[0] < 0 ? open_null() : p->stdio[0];
    dup2(p->stdio[2], 2);
    dup2(p->stdio[1], 1);
    dup2(in, 0);
    syscall(SYS_close_range, 3u, ~0u, 0u);
}

static void take_identity(const struct program *p) {
    const struct identity *who = p->who;
    if (!who->change)
        return;
    if (setgroups(who->group_count, who->groups) < 0 || setgid(who->gid) < 0 || setuid(who->uid) < 0)
        give_up("user", p->user, NOT_EXECUTABLE);
}

static void take_directory(const struct program *p) {
    if (*p->cwd) {
        if (chdir(p->cwd) < 0)
            give_up("cd", p->cwd, NOT_EXECUTABLE);
    } else if (chdir(p->home) < 0 && chdir("/") < 0) {
        give_up("cd", "/", NOT_EXECUTABLE);
    }
}

static _Noreturn void become(const struct program *p) {
    sigset_t none;
    setsid();
    if (p->tty >= 0)
        ioctl(p->tty, TIOCSCTTY, 0);
    take_stdio(p);
    setrlimit(RLIMIT_NOFILE, &files);
    umask(022);
    take_identity(p);
    take_directory(p);
    signal(SIGPIPE, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    environ = p->env; /* execvp searches the PATH of the task, not ours */
    execvp(p->argv[0], p->argv);
    give_up("exec", p->argv[0], errno == ENOENT ? NOT_FOUND : NOT_EXECUTABLE);
}

pid_t spawn(const struct program *p) {
    pid_t pid = fork();
    if (pid == 0)
        become(p);
    return pid;
}
