/* Who a task runs as, looked up in the rootfs's /etc/passwd and /etc/group: libc's lookup would load plug-ins of the host. */
#ifndef IDENTITY_H
#define IDENTITY_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

enum { GROUPS_MAX = 64 };

struct identity {
    bool change; /* false: stay what the init is */
    uid_t uid;
    gid_t gid;
    size_t group_count;
    gid_t groups[GROUPS_MAX];
    char home[PATH_MAX];
};

/* `user` is "", name, uid, name:group or uid:gid. On failure false, and a sentence in `why`. */
bool identity_find(const char *user, struct identity *who, char *why, size_t why_size);

#endif
