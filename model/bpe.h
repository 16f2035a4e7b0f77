/* Byte-level BPE: the "model" part of a tokenizer.json. A word (the bytes between two splits)
 * starts as one token a byte; the neighbours with the lowest merge rank, the leftmost first, are
 * joined until none can be.
 *
 * The vocabulary spells bytes as printable characters: byte 0x20 is "Ġ". A spelling that holds
 * other characters stands for its own UTF-8 bytes and is never reached by merging. */
#pragma once

#include "base/error.h"
#include "base/json.h"
#include "model/tokenizer.h"

#include <stddef.h>
#include <stdint.h>

struct bpe;

/* From the "model" object. NULL and a message when it isn't byte-level BPE or is inconsistent. */
struct bpe *bpe_load(const struct json *model, struct error *err);
void bpe_free(struct bpe *bpe);

/* One past the largest id. */
int32_t bpe_size(const struct bpe *bpe);

/* The id of a token as the file spells it; -1 when there is none. */
int32_t bpe_find(const struct bpe *bpe, const char *spelling, size_t len);

/* The bytes a token stands for; NULL when no token has the id. The memory is the model's. */
const char *bpe_bytes(const struct bpe *bpe, int32_t id, size_t *len);

/* Working memory of bpe_encode, for one thread at a time. */
struct bpe_scratch;

struct bpe_scratch *bpe_scratch_new(void);
void bpe_scratch_free(struct bpe_scratch *scratch);

/* Appends the tokens of one word, in O(n log n). A byte that no token spells gives nothing, as in
 * the package `tokenizers`. -1 past the list's bound. */
int bpe_encode(const struct bpe *bpe, struct bpe_scratch *scratch, const char *word, size_t len,
               struct token_list *out);
