/* The decode kernel for few query rows: 32 a tile, BF16 cache. */
#include "kernels/cuda/mla_few_kernel.cuh"

mla_few::variant mla_few::find_32_bf16(int latent_dim, int rope_dim)
{
    return find<32, MLA_KV_BF16>(latent_dim, rope_dim);
}

mla_few::variant mla_few::find_32_pairs(int latent_dim, int rope_dim)
{
    if (latent_dim == 512 && rope_dim == 64)
        return make_variant<shape<32, 512, 64, MLA_KV_BF16, PAIRS>>();
    return {};
}
