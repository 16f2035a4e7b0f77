/* The lightning indexer (DeepSeek-V3.2, section 2.1) and attention to the tokens that it chooses.
 *
 *   enter    keys into their cache, queries rotated, and how each row attends
 *   score    row x tokens: sum over heads of w relu(q . key), by tensor cores (mma.sync)
 *   choose   the top_k largest scores of a row, by radix selection, in order of position
 *   gather   the chosen cache rows side by side, as pages that mla_decode can read
 *
 * Everything is decided on the device by positions, so that a recorded graph serves rows before and
 * from top_k on: a row is either dense, and read by a call of mla_decode over the cache, or sparse,
 * and read by a call over the gathered pages; each call passes the other's rows over. The factors
 * that the model puts on scores change no order and are left out, as on the CPU (cpu/indexer.c). */
#include "kernels/cuda/indexer.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/mla.h"

#include <new>

enum {
    SCORE_BYTES = 64 << 20, /* of scores held at a time: so many rows are chosen for at once */
    GATHER_ROWS = 64,       /* rows whose tokens are gathered at a time: 151 MB for V3.2 */
    MAX_HEADS = 128,
    MAX_DIM = 128,
};

/* ---- memory ---------------------------------------------------------------------------------- */

int32_t cuda_index_limit(const struct cuda_backend *cu)
{
    return cu->index ? cu->index->shape.top_k : INT32_MAX;
}

void cuda_index_free(struct cuda_backend *cu)
{
    struct cuda_index *x = cu->index;

    if (!x)
        return;
    for (void *p : {(void *)x->scores, (void *)x->chosen, (void *)x->gathered, (void *)x->numbers,
                    (void *)x->kv_lens, (void *)x->n_dense, (void *)x->n_sparse, (void *)x->top_ks})
        cudaFree(p);
    delete x;
    cu->index = NULL;
}

/* numbers[i] = i, top_ks[i] = top_k. */
static __global__ void constants(int32_t *numbers, int n_numbers, int32_t *top_ks, int n_top_ks,
                                 int32_t top_k)
{
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n_numbers || i < n_top_ks;
         i += gridDim.x * blockDim.x) {
        if (i < n_numbers)
            numbers[i] = i;
        if (i < n_top_ks)
            top_ks[i] = top_k;
    }
}

static int take(struct cuda_backend *cu, void *at, int64_t elements, int64_t size,
                struct error *err)
{
    return (*(void **)at =
                cuda_take(cu, (size_t)(elements * size), true, "the indexer's working memory", err))
               ? 0
               : -1;
}

static int check(const struct index_shape *s, struct error *err)
{
    if (s->dim != 32 && s->dim != 64 && s->dim != 128)
        return error_set(err,
                         "\"index_head_dim\" is %d; the CUDA backend has kernels for 32, 64 "
                         "and 128",
                         s->dim);
    if (s->heads > MAX_HEADS)
        return error_set(err, "\"index_n_heads\" is %d; the CUDA backend takes at most %d",
                         s->heads, MAX_HEADS);
    return 0;
}

