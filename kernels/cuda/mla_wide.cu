/* Launches of the 64-row decode kernel, see mla_wide.cuh. */
#include "kernels/cuda/mla_wide.cuh"

#include <algorithm>
#include <math.h>

using namespace mla_wide;

static_assert(sizeof(shared) <= 232448, "shared memory of a block");

int mla_wide_serves(const struct mla_decode_args *a)
{
    return a->cache.format == MLA_KV_BF16 && a->cache.latent_dim == LATENT &&
           a->cache.rope_dim == 64 && (uintptr_t)a->cache.pages % 128 == 0;
}

/* The workspace: partial results of two units a part, for the largest cluster, so many rows; their
 * maxima and sums; flags and counters, filled up to 16 bytes; memos. */
static size_t partial_rows(int sms)
{
    return (size_t)sms * 2 * ROWS;
}

static size_t flag_words(int sms)
{
    return (size_t)(sms + 3) / 4 * 4 * 3;
}

size_t mla_wide_workspace(int sms)
{
    size_t bytes = partial_rows(sms) * (LATENT * 2 + 2 * sizeof(float)) +
                   flag_words(sms) * sizeof(uint32_t) + sms * sizeof(memo);

    return (bytes + 255) / 256 * 256;
}

static int make_maps(params &p, const struct mla_decode_args *a)
{
    const uint64_t q_size[2] = {WIDTH, (uint64_t)a->seqs.query_rows * a->heads};
    const uint64_t q_stride[1] = {WIDTH * 2};
    const uint32_t q_box[2] = {64, ROWS};
    const uint64_t kv_size[3] = {WIDTH, PAGE, (uint64_t)a->cache.n_pages};
    const uint64_t kv_stride[2] = {WIDTH * 2, (uint64_t)a->cache.page_stride};
    const uint32_t kv_box[3] = {64, PAGE, 1};

    if (mla_tensor_map(&p.q, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, a->q, q_size, q_stride, q_box))
        return -1;
    return mla_tensor_map_lines(&p.kv, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, a->cache.pages, kv_size,
                                kv_stride, kv_box);
}

/* See inverse_product. */
static uint32_t inverse_of(int x)
{
    return x > 1 ? (uint32_t)(0x100000000ull / (unsigned)x + 1) : 0;
}

template <int CLUSTER, bool PAIRED> static int launch(const params &p, cudaStream_t stream)
{
    auto *run = kernel<CLUSTER, PAIRED>;
    static const size_t bytes = sizeof(shared);
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attributes[2] = {};

    if (cudaFuncSetAttribute(run, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes) !=
        cudaSuccess)
        return MLA_CUDA;
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = PAIRED ? 2 : CLUSTER;
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    config.gridDim = dim3((unsigned)(p.parts * CLUSTER));
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = bytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = CLUSTER > 1 || PAIRED ? 2 : 1;
    return cudaLaunchKernelEx(&config, run, p) == cudaSuccess ? MLA_OK : MLA_CUDA;
}

/* Whether to launch in pairs: where the plan gives two blocks to each sequence, if their lengths
 * are about the same. */
static bool in_pairs(const struct mla_decode_args *a, int tiles, int sms)
{
    return tiles == 1 && !a->batch_invariant && sms % 2 == 0 && a->seqs.n_seqs > 0 &&
           sms / a->seqs.n_seqs == 2;
}

int mla_wide_launch(const struct mla_decode_args *a, cudaStream_t stream)
{
    const struct mla_device *device = mla_device();
    int tiles = (a->seqs.max_q_len * a->heads + ROWS - 1) / ROWS;
    int cluster = tiles > 1 ? 2 : 1;
    params p = {};

    if (make_maps(p, a))
        return MLA_CUDA;
    p.pages = (const char *)a->cache.pages;
    p.page_stride = a->cache.page_stride;
    p.seqs = a->seqs;
    p.out = (__nv_bfloat16 *)a->out;
    p.lse = a->lse;
    p.heads = a->heads;
    p.causal = a->causal;
    p.scale_log2 = a->softmax_scale * (float)M_LOG2E;
    p.heads_inverse = (0x100000000ull + a->heads - 1) / a->heads;
    p.parts = device->sms / cluster;
    p.lanes = std::min((tiles + cluster - 1) / cluster, 4);
    p.lane_parts = p.parts / p.lanes;
    p.lanes_inverse = inverse_of(p.lanes);
    p.lane_parts_inverse = inverse_of(p.lane_parts);
    p.invariant = a->batch_invariant;
    p.settled = a->settled;
    p.of = {a->seqs.block_tables,
            a->seqs.n_seqs,
            a->seqs.max_q_len,
            a->heads,
            a->seqs.table_stride,
            1 | !a->seqs.q_starts << 1 | !a->seqs.table_starts << 2 | !a->batch_invariant << 3,
            0};
    p.partial_o = (uint4 *)a->workspace;
    p.partial_ml = (float *)(p.partial_o + partial_rows(device->sms) * LATENT / 8);
    p.flags = (uint32_t *)(p.partial_ml + partial_rows(device->sms) * 2);
    p.left = p.flags + 2 * device->sms;
    p.memos = (memo *)(p.flags + flag_words(device->sms));
    if (cluster == 2)
        return launch<2, false>(p, stream);
    return in_pairs(a, tiles, device->sms) ? launch<1, true>(p, stream)
                                           : launch<1, false>(p, stream);
}
