/* A request's conversation as the variables of a chat template, in JSON. */
#pragma once

#include "base/buffer.h"
#include "model/chat_template.h"

/* What is put behind a message that is to be continued: where it comes out, the prompt ends. */
#define CHAT_CONTINUE_TAG "CONTINUE_FINAL_MESSAGE_TAG "

/* How a template wants its messages. */
struct chat_shape {
    bool parts;      /* content may come in parts */
    bool developers; /* it knows the role "developer", which is "system" to others */
};

/* Writes the object: messages, tools, documents, add_generation_prompt, reasoning_effort and what
 * kwargs add. */
void chat_write_context(struct buffer *out, const struct chat_template_request *request,
                        struct chat_shape shape);
