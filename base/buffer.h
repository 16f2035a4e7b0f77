/* A growing byte buffer with a bound. Past the bound it keeps what it has, drops the rest, and says
 * so: writers may append freely and test once at the end. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct buffer {
    char *data; /* `len` bytes; NUL-terminated whenever it is not NULL */
    size_t len;
    size_t cap;
    size_t max; /* bound on `len`, given to buffer_init */
    bool overflowed;
};

/* An empty buffer that never holds more than `max` bytes. Nothing is allocated yet. */
void buffer_init(struct buffer *buf, size_t max);

/* Releases the memory; the buffer is empty and usable again with the same bound. */
void buffer_free(struct buffer *buf);

/* Empties the buffer, keeping its memory. */
void buffer_clear(struct buffer *buf);

/* Appends; returns 0, or -1 when the bound would be passed (nothing is appended, `overflowed` is
 * set, and every later append fails too until the buffer is cleared). */
int buffer_append(struct buffer *buf, const void *data, size_t len);
int buffer_append_str(struct buffer *buf, const char *text);
int buffer_printf(struct buffer *buf, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Removes the first `len` bytes. */
void buffer_consume(struct buffer *buf, size_t len);
