/* The text of one generated sequence, as it may be shown: token ids become characters, and text is
 * held back as long as it could turn out to be the beginning of a stop string. Text that streams is
 * therefore byte for byte the text of the whole answer. */
#pragma once

#include "base/buffer.h"
#include "model/tokenizer.h"

#include <stdbool.h>

enum { TEXT_MAX_STOPS = 16, TEXT_MAX_STOP_BYTES = 1024 };

struct stop_strings {
    char *text[TEXT_MAX_STOPS]; /* owned by whoever made it; none is empty */
    int n;
    bool include; /* the stop string itself stays in the text */
};

struct text_stream {
    const struct tokenizer *tok;
    const struct stop_strings *stops;
    struct detokenizer detok;
    struct buffer held; /* decoded, not released */
    bool skip_special;
    const int32_t *shown; /* special tokens that are text all the same: markers of the format */
    int n_shown;
    int32_t min_tokens;  /* within so many no stop string counts */
    int32_t n_tokens;    /* pushed */
    const char *stopped; /* the stop string that came: nothing more is released; or NULL */
};

/* The tokenizer and the stop strings are borrowed. */
void text_stream_init(struct text_stream *stream, const struct tokenizer *tok,
                      const struct stop_strings *stops, bool skip_special);
void text_stream_free(struct text_stream *stream);

/* Adds a token; appends the text it releases to `out`. True when it completed a stop string. */
bool text_stream_push(struct text_stream *stream, int32_t token, struct buffer *out);

/* The sequence is over: appends what was held back. */
void text_stream_finish(struct text_stream *stream, struct buffer *out);
