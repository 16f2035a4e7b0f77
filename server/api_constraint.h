/* What a request's fields allow its answer to be: response_format, structured_outputs (and vLLM's
 * older guided_*), allowed_token_ids, bad_words, a named tool's parameters. */
#pragma once

#include "base/json.h"
#include "server/api_error.h"
#include "server/api_params.h"
#include "server/constraint.h"
#include "server/engine.h"

/* Grammars that were compiled before, the latest used first: the same schema comes with every
 * request of an application. For any thread. */
struct grammar_cache;

struct grammar_cache *grammar_cache_new(void);
void grammar_cache_free(struct grammar_cache *cache);

/* The constraint of a request; NULL with rc 0 when it has none. The caller frees it. */
int api_constraint_parse(const struct json *body, const struct api_params *params,
                         const struct engine_model *model, struct grammar_cache *cache,
                         struct constraint **constraint, struct api_fault *fault);
