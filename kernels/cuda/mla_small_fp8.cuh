/* The FP8 cache in the decode kernel for few query rows: rows come as they stand in the cache and
 * are widened to the bf16 tile that the products read.
 *
 * Roles besides those of mla_small.cuh: warp 4 brings raw rows, RAW_TOKENS a stage; warps 8-15
 * widen them, two rows of a stage each, into the tile's swizzled boxes. They fill the ring of tiles
 * in the copy engine's place. */
#pragma once

#include "kernels/cuda/mla_small.cuh"

namespace mla_small
{

enum { WIDEN_WARPS = 8, FIRST_WIDEN_WARP = 8 };

static_assert(WIDEN_WARPS * 2 == RAW_TOKENS, "a warp has two rows of a stage");

/* ---- warp 4 ---------------------------------------------------------------------------------- */

template <class S>
static __device__ void bring_raw(const params &p, shared<S> &s, plan<S::N> &w, piece x, bool more)
{
    int lane = threadIdx.x % 32;
    ring<S::RAW_STAGES> at;

    for (; more; more = w.next(p, x)) {
        int64_t table =
            p.seqs.table_starts ? p.seqs.table_starts[x.seq] : (int64_t)x.seq * p.seqs.table_stride;
        int first = 0, pages = (x.end + MLA_PAGE_TOKENS - 1) / MLA_PAGE_TOKENS, entry = 0;

        for (int token = x.begin; token < x.end; token += RAW_TOKENS) {
            int page = token / MLA_PAGE_TOKENS;
            if (token == x.begin || page - first >= 32) {
                first = page;
                entry = first + lane < pages ? p.seqs.block_tables[table + first + lane] : 0;
            }
            int64_t number = __shfl_sync(~0u, entry, page - first);
            mbar_wait(smem_u32(&s.raw_empty[at.stage]), at.phase ^ 1);
            if (lane == 0) {
                uint32_t bar = smem_u32(&s.raw_full[at.stage]);
                mbar_arrive_expect(bar, S::RAW_BYTES);
                bulk_load(smem_u32(s.raw + at.stage * S::RAW_BYTES),
                          p.pages + number * p.page_stride + token % MLA_PAGE_TOKENS * S::ROW_BYTES,
                          S::RAW_BYTES, bar);
            }
            at.advance();
        }
    }
}

/* ---- warps 8-15 ------------------------------------------------------------------------------ */

/* 16 bytes at a multiple of 8 or 16. */
template <bool ALIGNED> static __device__ __forceinline__ uint4 load_16(const uint8_t *from)
{
    if (ALIGNED)
        return *(const uint4 *)from;
    uint2 a = *(const uint2 *)from, b = *(const uint2 *)(from + 8);
    return make_uint4(a.x, a.y, b.x, b.y);
}

/* Two e4m3 values, in the high bytes of t's halves, times scale. The bits of e4m3 stand in a bf16
 * as those of the value times 2^-120, subnormal ones too; `scale` has the factor 2^120. */
static __device__ __forceinline__ uint32_t widen_two(uint32_t t, __nv_bfloat162 scale)
{
    uint32_t bits = (t & 0x80008000) | (t >> 4 & 0x07f007f0);
    __nv_bfloat162 v = __hmul2(*(__nv_bfloat162 *)&bits, scale);

    return *(uint32_t *)&v;
}

static __device__ __forceinline__ uint4 widen_eight(uint32_t a, uint32_t b, __nv_bfloat162 scale)
{
    return make_uint4(
        widen_two(__byte_perm(a, 0, 0x1404), scale), widen_two(__byte_perm(a, 0, 0x3424), scale),
        widen_two(__byte_perm(b, 0, 0x1404), scale), widen_two(__byte_perm(b, 0, 0x3424), scale));
}

/* This warp's two rows of a raw stage; `row0` is the tile's row of the stage's first. */
template <class S>
static __device__ __forceinline__ void widen_rows(const uint8_t *raw, uint8_t *tile, uint32_t row0)
{
    constexpr int CHUNKS = S::LATENT / 16, ROPE_CHUNKS = S::ROPE / 8;
    constexpr bool ALIGNED = S::ROW_BYTES % 16 == 0;
    uint32_t lane = threadIdx.x % 32, mine = (threadIdx.x / 32 - FIRST_WIDEN_WARP) * 2;

#pragma unroll
    for (uint32_t i = lane; i < 2 * CHUNKS; i += 32) {
        uint32_t r = mine + i / CHUNKS, c = i % CHUNKS, row = row0 + r;
        const uint8_t *from = raw + r * S::ROW_BYTES;
        uint4 v = load_16<ALIGNED>(from + 16 * c);
        float factor = *(const float *)(from + S::LATENT + c / 8 * 4) * 0x1p120f;
        __nv_bfloat162 scale = __float2bfloat162_rn(factor);
        /* Neighbouring boxes have the same banks: one begins with its low half, one with its high.
         */
        bool odd = c / 4 % 2;
        uint8_t *to = tile + c / 4 * TILE * 128 + row * 128;
        uint32_t at = (2 * (c % 4) + odd ^ row % 8) << 4;
        *(uint4 *)(to + at) = widen_eight(odd ? v.z : v.x, odd ? v.w : v.y, scale);
        *(uint4 *)(to + (at ^ 16)) = widen_eight(odd ? v.x : v.z, odd ? v.y : v.w, scale);
    }
    if (lane < 2 * ROPE_CHUNKS) {
        uint32_t r = mine + lane / ROPE_CHUNKS, c = lane % ROPE_CHUNKS, row = row0 + r;
        *(uint4 *)(tile + S::BLOCKS * TILE * 128 + row * 128 + ((c ^ row % 8) << 4)) =
            load_16<ALIGNED>(raw + r * S::ROW_BYTES + S::LATENT + S::LATENT / 32 + 16 * c);
    }
}

template <class S>
static __device__ void widen(const params &p, shared<S> &s, plan<S::N> &w, piece x, bool more)
{
    int lane = threadIdx.x % 32;
    ring<S::STAGES> tiles;
    ring<S::RAW_STAGES> at;

    for (; more; more = w.next(p, x)) {
        int stages = x.tiles + (x.scratch ? 1 : 0);

        for (int i = 0; i < stages; i++) {
            int valid = i < x.tiles ? min(x.end - x.begin - i * TILE, (int)TILE) : 0;

            mbar_wait(smem_u32(&s.tile_empty[tiles.stage]), tiles.phase ^ 1);
            for (int row = 0; row < valid; row += RAW_TOKENS) {
                mbar_wait(smem_u32(&s.raw_full[at.stage]), at.phase);
                widen_rows<S>(s.raw + at.stage * S::RAW_BYTES, s.tiles[tiles.stage][0], row);
                __syncwarp();
                if (lane == 0)
                    mbar_arrive(smem_u32(&s.raw_empty[at.stage]));
                at.advance();
            }
            fence_async();
            __syncwarp();
            if (lane == 0)
                mbar_arrive(smem_u32(&s.tile_full[tiles.stage]));
            tiles.advance();
        }
    }
}

} // namespace mla_small
