/* How a checkpoint's matrices are quantized: config.json's quantization_config, or "quantization"
 * in Mistral's params.json. */
#pragma once

#include "model/config.h"
#include "model/keys.h"

/* Fills config->quantization and what goes with it, from the text model's keys or else the file's;
 * layers and experts must be read before. */
int config_quant_read(const struct keys *text, const struct keys *file,
                      struct model_config *config);

int config_quant_read_params(const struct keys *k, struct model_config *config);
