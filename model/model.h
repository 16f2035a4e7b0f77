/* A model that is loaded and ready to run on a backend: configuration, weights, working memory and
 * the KV cache's tensors. model_forward is the whole transformer on one screen. */
#pragma once

#include "base/error.h"
#include "kernels/backend.h"
#include "model/config.h"

#include <stdatomic.h>

struct model;

/* Asks for the layers of multi-token prediction that config.json declares, up to the last of which
 * the folder has anything (`dir` NULL: all): sets config->mtp_layers, for model_load. */
int model_want_mtp(struct model_config *config, const char *dir, struct error *err);

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

/* Hidden states that a pass of a model with multi-token prediction leaves: after the last norm. */
struct model_hidden {
    struct tensor rows;       /* (T, d) of its rows */
    struct tensor logit_rows; /* (R, d) of those that want logits */
};

/* Those of the last pass, whose batch was this one; valid until the next. */
struct model_hidden model_hidden(const struct model *model, const struct batch *batch);

/* Queues a pass through the `layer`-th layer of multi-token prediction (from 0; DeepSeek-V3,
 * section 2.2), whose batch has `draft` set. A row at position p takes the token at p + 1, which is
 * what the batch has as its token, and hidden (T, d), that of position p: the model's own, or what
 * the pass before through such a layer left. It foretells the token at p + 2: returns logits as
 * model_forward does. Its latents go to the layer's own part of the cache, at position p. */
struct tensor model_draft(struct model *model, const struct batch *batch, int32_t layer,
                          struct tensor hidden);
