/* Puts the chunks of a row together and settles its token: see sample.cuh. A warp a row. */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/sample_math.cuh"

#include <stddef.h>

enum { ROWS = 4 }; /* of a block */

namespace
{

struct row_state {
    uint64_t raw, adjusted; /* keys of the largest logits */
    double sum;             /* of exp(logit - the largest) */
    sample_best best;
};

__device__ row_state gather(const sample_args &a, int r)
{
    const sample_chunk *chunks = a.chunks + (int64_t)r * a.n_chunks;
    row_state s = {0, 0, 0, {0, -1}};

    for (int c = threadIdx.x; c < a.n_chunks; c += 32) {
        s.raw = sample_max()(s.raw, sample_key(chunks[c].raw_max, chunks[c].raw_token));
        s.adjusted = sample_max()(s.adjusted, sample_key(chunks[c].max, chunks[c].token));
        s.best = sample_better(s.best, {chunks[c].score, chunks[c].drawn});
    }
    s.raw = sample_warp(s.raw, sample_max());
    s.adjusted = sample_warp(s.adjusted, sample_max());
    s.best = sample_best_of_warp(s.best);
    return s;
}

__global__ void finish_kernel(const sample_args a)
{
    const int r = blockIdx.x * ROWS + threadIdx.y;

    launch_next();
    launch_wait();
    if (!sample_is_live(a, r))
        return;
    const sample_row &row = a.rows[r];
    const float *raw = a.logits + (int64_t)r * a.vocab;
    row_state s = gather(a, r);
    const float raw_max = sample_clean(raw[sample_key_token(s.raw)]);
    double sum = 0;
    for (int c = threadIdx.x; c < a.n_chunks; c += 32) {
        const sample_chunk &chunk = a.chunks[(int64_t)r * a.n_chunks + c];
        if (chunk.raw_max > -SAMPLE_INFINITY)
            sum += chunk.sum * exp((double)chunk.raw_max - (double)raw_max);
    }
    sum = sample_warp(sum, sample_sum());
    if (threadIdx.x != 0)
        return;

    const double total = raw_max > -SAMPLE_INFINITY ? raw_max + log(sum) : raw_max;
    int32_t token = row.target;
    if (token < 0) {
        token = sample_key_token(s.adjusted);
        if (!(sample_logits(a, r)[token] > -SAMPLE_INFINITY))
            token = sample_key_token(s.raw);
        else if (row.temperature > 0)
            token = row.flags & SAMPLE_FILTERS ? a.draws[r].filtered : s.best.token;
        a.last_tokens[row.slot] = token;
        if (row.state && row.state->has_counts)
            sample_counts(row.state)[token] += 2;
    }
    const float logit = sample_clean(raw[token]);
    const float logprob =
        logit > -SAMPLE_INFINITY ? (float)((double)logit - total) : -SAMPLE_INFINITY;
    /* The first four members at once; rank and alternatives are sample_report's. */
    static_assert(offsetof(sampling_result, logprob) == 4 && offsetof(sampling_result, rank) == 8 &&
                      offsetof(sampling_result, n_top) == 12 && sizeof(sampling_result) % 16 == 0,
                  "results are written 16 bytes at a time");
    *(int4 *)sample_result(a, r) = make_int4(token, __float_as_int(logprob), 0, 0);
    a.draws[r].token = token;
    a.draws[r].total = total;
    a.draws[r].raw_max = raw_max;
}

} // namespace

cudaError_t sample_finish_launch(const struct sample_args *args, cudaStream_t stream)
{
    return launch_early(finish_kernel, dim3((unsigned)(args->n_rows + ROWS - 1) / ROWS),
                        dim3(32, ROWS), 0, stream, *args);
}

cudaError_t sample_launch(const struct sample_args *args, cudaStream_t stream)
{
    cudaError_t rc = sample_scan_launch(args, stream);

    if (rc == cudaSuccess && args->n_filtered > 0)
        rc = sample_filter_launch(args, stream);
    if (rc == cudaSuccess)
        rc = sample_finish_launch(args, stream);
    if (rc == cudaSuccess && args->n_reported > 0)
        rc = sample_report_launch(args, stream);
    return rc;
}
