/* An engine that `mlad bench` drives: requests of random tokens in, times out. */
#pragma once

#include "base/error.h"
#include "config/options.h"
#include "server/bench_result.h"

struct bench_engine;

/* Starts an engine and waits until it is ready. NULL and a message when it fails. */
struct bench_engine *bench_engine_start(const struct options *options, const char *model_path,
                                        struct error *err);
void bench_engine_stop(struct bench_engine *b);

/* The most tokens that all contexts can have together, and one alone. */
int64_t bench_engine_capacity(const struct bench_engine *b);
int32_t bench_engine_max_len(const struct bench_engine *b);
const char *bench_engine_backend(const struct bench_engine *b);

/* Computes `prompts` prompts of `length` tokens: fills tokens_per_s and alone_ms. -1 when the
 * engine failed. */
int bench_engine_prefill(struct bench_engine *b, struct bench_prefill *point, struct error *err);

/* Generates with `seqs` sequences at about `context` tokens for `steps` steps. */
int bench_engine_decode(struct bench_engine *b, int32_t steps, struct bench_decode *point,
                        struct error *err);
