/* A request's conversation as the variables of a chat template, in JSON. */
#pragma once

#include "base/buffer.h"
#include "model/chat_template.h"

/* What is put behind a message that is to be continued: where it comes out, the prompt ends. */
#define CHAT_CONTINUE_TAG "CONTINUE_FINAL_MESSAGE_TAG "

/* Writes the object: messages, tools, documents, add_generation_prompt, reasoning_effort and what
 * kwargs add. `parts` tells that the template takes content in parts. */
void chat_write_context(struct buffer *out, const struct chat_template_request *request,
                        bool parts);
