/* Where tokens enter the cache: the latent normalised, the rope key rotated, both scattered to
 * their slots in bf16 or FP8; and the rope part of the queries rotated in place.
 *
 * Block (r, 0) stores row r: a warp takes groups of 128 latent values, 4 a lane, so that an FP8
 * scale is a reduction of one warp. Blocks (r, 1 ..) rotate Q_HEADS heads of the row's query. */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/mla.h"

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

namespace
{

typedef __nv_bfloat16 bf16;

enum { THREADS = 128, WARPS = THREADS / 32, GROUP = 128, Q_HEADS = 16, PARTS = 2 };

/* N values that are loaded and stored at once. */
template <int N> struct alignas(2 * N) chunk {
    bf16 v[N];
};

/* y = N pairs of `x` rotated, from pair N * unit on; `half` is the number of pairs. */
template <int N, int HALF_SPLIT>
__device__ void rotate(bf16 *y, const bf16 *x, int unit, int half, const float2 *turns)
{
    const int first = HALF_SPLIT ? N * unit : 2 * N * unit;
    const int second = HALF_SPLIT ? half + N * unit : 2 * N * unit + N;
    chunk<N> in[2] = {*(const chunk<N> *)(x + first), *(const chunk<N> *)(x + second)}, out[2];

#pragma unroll
    for (int i = 0; i < N; i++) {
        int a = HALF_SPLIT ? i : 2 * i, b = HALF_SPLIT ? N + i : 2 * i + 1;
        float2 turn = turns[N * unit + i];
        float p = __bfloat162float(in[a / N].v[a % N]), q = __bfloat162float(in[b / N].v[b % N]);
        out[a / N].v[a % N] = __float2bfloat16_rn(p * turn.x - q * turn.y);
        out[b / N].v[b % N] = __float2bfloat16_rn(q * turn.x + p * turn.y);
    }
    *(chunk<N> *)(y + first) = out[0];
    *(chunk<N> *)(y + second) = out[1];
}

__device__ float warp_max(float x)
{
    for (int d = 16; d; d /= 2)
        x = fmaxf(x, __shfl_xor_sync(~0u, x, d));
    return x;
}

/* The sum of x over the block, in one order for every thread. */
__device__ float block_sum(float x, float *partial)
{
    for (int d = 16; d; d /= 2)
        x += __shfl_xor_sync(~0u, x, d);
    if (threadIdx.x % 32 == 0)
        partial[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
    for (int w = 0; w < WARPS; w++)
        x += partial[w];
    return x;
}

/* The 4 values as e4m3 of the group's scale: amax / 448, at least 1e-4, raised to a power of two.
 */
__device__ void store_fp8(uint8_t *row, int latent, int col, const float (&y)[4])
{
    float amax = fmaxf(fmaxf(fabsf(y[0]), fabsf(y[1])), fmaxf(fabsf(y[2]), fabsf(y[3])));
    uint32_t bits = __float_as_uint(fmaxf(warp_max(amax) / 448.0f, 1e-4f));
    uint32_t power = (bits + 0x7fffff) & 0xff800000;
    float scale = __uint_as_float(power), inverse = __uint_as_float((254u << 23) - power);
    float2 low = {y[0] * inverse, y[1] * inverse}, high = {y[2] * inverse, y[3] * inverse};
    uint32_t a = __nv_cvt_float2_to_fp8x2(low, __NV_SATFINITE, __NV_E4M3);
    uint32_t b = __nv_cvt_float2_to_fp8x2(high, __NV_SATFINITE, __NV_E4M3);

    *(uint32_t *)(row + col) = a | b << 16;
    if (threadIdx.x % 32 == 0)
        *(float *)(row + latent + col / GROUP * sizeof(float)) = scale;
}

/* What a thread stores of the latent, columns first_column() + i * WARPS * GROUP on; of the rope
 * key, pair threadIdx.x; and where. */
struct row_part {
    int64_t slot;
    float x[PARTS][4], norm[PARTS][4], key[2];
};

__device__ int first_column()
{
    return threadIdx.x / 32 * GROUP + threadIdx.x % 32 * 4;
}

/* Before the kernel ahead is done. */
__device__ void load_norm(const mla_write_args &p, row_part &part)
{
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        const int column = first_column() + i * WARPS * GROUP;
        const float4 w =
            column < p.cache.latent_dim ? *(const float4 *)(p.norm + column) : float4{};
        const float norm[4] = {w.x, w.y, w.z, w.w};
        for (int j = 0; j < 4; j++)
            part.norm[i][j] = norm[j];
    }
}

/* The columns of the rope key's pair. */
__device__ void key_pair(const mla_write_args &p, int &a, int &b)
{
    const int i = threadIdx.x;

    a = p.rope.half_split ? i : 2 * i;
    b = p.rope.half_split ? i + p.cache.rope_dim / 2 : 2 * i + 1;
}

__device__ void load_part(const mla_write_args &p, int r, row_part &part)
{
    static_assert(MLA_MAX_ROPE / 2 <= (int)THREADS, "a thread for each pair");
    const bf16 *in = (const bf16 *)p.kv + r * p.kv_stride, *key = in + p.cache.latent_dim;
    int a, b;

    part.slot = p.slots[r];
    key_pair(p, a, b);
    if ((int)threadIdx.x < p.cache.rope_dim / 2) {
        part.key[0] = __bfloat162float(key[a]);
        part.key[1] = __bfloat162float(key[b]);
    }
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        const int column = first_column() + i * WARPS * GROUP;
        const chunk<4> v =
            column < p.cache.latent_dim ? *(const chunk<4> *)(in + column) : chunk<4>{};
        for (int j = 0; j < 4; j++)
            part.x[i][j] = __bfloat162float(v.v[j]);
    }
}

