/* The experts of a mixture-of-experts layer, by moe.h or, where weights are FP8 or
 * INT4, by moe_fp8.h or moe_int4.h. Their working memory begins with MOE_FEW_ROOM. */
#include "kernels/cuda/backend.cuh"
#include "kernels/cuda/moe_few.h"
#include "kernels/cuda/moe_fp8.h"
#include "kernels/cuda/moe_int4.h"

#include <algorithm>

static int32_t shared_experts(const struct backend_shapes *shapes)
{
    return shapes->moe_intermediate ? shapes->shared_intermediate / shapes->moe_intermediate : 0;
}

int cuda_moe_reserve(struct cuda_backend *cu, struct error *err)
{
    const struct backend_shapes *s = &cu->shapes;
    int32_t shared = shared_experts(s);

    if (s->router.experts == 0)
        return 0;
    if (s->router.experts > MOE_MAX_EXPERTS || s->router.identity > MOE_MAX_EXPERTS ||
        s->router.top_k + shared > MOE_MAX_SLOTS)
        return error_set(err,
                         "the model has %d experts, %d of them for a token; the CUDA backend takes "
                         "at most %d and %d",
                         s->router.experts, s->router.top_k + shared, MOE_MAX_EXPERTS,
                         MOE_MAX_SLOTS);
    auto bytes = [&](decltype(&moe_workspace) of) {
        return of(cu->limits.max_rows, s->hidden_size, s->moe_intermediate, s->router.experts,
                  s->router.top_k, shared);
    };
    cu->moe_work_bytes = MOE_FEW_ROOM + bytes(moe_workspace);
    if (cu->has_fp8)
        cu->moe_work_bytes = std::max(cu->moe_work_bytes, bytes(moe_fp8_workspace));
    if (cu->has_int4)
        cu->moe_work_bytes = std::max(cu->moe_work_bytes, bytes(moe_int4_workspace));
    cu->moe_work = cuda_take(cu, cu->moe_work_bytes, true, "the experts' working memory", err);
    return cu->moe_work ? 0 : -1;
}

static const void *weight_data(const struct tensor *t, enum dtype dtype)
{
    ASSERT(t->dtype == dtype);
    return t->data;
}

/* The choice that waits, if it is of these experts and they make it themselves; else it, or
 * whatever waits, is queued. */
static const struct gate_args *take_choice(struct cuda_backend *cu, const struct moe_args *args,
                                           enum dtype dtype)
{
    struct cuda_pending *wait = &cu->pending;
    const struct gate_args *gate = &wait->gate;

    if (wait->choice && gate->h == args->x && gate->ids == args->ids &&
        gate->weights == args->weights && gate->rows == args->m && dtype == DTYPE_F8_E4M3 &&
        few_serves(args) && few_chooses(gate)) {
        wait->choice = 0;
        return gate;
    }
    cuda_settle(cu);
    return NULL;
}

/* Runs what `all` says by the format of the weights. */
static void run_experts(struct cuda_backend *cu, struct moe_fp8_args *all,
                        const struct moe_weights *experts)
{
    struct moe_args *args = &all->moe;
    enum dtype dtype = experts->gate.dtype;

    if (dtype == DTYPE_I4) {
        struct moe_int4_args int4 = {*args, experts->gate.group_scales, experts->up.group_scales,
                                     experts->down.group_scales};
        cuda_check_launch(cu, moe_int4_experts(&int4, cu->stream), "moe_int4_experts");
    } else if (dtype == DTYPE_F8_E4M3) {
        all->gate_up = {experts->gate.scales, experts->up.scales};
        all->down = {experts->down.scales, NULL};
        all->ue8m0 = cu->shapes.ue8m0;
        cuda_check_launch(cu, moe_fp8_experts(all, cu->stream), "moe_fp8_experts");
    } else {
        args->workspace = (char *)args->workspace + MOE_FEW_ROOM;
        args->workspace_bytes -= MOE_FEW_ROOM;
        cuda_check_launch(cu, moe_experts(args, cu->stream), "moe_experts");
    }
}

void cuda_moe(struct backend *be, struct tensor out, struct tensor residual, struct tensor x,
              struct tensor ids, struct tensor weights, const struct moe_weights *experts,
              const struct ffn_weights *shared)
{
    struct cuda_backend *cu = cuda_backend(be);
    struct moe_fp8_args all = {};
    struct moe_args &args = all.moe;
    enum dtype dtype = experts->gate.dtype;
    enum dtype shared_dtype = dtype == DTYPE_I4 ? DTYPE_BF16 : dtype;

    ASSERT(ids.dtype == DTYPE_I32 && ids.shape[0] == x.shape[0] && out.shape[0] == x.shape[0]);
    args.x = cuda_bf16(&x);
    args.x_stride = cuda_last_dim(&x);
    args.ids = (const int32_t *)ids.data;
    args.weights = cuda_f32(&weights);
    args.gate = weight_data(&experts->gate, dtype);
    args.up = weight_data(&experts->up, dtype);
    args.down = weight_data(&experts->down, dtype);
    args.residual = residual.data ? cuda_bf16(&residual) : NULL;
    args.out = cuda_bf16(&out);
    args.out_stride = cuda_last_dim(&out);
    args.m = (int32_t)x.shape[0];
    args.d = (int32_t)cuda_last_dim(&x);
    args.i = (int32_t)experts->gate.shape[1];
    args.experts = (int32_t)experts->gate.shape[0];
    args.top_k = (int32_t)cuda_last_dim(&ids);
    if (shared) {
        ASSERT(shared->gate.shape[0] % args.i == 0);
        all.shared_gate_up = {shared->gate.scales, shared->up.scales};
        all.shared_down = {shared->down.scales, NULL};
        args.shared_gate = weight_data(&shared->gate, shared_dtype);
        args.shared_up = weight_data(&shared->up, shared_dtype);
        args.shared_down = weight_data(&shared->down, shared_dtype);
        args.shared = (int32_t)shared->gate.shape[0] / args.i;
    }
    args.batch_invariant = cu->batch_invariant;
    args.workspace = cu->moe_work;
    args.workspace_bytes = cu->moe_work_bytes;
    all.quantised = cuda_is_quantised(cu, &x) ? cu->fp8_work : NULL;
    all.gate = take_choice(cu, &args, dtype);
    run_experts(cu, &all, experts);
}
