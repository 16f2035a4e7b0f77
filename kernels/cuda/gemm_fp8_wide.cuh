/* Products of many rows with FP8 weights and FP8 tokens, for the tensor cores' sake: tiles of 128
 * tokens by 256 weight rows (128 of gate and 128 of up), or by half of that where there are few
 * tiles. Two math warpgroups have 64 tokens each; one warp copies steps of 128 k by TMA into a
 * ring; two store results, as in gemm_wide.cuh, a warpgroup's each.
 *
 * Tokens are the rows of the accumulators here, so a thread has two of them, whose scales of the
 * next step it fetches while a step's products are in the tensor cores. Those products, of 128 k
 * and half of the weight rows, are scaled and added to the tile's sums by ordinary instructions:
 * the tensor cores' own sums of FP8 products keep too few bits for long ones (DeepSeek-V3, section
 * 3.3.2). Meanwhile the tensor cores have the other warpgroup's products. */
#pragma once

#include "kernels/cuda/gemm_fp8.cuh"
#include "kernels/cuda/gemm_fp8_internal.h"
#include "kernels/cuda/gemm_wide.cuh"

enum { FP8_WIDE = 128 /* tokens, weight rows and k of a step */ };

/* GATED: gated results leave in FP8, from registers. */
template <int MODE_, int HALVES_, bool GATED_> struct fp8_wide_config {
    enum {
        BN = FP8_WIDE, /* tokens */
        GROUPS = 2,
        HALVES = HALVES_, /* of 128 weight rows */
        ROWS = HALVES * FP8_WIDE,
        GATED = GATED_,
        STAGES = HALVES == 1 ? 5
                 : GATED     ? 4
                             : 3,
        MODE = MODE_,
        MATH = GROUPS * 128,
        THREADS = MATH + 128, /* a whole warpgroup, to hand its registers over; three warps work */
        TABLE_THREADS = MATH + 32 + (GATED ? 0 : 64),
        BOX_BYTES = FP8_WIDE * FP8_WIDE,
        STAGE_BYTES = (1 + HALVES) * BOX_BYTES, /* tokens, weights */
        OUT_BOX_BYTES = 64 * 128,               /* 64 tokens' results in 64 columns */
        GROUP_BYTES = 2 * HALVES * OUT_BOX_BYTES,
        STAGING_BYTES = GATED ? 0 : GROUPS * GROUP_BYTES,
        TABLE_BYTES = MODE == TILE_DENSE ? 0 : (int)offsetof(tile_tables, list),
        SHARED_BYTES = 1024 + STAGES * STAGE_BYTES + STAGING_BYTES + 16 * STAGES + 16 +
                       TABLE_BYTES + 16 * GROUPS,
    };
};

/* Barriers after the tables. */
template <class C> struct fp8_wide_memory : tile_memory<C> {
    uint32_t ready, staged; /* of groups */

    __device__ explicit fp8_wide_memory(char *raw) : tile_memory<C>(raw)
    {
        ready = tile_memory<C>::ready + 16 + C::TABLE_BYTES;
        staged = ready + 8 * C::GROUPS;
    }
};

/* D (64, 128) float = or += A (64, 32) B (32, 128), E4M3 from shared memory, k contiguous in both.
 */
__device__ __forceinline__ void fp8_wgmma(float (&d)[64], uint64_t a, uint64_t b, int accumulate)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, "
                 "%30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "
                 "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, "
                 "%58, %59, %60, %61, %62, %63"
                 "}, %64, %65, p, 1, 1;\n}"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                   "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
                   "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]),
                   "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
                   "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
                   "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
                   "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
                   "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
                   "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]),
                   "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]),
                   "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
                 : "l"(a), "l"(b), "r"(accumulate));
}

template <class C>
__device__ __forceinline__ int fp8_wide_tiles(const tile_params &p, const fp8_wide_memory<C> &mem)
{
    return C::MODE == TILE_DENSE ? dense_tiles<C>(p) : mem.tables->tile_start[p.routing.experts];
}

/* Whether a group's results do not fill its rows, so that what follows is another expert's. */
template <class C>
__device__ __forceinline__ bool fp8_wide_is_partial(const struct tile &w, int group)
{
    return C::MODE == TILE_SORTED && w.tokens < 64 * (group + 1);
}

