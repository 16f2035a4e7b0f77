/* The memory and the limits of one compilation or one rendering of a chat template.
 *
 * Everything is allocated from one arena and freed with it. What goes wrong jumps out to the one
 * setjmp of compile or render: an interpreter is a deep recursion in which any step may fail, and
 * since nothing but the arena is held, there is nothing to unwind. */
#pragma once

#include "base/error.h"

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>

struct tpl_chunk;

struct tpl_heap {
    struct tpl_chunk *chunks; /* the newest first */
    char *at, *end;           /* what is free of it */
    size_t bytes_left;
    int64_t steps_left;
    int depth_left; /* of nested evaluation */
    int line;       /* of the template: where evaluation stands, for messages */
    struct error *err;
    jmp_buf fail; /* set by whoever owns the heap before anything else is called */
};

void tpl_heap_init(struct tpl_heap *h, size_t max_bytes, int64_t steps, int depth,
                   struct error *err);
void tpl_heap_free(struct tpl_heap *h);

/* `size` bytes, aligned for anything, not zeroed. */
void *tpl_alloc(struct tpl_heap *h, size_t size);
void *tpl_copy(struct tpl_heap *h, const void *source, size_t size);

/* Writes "line N: message" and jumps. */
_Noreturn void tpl_fail(struct tpl_heap *h, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

_Noreturn void tpl_out_of_steps(struct tpl_heap *h);
_Noreturn void tpl_out_of_depth(struct tpl_heap *h);

/* Counts work: one step for an operation, and one for each 64 bytes that it goes through. */
static inline void tpl_work(struct tpl_heap *h, size_t bytes)
{
    h->steps_left -= 1 + (int64_t)(bytes / 64);
    if (h->steps_left < 0)
        tpl_out_of_steps(h);
}

/* Around whatever nests. After a failure the count is of no interest. */
static inline void tpl_enter(struct tpl_heap *h)
{
    if (h->depth_left-- <= 0)
        tpl_out_of_depth(h);
}

static inline void tpl_leave(struct tpl_heap *h)
{
    h->depth_left++;
}
