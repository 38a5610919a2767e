/* The one wait of this program. Interests are told anew before every wait, so nothing needs to be unregistered, and a
 * descriptor with no wish is not polled at all (a hung-up pipe would wake us forever). */
#ifndef LOOP_H
#define LOOP_H

#include <stdbool.h>
#include <stdint.h>

typedef void loop_call(void *subject);

enum { POLLED_MAX = 3072 };

void loop_setup(void);
/* Call back once when `fd` is ready (or broken). */
void loop_watch(int fd, short events, loop_call *call, void *subject);
/* Do not sleep beyond the deadline. One that lies more than `longest` ahead is brought nearer: a restored checkpoint may
 * wake up with another clock. Returns true when it has passed. */
bool loop_deadline(int64_t *deadline, int64_t longest);
/* Wait for a descriptor, a deadline or the end of a child. */
void loop_wait(void);
/* Call back for what became ready. */
void loop_dispatch(void);
int64_t loop_now(void);

#endif
