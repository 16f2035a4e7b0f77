/* tiktoken.model: a line for each token, its bytes in base64 and its rank. The file is beside a
 * Python class that holds what the lines do not say; that of Kimi and Moonlight is known here. */
#pragma once

#include "base/buffer.h"

#include <stddef.h>

/* Appends what base64 (with its padding) stands for. -1 when it is malformed. */
int tiktoken_base64(const char *text, size_t len, struct buffer *out);

/* That class encodes a text in slices: of 400,000 characters, and less where more than 25,000 in a
 * row are spaces or none are. A walk over them: zeroed but for `text` and `len`. */
struct tiktoken_slices {
    const char *text;
    size_t len, at;
    size_t characters; /* of the 400,000 that are used up */
};

/* The length of the next slice, which begins at the `at` before the call; 0 at the end. */
size_t tiktoken_slice(struct tiktoken_slices *walk);
