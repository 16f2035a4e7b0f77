/* BPE: the "model" part of a tokenizer.json, or a list of tokens with ranks. A word (what is
 * between two splits) starts as one token a byte or character; the neighbours with the lowest merge
 * rank, the leftmost first, are joined until none can be.
 *
 * A byte-level vocabulary spells bytes as printable characters: byte 0x20 is "Ġ". A spelling that
 * holds other characters stands for its own UTF-8 bytes and is never reached by merging. The other
 * kind, as SentencePiece makes it, spells characters as they are; a character that it lacks becomes
 * the tokens of its bytes ("<0xE2>") where byte_fallback is set, or else the unknown token. */
#pragma once

#include "base/error.h"
#include "base/json.h"
#include "model/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bpe;

/* From the "model" object. NULL and a message when it isn't BPE of this kind or is inconsistent. */
struct bpe *bpe_load(const struct json *model, bool byte_level, struct error *err);

/* A token of a vocabulary without merges: two neighbours merge when a token has their bytes
 * together, the lowest id first. A word that is a token is that token. */
struct ranked_token {
    const char *bytes;
    size_t len;
    int32_t id; /* its rank, or that plus the same number for each */
};

/* Byte-level BPE from all of its tokens, which must have one for each byte. NULL and a message. */
struct bpe *bpe_from_ranks(const struct ranked_token *tokens, size_t count, struct error *err);
void bpe_free(struct bpe *bpe);

/* One past the largest id. */
int32_t bpe_size(const struct bpe *bpe);

/* The id of a token as the file spells it; -1 when there is none. */
int32_t bpe_find(const struct bpe *bpe, const char *spelling, size_t len);

/* The bytes a token stands for (of a vocabulary that isn't byte-level: its spelling); NULL when no
 * token has the id. The memory is the model's. */
const char *bpe_bytes(const struct bpe *bpe, int32_t id, size_t *len);

/* Working memory of bpe_encode, for one thread at a time. */
struct bpe_scratch;

struct bpe_scratch *bpe_scratch_new(void);
void bpe_scratch_free(struct bpe_scratch *scratch);

/* Appends the tokens of one word, in O(n log n). A byte or character that no token spells, where
 * nothing stands in for it, gives nothing, as in the package `tokenizers`. -1 past the list's
 * bound. */
int bpe_encode(const struct bpe *bpe, struct bpe_scratch *scratch, const char *word, size_t len,
               struct token_list *out);