/* The copying warp: weights of the first stages early, then tokens, then stages as they are free.
 */
template <class C>
__device__ void fp8_wide_copy(const fp8_wide_params &f, const fp8_wide_memory<C> &mem, int lane)
{
    const tile_params &p = f.fp8.tile;
    struct ring_place at = {0, 1};
    bool waited = false;

    launch_next();
    if (C::MODE != TILE_DENSE)
        named_sync(9, C::TABLE_THREADS);
    tile_walk<C> walk(p, mem.tables, fp8_wide_tiles<C>(p, mem));
    for (int i = 0; walk.more(); i++) {
        const struct tile &w = walk.w;
        uint32_t dst = mem.ring + at.stage * C::STAGE_BYTES, bar = mem.full + 8 * at.stage;
        const CUtensorMap *weights = &p.a[w.part];
        int k = walk.step * FP8_WIDE, row = w.row_tile * C::ROWS;
        if (i >= C::STAGES)
            ring_wait(mem.empty + 8 * at.stage, at.parity);
        if (lane == 0) {
            mbar_arrive_expect(bar, C::STAGE_BYTES);
            for (int h = 0; h < C::HALVES; h++, row += FP8_WIDE) {
                uint32_t to = dst + (1 + h) * C::BOX_BYTES;
                if (p.swiglu)
                    tma_load_5d(to, weights, bar, k, 0, 0, row / 16, w.z, p.weight_policy);
                else
                    tma_load_3d(to, weights, bar, k, row, w.z, p.weight_policy);
            }
            if (!waited)
                launch_wait();
            tma_load_3d(dst, &p.b, bar, k, 0, w.first, TMA_EVICT_NORMAL);
        }
        waited = true;
        __syncwarp();
        at.template advance<C>();
        walk.next();
    }
}

/* Scales of a thread's two tokens, and two of its tile's weights, for rising blocks of k: those of
 * gate and up (or of up and gate), or of the halves. */
struct fp8_wide_scales {
    const float *token[2], *weight[2];

    __device__ __forceinline__ void next(float (&scale)[4])
    {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            scale[i] = *token[i]++;
            scale[2 + i] = *weight[i]++;
        }
    }
};

template <class C>
__device__ __forceinline__ struct fp8_wide_scales
fp8_wide_find_scales(const fp8_wide_params &f, const struct tile &w, int first_row)
{
    const tile_params &p = f.fp8.tile;
    const struct fp8_scale_map &map = f.fp8.scales[w.part];
    int row = w.row_tile * C::ROWS / (p.swiglu ? 2 : 1);
    int last = p.part[C::MODE == TILE_DENSE ? w.part : 0].n - 1;
    bool swapped = p.swapped >> w.part & 1;
    struct fp8_wide_scales s;

    for (int i = 0; i < 2; i++) {
        int token = min(w.first + first_row + 8 * i, f.rows - 1);
        int at = p.swiglu ? row : min(row + i * (C::ROWS - FP8_WIDE), last);
        s.token[i] = f.token_scales + (int64_t)token * f.fp8.k_blocks;
        s.weight[i] =
            fp8_scale_row(p.swiglu && swapped == !i ? map.up_scales : map.scales, map, w.z, at);
    }
    return s;
}

/* acc += scale * part; in `part` are 8 columns of gate, 8 of up, ... */
__device__ __forceinline__ void fp8_wide_add(float (&acc)[64], const float (&part)[64],
                                             const float (&scale)[4], float even, float odd)
{
    float by[2][2] = {{scale[0] * even, scale[1] * even}, {scale[0] * odd, scale[1] * odd}};

#pragma unroll
    for (int i = 0; i < 64; i++)
        acc[i] = fmaf(part[i], by[i >> 2 & 1][i >> 1 & 1], acc[i]);
}

