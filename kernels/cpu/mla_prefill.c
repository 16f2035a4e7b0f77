/* Attention of prompt tokens, in the expanded form: keys and values of each head are made from the
 * cached latents, K = [W_UK c, k_rope] and V = W_UV c (DeepSeek-V2, equations 10-13).
 *
 * A task is one head of one sequence. It walks the sequence's pages from the first; expands a page
 * once for all rows of the chunk; and keeps for each row a running maximum and sum, and the
 * unfinished result in `out` itself. What a row meets - which pages, in which order, how much of
 * the last - follows from its position alone. Rows that attend to chosen tokens are mla_decode's.
 */
#include "kernels/cpu/cpu.h"

#include <math.h>
#include <string.h>

/* One head of one sequence. */
struct task {
    const struct mla_shape *shape;
    const struct batch_seq *seq;
    struct cpu_scratch *scratch;
    struct cpu_rows w_uk, w_uv; /* (nope, lora), (v, lora) */
    const float *q;             /* this head's query of the chunk's first row */
    float *out;                 /* and its result */
    size_t q_stride, out_stride;
};

/* Keys and values of a page's first `tokens` tokens. */
static void expand_page(const struct task *t, const float *page, int64_t tokens)
{
    const struct mla_shape *mla = t->shape;
    size_t width = (size_t)(mla->kv_lora_rank + mla->rope_dim);
    size_t key = (size_t)(mla->nope_dim + mla->rope_dim);
    struct cpu_dots job = {.out = t->scratch->keys,
                           .out_stride = key,
                           .x = page,
                           .x_stride = width,
                           .w = t->w_uk,
                           .rows = tokens,
                           .outs = mla->nope_dim,
                           .k = mla->kv_lora_rank};

    cpu_dots(&job);
    for (size_t j = 0; j < (size_t)tokens; j++)
        memcpy(t->scratch->keys + j * key + mla->nope_dim, page + j * width + mla->kv_lora_rank,
               (size_t)mla->rope_dim * sizeof(float));

    job.out = t->scratch->values;
    job.out_stride = (size_t)mla->v_dim;
    job.w = t->w_uv;
    job.outs = mla->v_dim;
    cpu_dots(&job);
}

/* How many of the page's tokens a row of the chunk sees; `start` is the page's first position. */
static int64_t visible(const struct task *t, int64_t row, int64_t start)
{
    int64_t seen = t->seq->kv_len - t->seq->n_rows + row + 1 - start;

    return seen < KV_PAGE_TOKENS ? seen : KV_PAGE_TOKENS;
}

/* Adds the expanded page to the results of rows first .. first + rows - 1 of the chunk. */
static void attend(const struct task *t, int64_t first, int64_t rows, int64_t start, int64_t tokens)
{
    const struct mla_shape *mla = t->shape;
    struct cpu_scratch *s = t->scratch;
    size_t key = (size_t)(mla->nope_dim + mla->rope_dim);
    struct cpu_weighted_sum sum = {.out_stride = t->out_stride,
                                   .coef_stride = KV_PAGE_TOKENS,
                                   .v = {s->values, DTYPE_F32, (size_t)mla->v_dim},
                                   .n = mla->v_dim};

    cpu_dots(&(struct cpu_dots){.out = s->scores,
                                .out_stride = KV_PAGE_TOKENS,
                                .x = t->q + (size_t)first * t->q_stride,
                                .x_stride = t->q_stride,
                                .w = {s->keys, DTYPE_F32, key},
                                .rows = rows,
                                .outs = tokens,
                                .k = (int64_t)key});
    for (int64_t r = 0; r < rows; r++) {
        float factor =
            cpu_softmax_block(s->scores + r * KV_PAGE_TOKENS, visible(t, first + r, start),
                              mla->softmax_scale, &s->row_max[first + r], &s->row_sum[first + r]);
        if (factor != 1.0f)
            cpu_scale(t->out + (size_t)(first + r) * t->out_stride, factor, mla->v_dim);
    }
    for (int64_t r = 0; r < rows; r += sum.rows) {
        sum.terms = visible(t, first + r, start);
        sum.rows = sum.terms == KV_PAGE_TOKENS ? rows - r : 1;
        sum.coef = s->scores + r * KV_PAGE_TOKENS;
        sum.out = t->out + (size_t)(first + r) * t->out_stride;
        cpu_weighted_sum(&sum);
    }
}

