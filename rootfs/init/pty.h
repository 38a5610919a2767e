/* Pseudo-terminals, in the shape CRIU can dump: the master lives in a process of its own, the "holder", which comes after
 * the terminal's session in the process tree and relays between the master and two pipes. */
#ifndef PTY_H
#define PTY_H

#include <stdint.h>
#include <sys/types.h>

struct pty {
    int master, slave;
    int number; /* of /dev/pts/N */
};

int pty_open(struct pty *pty, uint16_t rows, uint16_t cols, uid_t owner);
/* Fork the holder with its ends of three pipes: input (may be -1), output, and one whose closing tells that the session's
 * leader has ended. */
pid_t pty_hold(const struct pty *pty, int in, int out, int leader);
int pty_resize(int number, uint16_t rows, uint16_t cols);

#endif