template <class C>
__device__ __forceinline__ void
fp8_wide_multiply(float (&acc)[C::HALVES][64], const fp8_wide_memory<C> &mem,
                  struct fp8_wide_scales &scales, struct ring_place &at, const tile_params &p,
                  int group)
{
    float part[64], scale[4], next[4];

    scales.next(next);
    for (int s = 0; s < p.k_steps; s++) {
        uint32_t base = mem.ring + at.stage * C::STAGE_BYTES;
        uint64_t a = wgmma_desc(base + group * C::BOX_BYTES / 2, 16, 1024, SWIZZLE_128);
        ring_wait(mem.full + 8 * at.stage, at.parity);
#pragma unroll
        for (int h = 0; h < C::HALVES; h++) {
            uint64_t b = wgmma_desc(base + (1 + h) * C::BOX_BYTES, 16, 1024, SWIZZLE_128);
            wgmma_hold(part);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < FP8_WIDE / 32; k++)
                fp8_wgmma(part, a + k * 2, b + k * 2, k > 0);
            wgmma_commit();
            if (h == 0) {
#pragma unroll
                for (int i = 0; i < 4; i++)
                    scale[i] = next[i];
                if (s + 1 < p.k_steps)
                    scales.next(next);
            }
            wgmma_wait<0>();
            wgmma_hold(part);
            if (h == C::HALVES - 1 && threadIdx.x % 32 == 0)
                mbar_arrive(mem.empty + 8 * at.stage);
            fp8_wide_add(acc[h], part, scale, p.swiglu ? scale[2] : scale[2 + h],
                         p.swiglu ? scale[3] : scale[2 + h]);
        }
        at.template advance<C>();
    }
}

/* The gated values of a thread's row `i` of 2, four at a time: v = columns 16 J + 2 q + (0, 8, 1,
 * 9) of the tile, q = lane % 4. */
template <class C>
__device__ __forceinline__ void fp8_wide_gated(float (&v)[4], const float (&acc)[C::HALVES][64],
                                               int J, int i, bool swapped)
{
#pragma unroll
    for (int b = 0; b < 4; b++) {
        int at = (J % 4 * 2 + b % 2) * 8 + 2 * i + b / 2;
        float x = acc[J / 4][at], y = acc[J / 4][at + 4];
        v[b] = swapped ? silu(y) * x : silu(x) * y;
    }
}

/* This warpgroup's gated results, rounded to bf16 as ever, then quantised: a token's 128 columns
 * share a scale. */
template <class C>
__device__ __forceinline__ void fp8_wide_quantise(const float (&acc)[C::HALVES][64],
                                                  const fp8_wide_params &f, const struct tile &w)
{
    int lane = threadIdx.x % 32, q = lane % 4;
    int row = threadIdx.x / 32 * 16 + lane / 4, blocks = f.out.k / FP8_BLOCK;
    bool swapped = f.fp8.tile.swapped >> w.part & 1;

#pragma unroll
    for (int i = 0; i < 2; i++, row += 8) {
        float v[8][4], largest = 0.0f;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            fp8_wide_gated<C>(v[j], acc, j, i, swapped);
#pragma unroll
            for (int b = 0; b < 4; b++) {
                v[j][b] = __bfloat162float(__float2bfloat16_rn(v[j][b]));
                largest = fmaxf(largest, fabsf(v[j][b]));
            }
        }
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
        float scale = fp8_scale_of(largest, f.ue8m0), by = 1.0f / scale;
        uint32_t word[8];
#pragma unroll
        for (int j = 0; j < 8; j++)
            word[j] = fp8_pack(v[j][0] * by, v[j][1] * by, v[j][2] * by, v[j][3] * by);
        if (row >= w.tokens)
            continue;
        int64_t block = (int64_t)(w.first + row) * blocks + w.row_tile;
        uint4 *to = (uint4 *)(f.out.values + block * FP8_BLOCK + 32 * q);
        to[0] = make_uint4(word[0], word[1], word[2], word[3]);
        to[1] = make_uint4(word[4], word[5], word[6], word[7]);
        if (q == 0)
            f.out.scales[block] = scale;
    }
}

