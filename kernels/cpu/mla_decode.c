/* Attention of generated tokens, in the absorbed form: the query goes into the latent space,
 * q' = W_UK^T q_nope; the score of a cached token is [q', q_rope] . [c, k_rope]; the weighted sum
 * of latents comes back through W_UV (DeepSeek-V2, section 2.1.2). No key is ever expanded.
 *
 * A task is a few rows by a few heads: rows share the head's weights on the way in and out, heads
 * share the cached tokens in between. How many of each changes no bits.
 *
 * Rows that an indexer has chosen tokens for come here too, of prompts as well: in latent space the
 * tokens of a list cost no more than those of a page, once they stand together. */
#include "kernels/cpu/cpu.h"

#include <math.h>
#include <string.h>

struct task {
    struct cpu_backend *cpu;
    const struct mla_layer *layer;
    struct cpu_scratch *scratch;
    const int32_t *row; /* batch rows */
    int64_t rows, first_head, heads;
    const float *q; /* (T, H * (nope + rope)) */
    float *out;     /* (T, H * v) */
};

/* scratch->query [r][h] = [W_UK^T q_nope, q_rope] */
static void absorb(const struct task *t)
{
    const struct mla_shape *mla = &t->layer->shape;
    struct cpu_scratch *s = t->scratch;
    size_t lora = (size_t)mla->kv_lora_rank, rope = (size_t)mla->rope_dim;
    size_t nope = (size_t)mla->nope_dim;

    for (int64_t h = 0; h < t->heads; h++) {
        int64_t head = t->first_head + h;
        float *query = s->query + (size_t)h * (lora + rope);
        for (size_t r = 0; r < (size_t)t->rows; r++) {
            const float *q = t->q + (size_t)(t->row[r] * mla->heads + head) * (nope + rope);
            float *to = query + r * CPU_DECODE_HEADS * (lora + rope);
            memcpy(s->nope + r * nope, q, nope * sizeof(float));
            memset(to, 0, lora * sizeof(float));
            memcpy(to + lora, q + nope, rope * sizeof(float));
        }
        cpu_weighted_sum(&(struct cpu_weighted_sum){
            .out = query,
            .out_stride = CPU_DECODE_HEADS * (lora + rope),
            .coef = s->nope,
            .coef_stride = nope,
            .v = cpu_weight_rows(&t->layer->kv_b, head * (mla->nope_dim + mla->v_dim)),
            .rows = t->rows,
            .terms = mla->nope_dim,
            .n = mla->kv_lora_rank,
        });
    }
}

/* One page of a row's context, for all heads of the task. */
static void attend_page(const struct task *t, int64_t r, const float *page, int64_t tokens,
                        float *max, float *sum)
{
    const struct mla_shape *mla = &t->layer->shape;
    struct cpu_scratch *s = t->scratch;
    size_t lora = (size_t)mla->kv_lora_rank, width = lora + (size_t)mla->rope_dim;
    float *latent_out = s->latent_out + (size_t)r * CPU_DECODE_HEADS * lora;

    cpu_dots(&(struct cpu_dots){.out = s->scores,
                                .out_stride = KV_PAGE_TOKENS,
                                .x = s->query + (size_t)r * CPU_DECODE_HEADS * width,
                                .x_stride = width,
                                .w = {page, DTYPE_F32, width},
                                .rows = t->heads,
                                .outs = tokens,
                                .k = (int64_t)width});
    for (int64_t h = 0; h < t->heads; h++) {
        float factor = cpu_softmax_block(s->scores + h * KV_PAGE_TOKENS, tokens, mla->softmax_scale,
                                         &max[h], &sum[h]);
        if (factor != 1.0f)
            cpu_scale(latent_out + (size_t)h * lora, factor, mla->kv_lora_rank);
    }
    cpu_weighted_sum(&(struct cpu_weighted_sum){.out = latent_out,
                                                .out_stride = lora,
                                                .coef = s->scores,
                                                .coef_stride = KV_PAGE_TOKENS,
                                                .v = {page, DTYPE_F32, width},
                                                .rows = t->heads,
                                                .terms = tokens,
                                                .n = mla->kv_lora_rank});
}

/* The cache rows of `n` chosen tokens, one after the other. */
static const float *gather(const struct task *t, const int32_t *pages, const int32_t *chosen,
                           int64_t n)
{
    const float *cache = cpu_f32(&t->layer->kv_cache);
    size_t width = (size_t)cpu_last_dim(&t->layer->kv_cache);

    for (int64_t i = 0; i < n; i++) {
        size_t page = (size_t)pages[chosen[i] / KV_PAGE_TOKENS];
        size_t row = page * KV_PAGE_TOKENS + (size_t)(chosen[i] % KV_PAGE_TOKENS);
        memcpy(t->scratch->tokens + (size_t)i * width, cache + row * width, width * sizeof(float));
    }
    return t->scratch->tokens;
}

