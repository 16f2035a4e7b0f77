/* From a request's JSON body to a generation that runs: the way that HTTP requests, lines of a
 * batch and records of a SageMaker transform share. */
#pragma once

#include "server/answer.h"
#include "server/api_error.h"
#include "server/api_params.h"
#include "server/engine.h"
#include "server/generation.h"

/* What requests are checked against and started on. */
struct api_service {
    const char *model_name;
    struct engine *engine; /* must be ready */
    struct generations *generations;
    struct grammar_cache *grammars;
};

/* Which API a body is for. */
typedef enum api_kind (*api_kind_of)(const struct json *body);
enum api_kind api_always_chat(const struct json *body);
enum api_kind api_always_completion(const struct json *body);
enum api_kind api_by_fields(const struct json *body); /* "messages": chat */

/* Parses `text` and starts it. NULL and a fault when it can't be; nothing is answered then. */
struct generation *api_generate_text(const struct api_service *service, const char *text,
                                     size_t len, api_kind_of kind_of, struct answer answer,
                                     struct api_fault *fault);

/* The same for a body that is parsed already; it is not kept. */
struct generation *api_generate(const struct api_service *service, const struct json *body,
                                api_kind_of kind_of, struct answer answer, struct api_fault *fault);

/* Whether the body's "model" (absent and empty ones count) is the one that is served; or a fault.
 */
int api_check_model(const struct api_service *service, const struct json *body,
                    struct api_fault *fault);
