/* Pre-tokenization: a text to the words that BPE encodes each on its own. The steps of a
 * tokenizer.json's "pre_tokenizer" are applied in order, each to every piece that the step before
 * made; a pattern sees its piece and nothing beyond. */
#pragma once

#include "base/error.h"
#include "base/json.h"
#include "model/pattern.h"

#include <stdbool.h>
#include <stddef.h>

struct pretokenizer;

/* From the "pre_tokenizer" object: Split, Digits, Metaspace and ByteLevel, or a Sequence of them
 * where ByteLevel may be the last; without any (NULL or null) a text is one word. NULL and a
 * message naming what is not supported. */
struct pretokenizer *pretokenizer_load(const struct json *object, struct error *err);

/* The words are the matches of one pattern, as tiktoken has it: what lies between is dropped. */
struct pretokenizer *pretokenizer_from_pattern(const char *pattern, struct error *err);
void pretokenizer_free(struct pretokenizer *pre);

/* Whether there is a ByteLevel step: the words are for byte-level BPE. */
bool pretokenizer_is_byte_level(const struct pretokenizer *pre);

/* Takes one word, never empty; the memory is valid during the call. Not 0 ends the split. */
typedef int (*word_function)(void *context, const char *word, size_t len);

/* Gives the words of `text` (valid UTF-8) in order; `is_first`: nothing of the whole text comes
 * before it. -1 with a message when the matcher's limits are passed; otherwise what the function
 * returned last. */
int pretokenizer_split(const struct pretokenizer *pre, struct pattern_scratch *scratch,
                       const char *text, size_t len, bool is_first, word_function take,
                       void *context, struct error *err);
