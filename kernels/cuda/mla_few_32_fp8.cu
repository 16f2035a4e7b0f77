/* The decode kernel for few query rows: 32 a tile, FP8 cache. */
#include "kernels/cuda/mla_few_kernel.cuh"

mla_few::variant mla_few::find_32_fp8(int latent_dim, int rope_dim)
{
    return find<32, MLA_KV_FP8>(latent_dim, rope_dim);
}