/* The warp that stores a group's results: one thread of it. */
template <class C>
__device__ void fp8_wide_store(const tile_params &p, const fp8_wide_memory<C> &mem, int group)
{
    uint32_t ready = mem.ready + 8 * group, staged = mem.staged + 8 * group, parity = 0;
    uint32_t from = mem.staging + group * C::GROUP_BYTES;
    int boxes = 2 * C::HALVES / (p.swiglu ? 2 : 1);
    tile_walk<C> walk(p, mem.tables, fp8_wide_tiles<C>(p, mem));

    for (; walk.more(); walk.step = walk.end_step, walk.next()) {
        const struct tile &w = walk.w;
        int part = C::MODE == TILE_DENSE ? w.part : 0, row = w.first + 64 * group;
        int column = w.row_tile * boxes * 64;
        if (p.part[part].residual) {
            mbar_arrive_expect(ready, boxes * C::OUT_BOX_BYTES);
            for (int b = 0; b < boxes; b++)
                tma_load_3d(from + b * C::OUT_BOX_BYTES, &p.residual[part], ready, column + 64 * b,
                            0, row, TMA_EVICT_NORMAL);
        } else {
            mbar_arrive(ready);
        }
        ring_wait(staged, parity);
        parity ^= 1;
        if (fp8_wide_is_partial<C>(w, group))
            continue;
        for (int b = 0; b < boxes; b++)
            tma_store_3d(&p.out[part], from + b * C::OUT_BOX_BYTES, column + 64 * b, 0, row);
        bulk_commit();
        bulk_wait_read<0>();
    }
    bulk_wait<0>();
}

/* A partial tile's results from shared memory to its rows. */
template <class C>
__device__ __forceinline__ void fp8_wide_store_partial(const tile_params &p,
                                                       const fp8_wide_memory<C> &mem,
                                                       const struct tile &w, int group)
{
    const struct tile_part &part = p.part[0];
    const char *staged = mem.staging_ptr + group * C::GROUP_BYTES;
    int pieces = C::ROWS / (p.swiglu ? 16 : 8);

    named_sync(1 + group, 128);
    for (int i = threadIdx.x % 128; i < (w.tokens - 64 * group) * pieces; i += 128) {
        int row = i / pieces, piece = i - row * pieces;
        int column = (w.row_tile * pieces + piece) * 8;
        const char *from =
            staged + piece / 8 * C::OUT_BOX_BYTES + row * 128 + ((piece ^ row) & 7) * 16;
        if (column < part.n)
            *(uint4 *)((__nv_bfloat16 *)part.out + (w.first + 64 * group + row) * part.out_stride +
                       column) = *(const uint4 *)from;
    }
}

template <class C>
__device__ __forceinline__ void
fp8_wide_add_bias(float (&acc)[C::HALVES][64], const struct tile_part &part, const struct tile &w)
{
    int column = w.row_tile * C::ROWS + threadIdx.x % 4 * 2;

#pragma unroll
    for (int j = 0; j < 16 * C::HALVES; j++, column += 8)
        if (column < part.n)
#pragma unroll
            for (int i = 0; i < 4; i++)
                acc[j / 16][j % 16 * 4 + i] += part.bias[column + i % 2];
}

/* Four 8 x 8 matrices of this warpgroup's results to its staging memory: two rows of a thread, in
 * 8 columns of each of two neighbouring blocks. */
struct fp8_wide_place {
    uint32_t row, piece;

    /* Of columns 16 j to 16 j + 15. */
    __device__ __forceinline__ uint32_t at(int j) const
    {
        return row + j / 4 * 64 * 128 + ((piece ^ (2 * (j % 4))) << 4);
    }
};

/* This warpgroup's results to its staging memory, in boxes of 64 columns, swizzled. */
template <class C>
__device__ __forceinline__ void fp8_wide_stage(const float (&acc)[C::HALVES][64],
                                               const tile_params &p, const fp8_wide_memory<C> &mem,
                                               const struct tile &w, int group)
{
    const struct tile_part &part = p.part[C::MODE == TILE_DENSE ? w.part : 0];
    int lane = threadIdx.x % 32, matrix = lane / 8;
    int row = threadIdx.x % 128 / 32 * 16 + matrix % 2 * 8 + lane % 8;
    bool swapped = p.swapped >> w.part & 1;
    struct fp8_wide_place to = {mem.staging + group * C::GROUP_BYTES + row * 128,
                                (uint32_t)(matrix / 2 ^ lane % 8)};

    if (p.swiglu) {
#pragma unroll
        for (int j = 0; j < 4 * C::HALVES; j++) {
            float v[2][4];
            for (int i = 0; i < 2; i++)
                fp8_wide_gated<C>(v[i], acc, j, i, swapped);
            store_matrices(to.at(j), pack_bf16(v[0][0], v[0][2]), pack_bf16(v[1][0], v[1][2]),
                           pack_bf16(v[0][1], v[0][3]), pack_bf16(v[1][1], v[1][3]));
        }
        return;
    }
#pragma unroll
    for (int j = 0; j < 8 * C::HALVES; j++) {
        uint32_t v[4], r[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float *from = &acc[j / 8][j % 8 * 8 + 2 * i];
            v[i] = pack_bf16(from[0], from[1]);
        }
        if (part.residual) {
            load_matrices(to.at(j), r);
#pragma unroll
            for (int i = 0; i < 4; i++)
                v[i] = add_pair(v[i], r[i]);
        }
        store_matrices(to.at(j), v[0], v[1], v[2], v[3]);
    }
}

