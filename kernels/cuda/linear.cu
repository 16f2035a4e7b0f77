/* Linear layers by gemm.h and, where weights are FP8, gemm_fp8.h. */
#include "kernels/cuda/backend.cuh"
#include "kernels/cuda/gemm_fp8.h"

#include <algorithm>

/* The router: exact weights, exact logits. */
void cuda_router(struct cuda_backend *cu, struct tensor x, const struct linear_part *part)
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

/* Rows that are quantised at once have place for their values. */
int cuda_linear_reserve(struct cuda_backend *cu, struct error *err)
{
    const struct backend_shapes *s = &cu->shapes;
    int32_t widest = std::max(s->hidden_size, s->mla.heads * s->mla.v_dim);

    if (!cu->has_fp8)
        return 0;
    cu->fp8_work_bytes = gemm_fp8_workspace(cu->limits.max_rows, widest);
    cu->fp8_work = cuda_take(cu, cu->fp8_work_bytes, false, "FP8 activations", err);
    return cu->fp8_work ? 0 : -1;
}

static const void *weight_data(const struct tensor *t, bool fp8)
{
    ASSERT(t->dtype == (fp8 ? DTYPE_F8_E4M3 : DTYPE_BF16));
    return t->data;
}

void cuda_linear(struct backend *be, struct tensor x, const struct linear_part *parts, int n_parts)
{
    struct cuda_backend *cu = cuda_backend(be);
    struct cuda_pending *wait = &cu->pending;
    struct gemm_fp8_linear_args all = {};
    struct gemm_linear_args &args = all.linear;
    bool fp8 = parts[0].weight.dtype == DTYPE_F8_E4M3;

    ASSERT(n_parts >= 1 && n_parts <= GEMM_MAX_PARTS);
    for (int i = 1; i < n_parts; i++)
        if (parts[i].weight.dtype != parts[0].weight.dtype) { /* FP8 and not: one by one */
            cuda_linear(be, x, parts, i);
            cuda_linear(be, x, parts + i, n_parts - i);
            return;
        }
    bool normalised =
        wait->norm && !wait->router && wait->h.data == x.data && wait->h.shape[0] == x.shape[0];
    if (parts[0].weight.dtype == DTYPE_F32) {
        ASSERT(n_parts == 1);
        if (normalised) {
            wait->router = 1;
            wait->product = parts[0];
            return;
        }
        cuda_settle(cu);
        cuda_router(cu, x, parts);
        return;
    }
    if (normalised) {
        wait->norm = 0;
        args.norm = cuda_f32(&wait->weight);
        args.normalised = cuda_bf16(&x);
        args.eps = wait->eps;
        x = wait->x;
    } else {
        cuda_settle(cu);
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
        to->weight = weight_data(&part->weight, fp8);
        all.scales[i].scales = part->weight.scales;
        to->bias = part->bias.data ? cuda_f32(&part->bias) : NULL;
        to->residual = part->residual.data ? cuda_bf16(&part->residual) : NULL;
        to->out = part->out.data;
        to->n = (int32_t)part->weight.shape[0];
        to->out_stride = to->n;
        to->out_float = part->out.dtype == DTYPE_F32;
        ASSERT(part->out.shape[0] == args.m && cuda_last_dim(&part->out) == to->n);
        ASSERT(cuda_last_dim(&part->weight) == args.k);
    }
    if (!fp8) {
        cuda_check_launch(cu, gemm_linear(&args, cu->stream), "gemm_linear");
        return;
    }
    all.ue8m0 = cu->shapes.ue8m0;
    all.workspace = cu->fp8_work;
    all.workspace_bytes = cu->fp8_work_bytes;
    all.quantised = cuda_is_quantised(cu, &x);
    if (!all.quantised)
        cu->quantised = {};
    cuda_check_launch(cu, gemm_fp8_linear(&all, cu->stream), "gemm_fp8_linear");
}

void cuda_gated(struct backend *be, struct tensor out, struct tensor x, struct tensor gate,
                struct tensor up)
{
    struct cuda_backend *cu = cuda_backend(be);
    struct gemm_fp8_swiglu_args all = {};
    struct gemm_swiglu_args &args = all.swiglu;
    bool fp8 = gate.dtype == DTYPE_F8_E4M3;

    cuda_settle(cu);
    args.x = cuda_bf16(&x);
    args.gate = weight_data(&gate, fp8);
    args.up = weight_data(&up, fp8);
    args.out = cuda_bf16(&out);
    args.x_stride = cuda_last_dim(&x);
    args.out_stride = cuda_last_dim(&out);
    args.m = (int32_t)x.shape[0];
    args.k = (int32_t)cuda_last_dim(&x);
    args.i = (int32_t)gate.shape[0];
    args.batch_invariant = cu->batch_invariant;
    ASSERT(out.shape[0] == args.m && cuda_last_dim(&out) == args.i);
    ASSERT(cuda_last_dim(&gate) == args.k && tensor_elements(&up) == tensor_elements(&gate));
    if (!fp8) {
        cuda_check_launch(cu, gemm_swiglu(&args, cu->stream), "gemm_swiglu");
        return;
    }
    all.scales = {gate.scales, up.scales};
    all.ue8m0 = cu->shapes.ue8m0;
    all.workspace = cu->fp8_work;
    all.workspace_bytes = cu->fp8_work_bytes;
    all.quantised = cuda_is_quantised(cu, &x);
    if (!all.quantised)
        cu->quantised = {};
    cuda_check_launch(cu, gemm_fp8_swiglu(&all, cu->stream), "gemm_fp8_swiglu");
}
