/* The experts for a few rows of x in one launch, where nothing counts but reading the weights; and
 * the choice of them, if it is still to be made (moe_few_choice.cuh).
 *
 * Every block makes the list of the experts that are wanted: the shared ones first, whose weights
 * are asked for before the routing is known, then the others in rising order (a choice made here:
 * in its order). Blocks share the tiles of gate and up (8 rows of either) of the list evenly, and
 * write what comes of them to memory. FEW_LAG experts later an expert's rows of hidden values are
 * fetched, multiplied by the 16 rows of down that are a block's own, and added to the sum over the
 * experts. The ring of weights runs on from the one product into the other, so the memory is idle
 * only at the beginning and at the end.
 *
 * Hidden values go from block to block in pairs, with the number of the launch beside them in the
 * same 64 bits: who reads them sees by it that they are there. No fence is needed, which would wait
 * for all that its multiprocessor has asked of the memory, and no counter. Whatever crosses the
 * chip takes as long as the requests for weights ahead of it: hence at most FEW_DEPTH steps are
 * under way, though the ring has room for more.
 *
 * All blocks must be on the GPU at once, one on a multiprocessor; nothing before them waits for
 * anything after, so they will be.
 *
 * Roles: two groups of 8 warps multiply, every other step (16 rows by 16 KB) each, a warp its part
 * of k; one warp copies weights to the ring; one makes the list and fetches x, then hidden values;
 * two add up the warps' sums and store, every other tile each. Tokens rest in shared memory: every
 * product is with all rows of x at once, up to 8 columns of a matrix operation, and those of rows
 * that did not choose the expert are left out.
 *
 * Routed and shared experts may have weights in different formats, R and S (moe_few_formats.cuh). A
 * format has
 *   STEP_K, WARP_K    k of a step, and of a warp's part of it
 *   SCALE_BYTES       of a step
 *   CHOOSES           of R: whether the choice may be left to this kernel
 *   scales            where they are
 *   fetch_scales      asks for those of a step: a warp, by cp.async
 *   token_row, token_bytes  whose part of what token a lane reads
 *   multiply          a warp's part of a step */
#pragma once

#include "kernels/cuda/moe_few_choice.cuh"

/* Where a warp is in a ring of `stages`, and how many steps it has seen. */
struct few_place {
    int32_t stage, stages, count;
    uint32_t parity;

    __device__ void advance()
    {
        count++;
        if (++stage == stages) {
            stage = 0;
            parity ^= 1;
        }
    }
};

/* A walk over this block's tiles of gate and up: the expert's place in the list, and its tile. */
struct few_walk {
    int32_t entry, tile, tiles;

    __device__ few_walk(int n_tiles) : entry(0), tile((int)blockIdx.x), tiles(n_tiles)
    {
        wrap();
    }

    __device__ void wrap()
    {
        while (tile >= tiles) {
            tile -= tiles;
            entry++;
        }
    }

    __device__ void next()
    {
        tile += (int)gridDim.x;
        wrap();
    }
};

/* The first of a block's tiles of 16 columns: the last blocks have less of gate and up. */
__device__ __forceinline__ int few_column_tile()
{
    return (int)gridDim.x - 1 - (int)blockIdx.x;
}

/* One arrival at `bar` when this thread's copies so far are done; counted when it was set up. */
__device__ __forceinline__ void few_copied(uint32_t bar)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}

/* ---- weights --------------------------------------------------------------------------------- */

