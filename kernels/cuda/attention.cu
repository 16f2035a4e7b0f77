/* Multi-head Latent Attention over the paged cache, by mla.h and gemm.h.
 *
 * Absorbed rows: q' = [W_UK^T q_nope, q_rope] per head, mla_decode in latent space, out = W_UV o.
 * They go through in groups (struct decode_group) that fit q_latent and o_latent. */
#include "kernels/cuda/backend.cuh"
#include "kernels/cuda/gemm_vector.h"
#include "kernels/cuda/indexer.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/mla.h"

enum { ABSORB_ROWS = 1024, PREFILL_TOKENS = 16384, THREADS = 128 };

static struct mla_cache cache_of(const struct mla_layer *layer)
{
    struct mla_cache cache = {};
    int64_t row_elements = cuda_last_dim(&layer->kv_cache);

    cache.pages = layer->kv_cache.data;
    cache.page_stride = row_elements * KV_PAGE_TOKENS * (int64_t)dtype_size(layer->kv_cache.dtype);
    cache.n_pages = (int32_t)layer->kv_cache.shape[0];
    cache.latent_dim = layer->shape.kv_lora_rank;
    cache.rope_dim = layer->shape.rope_dim;
    cache.format = layer->kv_cache.dtype == DTYPE_F8_E4M3 ? MLA_KV_FP8 : MLA_KV_BF16;
    return cache;
}

static struct mla_prefill_args prefill_args(const struct cuda_backend *cu,
                                            const struct mla_shape *shape)
{
    struct mla_prefill_args args = {};

    args.cache.latent_dim = shape->kv_lora_rank;
    args.cache.rope_dim = shape->rope_dim;
    args.cache.format = cu->base.kv_dtype == DTYPE_F8_E4M3 ? MLA_KV_FP8 : MLA_KV_BF16;
    args.heads = shape->heads;
    args.nope_dim = shape->nope_dim;
    args.v_dim = shape->v_dim;
    args.softmax_scale = shape->softmax_scale;
    return args;
}

int cuda_attention_reserve(struct cuda_backend *cu, struct error *err)
{
    const struct mla_shape *m = &cu->shapes.mla;
    struct mla_prefill_args prefill = prefill_args(cu, m);
    int32_t rows = cu->limits.max_rows, seqs = cu->limits.max_seqs;

    cu->absorb_rows = rows < ABSORB_ROWS ? rows : ABSORB_ROWS;
    if (cu->absorb_rows < seqs)
        cu->absorb_rows = seqs < rows ? seqs : rows;
    size_t elements = (size_t)cu->absorb_rows * (size_t)m->heads;
    cu->decode_work_bytes =
        mla_decode_workspace(cu->absorb_rows, cu->absorb_rows, m->heads, m->kv_lora_rank);
    cu->prefill_work_bytes = mla_prefill_workspace(&prefill, seqs, rows, PREFILL_TOKENS);
    const char *what = "attention's working memory";
    cu->q_latent = (bf16 *)cuda_take(
        cu, elements * (size_t)(m->kv_lora_rank + m->rope_dim) * sizeof(bf16), true, what, err);
    cu->o_latent =
        (bf16 *)cuda_take(cu, elements * (size_t)m->kv_lora_rank * sizeof(bf16), true, what, err);
    cu->decode_work = cuda_take(cu, cu->decode_work_bytes, true, what, err);
    cu->prefill_work = cuda_take(cu, cu->prefill_work_bytes, true, what, err);
    return cu->q_latent && cu->o_latent && cu->decode_work && cu->prefill_work ? 0 : -1;
}

/* Whether the group's rows are the batch's first ones: then rope_kv_write has put their rope parts
 * into q_latent. They nearly always are, since generated tokens come before prompts. */
static bool is_first(const struct decode_group *group)
{
    return group->first_row == 0;
}

/* Whether rope_kv_write, in one kernel with its own work, absorbs the queries of the whole step. */
static bool absorbs_early(const struct cuda_backend *cu, const struct mla_shape *m)
{
    return cu->step.rows <= MLA_ABSORB_ROWS && cu->step.groups[0].rows == cu->step.rows &&
           !cu->batch_invariant && m->nope_dim % 8 == 0 && m->nope_dim <= 256 &&
           m->kv_lora_rank % 64 == 0 && m->rope_dim % 16 == 0;
}

