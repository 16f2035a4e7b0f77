/* mla_decode: checks the arguments and picks the kernel.
 *
 *   mla_few.cu       Hopper, tiles of 16 or 32 query rows: memory-bound, K as the left operand
 *   mla_wide.cu      Hopper, tiles of 64 query rows: two warpgroups share the output's columns
 *   mla_baseline.cu  everything else
 *
 * Which is faster where both can serve is measured (tests/bench/RESULTS.md). The workspace holds
 * wide's part, then few's: wide's flags and all of few's are zero between calls. Wide's is there,
 * and as large, whatever is called, since calls of all shapes may share a workspace. */
#include "kernels/cuda/mla_internal.h"

#include <stdint.h>

static int valid_cache(const struct mla_cache *c)
{
    return c->pages && (uintptr_t)c->pages % 16 == 0 && c->page_stride > 0 &&
           c->page_stride % 16 == 0 && c->n_pages > 0 && c->latent_dim > 0 && c->rope_dim >= 0 &&
           (c->format == MLA_KV_BF16 || (c->format == MLA_KV_FP8 && c->latent_dim % 128 == 0));
}

static int valid_seqs(const struct mla_seqs *s)
{
    return s->n_seqs > 0 && s->query_rows >= 0 && s->max_q_len > 0 && s->kv_lens &&
           s->block_tables && (s->q_starts || !s->q_lens) &&
           (s->table_starts || s->table_stride > 0);
}

static int valid(const struct mla_decode_args *a)
{
    return a && valid_cache(&a->cache) && a->q && a->out && (uintptr_t)a->q % 16 == 0 &&
           (uintptr_t)a->out % 16 == 0 && a->heads >= 1 && a->heads <= MLA_MAX_HEADS &&
           a->softmax_scale > 0;
}

/* Query rows up to which the kernel for few of them is the quicker one where both serve. */
enum { FEW_ROWS = 32 };

static int prefers_few(const struct mla_decode_args *a)
{
    if (!mla_few_serves(a))
        return 0;
    /* By what is the same for every batch; few's workspace grows with the heads then. */
    if (a->batch_invariant)
        return a->heads <= FEW_ROWS && !mla_wide_serves(a);
    return a->heads * a->seqs.max_q_len <= FEW_ROWS || !mla_wide_serves(a) ||
           mla_few_suits_short(a);
}

int mla_decode(const struct mla_decode_args *args, mla_stream stream)
{
    const struct mla_device *device = mla_device();
    struct mla_decode_args a;
    size_t wide_bytes;

    if (!device)
        return MLA_CUDA;
    if (args && (args->seqs.n_seqs == 0 || args->seqs.query_rows == 0))
        return MLA_OK;
    if (!valid(args) || !valid_seqs(&args->seqs))
        return MLA_INVALID;
    int few = device->hopper && prefers_few(args);
    if (!few && (!device->hopper || !mla_wide_serves(args)))
        return mla_baseline_launch(args, stream);
    wide_bytes = mla_wide_workspace(device->sms);
    if (!args->workspace || args->workspace_bytes < wide_bytes)
        return MLA_INVALID;
    if (!few)
        return mla_wide_launch(args, stream);
    a = *args;
    a.workspace = (char *)args->workspace + wide_bytes;
    a.workspace_bytes = args->workspace_bytes - wide_bytes;
    return mla_few_launch(&a, stream);
}

size_t mla_decode_workspace(int32_t n_seqs, int32_t query_rows, int32_t heads, int32_t latent_dim)
{
    const struct mla_device *device = mla_device();

    if (!device)
        return 0;
    return mla_wide_workspace(device->sms) +
           mla_few_workspace(device->sms, n_seqs, query_rows, heads, latent_dim, heads <= FEW_ROWS);
}

const char *mla_status_text(int status)
{
    switch (status) {
    case MLA_OK:
        return "done";
    case MLA_INVALID:
        return "an argument is out of its range (kernels/mla.h says which values it can have)";
    case MLA_UNSUPPORTED:
        return "there is no kernel for these dimensions on this GPU";
    case MLA_CUDA:
        return "the CUDA runtime refused: cudaGetLastError says why";
    default:
        return "not a status of libmla";
    }
}

/* ---- the device ------------------------------------------------------------------------------ */

enum { MAX_DEVICES = 64 };

const struct mla_device *mla_device(void)
{
    static struct mla_device
        known[MAX_DEVICES]; /* sms 0: not looked up; the writes are idempotent */
    int id, sms, major;

    if (cudaGetDevice(&id) != cudaSuccess || id >= MAX_DEVICES)
        return NULL;
    if (known[id].sms == 0) {
        if (cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, id) != cudaSuccess ||
            cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, id) != cudaSuccess)
            return NULL;
        known[id].hopper = major == 9;
        known[id].sms = sms;
    }
    return &known[id];
}

/* The driver's encoder, found at run time: nothing here links to libcuda. */
typedef CUresult (*encode_fn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                              const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                              const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                              CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

static encode_fn find_encoder(void)
{
    static encode_fn found;
    void *address = NULL;
    cudaDriverEntryPointQueryResult result;

    if (!found && cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &address, 12000,
                                                   cudaEnableDefault, &result) == cudaSuccess)
        found = (encode_fn)address;
    return found;
}

static int make_map(CUtensorMap *map, CUtensorMapDataType type, int rank, const void *address,
                    const uint64_t *sizes, const uint64_t *strides, const uint32_t *box,
                    CUtensorMapL2promotion promotion)
{
    encode_fn encode = find_encoder();
    cuuint32_t steps[5] = {1, 1, 1, 1, 1};
    cuuint64_t size[5], stride[5];

    if (!encode || rank > 5)
        return -1;
    for (int i = 0; i < rank; i++) {
        size[i] = sizes[i];
        stride[i] = i + 1 < rank ? strides[i] : 0;
    }
    return encode(map, type, (cuuint32_t)rank, (void *)address, size, stride, box, steps,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, promotion,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS
               ? 0
               : -1;
}

int mla_tensor_map(CUtensorMap *map, CUtensorMapDataType type, int rank, const void *address,
                   const uint64_t *sizes, const uint64_t *strides, const uint32_t *box)
{
    return make_map(map, type, rank, address, sizes, strides, box,
                    CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
}

int mla_tensor_map_lines(CUtensorMap *map, CUtensorMapDataType type, int rank, const void *address,
                         const uint64_t *sizes, const uint64_t *strides, const uint32_t *box)
{
    return make_map(map, type, rank, address, sizes, strides, box,
                    CU_TENSOR_MAP_L2_PROMOTION_L2_128B);
}