int cuda_index_reserve(struct cuda_backend *cu, struct error *err)
{
    const struct index_shape *s = &cu->shapes.index;
    int64_t rows = cu->limits.max_rows, held = (int64_t)cu->limits.max_pages * KV_PAGE_TOKENS;

    cuda_index_free(cu);
    if (s->top_k == 0)
        return 0;
    if (check(s, err))
        return -1;
    struct cuda_index *x = cu->index = new (std::nothrow) cuda_index();
    ASSERT(x);
    x->shape = *s;
    x->score_stride = ((held < s->max_positions ? held : s->max_positions) + 3) / 4 * 4;
    int64_t fit = SCORE_BYTES / (x->score_stride * (int64_t)sizeof(float)) + 1;
    x->score_rows = (int32_t)(fit < rows ? fit : rows);
    x->gather_rows = GATHER_ROWS < rows ? GATHER_ROWS : (int32_t)rows;
    x->row_pages = (s->top_k + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
    x->row_bytes = kv_row_elements(&cu->shapes.mla, cu->base.kv_dtype) *
                   (int64_t)dtype_size(cu->base.kv_dtype);
    int64_t pages = (int64_t)x->gather_rows * x->row_pages, numbers = pages > rows ? pages : rows;
    if (take(cu, &x->scores, x->score_rows * x->score_stride, sizeof(float), err) ||
        take(cu, &x->chosen, rows * s->top_k, sizeof(int32_t), err) ||
        take(cu, &x->gathered, pages * KV_PAGE_TOKENS, x->row_bytes, err) ||
        take(cu, &x->numbers, numbers, sizeof(int32_t), err) ||
        take(cu, &x->kv_lens, rows, sizeof(int32_t), err) ||
        take(cu, &x->n_dense, rows, sizeof(int32_t), err) ||
        take(cu, &x->n_sparse, rows, sizeof(int32_t), err) ||
        take(cu, &x->top_ks, x->gather_rows, sizeof(int32_t), err))
        return -1;
    constants<<<64, 256, 0, cu->stream>>>(x->numbers, (int)numbers, x->top_ks, x->gather_rows,
                                          s->top_k);
    return CUDA_CHECK(cu, cudaGetLastError()) ? cuda_report(cu, err) : 0;
}

/* ---- enter ----------------------------------------------------------------------------------- */

static const float KEY_NORM_EPS = 1e-6f; /* nn.LayerNorm's here, whatever rms_norm_eps is */

enum { ENTER_THREADS = 128, ENTER_WARPS = ENTER_THREADS / 32, ENTER_HEADS = 16 };

struct enter_args {
    struct index_shape shape;
    struct rope_config rope;
    const int32_t *positions;
    const int64_t *cache_slots;
    bf16 *q;       /* (rows, heads, dim) */
    const bf16 *k; /* (rows, dim) */
    const float *norm, *norm_bias;
    bf16 *key_cache;
    int32_t *kv_lens, *n_dense, *n_sparse;
};

/* The sum of x over the block, the same in every thread. */
static __device__ float block_sum(float x, float *partial)
{
    for (int d = 16; d; d /= 2)
        x += __shfl_xor_sync(~0u, x, d);
    __syncthreads(); /* the sum before may still be read */
    if (threadIdx.x % 32 == 0)
        partial[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
    for (int w = 0; w < ENTER_WARPS; w++)
        x += partial[w];
    return x;
}

/* The row's key: layer norm, rotation, rounded once. Thread i has value i. */
static __device__ void enter_key(const struct enter_args &a, int row, const float2 *turns)
{
    __shared__ float partial[ENTER_WARPS], values[MAX_DIM];
    const int dim = a.shape.dim, i = threadIdx.x, pairs = a.rope.dim / 2;
    const int64_t slot = a.cache_slots[row];
    const float x = i < dim ? __bfloat162float(a.k[(int64_t)row * dim + i]) : 0;
    const float mean = block_sum(x, partial) / (float)dim, d = i < dim ? x - mean : 0;
    const float inverse = 1.0f / sqrtf(block_sum(d * d, partial) / (float)dim + KEY_NORM_EPS);

    if (i < dim)
        values[i] = d * inverse * a.norm[i] + a.norm_bias[i];
    __syncthreads();
    if (slot < 0 || i >= dim)
        return;
    float value = values[i];
    if (i < 2 * pairs) {
        const bool second = a.rope.half_split ? i >= pairs : i % 2;
        const float2 turn = turns[a.rope.half_split ? i % pairs : i / 2];
        const int other = a.rope.half_split ? (second ? i - pairs : i + pairs) : i ^ 1;
        value = second ? value * turn.x + values[other] * turn.y
                       : value * turn.x - values[other] * turn.y;
    }
    a.key_cache[slot * dim + i] = __float2bfloat16_rn(value);
}

/* Grid (rows, 1 + head groups): block (r, 0) has the key, the others rotate queries. */
static __global__ void __launch_bounds__(ENTER_THREADS)
    enter_kernel(const __grid_constant__ enter_args a)
{
    __shared__ float2 turns[ROPE_MAX_DIM / 2];
    const int row = blockIdx.x, pairs = a.rope.dim / 2, heads = a.shape.heads;

    launch_wait();
    launch_next();
    const int position = a.positions[row];
    for (int i = threadIdx.x; i < pairs; i += ENTER_THREADS) {
        float sine, cosine;
        sincosf((float)position * a.rope.inv_freq[i], &sine, &cosine);
        turns[i] = make_float2(cosine * a.rope.magnitude, sine * a.rope.magnitude);
    }
    __syncthreads();
    if (blockIdx.y == 0) {
        enter_key(a, row, turns);
        if (threadIdx.x == 0) {
            const int seen = a.cache_slots[row] < 0 ? 0 : position + 1;
            a.kv_lens[row] = seen;
            a.n_dense[row] = seen <= a.shape.top_k;
            a.n_sparse[row] = seen > a.shape.top_k;
        }
        return;
    }
    const int head0 = ((int)blockIdx.y - 1) * ENTER_HEADS;
    bf16 *q = a.q + ((int64_t)row * heads + head0) * a.shape.dim;
    for (int i = threadIdx.x; i < min(ENTER_HEADS, heads - head0) * pairs; i += ENTER_THREADS) {
        bf16 *head = q + i / pairs * a.shape.dim;
        const int pair = i % pairs;
        bf16 *first = head + (a.rope.half_split ? pair : 2 * pair);
        bf16 *second = head + (a.rope.half_split ? pair + pairs : 2 * pair + 1);
        const float x = __bfloat162float(*first), y = __bfloat162float(*second);
        *first = __float2bfloat16_rn(x * turns[pair].x - y * turns[pair].y);
        *second = __float2bfloat16_rn(y * turns[pair].x + x * turns[pair].y);
    }
}

/* ---- score ----------------------------------------------------------------------------------- */

enum {
    SCORE_WARPS = 8,
    SCORE_THREADS = 32 * SCORE_WARPS,
    WARP_TOKENS = 32, /* two tiles of 16 */
    TILE_TOKENS = SCORE_WARPS * WARP_TOKENS,
    MANY_ROWS = 16, /* rows of a block in prompts, which share keys */
};

struct score_args {
    const bf16 *q;         /* (rows, heads, dim) */
    const float *w;        /* (rows, heads) */
    const bf16 *key_cache; /* (pages, KV_PAGE_TOKENS, dim) */
    const int32_t *pages, *row_tables, *kv_lens, *n_sparse;
    float *scores; /* of row first_row on */
    int64_t stride;
    int first_row, rows, block_rows, heads;
};

static __device__ __forceinline__ void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                           uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* A row's queries in shared memory, heads filled up to a multiple of 8: a head's stretch is 64
 * bytes off a multiple of 128, so that the 16-byte loads of two heads by eight lanes meet no bank
 * twice. */
static __host__ __device__ constexpr int q_pitch(int dim)
{
    return dim % 64 ? dim : dim + 32;
}

/* Of 32 values that a head and a key have next to each other, lane t of four takes 8 t .. 8 t + 7
 * of both: a permutation of the products' order that makes every load one of 16 bytes. */
template <int DIM> struct warp_keys {
    enum { BLOCKS = DIM / 32 };
    uint4 k[2][2][BLOCKS]; /* tile of 16 tokens, its half, block of 32 values */

    __device__ void load(const bf16 *keys) /* of the warp's first token */
    {
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int h = 0; h < 2; h++)
#pragma unroll
                for (int b = 0; b < BLOCKS; b++)
                    k[m][h][b] =
                        *(const uint4 *)(keys + (16 * m + 8 * h + g) * DIM + 32 * b + 8 * t);
    }

    /* out: the scores of tokens g, g + 8, g + 16, g + 24. */
    __device__ void score(const bf16 *q, const float *w, int heads, float (&out)[4]) const
    {
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        for (float &x : out)
            x = 0;
        for (int h0 = 0; h0 < heads; h0 += 8) {
            float d[2][4] = {};
#pragma unroll
            for (int b = 0; b < BLOCKS; b++) {
                const uint4 v = *(const uint4 *)(q + (h0 + g) * q_pitch(DIM) + 32 * b + 8 * t);
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    const uint4 lo = k[m][0][b], hi = k[m][1][b];
                    mma(d[m], lo.x, hi.x, lo.y, hi.y, v.x, v.y);
                    mma(d[m], lo.z, hi.z, lo.w, hi.w, v.z, v.w);
                }
            }
            const float2 weight = *(const float2 *)(w + h0 + 2 * t);
#pragma unroll
            for (int m = 0; m < 2; m++) {
                out[2 * m] += weight.x * fmaxf(d[m][0], 0) + weight.y * fmaxf(d[m][1], 0);
                out[2 * m + 1] += weight.x * fmaxf(d[m][2], 0) + weight.y * fmaxf(d[m][3], 0);
            }
        }
        for (float &x : out) {
            x += __shfl_xor_sync(~0u, x, 1);
            x += __shfl_xor_sync(~0u, x, 2);
        }
    }
};