template <class R, class S> struct few_copier {
    const few_params<R, S> &p;
    const few_memory<R, S> &mem;
    struct few_place at, there; /* the next step; the first that may not be there */
    int lane, depth;

    /* One step: of gate and up, or of down. part 1: shared. */
    __device__ __forceinline__ void step(int part, int z, int tile, int step, bool gated)
    {
        const CUtensorMap *weights = p.matrices[part];
        uint32_t dst = smem_u32(mem.ring + at.stage * FEW_STEP_BYTES), bar = mem.full(at.stage);
        char *scales = mem.scales + at.stage * few_memory<R, S>::SCALE_BYTES;
        int row = tile * (gated ? 8 : 16), block = step * FEW_WARPS;

        if (at.count >= at.stages)
            ring_wait(mem.empty(at.stage), at.parity);
        for (; there.count <= at.count - depth; there.advance())
            ring_wait(mem.full(there.stage), there.parity);
        if (lane == 0) {
            mbar_arrive_expect(bar, FEW_STEP_BYTES);
            tma_load_4d(dst, &weights[gated ? FEW_GATE : FEW_DOWN], bar, 0, row, block, z,
                        TMA_EVICT_FIRST);
            if (gated)
                tma_load_4d(dst + FEW_STEP_BYTES / 2, &weights[FEW_UP], bar, 0, row, block, z,
                            TMA_EVICT_FIRST);
        }
        if (part)
            S::fetch_scales(scales, p.shared_scales, gated, z, row, block, lane);
        else
            R::fetch_scales(scales, p.routed, gated, z, row, block, lane);
        few_copied(bar);
        at.advance();
    }
};

/* Once the list is complete, n = its length. */
template <class R, class S>
__device__ __forceinline__ bool few_listed(const few_memory<R, S> &mem, int &n)
{
    ring_wait(smem_u32(&mem.bars->listed), 0);
    n = mem.list->n;
    return true;
}

template <class R, class S>
__device__ void few_copy(const few_params<R, S> &p, const few_memory<R, S> &mem, int lane)
{
    few_copier<R, S> to = {p,
                           mem,
                           {0, p.stages, 0, 1},
                           {0, p.stages, 0, 0},
                           lane,
                           few_is_choosing(p) ? FEW_SHIEST : FEW_SHY};
    few_walk walk(p.gate_tiles);
    int n = p.shared; /* as far as is known */
    bool known = false;
    auto down = [&](int tile, int e) {
        int part = e < p.shared, z = part ? e : mem.list->expert[e];
        for (int s = 0; s < p.down_steps[part]; s++)
            to.step(part, z, tile, s, false);
    };

    launch_next();
    for (int e = 0; e < n + FEW_LAG || !known; e++) {
        if (e >= n && !known) {
            to.depth = FEW_DEPTH;
            known = few_is_choosing(p) ? few_picked(p, mem.list, n) : few_listed(mem, n);
        }
        for (; e < n && walk.entry == e; walk.next()) {
            int part = e < p.shared, z = part ? e : mem.list->expert[e];
            for (int s = 0; s < p.gate_steps[part]; s++)
                to.step(part, z, walk.tile, s, true);
        }
        if (e >= FEW_LAG && e < n + FEW_LAG && few_column_tile() < p.down_tiles)
            down(few_column_tile(), e - FEW_LAG);
    }
    for (int tile = few_column_tile() + gridDim.x; tile < p.down_tiles; tile += gridDim.x)
        for (int e = 0; e < n; e++)
            down(tile, e);
}

/* ---- list, x, hidden ------------------------------------------------------------------------- */

__device__ __forceinline__ void few_copy_row(char *to, const char *from, int bytes, int lane)
{
    for (int at = lane * 16; at < bytes; at += 512)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(smem_u32(to + at)),
                     "l"(from + at)
                     : "memory");
}

/* What of the list does not depend on the routing. A warp. */
template <class R, class S>
__device__ void few_begin_list(const few_params<R, S> &p, struct few_list *list, int lane)
{
    for (int i = lane; i < FEW_LIST * FEW_ROWS; i += 32)
        list->place[i / FEW_ROWS][i % FEW_ROWS] = -1;
    __syncwarp();
    for (int i = lane; i < p.shared * p.m; i += 32) {
        list->place[i / p.m][i % p.m] = (int16_t)i;
        list->weight[i / p.m][i % p.m] = 1.0f;
    }
    __syncwarp();
}

/* The rest of it, from each lane's pair. */
template <class R, class S>
__device__ void few_make_list(const few_params<R, S> &p, const few_memory<R, S> &mem,
                              struct chosen pair, int lane)
{
    struct few_list *list = mem.list;
    int e = pair.id, rank = 0;

