/* The decode kernel for few query rows, up to N (16 or 32) a tile, where the cache's bytes, or the
 * steps of a short call one after the other, are all that counts. See README.md beside this file
 * for what was tried and measured.
 *
 * The products have the cache on the left, so that nothing is padded to 64 query rows:
 *   S^T (64 tokens x N) = K (64 x 576) Q^T       K: a tile as it lies, Q^T: the query rows
 *   O^T (512 x N)      += V^T (512 x 64) P^T     V^T: the same tile with M contiguous
 * Tokens run down the accumulators' rows, query rows across their columns: a thread has the same
 * columns of S^T and O^T, so the maximum and sum of a query row are kept where they are needed.
 *
 * Roles of a block, one to each multiprocessor:
 *   warps 0-7  two groups of four: each has the scores' sum over half of the row (the halves are
 *              added through shared memory), then the same probabilities, then half of the output;
 *              with 32 rows each gets whole scores and makes probabilities of half of the columns
 *   warp 8     plans (mla_few_work.cuh), and brings the cache, by TMA, STAGES tiles ahead
 *   warp 9     tells the cluster of the block's maxima and sums, and makes weights of what it hears
 *   warp 10    the same of the other columns with 32 rows: warp 9 has the first 16
 *   10 and 11  else nothing: they are there (UNEVEN) so that others can have their registers
 *
 * The lean form (16 rows, bf16) is for calls of few pages a block: half of a multiprocessor, so
 * that the next call's blocks stand beside, with plan made and first page there, when this call
 * ends. It has one group of four math warps (the products take as long: they are bound by shared
 * memory), one warp that brings, one tile, and merges where the rope part and the queries were.
 * The form PAIRS (bf16) is for calls of two pages a block, whose steps it takes for both together.
 *
 * The softmax goes by references that lag behind the maxima: as long as no score is far beyond its
 * column's (GROWTH), a page needs no maximum. If one is, the page's probabilities are made anew.
 *
 * With `settled` (mla.h) warp 8 plans and asks for a ring full of pages while the kernels before
 * this one still run; all else waits for them.
 *
 * Barriers (full: the data is there; empty: its readers are done): a pair for each tile and for
 * each of four pieces of work. Products and softmax are in mla_few_math.cuh, merging in
 * mla_few_merge.cuh, the FP8 cache in mla_few_fp8.cuh, what calls them in mla_few_kernel.cuh.
 */
#pragma once

#include "kernels/cuda/mla_few_work.cuh"
#include "kernels/cuda/ptx.cuh"