/* Grid (stretches of tokens, blocks of rows). */
template <int DIM>
static __global__ void __launch_bounds__(SCORE_THREADS)
    score_kernel(const __grid_constant__ score_args a)
{
    extern __shared__ __align__(16) char shared[];
    const int padded = (a.heads + 7) / 8 * 8, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float *w = (float *)shared;
    bf16 *q = (bf16 *)(w + padded);
    const int first = a.first_row + (int)blockIdx.y * a.block_rows;
    const int end = min(first + a.block_rows, a.first_row + a.rows);
    warp_keys<DIM> keys;

    launch_wait();
    launch_next();
    for (int64_t tile = blockIdx.x; tile * TILE_TOKENS < a.stride; tile += gridDim.x) {
        const int start = (int)tile * TILE_TOKENS, mine = start + warp * WARP_TOKENS;
        int loaded = -1; /* the block table whose keys the warp holds */
        for (int row = first; row < end; row++) {
            const int seen = a.kv_lens[row], table = a.row_tables[row];
            if (!a.n_sparse[row] || start >= seen)
                continue; /* as one: these are the block's */
            __syncthreads();
            for (int i = threadIdx.x; i < padded; i += SCORE_THREADS)
                w[i] = i < a.heads ? a.w[(int64_t)row * a.heads + i] : 0;
            for (int i = threadIdx.x; i < padded * (DIM / 8); i += SCORE_THREADS) {
                const int head = i / (DIM / 8), at = i % (DIM / 8) * 8;
                const bf16 *from = a.q + ((int64_t)row * a.heads + head) * DIM + at;
                *(uint4 *)(q + head * q_pitch(DIM) + at) =
                    head < a.heads ? *(const uint4 *)from : make_uint4(0, 0, 0, 0);
            }
            __syncthreads();
            if (mine >= seen)
                continue; /* the warp's alone */
            if (loaded != table) {
                const int64_t page = a.pages[table + mine / KV_PAGE_TOKENS];
                keys.load(a.key_cache + (page * KV_PAGE_TOKENS + mine % KV_PAGE_TOKENS) * DIM);
                loaded = table;
            }
            float out[4];
            keys.score(q, w, padded, out);
            float *to = a.scores + (row - a.first_row) * a.stride + mine + lane / 4;
            for (int i = 0; i < 4; i++)
                if (lane % 4 == 0 && mine + lane / 4 + 8 * i < seen)
                    to[8 * i] = out[i];
        }
    }
}

