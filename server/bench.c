#include "server/bench.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "model/cost.h"
#include "server/bench_engine.h"
#include "server/bench_split.h"

#include <stdlib.h>
#include <string.h>

enum {
    GPU_PREFILL_TOKENS = 65536,
    CPU_PREFILL_TOKENS = 4096,
    COPY_BYTES = 256 << 20,
    MAX_LIST = 32
};

struct bench {
    const struct options *options;
    const char *model_path;
    int32_t prompts[MAX_LIST], batches[MAX_LIST], contexts[MAX_LIST];
    int n_prompts, n_batches, n_contexts;
    struct model_config config;
    enum dtype kv_dtype;
    int32_t step_tokens; /* of a prefill step */
    struct bench_result result;
};

/* "1,8,32" to numbers from 1 on. */
static int read_list(const char *name, const char *text, int32_t *out, int *n, struct error *err)
{
    *n = 0;
    while (*text) {
        char *end;
        long value = strtol(text, &end, 10);
        if (end == text || value < 1 || value > 1 << 24 || (*end && *end != ','))
            return error_set(err, "--%s must be numbers separated by commas, got \"%s\"", name,
                             text);
        if (*n == MAX_LIST)
            return error_set(err, "--%s has more than %d numbers", name, MAX_LIST);
        out[(*n)++] = (int32_t)value;
        text = *end ? end + 1 : end;
    }
    return 0;
}

/* ---- the device --------------------------------------------------------------------------- */

/* A CPU's memory by how fast it is copied; its operations are not counted. */
static void measure_cpu(struct backend_speed *speed)
{
    char *from = mem_alloc(COPY_BYTES), *to = mem_alloc(COPY_BYTES);
    int64_t best = INT64_MAX;

    memset(from, 1, COPY_BYTES);
    for (int i = 0; i < 4; i++) {
        int64_t start = clock_us();
        memcpy(to, from, COPY_BYTES);
        __asm__ volatile("" ::"r"(to) : "memory");
        int64_t us = clock_us() - start;
        best = us < best ? us : best;
    }
    free(from);
    free(to);
    *speed = (struct backend_speed){.name = "CPU", .bytes_per_s = 2e6 * COPY_BYTES / (double)best};
}

/* The roofline of a device whose operations are not counted is its memory's. */
static double flops_of(const struct backend_speed *speed)
{
    return speed->flops_per_s > 0 ? speed->flops_per_s : 1e30;
}

static int measure_device(struct bench *b, struct error *err)
{
    struct backend_speed *speed = &b->result.speed;

#ifdef MLAD_CUDA
    if (strcmp(b->options->device, "cpu") != 0 && backend_cuda_devices() > 0)
        return backend_cuda_speed(0, speed, err);
#endif
    (void)err;
    measure_cpu(speed);
    return 0;
}

/* ---- the model alone ---------------------------------------------------------------------- */

static struct bench_decode *decode_points(struct bench *b)
{
    struct bench_result *r = &b->result;

    for (int c = 0; c < b->n_contexts; c++)
        for (int i = 0; i < b->n_batches && r->n_decode < BENCH_MAX_POINTS; i++)
            r->decode[r->n_decode++] =
                (struct bench_decode){.seqs = b->batches[i], .context = b->contexts[c]};
    return r->decode;
}

/* Why the point can't be measured, or NULL. The steps lengthen contexts. */
static const char *reason_to_skip(const struct bench *b, const struct bench_decode *point,
                                  int64_t capacity, int32_t max_len)
{
    int64_t each = point->context + b->options->bench_steps + 2 * KV_PAGE_TOKENS;

    if (point->seqs > b->options->max_num_seqs)
        return "more sequences than --max-num-seqs";
    if (each > max_len)
        return "longer than the model's context";
    if (each * point->seqs > capacity)
        return "more tokens than the KV cache holds";
    return NULL;
}

