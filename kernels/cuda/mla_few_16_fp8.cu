/* The decode kernel for few query rows: 16 a tile, FP8 cache. */
#include "kernels/cuda/mla_few_kernel.cuh"

mla_few::variant mla_few::find_16_fp8(int latent_dim, int rope_dim)
{
    return find<16, MLA_KV_FP8>(latent_dim, rope_dim);
}