static void run_task(const struct task *t, const int32_t *pages, const float *cache)
{
    const struct mla_shape *mla = t->shape;
    struct cpu_scratch *s = t->scratch;
    int64_t context = t->seq->kv_len - t->seq->n_rows;
    size_t page_floats = (size_t)KV_PAGE_TOKENS * (size_t)(mla->kv_lora_rank + mla->rope_dim);

    for (int64_t r = 0; r < t->seq->n_rows; r++) {
        s->row_max[r] = -INFINITY;
        s->row_sum[r] = 0;
        memset(t->out + (size_t)r * t->out_stride, 0, (size_t)mla->v_dim * sizeof(float));
    }
    for (int64_t start = 0; start < t->seq->kv_len; start += KV_PAGE_TOKENS) {
        int64_t left = t->seq->kv_len - start;
        int64_t tokens = left < KV_PAGE_TOKENS ? left : KV_PAGE_TOKENS;
        int64_t first = start > context ? start - context : 0; /* rows before see none of it */

        expand_page(t, cache + (size_t)pages[start / KV_PAGE_TOKENS] * page_floats, tokens);
        for (int64_t r = first; r < t->seq->n_rows; r += CPU_PREFILL_ROWS) {
            int64_t rows = t->seq->n_rows - r;
            attend(t, r, rows < CPU_PREFILL_ROWS ? rows : CPU_PREFILL_ROWS, start, tokens);
        }
    }
    for (int64_t r = 0; r < t->seq->n_rows; r++)
        cpu_scale(t->out + (size_t)r * t->out_stride, 1.0f / s->row_sum[r], mla->v_dim);
}

/* What the threads share. */
struct prefill {
    struct cpu_backend *cpu;
    const struct mla_layer *layer;
    const float *q;
    float *out;
};

/* A sequence without the rows that attend to chosen tokens: those are its last ones. */
static struct batch_seq dense_part(const struct cpu_backend *cpu, const struct batch_seq *seq)
{
    int32_t limit = cpu_index_limit(cpu), first = seq->kv_len - seq->n_rows;
    struct batch_seq part = *seq;

    part.kv_len = seq->kv_len < limit ? seq->kv_len : limit;
    part.n_rows = part.kv_len > first ? part.kv_len - first : 0;
    return part;
}

static void run(void *context, int64_t first, int64_t end, int thread)
{
    const struct prefill *p = context;
    const struct batch *batch = p->cpu->batch;
    const struct mla_shape *mla = &p->layer->shape;
    size_t q_head = (size_t)(mla->nope_dim + mla->rope_dim), v = (size_t)mla->v_dim;

    for (int64_t i = first; i < end; i++) {
        struct batch_seq seq = dense_part(p->cpu, &batch_seqs(batch)[i / mla->heads]);
        int64_t h = i % mla->heads, kv_b_row = h * (mla->nope_dim + mla->v_dim);
        if (seq.absorbed || seq.n_rows == 0)
            continue;
        struct task t = {
            .shape = mla,
            .seq = &seq,
            .scratch = &p->cpu->scratch[thread],
            .w_uk = cpu_weight_rows(&p->layer->kv_b, kv_b_row),
            .w_uv = cpu_weight_rows(&p->layer->kv_b, kv_b_row + mla->nope_dim),
            .q_stride = (size_t)mla->heads * q_head,
            .out_stride = (size_t)mla->heads * v,
        };
        t.q = p->q + (size_t)seq.first_row * t.q_stride + (size_t)h * q_head;
        t.out = p->out + (size_t)seq.first_row * t.out_stride + (size_t)h * v;
        run_task(&t, batch_pages(batch) + seq.first_page, cpu_f32(&p->layer->kv_cache));
    }
}

void cpu_mla_prefill(struct backend *be, struct tensor out, struct tensor q,
                     const struct mla_layer *layer)
{
    struct cpu_backend *cpu = cpu_backend(be);
    const struct mla_shape *mla = &layer->shape;
    int64_t key = mla->nope_dim + mla->rope_dim, context = 0;
    struct prefill p = {cpu, layer, cpu_f32(&q), cpu_f32_out(&out)};

    ASSERT(cpu->scratch && cpu_last_dim(&layer->kv_cache) == mla->kv_lora_rank + mla->rope_dim);
    ASSERT(cpu_last_dim(&q) == mla->heads * key && cpu_last_dim(&out) == mla->heads * mla->v_dim);
    if (cpu->n_absorbed == cpu->batch->n_rows)
        return;
    for (int32_t s = 0; s < cpu->batch->n_seqs; s++)
        if (!batch_seqs(cpu->batch)[s].absorbed)
            context += batch_seqs(cpu->batch)[s].kv_len;
    cpu_parallel(cpu, context * mla->heads * mla->kv_lora_rank * (mla->nope_dim + mla->v_dim),
                 cpu->batch->n_seqs * mla->heads, 1, run, &p);
}