    unsigned same = __match_any_sync(~0u, e);
    unsigned leaders = __ballot_sync(~0u, e >= 0 && __ffs(same) - 1 == lane);
    for (unsigned left = leaders; left; left &= left - 1)
        rank += __shfl_sync(~0u, e, __ffs(left) - 1) < e;
    if (e >= 0) {
        list->expert[p.shared + rank] = e;
        list->place[p.shared + rank][lane / p.top_k] = (int16_t)(p.shared * p.m + lane);
        list->weight[p.shared + rank][lane / p.top_k] = pair.weight;
    }
    if (lane == 0)
        list->n = p.shared + __popc(leaders);
    __syncwarp();
    if (lane == 0)
        mbar_arrive(smem_u32(&mem.bars->listed));
}

/* The choice that other kernels made: lane l gets pair l, row l / top_k. Asks for x meanwhile.
 * Waits for the kernels ahead. */
template <class R, class S>
__device__ struct chosen few_read_choice(const few_params<R, S> &p, const few_memory<R, S> &mem,
                                         int lane)
{
    struct chosen pair = {-1, 0};

    launch_wait();
    uint32_t launch = 1 + (uint32_t)load_routing((const int32_t *)&p.room->launch);
    if (lane < p.m * p.top_k) {
        pair.id = load_routing(p.ids + lane);
        pair.weight = __int_as_float(load_routing((const int32_t *)p.weights + lane));
    }
    for (int r = 0; r < p.m; r++)
        few_copy_row(mem.tokens + r * stream_pitch(p.d), p.x + r * p.x_stride, 2 * p.d, lane);
    few_copied(smem_u32(&mem.bars->x_there));
    if (lane == 0)
        mem.list->launch = launch;
    return pair;
}

/* A row of hidden values as soon as all of it is there: `n` pairs, a multiple of 2. A warp. */
__device__ __forceinline__ void few_take_row(char *to, const uint64_t *from, int n, uint32_t launch,
                                             int lane)
{
    enum { EACH = 6 };
    uint64_t v[EACH][2];
    long long start = clock64();

    for (int first = 0; first < n; first += EACH * 64) {
        bool all;
        do {
            all = true;
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                int at = first + (i * 32 + lane) * 2;
                if (at < n)
                    all &= few_load_pairs(v[i], from + at, launch);
            }
            if (clock64() - start > 8000000000ll)
                __trap();
        } while (!__all_sync(~0u, all));
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int at = first + (i * 32 + lane) * 2;
            if (at < n)
                *(uint2 *)(to + 4 * at) = make_uint2((uint32_t)v[i][0], (uint32_t)v[i][1]);
        }
    }
}

template <class R, class S>
__device__ void few_fetch(const few_params<R, S> &p, const few_memory<R, S> &mem, int lane)
{
    struct few_list *list = mem.list;
    char *hidden = mem.tokens + p.m * stream_pitch(p.d);

    few_begin_list(p, list, lane);
    if (few_is_choosing(p))
        few_choose(p, mem, lane);
    else
        few_make_list(p, mem, few_read_choice(p, mem, lane), lane);
    if (few_column_tile() < p.down_tiles)
        for (int e = 0; e < list->n; e++) {
            for (int r = 0; r < p.m; r++) {
                int place = list->place[e][r];
                if (place >= 0)
                    few_take_row(hidden + place * stream_pitch(p.i),
                                 p.room->pairs + (int64_t)place * (p.i / 2), p.i / 2, list->launch,
                                 lane);
            }
            mbar_arrive(smem_u32(&mem.bars->hidden[e]));
        }
    if (lane == 0 && atomicAdd(&p.room->done, 1) == gridDim.x - 1) {
        p.room->done = 0;
        p.room->launch = list->launch;
    }
}

/* ---- products -------------------------------------------------------------------------------- */

/* sum += this warp's part of a tile's steps. `row`: what a lane's row of tokens is. The groups have
 * every other step, the first of them by the parity of `turn`, which is the tile's own or the
 * expert's: so a row's sums do not depend on other rows' experts. Both wait for every step and let
 * go of it: one that ran ahead would take an earlier filling of a stage for the next. */
