/* JSON as rules: the parts that every schema is put together from.
 *
 * White space is bounded: nothing or a space after a colon; nothing, a space, or a new line and its
 * indent after an opening bracket and a comma, and before a closing bracket. Numbers have a bounded
 * number of digits. Strings are UTF-8 with any escape but \u0000 (which base/json.h can't read) and
 * lone surrogates. */
#pragma once

#include "model/grammar_text.h"

enum {
    JSON_MAX_INDENT = 64,     /* spaces; or a quarter as many tabs */
    JSON_INTEGER_DIGITS = 18, /* digits of an integer without bounds: fits 64 bits */
    JSON_FRACTION_DIGITS = 15,
};

/* The nodes of one grammar; each is made when it is first asked for. */
struct json_forms {
    struct rules *rules;
    uint32_t gap, space_after_colon, character, string, integer, number, value, object, array;
    bool in_tags; /* no '<' stands in free strings but as an escape */
};

void json_forms_init(struct json_forms *forms, struct rules *rules);

uint32_t json_form_gap(struct json_forms *f);       /* white space inside of brackets */
uint32_t json_form_character(struct json_forms *f); /* of a string, in any form */
uint32_t json_form_string(struct json_forms *f);
uint32_t json_form_integer(struct json_forms *f);
uint32_t json_form_number(struct json_forms *f);
uint32_t json_form_value(struct json_forms *f); /* anything */
uint32_t json_form_object(struct json_forms *f);
uint32_t json_form_array(struct json_forms *f);

/* A string in quotes, whose contents are that node. */
uint32_t json_form_quoted(struct json_forms *f, uint32_t contents);

/* `key: value`, where `key` has its quotes. */
uint32_t json_form_member(struct json_forms *f, uint32_t key, uint32_t value);

/* Brackets around `items`, with white space inside; with `may_be_empty`, or where there are no
 * items (NODE_EMPTY), also nothing. */
uint32_t json_form_brackets(struct json_forms *f, const char *open, uint32_t items,
                            const char *close, bool may_be_empty);

/* A comma, white space and an item. */
uint32_t json_form_next(struct json_forms *f, uint32_t item);
