/* Products of many rows with INT4 weights: gemm_wide.cuh's kernel, of which the math warpgroups
 * read their rows of the weight from shared memory and widen them, times their scales, rounded, to
 * wgmma's left operand (gemm_int4_tile.cuh does that for fewer rows).
 *
 * The ring has steps of 64 k of tokens; weights come 256 k at a time, to two places of their own.
 * Weights of 64 k are widened while the tensor cores have the 64 k before. */
#pragma once

#include "kernels/cuda/gemm_fp8.cuh"
#include "kernels/cuda/gemm_int4.cuh"
#include "kernels/cuda/gemm_wide.cuh"

enum {
    INT4_WIDE_BYTES = 2 * TILE_ROWS * 128, /* weights of 256 k */
    INT4_WIDE_STEPS = 4,                   /* of TILE_K, of them */
};

struct int4_wide_config {
    enum {
        BN = 256,
        GROUPS = 2,
        STAGES = 3,
        MODE = TILE_SORTED,
        MATH = GROUPS * 128,
        THREADS = MATH + 128,
        TABLE_THREADS = MATH + 64,
        BOX_TOKENS = 64,
        A_BYTES = 0, /* in the ring */
        STAGE_BYTES = BN * TOKEN_BYTES,
        WEIGHTS_AT = GROUPS * WIDE_BOX_BYTES, /* after the results */
        STAGING_BYTES = WEIGHTS_AT + 2 * INT4_WIDE_BYTES,
        TABLE_BYTES = (int)offsetof(tile_tables, list),
        SHARED_BYTES =
            1024 + STAGES * STAGE_BYTES + STAGING_BYTES + 16 * STAGES + 16 + TABLE_BYTES + 32,
    };
};

struct int4_wide_params {
    tile_params tile;
    struct int4_scale_map scales;
};

template <class C> struct int4_wide_memory : tile_memory<C> {
    uint32_t weights, came, freed; /* two places and their barriers */

    __device__ explicit int4_wide_memory(char *raw) : tile_memory<C>(raw)
    {
        weights = tile_memory<C>::staging + C::WEIGHTS_AT;
        came = tile_memory<C>::ready + 16 + C::TABLE_BYTES;
        freed = came + 16;
    }
};

struct int4_place {
    uint32_t place, parity;

    __device__ void advance()
    {
        parity ^= place;
        place ^= 1;
    }
};

/* The copying warp. */
template <class C>
__device__ void int4_wide_copy(const tile_params &p, const int4_wide_memory<C> &mem, int lane)
{
    struct ring_place at = {0, 1};
    struct int4_place to = {0, 1};

    launch_next();
    named_sync(9, C::TABLE_THREADS);
    launch_wait();
    tile_walk<C> walk(p, mem.tables, tile_count<C>(p, mem));
    for (; walk.more(); walk.next()) {
        const struct tile &w = walk.w;
        if (walk.step % INT4_WIDE_STEPS == 0) {
            uint32_t dst = mem.weights + to.place * INT4_WIDE_BYTES, bar = mem.came + 8 * to.place;
            int byte = walk.step / INT4_WIDE_STEPS * 128, row = w.row_tile * 2 * TILE_ROWS;
            ring_wait(mem.freed + 8 * to.place, to.parity);
            if (lane == 0) {
                mbar_arrive_expect(bar, INT4_WIDE_BYTES);
                if (p.swiglu)
                    tma_load_5d(dst, &p.a[0], bar, byte, 0, 0, row / 16, w.z, p.weight_policy);
                else
                    tma_load_3d(dst, &p.a[0], bar, byte, row, w.z, p.weight_policy);
            }
            to.advance();
        }
        ring_wait(mem.empty + 8 * at.stage, at.parity);
        if (lane == 0)
            mbar_arrive_expect(mem.full + 8 * at.stage, stage_bytes<C>(w));
        __syncwarp();
        load_tokens<C>(p, mem, w, walk.step * TILE_K, at.stage, lane);
        at.template advance<C>();
    }
}

/* Weights of 128 k and their scales: a thread's, of rows r and r + 8. */
struct int4_half {
    uint32_t words[2][4], scales[2][2];

    /* The left operands of four slices of 16 k, of the first or second 64 k. */
    __device__ __forceinline__ void left(uint32_t (&a)[4][4], int second) const
    {
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                uint32_t word = words[i][2 * second + j];
                uint32_t twice = __byte_perm(scales[i][second], 0, j ? 0x3232 : 0x1010);
                __nv_bfloat162 scale = *(__nv_bfloat162 *)&twice;
#pragma unroll
                for (int s = 0; s < 2; s++) {
                    a[2 * j + s][i] = int4_bits(__hmul2(int4_widen(word, 2 * s), scale));
                    a[2 * j + s][2 + i] = int4_bits(__hmul2(int4_widen(word, 2 * s + 1), scale));
                }
            }
    }
};