void cuda_rope_kv_write(struct backend *be, struct tensor q, struct tensor kv,
                        const struct mla_layer *layer, struct tensor norm, float eps,
                        const struct rope_config *rope)
{
    struct cuda_backend *cu = cuda_backend(be);
    struct mla_write_args args = {};

    cuda_settle(cu);
    ASSERT(q.shape[0] == cu->step.rows && kv.shape[0] == cu->step.rows);
    ASSERT(rope->dim == layer->shape.rope_dim && rope->dim <= MLA_MAX_ROPE);
    args.cache = cache_of(layer);
    args.rows = cu->step.rows;
    args.positions = cu->step.image.positions;
    args.settled = 1; /* the image was copied before the step's first kernel */
    args.slots = cu->step.image.cache_slots;
    args.kv = cuda_bf16(&kv);
    args.kv_stride = cuda_last_dim(&kv);
    args.norm = cuda_f32(&norm);
    args.eps = eps;
    args.q = cuda_bf16(&q);
    args.heads = layer->shape.heads;
    args.nope_dim = layer->shape.nope_dim;
    args.rope.half_split = rope->half_split;
    args.rope.magnitude = rope->magnitude;
    for (int i = 0; i < rope->dim / 2; i++)
        args.rope.inv_freq[i] = rope->inv_freq[i];
    if (cu->step.n_groups > 0 && is_first(&cu->step.groups[0])) {
        args.q_absorbed = cu->q_latent;
        args.absorbed_rows = cu->step.groups[0].rows;
        cu->step.absorbed = absorbs_early(cu, &layer->shape);
        args.kv_b = cu->step.absorbed ? cuda_bf16(&layer->kv_b) : NULL;
        args.v_dim = layer->shape.v_dim;
        args.seqs.n_seqs = cu->step.absorbed ? cu->step.groups[0].spans : 0;
        args.seqs.kv_lens = cu->step.image.kv_lens;
        args.seqs.block_tables = cu->step.image.pages;
        args.seqs.table_starts = cu->step.image.table_starts;
    }
    cuda_check_launch(cu, mla_write(&args, cu->stream), "mla_write");
}

void cuda_mla_prefill(struct backend *be, struct tensor out, struct tensor q,
                      const struct mla_layer *layer)
{
    struct cuda_backend *cu = cuda_backend(be);
    struct mla_prefill_args args = prefill_args(cu, &layer->shape);

    cuda_settle(cu);
    if (cu->step.n_prefill == 0)
        return;
    args.cache = cache_of(layer);
    args.seqs.n_seqs = cu->step.n_prefill;
    args.seqs.query_rows = cu->step.rows;
    args.seqs.max_q_len = cu->step.prefill_max_q_len;
    args.seqs.q_starts = cu->step.q_starts;
    args.seqs.q_lens = cu->step.q_lens;
    args.seqs.kv_lens = cu->step.kv_lens;
    args.seqs.block_tables = cu->step.image.pages;
    args.seqs.table_starts = cu->step.table_starts;
    args.q = cuda_bf16(&q);
    args.kv_b = cuda_bf16(&layer->kv_b);
    args.out = cuda_bf16(&out);
    args.workspace = cu->prefill_work;
    args.workspace_bytes = cu->prefill_work_bytes;
    cuda_check_launch(cu, mla_prefill(&args, cu->stream), "mla_prefill");
}

/* The rope part of q (rows, H, nope + rope) into that of q_latent (rows, H, latent + rope), 2
 * values a thread. */
static __global__ void copy_rope(bf16 *q_latent, const bf16 *q, int64_t pairs, int nope, int latent,
                                 int rope)
{
    int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x;

    launch_next();
    launch_wait();
    if (i >= pairs)
        return;
    int64_t head = i / (rope / 2), at = i % (rope / 2) * 2;
    q_latent[head * (latent + rope) + latent + at] = q[head * (nope + rope) + nope + at];
    q_latent[head * (latent + rope) + latent + at + 1] = q[head * (nope + rope) + nope + at + 1];
}