template <class C>
__device__ void fp8_wide_math(const fp8_wide_params &f, const fp8_wide_memory<C> &mem)
{
    const tile_params &p = f.fp8.tile;
    struct ring_place at = {0, 0};
    int group = __shfl_sync(~0u, threadIdx.x / 128, 0); /* in a uniform register */
    uint32_t parity = 0;
    tile_walk<C> walk(p, mem.tables, fp8_wide_tiles<C>(p, mem));

    for (; walk.more(); walk.step = walk.end_step, walk.next()) {
        const struct tile &w = walk.w;
        int first = group * 64 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
        struct fp8_wide_scales scales = fp8_wide_find_scales<C>(f, w, first);
        float acc[C::HALVES][64] = {};
        fp8_wide_multiply<C>(acc, mem, scales, at, p, group);
        if constexpr (C::GATED) {
            fp8_wide_quantise<C>(acc, f, w);
            continue;
        }
        if (C::MODE == TILE_DENSE && p.part[w.part].bias)
            fp8_wide_add_bias<C>(acc, p.part[w.part], w);
        ring_wait(mem.ready + 8 * group, parity);
        parity ^= 1;
        fp8_wide_stage<C>(acc, p, mem, w, group);
        if (fp8_wide_is_partial<C>(w, group))
            fp8_wide_store_partial<C>(p, mem, w, group);
        fence_async();
        __syncwarp();
        if (threadIdx.x % 32 == 0)
            mbar_arrive(mem.staged + 8 * group);
    }
}

template <class C>
__global__ void __launch_bounds__(C::THREADS, 1)
    fp8_wide_kernel(const __grid_constant__ fp8_wide_params f)
{
    extern __shared__ char raw[];
    fp8_wide_memory<C> mem(raw);
    const tile_params &p = f.fp8.tile;
    int tid = threadIdx.x;

    if (tid == 0) {
        for (int i = 0; i < C::STAGES; i++) {
            mbar_init(mem.full + 8 * i, 1);
            mbar_init(mem.empty + 8 * i, C::MATH / 32);
        }
        for (int i = 0; i < C::GROUPS; i++) {
            mbar_init(mem.ready + 8 * i, 1);
            mbar_init(mem.staged + 8 * i, C::MATH / C::GROUPS / 32);
        }
        mbar_init_fence();
    }
    __syncthreads();
    if (tid >= C::MATH) {
        registers_lower<40>();
        int warp = (tid - C::MATH) / 32;
        if (warp == 0) {
            fp8_wide_copy<C>(f, mem, tid % 32);
        } else if (!C::GATED && warp <= C::GROUPS) {
            if (C::MODE != TILE_DENSE)
                named_sync(9, C::TABLE_THREADS);
            launch_wait();
            if (tid % 32 == 0)
                fp8_wide_store<C>(p, mem, warp - 1);
        }
    } else {
        registers_raise<232>();
        launch_wait();
        if (C::MODE != TILE_DENSE) {
            tables_from_ranges<C::MATH>(*mem.tables, p.routing, p.part[0].row_tiles, C::BN);
            named_sync(9, C::TABLE_THREADS);
        }
        fp8_wide_math<C>(f, mem);
    }
}

template <class C> static cudaError_t fp8_wide_launch(const fp8_wide_params &f, cudaStream_t stream)
{
    cudaError_t e = launch_room<fp8_wide_kernel<C>>(C::SHARED_BYTES);

    return e != cudaSuccess ? e
                            : launch_early(fp8_wide_kernel<C>, gemm_processors(), C::THREADS,
                                           C::SHARED_BYTES, stream, f);
}
