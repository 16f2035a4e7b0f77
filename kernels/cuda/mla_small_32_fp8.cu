/* The decode kernel for few query rows: row tiles of 32, FP8 cache. */
#include "kernels/cuda/mla_small_merge.cuh"

mla_small::variant mla_small::find_32_fp8(int latent_dim, int rope_dim)
{
    return find<32, MLA_KV_FP8>(latent_dim, rope_dim);
}
