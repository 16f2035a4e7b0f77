/* The pass over the logits that every row takes: see sample.cuh. A block has SAMPLE_CHUNK logits of
 * a row, 8 a thread. */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/sample_math.cuh"

enum { THREADS = 256, EACH = SAMPLE_CHUNK / THREADS };

namespace
{

struct chunk_scratch {
    float logits[SAMPLE_CHUNK];
    uint64_t keys[32];
    double sums[32];
    float floats[32];
    sample_best best[32];
};

/* Token of a thread's i-th logit, counted from the chunk's first. */
__device__ __forceinline__ int place(int i)
{
    return i / 4 * (4 * THREADS) + threadIdx.x * 4 + i % 4;
}

/* Adds to the chunk's logits the biases of its tokens; those of one token in their order. */
__device__ void add_bias(float *logits, const sample_state &state, int first, int n)
{
    for (int e = threadIdx.x; e < state.n_bias; e += THREADS) {
        int token = state.bias[e].token, at = token - first;
        if (at < 0 || at >= n || (e > 0 && state.bias[e - 1].token == token))
            continue;
        for (int j = e; j < state.n_bias && state.bias[j].token == token; j++)
            logits[at] = __fadd_rn(logits[at], state.bias[j].bias);
    }
}

__device__ __forceinline__ float penalise(float logit, int32_t count, const sample_row &row)
{
    if (count == 0)
        return logit;
    logit = logit > 0 ? __fdiv_rn(logit, row.repetition_penalty)
                      : __fmul_rn(logit, row.repetition_penalty);
    if (count >> 1)
        logit = __fsub_rn(logit, __fadd_rn(__fmul_rn(row.frequency_penalty, (float)(count >> 1)),
                                           row.presence_penalty));
    return logit;
}

/* Bias, penalties, held back tokens and mask, in that order; l are the thread's logits. */
__device__ void adjust(float (&l)[EACH], chunk_scratch &s, const sample_args &a, int r, int first,
                       int n)
{
    const sample_row &row = a.rows[r];
    sample_state *state = row.state;
    const int32_t *counts = state && state->has_counts ? sample_counts(state) : NULL;

    for (int i = 0; i < EACH; i++)
        s.logits[place(i)] = l[i];
    __syncthreads();
    if (state)
        add_bias(s.logits, *state, first, n);
    __syncthreads();
    for (int i = 0; counts && i < EACH; i++)
        if (place(i) < n)
            s.logits[place(i)] = penalise(s.logits[place(i)], counts[first + place(i)], row);
    __syncthreads();
    for (int e = threadIdx.x; row.holds_stops && e < state->n_stop; e += THREADS)
        if (state->stop[e] >= first && state->stop[e] < first + n)
            s.logits[state->stop[e] - first] = -SAMPLE_INFINITY;
    __syncthreads();
    const uint32_t *mask = a.masks ? a.masks + r * SAMPLING_MASK_WORDS(a.vocab) : NULL;
    for (int i = 0; i < EACH; i++) {
        int token = first + place(i);
        l[i] = sample_clean(s.logits[place(i)]);
        if (place(i) >= n || (mask && !(mask[token / 32] >> token % 32 & 1)))
            l[i] = -SAMPLE_INFINITY;
        if (place(i) < n)
            sample_adjusted(a, row)[token] = l[i];
    }
}

/* The chunk's best draw: rough scores choose the few tokens whose exact ones are worth computing.
 */
__device__ sample_best draw(const float (&l)[EACH], chunk_scratch &s, const sample_row &row,
                            int first)
{
    sample_best best = {0, -1};
    float rough[EACH], top = -SAMPLE_INFINITY;
    uint64_t bits[2];

#pragma unroll
    for (int i = 0; i < EACH; i++) {
        if (i % 2 == 0)
            sampling_bits_of_pair(bits, row.seed, row.step, (first + place(i)) / 2);
        rough[i] = sample_rough_score(l[i], bits[i % 2], row);
        top = fmaxf(top, l[i] > -SAMPLE_INFINITY ? rough[i] : -SAMPLE_INFINITY);
    }
    float bar = sample_rough_bar(sample_block(top, sample_max(), s.floats));
    for (int i = 0; i < EACH; i++)
        if (l[i] > -SAMPLE_INFINITY && !(rough[i] < bar))
            best = sample_better(best, sample_exact(l[i], first + place(i), row));
    return sample_best_of_block(best, s.best);
}

__device__ uint64_t largest(const float (&l)[EACH], chunk_scratch &s, int first, int n)
{
    uint64_t key = 0;

    for (int i = 0; i < EACH; i++)
        if (place(i) < n)
            key = sample_max()(key, sample_key(l[i], first + place(i)));
    return sample_block(key, sample_max(), s.keys);
}

__global__ void __launch_bounds__(THREADS) scan_kernel(const sample_args a)
{
    __shared__ chunk_scratch s;
    const int r = blockIdx.y, first = blockIdx.x * SAMPLE_CHUNK;
    const int n = min(SAMPLE_CHUNK, a.vocab - first);
    const float *logits = a.logits + (int64_t)r * a.vocab + first;
    const sample_row &row = a.rows[r];
    float l[EACH];

    launch_next();
    launch_wait();
    if (!sample_is_live(a, r))
        return;
    for (int i = 0; i < EACH; i += 4) {
        float4 in =
            make_float4(-SAMPLE_INFINITY, -SAMPLE_INFINITY, -SAMPLE_INFINITY, -SAMPLE_INFINITY);
        if (place(i) < n)
            in = *(const float4 *)(logits + place(i));
        l[i] = sample_clean(in.x);
        l[i + 1] = sample_clean(in.y);
        l[i + 2] = sample_clean(in.z);
        l[i + 3] = sample_clean(in.w);
    }
    sample_chunk out = {};
    uint64_t key = largest(l, s, first, n);
    out.raw_token = sample_key_token(key);
    out.raw_max = sample_clean(logits[out.raw_token - first]);
    float sum = 0; /* of 8 terms at most 1: float rounds it no worse than the logits are rounded */
    for (int i = 0; i < EACH; i++)
        if (l[i] > -SAMPLE_INFINITY)
            sum += expf(l[i] - out.raw_max);
    out.sum = sample_block((double)sum, sample_sum(), s.sums);

    out.max = out.raw_max;
    out.token = out.raw_token;
    out.drawn = -1;
    if (sample_adjusts(a, row)) {
        adjust(l, s, a, r, first, n);
        out.token = sample_key_token(largest(l, s, first, n));
        out.max = sample_adjusted(a, row)[out.token];
    }
    if (row.target < 0 && row.temperature > 0 && !(row.flags & SAMPLE_FILTERS)) {
        sample_best best = draw(l, s, row, first);
        out.score = best.score;
        out.drawn = best.token;
    }
    if (threadIdx.x == 0)
        a.chunks[(int64_t)r * a.n_chunks + blockIdx.x] = out;
}

} // namespace

cudaError_t sample_scan_launch(const struct sample_args *args, cudaStream_t stream)
{
    return launch_early(scan_kernel, dim3((unsigned)args->n_chunks, (unsigned)args->n_rows),
                        dim3(THREADS), 0, stream, *args);
}