namespace mla_few
{

/* Floats from a column's weights to the next one's: those of 16 blocks or parts, and what keeps
 * columns on different banks. */
enum { WEIGHTS_STEP = MAX_CLUSTER + 4 };

/* See attend(), the lean form above, attend_pair(). */
enum walk { PAGES, ONE_PAGE, PAIRS };

template <int N_, int LATENT_, int ROPE_, int FORMAT, walk WALK = PAGES> struct shape {
    static constexpr int N = N_, LATENT = LATENT_, ROPE = ROPE_;
    static constexpr bool LEAN = WALK == ONE_PAGE; /* half a multiprocessor */
    static constexpr bool TWO = WALK == PAIRS;     /* pieces of two pages at one go */
    static constexpr bool FP8 = FORMAT == MLA_KV_FP8;
    static constexpr int BOXES = (LATENT + ROPE + 63) / 64; /* of 64 columns: 128 bytes a row */
    static constexpr int BLOCKS = LATENT / 64;              /* of O^T's rows */
    static constexpr int MATH_GROUPS = LEAN ? 1 : 2;        /* of four warps */
    static constexpr int MATH = 128 * MATH_GROUPS;          /* threads */
    static constexpr int MINE = BLOCKS / MATH_GROUPS;       /* those of a group */
    /* Each group has the scores of half of the columns, rather than both those of all. */
    static constexpr bool BY_COLUMNS = N == 32;
    static constexpr int SCORED = BY_COLUMNS ? N / 2 : N;    /* columns whose scores a group has */
    static constexpr int SEEN = SCORED / 4, COLUMNS = N / 4; /* of a thread: see column() */
    static constexpr int ROUNDS = N / 16;                    /* of 16 columns: merging's step */
    static constexpr int STATS_BYTES = MAX_SMS * 16 * 8;     /* of as many parts */
    static constexpr int GROUPS = LATENT / 256; /* FP8: scales of a token in half a row */

    /* A row as it stands in the cache, and in shared memory, where FP8 needs the rope part and the
     * rows at multiples of 16. */
    static constexpr int ROW_BYTES = FP8 ? LATENT + LATENT / 32 + 2 * ROPE : 2 * (LATENT + ROPE);
    static constexpr int ROPE_FROM = LATENT + LATENT / 32, ROPE_AT = (ROPE_FROM + 15) / 16 * 16;
    static constexpr int RAW_ROW = FP8 ? ROPE_AT + 2 * ROPE : ROW_BYTES;
    static constexpr int Q_BYTES = BOXES * N * 128;
    static constexpr int Q_STAGES = FP8 || LEAN ? 1 : 2;
    static constexpr int P_COPIES =
        BY_COLUMNS || LEAN ? 1 : 2;          /* for each group, unless they share it */
    static constexpr int UNITS = 2 * BLOCKS; /* of merging in a round: 64 rows x 8 columns */
    static constexpr int UNIT_BYTES = 1024 * ROUNDS;            /* as it is sent, of all rounds */
    static constexpr int ROOM_BYTES = (UNITS + 2) * UNIT_BYTES; /* merging's room */
    static constexpr int STAGE_BYTES = FP8 ? TILE * RAW_ROW : BOXES * TILE * 128;
    /* Many accumulators or widened values need more registers than nine warps can have alike. */
    static constexpr bool UNEVEN = FP8 || N > 16;
    static constexpr int THREADS = UNEVEN ? 384 : MATH + 64;
    static constexpr int HERALDS = 32 * ROUNDS; /* threads, see herald() */
    static constexpr int TOLD = MATH + HERALDS; /* those that meet at *_BARRIER */
    static constexpr int READY = MATH + HERALDS + 32;
    static constexpr bool LAGS = UNEVEN; /* references, see raise_references() */
    static constexpr int P_TILES = FP8 ? (BY_COLUMNS ? 2 : 1) * GROUPS : 1;
    /* What the groups send each other of scores goes by way of the tile's rope part. */
    static constexpr bool BY_TILE = BY_COLUMNS && (!FP8 || ROPE == 64);
    static constexpr int SUMS = BY_TILE || LEAN ? 1
                                : BY_COLUMNS    ? 2
                                                : N / 8; /* float4 of a thread */
    static constexpr int REST =
        Q_STAGES * Q_BYTES + P_COPIES * P_TILES * N * 128 + (BY_TILE || LEAN ? 0 : 8192 * SUMS) +
        ROUNDS * MAX_CLUSTER * 16 * 8 + 12 * N * 4 + 1024 + MAX_CLUSTER * 32;
    static constexpr int SHARED_BYTES = LEAN ? 115712 : 232448; /* at most */
    static constexpr int FIT = (SHARED_BYTES - REST) / STAGE_BYTES, STAGES = FIT < 4 ? FIT : 4;

    /* The stages that merging's room takes. */
    static constexpr int ROOMS = LEAN ? 0 : 1; /* LEAN: the rope part and queries */
    /* What stands at the end of the queries, see part_weights(). */
    static constexpr int WEIGHTS_BYTES = ROUNDS * 16 * WEIGHTS_STEP * 4;
    static_assert(ROUNDS * UNITS / 2 * 1024 <= Q_BYTES - WEIGHTS_BYTES, "output before it");
    static_assert(!LEAN || ROOM_BYTES <= (BOXES - BLOCKS) * TILE * 128 + Q_BYTES - WEIGHTS_BYTES,
                  "room before it");
    static_assert(STAGES > ROOMS, "a stage besides merging's");
};

enum {
    WORKS = 4,           /* pieces that are known at a time */
    HINTED = 2,          /* pages that are brought to L2 ahead of the ring at first */
    GROWTH = 8,          /* log2 of what a probability may be beyond 1 */
    CHAINS = 2,          /* sums of scores formed side by side: a product of few columns waits for
                            the one before it of the same sum for longer than it takes */
    GROUP_THREADS = 128, /* a group of four warps */
    MATH_BARRIER = 1,
    GROUP_BARRIER = 2,   /* and 3 */
    READY_BARRIER = 4,   /* this block's mbarriers are there */
    TOLD_BARRIER = 5,    /* the block's maxima and sums are known */
    WEIGHED_BARRIER = 6, /* the cluster's weights are */
    PARTS_BARRIER = 7,   /* the parts' weights are */
};

/* Shared memory of 512 + 64, of 232,448 bytes (lean: 115,712):
 *            16 rows:                     32 rows:
 *             bf16     lean      FP8        bf16      FP8
 *   tiles   147,456   73,728  167,936    147,456  167,936
 *   q        36,864   18,432   18,432     73,728   36,864
 *   p         4,096    2,048    8,192      4,096   16,384
 *   sums     16,384        -   16,384          -        -
 *   stats     2,560    2,560    2,560      4,608    4,608
 *   the rest under 3 KB */
template <class S> struct shared {
    alignas(1024) uint8_t tiles[S::STAGES][S::STAGE_BYTES];
    alignas(1024) uint8_t q[S::Q_STAGES][S::Q_BYTES];
    alignas(1024) uint8_t p[S::P_COPIES][S::P_TILES][S::N * 128];
    /* [tile % 2][group]: scores of half a row; BY_COLUMNS, [0][group]: of the other's columns. */
    float4 sums[2][2][S::SUMS][S::SUMS == 1 ? 1 : GROUP_THREADS];
    alignas(16) float keep[S::N];   /* BY_COLUMNS: what is left of the sums so far */
    float maxima[2][S::SCORED];     /* of a piece, by each group: of its columns */
    float sums_of[2][4][S::SCORED]; /* [group][warp]: sums over the warp's tokens */
    alignas(16) float2 stats[S::ROUNDS][MAX_CLUSTER][16]; /* a merge's senders' (m, l) */
    alignas(16) float factors[8][MAX_CLUSTER]; /* what undoes that of each of their warps: send() */
    alignas(16) float by_warp[2][4][S::SCORED];
    int32_t limits[S::N];   /* of a piece's rows: tokens that they see */
    uint2 routes[S::UNITS]; /* of a merge's units, see make_routes() */
    float q_factor[2][S::FP8 ? S::GROUPS : 1][S::N];
    piece work[WORKS];
    uint64_t tile_full[S::STAGES], tile_empty[S::STAGES];
    uint64_t work_full[WORKS], work_empty[WORKS];
    uint64_t asked;                    /* for the first queries */
    uint64_t granted, heard, received; /* see mla_few_merge.cuh */
    uint32_t last;
};

/* A place in a ring of stages and the parity of its current phase. */
template <int STAGES> struct ring {
    int stage = 0;
    uint32_t phase = 0;

    __device__ __forceinline__ ring next(int n = 1) const
    {
        ring r = *this;
        for (int i = 0; i < n; i++)
            r.advance();
        return r;
    }

    __device__ __forceinline__ void advance()
    {
        if (++stage == STAGES)
            stage = 0, phase ^= 1;
    }
};

template <class S> static __device__ __forceinline__ int group()
{
    return S::MATH_GROUPS == 1 ? 0 : (int)threadIdx.x / GROUP_THREADS;
}

template <class S> static __device__ __forceinline__ void sync_group()
{
    named_sync(GROUP_BARRIER + group<S>(), GROUP_THREADS);
}

template <class S> static __device__ __forceinline__ void sync_math()
{
    named_sync(MATH_BARRIER, S::MATH);
}

/* The threads that share probabilities meet. With LAGS: whether any of them came with `here`. */
template <class S> static __device__ __forceinline__ bool meet(bool here)
{
    if (S::BY_COLUMNS)
        return named_any(MATH_BARRIER, S::MATH, here);
    if (S::LAGS)
        return named_any(GROUP_BARRIER + group<S>(), GROUP_THREADS, here);
    sync_group<S>();
    return false;
}

/* ---- warp 8: the cache ----------------------------------------------------------------------- */

static __device__ __forceinline__ void load_page(uint32_t dst, const CUtensorMap *map, uint32_t bar,
                                                 int32_t page, uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%3, %3, %3, %4}], [%2], %5;" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(0), "r"(page), "l"(policy)
                 : "memory");
}

