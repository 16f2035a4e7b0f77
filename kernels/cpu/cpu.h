/* Inside the reference backend: its state, and what its operations share.
 *
 * The promise it keeps: the bits of a row's result depend on that row alone - not on the rest of
 * the batch, on how a prompt was cut into chunks, on the number of threads, or on the processor's
 * vector width. So every sum has one order, whatever shape the work comes in: cpu_dots() sums in
 * eight lanes over k, cpu_weighted_sum() runs down its terms, attention walks a sequence's pages
 * from the first. Tiles and threads only choose which results are computed when.
 *
 * Activations and the KV cache are F32. Weights are F32 or BF16 (see memory.c). */
#pragma once

#include "kernels/backend.h"

#include <stddef.h>
#include <stdint.h>

/* A product and a sum never become one fused operation: which ones a compiler fuses depends on the
 * code around them, and then equal sums of two differently shaped loops would differ in bits. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif

/* CPU_CLONES: a hot function compiled for several x86 levels and chosen when the program starts.
 * Not where the mechanism (ifunc) is missing or runs before the sanitizer is set up. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) &&       \
    !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define CPU_CLONES __attribute__((target_clones("default", "arch=x86-64-v3")))
#else
#define CPU_CLONES
#endif

#define CPU_INLINE static inline __attribute__((always_inline))

enum {
    CPU_LANES = 8,
    CPU_MAX_THREADS = 256,
    CPU_MAX_EXPERTS = 1024,
    CPU_PARALLEL_WORK = 1 << 18, /* multiply-adds that pay for sharing them out */

    CPU_PREFILL_ROWS = 64, /* query rows whose scores are held at a time */
    CPU_DECODE_ROWS = 4,   /* rows and heads of one decode task, */
    CPU_DECODE_HEADS = 4,  /* which share weights and cached tokens */
    CPU_MOE_ROWS = 256,    /* rows sent through the experts at a time */
};

/* Eight floats; the compiler maps them to whatever registers there are. They are passed by address:
 * how a vector travels in registers differs between processors. */
typedef float cpu_v8 __attribute__((vector_size(32)));
typedef float cpu_v8_unaligned __attribute__((vector_size(32), aligned(4), may_alias));

/* One thread's working memory for attention, taken by reserve (backend.c gives the sizes). */
struct cpu_scratch {
    float *block;      /* the memory the others point into */
    float *keys;       /* (KV_PAGE_TOKENS, nope + rope) of one head, expanded */
    float *values;     /* (KV_PAGE_TOKENS, v) */
    float *scores;     /* (CPU_PREFILL_ROWS or CPU_DECODE_HEADS, KV_PAGE_TOKENS) */
    float *row_max;    /* (max_rows) */
    float *row_sum;    /* (max_rows) */
    float *nope;       /* (CPU_DECODE_ROWS, nope) */
    float *query;      /* (CPU_DECODE_ROWS, CPU_DECODE_HEADS, lora + rope): absorbed queries */
    float *latent_out; /* (CPU_DECODE_ROWS, CPU_DECODE_HEADS, lora) */
    float *head_out;   /* (CPU_DECODE_ROWS, v) */
    float *tokens;     /* (KV_PAGE_TOKENS, lora + rope) chosen ones; without an indexer none */
};

struct cpu_threads; /* threads.c */
struct cpu_sampler; /* sample.c: the sampler state of all slots */
struct cpu_moe;     /* moe.c: working memory for the experts */
struct cpu_index;   /* indexer.c: the tokens that rows attend to */

struct cpu_backend {
    struct backend base;
    int n_threads;
    struct cpu_threads *threads;
    struct batch_limits limits;
    const struct batch *batch; /* the current step's */
    int n_steps;               /* begun and not yet finished */

    /* Of the current step, made by begin. */
    int32_t *row_seq;       /* (max_rows) which sequence a row belongs to */
    int32_t *absorbed_rows; /* rows that mla_decode answers for, in order */
    int32_t n_absorbed;

    /* cos and sin of the step's positions, (max_rows, ROPE_MAX_DIM / 2): rope.c fills them once a
     * step, for `rope`. */
    float *cos, *sin;
    struct rope_config rope;
    int rope_ready;

    struct cpu_scratch *scratch; /* (n_threads); NULL before reserve */
    struct cpu_moe *moe;         /* NULL without experts */
    struct cpu_index *index;     /* NULL without an indexer */
    struct cpu_sampler *sampler;
};

