/* The decode kernel for few query rows: 16 a tile, bf16 cache. */
#include "kernels/cuda/mla_few_kernel.cuh"

mla_few::variant mla_few::find_16_bf16(int latent_dim, int rope_dim)
{
    return find<16, MLA_KV_BF16>(latent_dim, rope_dim);
}

mla_few::variant mla_few::find_lean(int latent_dim, int rope_dim)
{
    if (latent_dim == 512 && rope_dim == 64)
        return make_variant<shape<16, 512, 64, MLA_KV_BF16, ONE_PAGE>>();
    return {};
}

mla_few::variant mla_few::find_16_pairs(int latent_dim, int rope_dim)
{
    if (latent_dim == 512 && rope_dim == 64)
        return make_variant<shape<16, 512, 64, MLA_KV_BF16, PAIRS>>();
    return {};
}
