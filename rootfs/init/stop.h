/* The orderly end: TERM to everything, time to react, KILL, exit. */
#ifndef STOP_H
#define STOP_H

#include <stdbool.h>
#include <stdint.h>

void stop_begin(uint32_t grace_ms);
bool stop_begun(void);
/* Before every wait; does not return when the end has come. */
void stop_watch(void);

#endif