template <class F, class M, class Row>
__device__ __forceinline__ void few_multiply(float (&sum)[4], const M &mem, struct few_place &at,
                                             const char *rows, int k, int steps, bool gated,
                                             int turn, Row row)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % FEW_WARPS;
    int group = threadIdx.x / 32 / FEW_WARPS;
    uint32_t tokens =
        smem_u32(rows) + row(F::token_row(lane)) * stream_pitch(k) + F::token_bytes(lane);

    for (int s = 0; s < steps; s++, at.advance()) {
        int first = s * F::STEP_K + warp * F::WARP_K;
        ring_wait(mem.full(at.stage), at.parity);
        if ((turn + s) % 2 == group && first < k)
            F::multiply(sum, mem.ring + at.stage * FEW_STEP_BYTES,
                        mem.scales + at.stage * M::SCALE_BYTES, tokens + 2 * first, k - first,
                        gated);
        __syncwarp();
        if (lane == 0)
            mbar_arrive(mem.empty(at.stage));
    }
}

/* One of the two places where the warps leave their sums. */
struct few_turn {
    uint32_t place, parity;

    __device__ void next()
    {
        parity ^= place;
        place ^= 1;
    }
};

template <class R, class S>
__device__ __forceinline__ void few_leave(const float (&sum)[4], const few_memory<R, S> &mem,
                                          struct few_turn &turn)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float *sums = mem.sums + turn.place * FEW_SUMS + warp * FEW_ROWS * FEW_PITCH;

    ring_wait(smem_u32(&mem.bars->read[turn.place]), turn.parity ^ 1);
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (lane % 4 * 2 < FEW_ROWS)
            sums[(lane % 4 * 2 + i % 2) * FEW_PITCH + lane / 4 + i / 2 * 8] = sum[i];
    __syncwarp();
    if (lane == 0)
        mbar_arrive(smem_u32(&mem.bars->summed[turn.place]));
    turn.next();
}

/* A block's products, in the order in which few_copy brings the weights. */
template <class R, class S> struct few_products {
    const few_params<R, S> &p;
    const few_memory<R, S> &mem;
    struct few_place at;

    __device__ __forceinline__ void gate(float (&sum)[4], int e, int tile)
    {
        auto row = [&](int t) { return t < p.m ? t : 0; }; /* of one that is not there: any */
        if (e < p.shared)
            few_multiply<S>(sum, mem, at, mem.tokens, p.d, p.gate_steps[1], true, tile, row);
        else
            few_multiply<R>(sum, mem, at, mem.tokens, p.d, p.gate_steps[0], true, tile, row);
    }

    __device__ __forceinline__ void down(float (&total)[4], int e)
    {
        const struct few_list *list = mem.list;
        const char *hidden = mem.tokens + p.m * stream_pitch(p.d);
        float sum[4] = {};
        auto row = [&](int t) { /* likewise of one that has not chosen the expert */
                                int place = t < p.m ? list->place[e][t] : -1;
                                for (int r = 0; place < 0 && r < p.m; r++)
                                    place = list->place[e][r];
                                return place;
        };
        ring_wait(smem_u32(&mem.bars->hidden[e]), 0);
        if (e < p.shared)
            few_multiply<S>(sum, mem, at, hidden, p.i, p.down_steps[1], false, e, row);
        else
            few_multiply<R>(sum, mem, at, hidden, p.i, p.down_steps[0], false, list->expert[e],
                            row);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int column = threadIdx.x % 4 * 2 + i % 2;
            if (column < p.m && list->place[e][column] >= 0)
                total[i] = fmaf(list->weight[e][column], sum[i], total[i]);
        }
    }
};

template <class R, class S>
__device__ void few_math(const few_params<R, S> &p, const few_memory<R, S> &mem)
{
    few_products<R, S> products = {p, mem, {0, p.stages, 0, 0}};
    struct few_turn turn = {0, 0};
    few_walk walk(p.gate_tiles);
    bool mine = few_column_tile() < p.down_tiles;
    float total[4] = {};

    if (few_is_choosing(p))
        few_normalise(p, mem);
    else
        ring_wait(smem_u32(&mem.bars->listed), 0);
    ring_wait(smem_u32(&mem.bars->x_there), 0);
    int n = p.shared; /* as far as is known */
    for (int e = 0; e < n + FEW_LAG; e++) {
        if (e == p.shared) {
            ring_wait(smem_u32(&mem.bars->listed), 0);
            n = mem.list->n;
        }
        for (; e < n && walk.entry == e; walk.next()) {
            float sum[4] = {};
            products.gate(sum, e, walk.tile);
            few_leave(sum, mem, turn);
        }
        if (e >= FEW_LAG && mine)
            products.down(total, e - FEW_LAG);
    }
    if (mine)
        few_leave(total, mem, turn);
    for (int tile = few_column_tile() + gridDim.x; tile < p.down_tiles; tile += gridDim.x) {
        float sum[4] = {};
        for (int e = 0; e < n; e++)
            products.down(sum, e);
        few_leave(sum, mem, turn);
    }
}

