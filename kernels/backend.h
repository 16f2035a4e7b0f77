/* The operations of a transformer step, as a vtable: what the forward pass calls and a processor
 * implements. cpu/ is the readable reference, cuda/ the fast one; both compute the same functions.
 *
 * Shapes: T rows (query tokens) of the batch, R rows that want logits, d hidden_size, H heads,
 * V vocabulary. Activations have `activation_dtype`, router values and logits are F32. Operations
 * are queued in order on the backend's stream and never fail by themselves: a device fault shows
 * in `finish`. No operation allocates; what it needs was taken by `open` and `reserve`. */
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

#include "base/error.h"
#include "kernels/batch.h"
#include "kernels/sampling.h"
#include "kernels/tensor.h"

enum { ROPE_MAX_DIM = 128 };

/* Rotary position embedding of `dim` values. Angle of pair i at position p: p * inv_freq[i]. */
struct rope_config {
    int32_t dim;        /* even, at most ROPE_MAX_DIM */
    int32_t half_split; /* 0: pairs (2i, 2i+1); 1: pairs (i, i + dim/2) */
    float magnitude;    /* factor on cos and sin (YaRN's mscale ratio; 1 otherwise) */
    float inv_freq[ROPE_MAX_DIM / 2];
};

/* Shape of a Multi-head Latent Attention layer (DeepSeek-V2, section 2.1). */
struct mla_shape {
    int32_t heads;        /* H */
    int32_t kv_lora_rank; /* width of the cached latent */
    int32_t nope_dim;     /* qk_nope_head_dim */
    int32_t rope_dim;     /* qk_rope_head_dim */
    int32_t v_dim;        /* v_head_dim */
    float softmax_scale;
};

/* What one layer's attention reads besides its queries. */
struct mla_layer {
    struct mla_shape shape;
    struct tensor kv_b;     /* (H * (nope_dim + v_dim), kv_lora_rank): per head W_UK, then W_UV */
    struct tensor kv_cache; /* (pages, KV_PAGE_TOKENS, kv_row_elements()) of kv_dtype: the
                               normalised latent, then the rotated rope key */
};

/* Elements of one token's row of the cache: its values, or for F8_E4M3, whose rows are bytes, those
 * of the layout MLA_KV_FP8 of mla.h. */
static inline int64_t kv_row_elements(const struct mla_shape *shape, enum dtype kv_dtype)
{
    if (kv_dtype == DTYPE_F8_E4M3)
        return shape->kv_lora_rank + shape->kv_lora_rank / 128 * 4 + shape->rope_dim * 2;
    return shape->kv_lora_rank + shape->rope_dim;
}

/* Shape of the indexer that chooses which tokens a row attends to (DeepSeek-V3.2, section 2.1).
 * Queries and keys have `dim` values, of which the first are rotated. */
struct index_shape {
    int32_t top_k; /* tokens that a row attends to at most; 0: there is no indexer */
    int32_t heads;
    int32_t dim;
    int32_t max_positions; /* of a sequence: so many scores a row can have */
};

/* One layer's indexer. */
struct index_layer {
    struct index_shape shape;
    struct tensor norm, norm_bias; /* (dim) of the keys' layer norm */
    struct tensor key_cache;       /* (pages, KV_PAGE_TOKENS, dim) of index_key_dtype(): keys,
                                      normalised and rotated, by the pages of the KV cache */
};

/* What the keys are kept as beside a KV cache of this type. */
static inline enum dtype index_key_dtype(enum dtype kv_dtype)
{
    return kv_dtype == DTYPE_F32 ? DTYPE_F32 : DTYPE_BF16;
}

enum router_scoring { ROUTER_SOFTMAX, ROUTER_SIGMOID };

/* How experts are chosen (config.json: scoring_func, topk_method, n_group, ...). */
struct router_config {
    enum router_scoring scoring;
    int32_t experts;
    int32_t top_k;
    int32_t groups;     /* 1: no group limit */
    int32_t top_groups; /* groups kept */
    int32_t normalize;  /* weights divided by their sum + 1e-20 */
    float scale;        /* routed_scaling_factor */
    int32_t identity;   /* more that can be chosen, after `experts`, and give their input back */
};