/* Block (r, 0). */
template <int FP8>
__device__ void store_row(const mla_write_args &p, int r, row_part &part, const float2 *turns)
{
    __shared__ float partial[WARPS];
    const int latent = p.cache.latent_dim, rope = p.cache.rope_dim;
    const int64_t latent_bytes = FP8 ? latent + latent / GROUP * 4 : latent * 2;
    uint8_t *row = (uint8_t *)p.cache.pages + part.slot / MLA_PAGE_TOKENS * p.cache.page_stride +
                   part.slot % MLA_PAGE_TOKENS * (latent_bytes + rope * 2);
    float sum = 0;

    for (const float(&x)[4] : part.x)
        sum += x[0] * x[0] + x[1] * x[1] + x[2] * x[2] + x[3] * x[3];
    const float inverse = 1.0f / sqrtf(block_sum(sum, partial) / (float)latent + p.eps);
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        const int column = first_column() + i * WARPS * GROUP;
        float y[4];
        if (column >= latent)
            break;
        for (int j = 0; j < 4; j++)
            y[j] = part.norm[i][j] * (part.x[i][j] * inverse);
        if (FP8) {
            store_fp8(row, latent, column, y);
        } else {
            chunk<4> out;
            for (int j = 0; j < 4; j++)
                out.v[j] = __float2bfloat16_rn(y[j]);
            *(chunk<4> *)(row + 2 * column) = out;
        }
    }
    const int i = threadIdx.x;
    if (i < rope / 2) {
        bf16 *key = (bf16 *)(row + latent_bytes);
        int a, b;
        key_pair(p, a, b);
        key[a] = __float2bfloat16_rn(part.key[0] * turns[i].x - part.key[1] * turns[i].y);
        key[b] = __float2bfloat16_rn(part.key[1] * turns[i].x + part.key[0] * turns[i].y);
    }
}

/* How row r turns each pair. */
__device__ void find_turns(const mla_write_args &p, int r, float2 *turns)
{
    for (int i = threadIdx.x; i < p.cache.rope_dim / 2; i += THREADS) {
        float angle = (float)p.positions[r] * p.rope.inv_freq[i], sine, cosine;
        sincosf(angle, &sine, &cosine);
        turns[i] = make_float2(cosine * p.rope.magnitude, sine * p.rope.magnitude);
    }
}

/* What is to be done for row r: part 0 stores it, the others rotate Q_HEADS heads of its query
 * each. UNIT: how many pairs a thread rotates at once. Waits for the kernel ahead. */
template <int FP8, int UNIT> __device__ void write_part(const mla_write_args &p, int r, int part_no)
{
    __shared__ float2 turns[MLA_MAX_ROPE / 2];
    const int rope = p.cache.rope_dim, units = rope / 2 / UNIT;
    const bool early = p.kv_b && p.settled; /* with many rows, loads go first */
    row_part part = {-1, {}, {}, {}};

    if (part_no == 0 && p.kv)
        load_norm(p, part);
    if (early)
        find_turns(p, r, turns);
    launch_wait();
    if (part_no == 0 && p.kv)
        load_part(p, r, part);
    if (!early)
        find_turns(p, r, turns);
    __syncthreads();
    if (part_no == 0) {
        if (part.slot >= 0)
            store_row<FP8>(p, r, part, turns);
        return;
    }
    const int head = p.nope_dim + rope, h0 = (part_no - 1) * Q_HEADS;
    const int heads = min(Q_HEADS, p.heads - h0);
    const int64_t first = (int64_t)r * p.heads + h0;
    const bf16 *q = (const bf16 *)p.q + first * head + p.nope_dim;
    const bool absorbed = r < p.absorbed_rows;
    const int out_head = absorbed ? p.cache.latent_dim + rope : head;
    bf16 *out = absorbed ? (bf16 *)p.q_absorbed + first * out_head + p.cache.latent_dim : (bf16 *)q;
    for (int i = threadIdx.x; i < heads * units; i += THREADS) {
        bf16 *y = out + i / units * out_head;
        const bf16 *x = q + i / units * head;
        if (p.rope.half_split)
            rotate<UNIT, 1>(y, x, i % units, rope / 2, turns);
        else
            rotate<UNIT, 0>(y, x, i % units, rope / 2, turns);
    }
}

