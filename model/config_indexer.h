/* The indexer's keys of config.json: which tokens rows attend to (DeepSeek-V3.2, GLM-5). */
#pragma once

#include "model/config.h"
#include "model/keys.h"

/* Fills config->index, index_rope and has_indexer; attention and rope must be read before.
 * `interleave`: the rope's pairs stand together unless the file says otherwise. */
int config_indexer_read(const struct keys *k, bool interleave, struct model_config *config);