static __device__ __forceinline__ void load_rows(uint32_t dst, const void *src, uint32_t bytes,
                                                 uint32_t bar, uint64_t policy)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(dst),
                 "l"(src), "r"(bytes), "r"(bar), "l"(policy)
                 : "memory");
}

/* By lane 0: the tile that begins at `token`, a page, or two half pages (the second only if
 * tokens from there on are wanted). */
template <class S>
static __device__ __forceinline__ void bring_tile(const params &p, shared<S> &s, int stage,
                                                  int token, int end, int page0, int page1,
                                                  uint64_t policy)
{
    uint32_t bar = smem_u32(&s.tile_full[stage]), dst = smem_u32(s.tiles[stage]);
    int row = token % MLA_PAGE_TOKENS;
    bool two = token + UNIT < end;

    mbar_arrive_expect(bar, S::BOXES * UNIT * 128 * (two ? 2 : 1));
    if (two && row == 0 && !p.ragged) {
        load_page(dst, &p.page, bar, page0, policy);
        return;
    }
#pragma unroll 1
    for (int box = 0; box < S::BOXES; box++) {
        uint32_t to = dst + box * TILE * 128;
        tma_load_3d(to, &p.half, bar, 64 * box, row, page0, policy);
        if (two)
            tma_load_3d(to + UNIT * 128, &p.half, bar, 64 * box, UNIT - row, page1, policy);
    }
}

