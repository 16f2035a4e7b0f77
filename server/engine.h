/* The engine: a thread of its own that owns scheduler, KV cache, model and device, and runs steps.
 *
 * It is reached by values only. The loop thread submits requests and cancels, and polls events; ids
 * (slot and generation) name sequences on both sides, and an id whose sequence is over is ignored.
 * Everything here is for the loop thread, except the wake callback, which runs on the engine's.
 *
 *     engine_submit --> command queue --> [ engine thread: plan, forward, sample ] --> event queue
 *     engine_cancel -->                                                 wake() once per step  |
 *     engine_poll   <-------------------------------------------------------------------------'
 *
 * A sequence that was submitted ends with exactly one final event: a token with a finish reason,
 * ENGINE_CANCELLED, or ENGINE_FAILED for all at once. Then its slot is free again. */
#pragma once

#include "base/error.h"
#include "config/options.h"
#include "kernels/sampling.h"
#include "model/chat_template.h"
#include "model/config.h"
#include "model/output.h"
#include "model/tokenizer.h"
#include "server/constraint.h"
#include "server/load_phase.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct engine;

enum { ENGINE_STOP_S = 3 };

/* One sequence to generate. */
struct engine_request {
    int32_t *tokens; /* the prompt; owned by the request, see engine_submit */
    int32_t n_tokens;
    int32_t max_tokens; /* to generate, at least 1; with the prompt at most max_model_len */
    int32_t priority;   /* smaller is earlier */
    uint64_t cache_salt;
    struct sampling_params sampling; /* its stop_tokens also end the sequence */
    struct constraint *constraint;   /* owned; NULL: none */
    bool score_prompt;               /* ENGINE_SCORE for each prompt token but the first */
};

enum finish_reason {
    FINISH_NONE,
    FINISH_STOP,     /* by a stop token: part of the tokens, not of the text */
    FINISH_COMPLETE, /* nothing may follow by the request's constraint */
    FINISH_LENGTH,
};

enum engine_event_type {
    ENGINE_READY,     /* the model is loaded */
    ENGINE_FAILED,    /* loading or the device failed; nothing follows */
    ENGINE_ADMITTED,  /* a sequence runs for the first time */
    ENGINE_SCORE,     /* how likely a token of a prompt was; in order, before the first token */
    ENGINE_TOKEN,     /* a sequence has a new token, perhaps its last */
    ENGINE_CANCELLED, /* a cancel was carried out */
    ENGINE_STEP,      /* the state after a step or a command */
};

/* What the engine looks like after a step. Counts "ever" only grow. */
struct engine_step {
    int32_t rows;          /* query tokens of this step */
    int32_t seqs;          /* sequences of this step */
    int32_t prompt_tokens; /* of them prompt tokens */
    int32_t running, waiting;
    int32_t pages, pages_used;
    int64_t preemptions;           /* ever */
    int64_t prefix_queries_tokens; /* ever */
    int64_t prefix_hits_tokens;    /* ever */
    int64_t drafts, draft_tokens;  /* ever; none without a draft model */
    int64_t accepted_tokens;       /* ever: of the drafts' */
    int64_t step_us;               /* from the step's start, or the end of the one before it */
    int64_t wait_us;               /* of that, waiting for the device */
};

struct engine_event {
    enum engine_event_type type;
    uint64_t id;
    int64_t time_us; /* clock_us when it happened */
    union {
        int32_t cached_tokens;        /* ENGINE_ADMITTED: prompt tokens found in the prefix cache */
        struct sampling_result score; /* ENGINE_SCORE */
        struct {
            struct sampling_result result;
            enum finish_reason finish;
        } token;
        struct engine_step step;
        struct error error; /* ENGINE_FAILED */
    };
};

/* What the loop needs to know of the model; fixed once ENGINE_READY was polled. */
struct engine_model {
    struct model_config config;
    struct tokenizer *tokenizer;
    struct vocabulary_trie *trie; /* for grammars */
    int32_t max_model_len;
    int32_t kv_pages;
    const char *backend; /* name */
    int64_t load_us[N_LOAD_PHASES];
    struct chat_templates *chat_templates;
    bool trust_request_chat_template;
    const struct output_format *output_format;
    int32_t marker_ids[OUTPUT_MAX_MARKERS]; /* of the format */
    int n_marker_ids;
};

/* Starts the thread, which loads the model `dir` first. `wake(arg)` is called, on the engine's
 * thread, when events wait to be polled. */
struct engine *engine_start(const struct options *options, const char *dir, void (*wake)(void *arg),
                            void *arg);

/* Ends the thread (also in the middle of loading) and frees everything. False when the thread does
 * not end within ENGINE_STOP_S, stuck in a system call: then nothing is freed, and the process
 * should end. */
bool engine_stop(struct engine *engine);

/* NULL before ENGINE_READY was polled. */
const struct engine_model *engine_model(const struct engine *engine);

/* Slots: the most sequences that can be in the engine at once, and how many more fit now. */
int32_t engine_slots(const struct engine *engine);
int32_t engine_slots_free(const struct engine *engine);

/* The slot of an id: below engine_slots, unique among live ids. */
int32_t engine_slot(uint64_t id);

/* Hands the request over (it and its tokens are freed by the engine). Returns its id; 0, with the
 * request still the caller's, when no slot is free. */
uint64_t engine_submit(struct engine *engine, struct engine_request *request);
void engine_request_free(struct engine_request *request);

/* Ends a sequence soon: before the next step is planned. Never refused; harmless when the sequence
 * is over or was cancelled before. Its final event still comes. */
void engine_cancel(struct engine *engine, uint64_t id);

/* Moves up to `max` events out; returns how many. */
size_t engine_poll(struct engine *engine, struct engine_event *events, size_t max);
