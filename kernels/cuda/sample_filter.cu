/* top_k, top_p and min_p, each of which keeps a beginning of the tokens in falling order of
 * probability, equal ones by id; and the draw among them. A block a row; no token is ever sorted.
 *
 * Tokens fall into BINS by their distance d = (max - logit) / temperature. Counts and sums of the
 * bins tell in which one an end lies; a radix search over its tokens' keys finds the token. Sums of
 * exp(-d) are kept as whole numbers of 2^-45, so that their order changes nothing; from d = 15 on
 * float is precise enough for those. */
#include "kernels/cuda/sample_math.cuh"

enum { THREADS = 1024, BINS = 2048, LIST = 4096, DIGITS = 256 };

namespace
{

constexpr float BIN_RANGE = 48, UNIT = 0x1p45f;

struct filter_scratch {
    unsigned long long sums[BINS];
    uint32_t counts[BINS];
    int32_t list[LIST];
    unsigned long long digits[DIGITS];
    uint64_t keys[32];
    unsigned long long partial[32];
    float floats[32];
    sample_best best[32];
    int32_t n_list, found;
    unsigned long long before;
};

struct filter {
    const float *logits;
    const sample_row *row;
    filter_scratch *s;
    int vocab;
    float max;
    double scale; /* 1 / temperature */
    float rough_scale;

    __device__ __forceinline__ float at(int token) const
    {
        return sample_clean(logits[token]);
    }

    __device__ __forceinline__ double distance(float logit) const
    {
        return ((double)max - (double)logit) * scale;
    }

    /* Rounding keeps the order: a larger logit is never in a later bin. */
    __device__ __forceinline__ int bin(float logit) const
    {
        float d = (max - logit) * rough_scale;
        return d < BIN_RANGE ? (int)(d * ((BINS - 1) / BIN_RANGE)) : BINS - 1;
    }

    __device__ __forceinline__ unsigned long long weight(float logit) const
    {
        float d = (max - logit) * rough_scale;
        if (d > 15)
            return d < 33 ? __float2ull_rn(expf(-d) * UNIT) : 0;
        return __double2ull_rn(exp(-distance(logit)) * (double)UNIT);
    }
};

/* Keys that fall in the order of tokens become rising ones: the first token has the smallest. */
__device__ __forceinline__ uint64_t place_of(float logit, int token)
{
    return ~sample_key(logit, token);
}

/* Fills counts and, if wanted, sums. */
__device__ void fill_bins(const filter &f, bool with_sums)
{
    for (int i = threadIdx.x; i < BINS; i += THREADS) {
        f.s->counts[i] = 0;
        f.s->sums[i] = 0;
    }
    __syncthreads();
    sample_each(f.logits, f.vocab, [&](float logit, int) {
        int bin = f.bin(logit);
        atomicAdd(&f.s->counts[bin], 1u);
        unsigned long long weight = with_sums ? f.weight(logit) : 0;
        if (weight)
            atomicAdd(&f.s->sums[bin], weight);
    });
    __syncthreads();
}

/* The first of `n` values (at most 2 a thread) where their running sum reaches `need`, into
 * s->found, and the sum before it into s->before. `found` is n where it is not reached. */
template <class T>
__device__ void find_reaching(filter_scratch &s, const T *values, int n, unsigned long long need)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, at = 2 * threadIdx.x;
    unsigned long long a = at < n ? values[at] : 0, b = at + 1 < n ? values[at + 1] : 0;
    unsigned long long sum = a + b;

    if (threadIdx.x == 0)
        s.found = n;
    for (int d = 1; d < 32; d *= 2) {
        unsigned long long other = __shfl_up_sync(~0u, sum, d);
        sum += lane >= d ? other : 0;
    }
    if (lane == 31)
        s.partial[warp] = sum;
    __syncthreads();
    for (int w = 0; w < warp; w++)
        sum += s.partial[w];
    unsigned long long start = sum - a - b;
    if (start < need && start + a >= need) {
        s.found = at;
        s.before = start;
    } else if (start + a < need && sum >= need) {
        s.found = at + 1;
        s.before = start + a;
    }
    __syncthreads();
}

/* Calls visit(logit, token) for the tokens of a bin: of the list where they fit. */
template <class F> __device__ void each_of_bin(const filter &f, int bin, F visit)
{
    const int n = f.s->n_list;

    if (n <= LIST) {
        for (int i = threadIdx.x; i < n; i += THREADS)
            visit(f.at(f.s->list[i]), f.s->list[i]);
        return;
    }
    sample_each(f.logits, f.vocab, [&](float logit, int token) {
        if (f.bin(logit) == bin)
            visit(logit, token);
    });
}

__device__ void list_bin(const filter &f, int bin)
{
    __syncthreads();
    if (threadIdx.x == 0)
        f.s->n_list = 0;
    __syncthreads();
    sample_each(f.logits, f.vocab, [&](float logit, int token) {
        if (f.bin(logit) != bin)
            return;
        int at = atomicAdd(&f.s->n_list, 1);
        if (at < LIST)
            f.s->list[at] = token;
    });
    __syncthreads();
}

/* The place of the token of the bin where the running number of tokens, or the running weight,
 * reaches `need` (at least 1), digit by digit. Tokens behind `last` don't count. */
