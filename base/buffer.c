#include "base/buffer.h"

#include "base/memory.h"
#include "base/panic.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void buffer_init(struct buffer *buf, size_t max)
{
    *buf = (struct buffer){.max = max};
}

void buffer_free(struct buffer *buf)
{
    free(buf->data);
    buffer_init(buf, buf->max);
}

void buffer_clear(struct buffer *buf)
{
    buf->len = 0;
    buf->overflowed = false;
    if (buf->data)
        buf->data[0] = '\0';
}

/* Makes room for `more` bytes and a NUL. */
static int buffer_reserve(struct buffer *buf, size_t more)
{
    if (buf->overflowed || more > buf->max - buf->len) {
        buf->overflowed = true;
        return -1;
    }
    size_t need = buf->len + more + 1;
    if (need > buf->cap) {
        size_t cap = buf->cap * 2 > need ? buf->cap * 2 : need;
        if (cap < 256)
            cap = 256;
        buf->data = mem_resize(buf->data, cap, 1);
        buf->cap = cap;
    }
    return 0;
}

int buffer_append(struct buffer *buf, const void *data, size_t len)
{
    if (buffer_reserve(buf, len))
        return -1;
    if (len)
        memcpy(buf->data + buf->len, data, len);
    buf->len += len;
    buf->data[buf->len] = '\0';
    return 0;
}

int buffer_append_str(struct buffer *buf, const char *text)
{
    return buffer_append(buf, text, strlen(text));
}

int buffer_printf(struct buffer *buf, const char *format, ...)
{
    va_list args, again;

    va_start(args, format);
    va_copy(again, args);
    int len = vsnprintf(NULL, 0, format, args);
    va_end(args);
    ASSERT(len >= 0);
    int rc = buffer_reserve(buf, (size_t)len);
    if (rc == 0) {
        vsnprintf(buf->data + buf->len, (size_t)len + 1, format, again);
        buf->len += (size_t)len;
    }
    va_end(again);
    return rc;
}

void buffer_consume(struct buffer *buf, size_t len)
{
    ASSERT(len <= buf->len);
    if (len == 0)
        return;
    buf->len -= len;
    memmove(buf->data, buf->data + len, buf->len + 1);
}
