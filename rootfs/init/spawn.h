/* From a fork to a running program: what happens in the child. */
#ifndef SPAWN_H
#define SPAWN_H

#include "identity.h"

struct program {
    char **argv, **env;
    const char *cwd;  /* "": the home directory, else / */
    const char *home; /* HOME of its environment */
    const char *user; /* as asked for, in messages */
    const struct identity *who;
    int stdio[3]; /* stdin may be -1: /dev/null */
    int tty;      /* a slave to become the controlling terminal, or -1 */
};

/* Remember the limits tasks get, then raise our own number of open files. */
void spawn_setup(void);
/* Returns the child's pid, or -1 and errno. */
pid_t spawn(const struct program *p);

#endif