static inline struct cpu_backend *cpu_backend(struct backend *be)
{
    return (struct cpu_backend *)be;
}

static inline const float *cpu_f32(const struct tensor *t)
{
    ASSERT(t->dtype == DTYPE_F32);
    return t->data;
}

static inline float *cpu_f32_out(const struct tensor *t)
{
    ASSERT(t->dtype == DTYPE_F32);
    return t->data;
}

static inline int64_t cpu_last_dim(const struct tensor *t)
{
    return t->shape[t->rank - 1];
}

/* Rows of a weight, or of any matrix whose rows have one stride. */
struct cpu_rows {
    const void *data;
    enum dtype dtype; /* F32 or BF16 */
    size_t stride;    /* in elements */
};

/* The rows of a weight from its row `first` on; all dimensions but the last count as rows. */
static inline struct cpu_rows cpu_weight_rows(const struct tensor *w, int64_t first)
{
    size_t stride = (size_t)cpu_last_dim(w);

    ASSERT(w->dtype == DTYPE_F32 || w->dtype == DTYPE_BF16);
    return (struct cpu_rows){.data = (const char *)w->data +
                                     (size_t)first * stride * dtype_size(w->dtype),
                             .dtype = w->dtype,
                             .stride = stride};
}

/* Address of row `row` from a row on: the same matrix with the first rows left out. */
static inline struct cpu_rows cpu_rows_from(struct cpu_rows w, int64_t row)
{
    w.data = (const char *)w.data + (size_t)row * w.stride * dtype_size(w.dtype);
    return w;
}

/* --- threads.c --- */

/* Called for the indices first .. end - 1, on thread `thread` (below n_threads; one call at a time
 * on each). */
typedef void (*cpu_range_fn)(void *context, int64_t first, int64_t end, int thread);

/* Runs `run` over 0 .. n - 1 in ranges of `grain` indices, on several threads if `work`, the
 * multiply-adds of all of it, is worth it. Returns when all is done. Ranges must not depend on each
 * other; a single range may also be all of 0 .. n - 1. */
void cpu_parallel(struct cpu_backend *cpu, int64_t work, int64_t n, int64_t grain, cpu_range_fn run,
                  void *context);

struct cpu_threads *cpu_threads_new(int count); /* `count` with the caller's own */
void cpu_threads_free(struct cpu_threads *threads);

/* --- dots.c: the loops that everything else is made of. One thread each. --- */

/* out[r][o] = sum over i < k of x[r][i] * w[o][i], for `rows` rows of x and `outs` rows of w. */
struct cpu_dots {
    float *out;
    size_t out_stride;
    const float *x;
    size_t x_stride;
    const int32_t *x_index; /* row r of x is x_index[r]; NULL: r itself */
    struct cpu_rows w;
    int64_t rows, outs, k;
};
void cpu_dots(const struct cpu_dots *job);

/* out[r][i] += sum over j < terms of coef[r][j] * v[j][i], for i < n, in the order of j. */
struct cpu_weighted_sum {
    float *out;
    size_t out_stride;
    const float *coef;
    size_t coef_stride;
    struct cpu_rows v;
    int64_t rows, terms, n;
};
void cpu_weighted_sum(const struct cpu_weighted_sum *job);

/* Sum of squares of x (n), in lanes like cpu_dots. */
float cpu_sum_squares(const float *x, int64_t n);

/* x[i] *= factor. */
void cpu_scale(float *x, float factor, int64_t n);

/* --- softmax.c --- */

/* One block of a softmax that runs over blocks. `scores` (n of them, n <= KV_PAGE_TOKENS, with room
 * up to a multiple of CPU_LANES) become exp(scale * score - max); `max` and `sum` are brought up to
 * date. Returns the factor that earlier blocks' results must take. */
float cpu_softmax_block(float *scores, int64_t n, float scale, float *max, float *sum);

/* gate[i] = silu(gate[i]) * up[i]. */
void cpu_swiglu_row(float *gate, const float *up, int64_t n);

/* --- rmsnorm.c --- */

/* out = x / rms(x) * weight, over n values. */
void cpu_rmsnorm_row(float *out, const float *x, const float *weight, float eps, int64_t n);

/* --- The operations: backend.h says what they compute. --- */

int cpu_alloc(struct backend *be, struct tensor *dst, enum dtype dtype, int rank,
              const int64_t *shape, struct error *err);
int cpu_alloc_weight(struct backend *be, struct tensor *dst, enum weight_use use,
                     enum dtype file_dtype, int rank, const int64_t *shape, struct error *err);
