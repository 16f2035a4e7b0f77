/* `mlad serve`: puts loop, HTTP server, engine and API together and runs them until a signal. */
#pragma once

#include "config/options.h"

/* Returns the process's exit status: 0 after a drain, 1 when the port can't be bound, the model
 * can't be loaded or the device failed. */
int daemon_run(const struct options *options, const char *model_dir);
