/* The families of models: what a model_type means for the layers, and for config.json where a key
 * is absent or has another name. Adding a family is adding a row, and at most a graph. */
#pragma once

#include "kernels/backend.h"
#include "model/keys.h"

#include <stdbool.h>
#include <stdint.h>

/* A graph of layers, and what config.json means for it where a key is absent. */
struct graph {
    enum router_scoring scoring;
    const char *scoring_func[2];
    const char *topk_methods[3]; /* the first is the default */
    bool router_bias;            /* has e_score_correction_bias */
    bool reads_norm_topk_prob;   /* or else weights are never normalised */
    bool one_group;              /* experts in groups are not supported */
    bool reads_rope_interleave;  /* or else pairs are always interleaved, but */
    bool rope_half_split;        /* never */
    bool reads_mlp_layer_types;  /* which, where they are there, say what layers are MoE */
    bool tie_embeddings;
    bool q_lora_optional;     /* an absent q_lora_rank means none */
    bool v_head_dim_optional; /* then it is hidden_size / num_attention_heads */
    int32_t max_positions;    /* max_position_embeddings when absent; 0: it must be there */
    bool has_indexer;
    bool indexer_interleave;       /* the indexer's rope, unless the file says so */
    const char *const *rope_types; /* NULL: default and yarn */
    bool needs_rope_scaling;       /* as its makers' code has a default for it */
    bool rope_is_part_of_head;     /* partial_rotary_factor says which, instead of 1 */
    /* YaRN leaves the softmax scale alone, whatever mscale_all_dim says. */
    bool yarn_keeps_softmax_scale;
    bool reads_mup;            /* scale_emb, scale_depth, dim_model_base (MiniCPM) */
    bool scales_lora;          /* q and latent times sqrt(hidden_size / rank) (LongCat-Flash) */
    bool shortcut_moe;         /* see struct model_config */
    bool moe_post_norm;        /* see struct model_config */
    int32_t mtp_layers;        /* num_nextn_predict_layers when absent */
    int32_t experts_per_group; /* of groups when n_group is absent; 0: n_group says */
    int32_t first_k_dense_replace, n_shared_experts, n_group, topk_group;
    double routed_scaling_factor;
    const struct key_name *names; /* of keys that have another name here; NULL: none */
};

struct family {
    const char *model_type;
    const char *architecture;
    const struct graph *graph;
};

/* The family that the file names, or NULL and a message. */
const struct family *family_find(const struct keys *keys);

/* Where a model with images or sound keeps the keys of its text model: "text_config". NULL: this is
 * none of those, all keys are at the top. */
const struct json *family_text_config(const struct keys *keys);

/* Mistral's own params.json names no family: there is one. */
extern const struct family family_mistral_params;