/* scratch->latent_out [r][h] = softmax-weighted mean of the cached latents, for one row. */
static void attend(const struct task *t, int64_t r)
{
    const struct batch *batch = t->cpu->batch;
    const struct mla_shape *mla = &t->layer->shape;
    const struct batch_seq *seq = &batch_seqs(batch)[t->cpu->row_seq[t->row[r]]];
    const int32_t *pages = batch_pages(batch) + seq->first_page;
    int64_t lora = mla->kv_lora_rank, context = batch_positions(batch)[t->row[r]] + 1;
    size_t page_floats = (size_t)KV_PAGE_TOKENS * (size_t)(lora + mla->rope_dim);
    float *latent_out = t->scratch->latent_out + r * CPU_DECODE_HEADS * lora;
    float max[CPU_DECODE_HEADS], sum[CPU_DECODE_HEADS] = {0};
    int32_t limit = cpu_index_limit(t->cpu);
    const int32_t *chosen = context > limit ? cpu_index_chosen(t->cpu, t->row[r]) : NULL;

    for (int64_t h = 0; h < t->heads; h++)
        max[h] = -INFINITY;
    memset(latent_out, 0, (size_t)(t->heads * lora) * sizeof(float));
    context = chosen ? limit : context;
    for (int64_t start = 0; start < context; start += KV_PAGE_TOKENS) {
        int64_t left = context - start, n = left < KV_PAGE_TOKENS ? left : KV_PAGE_TOKENS;
        const float *page = chosen ? gather(t, pages, chosen + start, n)
                                   : cpu_f32(&t->layer->kv_cache) +
                                         (size_t)pages[start / KV_PAGE_TOKENS] * page_floats;
        attend_page(t, r, page, n, max, sum);
    }
    for (int64_t h = 0; h < t->heads; h++)
        cpu_scale(latent_out + h * lora, 1.0f / sum[h], lora);
}

/* out = W_UV latent_out */
static void project_out(const struct task *t)
{
    const struct mla_shape *mla = &t->layer->shape;
    struct cpu_scratch *s = t->scratch;
    size_t lora = (size_t)mla->kv_lora_rank, v = (size_t)mla->v_dim;

    for (int64_t h = 0; h < t->heads; h++) {
        int64_t head = t->first_head + h;
        int64_t row = head * (mla->nope_dim + mla->v_dim) + mla->nope_dim;
        cpu_dots(&(struct cpu_dots){.out = s->head_out,
                                    .out_stride = v,
                                    .x = s->latent_out + (size_t)h * lora,
                                    .x_stride = CPU_DECODE_HEADS * lora,
                                    .w = cpu_weight_rows(&t->layer->kv_b, row),
                                    .rows = t->rows,
                                    .outs = mla->v_dim,
                                    .k = mla->kv_lora_rank});
        for (size_t r = 0; r < (size_t)t->rows; r++)
            memcpy(t->out + (size_t)(t->row[r] * mla->heads + head) * v, s->head_out + r * v,
                   v * sizeof(float));
    }
}

/* What the threads share. */
struct decode {
    struct cpu_backend *cpu;
    const struct mla_layer *layer;
    const float *q;
    float *out;
    int64_t tile_rows, tile_heads; /* of one task */
};

static void run(void *context, int64_t first, int64_t end, int thread)
{
    const struct decode *d = context;
    int64_t heads = d->layer->shape.heads, n = d->cpu->n_absorbed;
    int64_t head_tasks = (heads + d->tile_heads - 1) / d->tile_heads;

    for (int64_t i = first; i < end; i++) {
        int64_t row = i / head_tasks * d->tile_rows, head = i % head_tasks * d->tile_heads;
        struct task t = {
            .cpu = d->cpu,
            .layer = d->layer,
            .scratch = &d->cpu->scratch[thread],
            .row = d->cpu->absorbed_rows + row,
            .rows = n - row < d->tile_rows ? n - row : d->tile_rows,
            .first_head = head,
            .heads = heads - head < d->tile_heads ? heads - head : d->tile_heads,
            .q = d->q,
            .out = d->out,
        };
        absorb(&t);
        for (int64_t r = 0; r < t.rows; r++)
            attend(&t, r);
        project_out(&t);
    }
}

void cpu_mla_decode(struct backend *be, struct tensor out, struct tensor q,
                    const struct mla_layer *layer)
{
    struct cpu_backend *cpu = cpu_backend(be);
    const struct mla_shape *mla = &layer->shape;
    int64_t heads = mla->heads, n = cpu->n_absorbed, context = 0;
    struct decode d = {cpu, layer, cpu_f32(&q), cpu_f32_out(&out), 1, 1};

    ASSERT(cpu->scratch && cpu_last_dim(&layer->kv_cache) == mla->kv_lora_rank + mla->rope_dim);
    ASSERT(cpu_last_dim(&q) == heads * (mla->nope_dim + mla->rope_dim));
    ASSERT(cpu_last_dim(&out) == heads * mla->v_dim);
    /* Small tasks while there are too few to go round. */
    if (n >= cpu->n_threads)
        d.tile_heads = CPU_DECODE_HEADS;
    if (n >= cpu->n_threads * CPU_DECODE_ROWS)
        d.tile_rows = CPU_DECODE_ROWS;
    int64_t tasks =
        (n + d.tile_rows - 1) / d.tile_rows * ((heads + d.tile_heads - 1) / d.tile_heads);
    for (int64_t i = 0; i < n; i++)
        context += batch_positions(cpu->batch)[cpu->absorbed_rows[i]] + 1;
    cpu_parallel(cpu, heads * mla->kv_lora_rank * (2 * context + n * (mla->nope_dim + mla->v_dim)),
                 tasks, 1, run, &d);
}
