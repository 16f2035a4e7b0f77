/* Normalizers of a tokenizer.json: what is done to a text before it is split. Those of
 * SentencePiece's kind are supported, which spell spaces as "▁": Prepend and Replace. */
#pragma once

#include "base/buffer.h"
#include "base/error.h"
#include "base/json.h"
#include "model/pattern.h"

#include <stddef.h>
#include <stdint.h>

struct normalizer;

/* From the "normalizer" object, which may be missing (NULL) or null. NULL and a message naming what
 * is not supported. */
struct normalizer *normalizer_load(const struct json *object, struct error *err);
void normalizer_free(struct normalizer *normalizer);

/* Whether a text stays as it is. */
bool normalizer_is_empty(const struct normalizer *normalizer);

/* A text, and a mark (0 or 1) for each of its bytes; no marks: NULL. */
struct marked_text {
    const char *text;
    const uint8_t *marks;
    size_t len;
};

/* Memory for two texts and their marks, which normalizer_apply writes in turns. */
struct normalized {
    struct buffer text[2], marks[2];
};

void normalized_init(struct normalized *out);
void normalized_free(struct normalized *out);

/* Changes `*text` (valid UTF-8) to what the steps make of it, in the memory of `out`. What is put
 * in for marked bytes is marked. -1 with a message when a pattern's limits or the bound of a text
 * is passed. */
int normalizer_apply(const struct normalizer *normalizer, struct pattern_scratch *scratch,
                     struct marked_text *text, struct normalized *out, struct error *err);