/* ---- results --------------------------------------------------------------------------------- */

__device__ __forceinline__ float few_sum(const float *sums, int r, int t)
{
    float sum = 0;

#pragma unroll
    for (int w = 0; w < FEW_MATH; w++)
        sum += sums[(w * FEW_ROWS + t) * FEW_PITCH + r];
    return sum;
}

/* Hidden values: lane r + 8 t has column r of the tile for row t of x. */
template <class R, class S>
__device__ void few_store_hidden(const few_params<R, S> &p, const few_memory<R, S> &mem,
                                 struct few_turn &turn, uint32_t mine, int lane)
{
    static_assert((int)FEW_ROWS * 8 <= 32, "a lane for each result");
    int t = lane / 8, r = lane % 8, n = few_is_choosing(p) ? p.shared : mem.list->n;
    uint32_t launch = mem.list->launch;

    for (few_walk walk(p.gate_tiles);; walk.next(), turn.next()) {
        const float *sums = mem.sums + turn.place * FEW_SUMS;
        if (walk.entry >= n) {
            ring_wait(smem_u32(&mem.bars->listed), 0);
            n = mem.list->n;
            if (walk.entry >= n)
                break;
        }
        if (turn.place != mine)
            continue;
        ring_wait(smem_u32(&mem.bars->summed[turn.place]), turn.parity);
        int place = t < p.m ? mem.list->place[walk.entry][t] : -1;
        float gate = few_sum(sums, r, t), up = few_sum(sums, r + 8, t);
        __syncwarp();
        if (lane == 0)
            mbar_arrive(smem_u32(&mem.bars->read[turn.place]));
        float value = silu(gate) * up, next = __shfl_down_sync(~0u, value, 1);
        if (place >= 0 && r % 2 == 0)
            few_store_word(p.room->pairs + ((int64_t)place * p.i + walk.tile * 8 + r) / 2, launch,
                           pack_bf16(value, next));
    }
}

template <class R, class S>
__device__ void few_store(const few_params<R, S> &p, const few_memory<R, S> &mem, uint32_t mine,
                          int lane)
{
    enum { EACH = FEW_ROWS * 16 / 32 };
    struct few_turn turn = {0, 0};

    launch_wait();
    ring_wait(smem_u32(few_is_choosing(p) ? &mem.bars->begun : &mem.bars->listed), 0);
    few_store_hidden(p, mem, turn, mine, lane);
    for (int tile = few_column_tile(); tile < p.down_tiles; tile += gridDim.x, turn.next()) {
        if (turn.place != mine)
            continue;
        int r = lane % 16, t = lane / 16;
        int64_t at = t * p.out_stride + tile * 16 + r;
        float residual[EACH] = {};
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (p.residual && t + 2 * i < p.m)
                residual[i] = __bfloat162float(p.residual[at + 2 * i * p.out_stride]);
        ring_wait(smem_u32(&mem.bars->summed[turn.place]), turn.parity);
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (t + 2 * i < p.m)
                p.out[at + 2 * i * p.out_stride] = __float2bfloat16(
                    few_sum(mem.sums + turn.place * FEW_SUMS, r, t + 2 * i) + residual[i]);
        __syncwarp();
        if (lane == 0)
            mbar_arrive(smem_u32(&mem.bars->read[turn.place]));
    }
}

