/* mlad healthcheck: asks the daemon of this machine whether it lives, for a container's health
 * check. */
#pragma once

#include "base/error.h"
#include "config/options.h"

/* 0 while GET /health at --host and --port says 200 (which it does while the model loads, too); -1
 * and a sentence when it doesn't, within three seconds. */
int healthcheck(const struct options *options, struct error *err);
