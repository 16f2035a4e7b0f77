/* Conversations to prompts by the templates that a checkpoint ships:
 *
 *   chat_template.jinja             and additional_chat_templates/NAME.jinja beside it
 *   tokenizer_config.json           "chat_template": a text, or a list of {"name", "template"}
 *   chat_template.json              the same
 *
 * in this order. Of named templates "tool_use" is for requests with tools, "default" for others.
 * Templates get the variables that transformers gives them; special tokens such as bos_token come
 * from tokenizer_config.json or special_tokens_map.json. Messages are prepared as vLLM does it: a
 * call's arguments are parsed, members that are null are left out, and content in parts is joined
 * unless the template goes through parts itself. A developer's message is one of the system for
 * templates that don't speak of developers: most would leave it out without a word.
 *
 * The rendered text holds all special tokens that belong in the prompt: none is added to it. What
 * the request brought never becomes a marker, but for the tags of reasoning in what the assistant
 * said. */
#pragma once

#include "base/error.h"
#include "base/json.h"
#include "model/output.h"
#include "model/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>

struct chat_templates;

/* What a folder has, with `choice` "auto"; "builtin" ignores its templates, anything else is the
 * path of a file with a template to use instead. Where a family ships none, there may be a built-in
 * one for its `model_type`. NULL on error. A template of the checkpoint that can't be compiled is
 * none yet: see chat_templates_problem. */
struct chat_templates *chat_templates_load(const char *dir, const char *model_type,
                                           const char *choice, struct error *err);
void chat_templates_free(struct chat_templates *templates);

/* Whether conversations go through a template. */
bool chat_templates_any(const struct chat_templates *templates);

/* Why the checkpoint's template can't be used; NULL: nothing is wrong. */
const char *chat_templates_problem(const struct chat_templates *templates);

struct chat_template_request {
    const struct json *messages; /* the API's: objects with a role; content is text or parts */
    const struct json *tools, *documents; /* NULL: none */
    const struct json *kwargs;            /* an object of more variables, or NULL */
    const char *reasoning_effort;         /* or NULL */
    const char *own_template;             /* of the request, or NULL */
    bool add_generation_prompt, continue_final_message;
};

/* What was wrong, for the name of the parameter. */
enum chat_template_fault {
    CHAT_FAULT_NONE,
    CHAT_FAULT_MESSAGES,
    CHAT_FAULT_TEMPLATE,
    CHAT_FAULT_KWARGS,
    CHAT_FAULT_EFFORT,
    CHAT_FAULT_TOOLS,
    CHAT_FAULT_LENGTH, /* the list's bound is passed, or that of the text */
};

/* Appends the prompt. `*open_reasoning` tells whether it ends inside the assistant's reasoning. On
 * a fault the message says what to change. */
enum chat_template_fault chat_templates_encode(const struct chat_templates *templates,
                                               const struct tokenizer *tok,
                                               const struct output_format *format,
                                               const struct chat_template_request *request,
                                               struct token_list *out, bool *open_reasoning,
                                               struct error *err);

/* Ends the reasoning that a prompt has opened: appends the closing tag to tokens and text. */
int chat_close_reasoning(const struct output_format *format, const struct tokenizer *tok,
                         struct token_list *tokens, struct buffer *text, struct error *err);
