/* The reference backend's life: opening, working memory, and what a step begins with. The
 * operations stand one a file beside this one. */
#include "kernels/cpu/cpu.h"

#include "base/memory.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

static void scratch_free(struct cpu_backend *cpu)
{
    for (int t = 0; cpu->scratch && t < cpu->n_threads; t++)
        free(cpu->scratch[t].block);
    free(cpu->scratch);
    cpu->scratch = NULL;
}

static void cpu_close(struct backend *be)
{
    struct cpu_backend *cpu = cpu_backend(be);

    cpu_threads_free(cpu->threads);
    scratch_free(cpu);
    cpu_moe_free(cpu->moe);
    cpu_index_free(cpu->index);
    cpu_sampler_free(cpu->sampler);
    free(cpu->row_seq);
    free(cpu->absorbed_rows);
    free(cpu->cos);
    free(cpu->sin);
    free(cpu);
}

/* Attention's working memory of one thread. It doesn't grow with the context: keys and values are
 * expanded a page at a time. DeepSeek-V3 shapes: 128 KiB of keys and values, 75 KiB of the rest,
 * and 8 bytes for each row of a step. */
static void scratch_take(struct cpu_scratch *s, const struct backend_shapes *shapes,
                         size_t max_rows)
{
    const struct mla_shape *mla = &shapes->mla;
    size_t lora = (size_t)mla->kv_lora_rank, nope = (size_t)mla->nope_dim;
    size_t rope = (size_t)mla->rope_dim, v = (size_t)mla->v_dim;
    struct {
        float **at;
        size_t floats;
    } parts[] = {
        {&s->keys, KV_PAGE_TOKENS * (nope + rope)},
        {&s->values, KV_PAGE_TOKENS * v},
        {&s->scores, CPU_PREFILL_ROWS * KV_PAGE_TOKENS},
        {&s->row_max, max_rows},
        {&s->row_sum, max_rows},
        {&s->nope, CPU_DECODE_ROWS * nope},
        {&s->query, CPU_DECODE_ROWS * CPU_DECODE_HEADS * (lora + rope)},
        {&s->latent_out, CPU_DECODE_ROWS * CPU_DECODE_HEADS * lora},
        {&s->head_out, CPU_DECODE_ROWS * v},
        {&s->tokens, shapes->index.top_k > 0 ? KV_PAGE_TOKENS * (lora + rope) : 0},
    };
    size_t n = sizeof(parts) / sizeof(parts[0]), total = 0;

    for (size_t i = 0; i < n; i++)
        total += parts[i].floats;
    s->block = mem_zalloc(total, sizeof(float));
    float *next = s->block;
    for (size_t i = 0; i < n; i++) {
        *parts[i].at = next;
        next += parts[i].floats;
    }
}

static int cpu_reserve(struct backend *be, const struct backend_shapes *shapes, struct error *err)
{
    struct cpu_backend *cpu = cpu_backend(be);
    const struct router_config *moe = &shapes->router;

    if (moe->experts + moe->identity > CPU_MAX_EXPERTS)
        return error_set(err, "the model has %d experts; the CPU backend takes at most %d",
                         moe->experts + moe->identity, CPU_MAX_EXPERTS);
    scratch_free(cpu);
    cpu->scratch = mem_zalloc((size_t)cpu->n_threads, sizeof(*cpu->scratch));
    for (int t = 0; t < cpu->n_threads; t++)
        scratch_take(&cpu->scratch[t], shapes, (size_t)cpu->limits.max_rows);
    cpu_moe_free(cpu->moe);
    cpu->moe = moe->experts > 0 ? cpu_moe_new(shapes) : NULL;
    cpu_index_free(cpu->index);
    cpu->index =
        shapes->index.top_k > 0 ? cpu_index_new(&shapes->index, cpu->limits, cpu->n_threads) : NULL;
    return 0;
}

