/* Calls written in Python, as MiniCPM 3 writes them:
 *
 *   ```python
 *   weather(city="Rome", days=[1, 2], metric=True)     ->   {"city": "Rome", "days": [1, 2], …}
 *   time()
 *   ```
 *
 * An argument comes out when it ends. What is no literal of Python's comes out as text. */
#pragma once

#include "base/buffer.h"
#include "base/json.h"
#include "model/output_object.h"

/* From the beginning, or behind a call, to the parenthesis. */
enum call_reading python_call_head(const char *text, size_t len, struct call_head *head);

/* Behind a call: the fence and the marker `end` after the last one. */
enum call_reading python_calls_end(const char *text, size_t len, const char *end, size_t *used);

/* The arguments of a call. */
struct python_arguments {
    const struct json *parameters; /* the function's schema; may be NULL */
    const char *end;               /* the marker that ends all calls, also in the middle of one */
    int count;                     /* arguments so far */
    size_t scanned;                /* bytes of the current one that were looked at: */
    int depth;                     /* open brackets */
    char quote;                    /* of the open string, or 0 */
    bool escaped;
};

/* Reads on in the text, which begins where the last call stopped reading. Appends JSON to `out`;
 * returns how many bytes were used. `*ended`: they reached the end of the arguments, or stand
 * before the marker; `final`: no more text will come. */
size_t python_arguments_read(struct python_arguments *python, const char *text, size_t len,
                             bool final, struct buffer *out, bool *ended);
