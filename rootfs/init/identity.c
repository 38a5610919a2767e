#include "identity.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILE_MAX = 4 << 20, FIELDS = 7 };

/* The whole file as a string, "" if it can't be had: a rootfs without users is fine. Only a regular file is read,
 * because whoever is root inside could otherwise make us wait on a FIFO. */
static char *read_file(const char *path) {
    struct stat st;
    char *text = NULL;
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size < FILE_MAX && (text = malloc((size_t)st.st_size + 1))) {
        ssize_t n = read(fd, text, (size_t)st.st_size);
        text[n > 0 ? n : 0] = 0;
    }
    if (fd >= 0)
        close(fd);
    return text ? text : strdup("");
}

/* Split the next line of `*text` at its colons, in place. Missing fields are "". */
static bool next_entry(char **text, char *fields[FIELDS]) {
    char *line = strsep(text, "\n");
    for (int i = 0; i < FIELDS; i++)
        fields[i] = line ? strsep(&line, ":") : "";
    return fields[0] != NULL && (*text || *fields[0]);
}

static bool parse_id(const char *text, uint32_t *id) {
    char *end;
    if (*text < '0' || *text > '9')
        return false;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    *id = (uint32_t)value;
    /* The largest one means "unchanged" to setuid and its kin. */
    return !*end && !errno && value < UINT32_MAX;
}

/* Find a user's entry by name, or by id where the name is a number; copies what is wanted of it. */
static bool find_user(const char *user, struct identity *who, char *name, size_t name_size) {
    uint32_t wanted, uid, gid;
    bool numeric = parse_id(user, &wanted), found = false;
    char *file = read_file("/etc/passwd"), *at = file, *f[FIELDS];
    while (!found && at && next_entry(&at, f)) {
        if (!parse_id(f[2], &uid) || !parse_id(f[3], &gid) || (numeric ? uid != wanted : strcmp(f[0], user) != 0))
            continue;
        found = true;
        who->uid = uid;
        who->gid = gid;
        snprintf(who->home, sizeof who->home, "%s", f[5]);
        snprintf(name, name_size, "%s", f[0]);
    }
    free(file);
    if (!found && numeric) {
        who->uid = wanted;
        who->gid = 0;
    }
    return found || numeric;
}

static bool find_group(const char *group, gid_t *gid) {
    uint32_t id;
    if (parse_id(group, &id)) {
        *gid = id;
        return true;
    }
    bool found = false;
    char *file = read_file("/etc/group"), *at = file, *f[FIELDS];
    while (!found && at && next_entry(&at, f))
        if (strcmp(f[0], group) == 0 && parse_id(f[2], &id))
            found = true, *gid = id;
    free(file);
    return found;
}

static bool is_member(char *members, const char *name) {
    for (char *member; (member = strsep(&members, ","));)
        if (strcmp(member, name) == 0)
            return true;
    return false;
}

static void find_supplementary(const char *name, struct identity *who) {
    uint32_t id;
    char *file = read_file("/etc/group"), *at = file, *f[FIELDS];
    while (at && next_entry(&at, f))
        if (who->group_count < GROUPS_MAX && parse_id(f[2], &id) && is_member(f[3], name))
            who->groups[who->group_count++] = id;
    free(file);
}

bool identity_find(const char *user, struct identity *who, char *why, size_t why_size) {
    char name[256] = "", own[16];
    *who = (struct identity){.change = *user != 0};
    snprintf(own, sizeof own, "%u", geteuid());
    const char *colon = strchr(user, ':');
    size_t length = colon ? (size_t)(colon - user) : strlen(user);
    char wanted[256];
    snprintf(wanted, sizeof wanted, "%.*s", (int)(length < 255 ? length : 255), user);
    if (!find_user(*user ? wanted : own, who, name, sizeof name)) {
        snprintf(why, why_size, "there is no user %.100s in /etc/passwd", *wanted ? wanted : "\"\"");
        return false;
    }
    if (colon && !find_group(colon + 1, &who->gid)) {
        snprintf(why, why_size, "there is no group %.100s in /etc/group", colon[1] ? colon + 1 : "\"\"");
        return false;
    }
    /* A group that was asked for is meant to be the only one. */
    if (!colon && *name)
        find_supplementary(name, who);
    if (!*who->home)
        snprintf(who->home, sizeof who->home, "%s", who->uid == 0 ? "/root" : "/");
    return true;
}
