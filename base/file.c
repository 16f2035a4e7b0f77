#include "base/file.h"

#include "base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int file_read(const char *path, struct buffer *out, struct error *err)
{
    char block[1 << 16];
    ssize_t got = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return error_set(err, "%s: %s", path, strerror(errno));
    while ((got = read(fd, block, sizeof(block))) != 0) {
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            error_set(err, "%s: %s", path, strerror(errno));
            break;
        }
        if (buffer_append(out, block, (size_t)got)) {
            error_set(err, "%s: larger than the limit of %zu bytes", path, out->max);
            got = -1;
            break;
        }
    }
    close(fd);
    if (got < 0) {
        buffer_free(out);
        return -1;
    }
    return buffer_append(out, "", 0); /* an empty file gives an empty string, not NULL */
}

int file_pread(int fd, const char *path, void *out, size_t len, uint64_t offset, struct error *err)
{
    unsigned char *at = out;

    while (len > 0) {
        ssize_t got = pread(fd, at, len, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return error_set(err, "%s: %s", path, strerror(errno));
        if (got == 0)
            return error_set(err, "%s: ends at byte %llu, %zu bytes short", path,
                             (unsigned long long)offset, len);
        at += got;
        offset += (uint64_t)got;
        len -= (size_t)got;
    }
    return 0;
}

bool file_exists(const char *path)
{
    struct stat info;

    return stat(path, &info) == 0;
}

char *path_join(const char *dir, const char *name)
{
    size_t len = strlen(dir) + strlen(name) + 2;
    char *path = mem_alloc(len);

    snprintf(path, len, "%s/%s", dir, name);
    return path;
}
