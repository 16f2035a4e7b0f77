/* The parts that every kind of tokenizer file is read into, and the readers. What a failed reader
 * has set is there still, and tokenizer_parts_free releases it. */
#pragma once

#include "base/error.h"
#include "base/json.h"
#include "model/added_tokens.h"
#include "model/bpe.h"
#include "model/pretokenizer.h"
#include "model/tokenizer_decoder.h"
#include "model/tokenizer_normalizer.h"

#include <stdbool.h>

enum { FRONT_MAX = 8 };

struct tokenizer_parts {
    struct normalizer *normalizer;
    struct added_tokens *added;
    struct pretokenizer *pre;
    struct bpe *bpe;
    struct token_decoder decoder;
    char *front[FRONT_MAX]; /* contents of the tokens that go in front of a text; then NULL */
    bool in_slices;         /* texts are cut first as tiktoken_slice says */
};

/* From a parsed tokenizer.json. -1 and a message. */
int tokenizer_parts_from_json(struct tokenizer_parts *parts, const struct json *root,
                              struct error *err);

/* From a tiktoken.model, as Kimi and Moonlight ship it, and the parsed tokenizer_config.json beside
 * it (NULL: none). -1 and a message. */
int tokenizer_parts_from_tiktoken(struct tokenizer_parts *parts, const char *path,
                                  const struct json *config, struct error *err);

/* From a tekken.json, as Mistral ships it. -1 and a message. */
int tokenizer_parts_from_tekken(struct tokenizer_parts *parts, const char *path, struct error *err);

void tokenizer_parts_free(struct tokenizer_parts *parts);