int cpu_upload(struct backend *be, struct tensor *dst, int64_t first, const struct tensor *host,
               struct error *err);
int cpu_fill_random(struct backend *be, struct tensor *dst, uint64_t seed, float scale,
                    struct error *err);
void cpu_memory(struct backend *be, size_t *free_bytes, size_t *total_bytes);
void *cpu_stage_alloc(struct backend *be, size_t bytes);
void cpu_stage_free(struct backend *be, void *stage);
void cpu_download(struct backend *be, void *host, const struct tensor *src);
void cpu_release(struct backend *be, struct tensor *t);

void cpu_embed(struct backend *be, struct tensor out, struct tensor table, float scale);
void cpu_rmsnorm(struct backend *be, struct tensor out, struct tensor x, struct tensor weight,
                 float eps);
void cpu_linear(struct backend *be, struct tensor x, const struct linear_part *parts, int n_parts);
void cpu_gated(struct backend *be, struct tensor out, struct tensor x, struct tensor gate,
               struct tensor up);
void cpu_rope_kv_write(struct backend *be, struct tensor q, struct tensor kv,
                       const struct mla_layer *layer, struct tensor norm, float eps,
                       const struct rope_config *rope);
void cpu_index_tokens(struct backend *be, struct tensor q, struct tensor k, struct tensor w,
                      const struct index_layer *layer, const struct rope_config *rope);
void cpu_mla_prefill(struct backend *be, struct tensor out, struct tensor q,
                     const struct mla_layer *layer);
void cpu_mla_decode(struct backend *be, struct tensor out, struct tensor q,
                    const struct mla_layer *layer);
void cpu_route(struct backend *be, struct tensor ids, struct tensor weights, struct tensor logits,
               struct tensor bias, const struct router_config *config);
void cpu_scale_by_position(struct backend *be, struct tensor x, float beta, int32_t every);
void cpu_identity_experts(struct backend *be, struct tensor out, struct tensor x, struct tensor ids,
                          struct tensor weights, int32_t experts);
void cpu_moe(struct backend *be, struct tensor out, struct tensor residual, struct tensor x,
             struct tensor ids, struct tensor weights, const struct moe_weights *experts,
             const struct ffn_weights *shared);
void cpu_add(struct backend *be, struct tensor sum, struct tensor x);
void cpu_concat(struct backend *be, struct tensor out, struct tensor a, struct tensor b);
void cpu_gather_logit_rows(struct backend *be, struct tensor out, struct tensor x);

void cpu_sampler_open(struct backend *be, int32_t slot, const struct sampling_params *params,
                      const int32_t *prompt, int32_t n_prompt);
void cpu_sampler_close(struct backend *be, int32_t slot);
void cpu_sample(struct backend *be, struct tensor logits, const uint32_t *masks,
                struct sampling_result *results);

/* The token that was last drawn for a slot. */
int32_t cpu_last_token(const struct cpu_backend *cpu, int32_t slot);

/* --- rope.c: for the indexer's queries and keys --- */

/* Makes cos and sin of the step's rows (struct cpu_backend) those of `rope`. */
void cpu_rope_prepare(struct cpu_backend *cpu, const struct rope_config *rope);
/* Rotates rope->dim values by the angles of a batch row. */
void cpu_rope_rotate(const struct cpu_backend *cpu, float *x, const struct rope_config *rope,
                     int64_t row);
/* Where a paged cache (pages, KV_PAGE_TOKENS, width) keeps the token of a batch row. */
float *cpu_cache_slot(const struct cpu_backend *cpu, const struct tensor *cache, int64_t row);

/* --- indexer.c --- */

/* From which position on rows attend to chosen tokens, INT32_MAX without an indexer; and how many
 * of them, in order of position. */
int32_t cpu_index_limit(const struct cpu_backend *cpu);
const int32_t *cpu_index_chosen(const struct cpu_backend *cpu, int64_t row);

/* Working memory of indexer.c, moe.c and sample.c; the free functions accept NULL. */
struct cpu_index *cpu_index_new(const struct index_shape *shape, struct batch_limits limits,
                                int threads);
void cpu_index_free(struct cpu_index *index);
struct cpu_moe *cpu_moe_new(const struct backend_shapes *shapes);
void cpu_moe_free(struct cpu_moe *moe);
struct cpu_sampler *cpu_sampler_new(int32_t slots, int32_t vocab_size, int threads);
void cpu_sampler_free(struct cpu_sampler *sampler);
