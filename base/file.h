/* Reading files with plain pread: no memory mapping, so that a slow mount shows as time in a named
 * function and a truncated file as an error, never as a signal. */
#pragma once

#include "base/buffer.h"
#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Appends the whole file to `out`. The message names the file; a file past the buffer's bound is an
 * error. On failure `out` is freed. */
int file_read(const char *path, struct buffer *out, struct error *err);

/* Reads exactly `len` bytes at `offset`; a shorter file is an error. `path` is for the message. */
int file_pread(int fd, const char *path, void *out, size_t len, uint64_t offset, struct error *err);

bool file_exists(const char *path);

/* "dir/name" in memory of its own; the caller frees it. */
char *path_join(const char *dir, const char *name);
