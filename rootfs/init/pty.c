#include "pty.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#include "tasks.h"

enum { IN = 0, OUT = 1, MASTER = 2, LEADER = 3, PIECE = 4096 };

static int open_slave(int number) {
    char path[32];
    snprintf(path, sizeof path, "/dev/pts/%d", number);
    return open(path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
}

static int set_size(int fd, uint16_t rows, uint16_t cols) {
    return ioctl(fd, TIOCSWINSZ, &(struct winsize){.ws_row = rows, .ws_col = cols});
}

/* The slave is opened here, once, for the child to inherit: were it opened and closed by a resize before the child came to
 * open its own, the master would report the terminal's end. */
int pty_open(struct pty *pty, uint16_t rows, uint16_t cols, uid_t owner) {
    int unlock = 0;
    unsigned number;
    pty->slave = -1;
    pty->master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    if (pty->master < 0)
        return -1;
    if (ioctl(pty->master, TIOCSPTLCK, &unlock) == 0 && ioctl(pty->master, TIOCGPTN, &number) == 0) {
        pty->number = (int)number;
        pty->slave = open_slave(pty->number);
    }
    if (pty->slave < 0) {
        close(pty->master);
        return -1;
    }
    set_size(pty->slave, rows, cols);
    /* As login would; a devpts that refuses leaves the terminal usable through the inherited descriptors. */
    if (owner != geteuid() && fchown(pty->slave, owner, (gid_t)-1) < 0)
        errno = 0;
    fcntl(pty->slave, F_SETFL, O_RDWR); /* blocking, for the program */
    return 0;
}

int pty_resize(int number, uint16_t rows, uint16_t cols) {
    int fd = open_slave(number);
    if (fd < 0)
        return -1;
    int result = set_size(fd, rows, cols);
    close(fd);
    return result;
}

/* One direction of the relay. */
struct relay {
    char data[PIECE];
    size_t length;
    bool over; /* its source has ended */
};

static void fill(struct relay *r, int fd) {
    ssize_t n = read(fd, r->data, PIECE);
    if (n > 0)
        r->length = (size_t)n;
    else if (n == 0 || (errno != EAGAIN && errno != EINTR))
        r->over = true; /* EIO: the last slave is closed and everything it wrote was read */
}

static bool drain(struct relay *r, int fd) {
    ssize_t n = write(fd, r->data, r->length);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR;
    r->length -= (size_t)n;
    memmove(r->data, r->data + n, r->length);
    return true;
}

/* The end of input as the terminal says it. In the middle of a line the first character only hands the line over. */
static void say_eof(struct relay *r, char last) {
    struct termios mode;
    if (tcgetattr(MASTER, &mode) < 0)
        return;
    memset(r->data, mode.c_cc[VEOF], 2);
    r->length = (mode.c_lflag & ICANON) && last != '\n' ? 2 : 1;
}

/* A leader that has closed its terminal lives on for a moment, to exit with a code of its own. Were the master closed
 * before that, SIGHUP would be its end. */
static void await_leader(void) {
    struct pollfd fds[] = {{.fd = LEADER}};
    close(OUT); /* the output is complete */
    while (poll(fds, 1, -1) < 0)
        ;
}

static _Noreturn void relay(bool has_input) {
    static struct relay in, out;
    char last = '\n';
    in.over = !has_input;
    while (!out.over || out.length) {
        short want = (short)((!out.over && !out.length ? POLLIN : 0) | (in.length && !out.over ? POLLOUT : 0));
        struct pollfd fds[] = {
            {.fd = in.over || in.length ? -1 : IN, .events = POLLIN},
            {.fd = OUT, .events = out.length ? POLLOUT : 0}, /* always: POLLERR says that the init let go of us */
            {.fd = want ? MASTER : -1, .events = want},
        };
        if (poll(fds, 3, -1) < 0)
            continue;
        if (fds[1].revents & POLLERR || (fds[1].revents & POLLOUT && !drain(&out, OUT)))
            _exit(0);
        if (fds[0].revents) {
            fill(&in, IN);
            if (in.length)
                last = in.data[in.length - 1];
            else if (in.over)
                say_eof(&in, last);
        }
        if (fds[2].revents & POLLOUT && in.length && !drain(&in, MASTER))
            in.length = 0;
        if (fds[2].revents & (POLLIN | POLLHUP | POLLERR) && !out.length)
            fill(&out, MASTER);
        else if (fds[2].revents & (POLLHUP | POLLERR))
            in.length = 0; /* nobody will read it, and waiting for that would spin */
    }
    await_leader();
    _exit(0);
}

pid_t pty_hold(const struct pty *pty, int in, int out, int leader) {
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    prctl(PR_SET_NAME, "runta-pty");
    /* The terminal's end ends us, not a signal sent to everybody: its last output must get through. */
    int ignored[] = {SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGPIPE, SIGUSR1, SIGUSR2, SIGALRM};
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++)
        signal(ignored[i], SIG_IGN);
    tasks_forget();
    if (in >= 0)
        dup2(in, IN);
    dup2(out, OUT);
    dup2(pty->master, MASTER);
    dup2(leader, LEADER); /* takes the place of the listening socket: nothing else has so low a number */
    syscall(SYS_close_range, LEADER + 1u, ~0u, 0u);
    fcntl(OUT, F_SETFL, O_WRONLY | O_NONBLOCK);
    relay(in >= 0);
}