template <int FP8, int UNIT>
__global__ void __launch_bounds__(THREADS) write_kernel(const __grid_constant__ mla_write_args p)
{
    launch_next();
    write_part<FP8, UNIT>(p, blockIdx.x, blockIdx.y);
}

/* ---- few rows: their queries are absorbed in the same launch -----------------------------------
 */

enum {
    COLUMNS = 64,           /* of the latent, a block's */
    LANES = COLUMNS / 8,    /* threads that share a row of W_UK: 16 bytes each */
    PASS = THREADS / LANES, /* rows of W_UK that the block reads at a time */
    MAX_NOPE = 256,
    LINE = 128,             /* bytes of a line of L2 */
    PREFETCH_TOKENS = 4096, /* of a sequence: 8 of them fill less than L2 */
};

/* Loads this block's part of W_UK, (nope, COLUMNS) of head h: PASSES * PASS >= nope. */
template <int PASSES>
__device__ void load_uk(const mla_write_args &p, int h, int column, uint4 (&w)[PASSES])
{
    const int latent = p.cache.latent_dim, k0 = threadIdx.x / LANES;
    const bf16 *from = (const bf16 *)p.kv_b + (int64_t)h * (p.nope_dim + p.v_dim) * latent +
                       column + threadIdx.x % LANES * 8;

#pragma unroll
    for (int i = 0; i < PASSES; i++) {
        const int k = i * PASS + k0;
        w[i] = make_uint4(0, 0, 0, 0);
        if (k < p.nope_dim)
            w[i] = __ldg((const uint4 *)(from + (int64_t)k * latent));
    }
}

/* q_absorbed (r, h, column ..) = W_UK^T q_nope for all rows, COLUMNS of them. */
template <int PASSES>
__device__ void absorb(const mla_write_args &p, int h, int column, const uint4 (&w)[PASSES])
{
    __shared__ float x[MLA_ABSORB_ROWS][MAX_NOPE], partial[WARPS][COLUMNS];
    const int latent = p.cache.latent_dim, rope = p.cache.rope_dim, head = p.nope_dim + rope;
    const int t = threadIdx.x, lane = t % 32;

    for (int r = 0; r < p.rows; r++) {
        const bf16 *q = (const bf16 *)p.q + ((int64_t)r * p.heads + h) * head;
        for (int k = t; k < PASSES * PASS; k += THREADS)
            x[r][k] = k < p.nope_dim ? __bfloat162float(q[k]) : 0.0f;
    }
    __syncthreads();
    for (int r = 0; r < p.rows; r++) {
        float sum[8] = {};
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            const float factor = x[r][i * PASS + t / LANES];
            const __nv_bfloat162 *v = (const __nv_bfloat162 *)&w[i];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float2 two = __bfloat1622float2(v[j]);
                sum[2 * j] = fmaf(factor, two.x, sum[2 * j]);
                sum[2 * j + 1] = fmaf(factor, two.y, sum[2 * j + 1]);
            }
        }
#pragma unroll
        for (int j = 0; j < 8; j++)
            for (int d = LANES; d < 32; d *= 2)
                sum[j] += __shfl_xor_sync(~0u, sum[j], d);
        if (lane < LANES)
#pragma unroll
            for (int j = 0; j < 8; j++)
                partial[t / 32][8 * lane + j] = sum[j];
        __syncthreads();
        if (t < COLUMNS / 2) {
            float2 total = {};
            for (int i = 0; i < WARPS; i++) {
                total.x += partial[i][2 * t];
                total.y += partial[i][2 * t + 1];
            }
            bf16 *to = (bf16 *)p.q_absorbed + ((int64_t)r * p.heads + h) * (latent + rope) + column;
            *(__nv_bfloat162 *)(to + 2 * t) = __floats2bfloat162_rn(total.x, total.y);
        }
        __syncthreads();
    }
}

