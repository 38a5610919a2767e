#include "loop.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <time.h>

static struct pollfd polled[POLLED_MAX];
static struct {
    loop_call *call;
    void *subject;
} calls[POLLED_MAX];
static nfds_t count;
static int64_t timeout = -1; /* ms, of the next wait */
static sigset_t while_waiting;

/* Its only purpose is to end a wait. */
static void on_child(int number) { (void)number; }

/* SIGCHLD can come only while we wait: no race between looking and sleeping, and no descriptor for it in the dump. */
void loop_setup(void) {
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGCHLD);
    sigprocmask(SIG_SETMASK, &blocked, NULL);
    sigemptyset(&while_waiting);
    sigaction(SIGCHLD, &(struct sigaction){.sa_handler = on_child}, NULL);
}

void loop_watch(int fd, short events, loop_call *call, void *subject) {
    if (count == POLLED_MAX)
        return;
    polled[count] = (struct pollfd){.fd = fd, .events = events};
    calls[count].call = call;
    calls[count].subject = subject;
    count++;
}

int64_t loop_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000) + now.tv_nsec / 1000000;
}

bool loop_deadline(int64_t *deadline, int64_t longest) {
    int64_t left = *deadline - loop_now();
    if (left > longest) {
        *deadline -= left - longest;
        left = longest;
    }
    if (left < 0)
        left = 0;
    if (timeout < 0 || left < timeout)
        timeout = left;
    return left == 0;
}

void loop_wait(void) {
    struct timespec within = {.tv_sec = timeout / 1000, .tv_nsec = timeout % 1000 * 1000000};
    int ready = ppoll(polled, count, timeout < 0 ? NULL : &within, &while_waiting);
    timeout = -1;
    if (ready <= 0)
        count = 0; /* interrupted or timed out: nothing to call back */
}

/* Callbacks may close and reuse what later entries name: every callback must bear being called for nothing, which
 * costs one EAGAIN, as all descriptors here are non-blocking. */
void loop_dispatch(void) {
    for (nfds_t i = 0; i < count; i++)
        if (polled[i].revents)
            calls[i].call(calls[i].subject);
    count = 0;
}
