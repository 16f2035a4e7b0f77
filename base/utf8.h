/* UTF-8, strictly: no overlong forms, no surrogates, nothing past U+10FFFF. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes of the valid character at the start of `text`; 0 when the bytes are invalid, -1 when they
 * are a valid beginning that `len` cuts short. `*codepoint` (may be NULL) gets the character. */
int utf8_decode(const char *text, size_t len, uint32_t *codepoint);

/* Writes the character to `out` (4 bytes of room); returns its length. */
int utf8_encode(uint32_t codepoint, char out[4]);

bool utf8_valid(const char *text, size_t len);

/* Length of the longest prefix that does not end inside a character that could still become valid.
 */
size_t utf8_complete_prefix(const char *text, size_t len);