/* Loads the model without an engine and splits the time of each point's step. */
static int split_all(struct bench *b, struct error *err)
{
    struct engine_core core = {0};
    struct backend_speed speed = b->result.speed;
    struct bench_decode *points = decode_points(b);
    int rc = -1;

    speed.flops_per_s = flops_of(&speed);
    if (engine_core_configure(&core, b->options, b->model_path, err) == 0 &&
        engine_core_load(&core, b->options, b->model_path, (int32_t)b->options->max_num_seqs, NULL,
                         err) == 0)
        rc = 0;
    if (rc == 0) {
        b->config = core.config;
        b->kv_dtype = core.be->kv_dtype;
        b->step_tokens = core.sched.max_rows;
        model_randomize_cache(core.model);
    }
    for (int i = 0; i < b->result.n_decode && rc == 0; i++) {
        struct bench_decode *p = &points[i];
        p->skipped = reason_to_skip(b, p, (int64_t)core.sched.kv_pages * KV_PAGE_TOKENS,
                                    core.sched.max_model_len);
        if (!p->skipped)
            rc = bench_split(&core, p->seqs, p->context, &speed, &p->split, err);
    }
    engine_core_close(&core);
    return rc;
}

/* ---- the engine --------------------------------------------------------------------------- */

static int prefill_all(struct bench *b, struct bench_engine *engine, struct error *err)
{
    struct bench_result *r = &b->result;
    int64_t tokens = strcmp(r->backend, "cpu") == 0 ? CPU_PREFILL_TOKENS : GPU_PREFILL_TOKENS;

    for (int i = 0; i < b->n_prompts; i++) {
        struct bench_prefill point = {.length = b->prompts[i]};
        int64_t n = tokens / point.length, most = b->options->max_num_seqs;
        int64_t fit = bench_engine_capacity(engine) / (point.length + KV_PAGE_TOKENS);
        n = n > most ? most : n;
        n = n > fit ? fit : n;
        point.prompts = (int32_t)(n > 1 ? n : 1);
        if (point.length >= bench_engine_max_len(engine)) {
            log_warning("prompts of %d tokens are longer than the context", point.length);
            continue;
        }
        if (bench_engine_prefill(engine, &point, err))
            return -1;
        struct step_cost cost = prefill_cost(&b->config, (int64_t)point.prompts * point.length,
                                             point.length, b->step_tokens, b->kv_dtype);
        struct cost sum = cost_sum(&cost);
        point.roofline_tokens_per_s = (double)point.prompts * point.length /
                                      cost_seconds(&sum, r->speed.bytes_per_s, flops_of(&r->speed));
        r->prefill[r->n_prefill++] = point;
    }
    return 0;
}

static int decode_all(struct bench *b, struct bench_engine *engine, struct error *err)
{
    struct bench_result *r = &b->result;

    for (int i = 0; i < r->n_decode; i++) {
        struct bench_decode *p = &r->decode[i];
        if (!p->skipped)
            p->skipped =
                reason_to_skip(b, p, bench_engine_capacity(engine), bench_engine_max_len(engine));
        if (p->skipped)
            continue;
        if (bench_engine_decode(engine, (int32_t)b->options->bench_steps, p, err))
            return -1;
        struct step_cost cost = decode_cost(&b->config, p->seqs, p->context, b->kv_dtype);
        struct cost sum = cost_sum(&cost);
        p->roofline_tokens_per_s =
            p->seqs / cost_seconds(&sum, r->speed.bytes_per_s, flops_of(&r->speed));
    }
    return 0;
}

static int measure(struct bench *b, struct error *err)
{
    if (measure_device(b, err) || split_all(b, err))
        return -1;
    int64_t start = clock_us();
    struct bench_engine *engine = bench_engine_start(b->options, b->model_path, err);
    if (!engine)
        return -1;
    b->result.ready_s = (double)(clock_us() - start) * 1e-6;
    b->result.backend = bench_engine_backend(engine);
    int rc = prefill_all(b, engine, err) || decode_all(b, engine, err) ? -1 : 0;
    bench_engine_stop(engine);
    return rc;
}

int bench_run(const struct options *options, const char *model_path)
{
    struct bench *b = mem_zalloc(1, sizeof(*b));
    struct error err;
    int status = EXIT_FAILURE;

    b->options = options;
    b->model_path = b->result.model = model_path;
    if (read_list("bench-prompts", options->bench_prompts, b->prompts, &b->n_prompts, &err) ||
        read_list("bench-batches", options->bench_batches, b->batches, &b->n_batches, &err) ||
        read_list("bench-contexts", options->bench_contexts, b->contexts, &b->n_contexts, &err) ||
        measure(b, &err)) {
        log_error("%s", err.message);
    } else if (options->json) {
        bench_print_json(stdout, &b->result);
        status = EXIT_SUCCESS;
    } else {
        bench_print_tables(stdout, &b->result);
        status = EXIT_SUCCESS;
    }
    free(b);
    return status;
}
