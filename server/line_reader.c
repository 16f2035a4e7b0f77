#include "server/line_reader.h"

#include "base/memory.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { READ_BYTES = 256 << 10 };

struct line_reader {
    int fd;
    size_t max;
    char *data;        /* what was read and not yet handed out lies in [begin, end) */
    size_t begin, end; /* at most max + READ_BYTES of it */
    size_t searched;   /* no newline in [begin, searched) */
    size_t cap;
    uint64_t offset;     /* of data[begin] in the file */
    uint64_t long_start; /* where the line that is passed over began */
    int64_t number;
    bool passing; /* over a line that is too long */
    bool ended;
};

struct line_reader *line_reader_new(int fd, size_t max)
{
    struct line_reader *r = mem_zalloc(1, sizeof(*r));

    r->fd = fd;
    r->max = max;
    return r;
}

void line_reader_free(struct line_reader *r)
{
    if (!r)
        return;
    free(r->data);
    free(r);
}

static void make_room(struct line_reader *r)
{
    if (r->begin > 0) {
        memmove(r->data, r->data + r->begin, r->end - r->begin);
        r->end -= r->begin;
        r->searched -= r->begin;
        r->begin = 0;
    }
    if (r->cap - r->end >= READ_BYTES)
        return;
    r->cap = r->end * 2 + READ_BYTES;
    r->data = mem_resize(r->data, r->cap, 1);
}

/* LINE_READ: more bytes, or the end of the file, were read. */
static enum line_result fill(struct line_reader *r)
{
    struct pollfd ready = {.fd = r->fd, .events = POLLIN};
    ssize_t n;

    make_room(r);
    if (poll(&ready, 1, 0) == 0)
        return LINE_WAIT;
    do
        n = read(r->fd, r->data + r->end, READ_BYTES);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return errno == EAGAIN ? LINE_WAIT : LINE_FAILED;
    r->end += (size_t)n;
    r->ended = n == 0;
    return LINE_READ;
}

/* Hands out the `len` bytes at begin, and leaves `skip` of them (the newline) out. */
static enum line_result hand_out(struct line_reader *r, size_t len, size_t skip, struct line *line)
{
    bool too_long = r->passing || len - skip > r->max;

    *line = (struct line){
        .text = too_long ? NULL : r->data + r->begin,
        .len = too_long ? 0 : len - skip,
        .number = ++r->number,
        .offset = r->passing ? r->long_start : r->offset,
        .whole = skip > 0,
    };
    r->begin += len;
    r->searched = r->begin;
    r->offset += len;
    r->passing = false;
    return too_long ? LINE_TOO_LONG : LINE_READ;
}

/* Forgets what was read of a line that is too long. */
static void pass_over(struct line_reader *r)
{
    if (!r->passing)
        r->long_start = r->offset;
    r->passing = true;
    r->offset += r->end - r->begin;
    r->begin = r->end = r->searched = 0;
}

enum line_result line_reader_next(struct line_reader *r, struct line *line)
{
    for (;;) {
        char *from = r->data + r->searched;
        char *newline = r->searched < r->end ? memchr(from, '\n', r->end - r->searched) : NULL;
        if (newline)
            return hand_out(r, (size_t)(newline - r->data) + 1 - r->begin, 1, line);
        r->searched = r->end;
        if (r->ended)
            return r->begin < r->end || r->passing ? hand_out(r, r->end - r->begin, 0, line)
                                                   : LINE_END;
        if (r->passing || r->end - r->begin > r->max)
            pass_over(r);
        enum line_result result = fill(r);
        if (result != LINE_READ)
            return result;
    }
}

bool line_is_blank(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (text[i] != ' ' && text[i] != '\t' && text[i] != '\r' && text[i] != '\n')
            return false;
    return true;
}

int line_counter_step(struct line_counter *counter, int fd)
{
    char *piece = mem_alloc(READ_BYTES);
    ssize_t n;

    do
        n = pread(fd, piece, READ_BYTES, (off_t)counter->offset);
    while (n < 0 && errno == EINTR);
    for (char *at = piece, *end = piece + (n > 0 ? n : 0); at < end;) {
        char *newline = memchr(at, '\n', (size_t)(end - at));
        char *stop = newline ? newline : end;
        if (!counter->in_line && !line_is_blank(at, (size_t)(stop - at))) {
            counter->in_line = true;
            counter->lines++;
        }
        if (newline)
            counter->in_line = false;
        at = stop + 1;
    }
    if (n > 0)
        counter->offset += (uint64_t)n;
    free(piece);
    return n > 0 ? 1 : (int)n;
}
