/* Pipes of tasks that ended while a process outside their group still writes: read on, so that a daemon which kept its
 * parent's stdout is neither blocked nor killed by SIGPIPE. */
#ifndef SINKS_H
#define SINKS_H

void sinks_setup(void);
void sink_add(int fd);
void sinks_watch(void);

#endif
