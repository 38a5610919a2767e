#include "sinks.h"

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <unistd.h>

#include "loop.h"

enum { SINKS_MAX = 256 };

static int sinks[SINKS_MAX];

void sinks_setup(void) {
    for (int i = 0; i < SINKS_MAX; i++)
        sinks[i] = -1;
}

static void on_readable(void *subject) {
    static uint8_t nowhere[4096];
    int *sink = subject;
    ssize_t n = *sink < 0 ? 1 : read(*sink, nowhere, sizeof nowhere);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
        close(*sink);
        *sink = -1;
    }
}

void sink_add(int fd) {
    for (int i = 0; i < SINKS_MAX; i++)
        if (sinks[i] < 0) {
            sinks[i] = fd;
            return;
        }
    close(fd);
}

void sinks_watch(void) {
    for (int i = 0; i < SINKS_MAX; i++)
        if (sinks[i] >= 0)
            loop_watch(sinks[i], POLLIN, on_readable, &sinks[i]);
}