/* FP8: the rows as they stand in the cache. */
template <class S>
static __device__ __forceinline__ void bring_rows(const params &p, shared<S> &s, int stage,
                                                  int token, int end, int page0, int page1,
                                                  uint64_t policy)
{
    uint32_t bar = smem_u32(&s.tile_full[stage]), dst = smem_u32(s.tiles[stage]);
    int row = token % MLA_PAGE_TOKENS, n = min(end - token, (int)TILE);
    int n0 = min(n, MLA_PAGE_TOKENS - row), lane = threadIdx.x % 32;
    const uint8_t *from0 = p.pages + page0 * p.page_stride + row * S::ROW_BYTES;
    const uint8_t *from1 = p.pages + page1 * p.page_stride;

    if constexpr (S::RAW_ROW == S::ROW_BYTES) {
        if (lane > 0)
            return;
        mbar_arrive_expect(bar, n * S::ROW_BYTES);
        load_rows(dst, from0, n0 * S::ROW_BYTES, bar, policy);
        if (n > n0)
            load_rows(dst + n0 * S::ROW_BYTES, from1, (n - n0) * S::ROW_BYTES, bar, policy);
    } else {
        constexpr int EIGHTS = S::ROW_BYTES / 8;
        for (int i = lane; i < n * EIGHTS; i += 32) {
            int r = i / EIGHTS, c = i % EIGHTS;
            const uint8_t *from =
                r < n0 ? from0 + r * S::ROW_BYTES : from1 + (r - n0) * S::ROW_BYTES;
            int to =
                r * S::RAW_ROW + c * 8 + (c * 8 < S::ROPE_FROM ? 0 : S::ROPE_AT - S::ROPE_FROM);
            asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(dst + to),
                         "l"(from + c * 8)
                         : "memory");
        }
        asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
    }
}

/* By lane 0: a page to L2. */
template <class S> static __device__ __forceinline__ void hint_page(const params &p, int page)
{
    if constexpr (S::FP8)
        asm volatile(
            "cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p.pages + page * p.page_stride),
            "r"(MLA_PAGE_TOKENS * S::ROW_BYTES)
            : "memory");
    else if (!p.ragged)
        asm volatile(
            "cp.async.bulk.prefetch.tensor.4d.L2.global [%0, {%1, %1, %1, %2}];" ::"l"(&p.page),
            "r"(0), "r"(page)
            : "memory");
}

/* The pages that the ring has no room for yet: places from `at` on in the warp's entries of the
 * table, `n` in all; not the last one, which may still be written. Memory would be idle while the
 * first tiles wait for their queries. */
