/* Prometheus metrics under vLLM's names, and mlad_* for what vLLM has no name for. All of it lives
 * on the loop thread; the engine's share arrives as engine_step values. */
#pragma once

#include "base/buffer.h"
#include "server/engine.h"

#include <stdint.h>

struct metrics;

/* How a request ended, as counted in vllm:request_success_total and mlad_requests_total. */
enum request_outcome {
    OUTCOME_STOP,
    OUTCOME_LENGTH,
    OUTCOME_ABORT, /* the client went away */
    OUTCOME_TIMEOUT,
    OUTCOME_ERROR,
    N_OUTCOMES,
};

/* Bounds that were hit; each has a counter. */
enum request_limit {
    LIMIT_QUEUE,       /* 429 */
    LIMIT_CONNECTIONS, /* 503 */
    LIMIT_BODY,        /* 413 */
    LIMIT_UPLOADS,     /* 429: bodies of all requests together */
    LIMIT_READ_TIME,   /* 408 */
    LIMIT_QUEUE_TIME,  /* --queue-timeout-s: 503 */
    LIMIT_TOTAL_TIME,  /* --request-timeout-s */
    LIMIT_KEY,         /* requests of one key, in a minute or at once: 429 */
    LIMIT_SESSIONS,    /* 429 */
    N_LIMITS,
};

enum metrics_histogram {
    HIST_TTFT,
    HIST_ITL,
    HIST_E2E,
    HIST_QUEUE,
    HIST_INFERENCE,
    HIST_PREFILL,
    HIST_DECODE,
    HIST_PROMPT_TOKENS,
    HIST_GENERATION_TOKENS,
    HIST_ITERATION_TOKENS,
    HIST_LOOP_LAG,
    HIST_DELIVERY,
    HIST_STEP,
    N_HISTOGRAMS,
};

struct metrics *metrics_new(const char *model_name);
void metrics_free(struct metrics *metrics);

/* Seconds, or tokens, into a histogram. */
void metrics_observe(struct metrics *metrics, enum metrics_histogram histogram, double value);

void metrics_count_outcome(struct metrics *metrics, enum request_outcome outcome);
void metrics_count_limit(struct metrics *metrics, enum request_limit limit);
void metrics_count_generated(struct metrics *metrics, int64_t tokens);
void metrics_count_prompt(struct metrics *metrics, int64_t tokens);

/* Takes over the engine's state after a step. */
void metrics_note_step(struct metrics *metrics, const struct engine_step *step);

/* How long the phases of loading took, in microseconds. */
void metrics_note_load(struct metrics *metrics, const int64_t load_us[N_LOAD_PHASES]);

/* Values read when the page is written. */
struct metrics_now {
    const char *state; /* "loading", "ready", "draining" or "failed" */
    int32_t sequences; /* in the engine or on their way to it */
    int connections;
    int exchanges;
    size_t buffered_bytes, body_bytes;
    uint64_t dropped_clients;           /* ever */
    uint64_t spans_sent, spans_dropped; /* ever */
};

/* Writes the page in the text exposition format 0.0.4. */
void metrics_write(const struct metrics *metrics, const struct metrics_now *now,
                   struct buffer *out);
