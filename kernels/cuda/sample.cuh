/* The sampling kernels and their data. kernels/cpu/sample.c is the definition that they follow, in
 * result and in the order of operations; kernels/sampling.h describes it.
 *
 *   sample_scan    (chunks, rows) blocks: one pass over the logits. Each chunk's largest logit, sum
 *                  of exponentials and, for rows without filters, best draw. Rows with bias,
 *                  penalties, bans or a mask get their changed logits written to `adjusted`.
 *   sample_filter  a block for each row with top_k, top_p or min_p: finds where the kept tokens end
 *                  and draws among them.
 *   sample_finish  a warp a row: puts the chunks together, settles the token.
 *   sample_report  a block for each row that wants alternatives or a score: the top list, the rank.
 *
 * A recorded step ends with sample_scan and sample_finish, which do nothing in a step with rows
 * that want more than these (filters, reports, bias, penalties, bans): it is sampled after its
 * graph, as are steps with masks and those that aren't recorded. */
#pragma once

#include "kernels/sampling.h"

#include <cuda_runtime.h>
#include <stdint.h>

enum {
    SAMPLE_CHUNK = 2048, /* logits of one block of sample_scan */

    SAMPLE_ADJUSTS = 1, /* bias, penalties or held back tokens */
    SAMPLE_FILTERS = 2, /* top_k, top_p or min_p */
    SAMPLE_REPORTS = 4, /* alternatives or a score are wanted */
};

/* What of a sampler's state only few requests have: on the device, from open to close. Behind the
 * struct stand `counts` (V) if there are penalties: tokens drawn, times 2, plus 1 if in the prompt.
 */
struct sample_state {
    int32_t n_bias, n_stop;
    int32_t has_counts;
    int32_t unused;
    struct sampling_bias
        bias[SAMPLING_MAX_BIAS]; /* by token; of one token in the request's order */
    int32_t stop[SAMPLING_MAX_STOP_TOKENS];
};

static __host__ __device__ inline int32_t *sample_counts(struct sample_state *state)
{
    return (int32_t *)(state + 1);
}

/* A logit row, part of the step image. */
struct sample_row {
    int32_t slot, step, target, flags;
    float temperature, top_p, min_p;
    int32_t top_k;
    float repetition_penalty, presence_penalty, frequency_penalty;
    int32_t n_logprobs;
    uint64_t seed;
    struct sample_state *state; /* NULL: none */
    int32_t holds_stops;        /* step < min_tokens */
    int32_t place;              /* in `adjusted`: which of the rows that are drawn from it is */
};

/* What sample_scan found in a chunk. */
struct sample_chunk {
    float raw_max;     /* of the model's logits, */
    int32_t raw_token; /* the first token that has it, */
    double sum;        /* and the sum of exp(logit - raw_max) */
    float max;         /* the same of the adjusted logits */
    int32_t token;
    double score; /* of the best draw; -infinity: none */
    int32_t drawn, unused;
};

/* What later kernels need of a row. */
struct sample_draw {
    double total;     /* log of the sum of exponentials of the model's logits */
    int32_t filtered; /* token drawn by sample_filter; -1: none */
    int32_t token;    /* the row's token, by sample_finish */
    float raw_max;
    int32_t unused;
};

/* One call's arguments: device pointers. */
struct sample_args {
    const float *logits;   /* (rows, vocab) */
    float *adjusted;       /* (rows that are drawn from, vocab) */
    const uint32_t *masks; /* (rows, words) or NULL */
    const struct sample_row *rows;
    const int32_t *filtered, *reported; /* rows of sample_filter and of sample_report */
    struct sample_chunk *chunks;        /* (rows, n_chunks) */
    struct sample_draw *draws;          /* (rows) */
    int32_t *last_tokens;               /* by slot */
    struct sampling_result *results;    /* (rows), the host's memory: written, never read */
    /* In a graph: see struct step_image. (n_rows is the graph's.) Or NULL. */
    const int32_t *live_rows;
    struct sampling_result *const *live_results;
    int32_t n_rows, n_filtered, n_reported;
    int32_t vocab, n_chunks;
};

/* Whether row r is sampled; where its result goes. After launch_wait. */
static __device__ inline bool sample_is_live(const struct sample_args &a, int r)
{
    return a.live_rows ? *a.live_results && r < *a.live_rows : r < a.n_rows;
}

static __device__ inline struct sampling_result *sample_result(const struct sample_args &a, int r)
{
    return (a.live_rows ? *a.live_results : a.results) + r;
}

/* Queues the kernels that the rows need. */
cudaError_t sample_launch(const struct sample_args *args, cudaStream_t stream);

/* Its parts, a file each. */
cudaError_t sample_scan_launch(const struct sample_args *args, cudaStream_t stream);
cudaError_t sample_filter_launch(const struct sample_args *args, cudaStream_t stream);
cudaError_t sample_finish_launch(const struct sample_args *args, cudaStream_t stream);
cudaError_t sample_report_launch(const struct sample_args *args, cudaStream_t stream);
