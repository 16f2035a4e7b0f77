/* Linear layers by gemm.h. */
#include "kernels/cuda/backend.cuh"

/* The router: exact weights, exact logits. */
static void exact(struct cuda_backend *cu, struct tensor x, const struct linear_part *part)
{
    struct gemm_router_args args = {};

    ASSERT(!part->bias.data && !part->residual.data);
    args.x = cuda_bf16(&x);
    args.weight = cuda_f32(&part->weight);
    args.out = cuda_f32(&part->out);
    args.x_stride = cuda_last_dim(&x);
    args.m = (int32_t)x.shape[0];
    args.n = (int32_t)part->weight.shape[0];
    args.k = (int32_t)cuda_last_dim(&x);
    cuda_check_launch(cu, gemm_router(&args, cu->stream), "gemm_router");
}

void cuda_linear(struct backend *be, struct tensor x, const struct linear_part *parts, int n_parts)
{
    struct cuda_backend *cu = cuda_backend(be);
    struct gemm_linear_args args = {};

    ASSERT(n_parts >= 1 && n_parts <= GEMM_MAX_PARTS);
    if (parts[0].weight.dtype == DTYPE_F32) {
        ASSERT(n_parts == 1);
        exact(cu, x, parts);
        return;
    }
    args.x = cuda_bf16(&x);
    args.x_stride = cuda_last_dim(&x);
    args.m = (int32_t)x.shape[0];
    args.k = (int32_t)cuda_last_dim(&x);
    args.n_parts = n_parts;
    args.batch_invariant = cu->batch_invariant;
    for (int i = 0; i < n_parts; i++) {
        const struct linear_part *part = &parts[i];
        struct gemm_part *to = &args.parts[i];
        to->weight = cuda_bf16(&part->weight);
        to->bias = part->bias.data ? cuda_f32(&part->bias) : NULL;
        to->residual = part->residual.data ? cuda_bf16(&part->residual) : NULL;
        to->out = part->out.data;
        to->n = (int32_t)part->weight.shape[0];
        to->out_stride = to->n;
        to->out_float = part->out.dtype == DTYPE_F32;
        ASSERT(part->out.shape[0] == args.m && cuda_last_dim(&part->out) == to->n);
        ASSERT(cuda_last_dim(&part->weight) == args.k);
    }
    cuda_check_launch(cu, gemm_linear(&args, cu->stream), "gemm_linear");
}

void cuda_gated(struct backend *be, struct tensor out, struct tensor x, struct tensor gate,
                struct tensor up)
{
    struct cuda_backend *cu = cuda_backend(be);
    struct gemm_swiglu_args args = {};

    args.x = cuda_bf16(&x);
    args.gate = cuda_bf16(&gate);
    args.up = cuda_bf16(&up);
    args.out = cuda_bf16(&out);
    args.x_stride = cuda_last_dim(&x);
    args.out_stride = cuda_last_dim(&out);
    args.m = (int32_t)x.shape[0];
    args.k = (int32_t)cuda_last_dim(&x);
    args.i = (int32_t)gate.shape[0];
    args.batch_invariant = cu->batch_invariant;
    ASSERT(out.shape[0] == args.m && cuda_last_dim(&out) == args.i);
    ASSERT(cuda_last_dim(&gate) == args.k && tensor_elements(&up) == tensor_elements(&gate));
    cuda_check_launch(cu, gemm_swiglu(&args, cu->stream), "gemm_swiglu");
}