/* Experts' weights of one layer. */
struct moe_weights {
    struct tensor gate; /* (experts, i, d) */
    struct tensor up;   /* (experts, i, d) */
    struct tensor down; /* (experts, d, i) */
};

/* Those of a plain feed-forward block, or of the shared experts together. */
struct ffn_weights {
    struct tensor gate; /* (i, d) */
    struct tensor up;   /* (i, d) */
    struct tensor down; /* (d, i) */
};

/* One product of a linear operation: out (T, n) = x weight^T + bias + residual. */
struct linear_part {
    struct tensor out;      /* (T, n); may be F32 where x is narrower (router, logits) */
    struct tensor weight;   /* (n, k) */
    struct tensor bias;     /* (n); data NULL: none */
    struct tensor residual; /* (T, n), may be `out`; data NULL: none */
};

/* What working memory depends on. */
struct backend_shapes {
    int32_t hidden_size;
    struct mla_shape mla;
    struct router_config router; /* experts 0: none */
    int32_t moe_intermediate;    /* of one expert */
    int32_t shared_intermediate; /* of the shared experts together */
    struct index_shape index;    /* top_k 0: none */
    int32_t ue8m0;               /* FP8 activations have powers of two as scales (scale_fmt) */
};

struct backend;

struct backend_options {
    int32_t threads; /* CPU: 0 for one per core */
    int32_t device;  /* CUDA: which GPU */
    int32_t slots;   /* sampler states, see sampler_open */
    int32_t vocab_size;
    struct batch_limits limits;
    enum dtype kv_dtype;     /* of the KV cache. CPU: F32. CUDA: BF16 or F8_E4M3 */
    int32_t batch_invariant; /* CUDA: a row's bits don't depend on the batch, at some cost; the CPU
                                backend is always so */
};

/* What a weight is for. Matrices are kept as the backend multiplies them (CUDA: BF16, or F8_E4M3),
 * tables, which are not only operands of linear, gated and moe (embeddings, kv_b), likewise, but
 * never as FP8; the others (norms, biases, the router) as F32. */
enum weight_use { WEIGHT_MATRIX, WEIGHT_TABLE, WEIGHT_EXACT };

enum { BACKEND_MAX_STEPS = 2 }; /* begun and not yet finished */

struct backend_ops {
    const char *name; /* "cpu", "cuda" */
    void (*close)(struct backend *be);

    /* Memory: bytes of the device (of the host, on the CPU) that are free now, and all of them. */
    void (*memory)(struct backend *be, size_t *free_bytes, size_t *total_bytes);
    int (*alloc)(struct backend *be, struct tensor *dst, enum dtype dtype, int rank,
                 const int64_t *shape, struct error *err); /* zeroed */
    void (*download)(struct backend *be, void *host, const struct tensor *src);
    void (*release)(struct backend *be, struct tensor *t); /* frees; `t->data` becomes NULL */

    /* Weights. alloc_weight takes the memory for one that comes as `file_dtype` and sets its dtype
     * by its use. upload fills the elements from `first` on with those of a host tensor of any
     * float dtype; the host memory can be used again when it returns. Several threads may upload at
     * once; copies from stage_alloc's memory are fast (page-locked for CUDA). fill_random writes
     * normally distributed numbers with the deviation `scale`.
     *
     * F8_E4M3 and I4 are for backends that keep them (keeps_fp8, keeps_int4): then alloc_weight
     * takes memory for scales too, which are uploaded as a tensor of their own (F32, or BF16 for
     * I4), and the weight itself in whole rows. */
    int (*alloc_weight)(struct backend *be, struct tensor *dst, enum weight_use use,
                        enum dtype file_dtype, int rank, const int64_t *shape, struct error *err);
    int (*upload)(struct backend *be, struct tensor *dst, int64_t first, const struct tensor *host,
                  struct error *err);
    int (*fill_random)(struct backend *be, struct tensor *dst, uint64_t seed, float scale,
                       struct error *err);
    void *(*stage_alloc)(struct backend *be, size_t bytes); /* NULL: no memory */
    void (*stage_free)(struct backend *be, void *stage);

