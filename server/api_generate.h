/* From a request's JSON body to a generation that runs: the way that HTTP requests, lines of a
 * batch and records of a SageMaker transform share.
 *
 *     body --api_draft_read--> draft --api_draft_start--> generation
 *            any thread                loop thread
 *
 * Reading (parsing, templates, tokens, grammars) takes as long as the body is large; it needs
 * nothing but the body and what does not change while the model is served. */
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

/* A request that was read. */
struct api_draft {
    bool ok;                /* or else only the fault is there */
    struct api_fault fault; /* what the client is to be told */
    struct api_params params;
    struct prompt *prompts;
    int n_prompts;
    struct constraint *constraint; /* NULL: none */
};

void api_draft_read(struct api_draft *draft, const struct api_service *service, const char *text,
                    size_t len, api_kind_of kind_of);
void api_draft_free(struct api_draft *draft);

/* Starts it. NULL and a fault when it can't be; nothing is answered then. The draft is used up
 * either way. */
struct generation *api_draft_start(struct api_draft *draft, const struct api_service *service,
                                   struct answer answer, struct api_fault *fault);

/* Both at once, for a body that is parsed already; it is not kept. */
struct generation *api_generate(const struct api_service *service, const struct json *body,
                                api_kind_of kind_of, struct answer answer, struct api_fault *fault);

/* Whether the body's "model" (absent and empty ones count) is the one that is served; or a fault.
 */
int api_check_model(const struct api_service *service, const struct json *body,
                    struct api_fault *fault);
