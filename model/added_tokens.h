/* Added tokens: strings that are cut out of a text whole, before it is split into words. Most are
 * markers of the chat format; some are ordinary characters.
 *
 * The first match counts, and of several at one place the longest. A token may ask for white space
 * at its sides to go with it (lstrip, rstrip), or to be left alone inside of a longer word
 * (single_word). */
#pragma once

#include "base/error.h"
#include "base/json.h"
#include "model/pattern.h"
#include "model/tokenizer_normalizer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct added_token {
    char *content; /* not empty */
    size_t len;
    char *match; /* what is looked for: the content, normalized if the token is */
    size_t match_len;
    int32_t id;
    bool special; /* left out of decoded text by default */
    bool normalized;
    bool lstrip, rstrip, single_word;
};

/* Which added tokens a search looks for. */
enum added_kind {
    ADDED_RAW,        /* those that are not `normalized`: found first */
    ADDED_NORMALIZED, /* the others: found in what is left */
    ADDED_PLAIN,      /* of those, the ones that can't be a marker: neither special nor in
                       * <angle> or [square] brackets */
    ADDED_KINDS,
};

/* Whether a chat format may use the token as a marker: all but ADDED_PLAIN. */
bool added_token_is_marker(const struct added_token *token);

struct added_tokens;

/* From the "added_tokens" array, which may be missing (NULL). NULL and a message on error. */
struct added_tokens *added_tokens_load(const struct json *array,
                                       const struct normalizer *normalizer, struct error *err);

/* The flags of one token from a JSON object that has its "content". -1 and a message. */
int added_token_read(const struct json *object, struct added_token *token, struct error *err);

/* From a list, whose memory and contents (without `match`) it takes, also on failure. */
struct added_tokens *added_tokens_from(struct added_token *tokens, size_t count,
                                       const struct normalizer *normalizer, struct error *err);
void added_tokens_free(struct added_tokens *added);

/* All tokens, in ascending order of their contents. */
const struct added_token *added_tokens_all(const struct added_tokens *added, size_t *count);

/* The token with exactly this content, or NULL. */
const struct added_token *added_tokens_get(const struct added_tokens *added, const char *content,
                                           size_t len);

/* A walk over the added tokens in a text; zeroed, it is at the beginning. */
struct added_match {
    size_t start, end; /* of the match in the text, with the white space it takes */
    const struct added_token *token;
    size_t search;           /* where the search goes on */
    size_t space, space_end; /* white space that was seen behind a match */
};

/* Moves to the next match. The text before it goes from the previous `end` to `start`. Returns 1, 0
 * when there is none, -1 with a message. */
int added_tokens_next(const struct added_tokens *added, enum added_kind kind,
                      struct pattern_scratch *scratch, const char *text, size_t len,
                      struct added_match *match, struct error *err);
