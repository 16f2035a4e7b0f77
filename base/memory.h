/* Host memory. An allocation that fails ends the process (there is nothing sensible to do without
 * host memory), so callers never test for NULL. Blocks are released with free(). */
#pragma once

#include <stddef.h>

/* `size` bytes, uninitialised. */
void *mem_alloc(size_t size);

/* `count` elements of `size` bytes, zeroed; the product is checked for overflow. */
void *mem_zalloc(size_t count, size_t size);

/* Grows or shrinks `block` (which may be NULL) to `count` elements of `size` bytes. */
void *mem_resize(void *block, size_t count, size_t size);

/* A copy of the `size` bytes at `source`. */
void *mem_copy(const void *source, size_t size);

/* A copy of a NUL-terminated string. */
char *mem_strdup(const char *text);
