/* Products of many rows with FP8 weights and FP8 tokens, for the tensor cores' sake: tiles of 128
 * tokens by 128 weight rows (64 of gate and 64 of up). Two math warpgroups have 64 tokens each, one
 * warp copies steps of 128 k by TMA into a ring.
 *
 * Tokens are the rows of the accumulators here, so a thread has two of them, whose scales of the
 * next step it fetches while a step's products are in the tensor cores. Those products, of 128 k,
 * are scaled and added to the tile's sums by ordinary instructions: the tensor cores' own sums of
 * FP8 products keep too few bits for long ones (DeepSeek-V3, section 3.3.2). A warpgroup does that
 * to one step's products while the next step's are under way. */
#pragma once

#include "kernels/cuda/gemm_fp8.cuh"
#include "kernels/cuda/gemm_fp8_internal.h"

enum { FP8_WIDE = 128 /* tokens, weight rows and k of a step */ };

template <int MODE_> struct fp8_wide_config {
    enum {
        BN = FP8_WIDE, /* tokens */
        GROUPS = 2,
        STAGES = 5,
        MODE = MODE_,
        MATH = GROUPS * 128,
        THREADS = MATH + 128, /* a whole warpgroup, to hand its registers over; one warp works */
        TABLE_THREADS = MATH + 32,
        BOX_BYTES = FP8_WIDE * FP8_WIDE,
        STAGE_BYTES = 2 * BOX_BYTES,   /* tokens, weights */
        ROW_PITCH = FP8_WIDE * 2 + 16, /* of results; + 16: no bank conflicts */
        STAGING_BYTES = FP8_WIDE * ROW_PITCH,
        TABLE_BYTES = MODE == TILE_DENSE ? 0 : (int)offsetof(tile_tables, list),
        SHARED_BYTES = 1024 + STAGES * STAGE_BYTES + STAGING_BYTES + 16 * STAGES + 16 + TABLE_BYTES,
    };
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
__device__ __forceinline__ int fp8_wide_tiles(const tile_params &p, const tile_memory<C> &mem)
{
    return C::MODE == TILE_DENSE ? dense_tiles<C>(p) : mem.tables->tile_start[p.routing.experts];
}

/* The copying warp: weights of the first stages early, then tokens, then stages as they are free.
 */
template <class C>
__device__ void fp8_wide_copy(const fp8_wide_params &f, const tile_memory<C> &mem, int lane)
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
        int k = walk.step * FP8_WIDE, row = w.row_tile * FP8_WIDE;
        if (i >= C::STAGES)
            ring_wait(mem.empty + 8 * at.stage, at.parity);
        if (lane == 0) {
            mbar_arrive_expect(bar, C::STAGE_BYTES);
            if (p.swiglu)
                tma_load_5d(dst + C::BOX_BYTES, weights, bar, k, 0, 0, row / 16, w.z,
                            p.weight_policy);
            else
                tma_load_3d(dst + C::BOX_BYTES, weights, bar, k, row, w.z, p.weight_policy);
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

/* Scales of a thread's two tokens, and of its tile's weights, for rising blocks of k. */
struct fp8_wide_scales {
    const float *token[2], *weight, *up;

    /* Those of the tokens, of gate, of up. */
    __device__ __forceinline__ void next(float (&scale)[4])
    {
        scale[0] = *token[0]++;
        scale[1] = *token[1]++;
        scale[2] = *weight++;
        scale[3] = *up++;
    }
};

template <class C>
__device__ __forceinline__ struct fp8_wide_scales
fp8_wide_find_scales(const fp8_wide_params &f, const struct tile &w, int first_row)
{
    const tile_params &p = f.fp8.tile;
    const struct fp8_scale_map &map = f.fp8.scales[w.part];
    int row = w.row_tile * FP8_WIDE / (p.swiglu ? 2 : 1);
    bool swapped = p.swapped >> w.part & 1;
    struct fp8_wide_scales s;

    for (int i = 0; i < 2; i++) {
        int token = min(w.first + first_row + 8 * i, f.rows - 1);
        s.token[i] = f.token_scales + (int64_t)token * f.fp8.k_blocks;
    }
    s.weight = fp8_scale_row(p.swiglu && swapped ? map.up_scales : map.scales, map, w.z, row);
    s.up = fp8_scale_row(p.swiglu && !swapped ? map.up_scales : map.scales, map, w.z, row);
    return s;
}

/* Queues the products of the step at `at`, and asks for its scales. */
template <class C>
__device__ __forceinline__ void
fp8_wide_issue(float (&part)[64], float (&scale)[4], const tile_memory<C> &mem,
               struct fp8_wide_scales &scales, struct ring_place &at, int group)
{
    uint32_t base = mem.ring + at.stage * C::STAGE_BYTES;
    uint64_t a = wgmma_desc(base + group * C::BOX_BYTES / 2, 16, 1024, SWIZZLE_128);
    uint64_t b = wgmma_desc(base + C::BOX_BYTES, 16, 1024, SWIZZLE_128);

    ring_wait(mem.full + 8 * at.stage, at.parity);
    wgmma_hold(part);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < FP8_WIDE / 32; k++)
        fp8_wgmma(part, a + k * 2, b + k * 2, k > 0);
    wgmma_commit();
    scales.next(scale);
    at.template advance<C>();
}

/* acc += scale * part, and the stage is free. */
template <class C>
__device__ __forceinline__ void fp8_wide_add(float (&acc)[64], float (&part)[64],
                                             const float (&scale)[4], const tile_memory<C> &mem,
                                             struct ring_place &done)
{
    float even[2] = {scale[0] * scale[2], scale[1] * scale[2]};
    float odd[2] = {scale[0] * scale[3], scale[1] * scale[3]};

    wgmma_hold(part);
    if (threadIdx.x % 32 == 0)
        mbar_arrive(mem.empty + 8 * done.stage);
    done.template advance<C>();
#pragma unroll
    for (int i = 0; i < 64; i++) /* 8 columns of gate, 8 of up, ... */
        acc[i] = fmaf(part[i], i & 4 ? odd[i >> 1 & 1] : even[i >> 1 & 1], acc[i]);
}

/* Two steps' products are under way in turn: one's are added up while the other's are multiplied.
 */
template <class C>
__device__ __forceinline__ void fp8_wide_multiply(float (&acc)[64], const tile_memory<C> &mem,
                                                  struct fp8_wide_scales &scales,
                                                  struct ring_place &at, int steps, int group)
{
    float first[64], second[64], s1[4], s2[4];
    struct ring_place done = at;
    int s = 0;

    fp8_wide_issue<C>(first, s1, mem, scales, at, group);
    for (; s + 2 < steps; s += 2) {
        fp8_wide_issue<C>(second, s2, mem, scales, at, group);
        wgmma_wait<1>();
        fp8_wide_add<C>(acc, first, s1, mem, done);
        fp8_wide_issue<C>(first, s1, mem, scales, at, group);
        wgmma_wait<1>();
        fp8_wide_add<C>(acc, second, s2, mem, done);
    }
    if (s + 2 == steps) {
        fp8_wide_issue<C>(second, s2, mem, scales, at, group);
        wgmma_wait<1>();
        fp8_wide_add<C>(acc, first, s1, mem, done);
        wgmma_wait<0>();
        fp8_wide_add<C>(acc, second, s2, mem, done);
    } else {
        wgmma_wait<0>();
        fp8_wide_add<C>(acc, first, s1, mem, done);
    }
}

/* This warpgroup's results to its staging memory, a token's columns side by side. */
template <class C>
__device__ __forceinline__ void fp8_wide_stage(const float (&acc)[64], const fp8_wide_params &f,
                                               const struct tile &w, char *staged)
{
    const tile_params &p = f.fp8.tile;
    const struct tile_part &part = p.part[C::MODE == TILE_DENSE ? w.part : 0];
    int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane / 4;
    bool swapped = p.swapped >> w.part & 1;
    char *at = staged + row * C::ROW_PITCH + lane % 4 * 4;

    if (p.swiglu) {
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float a0 = acc[8 * j + 2 * i], a1 = acc[8 * j + 2 * i + 1];
                float b0 = acc[8 * j + 4 + 2 * i], b1 = acc[8 * j + 5 + 2 * i];
                *(uint32_t *)(at + i * 8 * C::ROW_PITCH + j * 16) =
                    swapped ? pack_bf16(silu(b0) * a0, silu(b1) * a1)
                            : pack_bf16(silu(a0) * b0, silu(a1) * b1);
            }
        return;
    }
    int column = w.row_tile * FP8_WIDE + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < 16; j++) {
        float bias[2] = {};
        if (part.bias && column + 8 * j < part.n) {
            bias[0] = part.bias[column + 8 * j];
            bias[1] = part.bias[column + 8 * j + 1];
        }
#pragma unroll
        for (int i = 0; i < 2; i++)
            *(uint32_t *)(at + i * 8 * C::ROW_PITCH + j * 16) =
                pack_bf16(acc[4 * j + 2 * i] + bias[0], acc[4 * j + 2 * i + 1] + bias[1]);
    }
}