/* q_latent = absorbed queries of the group's rows; q is the first of them. */
static void absorb(struct cuda_backend *cu, const struct mla_layer *layer, const bf16 *q,
                   const struct decode_group *group)
{
    const struct mla_shape *m = &layer->shape;
    struct gemm_batched_args args = {};
    int64_t pairs = (int64_t)group->rows * m->heads * (m->rope_dim / 2);

    args.x = q;
    args.weight = cuda_bf16(&layer->kv_b);
    args.out = cu->q_latent;
    args.x_head_stride = m->nope_dim + m->rope_dim;
    args.x_stride = m->heads * args.x_head_stride;
    args.weight_row_stride = m->kv_lora_rank;
    args.weight_head_stride = (int64_t)(m->nope_dim + m->v_dim) * m->kv_lora_rank;
    args.out_head_stride = m->kv_lora_rank + m->rope_dim;
    args.out_stride = m->heads * args.out_head_stride;
    args.m = group->rows;
    args.n = m->kv_lora_rank;
    args.k = m->nope_dim;
    args.heads = m->heads;
    args.batch_invariant = cu->batch_invariant;
    args.weight_is_kn = 1;
    if (!is_first(group))
        CUDA_CHECK(cu, launch_early(copy_rope, dim3((unsigned)((pairs + THREADS - 1) / THREADS)),
                                    dim3(THREADS), 0, cu->stream, cu->q_latent, q, pairs,
                                    m->nope_dim, m->kv_lora_rank, m->rope_dim));
    cuda_check_launch(cu, gemm_batched(&args, cu->stream), "gemm_batched");
}

/* out = W_UV o_latent of the group's rows; out is the first of them. */
static void project_out(struct cuda_backend *cu, const struct mla_layer *layer, bf16 *out,
                        int32_t rows)
{
    const struct mla_shape *m = &layer->shape;
    struct gemm_batched_args args = {};

    args.x = cu->o_latent;
    args.weight = cuda_bf16(&layer->kv_b) + (int64_t)m->nope_dim * m->kv_lora_rank;
    args.out = out;
    args.x_head_stride = m->kv_lora_rank;
    args.x_stride = (int64_t)m->heads * m->kv_lora_rank;
    args.weight_row_stride = m->kv_lora_rank;
    args.weight_head_stride = (int64_t)(m->nope_dim + m->v_dim) * m->kv_lora_rank;
    args.out_head_stride = m->v_dim;
    args.out_stride = (int64_t)m->heads * m->v_dim;
    args.m = rows;
    args.n = m->v_dim;
    args.k = m->kv_lora_rank;
    args.heads = m->heads;
    args.batch_invariant = cu->batch_invariant;
    cuda_check_launch(cu, gemm_batched(&args, cu->stream), "gemm_batched");
}

static void decode_group(struct cuda_backend *cu, const struct mla_layer *layer,
                         const struct decode_group *group)
{
    const struct step_image *image = &cu->step.image;
    struct mla_decode_args args = {};

    args.cache = cache_of(layer);
    args.q = cu->q_latent;
    args.out = cu->o_latent;
    args.heads = layer->shape.heads;
    args.softmax_scale = layer->shape.softmax_scale;
    args.causal = 1;
    args.batch_invariant = cu->batch_invariant;
    args.workspace = cu->decode_work;
    args.workspace_bytes = cu->decode_work_bytes;
    if (cu->index) {
        cuda_index_decode(cu, &args, group);
        return;
    }
    args.settled = cu->step.settled;
    args.next_late = group->spans <= GEMV_ROWS;
    args.seqs.n_seqs = group->spans;
    args.seqs.query_rows = group->rows;
    args.seqs.max_q_len = group->max_q_len;
    if (group->max_q_len > 1) { /* else row i is that of span i */
        args.seqs.q_starts = image->q_starts + group->first_span;
        args.seqs.q_lens = image->q_lens + group->first_span;
    }
    args.seqs.kv_lens = image->kv_lens + group->first_span;
    args.seqs.block_tables = image->pages;
    args.seqs.table_starts = image->table_starts + group->first_span;
    args.seqs.table_stride = cu->limits.max_pages;
    cuda_check_launch(cu, mla_decode(&args, cu->stream), "mla_decode");
}

void cuda_mla_decode(struct backend *be, struct tensor out, struct tensor q,
                     const struct mla_layer *layer)
{
    struct cuda_backend *cu = cuda_backend(be);

    cuda_settle(cu);
    for (int32_t g = 0; g < cu->step.n_groups; g++) {
        const struct decode_group *group = &cu->step.groups[g];
        if (!cu->step.absorbed)
            absorb(cu, layer, cuda_bf16(&q) + group->first_row * cuda_last_dim(&q), group);
        decode_group(cu, layer, group);
        project_out(cu, layer, cuda_bf16(&out) + group->first_row * cuda_last_dim(&out),
                    group->rows);
    }
    cu->step.absorbed = 0;
}
