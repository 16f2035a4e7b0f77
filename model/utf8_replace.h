/* Any bytes to valid UTF-8, exactly as Python's bytes.decode(errors="replace"): each maximal run of
 * bytes that begins a character but doesn't become one, and each other stray byte, is one U+FFFD.
 */
#pragma once

#include "base/buffer.h"

#include <stdbool.h>
#include <stddef.h>

/* Appends the text that `bytes` holds. With `is_end` all bytes are used; without, an unfinished
 * character at the end (at most 3 bytes) is left. Returns how many bytes were used. */
size_t utf8_replace(const char *bytes, size_t len, bool is_end, struct buffer *out);
