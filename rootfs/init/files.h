/* Files opened inside for the service: the sandbox resolves its own paths. */
#ifndef FILES_H
#define FILES_H

#include <stdint.h>
#include <sys/types.h>

/* Both return -1 and errno on failure; relative paths begin at /root, or at / where there is none. */
int file_open(const char *path, int flags, mode_t mode);
int make_directories(const char *path);

#endif
