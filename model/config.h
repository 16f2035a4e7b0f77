/* A checkpoint's config.json as a checked, plain struct. Nothing downstream reads JSON again: every
 * value here is in range, and families differ by data, not by name. */
#pragma once

#include "base/error.h"
#include "kernels/backend.h"

#include <stdbool.h>
#include <stdint.h>

enum { MODEL_MAX_LAYERS = 256, MODEL_MAX_EOS = 16 };

/* FP8 with a scale for each block or each matrix; whole numbers of four bits with one a group. */
enum quantization { QUANT_NONE, QUANT_FP8_BLOCK, QUANT_FP8_TENSOR, QUANT_INT4 };

struct model_config {
    char model_type[32]; /* as config.json says it: "deepseek_v3", "kimi_k2" */
    int32_t vocab_size;
    int32_t hidden_size;
    int32_t layers;
    int32_t dense_intermediate;  /* intermediate_size */
    int32_t moe_intermediate;    /* moe_intermediate_size, of one expert */
    int32_t shared_intermediate; /* n_shared_experts * moe_intermediate_size; 0: none */
    int32_t q_lora_rank;         /* 0: q_proj directly from the hidden state */
    int32_t max_positions;       /* max_position_embeddings */
    float rms_norm_eps;
    float lora_norm_eps; /* of q_a_layernorm and kv_a_layernorm: 1e-6 in transformers */
    bool tie_embeddings;
    bool attention_bias;
    bool router_bias; /* e_score_correction_bias */
    struct mla_shape mla;
    struct rope_config rope;
    struct router_config router;   /* router.experts 0: no MoE layers */
    bool is_moe[MODEL_MAX_LAYERS]; /* which layers, also of those of multi-token prediction */
    /* Layers of multi-token prediction: after the `layers`, numbered on. */
    int32_t mtp_declared; /* that the file says there are */
    int32_t mtp_layers;   /* that are loaded: none, but see model_want_mtp */
    /* Layers come in pairs, all have a dense FFN, and the second's experts take the first FFN's
     * input (LongCat-Flash). */
    bool shortcut_moe;
    bool moe_post_norm; /* a norm on what experts and shared experts give (A.X-K1) */
    float embed_scale;  /* on embeddings */
    struct {
        float q, kv, final; /* on the weights of q_a_layernorm, kv_a_layernorm and the last norm */
    } norm_scale;
    struct {
        float beta; /* queries times 1 + beta ln(1 + floor(position / every)); 0: none */
        int32_t every;
    } query_scale;
    struct index_shape index; /* index.top_k 0: rows attend to all tokens */
    struct rope_config index_rope;
    /* Layers that choose tokens with an indexer of their own; the others take those of the last
     * layer before that has one. */
    bool has_indexer[MODEL_MAX_LAYERS];
    enum quantization quantization;
    int32_t quant_block[2]; /* rows, columns that share a scale; 0: all of a matrix */
    bool quant_compressed;  /* tensors are called what compressed-tensors calls them */
    /* Which matrices are quantized, by the file. Where there is a checkpoint, its tensors say. */
    struct {
        bool attention, dense, experts, shared, head;
    } quantized;
    bool quant_ue8m0; /* scale_fmt: scales, those of activations too, are powers of two */

    /* Tokens that end a generation: the union of config.json and generation_config.json, and what
     * the tokenizer's own files name, see model_config_add_eos. */
    int32_t eos[MODEL_MAX_EOS];
    int32_t n_eos;
    int32_t bos; /* -1: none */

    /* generation_config.json: what a request gets when it is silent. */
    float default_temperature;        /* 1 when the file says nothing; 0 with do_sample false */
    float default_top_p;              /* 1 */
    float default_min_p;              /* 0 */
    int32_t default_top_k;            /* 0: all */
    float default_repetition_penalty; /* 1 */
};

/* Reads `path`/config.json (without one, Mistral's `path`/params.json) and, when there,
 * `path`/generation_config.json; or `path` itself when it ends in ".json". An unknown architecture,
 * a missing key or a value out of range is an error whose sentence names file, key and value. */
int model_config_load(struct model_config *config, const char *path, struct error *err);

/* Layers that have weights and a part of the KV cache. */
static inline int32_t model_config_all_layers(const struct model_config *config)
{
    return config->layers + config->mtp_layers;
}

/* One more end token, if it isn't one already; false: there are too many. */
bool model_config_add_eos(struct model_config *config, int32_t id);
