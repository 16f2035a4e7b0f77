#include "model/template_heap.h"

#include "base/memory.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK_BYTES = 64 * 1024, ALIGN = 16 };

struct tpl_chunk {
    struct tpl_chunk *next;
    size_t size; /* keeps what follows aligned */
};

void tpl_heap_init(struct tpl_heap *h, size_t max_bytes, int64_t steps, int depth,
                   struct error *err)
{
    memset(h, 0, sizeof(*h));
    h->bytes_left = max_bytes;
    h->steps_left = steps;
    h->depth_left = depth;
    h->line = 1;
    h->err = err;
}

void tpl_heap_free(struct tpl_heap *h)
{
    while (h->chunks) {
        struct tpl_chunk *next = h->chunks->next;
        free(h->chunks);
        h->chunks = next;
    }
}

void tpl_fail(struct tpl_heap *h, const char *format, ...)
{
    char message[400];
    va_list args;

    va_start(args, format);
    vsnprintf(message, sizeof(message), format, args);
    va_end(args);
    error_set(h->err, "line %d: %s", h->line, message);
    longjmp(h->fail, 1);
}

void tpl_out_of_steps(struct tpl_heap *h)
{
    tpl_fail(h, "the template takes too many steps");
}

void tpl_out_of_depth(struct tpl_heap *h)
{
    tpl_fail(h, "the template nests too deeply");
}

void *tpl_alloc(struct tpl_heap *h, size_t size)
{
    size_t need = (size + ALIGN - 1) / ALIGN * ALIGN;

    if (size > h->bytes_left || need > h->bytes_left)
        tpl_fail(h, "the template takes too much memory");
    h->bytes_left -= need;
    if (need > (size_t)(h->end - h->at)) {
        size_t room = need > CHUNK_BYTES / 4 ? need : CHUNK_BYTES;
        struct tpl_chunk *chunk = mem_alloc(sizeof(*chunk) + room);
        chunk->size = room;
        chunk->next = h->chunks;
        h->chunks = chunk;
        if (room == need && room != CHUNK_BYTES) { /* a block of its own: keep the other open */
            return chunk + 1;
        }
        h->at = (char *)(chunk + 1);
        h->end = h->at + room;
    }
    void *block = h->at;
    h->at += need;
    return block;
}

void *tpl_copy(struct tpl_heap *h, const void *source, size_t size)
{
    void *block = tpl_alloc(h, size);

    if (size > 0)
        memcpy(block, source, size);
    return block;
}
