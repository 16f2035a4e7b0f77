/* What `mlad bench` finds, and how it is printed. */
#pragma once

#include "kernels/backend.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { BENCH_MAX_POINTS = 64 };

/* Prompts of one length. */
struct bench_prefill {
    int32_t length, prompts;
    double tokens_per_s;
    double alone_ms; /* one prompt on an idle engine, to its first token */
    double roofline_tokens_per_s;
};

/* Where the time of one decode step goes, in seconds; 0: not measured. */
struct bench_split {
    double device;                 /* of the whole step, the device never waiting for the host */
    double attention, moe, linear; /* each by itself */
    double attention_roofline, moe_roofline, linear_roofline;
};

/* Sequences that generate at once. */
struct bench_decode {
    int32_t seqs, context;
    const char *skipped; /* why it was not measured, or NULL */
    double tokens_per_s;
    double step, step_p50, step_p99; /* seconds */
    double host, host_p99;           /* of a step, the engine not waiting: median and p99 */
    double roofline_tokens_per_s;
    struct bench_split split;
};

struct bench_result {
    const char *model, *backend;
    struct backend_speed speed;
    double ready_s; /* from the process's start of loading to a ready engine */
    int n_prefill, n_decode;
    struct bench_prefill prefill[BENCH_MAX_POINTS];
    struct bench_decode decode[BENCH_MAX_POINTS];
};

void bench_print_tables(FILE *out, const struct bench_result *result);
void bench_print_json(FILE *out, const struct bench_result *result);
