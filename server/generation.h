/* Generation requests in flight: from checked parameters and token ids to the HTTP answer.
 *
 * A generation is one request with one or more choices, each a sequence of the engine's, and one
 * answer (an HTTP exchange, say). It lives until the owner of the answer closes it:
 *
 *     start ----> OPEN --------- last choice finished: complete -------> ANSWERED --closed--> freed
 *                  |  '--- timeout, engine failure, drain: fail ------------^
 *                  '------ closed by a client that went away: its sequences are cancelled --> freed
 *
 * All of it belongs to the loop thread. */
#pragma once

#include "config/options.h"
#include "server/api_error.h"
#include "server/api_params.h"
#include "server/engine.h"
#include "server/metrics.h"

struct generations; /* all that are in flight */

/* One prompt of a request. */
struct prompt {
    struct token_list tokens;
    char *echo;          /* the text `echo` repeats, or NULL */
    bool open_reasoning; /* it ends inside what the model thinks */
    char *forced;        /* the end of the prompt that is the beginning of the answer, or NULL */
};

void prompts_free(struct prompt *prompts, int n);

struct generations *generations_new(struct engine *engine, struct metrics *metrics,
                                    const char *model_name, const struct options *options);
void generations_free(struct generations *all); /* none may be in flight */

struct generation;

/* Starts a request with `n_prompts` prompts; `constraint` (NULL: none) is copied. On success params
 * and prompts are taken over; on a fault (queue full: 429, too long: 400) they stay the caller's
 * and NULL is returned. */
struct generation *generations_start(struct generations *all, struct answer answer,
                                     struct api_params *params, struct prompt *prompts,
                                     int n_prompts, const struct constraint *constraint,
                                     struct api_fault *fault);

/* An event of a sequence: admitted, token, cancelled. */
void generations_handle(struct generations *all, const struct engine_event *event);

/* The answer is complete, or nobody wants it any more: cancels what is still open, and frees the
 * generation. Every generation that was started is closed once. */
void generation_closed(struct generation *gen);

/* What logs and traces tell of a request. Strings live as long as the generation. */
struct generation_summary {
    const char *id;
    enum api_kind kind;
    bool stream;
    int32_t n;          /* choices for each prompt */
    int32_t max_tokens; /* -1: the request doesn't say */
    float temperature, top_p;
    int32_t prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens;
    int64_t queue_us;       /* from arrival to the first step of its last sequence; -1: none ran */
    int64_t first_token_us; /* from arrival to the first token; -1: none came */
    const char *finish_reasons[API_MAX_CHOICES]; /* of the first choices that are over */
    int n_finish_reasons;
};

void generation_summarize(const struct generation *gen, struct generation_summary *summary);

/* Several times a second: time limits, and comments on silent streams. */
void generations_tick(struct generations *all);

/* Ends every generation that is still open with this fault. */
void generations_fail_all(struct generations *all, const struct api_fault *fault);

int generations_active(const struct generations *all);
