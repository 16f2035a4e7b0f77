/* Experts with FP8 weights for a few rows: moe_few.cuh. */
#include "kernels/cuda/moe_few_formats.cuh"
#include "kernels/cuda/moe_fp8_internal.h"

#include <string.h>

int moe_fp8_few(const struct moe_fp8_args *args, cudaStream_t stream)
{
    const struct moe_args *a = &args->moe;
    int64_t expert = (int64_t)a->i * a->d, blocks = expert / (FP8_BLOCK * FP8_BLOCK);
    int32_t d = a->d / FP8_BLOCK, i = a->i / FP8_BLOCK, wide = a->shared * i;
    few_params<few_fp8, few_fp8> p;
    int bad;

    memset(&p, 0, sizeof(p));
    bad = few_map(&p.matrices[0][FEW_GATE], a->gate, a->d, a->d, expert, a->i, a->experts, 8) |
          few_map(&p.matrices[0][FEW_UP], a->up, a->d, a->d, expert, a->i, a->experts, 8) |
          few_map(&p.matrices[0][FEW_DOWN], a->down, a->i, a->i, expert, a->d, a->experts, 16);
    p.routed[FEW_GATE] = {args->gate_up.scales, blocks, d, d};
    p.routed[FEW_UP] = {args->gate_up.up_scales, blocks, d, d};
    p.routed[FEW_DOWN] = {args->down.scales, blocks, i, i};
    if (a->shared) {
        CUtensorMap *to = p.matrices[1];
        bad |= few_map(&to[FEW_GATE], a->shared_gate, a->d, a->d, expert, a->i, a->shared, 8) |
               few_map(&to[FEW_UP], a->shared_up, a->d, a->d, expert, a->i, a->shared, 8) |
               few_map(&to[FEW_DOWN], a->shared_down, a->i, (int64_t)a->shared * a->i, a->i, a->d,
                       a->shared, 16);
        p.shared_scales[FEW_GATE] = {args->shared_gate_up.scales, blocks, d, d};
        p.shared_scales[FEW_UP] = {args->shared_gate_up.up_scales, blocks, d, d};
        p.shared_scales[FEW_DOWN] = {args->shared_down.scales, i, wide, i};
    }
    if (bad)
        return GEMM_INVALID;
    return few_launch(p, a, args->gate, stream) == cudaSuccess ? GEMM_OK : GEMM_CUDA;
}
