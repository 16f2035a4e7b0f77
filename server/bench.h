/* `mlad bench`: how fast the engine is without HTTP, beside what the device allows.
 *
 * It runs the engine as the daemon does, with prompts of random tokens: prompts of each length for
 * prefill, numbers of sequences at each context for decode. Before that the model runs alone, step
 * after step without an engine, to tell where the time of a decode step goes. */
#pragma once

#include "config/options.h"

/* Prints tables, or JSON, on stdout. Returns the process's exit status. */
int bench_run(const struct options *options, const char *model_path);