template <class S>
static __device__ __forceinline__ void hint_pages(const params &p, int at, int n, int entry)
{
#pragma unroll 1
    for (int i = at; i < min(at + HINTED, min(n - 1, 32)); i++) {
        int page = __shfl_sync(~0u, entry, i);
        if (threadIdx.x % 32 == 0)
            hint_page<S>(p, page);
    }
}

/* Hands on a stage that brings nothing. */
template <class S> static __device__ void pass_stage(shared<S> &s, ring<S::STAGES> &at)
{
    mbar_wait(smem_u32(&s.tile_empty[at.stage]), at.phase ^ 1);
    if (S::FP8 && S::RAW_ROW != S::ROW_BYTES)
        mbar_arrive(smem_u32(&s.tile_full[at.stage])); /* every lane arrives there */
    else if (threadIdx.x % 32 == 0)
        mbar_arrive(smem_u32(&s.tile_full[at.stage]));
    at.advance();
}

/* Tells the other warps of a piece, or, with rows 0, that there is none. */
template <class S>
static __device__ __forceinline__ void publish(shared<S> &s, const piece &x, ring<WORKS> &works)
{
    mbar_wait(smem_u32(&s.work_empty[works.stage]), works.phase ^ 1);
    if (threadIdx.x % 32 == 0) {
        s.work[works.stage] = x;
        mbar_arrive(smem_u32(&s.work_full[works.stage]));
    }
    works.advance();
}

/* The warp's 32 entries of the block table. */
struct entries {
    int32_t entry; /* this lane's */
    bool read;
};

/* Those of a piece's first pages. Not past the table's end, in case they follow from lengths out of
 * date; a table of unknown size is left for later then. */
static __device__ __forceinline__ entries read_entries(const params &p, const piece &x, bool more,
                                                       bool sure)
{
    int64_t at = x.begin / MLA_PAGE_TOKENS + threadIdx.x % 32, entry = x.table + at;
    int64_t size = (int64_t)p.seqs.table_stride * (p.seqs.table_starts ? 1 : p.seqs.n_seqs);
    entries known = {0, more && (sure || size > 0)};

    if (known.read && at < (x.end + MLA_PAGE_TOKENS - 1) / MLA_PAGE_TOKENS &&
        (sure || (entry >= 0 && entry < size)))
        known.entry = __ldcg(p.seqs.block_tables + entry);
    return known;
}

/* The warp's view of its work. */
template <class S> struct feeder {
    plan<S::N> w;
    ring<S::STAGES> at;
    ring<WORKS> works;
    bool waited; /* for the kernels before this one */
    bool more;   /* there is a piece */
    piece x;
    entries known; /* of it */
};

/* Brings a piece, and finds the next one once a ring's worth of it is asked for. */
template <class S>
static __device__ __forceinline__ void bring_piece(const params &p, shared<S> &s, feeder<S> &f,
                                                   bool first_piece)
{
    if (S::LEAN)
        f.x.tiles = max(f.x.tiles, 1); /* merging's room has a part of one */
    if (S::TWO && f.x.tiles == 2 && f.w.cluster > 1 && (f.w.cluster & f.w.cluster - 1) == 0)
        f.x.pair = true, f.x.scratch = false;
    const piece x = f.x;
    int lane = threadIdx.x % 32, pages = (x.end + MLA_PAGE_TOKENS - 1) / MLA_PAGE_TOKENS;
    int first = x.begin / MLA_PAGE_TOKENS; /* the warp holds 32 entries of the block table */
    const int32_t *table = p.seqs.block_tables + x.table;
    int entry = f.known.entry, ahead = min(x.tiles, (int)S::STAGES);
    uint64_t policy = f.w.stream ? TMA_EVICT_FIRST : TMA_EVICT_NORMAL;
    int settled = x.kv_len - x.q_len; /* tokens that are there before the wait */
    if (!f.known.read)
        entry = first + lane < pages ? __ldcg(table + first + lane) : 0;

    publish<S>(s, x, f.works);
    if (first_piece && !p.settled) /* its queries are asked for before memory is busy */
        mbar_wait(smem_u32(&s.asked), 0);
#pragma unroll 1
    for (int i = 0;; i++) {
        if (i == ahead) {
            if (first_piece)
                hint_pages<S>(p, x.begin / MLA_PAGE_TOKENS + i - first, pages - first, entry);
            f.more = f.w.next(p, f.x);
            f.known = read_entries(p, f.x, f.more, true);
        }
        if (i == x.tiles)
            break;
        int token = x.begin + i * TILE, page = token / MLA_PAGE_TOKENS;
        if (token >= x.end) {
            pass_stage<S>(s, f.at);
            continue;
        }
        int next = (token + UNIT) / MLA_PAGE_TOKENS;
        if (next - first >= 32) {
            first = page;
            entry = first + lane < pages ? __ldcg(table + first + lane) : 0;
        }
        int page0 = __shfl_sync(~0u, entry, page - first);
        int page1 = __shfl_sync(~0u, entry, next - first);
        mbar_wait(smem_u32(&s.tile_empty[f.at.stage]), f.at.phase ^ 1);
        if (!f.waited && min(token + TILE, x.end) > settled) {
            launch_wait();
            f.waited = true;
        }
        if constexpr (S::FP8)
            bring_rows<S>(p, s, f.at.stage, token, x.end, page0, page1, policy);
        else if (lane == 0)
            bring_tile<S>(p, s, f.at.stage, token, x.end, page0, page1, policy);
        f.at.advance();
    }
    if (x.scratch)
        for (int i = 0; i < S::ROOMS; i++)
            pass_stage<S>(s, f.at);
}

