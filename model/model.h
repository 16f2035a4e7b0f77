/* A model that is loaded and ready to run on a backend: configuration, weights, working memory and
 * the KV cache's tensors. model_forward is the whole transformer on one screen. */
#pragma once

#include "base/error.h"
#include "kernels/backend.h"
#include "model/config.h"

#include <stdatomic.h>

struct model;

/* Reads the checkpoint folder's weights onto the backend; `dir` NULL: random ones, made there. The
 * config is copied; the backend is borrowed and must outlive the model. NULL and a message on
 * error; see weights_load for `cancel`. */
struct model *model_load(const char *dir, const struct model_config *config, struct backend *be,
                         const atomic_int *cancel, struct error *err);

/* Takes working memory for steps within `limits`. Once, before model_open_cache. */
int model_reserve(struct model *model, struct batch_limits limits, struct error *err);

/* Takes a KV cache of `kv_pages` pages and lets the backend record decode steps. Once, before the
 * first step. */
int model_open_cache(struct model *model, int32_t kv_pages, struct error *err);
void model_free(struct model *model);

/* Fills the KV cache with random numbers, for timing; one in FP8 stays as it is. */
void model_randomize_cache(struct model *model);

/* Bytes of weights, where matrices take `matrix_bytes` an element (BF16: 2), but for those that
 * `be` keeps as FP8 or INT4 (NULL: none). */
uint64_t model_weight_bytes(const struct model_config *config, size_t matrix_bytes,
                            const struct backend *be);

/* Bytes of KV cache that one token takes over all layers. */
size_t model_kv_token_bytes(const struct model_config *config, enum dtype kv_dtype);

/* Queues the forward pass of the batch on the backend. Returns the logits (R, V), F32, of its
 * logit rows, in order; valid until the next forward. */
struct tensor model_forward(struct model *model, const struct batch *batch);
