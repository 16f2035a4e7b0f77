/* The built-in chat format: messages to the prompt of a DeepSeek model.
 *
 *   <bos> system texts, joined by an empty line
 *   <｜User｜> text   <｜Assistant｜> text <end of sentence>
 *   <｜tool▁output▁begin｜> text <｜tool▁output▁end｜>
 *
 * Markers go in by their ids and texts as text only, so nothing that a user writes becomes a
 * marker; where no text holds one, the ids equal those of the rendered template encoded as one
 * string. */
#pragma once

#include "base/error.h"
#include "model/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>

struct chat_message {
    const char *role;    /* system, developer (the same), user, assistant or tool */
    const char *content; /* NUL-terminated */
};

struct chat_options {
    bool add_generation_prompt;  /* ends with the marker that opens the assistant's turn */
    bool continue_final_message; /* the last message, an assistant's, is left open and as it is */
};

/* Whether the tokenizer has the markers of the format. */
bool chat_supported(const struct tokenizer *tok);

/* Appends the prompt of the messages. Of an assistant's earlier content, reasoning (all up to the
 * first "</think>") is left out. -1 with a message that names the role when one is unknown, when an
 * option does not fit the messages, or when the list's bound is passed. */
int chat_encode(const struct tokenizer *tok, const struct chat_message *messages, size_t count,
                struct chat_options options, struct token_list *out, struct error *err);
