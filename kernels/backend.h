/* The operations of a transformer step, as a vtable: what the forward pass calls and a processor
 * implements. cpu/ is the readable reference, cuda/ the fast one; both compute the same functions.
 *
 * Shapes: T rows (query tokens) of the batch, R rows that want logits, d hidden_size, H heads,
 * V vocabulary. Activations have `activation_dtype`, router values and logits are F32. Operations
 * are queued in order on the backend's stream and never fail by themselves: a device fault shows
 * in `finish`. No operation allocates; what it needs was taken by `open` and `reserve`. */
#pragma once

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
    struct tensor kv_cache; /* (pages, KV_PAGE_TOKENS, kv_lora_rank + rope_dim) of kv_dtype:
                               the normalised latent, then the rotated rope key */
};

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
};

/* Experts' weights of one layer. */
struct moe_weights {
    struct tensor gate; /* (experts, i, d) */
    struct tensor up;   /* (experts, i, d) */
    struct tensor down; /* (experts, d, i) */
};

struct backend;

struct backend_options {
    int32_t threads; /* CPU: 0 for one per core */
    int32_t slots;   /* sampler states, see sampler_open */
    int32_t vocab_size;
    struct batch_limits limits;
    enum dtype kv_dtype; /* of the KV cache; the CPU backend has F32 */
};

struct backend_ops {
    const char *name; /* "cpu", "cuda" */
    void (*close)(struct backend *be);

    /* Memory. Weights are uploaded from host tensors of any float dtype; the backend may store them
     * in another dtype of its own: it allocates `dst`. The host tensor can be freed afterwards. */
    int (*alloc)(struct backend *be, struct tensor *dst, enum dtype dtype, int rank,
                 const int64_t *shape, struct error *err);
    int (*upload)(struct backend *be, struct tensor *dst, const struct tensor *host,
                  struct error *err);
    void (*download)(struct backend *be, void *host, const struct tensor *src);
    void (*release)(struct backend *be, struct tensor *t); /* frees; `t->data` becomes NULL */

    /* Sets aside working memory for models of this shape: called once before the first step. */
    int (*reserve)(struct backend *be, const struct mla_shape *mla, const struct router_config *moe,
                   int32_t moe_intermediate, struct error *err);

    /* A step: begin makes the batch current, finish waits for the results of all that was queued;
     * -1 and a message when the device failed. */
    void (*begin)(struct backend *be, const struct batch *batch);
    int (*finish)(struct backend *be, struct error *err);

    /* out (T, d) = rows of table (V, d) by the batch's tokens, times `scale`. */
    void (*embed)(struct backend *be, struct tensor out, struct tensor table, float scale);

    /* out = x / rms(x) * weight, over the last dimension; x (T, n), weight (n). */
    void (*rmsnorm)(struct backend *be, struct tensor out, struct tensor x, struct tensor weight,
                    float eps);

    /* x += y. */
    void (*add)(struct backend *be, struct tensor x, struct tensor y);

    /* out (T, n) = x (T, k) times weight (n, k) transposed, plus bias (n) unless bias.data is NULL.
     * `out` may be F32 where x is narrower (router, logits). */
    void (*linear)(struct backend *be, struct tensor out, struct tensor x, struct tensor weight,
                   struct tensor bias);

    /* Rotates the rope part of q (T, H * (nope + rope)) in place; normalises the latent of
     * kv (T, kv_lora_rank + rope) with norm (kv_lora_rank), rotates its rope part, and writes both
     * to the rows' places in the layer's cache. */
    void (*rope_kv_write)(struct backend *be, struct tensor q, struct tensor kv,
                          const struct mla_layer *layer, struct tensor norm, float eps,
                          const struct rope_config *rope);

    /* out (T, H * v_dim) = causal attention of q over the paged cache, for the rows of sequences
     * that are not absorbed (mla_prefill, expanded heads) or are (mla_decode, in latent space).
     * Together they write every row. */
    void (*mla_prefill)(struct backend *be, struct tensor out, struct tensor q,
                        const struct mla_layer *layer);
    void (*mla_decode)(struct backend *be, struct tensor out, struct tensor q,
                       const struct mla_layer *layer);

    /* ids (T, top_k) I32 and weights (T, top_k) F32 of the chosen experts from the router's
     * logits (T, experts) F32 and bias (experts) F32 (bias.data NULL: none). */
    void (*route)(struct backend *be, struct tensor ids, struct tensor weights,
                  struct tensor logits, struct tensor bias, const struct router_config *config);

    /* out (T, d) = sum over the chosen experts of weight * down(silu(gate x) * up x). */
    void (*moe)(struct backend *be, struct tensor out, struct tensor x, struct tensor ids,
                struct tensor weights, const struct moe_weights *experts);

    /* gate = silu(gate) * up, elementwise; (T, i). */
    void (*swiglu)(struct backend *be, struct tensor gate, struct tensor up);

    /* out (R, d) = the rows of x (T, d) that want logits. */
    void (*gather_logit_rows)(struct backend *be, struct tensor out, struct tensor x);

    /* Sampler state of a slot: parameters and token counts, kept from open to close. `prompt` is
     * counted for the repetition penalty; each token drawn for the slot is counted by `sample`. */
    void (*sampler_open)(struct backend *be, int32_t slot, const struct sampling_params *params,
                         const int32_t *prompt, int32_t n_prompt);
    void (*sampler_close)(struct backend *be, int32_t slot);

    /* results[i], on the host after finish, for logits row i (R, V) by the batch's logit rows: the
     * token drawn, or what the row says of its target (nothing is drawn or counted then).
     * `masks` (R, SAMPLING_MASK_WORDS(V)), or NULL: only tokens whose bit is set can be drawn. */
    void (*sample)(struct backend *be, struct tensor logits, const uint32_t *masks,
                   struct sampling_result *results);
};

/* What every backend's own struct begins with. */
struct backend {
    const struct backend_ops *ops;
    enum dtype activation_dtype;
    enum dtype kv_dtype;
};

/* The reference backend (kernels/cpu/). Closed with be->ops->close(be). */
struct backend *backend_cpu_open(const struct backend_options *options);
