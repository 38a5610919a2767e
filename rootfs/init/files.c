#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int absolute(const char *path, char out[PATH_MAX]) {
    struct stat st;
    const char *base = *path == '/' ? "" : stat("/root", &st) == 0 && S_ISDIR(st.st_mode) ? "/root/" : "/";
    if (!*path) {
        errno = ENOENT;
        return -1;
    }
    if (snprintf(out, PATH_MAX, "%s%s", base, path) >= PATH_MAX) {
        errno = ENAMETOOLONG;
        return -1;
    }
    return 0;
}

int file_open(const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    if (absolute(path, full) < 0)
        return -1;
    /* A FIFO or a terminal must neither hold us up nor become ours. */
    return open(full, flags | O_NOCTTY | O_NONBLOCK | O_CLOEXEC, mode & 07777);
}

static int make_directory(const char *path) {
    struct stat st;
    if (mkdir(path, 0755) == 0)
        return 0;
    if (errno == EEXIST && stat(path, &st) == 0) {
        errno = ENOTDIR;
        return S_ISDIR(st.st_mode) ? 0 : -1;
    }
    return -1;
}

int make_directories(const char *path) {
    char full[PATH_MAX];
    if (absolute(path, full) < 0)
        return -1;
    for (char *slash = full + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = 0;
        /* A parent may be there but unwritable (a read-only mount's): only the last step's error counts then. */
        if (make_directory(full) < 0 && errno != EROFS && errno != EACCES)
            return -1;
        *slash = '/';
    }
    return make_directory(full);
}
