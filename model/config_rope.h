/* The rotary part of config.json: frequencies, and what they mean for the softmax scale. */
#pragma once

#include "model/config.h"
#include "model/family.h"
#include "model/keys.h"

enum {
    CONFIG_MAX_POSITIONS = 1 << 24
}; /* whole numbers that float32 angles can still tell apart */

/* Fills config->rope, mla.softmax_scale and query_scale; the shape must be read before. */
int config_rope_read(const struct keys *k, const struct graph *graph, struct model_config *config);
