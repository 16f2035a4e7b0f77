/* A checkpoint's config.json as a checked, plain struct. Nothing downstream reads JSON again: every
 * value here is in range, and families differ by data, not by name. */
#pragma once

#include "base/error.h"
#include "kernels/backend.h"

#include <stdbool.h>
#include <stdint.h>

enum { MODEL_MAX_LAYERS = 256, MODEL_MAX_EOS = 16 };

enum quantization { QUANT_NONE, QUANT_FP8_BLOCK };

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
    bool is_moe[MODEL_MAX_LAYERS]; /* which layers */
    enum quantization quantization;
    int32_t quant_block[2]; /* weight_block_size: rows, columns that share a scale */

    /* Tokens that end a generation: the union of config.json and generation_config.json. */
    int32_t eos[MODEL_MAX_EOS];
    int32_t n_eos;
    int32_t bos; /* -1: none */

    /* generation_config.json: what a request gets when it is silent. */
    float default_temperature;        /* 1 when the file says nothing; 0 with do_sample false */
    float default_top_p;              /* 1 */
    int32_t default_top_k;            /* 0: all */
    float default_repetition_penalty; /* 1 */
};

/* Reads `path`/config.json and, when there, `path`/generation_config.json; or `path` itself when it
 * ends in ".json". An unknown architecture, a missing key or a value out of range is an error whose
 * sentence names file, key and value. */
int model_config_load(struct model_config *config, const char *path, struct error *err);