    /* Sets aside working memory for models of this shape: called once before the first step. */
    int (*reserve)(struct backend *be, const struct backend_shapes *shapes, struct error *err);

    /* A step: begin makes the batch current; the operations follow, and last `sample`. At most
     * BACKEND_MAX_STEPS steps may be begun and not finished. finish waits for the oldest of them,
     * whose results are on the host then; -1 and a message when the device failed, after which it
     * fails always. The batch may be changed once sample has returned.
     *
     * begin returns 1 when it has queued all operations before `sample` itself, as a graph recorded
     * before: the caller leaves them out. Logits are where the recorded operations put them. Of a
     * batch with `draft` there are no graphs.
     *
     * A token -1 in the batch stands for the one that the step before drew for the row's slot. */
    int (*begin)(struct backend *be, const struct batch *batch);
    int (*finish)(struct backend *be, struct error *err);

    /* Recording of decode steps, once after reserve: for graph = 0, 1, ... the caller calls
     * capture_begin, which returns a number of rows, then the operations of a step of so many
     * generated tokens (one row and one logits row a sequence, all of them absorbed) without begin,
     * and sample without masks and results, then capture_end. 0 rows: there are no more graphs. */
    int32_t (*capture_begin)(struct backend *be, int32_t graph);
    int (*capture_end)(struct backend *be, struct error *err);

    /* out (T, d) = rows of table (V, d) by the batch's tokens, times `scale`. */
    void (*embed)(struct backend *be, struct tensor out, struct tensor table, float scale);

    /* out = x / rms(x) * weight, over the last dimension; x (T, n), weight (n). `out` may be x. */
    void (*rmsnorm)(struct backend *be, struct tensor out, struct tensor x, struct tensor weight,
                    float eps);

    /* The products of x (T, k) with one to three weights. */
    void (*linear)(struct backend *be, struct tensor x, const struct linear_part *parts,
                   int n_parts);

    /* out (T, i) = silu(x gate^T) * (x up^T), elementwise; gate and up (i, k). */
    void (*gated)(struct backend *be, struct tensor out, struct tensor x, struct tensor gate,
                  struct tensor up);

    /* Rotates the rope part of q (T, H * (nope + rope)) in place; normalises the latent of
     * kv (T, kv_lora_rank + rope) with norm (kv_lora_rank), rotates its rope part, and writes both
     * to the rows' places in the layer's cache. */
    void (*rope_kv_write)(struct backend *be, struct tensor q, struct tensor kv,
                          const struct mla_layer *layer, struct tensor norm, float eps,
                          const struct rope_config *rope);

    /* Writes k (T, dim) to the rows' places in the layer's key cache: its layer norm, of which the
     * first rope->dim values are rotated. Rotates those of each head of q (T, heads * dim) in
     * place. Chooses for each row at a position from top_k on the top_k tokens, of those it sees,
     * with the largest sum over heads of w relu(q . key), w (T, heads) F32; of equal ones the
     * earlier. */
    void (*index_tokens)(struct backend *be, struct tensor q, struct tensor k, struct tensor w,
                         const struct index_layer *layer, const struct rope_config *rope);

    /* out (T, H * v_dim) = causal attention of q over the paged cache, for the rows of sequences
     * that are not absorbed (mla_prefill, expanded heads) or are (mla_decode, in latent space).
     * Together they write every row.
     *
     * Where the model has an indexer, rows from position top_k on attend to the tokens that the
     * last index_tokens chose for them; all of those are mla_decode's. */
    void (*mla_prefill)(struct backend *be, struct tensor out, struct tensor q,
                        const struct mla_layer *layer);
    void (*mla_decode)(struct backend *be, struct tensor out, struct tensor q,
                       const struct mla_layer *layer);

    /* x (T, n) *= 1 + beta ln(1 + floor(position / every)). */
    void (*scale_by_position)(struct backend *be, struct tensor x, float beta, int32_t every);

