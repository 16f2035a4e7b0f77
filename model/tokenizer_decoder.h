/* The decoder of a tokenizer.json: which bytes a token stands for in the text. ByteLevel, or of
 * SentencePiece's kind a sequence of Replace and Metaspace ("▁" is a space), ByteFallback ("<0xE2>"
 * is a byte), Fuse and Strip. */
#pragma once

#include "base/buffer.h"
#include "base/error.h"
#include "base/json.h"

#include <stdbool.h>
#include <stddef.h>

enum { DECODER_MAX_REPLACEMENTS = 8 };

struct token_decoder {
    bool byte_level; /* the vocabulary knows the bytes, and nothing else is set */
    struct {
        char *from, *to;
    } replacements[DECODER_MAX_REPLACEMENTS];
    size_t replacements_n;
    bool byte_fallback;
    int leading_spaces;    /* how many go at most from the beginning of a text (Strip) */
    bool first_has_spaces; /* the first token of a text keeps its spaces; not with Metaspace */
};

/* From the "decoder" object. -1 and a message naming what is not supported; token_decoder_free even
 * then. */
int token_decoder_load(struct token_decoder *decoder, const struct json *object, struct error *err);
void token_decoder_free(struct token_decoder *decoder);

/* Appends the bytes of a token that is spelled so; not for ByteLevel. */
void token_decoder_append(const struct token_decoder *decoder, const char *spelling, size_t len,
                          struct buffer *out);
