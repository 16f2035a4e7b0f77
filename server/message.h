/* The assistant's message of one chat choice, as it grows: generated text goes in, and content,
 * reasoning and tool calls come out, for a whole answer or for the next delta of a stream. */
#pragma once

#include "base/buffer.h"
#include "model/output.h"
#include "model/output_object.h"

#include <stdbool.h>
#include <stdint.h>

struct message {
    struct output_parser *parser;
    bool stream;    /* the buffers hold what the next delta will carry, not all */
    bool short_ids; /* see output_format_has_short_ids */
    struct buffer content, reasoning;
    struct buffer calls;     /* JSON of the "tool_calls" entries, without brackets */
    struct buffer arguments; /* of the open call of a whole answer */
    int32_t n_calls;         /* begun so far */
    int32_t n_ended;         /* of them */
    bool call_open;          /* the JSON of the latest call's arguments has not ended */
    struct json_extent extent;
    int32_t reasoning_tokens;
};

void message_init(struct message *message, const struct output_format *format,
                  struct output_options options, bool stream);
void message_free(struct message *message);

/* Adds text; `tokens` of them generated it (for reasoning_tokens). */
void message_push(struct message *message, const char *text, size_t len, int32_t tokens);

/* The text is over. */
void message_finish(struct message *message);

/* Whether a delta has something to carry. */
bool message_has_delta(const struct message *message);

/* After a delta was sent. */
void message_clear_delta(struct message *message);
