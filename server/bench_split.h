/* Where the time of a decode step goes: the model runs steps by itself, without an engine. */
#pragma once

#include "base/error.h"
#include "server/bench_result.h"
#include "server/engine_core.h"

/* Measures steps of `seqs` sequences of `context` tokens each. The cache must have room for them
 * (asserted), the scheduler's limits too. -1 when the device failed. */
int bench_split(struct engine_core *core, int32_t seqs, int32_t context,
                const struct backend_speed *speed, struct bench_split *out, struct error *err);