/* The math warps' products, for wide_tiles. */
template <class C> struct int4_products {
    const int4_wide_params &f;
    const int4_wide_memory<C> &mem;
    struct ring_place at;
    struct int4_place from;

    /* Where the scales of row r + 8 i of the tile are. */
    __device__ __forceinline__ const uint2 *find_scales(const struct tile &w, int i) const
    {
        const tile_params &p = f.tile;
        int row = w.row_tile * 2 * TILE_ROWS + threadIdx.x / 32 * 16 + 8 * i + threadIdx.x % 32 / 4;
        const uint16_t *scales = f.scales.scales;

        if (p.swiglu) { /* 8 rows of gate, 8 of up, ... */
            scales = (i != 0) != (p.swapped & 1) ? f.scales.up_scales : scales;
            row = row / 16 * 8 + row % 8;
        }
        row = min(row, p.part[0].n - 1);
        return (const uint2 *)(scales + w.z * f.scales.z_stride +
                               (int64_t)row * f.scales.row_stride);
    }

    /* Half `h` of the tile's k to registers; `ahead` are its scales, and become those of the next
     * one. */
    __device__ __forceinline__ void take(struct int4_half &to, uint2 (&ahead)[2],
                                         const uint2 *const (&scales)[2], int h, int halves)
    {
        int lane = threadIdx.x % 32, r = lane / 4, q = lane % 4;
        uint32_t row = mem.weights + from.place * INT4_WIDE_BYTES +
                       (threadIdx.x / 32 * 16 + r) * 128 + (((h % 2 * 4 + q) ^ r) << 4);

        if (h % 2 == 0)
            ring_wait(mem.came + 8 * from.place, from.parity);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(to.words[i][0]), "=r"(to.words[i][1]), "=r"(to.words[i][2]),
                           "=r"(to.words[i][3])
                         : "r"(row + i * 8 * 128)
                         : "memory");
            to.scales[i][0] = ahead[i].x;
            to.scales[i][1] = ahead[i].y;
            if (h + 1 < halves)
                ahead[i] = scales[i][h + 1];
        }
        if (h % 2 == 0 && h + 1 < halves)
            return;
        __syncwarp();
        if (lane == 0)
            mbar_arrive(mem.freed + 8 * from.place);
        from.advance();
    }

    /* Queues the products of 64 k. */
    template <int NT>
    __device__ __forceinline__ void issue(float (&acc)[NT / 2], const uint32_t (&a)[4][4])
    {
        uint64_t b = wgmma_desc(mem.ring + at.stage * C::STAGE_BYTES, 16, 1024, SWIZZLE_128);

        ring_wait(mem.full + 8 * at.stage, at.parity);
        wgmma_hold(acc);
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < 4; j++)
            wgmma<NT>::template rs<0>(acc, a[j], b + j * (32 >> 4), 1);
        wgmma_commit();
        at.template advance<C>();
    }

    /* The products of all stages but the N asked for last are done: the oldest of the others. */
    template <int N> __device__ __forceinline__ void done(uint32_t &freed)
    {
        wgmma_wait<N>();
        if (threadIdx.x % 32 == 0)
            mbar_arrive(mem.empty + 8 * freed);
        freed = freed + 1 == C::STAGES ? 0 : freed + 1;
    }

    /* acc += the tile's product. */
    template <int NT>
    __device__ __forceinline__ void run(float (&acc)[NT / 2], const struct tile &w, int)
    {
        const uint2 *const scales[2] = {find_scales(w, 0), find_scales(w, 1)};
        uint2 ahead[2] = {*scales[0], *scales[1]};
        int halves = f.tile.k_steps / 2;
        uint32_t first[4][4], second[4][4], freed = at.stage;
        struct int4_half half;

        take(half, ahead, scales, 0, halves);
        half.left(first, 0);
        for (int h = 0; h < halves; h++) {
            issue<NT>(acc, first);
            if (h)
                done<1>(freed);
            half.left(second, 1);
            issue<NT>(acc, second);
            if (h + 1 < halves)
                take(half, ahead, scales, h + 1, halves);
            done<1>(freed);
            if (h + 1 < halves)
                half.left(first, 0);
        }
        done<0>(freed);
        wgmma_hold(acc);
    }
};

template <class C>
__global__ void __launch_bounds__(C::THREADS, 1)
    int4_wide_kernel(const __grid_constant__ int4_wide_params f)
{
    extern __shared__ char raw[];
    int4_wide_memory<C> mem(raw);
    const tile_params &p = f.tile;
    int tid = threadIdx.x;

    if (tid == 0) {
        for (int i = 0; i < 2; i++) {
            mbar_init(mem.came + 8 * i, 1);
            mbar_init(mem.freed + 8 * i, C::MATH / 32);
        }
        wide_init<C>(mem);
    }
    __syncthreads();
    if (tid >= C::MATH) {
        registers_lower<24>();
        if (tid < C::MATH + 32)
            int4_wide_copy<C>(p, mem, tid % 32);
        else if (tid < C::MATH + 64)
            wide_store_warp<C>(p, mem);
    } else {
        registers_raise<240>();
        wide_begin<C>(p, mem);
        wide_tiles<C>(p, mem, int4_products<C>{f, mem, {0, 0}, {0, 0}});
    }
}

template <class C>
static cudaError_t int4_wide_launch(const int4_wide_params &f, int blocks, cudaStream_t stream)
{
    cudaError_t e = launch_room<int4_wide_kernel<C>>(C::SHARED_BYTES);

    return e != cudaSuccess
               ? e
               : launch_early(int4_wide_kernel<C>, blocks, C::THREADS, C::SHARED_BYTES, stream, f);
}
