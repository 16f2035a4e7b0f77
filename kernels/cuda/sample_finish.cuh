/* Puts the chunks of a row together and settles its token: see sample.cuh. A warp a row. */
#pragma once

#include "kernels/cuda/sample_math.cuh"

#include <stddef.h>

/* A chunk of this launch or of an earlier one: past the first-level cache, which other processors'
 * writes do not reach. */
static __device__ __forceinline__ sample_chunk sample_load_chunk(const sample_chunk *chunk)
{
    sample_chunk c;

    static_assert(sizeof(c) % sizeof(double) == 0, "copied 8 bytes at a time");
    for (size_t i = 0; i < sizeof(c) / sizeof(double); i++)
        ((double *)&c)[i] = __ldcg((const double *)chunk + i);
    return c;
}

/* What the chunks of a row say together. */
struct sample_whole {
    uint64_t raw, adjusted; /* keys of the largest logits */
    double total;           /* log of the sum of exponentials */
    float raw_max;
    sample_best best;
};

static __device__ sample_whole sample_gather(const sample_args &a, int r)
{
    const sample_chunk *chunks = a.chunks + (int64_t)r * a.n_chunks;
    const int lane = threadIdx.x % 32;
    sample_whole s = {0, 0, 0, -SAMPLE_INFINITY, {0, -1}};
    double sum = 0;

    for (int i = lane; i < a.n_chunks; i += 32) {
        const sample_chunk c = sample_load_chunk(&chunks[i]);
        s.raw = sample_max()(s.raw, sample_key(c.raw_max, c.raw_token));
        s.adjusted = sample_max()(s.adjusted, sample_key(c.max, c.token));
        s.raw_max = fmaxf(s.raw_max, c.raw_max);
        s.best = sample_better(s.best, {c.score, c.drawn});
    }
    s.raw = sample_warp(s.raw, sample_max());
    s.adjusted = sample_warp(s.adjusted, sample_max());
    s.raw_max = sample_warp(s.raw_max, sample_max());
    s.best = sample_best_of_warp(s.best);
    for (int i = lane; i < a.n_chunks; i += 32) {
        const sample_chunk c = sample_load_chunk(&chunks[i]);
        if (c.raw_max > -SAMPLE_INFINITY)
            sum += c.sum * exp((double)c.raw_max - (double)s.raw_max);
    }
    sum = sample_warp(sum, sample_sum());
    s.total = s.raw_max > -SAMPLE_INFINITY ? s.raw_max + log(sum) : s.raw_max;
    return s;
}

/* By all lanes of a warp. `filtered`: the token that was drawn among the kept ones of a row with
 * filters. */
static __device__ void sample_finish_row(const sample_args &a, int r, int32_t filtered)
{
    const sample_row &row = a.rows[r];
    const sample_whole s = sample_gather(a, r);
    int32_t token = row.target;

    if (threadIdx.x % 32 != 0)
        return;
    if (token < 0) {
        token = sample_key_token(s.adjusted);
        if ((uint32_t)(s.adjusted >> 32) == sample_ordered(-SAMPLE_INFINITY)) /* all are banned */
            token = sample_key_token(s.raw);
        else if (row.temperature > 0)
            token = row.flags & SAMPLE_FILTERS ? filtered : s.best.token;
        a.last_tokens[row.slot] = token;
        if (row.state && row.state->has_counts)
            sample_counts(row.state)[token] += 2;
    }
    const float logit = sample_clean(a.logits[(int64_t)r * a.vocab + token]);
    const float logprob =
        logit > -SAMPLE_INFINITY ? (float)((double)logit - s.total) : -SAMPLE_INFINITY;
    /* The first four members at once; rank and alternatives are sample_report's. */
    static_assert(offsetof(sampling_result, logprob) == 4 && offsetof(sampling_result, rank) == 8 &&
                      offsetof(sampling_result, n_top) == 12 && sizeof(sampling_result) % 16 == 0,
                  "results are written 16 bytes at a time");
    *(int4 *)&a.results[r] = make_int4(token, __float_as_int(logprob), 0, 0);
    a.draws[r] = {s.total, s.raw_max, token};
}
