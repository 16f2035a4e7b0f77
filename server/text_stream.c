#include "server/text_stream.h"

#include <string.h>

enum { HELD_MAX = 1 << 20 }; /* far above a token's bytes plus the longest stop string */

void text_stream_init(struct text_stream *stream, const struct tokenizer *tok,
                      const struct stop_strings *stops, bool skip_special)
{
    *stream = (struct text_stream){.tok = tok, .stops = stops, .skip_special = skip_special};
    detokenizer_init(&stream->detok);
    buffer_init(&stream->held, HELD_MAX);
}

void text_stream_free(struct text_stream *stream)
{
    buffer_free(&stream->held);
}

/* Finds the stop string that ends first in the held text (of those ending together, the longest).
 * Returns it, and where it starts; or NULL. */
static const char *find_stop(const struct text_stream *stream, size_t *start)
{
    const struct buffer *held = &stream->held;
    size_t best_end = held->len + 1, best_len = 0;
    const char *best = NULL;

    for (int i = 0; i < stream->stops->n; i++) {
        size_t len = strlen(stream->stops->text[i]);
        const char *at = memmem(held->data, held->len, stream->stops->text[i], len);
        if (!at)
            continue;
        size_t end = (size_t)(at - held->data) + len;
        if (end < best_end || (end == best_end && len > best_len)) {
            best_end = end;
            best_len = len;
            best = stream->stops->text[i];
            *start = (size_t)(at - held->data);
        }
    }
    return best;
}

/* Length of the longest end of the held text that begins a stop string. */
static size_t undecided(const struct text_stream *stream)
{
    const struct buffer *held = &stream->held;
    size_t longest = 0;

    for (int i = 0; i < stream->stops->n; i++) {
        const char *stop = stream->stops->text[i];
        size_t len = strlen(stop) - 1;
        for (len = len < held->len ? len : held->len; len > longest; len--)
            if (memcmp(held->data + held->len - len, stop, len) == 0)
                longest = len;
    }
    return longest;
}

static void release(struct text_stream *stream, size_t len, struct buffer *out)
{
    buffer_append(out, stream->held.data, len);
    buffer_consume(&stream->held, len);
}

/* Releases what is decided; true when a stop string is complete. */
static bool settle(struct text_stream *stream, struct buffer *out)
{
    size_t start = 0;

    if (stream->held.len == 0)
        return false;
    stream->stopped = stream->n_tokens > stream->min_tokens ? find_stop(stream, &start) : NULL;
    if (!stream->stopped) {
        release(stream, stream->held.len - undecided(stream), out);
        return false;
    }
    release(stream, start + (stream->stops->include ? strlen(stream->stopped) : 0), out);
    buffer_clear(&stream->held);
    return true;
}

bool text_stream_push(struct text_stream *stream, int32_t token, struct buffer *out)
{
    bool skip = stream->skip_special;

    if (stream->stopped)
        return true;
    for (int i = 0; skip && i < stream->n_shown; i++)
        skip = stream->shown[i] != token;
    stream->n_tokens++;
    detokenizer_push(&stream->detok, stream->tok, token, skip, &stream->held);
    return settle(stream, out);
}

void text_stream_finish(struct text_stream *stream, struct buffer *out)
{
    if (stream->stopped)
        return;
    detokenizer_finish(&stream->detok, &stream->held);
    if (!settle(stream, out))
        release(stream, stream->held.len, out);
}
