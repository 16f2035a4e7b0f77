/* The lines of a file or a pipe, one after the other, in memory bounded by the longest line that is
 * allowed. Never waits for a pipe. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct line_reader;

struct line {
    const char *text; /* valid until the next call; without its newline, not NUL-terminated */
    size_t len;
    int64_t number;  /* from 1 */
    uint64_t offset; /* of its first byte */
    bool whole;      /* it ends with a newline: only the last one may not */
};

enum line_result {
    LINE_READ,
    LINE_TOO_LONG, /* longer than `max`: passed over, `line` has its place but no text */
    LINE_WAIT,     /* a pipe has nothing at the moment */
    LINE_END,
    LINE_FAILED, /* errno says why */
};

/* Reads from the descriptor's position; the descriptor stays the caller's. */
struct line_reader *line_reader_new(int fd, size_t max);
void line_reader_free(struct line_reader *reader);
enum line_result line_reader_next(struct line_reader *reader, struct line *line);

/* Only white space: no line in the sense of JSON Lines. */
bool line_is_blank(const char *text, size_t len);

/* Counts the lines of a regular file that are not blank, a piece at a time; starts zeroed. */
struct line_counter {
    uint64_t offset;
    int64_t lines;
    bool in_line; /* of the line at `offset` something was seen, and counted */
};

/* Returns 1 when there is more to read, 0 at the end of the file, -1 and errno on failure. */
int line_counter_step(struct line_counter *counter, int fd);
