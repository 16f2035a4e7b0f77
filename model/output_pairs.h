/* Arguments in GLM's way, turned into a JSON object as they come:
 *
 *   <arg_key>city</arg_key><arg_value>Rome</arg_value> … </tool_call>   ->   {"city": "Rome", …}
 *
 * A value is text where the function's schema says "string", and comes out as it comes in. Any
 * other value is held until it ends, and goes in as it is if it is JSON, or else as text. Text
 * outside the tags, which should not be there, goes in as it is but for its white space. */
#pragma once

#include "base/buffer.h"
#include "base/json.h"

#include <stdbool.h>
#include <stddef.h>

struct pairs {
    enum { PAIRS_OUTSIDE, PAIRS_KEY, PAIRS_BEFORE_VALUE, PAIRS_VALUE } state;
    const struct json *parameters; /* the function's schema; may be NULL */
    bool any;                      /* there was a key */
    bool is_string;                /* the type of the value of the last key */
    struct buffer held;            /* of a key, or of a value of no known type */
};

void pairs_init(struct pairs *pairs);
void pairs_free(struct pairs *pairs);

/* The arguments of a call begin. */
void pairs_begin(struct pairs *pairs, const struct json *parameters);

/* Reads on in the text, which begins where the last call stopped reading. Appends JSON to `out`;
 * returns how many bytes were used. `*ended` tells that they reached the end of the call; `final`,
 * that no more text will come. */
size_t pairs_read(struct pairs *pairs, const char *text, size_t len, bool final, struct buffer *out,
                  bool *ended);

/* The text is over inside the arguments: appends what was held, and closes nothing. */
void pairs_cut(struct pairs *pairs, struct buffer *out);
