/* The bytes of a vocabulary, arranged so that all tokens that may come next are found in one walk.
 *
 * Only ordinary tokens are in it: no special token, none that a chat format uses as a marker, none
 * with a byte that UTF-8 does not use. The tokens that end a text are known by their ids. The
 * markers inside of a tool call stand in it as one such byte each, so that a grammar can ask for
 * them and no text can hold them.
 *
 * Nodes stand in depth-first order with the length of the subtree, so that a walk is a loop over an
 * array: a byte that does not fit skips the subtree.
 *
 * "Plain" tokens are whole characters that stand for themselves inside of a JSON string. Where n
 * plain characters may come, all plain tokens of up to n are allowed by one `or` of their mask, and
 * the walk skips the subtrees that hold nothing else: most of a vocabulary.
 *
 * Built once for a tokenizer; immutable after that, shared by any number of threads. */
#pragma once

#include "base/buffer.h"
#include "base/error.h"
#include "model/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Longer plain tokens are treated as not plain. */
enum { PLAIN_MAX_CHARACTERS = 32, NOT_PLAIN = 255, CALL_MARKERS_MAX = 8 };

struct trie_node {
    uint32_t skip;  /* index of the node after the subtree */
    int32_t token;  /* that ends here, or -1 */
    uint16_t depth; /* bytes from the root; the first node of a token has 1 */
    uint8_t byte;
    uint8_t
        plain; /* the subtree has only plain tokens, of up to so many characters; or NOT_PLAIN */
};

/* A marker that stands between the name of a call and its end. */
struct call_marker {
    const char *text;
    int32_t id;
};

struct vocabulary_trie {
    struct trie_node *nodes;
    uint32_t count;
    uint32_t depth;    /* of the deepest node */
    int32_t size;      /* ids are below */
    size_t mask_words; /* of a mask over all ids: bit id % 32 of word id / 32 */
    uint32_t *plain; /* PLAIN_MAX_CHARACTERS + 1 masks: [n] of plain tokens of up to n characters */
    int32_t *same;   /* by id: the next id with the same bytes, or -1 */
    bool *ordinary;  /* by id: whether it is in the trie */
    const struct call_syntax *call; /* how a call is written; NULL: no grammar can ask for one */
    struct call_marker markers[CALL_MARKERS_MAX];
    int markers_n;
    const struct tokenizer *tok;
    int32_t *end_tokens;
    size_t end_tokens_n;
};

/* `size`: rows of the model's output (ids past the tokenizer's are never allowed); `tok` must
 * outlive the trie. NULL and a sentence when an end token is out of range, or when a byte of UTF-8
 * has no token of its own: then a text could come to a point where no token fits. */
struct vocabulary_trie *vocabulary_trie_new(const struct tokenizer *tok, int32_t size,
                                            const int32_t *end_tokens, size_t end_tokens_n,
                                            struct error *err);
void vocabulary_trie_free(struct vocabulary_trie *trie);

/* Whether the character stands for itself in a JSON string, and is matched by `.` in a pattern. */
bool vocabulary_is_plain(uint32_t codepoint);

/* The bytes that an id of the trie stands for. */
const char *vocabulary_trie_bytes(const struct vocabulary_trie *trie, int32_t id, size_t *len);

/* Appends a part of the syntax of calls as those bytes: its markers are one each. */
void vocabulary_trie_syntax(const struct vocabulary_trie *trie, const char *part,
                            struct buffer *out);

/* Whether the id is one of the tokens that end a text. */
bool vocabulary_trie_is_end(const struct vocabulary_trie *trie, int32_t id);
