#include "model/utf8_replace.h"

#include "base/utf8.h"

#define REPLACEMENT "\xEF\xBF\xBD" /* U+FFFD */

/* Length of the longest beginning of a character at `bytes`, where no whole one is; at least 1. */
static size_t broken_length(const char *bytes, size_t len)
{
    size_t n = 1;

    while (n < len && utf8_decode(bytes, n, NULL) < 0 && utf8_decode(bytes, n + 1, NULL) < 0)
        n++;
    return n;
}

size_t utf8_replace(const char *bytes, size_t len, bool is_end, struct buffer *out)
{
    size_t at = 0, valid_from = 0;

    while (at < len) {
        int size = utf8_decode(bytes + at, len - at, NULL);
        if (size > 0) {
            at += (size_t)size;
            continue;
        }
        buffer_append(out, bytes + valid_from, at - valid_from);
        valid_from = at;
        if (size < 0 && !is_end)
            return at;
        buffer_append_str(out, REPLACEMENT);
        at += broken_length(bytes + at, len - at);
        valid_from = at;
    }
    buffer_append(out, bytes + valid_from, at - valid_from);
    return at;
}
