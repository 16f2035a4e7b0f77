/* What the engine's thread computes with: a model on its backend, sized to the device's memory. */
#pragma once

#include "base/error.h"
#include "config/options.h"
#include "kernels/backend.h"
#include "model/config.h"
#include "model/model.h"
#include "server/load_phase.h"
#include "server/scheduler.h"

#include <stdatomic.h>
#include <stdbool.h>

struct engine_core {
    struct model_config config;
    struct backend *be;
    struct model *model;
    struct scheduler_config sched; /* fits model and memory */
    bool look_ahead;               /* steps are planned before the tokens of the last are read */
    int64_t load_us[N_LOAD_PHASES];
};

/* Reads the configuration of the model at `path`: a folder or, with --dummy-weights, a config.json.
 */
int engine_core_configure(struct engine_core *core, const struct options *options, const char *path,
                          struct error *err);

/* Opens the backend, loads the weights, and takes working memory and KV cache. `slots`: sequences
 * at once. `*cancel` ends the load early with an error. After an error, too, engine_core_close. */
int engine_core_load(struct engine_core *core, const struct options *options, const char *path,
                     int32_t slots, const atomic_int *cancel, struct error *err);

void engine_core_close(struct engine_core *core);