static int cpu_begin(struct backend *be, const struct batch *batch)
{
    struct cpu_backend *cpu = cpu_backend(be);
    int32_t limit = cpu_index_limit(cpu);

    ASSERT(batch->n_rows <= cpu->limits.max_rows && cpu->n_steps < BACKEND_MAX_STEPS);
    cpu->n_steps++;
    cpu->batch = batch;
    cpu->rope_ready = 0;
    cpu->n_absorbed = 0;
    for (int32_t s = 0; s < batch->n_seqs; s++) {
        const struct batch_seq *seq = &batch_seqs(batch)[s];
        for (int32_t row = seq->first_row; row < seq->first_row + seq->n_rows; row++) {
            cpu->row_seq[row] = s;
            if (seq->absorbed || batch_positions(batch)[row] >= limit)
                cpu->absorbed_rows[cpu->n_absorbed++] = row;
        }
    }
    return 0;
}

static int cpu_finish(struct backend *be, struct error *err)
{
    (void)err; /* operations run when they are called, and can't fail */
    ASSERT(cpu_backend(be)->n_steps > 0);
    cpu_backend(be)->n_steps--;
    return 0;
}

static int32_t cpu_capture_begin(struct backend *be, int32_t graph)
{
    (void)be;
    (void)graph;
    return 0;
}

static int cpu_capture_end(struct backend *be, struct error *err)
{
    (void)be;
    (void)err;
    PANIC("the CPU backend records nothing");
}

static const struct backend_ops cpu_ops = {
    .name = "cpu",
    .close = cpu_close,
    .memory = cpu_memory,
    .alloc = cpu_alloc,
    .download = cpu_download,
    .release = cpu_release,
    .alloc_weight = cpu_alloc_weight,
    .upload = cpu_upload,
    .fill_random = cpu_fill_random,
    .stage_alloc = cpu_stage_alloc,
    .stage_free = cpu_stage_free,
    .reserve = cpu_reserve,
    .begin = cpu_begin,
    .finish = cpu_finish,
    .capture_begin = cpu_capture_begin,
    .capture_end = cpu_capture_end,
    .embed = cpu_embed,
    .rmsnorm = cpu_rmsnorm,
    .linear = cpu_linear,
    .gated = cpu_gated,
    .rope_kv_write = cpu_rope_kv_write,
    .index_tokens = cpu_index_tokens,
    .mla_prefill = cpu_mla_prefill,
    .mla_decode = cpu_mla_decode,
    .route = cpu_route,
    .scale_by_position = cpu_scale_by_position,
    .identity_experts = cpu_identity_experts,
    .moe = cpu_moe,
    .add = cpu_add,
    .concat = cpu_concat,
    .gather_logit_rows = cpu_gather_logit_rows,
    .sampler_open = cpu_sampler_open,
    .sampler_close = cpu_sampler_close,
    .sample = cpu_sample,
};

/* How many processors this process may run on. */
static int processors(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

struct backend *backend_cpu_open(const struct backend_options *options)
{
    struct cpu_backend *cpu = mem_zalloc(1, sizeof(*cpu));
    size_t rows = (size_t)options->limits.max_rows;
    int threads = options->threads > 0 ? options->threads : processors();

    ASSERT(options->kv_dtype == DTYPE_F32);
    ASSERT(options->limits.max_rows > 0 && options->slots > 0 && options->vocab_size > 0);
    cpu->base.ops = &cpu_ops;
    cpu->base.activation_dtype = DTYPE_F32;
    cpu->base.kv_dtype = options->kv_dtype;
    cpu->n_threads = threads < CPU_MAX_THREADS ? threads : CPU_MAX_THREADS;
    cpu->threads = cpu_threads_new(cpu->n_threads);
    cpu->limits = options->limits;
    cpu->row_seq = mem_zalloc(rows, sizeof(*cpu->row_seq));
    cpu->absorbed_rows = mem_zalloc(rows, sizeof(*cpu->absorbed_rows));
    cpu->cos = mem_zalloc(rows * (ROPE_MAX_DIM / 2), sizeof(float));
    cpu->sin = mem_zalloc(rows * (ROPE_MAX_DIM / 2), sizeof(float));
    cpu->sampler = cpu_sampler_new(options->slots, options->vocab_size, cpu->n_threads);
    return &cpu->base;
}
