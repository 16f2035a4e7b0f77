/* Launches the decode kernel for few query rows: picks the cluster, lays out the
 * workspace, describes the cache to the copy engine. */
#include "kernels/cuda/mla_few.h"

#include <math.h>

namespace mla_few
{

enum { MAX_DEVICES = 64 };

/* Blocks that may share a sequence, as merging's room has it (16: units of latent 512). */
static const int CLUSTERS[] = {1, 2, 3, 4, 6, 8, 16};

enum { SIZES = sizeof(CLUSTERS) / sizeof(CLUSTERS[0]) };

/* Kernels, for workers_of(): those of find_variant() come first. */
enum { LEAN_ID = 16, PAIRS_16_ID, PAIRS_32_ID, KERNELS };

/* Much more than that leaves nothing of one call in L2 for the next whatever the policy. */
enum { STREAM_BYTES = 1 << 30 };

/* Pages of a sequence, as far as its table tells. */
enum {
    TELLING_PAGES = 4096, /* a longer table has room for whatever comes */
    SHORT_PAGES = 48,  /* up to it, clusters of 16 are the quickest for one sequence of two tiles */
    MIDDLE_PAGES = 64, /* and for one of one tile */
    LONG_PAGES = 192,  /* from it again for one tile */
    TWICE_PAGES = 96,  /* up to it, reading the cache twice is quicker than a tile of 32 rows */
    LEAN_EIGHT = 9,    /* up to it, clusters of 8 are quicker in the lean form; a table of as many
                          has room for what comes after 8 */
    LEAN_WIDE = 20,    /* up to it, that form is quicker than tiles of 64 rows, too */
};

/* Shared memory that every other call of the lean form asks for: more than half of what there is,
 * so that two of its own blocks don't share a multiprocessor (clusters come to stand on as few as
 * they can), but a block of the next call, which asks for less, fits beside. */
enum { LEAN_MORE = 117760 };

static void configure(cudaLaunchConfig_t *c, cudaLaunchAttribute attrs[2], const variant &v,
                      int cluster, int blocks, cudaStream_t stream)
{
    attrs[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attrs[0].val.programmaticStreamSerializationAllowed = 1;
    attrs[1].id = cudaLaunchAttributeClusterDimension;
    attrs[1].val.clusterDim.x = (unsigned)cluster;
    attrs[1].val.clusterDim.y = attrs[1].val.clusterDim.z = 1;
    c->gridDim = dim3((unsigned)blocks);
    c->blockDim = dim3((unsigned)v.threads);
    c->dynamicSmemBytes = v.shared_bytes;
    c->stream = stream;
    c->attrs = attrs;
    c->numAttrs = cluster > 1 ? 2 : 1;
}

/* Clusters of CLUSTERS[size] blocks that run at once; looked up once for each device, kernel and
 * size. 0 when the device refuses. */
static int workers_of(const variant &v, int size, int kernel_id)
{
    static int known[MAX_DEVICES][KERNELS][SIZES]; /* plus 1 */
    int id, n = 0, cluster = CLUSTERS[size];
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attrs[2] = {};

    if (cudaGetDevice(&id) != cudaSuccess || id >= MAX_DEVICES)
        return 0;
    if (known[id][kernel_id][size])
        return known[id][kernel_id][size] - 1;
    if (cudaFuncSetAttribute(v.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             (int)v.shared_bytes) != cudaSuccess ||
        cudaFuncSetAttribute(v.kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared) != cudaSuccess ||
        cudaFuncSetAttribute(v.kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) !=
            cudaSuccess)
        return 0;
    configure(&config, attrs, v, cluster, cluster, 0);
    config.attrs++, config.numAttrs--;
    if (cluster == 1) {
        const struct mla_device *device = mla_device();
        n = device ? device->sms : 0;
    } else if (cudaOccupancyMaxActiveClusters(&n, v.kernel, &config) != cudaSuccess) {
        cudaGetLastError();
        n = 0;
    }
    known[id][kernel_id][size] = n + 1;
    return n;
}

/* Merging's room for a round is for two units more than there are; every block owns one. */
static int fits(int cluster, int latent_dim)
{
    int units = latent_dim / 32;

    return cluster <= units && cluster * ((units + cluster - 1) / cluster) <= units + 2;
}

/* About how many pages a sequence has; 0 when its table doesn't tell. Only speed follows from it.
 */
static int pages_expected(const struct mla_decode_args *a)
{
    int64_t pages =
        a->seqs.table_starts ? a->seqs.table_stride / a->seqs.n_seqs : a->seqs.table_stride;

    return pages <= TELLING_PAGES ? (int)pages : 0;
}

/* Blocks at work when each item has an equal number of clusters. */
static int busy_blocks(const variant &v, int size, int kernel_id, int n_items)
{
    return workers_of(v, size, kernel_id) / n_items * n_items * CLUSTERS[size];
}

/* Blocks that share an item: the more the better as long as there is a cluster for each item, since
 * what is merged within a cluster need not go through memory. With FP8 many items are bound by
 * products, so that idle blocks cost more. Tiles of 16 rows are merged so soon that more blocks at
 * work are worth parts that go through memory (in bf16 if some clusters are left to the next call).
 * In batch-invariant mode always the same. An index of CLUSTERS. */
static int cluster_size(const struct mla_decode_args *a, const variant &v, int id, int n,
                        int n_items)
{
    int most = SIZES - 1, pages = pages_expected(a);

    if (!a->batch_invariant && a->seqs.n_seqs == 1 &&
        (n_items == 1 ? pages > MIDDLE_PAGES && pages <= LONG_PAGES : pages > SHORT_PAGES))
        most--;
    if (!a->batch_invariant && a->seqs.n_seqs > 1 && n_items > 1 && n == 16) {
        int busy = busy_blocks(v, most - 1, id, n_items), all = 8 * workers_of(v, most - 1, id);
        if (busy > busy_blocks(v, most, id, n_items) &&
            (busy < all || a->cache.format == MLA_KV_FP8))
            most--;
    }
    if (!a->batch_invariant && a->cache.format == MLA_KV_FP8 && n_items > 15)
        most = 1;
    for (int i = most; i > 0; i--)
        if (fits(CLUSTERS[i], a->cache.latent_dim) &&
            (a->batch_invariant ? CLUSTERS[i] <= 8 : workers_of(v, i, id) >= n_items))
            return i;
    return 0;
}

/* The workspace, all zero between calls, whatever their shapes (what is merged is cleared, counters
 * are counted back): counters; then stats and partial results of as many slots as a call may use.
 */
struct layout {
    size_t stats, partials, bytes;
};

/* Tiles of n rows that a call can have, however its rows are shared by the sequences. */
static int64_t most_items(int n_seqs, int64_t rows, int n)
{
    return rows / n + n_seqs;
}

static layout lay_out(int sms, int n_seqs, int64_t rows, int n, int latent_dim, int invariant)
{
    size_t max_items = (size_t)most_items(n_seqs, rows, n);
    size_t slots = invariant ? max_items * MAX_PIECES : 2 * (size_t)sms + 2;
    layout w;

    w.stats = MAX_ITEMS * MAX_CLUSTER * sizeof(uint32_t);
    w.partials = w.stats + (slots * MAX_CLUSTER * n * sizeof(float2) + 255) / 256 * 256;
    w.bytes = w.partials + slots * n * latent_dim * sizeof(float);
    return w;
}

/* Without promotion to 256 bytes: neighbours would become evict-first before they are asked for. */
static int map_cache(params *p, const struct mla_cache *c)
{
    uint64_t width = (uint64_t)(c->latent_dim + c->rope_dim);
    uint64_t sizes[3] = {width, MLA_PAGE_TOKENS, (uint64_t)c->n_pages};
    uint64_t strides[2] = {2 * width, (uint64_t)c->page_stride};
    uint32_t box[3] = {64, UNIT, 1};
    uint64_t page_sizes[4] = {64, MLA_PAGE_TOKENS, width / 64, (uint64_t)c->n_pages};
    uint64_t page_strides[3] = {2 * width, 128, (uint64_t)c->page_stride};
    uint32_t page_box[4] = {64, MLA_PAGE_TOKENS, (uint32_t)width / 64, 1};

    p->ragged = width % 64 != 0;
    if (!p->ragged && mla_tensor_map_lines(&p->page, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, c->pages,
                                           page_sizes, page_strides, page_box) < 0)
        return -1;
    return mla_tensor_map_lines(&p->half, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, c->pages, sizes,
                                strides, box);
}

/* Rows of a tile. Two of 16 read the cache twice, but it is the sooner done when most blocks have
 * nothing to do else and, in bf16, the sequences are known to be short. Tiles of 16 and 32 differ
 * in the order of a few sums, so in batch-invariant mode the batch has no say. */
static int tile_rows(const struct mla_decode_args *a)
{
    int rows = a->batch_invariant ? a->heads : a->heads * a->seqs.max_q_len;
    int pages = pages_expected(a), few_seqs = pages > 0 && pages <= TWICE_PAGES ? 2 : 0;

    if (a->cache.format == MLA_KV_FP8)
        few_seqs = 8;
    return rows <= 16 || (!a->batch_invariant && rows <= 32 && a->seqs.n_seqs <= few_seqs) ? 16
                                                                                           : 32;
}

static variant find_variant(const struct mla_decode_args *a, int n, int *id)
{
    bool fp8 = a->cache.format == MLA_KV_FP8;
    int latent = a->cache.latent_dim, rope = a->cache.rope_dim;

    *id = fp8 + 2 * (latent == 256) + 4 * (rope == 32) + 8 * (n == 32);
    if (fp8)
        return (n == 16 ? find_16_fp8 : find_32_fp8)(latent, rope);
    return (n == 16 ? find_16_bf16 : find_32_bf16)(latent, rope);
}

/* The lean form as it must be launched for all of its blocks to have a multiprocessor each. */
static variant find_lean_variant(const struct mla_decode_args *a, int *id)
{
    variant v = {};

    *id = LEAN_ID;
    if (a->cache.format == MLA_KV_BF16)
        v = find_lean(a->cache.latent_dim, a->cache.rope_dim);
    v.shared_bytes = LEAN_MORE;
    return v;
}

/* Blocks that share an item in the lean form, an index of CLUSTERS: one cluster or more for each of
 * `n_items` tiles of 16 rows, and at most a page for each block, since two, one after the other,
 * would take longer than in the other form. Short sequences need fewer blocks, which have less to
 * tell each other. -1 when the form does not suit, as where the next kernel comes late: it is for
 * having that one's blocks beside its own. */
static int lean_size(const struct mla_decode_args *a, int n_items)
{
    int id, pages = pages_expected(a);
    variant v = find_lean_variant(a, &id);

    if (a->batch_invariant || a->next_late || !v.kernel || pages == 0)
        return -1;
    int size = pages <= LEAN_EIGHT ? SIZES - 2 : SIZES - 1, workers = workers_of(v, size, id);
    return n_items <= workers && n_items * (int64_t)pages <= workers * CLUSTERS[size] ? size : -1;
}

static int items_of(const struct mla_decode_args *a, int n)
{
    return a->seqs.n_seqs * ((a->seqs.max_q_len * a->heads + n - 1) / n);
}

/* The form of `v` that takes two pages at one go, if that is what a block has, by the table's size.
 * (As a kernel of its own: its code beside the other's made that 2 % slower.) */
static variant with_pairs(const struct mla_decode_args *a, const variant &v, int n, int size,
                          int n_items, int workers)
{
    int pages = pages_expected(a), blocks = workers / n_items * CLUSTERS[size];
    int latent = a->cache.latent_dim, rope = a->cache.rope_dim;

    if (a->batch_invariant || a->cache.format != MLA_KV_BF16 || pages <= blocks ||
        pages > 2 * blocks)
        return v;
    variant pairs = (n == 16 ? find_16_pairs : find_32_pairs)(latent, rope);
    int id = n == 16 ? PAIRS_16_ID : PAIRS_32_ID;
    return pairs.kernel && workers_of(pairs, size, id) >= workers ? pairs : v;
}

/* The workspace and what of the arguments the kernel sees; 0, or MLA_INVALID when there is too
 * little room. */
static int set_params(params *p, const struct mla_decode_args *a, int n, int sms)
{
    layout w = lay_out(sms, a->seqs.n_seqs, (int64_t)a->seqs.query_rows * a->heads, n,
                       a->cache.latent_dim, a->batch_invariant);

    if (!a->workspace || a->workspace_bytes < w.bytes)
        return MLA_INVALID;
    p->seqs = a->seqs;
    p->pages = (const uint8_t *)a->cache.pages;
    p->page_stride = a->cache.page_stride;
    p->q = (const __nv_bfloat16 *)a->q;
    p->out = (__nv_bfloat16 *)a->out;
    p->lse = a->lse;
    p->heads = a->heads;
    p->scale_log2 = a->softmax_scale * (float)M_LOG2E;
    p->causal = a->causal;
    p->invariant = a->batch_invariant;
    p->settled = a->settled;
    p->next_late = a->next_late;
    p->stream_pages = (int32_t)(STREAM_BYTES / a->cache.page_stride);
    p->page_cost = a->cache.format == MLA_KV_FP8 ? 4 : 3;
    p->counters = (uint32_t *)a->workspace;
    p->stats = (float2 *)((uint8_t *)a->workspace + w.stats);
    p->partials = (float4 *)((uint8_t *)a->workspace + w.partials);
    return 0;
}

int launch(const struct mla_decode_args *a, int cluster, enum form form, cudaStream_t stream)
{
    static unsigned lean_calls;
    const struct mla_device *device = mla_device();
    int small = form == AS_SUITS ? lean_size(a, items_of(a, 16)) : -1;
    bool lean = form == LEAN || small >= 0;
    int n = lean ? 16 : tile_rows(a), n_items = items_of(a, n), id, size = 0;
    variant v = lean ? find_lean_variant(a, &id) : find_variant(a, n, &id);
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attrs[2] = {};
    params p = {};

    if (!device || !v.kernel ||
        (a->batch_invariant &&
         most_items(a->seqs.n_seqs, (int64_t)a->seqs.query_rows * a->heads, n) > MAX_ITEMS))
        return MLA_UNSUPPORTED;
    while (cluster > 0 && size < SIZES && CLUSTERS[size] != cluster)
        size++;
    if (size == SIZES || (cluster > 0 && !fits(cluster, a->cache.latent_dim)))
        return MLA_INVALID;
    if (cluster == 0)
        size = small >= 0 ? small : cluster_size(a, v, id, n, n_items), cluster = CLUSTERS[size];
    p.workers = workers_of(v, size, id);
    /* The next call's clusters start where this one's leave room. */
    if (lean && __atomic_fetch_add(&lean_calls, 1, __ATOMIC_RELAXED) % 2)
        v.shared_bytes = find_lean(a->cache.latent_dim, a->cache.rope_dim).shared_bytes;
    else if (!lean && a->settled && cluster == MAX_CLUSTER && n_items < p.workers)
        p.workers--;
    if (!lean)
        v = with_pairs(a, v, n, size, n_items, p.workers);
    if (p.workers <= 0 || (a->cache.format == MLA_KV_BF16 && map_cache(&p, &a->cache) < 0))
        return MLA_CUDA;
    int status = set_params(&p, a, n, device->sms);
    if (status < 0)
        return status;
    p.per_block = ((1u << 31) + (uint32_t)cluster - 1) / (uint32_t)cluster;
    configure(&config, attrs, v, cluster, p.workers * cluster, stream);
    return cudaLaunchKernelEx(&config, v.kernel, (const params)p) == cudaSuccess ? MLA_OK
                                                                                 : MLA_CUDA;
}

} // namespace mla_few

using namespace mla_few;

int mla_few_serves(const struct mla_decode_args *a)
{
    int id;

    return find_variant(a, 16, &id).kernel != NULL;
}

size_t mla_few_workspace(int sms, int32_t n_seqs, int32_t query_rows, int32_t heads,
                         int32_t latent_dim, int invariant)
{
    int64_t rows = (int64_t)query_rows * heads;
    size_t most = 0;

    for (int mode = 0; mode <= invariant; mode++)
        for (int n = 16; n <= 32; n *= 2) {
            size_t bytes = lay_out(sms, n_seqs, rows, n, latent_dim, mode).bytes;
            most = bytes > most ? bytes : most;
        }
    return most;
}

int mla_few_suits_short(const struct mla_decode_args *a)
{
    int pages = pages_expected(a);

    return pages > 0 && pages <= LEAN_WIDE && lean_size(a, items_of(a, 16)) >= 0;
}

int mla_few_launch(const struct mla_decode_args *args, cudaStream_t stream)
{
    return launch(args, 0, AS_SUITS, stream);
}
