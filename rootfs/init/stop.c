#include "stop.h"

#include <signal.h>
#include <unistd.h>

#include "loop.h"
#include "tasks.h"

enum { GRACE_MAX = 600 * 1000 };

static bool begun;
static int64_t deadline;

/* Pid 1 reaches everything with one call. An init that is an ordinary process must not: it would reach the whole host. */
static void signal_everything(int number) {
    if (getpid() == 1) {
        kill(-1, number);
        return;
    }
    for (struct task *t = NULL; (t = task_next(t));)
        task_signal(t, number);
}

void stop_begin(uint32_t grace_ms) {
    int64_t until = loop_now() + (grace_ms < GRACE_MAX ? grace_ms : GRACE_MAX);
    if (!begun || until < deadline)
        deadline = until;
    begun = true;
    signal_everything(SIGTERM);
    /* An interactive shell ignores TERM and goes when its terminal does. */
    for (struct task *t = NULL; (t = task_next(t));)
        if (t->pty >= 0)
            task_signal(t, SIGHUP);
    signal_everything(SIGCONT);
}

bool stop_begun(void) { return begun; }

void stop_watch(void) {
    if (!begun)
        return;
    bool busy = tasks_reap() || tasks_awaited();
    if (busy && !loop_deadline(&deadline, GRACE_MAX))
        return;
    signal_everything(SIGKILL);
    _exit(0);
}
