/* The lightning indexer of DeepSeek-V3.2 (section 2.1): which tokens a row attends to.
 *
 * A row's score of a token is the sum over heads of w relu(q . k). The released code puts
 * head_dim^-0.5 on the products and heads^-0.5 on the weights, which changes no order and is left
 * out; and it takes products in FP8 of vectors turned by a Hadamard matrix, which leaves products
 * as they are but for that rounding: transformers leaves both out, and so does this. */
#include "kernels/cpu/cpu.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const float KEY_NORM_EPS = 1e-6f; /* nn.LayerNorm's here, whatever rms_norm_eps is */

/* One thread's memory. */
struct scratch {
    float *products; /* (heads, KV_PAGE_TOKENS) */
    float *scores;   /* (max_tokens) */
};

struct cpu_index {
    struct index_shape shape;
    int64_t max_tokens;      /* of a sequence */
    int32_t *chosen;         /* (max_rows, top_k) positions in increasing order */
    struct scratch *scratch; /* (threads) */
    int threads;
};

struct cpu_index *cpu_index_new(const struct index_shape *shape, struct batch_limits limits,
                                int threads)
{
    struct cpu_index *index = mem_zalloc(1, sizeof(*index));
    int64_t held = (int64_t)limits.max_pages * KV_PAGE_TOKENS;

    index->shape = *shape;
    index->max_tokens = held < shape->max_positions ? held : shape->max_positions;
    index->chosen =
        mem_zalloc((size_t)limits.max_rows * (size_t)shape->top_k, sizeof(*index->chosen));
    index->threads = threads;
    index->scratch = mem_zalloc((size_t)threads, sizeof(*index->scratch));
    for (int i = 0; i < threads; i++) {
        index->scratch[i].products =
            mem_zalloc((size_t)shape->heads * KV_PAGE_TOKENS, sizeof(float));
        index->scratch[i].scores = mem_zalloc((size_t)index->max_tokens, sizeof(float));
    }
    return index;
}

void cpu_index_free(struct cpu_index *index)
{
    if (!index)
        return;
    for (int i = 0; i < index->threads; i++) {
        free(index->scratch[i].products);
        free(index->scratch[i].scores);
    }
    free(index->scratch);
    free(index->chosen);
    free(index);
}

int32_t cpu_index_limit(const struct cpu_backend *cpu)
{
    return cpu->index ? cpu->index->shape.top_k : INT32_MAX;
}

const int32_t *cpu_index_chosen(const struct cpu_backend *cpu, int64_t row)
{
    return cpu->index->chosen + row * cpu->index->shape.top_k;
}

/* ---- the largest scores ---------------------------------------------------------------------- */

