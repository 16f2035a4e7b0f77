/* The built-in chat format: messages to the prompt of a DeepSeek model.
 *
 *   <bos> system texts, joined by an empty line; the tools, as DeepSeek V3.1 describes them
 *   <｜User｜> text
 *   <｜Assistant｜> text, its tool calls between markers <end of sentence>
 *   <｜tool▁output▁begin｜> text <｜tool▁output▁end｜>
 *
 * Markers go in by their ids and texts as text only, so nothing that a user writes becomes a
 * marker; where no text holds one, the ids equal those of the rendered template encoded as one
 * string. (The template is model/demo/chat_template.jinja; it knows no developer role and no open
 * final message.) */
#pragma once

#include "base/error.h"
#include "base/json.h"
#include "model/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>

struct chat_message {
    const char *role;    /* system, developer (the same), user, assistant or tool */
    const char *content; /* NUL-terminated; NULL is no text */

    /* An assistant's calls, as in the OpenAI API: an array of {"function": {"name", "arguments"}}.
     * Arguments that are a string go in as they are, others as JSON. NULL: none. */
    const struct json *tool_calls;
};

struct chat_options {
    bool add_generation_prompt;  /* ends with the marker that opens the assistant's turn */
    bool continue_final_message; /* the last message, an assistant's, is left open and as it is */

    /* An array of {"function": {"name", "description", "parameters"}}. A function without a
     * description has an empty one, one without parameters {}. NULL or empty: none. */
    const struct json *tools;
};

/* Whether the tokenizer has the markers of the format. */
bool chat_supported(const struct tokenizer *tok);

/* Appends the prompt of the messages. Of an assistant's earlier content, reasoning (all up to the
 * first "</think>") is left out. -1 with a message that names the role when one is unknown, when
 * tools or calls lack a part, when the vocabulary lacks a marker that is needed, when an option
 * does not fit the messages, or when the list's bound is passed. */
int chat_encode(const struct tokenizer *tok, const struct chat_message *messages, size_t count,
                struct chat_options options, struct token_list *out, struct error *err);