    /* ids (T, top_k) I32 and weights (T, top_k) F32 of the chosen experts from the router's
     * logits (T, experts + identity) F32 and bias (experts + identity) F32 (bias.data NULL: none).
     */
    void (*route)(struct backend *be, struct tensor ids, struct tensor weights,
                  struct tensor logits, struct tensor bias, const struct router_config *config);

    /* out (T, d) += x times the sum of its row's weights of identity experts, which are those whose
     * ids are `experts` or more. Their ids become -1. */
    void (*identity_experts)(struct backend *be, struct tensor out, struct tensor x,
                             struct tensor ids, struct tensor weights, int32_t experts);

    /* out (T, d) = residual + sum over the chosen experts of weight * down(silu(gate x) * up x),
     * and the same of the shared experts, whose intermediate size is a multiple of one expert's
     * (NULL: none). The id -1 is no expert; `residual` may be `out`; data NULL: none. */
    void (*moe)(struct backend *be, struct tensor out, struct tensor residual, struct tensor x,
                struct tensor ids, struct tensor weights, const struct moe_weights *experts,
                const struct ffn_weights *shared);

    /* sum (T, n) += x. */
    void (*add)(struct backend *be, struct tensor sum, struct tensor x);

    /* out (T, m + n) = the rows of a (T, m), each before that of b (T, n). */
    void (*concat)(struct backend *be, struct tensor out, struct tensor a, struct tensor b);

    /* out (R, d) = the rows of x (T, d) that want logits. */
    void (*gather_logit_rows)(struct backend *be, struct tensor out, struct tensor x);

    /* Sampler state of a slot: parameters and token counts, kept from open to close. `prompt` is
     * counted for the repetition penalty; each token drawn for the slot is counted by `sample`. */
    void (*sampler_open)(struct backend *be, int32_t slot, const struct sampling_params *params,
                         const int32_t *prompt, int32_t n_prompt);
    void (*sampler_close)(struct backend *be, int32_t slot);

    /* results[i], on the host after finish, for logits row i (R, V) by the batch's logit rows: the
     * token drawn, or what the row says of its target (nothing is drawn or counted then).
     * `masks` (R, SAMPLING_MASK_WORDS(V)), or NULL: only tokens whose bit is set can be drawn; its
     * memory can be used again when sample returns, that of the results after finish. */
    void (*sample)(struct backend *be, struct tensor logits, const uint32_t *masks,
                   struct sampling_result *results);
};

/* What every backend's own struct begins with. */
struct backend {
    const struct backend_ops *ops;
    enum dtype activation_dtype;
    enum dtype kv_dtype;

    /* Takes F8_E4M3 matrices in 128 x 128 blocks, of a multiple of 8 rows and 128 columns; those of
     * one call of gated or moe all, or none of them. */
    int32_t keeps_fp8;

    /* Takes I4 experts, all of a layer, of a multiple of 8 rows and of 128 columns; the shared ones
     * beside them are BF16. */
    int32_t keeps_int4;
};

/* alloc_weight and upload of a whole tensor. */
int backend_upload(struct backend *be, struct tensor *dst, enum weight_use use,
                   const struct tensor *host, struct error *err);

/* The reference backend (kernels/cpu/). Closed with be->ops->close(be). */
struct backend *backend_cpu_open(const struct backend_options *options);

/* The backend for NVIDIA Hopper GPUs (kernels/cuda/), in builds that have it (MLAD_CUDA). */
int backend_cuda_devices(void); /* GPUs it can run on; 0 without a driver, -1: it is too old */
struct backend *backend_cuda_open(const struct backend_options *options, struct error *err);

/* What a GPU can do at best: for comparison. */
struct backend_speed {
    char name[64];
    double bytes_per_s; /* of its memory, read: measured by the call */
    double flops_per_s; /* in bf16, by the data sheet */
};

int backend_cuda_speed(int32_t device, struct backend_speed *speed, struct error *err);

#ifdef __cplusplus
}
#endif
