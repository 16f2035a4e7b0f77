/* Arguments as keys and values between tags, turned into a JSON object as they come: GLM's
 *
 *   <arg_key>city</arg_key><arg_value>Rome</arg_value> … </tool_call>   ->   {"city": "Rome", …}
 *
 * and those of DeepSeek V3.2, where each value says whether it is text.
 *
 * A value is text where it says so, or the function's schema says "string", and comes out as it
 * comes in. Any other value is held until it ends, and goes in as it is if it is JSON of a type
 * that the schema allows, or else as text. Text outside the tags, which should not be there, goes
 * in as it is but for its white space. */
#pragma once

#include "base/buffer.h"
#include "base/json.h"

#include <stdbool.h>
#include <stddef.h>

struct pair_tags {
    const char *key_begin, *key_end;
    const char *value_begin; /* of a value that is text, if there is a `json_begin` for others */
    const char *json_begin;  /* NULL: values don't say what they are */
    const char *value_end, *call_end;
};

extern const struct pair_tags pair_tags_glm, pair_tags_dsml;

struct pairs {
    const struct pair_tags *tags;
    enum { PAIRS_OUTSIDE, PAIRS_KEY, PAIRS_BEFORE_VALUE, PAIRS_VALUE } state;
    const struct json *parameters; /* the function's schema; may be NULL */
    bool any;                      /* there was a key */
    bool is_string;                /* the type of the value of the last key */
    unsigned types;                /* or those it may have, as in schema_lookup.h */
    struct buffer held;            /* of a key, or of a value of no known type */
};

void pairs_init(struct pairs *pairs);
void pairs_free(struct pairs *pairs);

/* The arguments of a call begin. */
void pairs_begin(struct pairs *pairs, const struct pair_tags *tags, const struct json *parameters);

/* Reads on in the text, which begins where the last call stopped reading. Appends JSON to `out`;
 * returns how many bytes were used. `*ended` tells that they reached the end of the call; `final`,
 * that no more text will come. */
size_t pairs_read(struct pairs *pairs, const char *text, size_t len, bool final, struct buffer *out,
                  bool *ended);

/* The text is over inside the arguments: appends what was held, and closes nothing. */
void pairs_cut(struct pairs *pairs, struct buffer *out);