template <class S>
static __device__ __forceinline__ void bring_cache(const params &p, shared<S> &s, int rank,
                                                   int cluster)
{
    feeder<S> f;

    f.waited = !p.settled;
#pragma unroll 1
    for (int pass = 0;; pass++) {
        f.w.init(p, (int)cluster_id(), rank, cluster);
        f.more = f.w.next(p, f.x);
        if (pass == 0 && !p.settled)
            launch_wait();
        f.known = read_entries(p, f.x, f.more, p.settled);
        if (p.settled || pass == 1 || f.w.holds(p))
            break;
    }
    named_sync(READY_BARRIER, S::READY);
    for (bool first = true; f.more; first = false)
        bring_piece<S>(p, s, f, first);
    f.x.rows = 0;
    publish<S>(s, f.x, f.works);
}

/* ---- warps 0-7: the queries ------------------------------------------------------------------ */

static __device__ __forceinline__ void arrive_warp(uint64_t &bar)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        mbar_arrive(smem_u32(&bar));
}

/* 16 bytes of global into shared memory, or zeros. */
static __device__ __forceinline__ void copy_16(uint32_t dst, const void *src, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src),
                 "r"(there ? 16 : 0)
                 : "memory");
}

/* Where this thread's share of a piece's queries is and goes to. */
struct query_route {
    const __nv_bfloat16 *from;
    uint32_t to;
    bool there;
};

template <class S>
static __device__ __forceinline__ query_route route_queries(const params &p, uint8_t *q,
                                                            const piece &x)
{
    constexpr int LANES = S::MATH / S::N; /* threads of a row */
    int t = thread(), row = t / LANES, chunk = t % LANES;
    query_route r;

    r.from = p.q + (x.out_row + row) * (S::LATENT + S::ROPE) + chunk * 8;
    r.to = smem_u32(q) + chunk / 8 * (S::N * 128) + row * 128 + ((chunk % 8 ^ row % 8) << 4);
    r.there = row < x.rows;
    return r;
}

/* The query rows on their way to shared memory, zero rows past the tile's end. */
template <class S> static __device__ __forceinline__ void ask_queries(const query_route &r)
{
    constexpr int CHUNKS = (S::LATENT + S::ROPE) / 8; /* of 16 bytes, in a row */
    constexpr int LANES = S::MATH / S::N;

#pragma unroll
    for (int i = 0; i * LANES < CHUNKS; i++)
        if ((i + 1) * LANES <= CHUNKS || thread() % LANES < CHUNKS - i * LANES)
            copy_16(r.to + i * (LANES / 8 * S::N * 128), r.from + i * (LANES * 8), r.there);
}

template <class S> static __device__ __forceinline__ void await_queries()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
    fence_async();
    sync_math<S>();
}

} // namespace mla_few