/* Lines of the sequences' cache rows to L2, this thread's share of them: the work of `threads`. */
__device__ void prefetch_cache(const mla_write_args &p, int thread, int threads)
{
    const int64_t row_bytes = p.cache.page_stride / MLA_PAGE_TOKENS;

    for (int s = 0; s < p.seqs.n_seqs; s++) {
        const int lines =
            min((int64_t)p.seqs.kv_lens[s], (int64_t)PREFETCH_TOKENS) * row_bytes / LINE;
        const int per_page = (int)(p.cache.page_stride / LINE);
        const int64_t table =
            p.seqs.table_starts ? p.seqs.table_starts[s] : (int64_t)s * p.seqs.table_stride;
        for (int i = thread; i < lines; i += threads) {
            const int64_t page = p.seqs.block_tables[table + i / per_page];
            const char *at = (const char *)p.cache.pages + page * p.cache.page_stride +
                             i % per_page * (int64_t)LINE;
            asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
        }
    }
}

/* The first blocks write as write_kernel's, `parts` for each row; the others absorb: a head, and
 * COLUMNS of the latent each. */
template <int FP8, int UNIT, int PASSES>
__global__ void __launch_bounds__(THREADS)
    absorb_kernel(const __grid_constant__ mla_write_args p, int parts)
{
    const int job = (int)blockIdx.x - p.rows * parts, chunks = p.cache.latent_dim / COLUMNS;
    uint4 w[PASSES];

    launch_next();
    if (job >= 0) {
        load_uk<PASSES>(p, job / chunks, job % chunks * COLUMNS, w);
        prefetch_cache(p, job * THREADS + threadIdx.x, p.heads * chunks * THREADS);
    }
    if (job >= 0) {
        launch_wait();
        absorb<PASSES>(p, job / chunks, job % chunks * COLUMNS, w);
    } else {
        write_part<FP8, UNIT>(p, blockIdx.x / parts, blockIdx.x % parts);
    }
}

template <int FP8> auto absorb_kernel_for(int passes) -> void (*)(mla_write_args, int)
{
    return passes <= 8    ? absorb_kernel<FP8, 8, 8>
           : passes <= 12 ? absorb_kernel<FP8, 8, 12>
                          : absorb_kernel<FP8, 8, MAX_NOPE / PASS>;
}

/* What absorb_kernel is written for. */
bool absorbs(const mla_write_args *p)
{
    return p->kv && p->q && p->absorbed_rows == p->rows && p->rows <= MLA_ABSORB_ROWS &&
           p->nope_dim % 8 == 0 && p->nope_dim <= MAX_NOPE && p->cache.latent_dim % COLUMNS == 0 &&
           p->cache.rope_dim % 16 == 0 && (uintptr_t)p->kv_b % 16 == 0;
}

} // namespace

int mla_write(const struct mla_write_args *p, mla_stream stream)
{
    const struct mla_cache *c = &p->cache;
    const int fp8 = c->format == MLA_KV_FP8,
              wide = c->rope_dim % 16 == 0 && p->nope_dim % 8 == 0 &&
                     (p->absorbed_rows == 0 || c->latent_dim % 8 == 0);

    if (p->rows < 0 || c->latent_dim <= 0 || c->latent_dim > PARTS * WARPS * GROUP ||
        c->latent_dim % (fp8 ? GROUP : 4) != 0 || c->rope_dim < 0 || c->rope_dim % 2 != 0 ||
        c->rope_dim > MLA_MAX_ROPE || p->kv_stride % 4 != 0 || (!fp8 && c->rope_dim % 4 != 0) ||
        p->heads < 0 || (p->absorbed_rows > 0 && !p->q_absorbed))
        return MLA_INVALID;
    if (p->rows == 0 || (!p->kv && !p->q))
        return MLA_OK;
    const int parts = 1 + (p->q ? (p->heads + Q_HEADS - 1) / Q_HEADS : 0);
    if (p->kv_b) {
        if (!absorbs(p))
            return MLA_INVALID;
        const int passes = (p->nope_dim + PASS - 1) / PASS;
        const int blocks = p->rows * parts + p->heads * (c->latent_dim / COLUMNS);
        void (*kernel)(mla_write_args, int) =
            fp8 ? absorb_kernel_for<1>(passes) : absorb_kernel_for<0>(passes);
        return launch_early(kernel, blocks, THREADS, 0, stream, *p, parts) == cudaSuccess
                   ? MLA_OK
                   : MLA_CUDA;
    }
    void (*kernel)(mla_write_args) = fp8 ? (wide ? write_kernel<1, 8> : write_kernel<1, 1>)
                                         : (wide ? write_kernel<0, 8> : write_kernel<0, 1>);
    return launch_early(kernel, dim3(p->rows, parts), THREADS, 0, stream, *p) == cudaSuccess
               ? MLA_OK
               : MLA_CUDA;
}
