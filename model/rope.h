/* Rotary frequencies of a model: plain RoPE, and YaRN (Peng et al. 2023, "YaRN: Efficient Context
 * Window Extension of Large Language Models") as the DeepSeek models use it. */
#pragma once

#include "kernels/backend.h"

#include <stdbool.h>

/* config.json's "rope_scaling" of type "yarn". */
struct yarn {
    double factor;
    double original_positions; /* original_max_position_embeddings */
    double beta_fast, beta_slow;
    double mscale, mscale_all_dim; /* 0: not given */
    double attention_factor;       /* 0: not given, it follows from the mscales */
    bool truncate;                 /* the ramp begins and ends at whole dimensions */
};

/* Fills rope->inv_freq and rope->magnitude for rope->dim values; `yarn` NULL for plain RoPE. */
void rope_frequencies(struct rope_config *rope, double theta, const struct yarn *yarn);

/* The same with each period (rope->dim / 2 of them) times a factor of its own, and cos and sin
 * times `magnitude` (Ding et al. 2024, "LongRoPE"). */
void rope_scaled_frequencies(struct rope_config *rope, double theta, const float *factors,
                             double magnitude);

/* The factor that YaRN puts on the softmax scale; 1 unless mscale_all_dim is given. */
double rope_softmax_factor(const struct yarn *yarn);