/* From there to memory. */
template <class C>
__device__ __forceinline__ void fp8_wide_store(const fp8_wide_params &f, const struct tile &w,
                                               const char *staged, int group)
{
    const tile_params &p = f.fp8.tile;
    const struct tile_part &part = p.part[C::MODE == TILE_DENSE ? w.part : 0];
    int columns = FP8_WIDE / (p.swiglu ? 2 : 1), pieces = columns / 8;

#pragma unroll 4
    for (int i = threadIdx.x % 128; i < 64 * pieces; i += 128) {
        int row = i / pieces, piece = i - row * pieces, token = 64 * group + row;
        int column = w.row_tile * columns + 8 * piece;
        if (token >= w.tokens || column >= part.n)
            continue;
        int64_t to = (int64_t)(w.first + token) * part.out_stride + column;
        uint4 v = *(const uint4 *)(staged + row * C::ROW_PITCH + 16 * piece);
        if (part.residual)
            v = add_bf16(v, *(const uint4 *)((const __nv_bfloat16 *)part.residual + to));
        *(uint4 *)((__nv_bfloat16 *)part.out + to) = v;
    }
}

template <class C>
__device__ void fp8_wide_math(const fp8_wide_params &f, const tile_memory<C> &mem)
{
    const tile_params &p = f.fp8.tile;
    struct ring_place at = {0, 0};
    int group = threadIdx.x / 128;
    char *staged = mem.staging_ptr + group * 64 * C::ROW_PITCH;
    tile_walk<C> walk(p, mem.tables, fp8_wide_tiles<C>(p, mem));

    for (; walk.more(); walk.step = walk.end_step, walk.next()) {
        const struct tile &w = walk.w;
        int first = group * 64 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
        struct fp8_wide_scales scales = fp8_wide_find_scales<C>(f, w, first);
        float acc[64] = {};
        fp8_wide_multiply<C>(acc, mem, scales, at, p.k_steps, group);
        named_sync(1 + group, 128); /* the last tile's results have been read */
        fp8_wide_stage<C>(acc, f, w, staged);
        named_sync(1 + group, 128);
        fp8_wide_store<C>(f, w, staged, group);
    }
}

template <class C>
__global__ void __launch_bounds__(C::THREADS, 1)
    fp8_wide_kernel(const __grid_constant__ fp8_wide_params f)
{
    extern __shared__ char raw[];
    tile_memory<C> mem(raw);
    const tile_params &p = f.fp8.tile;
    int tid = threadIdx.x;

    if (tid == 0) {
        for (int i = 0; i < C::STAGES; i++) {
            mbar_init(mem.full + 8 * i, 1);
            mbar_init(mem.empty + 8 * i, C::MATH / 32);
        }
        mbar_init_fence();
    }
    __syncthreads();
    if (tid >= C::MATH) {
        registers_lower<40>();
        if (tid < C::MATH + 32)
            fp8_wide_copy<C>(f, mem, tid % 32);
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
    static int ready; /* set again by a racing thread: the same */

    if (!ready) {
        cudaError_t e = cudaFuncSetAttribute(
            fp8_wide_kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, C::SHARED_BYTES);
        if (e != cudaSuccess)
            return e;
        ready = 1;
    }
    return launch_early(fp8_wide_kernel<C>, gemm_processors(), C::THREADS, C::SHARED_BYTES, stream,
                        f);
}
