/* The text of a chat template as tokens: data between tags, and names, numbers, strings and
 * operators inside of them. White space is taken as transformers sets Jinja up: trim_blocks (the
 * newline after a block's tag goes) and lstrip_blocks (so do blanks before one at the start of a
 * line). Comments and raw blocks end here. */
#pragma once

#include "model/template_heap.h"
#include "model/template_value.h"

#include <stdbool.h>
#include <stddef.h>

enum tpl_token_kind {
    TOKEN_DATA,
    TOKEN_VARIABLE_BEGIN,
    TOKEN_VARIABLE_END,
    TOKEN_BLOCK_BEGIN,
    TOKEN_BLOCK_END,
    TOKEN_NAME,
    TOKEN_STRING, /* unescaped */
    TOKEN_INTEGER,
    TOKEN_FLOAT,
    TOKEN_OPERATOR, /* its text tells which */
    TOKEN_EOF,
};

struct tpl_token {
    enum tpl_token_kind kind;
    int line;
    const char *text;
    size_t len;
    struct tpl_value value; /* of a number */
};

/* All tokens, the last one TOKEN_EOF; in the heap. `source` is UTF-8 and must stay. */
struct tpl_token *tpl_tokenize(struct tpl_heap *h, const char *source, size_t len);