template <class R, class S>
__global__ void __launch_bounds__(FEW_THREADS, 1)
    few_kernel(const __grid_constant__ few_params<R, S> p)
{
    extern __shared__ char raw[];
    few_memory<R, S> mem(raw, p.stages, p.token_bytes);
    struct few_bars *bars = mem.bars;
    int tid = threadIdx.x, warp = tid / 32;

    if (tid == 0)
        mem.list->picked = 0;
    if (tid < FEW_STAGES) {
        mbar_init(smem_u32(&bars->full[tid]), 1 + 32);
        mbar_init(smem_u32(&bars->empty[tid]), FEW_MATH);
    } else if (tid >= 32 && tid < 34) {
        mbar_init(smem_u32(&bars->summed[tid - 32]), FEW_MATH);
        mbar_init(smem_u32(&bars->read[tid - 32]), 1);
    } else if (tid == 64) {
        mbar_init(smem_u32(&bars->begun), 1);
        mbar_init(smem_u32(&bars->listed), 1);
        mbar_init(smem_u32(&bars->x_there), few_is_choosing(p) ? FEW_MATH : 32);
    } else if (tid >= 128 && tid < 128 + FEW_LIST) {
        mbar_init(smem_u32(&bars->hidden[tid - 128]), 32);
    }
    mbar_init_fence();
    __syncthreads();
    if (warp < FEW_MATH)
        few_math(p, mem);
    else if (warp < FEW_STORE + 2)
        few_store(p, mem, (uint32_t)(warp - FEW_STORE), tid % 32);
    else if (warp == FEW_FETCH)
        few_fetch(p, mem, tid % 32);
    else
        few_copy(p, mem, tid % 32);
}

/* ---- from the host --------------------------------------------------------------------------- */

/* The map of weights in rows of `bytes`, an expert's z_stride bytes after another's: boxes of
 * `rows` rows by a step of k. */
static inline int few_map(CUtensorMap *to, const void *weight, int64_t bytes, int64_t row_stride,
                          int64_t z_stride, int n, int z, int rows)
{
    struct gemm_map map = {weight,
                           128,
                           3,
                           {n, (bytes + 127) / 128, z},
                           {row_stride, 128, z > 1 ? z_stride : row_stride},
                           {rows, FEW_WARPS, 1},
                           1};

    return gemm_map_encode(to, &map);
}

/* Sets what does not depend on the format of the weights, and runs. gate NULL: the choice is made.
 * The workspace begins with the room for struct few_room. */
template <class R, class S>
static cudaError_t few_launch(few_params<R, S> &p, const struct moe_args *a,
                              const struct gate_args *gate, cudaStream_t stream)
{
    enum { MOST = 232448 };
    static int ready; /* set again by a racing thread: the same */

    if (!ready) {
        cudaError_t e = cudaFuncSetAttribute(few_kernel<R, S>,
                                             cudaFuncAttributeMaxDynamicSharedMemorySize, MOST);
        if (e != cudaSuccess)
            return e;
        ready = 1;
    }
    p.x = (const char *)a->x;
    p.x_stride = 2 * a->x_stride;
    p.ids = a->ids;
    p.weights = a->weights;
    p.room = (struct few_room *)a->workspace;
    if (gate)
        p.gate = *gate;
    p.residual = (const __nv_bfloat16 *)a->residual;
    p.out = (__nv_bfloat16 *)a->out;
    p.out_stride = a->out_stride;
    p.m = a->m;
    p.d = a->d;
    p.i = a->i;
    p.top_k = a->top_k;
    p.shared = a->shared;
    p.gate_steps[0] = (a->d + R::STEP_K - 1) / R::STEP_K;
    p.gate_steps[1] = (a->d + S::STEP_K - 1) / S::STEP_K;
    p.down_steps[0] = (a->i + R::STEP_K - 1) / R::STEP_K;
    p.down_steps[1] = (a->i + S::STEP_K - 1) / S::STEP_K;
    p.gate_tiles = a->i / 8;
    p.down_tiles = a->d / 16;
    p.token_bytes = few_token_bytes(a);
    size_t rest = few_fixed_bytes(gate != nullptr) + (size_t)p.token_bytes,
           stage = FEW_STEP_BYTES + few_memory<R, S>::SCALE_BYTES;
    size_t stages = (MOST - rest) / stage;
    p.stages = stages < (size_t)FEW_STAGES ? (int)stages : (int)FEW_STAGES;
    return launch_early(few_kernel<R, S>, gemm_processors(), FEW_THREADS,
                        rest + (size_t)p.stages * stage, stream, p);
}
