/* Rotary position embedding (Su et al. 2021), and the place where a token enters the KV cache: its
 * latent normalised, its rope key rotated. Angles are float32 products, as in the models' training
 * code, so that long contexts agree with it. */
#include "kernels/cpu/cpu.h"

#include <math.h>
#include <string.h>

struct rope_write {
    struct cpu_backend *cpu;
    float *q;
    const float *kv, *norm;
    const struct mla_layer *layer;
    const struct rope_config *rope;
    float eps;
};

static void angles(void *context, int64_t first, int64_t end, int thread)
{
    struct cpu_backend *cpu = context;
    const int32_t *positions = batch_positions(cpu->batch);

    (void)thread;
    for (int64_t r = first; r < end; r++) {
        for (int32_t i = 0; i < cpu->rope.dim / 2; i++) {
            float angle = (float)positions[r] * cpu->rope.inv_freq[i];
            cpu->cos[r * (ROPE_MAX_DIM / 2) + i] = cosf(angle) * cpu->rope.magnitude;
            cpu->sin[r * (ROPE_MAX_DIM / 2) + i] = sinf(angle) * cpu->rope.magnitude;
        }
    }
}

/* cos and sin of the step's rows; every layer of a step asks for the same ones. */
void cpu_rope_prepare(struct cpu_backend *cpu, const struct rope_config *rope)
{
    int64_t rows = cpu->batch->n_rows;
    struct rope_config wanted = *rope;

    ASSERT(rope->dim % 2 == 0 && rope->dim <= ROPE_MAX_DIM);
    wanted.half_split = 0; /* which values are a pair changes no angle */
    if (cpu->rope_ready && memcmp(&cpu->rope, &wanted, sizeof(wanted)) == 0)
        return;
    cpu->rope = wanted;
    cpu->rope_ready = 1;
    cpu_parallel(cpu, 100 * rows * rope->dim, rows, 16, angles, cpu);
}

void cpu_rope_rotate(const struct cpu_backend *cpu, float *x, const struct rope_config *rope,
                     int64_t row)
{
    const float *cos = cpu->cos + row * (ROPE_MAX_DIM / 2);
    const float *sin = cpu->sin + row * (ROPE_MAX_DIM / 2);
    int32_t pairs = rope->dim / 2;

    for (int32_t i = 0; i < pairs; i++) {
        float *a = rope->half_split ? &x[i] : &x[2 * i];
        float *b = rope->half_split ? &x[i + pairs] : &x[2 * i + 1];
        float first = *a, second = *b;
        *a = first * cos[i] - second * sin[i];
        *b = second * cos[i] + first * sin[i];
    }
}

float *cpu_cache_slot(const struct cpu_backend *cpu, const struct tensor *cache, int64_t row)
{
    const struct batch *batch = cpu->batch;
    const struct batch_seq *seq = &batch_seqs(batch)[cpu->row_seq[row]];
    int32_t position = batch_positions(batch)[row];
    int64_t page = batch_pages(batch)[seq->first_page + position / KV_PAGE_TOKENS];

    ASSERT(page >= 0 && page < cache->shape[0]);
    return cpu_f32_out(cache) +
           (page * KV_PAGE_TOKENS + position % KV_PAGE_TOKENS) * cpu_last_dim(cache);
}

static void write_rows(void *context, int64_t first, int64_t end, int thread)
{
    const struct rope_write *op = context;
    const struct mla_shape *mla = &op->layer->shape;
    int64_t lora = mla->kv_lora_rank, head = mla->nope_dim + mla->rope_dim;

    (void)thread;
    for (int64_t r = first; r < end; r++) {
        const float *in = op->kv + r * (lora + mla->rope_dim);
        float *slot = cpu_cache_slot(op->cpu, &op->layer->kv_cache, r);

        for (int32_t h = 0; h < mla->heads; h++)
            cpu_rope_rotate(op->cpu, op->q + (r * mla->heads + h) * head + mla->nope_dim, op->rope,
                            r);
        cpu_rmsnorm_row(slot, in, op->norm, op->eps, lora);
        memcpy(slot + lora, in + lora, (size_t)mla->rope_dim * sizeof(float));
        cpu_rope_rotate(op->cpu, slot + lora, op->rope, r);
    }
}

void cpu_rope_kv_write(struct backend *be, struct tensor q, struct tensor kv,
                       const struct mla_layer *layer, struct tensor norm, float eps,
                       const struct rope_config *rope)
{
    struct cpu_backend *cpu = cpu_backend(be);
    const struct mla_shape *mla = &layer->shape;
    int64_t rows = cpu->batch->n_rows, width = mla->kv_lora_rank + mla->rope_dim;
    struct rope_write op = {
        cpu, cpu_f32_out(&q), cpu_f32(&kv), cpu_f32(&norm), layer, rope, eps,
    };

    ASSERT(q.shape[0] == rows && cpu_last_dim(&q) == mla->heads * (mla->nope_dim + mla->rope_dim));
    ASSERT(kv.shape[0] == rows && cpu_last_dim(&kv) == width && rope->dim == mla->rope_dim);
    ASSERT(cpu_last_dim(&layer->kv_cache) == width && tensor_elements(&norm) == mla->kv_lora_rank);
    cpu_rope_prepare(cpu, rope);
    cpu_parallel(cpu, 4 * rows * (mla->heads * mla->rope_dim + width), rows, 16, write_rows, &op);
}
