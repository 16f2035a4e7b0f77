/* What the files of libmla share: the kernels that mla_decode chooses among, each callable by
 * itself for tests, and the device's facts. */
#pragma once

#include "kernels/mla.h"

#include <cuda.h>
#include <cuda_runtime.h>

struct mla_device {
    int sms;
    int hopper; /* compute capability 9.0: wgmma and TMA as these kernels use them */
};

/* The current device; NULL when it can't be read. Looked up once a device. */
const struct mla_device *mla_device(void);

/* A tensor map of bf16 or bytes in device memory for boxes with 128-byte swizzle: `rank`
 * dimensions, innermost first; strides in bytes of dimensions 1.. . 0, or -1 when the driver
 * refuses. */
int mla_tensor_map(CUtensorMap *map, CUtensorMapDataType type, int rank, const void *address,
                   const uint64_t *sizes, const uint64_t *strides, const uint32_t *box);

/* The same without promotion to 256 bytes in L2, for pages that are evicted first: a line that came
 * with its neighbour would be gone before its own turn. */
int mla_tensor_map_lines(CUtensorMap *map, CUtensorMapDataType type, int rank, const void *address,
                         const uint64_t *sizes, const uint64_t *strides, const uint32_t *box);

/* Kernels of mla_decode. Arguments were checked by it. Each returns enum mla_status. */

/* Any sizes, any GPU from compute capability 8.0; plain code, no tensor cores. */
int mla_baseline_launch(const struct mla_decode_args *args, cudaStream_t stream);

/* Hopper, bf16, 512 + 64, tiles of 64 query rows. */
int mla_wide_launch(const struct mla_decode_args *args, cudaStream_t stream);
int mla_wide_serves(const struct mla_decode_args *args);
size_t mla_wide_workspace(int sms);

/* Hopper, few query rows: row tiles of 16 or 32, bf16 and FP8 caches, 512 + 64, 256 + 64, 256 + 32.
 * All of its workspace is zero between calls: no other kernel may write there. */
int mla_few_launch(const struct mla_decode_args *args, cudaStream_t stream);
int mla_few_serves(const struct mla_decode_args *args);
/* Whether it is the quicker one even for many rows: a few short sequences. */
int mla_few_suits_short(const struct mla_decode_args *args);
size_t mla_few_workspace(int sms, int32_t n_seqs, int32_t query_rows, int32_t heads,
                         int32_t latent_dim, int invariant);
