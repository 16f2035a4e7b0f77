/* The weights of a model, bound to a backend: names of a checkpoint to tensors of known shape. */
#pragma once

#include "base/error.h"
#include "kernels/backend.h"
#include "model/config.h"

#include <stdatomic.h>

/* Of a layer's indexer. */
struct indexer_weights {
    struct tensor q;         /* (heads * dim, q_lora_rank) wq_b */
    struct tensor k;         /* (dim, d) wk */
    struct tensor norm;      /* (dim) k_norm */
    struct tensor norm_bias; /* (dim) */
    struct tensor weights;   /* (heads, d) F32 weights_proj */
};

struct layer_weights {
    struct tensor input_norm;     /* (d) */
    struct tensor post_norm;      /* (d) post_attention_layernorm */
    struct tensor q;              /* (H * (nope + rope), d or q_lora_rank): q_proj or q_b_proj */
    struct tensor q_a;            /* (q_lora_rank, d); data NULL without q_lora */
    struct tensor q_a_bias;       /* (q_lora_rank) or none */
    struct tensor q_a_norm;       /* (q_lora_rank) or none */
    struct tensor kv_a;           /* (kv_lora_rank + rope, d) kv_a_proj_with_mqa */
    struct tensor kv_a_bias;      /* (kv_lora_rank + rope) or none */
    struct tensor kv_a_norm;      /* (kv_lora_rank) */
    struct tensor kv_b;           /* (H * (nope + v), kv_lora_rank) */
    struct tensor o;              /* (d, H * v) */
    struct tensor o_bias;         /* (d) or none */
    struct tensor router;         /* (experts, d) F32; none in dense layers */
    struct tensor router_bias;    /* (experts) F32 or none */
    struct moe_weights experts;   /* none in dense layers */
    struct tensor moe_norm;       /* (d) post_mlp_layernorm or none */
    struct indexer_weights index; /* none in layers without an indexer */
    /* The dense FFN, or the shared experts of a MoE layer (none when it has none). */
    struct tensor gate, up, down; /* (i, d), (i, d), (d, i) */
};

/* What a layer of multi-token prediction has beside those. */
struct mtp_weights {
    struct tensor embed_norm;  /* (d) enorm */
    struct tensor hidden_norm; /* (d) hnorm */
    struct tensor join;        /* (d, 2 d) eh_proj: of an embedding, then of a hidden state */
    struct tensor final_norm;  /* (d) shared_head.norm */
    struct tensor embed;       /* (V, d); this and the next are the model's own memory when they */
    struct tensor lm_head;     /* (V, d); are not stored, or are the same again */
};

struct model_weights {
    struct tensor embed;          /* (V, d) */
    struct tensor final_norm;     /* (d) */
    struct tensor lm_head;        /* (V, d); the same memory as `embed` when tied and not stored */
    struct layer_weights *layers; /* (layers + mtp_layers) */
    struct mtp_weights *mtp;      /* (mtp_layers) */
};

/* Reads every tensor the config asks for from the checkpoint folder, checks shapes, dequantises
 * FP8 and INT4, and uploads to the backend. Returns 0; on error nothing stays allocated and the
 * message names file and tensor. `*cancel`, read all the time, ends the load early with an error
 * (a termination signal during the load); NULL: never.
 *
 * Several threads read at once, each into a few MiB of memory of its own: host memory doesn't grow
 * with the model. */
int weights_load(struct model_weights *weights, const struct model_config *config, const char *dir,
                 struct backend *be, const atomic_int *cancel, struct error *err);

/* The same without a checkpoint: random weights at the shapes of the config, always the same ones,
 * of a size that keeps activations in range. */
int weights_random(struct model_weights *weights, const struct model_config *config,
                   struct backend *be, const atomic_int *cancel, struct error *err);

/* How many of the layers of multi-token prediction that the config declares have tensors in the
 * folder, any at all, counted up to the last that has. */
int weights_count_mtp(const struct model_config *config, const char *dir, int32_t *count,
                      struct error *err);

void weights_free(struct model_weights *weights, const struct model_config *config,
                  struct backend *be);

/* Bytes the weights take where matrices take `matrix_bytes` an element, but for those that `be`
 * keeps as FP8 or INT4 (NULL: none). */
uint64_t weights_bytes(const struct model_config *config, size_t matrix_bytes,
                       const struct backend *be);
