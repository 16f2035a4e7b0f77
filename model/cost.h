/* What a step must cost: the bytes that have to be read and the operations that have to be done,
 * counted from the configuration. With a device's speed they give the time below which no
 * implementation gets, the roofline.
 *
 * Counted are weights, each read once, and the KV cache; activations are not. A multiplication and
 * an addition are two operations. */
#pragma once

#include "model/config.h"

struct cost {
    double bytes, flops;
};

/* By part of a layer; `linear` has all products outside attention and experts, and the head. */
struct step_cost {
    struct cost attention; /* with kv_b: keys, values and W_UK, W_UV */
    struct cost moe;       /* routed and shared experts */
    struct cost linear;
};

/* A step that generates one token for each of `seqs` sequences of `context` tokens. Experts are
 * taken to be chosen evenly: of E a step of n tokens that choose k each reads E (1 - (1 - k/E)^n).
 */
struct step_cost decode_cost(const struct model_config *config, int32_t seqs, double context,
                             enum dtype kv_dtype);

/* `tokens` prompt tokens of sequences of `length` tokens, computed in steps of `step_tokens`. The
 * head is computed for one token a sequence. */
struct step_cost prefill_cost(const struct model_config *config, int64_t tokens, int32_t length,
                              int32_t step_tokens, enum dtype kv_dtype);

struct cost cost_sum(const struct step_cost *cost);

/* Seconds at `bytes_per_s` and `flops_per_s`, whichever takes longer. */
double cost_seconds(const struct cost *cost, double bytes_per_s, double flops_per_s);