/* ---- choose ---------------------------------------------------------------------------------- */

enum { CHOOSE_THREADS = 1024, CHOOSE_WARPS = CHOOSE_THREADS / 32, BINS = 256, COPIES = 8 };

/* A whole number that orders as the score does. Adding 0 makes -0 equal to 0. */
static __device__ uint32_t rank_of(float score)
{
    const uint32_t bits = __float_as_uint(score + 0.0f);

    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

/* By one warp: the bin that the k-th largest is in, where `k` counts on from the bins above. */
static __device__ int find_bin(const uint32_t *counts, int &k)
{
    const int lane = threadIdx.x % 32;
    int sum = 0, bin = 0, rest = 0;

    for (int i = 0; i < BINS / 32; i++)
        sum += (int)counts[lane * (BINS / 32) + i];
    int above = 0; /* in the lanes after this one */
    for (int d = 1, run = sum; d < 32; d *= 2) {
        const int more = __shfl_down_sync(~0u, run, d);
        run += lane + d < 32 ? more : 0;
        above = run - sum;
    }
    const bool here = above < k && k <= above + sum;
    if (here) {
        rest = k - above;
        for (bin = (lane + 1) * (BINS / 32) - 1; rest > (int)counts[bin]; bin--)
            rest -= (int)counts[bin];
    }
    const int from = __ffs((int)__ballot_sync(~0u, here)) - 1;
    k = __shfl_sync(~0u, rest, from);
    return __shfl_sync(~0u, bin, from);
}

/* The rank of the k-th largest score, a byte at a time from the highest; `k` becomes how many of
 * that rank are among the k largest. By the whole block. */
static __device__ uint32_t kth_rank(const float *scores, int n, int &k)
{
    __shared__ uint32_t counts[COPIES][BINS];
    __shared__ int found[2];
    uint32_t prefix = 0, known = 0;

    for (int shift = 24; shift >= 0; shift -= 8) {
        uint32_t *own = counts[threadIdx.x / 32 % COPIES];
        for (int i = threadIdx.x; i < COPIES * BINS; i += CHOOSE_THREADS)
            (&counts[0][0])[i] = 0;
        __syncthreads();
#pragma unroll 4
        for (int i = 4 * (int)threadIdx.x; i < n; i += 4 * CHOOSE_THREADS) {
            const float4 four = *(const float4 *)(scores + i);
            const float values[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const uint32_t rank = rank_of(values[j]);
                if (i + j < n && (rank & known) == prefix)
                    atomicAdd(own + (rank >> shift & (BINS - 1)), 1);
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < BINS; i += CHOOSE_THREADS)
            for (int c = 1; c < COPIES; c++)
                counts[0][i] += counts[c][i];
        __syncthreads();
        if (threadIdx.x < 32) {
            int rest = k;
            const int bin = find_bin(counts[0], rest);
            if (threadIdx.x == 0)
                found[0] = bin, found[1] = rest;
        }
        __syncthreads();
        prefix |= (uint32_t)found[0] << shift;
        known |= (uint32_t)(BINS - 1) << shift;
        k = found[1];
    }
    return prefix;
}

/* The sum of x over the threads before this one, and over all of them. */
static __device__ uint32_t scan_block(uint32_t x, uint32_t &total)
{
    __shared__ uint32_t sums[CHOOSE_WARPS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t run = x;

    for (int d = 1; d < 32; d *= 2) {
        const uint32_t more = __shfl_up_sync(~0u, run, d);
        run += lane >= d ? more : 0;
    }
    __syncthreads(); /* the sums before may still be read */
    if (lane == 31)
        sums[warp] = run;
    __syncthreads();
    uint32_t all = sums[lane], before = lane < warp ? all : 0;
    for (int d = 16; d; d /= 2) {
        all += __shfl_xor_sync(~0u, all, d);
        before += __shfl_xor_sync(~0u, before, d);
    }
    total = all;
    return before + run - x;
}

/* A block a row. Scores are taken 4 a thread, and counts of those larger (high half) and equal (low
 * half) go through one scan. */
static __global__ void __launch_bounds__(CHOOSE_THREADS)
    choose_kernel(int32_t *chosen, const float *scores, int64_t stride, const int32_t *kv_lens,
                  int top_k, int first_row)
{
    launch_wait();
    launch_next();
    const int row = first_row + (int)blockIdx.x, n = kv_lens[row];
    const float *own = scores + blockIdx.x * stride;
    int32_t *out = chosen + (int64_t)row * top_k;
    int equal = top_k, larger_before = 0, equal_before = 0;

    if (n <= top_k)
        return;
    const uint32_t least = kth_rank(own, n, equal);
    for (int base = 0; base < n; base += 4 * CHOOSE_THREADS) {
        const int i0 = base + 4 * (int)threadIdx.x;
        uint32_t rank[4], count = 0, total;
        const float4 four = i0 < n ? *(const float4 *)(own + i0) : float4{};
        const float values[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            rank[j] = i0 + j < n ? rank_of(values[j]) : 0;
            count += rank[j] > least ? 1u << 16 : rank[j] == least;
        }
        const uint32_t before = scan_block(count, total);
        int larger = larger_before + (int)(before >> 16);
        int same = equal_before + (int)(before & 0xffff);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (rank[j] > least || (rank[j] == least && same < equal))
                out[larger + min(same, equal)] = i0 + j;
            larger += rank[j] > least;
            same += rank[j] == least;
        }
        larger_before += (int)(total >> 16);
        equal_before += (int)(total & 0xffff);
    }
}

/* ---- gather ---------------------------------------------------------------------------------- */

enum { GATHER_THREADS = 256, GATHER_TOKENS = 32 };

struct gather_args {
    char *to; /* (rows, row_pages * KV_PAGE_TOKENS) cache rows */
    const char *cache;
    const int32_t *chosen, *pages, *row_tables, *n_sparse; /* of the first row */
    int64_t row_bytes, to_stride;
    int top_k;
};

/* Grid (parts of the tokens, rows); V is what is copied at once. */
template <class V>
static __global__ void __launch_bounds__(GATHER_THREADS)
    gather_kernel(const __grid_constant__ gather_args a)
{
    launch_wait();
    launch_next();
    const int row = blockIdx.y, first = blockIdx.x * GATHER_TOKENS;
    const int n = min(GATHER_TOKENS, a.top_k - first), pieces = (int)(a.row_bytes / sizeof(V));
    const int32_t *chosen = a.chosen + (int64_t)row * a.top_k + first;
    char *to = a.to + row * a.to_stride + first * a.row_bytes;

    if (!a.n_sparse[row])
        return;
    for (int i = threadIdx.x; i < n * pieces; i += GATHER_THREADS) {
        const int token = chosen[i / pieces];
        const int64_t page = a.pages[a.row_tables[row] + token / KV_PAGE_TOKENS];
        const char *from = a.cache + (page * KV_PAGE_TOKENS + token % KV_PAGE_TOKENS) * a.row_bytes;
        ((V *)to)[i] = ((const V *)from)[i % pieces];
    }
}

/* ---- the operations -------------------------------------------------------------------------- */

static void enter(struct cuda_backend *cu, bf16 *q, const bf16 *k, const struct index_layer *layer,
                  const struct rope_config *rope)
{
    struct cuda_index *x = cu->index;
    struct enter_args a = {};
    int head_groups = (x->shape.heads + ENTER_HEADS - 1) / ENTER_HEADS;

    a.shape = x->shape;
    a.rope = *rope;
    a.positions = cu->step.image.positions;
    a.cache_slots = cu->step.image.cache_slots;
    a.q = q;
    a.k = k;
    a.norm = cuda_f32(&layer->norm);
    a.norm_bias = cuda_f32(&layer->norm_bias);
    a.key_cache = cuda_bf16(&layer->key_cache);
    a.kv_lens = x->kv_lens;
    a.n_dense = x->n_dense;
    a.n_sparse = x->n_sparse;
    CUDA_CHECK(cu, launch_early(enter_kernel, dim3(cu->step.rows, 1 + head_groups),
                                dim3(ENTER_THREADS), 0, cu->stream, a));
}

/* The tokens of `rows` rows from `first` on, which are at most score_rows. */
static void choose(struct cuda_backend *cu, score_args a, int32_t first, int32_t rows)
{
    struct cuda_index *x = cu->index;
    int dim = x->shape.dim, padded = (x->shape.heads + 7) / 8 * 8;
    size_t shared = padded * (sizeof(float) + q_pitch(dim) * sizeof(bf16));
    int tiles = (int)((x->score_stride + TILE_TOKENS - 1) / TILE_TOKENS);
    void (*kernel)(score_args) = dim == 128  ? score_kernel<128>
                                 : dim == 64 ? score_kernel<64>
                                             : score_kernel<32>;

    a.first_row = first;
    a.rows = rows;
    a.block_rows = cu->step.sparse_prompt ? MANY_ROWS : 1;
    int blocks = (rows + a.block_rows - 1) / a.block_rows, stretches = 4 * cu->sms / blocks + 1;
    CUDA_CHECK(cu, launch_early(kernel, dim3(stretches < tiles ? stretches : tiles, blocks),
                                dim3(SCORE_THREADS), shared, cu->stream, a));
    CUDA_CHECK(cu, launch_early(choose_kernel, dim3(rows), dim3(CHOOSE_THREADS), 0, cu->stream,
                                x->chosen, x->scores, x->score_stride, x->kv_lens, x->shape.top_k,
                                first));
}

void cuda_index_tokens(struct backend *be, struct tensor q, struct tensor k, struct tensor w,
                       const struct index_layer *layer, const struct rope_config *rope)
{
    struct cuda_backend *cu = cuda_backend(be);
    struct cuda_index *x = cu->index;
    const struct index_shape *s = &layer->shape;
    struct score_args a = {};

    cuda_settle(cu);
    ASSERT(x && s->top_k == x->shape.top_k && s->dim == x->shape.dim);
    ASSERT(q.shape[0] == cu->step.rows && cuda_last_dim(&q) == (int64_t)s->heads * s->dim);
    ASSERT(cuda_last_dim(&k) == s->dim && cuda_last_dim(&w) == s->heads && rope->dim <= s->dim);
    enter(cu, cuda_bf16(&q), cuda_bf16(&k), layer, rope);
    if (!cu->step.sparse)
        return;
    a.q = cuda_bf16(&q);
    a.w = cuda_f32(&w);
    a.key_cache = cuda_bf16(&layer->key_cache);
    a.pages = cu->step.image.pages;
    a.row_tables = cu->step.image.row_tables;
    a.kv_lens = x->kv_lens;
    a.n_sparse = x->n_sparse;
    a.scores = x->scores;
    a.stride = x->score_stride;
    a.heads = s->heads;
    for (int32_t g = 0; g < cu->step.n_groups; g++) {
        const struct decode_group *group = &cu->step.groups[g];
        for (int32_t row = 0; row < group->rows; row += x->score_rows)
            choose(cu, a, group->first_row + row,
                   group->rows - row < x->score_rows ? group->rows - row : x->score_rows);
    }
}

/* Gathers the tokens of `rows` rows from batch row `first` on. */
static void gather(struct cuda_backend *cu, const struct mla_cache *cache, int32_t first,
                   int32_t rows)
{
    struct cuda_index *x = cu->index;
    struct gather_args a = {};
    int parts = (x->shape.top_k + GATHER_TOKENS - 1) / GATHER_TOKENS;

    a.to = x->gathered;
    a.cache = (const char *)cache->pages;
    a.chosen = x->chosen + (int64_t)first * x->shape.top_k;
    a.pages = cu->step.image.pages;
    a.row_tables = cu->step.image.row_tables + first;
    a.n_sparse = x->n_sparse + first;
    a.row_bytes = x->row_bytes;
    a.to_stride = x->row_pages * KV_PAGE_TOKENS * x->row_bytes;
    a.top_k = x->shape.top_k;
    CUDA_CHECK(cu, launch_early(x->row_bytes % 16 ? gather_kernel<uint32_t> : gather_kernel<uint4>,
                                dim3(parts, rows), dim3(GATHER_THREADS), 0, cu->stream, a));
}

void cuda_index_decode(struct cuda_backend *cu, const struct mla_decode_args *base,
                       const struct decode_group *group)
{
    struct cuda_index *x = cu->index;
    struct mla_decode_args args = *base;
    int64_t head_rows = args.heads;

    args.seqs = {};
    args.seqs.n_seqs = args.seqs.query_rows = group->rows;
    args.seqs.max_q_len = 1;
    args.seqs.q_starts = x->numbers;
    args.seqs.q_lens = x->n_dense + group->first_row;
    args.seqs.kv_lens = x->kv_lens + group->first_row;
    args.seqs.block_tables = cu->step.image.pages;
    args.seqs.table_starts = cu->step.image.row_tables + group->first_row;
    cuda_check_launch(cu, mla_decode(&args, cu->stream), "mla_decode");
    if (!cu->step.sparse)
        return;
    args.cache.pages = x->gathered;
    args.cache.n_pages = x->gather_rows * x->row_pages;
    args.seqs.kv_lens = x->top_ks;
    args.seqs.block_tables = x->numbers;
    args.seqs.table_starts = NULL;
    args.seqs.table_stride = x->row_pages;
    for (int32_t row = 0; row < group->rows; row += x->gather_rows) {
        int32_t left = group->rows - row, rows = left < x->gather_rows ? left : x->gather_rows;
        gather(cu, &base->cache, group->first_row + row, rows);
        args.seqs.n_seqs = args.seqs.query_rows = rows;
        args.seqs.q_lens = x->n_sparse + group->first_row + row;
        args.q =
            (const bf16 *)base->q + row * head_rows * (args.cache.latent_dim + args.cache.rope_dim);
        args.out = (bf16 *)base->out + row * head_rows * args.cache.latent_dim;
        cuda_check_launch(cu, mla_decode(&args, cu->stream), "mla_decode");
    }
}