__device__ uint64_t search_bin(const filter &f, int bin, bool by_weight, unsigned long long need,
                               uint64_t last)
{
    filter_scratch &s = *f.s;
    uint64_t low = ~0ull, high = 0, prefix;

    list_bin(f, bin);
    each_of_bin(f, bin, [&](float logit, int token) {
        uint64_t place = place_of(logit, token);
        low = place < low ? place : low;
        high = place > high ? place : high;
    });
    low = ~sample_block(~low, sample_max(), s.keys);
    high = sample_block(high, sample_max(), s.keys);
    int shift = low == high ? 0 : (63 - __clzll(low ^ high)) / 8 * 8;
    prefix = low >> shift >> 8; /* shift is at most 56 */

    for (;; shift -= 8) {
        for (int i = threadIdx.x; i < DIGITS; i += THREADS)
            s.digits[i] = 0;
        __syncthreads();
        each_of_bin(f, bin, [&](float logit, int token) {
            uint64_t place = place_of(logit, token);
            if (place > last || place >> shift >> 8 != prefix)
                return;
            unsigned long long value = by_weight ? f.weight(logit) : 1;
            atomicAdd(&s.digits[place >> shift & 255], value);
        });
        __syncthreads();
        find_reaching(s, s.digits, DIGITS, need);
        if (s.found == DIGITS) /* never reached: all of the bin */
            return last < high ? last : high;
        prefix = prefix << 8 | (uint64_t)s.found;
        need -= s.before;
        if (shift == 0)
            return prefix;
        __syncthreads();
    }
}

/* The place of the last token that top_k keeps, and the weight of all it keeps. */
__device__ uint64_t end_of_top_k(const filter &f, int top_k, bool with_sums,
                                 unsigned long long *total)
{
    filter_scratch &s = *f.s;
    unsigned long long sum = 0;
    uint64_t end = ~0ull;
    int bin = BINS;

    if (top_k > 0 && top_k < f.vocab) {
        find_reaching(s, s.counts, BINS, top_k);
        bin = s.found;
        end = search_bin(f, bin, false, top_k - s.before, ~0ull);
    }
    if (!with_sums)
        return end;
    for (int i = threadIdx.x; i < bin; i += THREADS)
        sum += s.sums[i];
    if (bin < BINS)
        each_of_bin(f, bin, [&](float logit, int token) {
            if (place_of(logit, token) <= end)
                sum += f.weight(logit);
        });
    *total = sample_block(sum, sample_sum(), s.partial);
    __syncthreads();
    return end;
}

/* The place of the last token that stays by top_k and top_p. */
__device__ uint64_t end_of_kept(const filter &f)
{
    const sample_row &row = *f.row;
    const bool by_mass = row.top_p < 1;
    unsigned long long total = 0;

    if (!by_mass && (row.top_k == 0 || row.top_k >= f.vocab))
        return ~0ull;
    fill_bins(f, by_mass);
    uint64_t end = end_of_top_k(f, row.top_k, by_mass, &total);
    if (!by_mass)
        return end;
    unsigned long long need = __double2ull_ru((double)row.top_p * (double)total);
    find_reaching(*f.s, f.s->sums, BINS, need > 0 ? need : 1);
    if (f.s->found == BINS)
        return end;
    int bin = f.s->found;
    unsigned long long left = (need > 0 ? need : 1) - f.s->before;
    uint64_t place = search_bin(f, bin, true, left, end);
    return place < end ? place : end;
}

__device__ sample_best draw_kept(const filter &f, uint64_t end)
{
    const sample_row &row = *f.row;
    const double min_p = (double)row.min_p;
    const double farthest = min_p > 0 ? 1e-6 - log(min_p) : 0;
    sample_best best = {0, -1};
    float top = -SAMPLE_INFINITY, bar = 0;

    for (int sweep = 0; sweep < 2; sweep++) {
        sample_each(f.logits, f.vocab, [&](float logit, int token) {
            if (!(logit > -SAMPLE_INFINITY) || place_of(logit, token) > end)
                return;
            if (min_p > 0) {
                const double d = f.distance(logit);
                if (d > farthest || (d > 0 && exp(-d) < min_p))
                    return;
            }
            float rough = sample_rough_score(logit, sampling_bits(row.seed, row.step, token), row);
            if (sweep == 0)
                top = fmaxf(top, rough);
            else if (!(rough < bar))
                best = sample_better(best, sample_exact(logit, token, row));
        });
        if (sweep == 0)
            bar = sample_rough_bar(sample_block(top, sample_max(), f.s->floats));
    }
    return sample_best_of_block(best, f.s->best);
}

__global__ void __launch_bounds__(THREADS, 1) filter_kernel(const sample_args a)
{
    __shared__ filter_scratch s;
    const int r = a.filtered[blockIdx.x];
    const sample_chunk *chunks = a.chunks + (int64_t)r * a.n_chunks;
    float max = -SAMPLE_INFINITY;

    for (int c = threadIdx.x; c < a.n_chunks; c += THREADS)
        max = fmaxf(max, chunks[c].max);
    max = sample_block(max, sample_max(), s.floats);
    if (!(max > -SAMPLE_INFINITY)) /* nothing is left: sample_finish knows what to do */
        return;
    const sample_row &row = a.rows[r];
    const double scale = 1.0 / (double)row.temperature;
    filter f = {sample_logits(a, r), &row, &s, a.vocab, max, scale, (float)fmin(scale, FLT_MAX)};
    sample_best best = draw_kept(f, end_of_kept(f));
    if (threadIdx.x == 0)
        a.draws[r].filtered = best.token;
}

} // namespace

cudaError_t sample_filter_launch(const struct sample_args *args, cudaStream_t stream)
{
    filter_kernel<<<args->n_filtered, THREADS, 0, stream>>>(*args);
    return cudaGetLastError();
}
