#include "base/memory.h"

#include "base/panic.h"

#include <stdlib.h>
#include <string.h>

static void *checked(void *block, size_t count, size_t size)
{
    if (!block)
        PANIC("out of host memory: %zu x %zu bytes", count, size);
    return block;
}

void *mem_alloc(size_t size)
{
    return checked(malloc(size ? size : 1), 1, size);
}

void *mem_zalloc(size_t count, size_t size)
{
    return checked(calloc(count ? count : 1, size ? size : 1), count, size);
}

void *mem_resize(void *block, size_t count, size_t size)
{
    size_t bytes;

    if (__builtin_mul_overflow(count, size, &bytes))
        PANIC("allocation overflows: %zu x %zu bytes", count, size);
    return checked(realloc(block, bytes ? bytes : 1), count, size);
}

void *mem_copy(const void *source, size_t size)
{
    void *block = mem_alloc(size);

    if (size)
        memcpy(block, source, size);
    return block;
}

char *mem_strdup(const char *text)
{
    return mem_copy(text, strlen(text) + 1);
}
