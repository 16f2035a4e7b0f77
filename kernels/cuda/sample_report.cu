/* The likeliest tokens of the model's own distribution, and how many are likelier than the one that
 * was drawn or asked about: see sample.cuh. A block a row, after sample_finish.
 *
 * As in sample_filter, tokens fall into bins by their distance from the largest logit; those of the
 * bins that hold the first n_logprobs are listed, and each finds its own rank in the list. */
#include "kernels/cuda/sample_math.cuh"

enum { THREADS = 1024, BINS = 2048, LIST = 2048 };

namespace
{

struct report_scratch {
    uint32_t counts[BINS];
    uint64_t keys[LIST];
    uint64_t best[32];
    uint32_t sums[32];
    int32_t n_list, last_bin;
};

/* The raw logits of a row, and what sample_finish found out of them. */
struct report {
    const float *logits;
    report_scratch *s;
    int vocab, wanted;
    double total;
    float max;

    __device__ __forceinline__ int bin(float logit) const
    {
        float d = (max - logit) * 32.0f;
        return d < BINS - 1 ? (int)d : BINS - 1;
    }

    __device__ __forceinline__ float logprob(float logit) const
    {
        return (float)((double)logit - total);
    }
};

/* Where the wanted tokens end, in s->last_bin: a bin more, for logits that differ where their
 * log-probabilities don't. */
__device__ void find_bins(const report &p)
{
    report_scratch &s = *p.s;

    for (int i = threadIdx.x; i < BINS; i += THREADS)
        s.counts[i] = 0;
    __syncthreads();
    sample_each(p.logits, p.vocab,
                [&](float logit, int) { atomicAdd(&s.counts[p.bin(logit)], 1u); });
    __syncthreads();
    if (threadIdx.x < 32) {
        uint32_t before = 0;
        int found = BINS - 1;
        for (int first = 0; first < BINS; first += 32) {
            uint32_t sum = s.counts[first + threadIdx.x];
            for (int d = 1; d < 32; d *= 2) {
                uint32_t other = __shfl_up_sync(~0u, sum, d);
                sum += threadIdx.x >= d ? other : 0;
            }
            uint32_t reached = __ballot_sync(~0u, before + sum >= (uint32_t)p.wanted);
            if (reached) {
                found = first + __ffs(reached) - 1;
                break;
            }
            before += __shfl_sync(~0u, sum, 31);
        }
        s.last_bin = found + 1;
        s.n_list = 0;
    }
    __syncthreads();
}

__device__ void put(const report &p, sampling_result *result, uint32_t rank, uint64_t key)
{
    int32_t token = sample_key_token(key);

    result->top_token[rank] = token;
    result->top_logprob[rank] = p.logprob(sample_clean(p.logits[token]));
}

__device__ void list_top(const report &p, sampling_result *result)
{
    report_scratch &s = *p.s;

    find_bins(p);
    sample_each(p.logits, p.vocab, [&](float logit, int token) {
        if (!(logit > -SAMPLE_INFINITY) || p.bin(logit) > s.last_bin)
            return;
        int at = atomicAdd(&s.n_list, 1);
        if (at < LIST)
            s.keys[at] = sample_key(p.logprob(logit), token);
    });
    __syncthreads();
    const int n = s.n_list;
    if (n <= LIST) {
        for (int i = threadIdx.x; i < n; i += THREADS) {
            uint32_t rank = 0;
            for (int j = 0; j < n; j++)
                rank += s.keys[j] > s.keys[i];
            if (rank < (uint32_t)p.wanted)
                put(p, result, rank, s.keys[i]);
        }
    } else { /* thousands of nearly equal logits: the largest below the last one, again and again */
        uint64_t below = ~0ull;
        for (int rank = 0; rank < p.wanted; rank++) {
            uint64_t key = 0;
            sample_each(p.logits, p.vocab, [&](float logit, int token) {
                uint64_t candidate = sample_key(p.logprob(logit), token);
                if (logit > -SAMPLE_INFINITY && candidate < below)
                    key = sample_max()(key, candidate);
            });
            below = sample_block(key, sample_max(), s.best);
            if (threadIdx.x == 0)
                put(p, result, rank, below);
        }
    }
    if (threadIdx.x == 0)
        result->n_top = min(n, p.wanted);
}

__device__ void find_rank(const report &p, sampling_result *result, int token)
{
    const float logit = sample_clean(p.logits[token]);
    uint32_t before = 0;

    sample_each(p.logits, p.vocab, [&](float other, int i) {
        before += other > logit || (other == logit && i < token);
    });
    before = sample_block(before, sample_sum(), p.s->sums);
    if (threadIdx.x == 0)
        result->rank = 1 + (int32_t)before;
}

__global__ void __launch_bounds__(THREADS) report_kernel(const sample_args a)
{
    __shared__ report_scratch s;
    const int r = a.reported[blockIdx.x];
    const report p = {a.logits + (int64_t)r * a.vocab,
                      &s,
                      a.vocab,
                      a.rows[r].n_logprobs,
                      a.draws[r].total,
                      a.draws[r].raw_max};

    find_rank(p, &a.results[r], a.draws[r].token);
    if (p.wanted > 0)
        list_top(p, &a.results[r]);
}

} // namespace

cudaError_t sample_report_launch(const struct sample_args *args, cudaStream_t stream)
{
    report_kernel<<<args->n_reported, THREADS, 0, stream>>>(*args);
    return cudaGetLastError();
}
