/* Prompts of a request's JSON body as token ids. */
#pragma once

#include "base/json.h"
#include "server/api_error.h"
#include "server/api_params.h"
#include "server/engine.h"
#include "server/generation.h"

/* Chat: "messages", through the model's chat format, give one prompt. Completion: "prompt" (or
 * "inputs") is a string, a list of strings, a list of token ids, or a list of such lists. The
 * caller frees the prompts with prompts_free. */
int api_prompts_parse(const struct json *body, const struct api_params *params,
                      const struct engine_model *model, struct prompt **prompts, int *n_prompts,
                      struct api_fault *fault);