/* A whole number that orders as the score does. Adding 0 makes -0 equal to 0. */
static uint32_t rank_of(float score)
{
    uint32_t bits;

    score += 0.0f;
    memcpy(&bits, &score, sizeof(bits));
    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

/* The rank of the k-th largest of n scores, a byte at a time from the highest; *equal is how many
 * of that rank belong to the k. */
static uint32_t kth_rank(const float *scores, int64_t n, int64_t k, int64_t *equal)
{
    uint32_t prefix = 0, known = 0;

    for (int shift = 24; shift >= 0; shift -= 8) {
        int64_t count[256] = {0};
        int byte = 255;
        for (int64_t i = 0; i < n; i++) {
            uint32_t rank = rank_of(scores[i]);
            if ((rank & known) == prefix)
                count[rank >> shift & 255]++;
        }
        while (count[byte] < k)
            k -= count[byte--];
        prefix |= (uint32_t)byte << shift;
        known |= 255u << shift;
    }
    *equal = k;
    return prefix;
}

static void choose(int32_t *chosen, const float *scores, int64_t n, int64_t k)
{
    int64_t equal;
    uint32_t least = kth_rank(scores, n, k, &equal);

    for (int64_t i = 0; i < n; i++) {
        uint32_t rank = rank_of(scores[i]);
        if (rank > least || (rank == least && equal-- > 0))
            *chosen++ = (int32_t)i;
    }
}

/* ---- the operation --------------------------------------------------------------------------- */

struct job {
    struct cpu_backend *cpu;
    const struct index_layer *layer;
    const struct rope_config *rope;
    float *q;
    const float *k, *w;
};

/* Layer norm (Ba et al. 2016) over n values. */
static void layer_norm(float *out, const float *x, const float *weight, const float *bias,
                       int64_t n)
{
    float mean = 0;

    for (int64_t i = 0; i < n; i++)
        mean += x[i];
    mean /= (float)n;
    for (int64_t i = 0; i < n; i++)
        out[i] = x[i] - mean;
    float inverse = 1.0f / sqrtf(cpu_sum_squares(out, n) / (float)n + KEY_NORM_EPS);
    for (int64_t i = 0; i < n; i++)
        out[i] = out[i] * inverse * weight[i] + bias[i];
}

static void write_rows(void *context, int64_t first, int64_t end, int thread)
{
    const struct job *job = context;
    const struct index_shape *shape = &job->layer->shape;

    (void)thread;
    for (int64_t r = first; r < end; r++) {
        float *key = cpu_cache_slot(job->cpu, &job->layer->key_cache, r);
        layer_norm(key, job->k + r * shape->dim, cpu_f32(&job->layer->norm),
                   cpu_f32(&job->layer->norm_bias), shape->dim);
        cpu_rope_rotate(job->cpu, key, job->rope, r);
        for (int32_t h = 0; h < shape->heads; h++)
            cpu_rope_rotate(job->cpu, job->q + (r * shape->heads + h) * shape->dim, job->rope, r);
    }
}

/* scores[t] for all tokens that the row sees. */
static void score_row(const struct job *job, struct scratch *s, int64_t row, int64_t seen)
{
    const struct index_shape *shape = &job->layer->shape;
    const struct batch *batch = job->cpu->batch;
    const struct batch_seq *seq = &batch_seqs(batch)[job->cpu->row_seq[row]];
    const int32_t *pages = batch_pages(batch) + seq->first_page;
    const float *keys = cpu_f32(&job->layer->key_cache);
    size_t dim = (size_t)shape->dim;

    memset(s->scores, 0, (size_t)seen * sizeof(float));
    for (int64_t start = 0; start < seen; start += KV_PAGE_TOKENS) {
        int64_t left = seen - start, n = left < KV_PAGE_TOKENS ? left : KV_PAGE_TOKENS;
        const float *page = keys + (size_t)pages[start / KV_PAGE_TOKENS] * KV_PAGE_TOKENS * dim;
        cpu_dots(&(struct cpu_dots){.out = s->products,
                                    .out_stride = KV_PAGE_TOKENS,
                                    .x = job->q + (size_t)(row * shape->heads) * dim,
                                    .x_stride = dim,
                                    .w = {page, DTYPE_F32, dim},
                                    .rows = shape->heads,
                                    .outs = n,
                                    .k = shape->dim});
        for (int32_t h = 0; h < shape->heads; h++) {
            const float *product = s->products + h * KV_PAGE_TOKENS;
            float weight = job->w[row * shape->heads + h];
            for (int64_t t = 0; t < n; t++)
                s->scores[start + t] += weight * (product[t] > 0 ? product[t] : 0);
        }
    }
}

static void choose_rows(void *context, int64_t first, int64_t end, int thread)
{
    const struct job *job = context;
    struct cpu_index *index = job->cpu->index;

    for (int64_t i = first; i < end; i++) {
        int32_t row = job->cpu->absorbed_rows[i];
        int64_t seen = batch_positions(job->cpu->batch)[row] + 1, top_k = index->shape.top_k;
        if (seen <= top_k)
            continue;
        ASSERT(seen <= index->max_tokens);
        score_row(job, &index->scratch[thread], row, seen);
        choose(index->chosen + row * top_k, index->scratch[thread].scores, seen, top_k);
    }
}

void cpu_index_tokens(struct backend *be, struct tensor q, struct tensor k, struct tensor w,
                      const struct index_layer *layer, const struct rope_config *rope)
{
    struct cpu_backend *cpu = cpu_backend(be);
    const struct index_shape *shape = &layer->shape;
    int64_t rows = cpu->batch->n_rows, width = shape->heads * shape->dim, seen = 0;
    struct job job = {cpu, layer, rope, cpu_f32_out(&q), cpu_f32(&k), cpu_f32(&w)};

    ASSERT(cpu->index && cpu->index->shape.top_k == shape->top_k && rope->dim <= shape->dim);
    ASSERT(q.shape[0] == rows && cpu_last_dim(&q) == width && cpu_last_dim(&k) == shape->dim);
    ASSERT(cpu_last_dim(&w) == shape->heads && cpu_last_dim(&layer->key_cache) == shape->dim);
    cpu_rope_prepare(cpu, rope);
    cpu_parallel(cpu, 8 * rows * width, rows, 16, write_rows, &job);
    for (int64_t i = 0; i < cpu->n_absorbed; i++)
        seen += batch_positions(cpu->batch)[cpu->absorbed_rows[i]] + 1;
    cpu_parallel(cpu, seen * width, cpu->n_absorbed, 1, choose_rows, &job);
}
