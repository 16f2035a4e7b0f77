/* The whole step is timed as the engine runs it, two steps under way, so that the device never
 * waits. A part is timed by running its operations alone, many times over, within one step: the
 * backend's table of operations is replaced by one in which all others do nothing. What a step
 * takes without any (its begin, its sampling) is subtracted. */
#include "server/bench_split.h"

#include "base/clock.h"
#include "base/memory.h"
#include "model/cost.h"

#include <stdlib.h>

enum { WARM_UP = 3, STEPS = 12, REPEATS = 8, TRIALS = 3 };

/* ---- operations that do nothing ----------------------------------------------------------- */

static int no_begin(struct backend *be, const struct batch *batch)
{
    (void)be;
    (void)batch;
    return 0;
}

static void no_embed(struct backend *be, struct tensor out, struct tensor table, float scale)
{
    (void)be;
    (void)out;
    (void)table;
    (void)scale;
}

static void no_rmsnorm(struct backend *be, struct tensor out, struct tensor x, struct tensor weight,
                       float eps)
{
    (void)be;
    (void)out;
    (void)x;
    (void)weight;
    (void)eps;
}

static void no_linear(struct backend *be, struct tensor x, const struct linear_part *parts,
                      int n_parts)
{
    (void)be;
    (void)x;
    (void)parts;
    (void)n_parts;
}

static void no_gated(struct backend *be, struct tensor out, struct tensor x, struct tensor gate,
                     struct tensor up)
{
    (void)be;
    (void)out;
    (void)x;
    (void)gate;
    (void)up;
}

static void no_rope_kv_write(struct backend *be, struct tensor q, struct tensor kv,
                             const struct mla_layer *layer, struct tensor norm, float eps,
                             const struct rope_config *rope)
{
    (void)be;
    (void)q;
    (void)kv;
    (void)layer;
    (void)norm;
    (void)eps;
    (void)rope;
}

static void no_attention(struct backend *be, struct tensor out, struct tensor q,
                         const struct mla_layer *layer)
{
    (void)be;
    (void)out;
    (void)q;
    (void)layer;
}

static void no_route(struct backend *be, struct tensor ids, struct tensor weights,
                     struct tensor logits, struct tensor bias, const struct router_config *config)
{
    (void)be;
    (void)ids;
    (void)weights;
    (void)logits;
    (void)bias;
    (void)config;
}

static void no_moe(struct backend *be, struct tensor out, struct tensor residual, struct tensor x,
                   struct tensor ids, struct tensor weights, const struct moe_weights *experts,
                   const struct ffn_weights *shared)
{
    (void)be;
    (void)out;
    (void)residual;
    (void)x;
    (void)ids;
    (void)weights;
    (void)experts;
    (void)shared;
}

static void no_scale(struct backend *be, struct tensor x, float beta, int32_t every)
{
    (void)be;
    (void)x;
    (void)beta;
    (void)every;
}

static void no_identity(struct backend *be, struct tensor out, struct tensor x, struct tensor ids,
                        struct tensor weights, int32_t experts)
{
    (void)be;
    (void)out;
    (void)x;
    (void)ids;
    (void)weights;
    (void)experts;
}

static void no_gather(struct backend *be, struct tensor out, struct tensor x)
{
    (void)be;
    (void)out;
    (void)x;
}

enum part { PART_NONE, PART_ATTENTION, PART_MOE, PART_LINEAR };

/* The table in which only the part's operations do anything. */
static struct backend_ops ops_of_part(const struct backend_ops *real, enum part part)
{
    struct backend_ops ops = *real;

    ops.begin = no_begin;
    ops.embed = no_embed;
    ops.rmsnorm = no_rmsnorm;
    ops.rope_kv_write = no_rope_kv_write;
    ops.gather_logit_rows = no_gather;
    ops.route = no_route;
    ops.scale_by_position = no_scale;
    ops.identity_experts = no_identity;
    ops.add = no_gather;
    if (part != PART_LINEAR) {
        ops.linear = no_linear;
        ops.gated = no_gated;
    }
    if (part != PART_ATTENTION) {
        ops.mla_prefill = no_attention;
        ops.mla_decode = no_attention;
    }
    if (part != PART_MOE)
        ops.moe = no_moe;
    return ops;
}

/* ---- timing ------------------------------------------------------------------------------- */

struct stage {
    struct engine_core *core;
    struct batch *batch;
    struct sampling_result *results[BACKEND_MAX_STEPS];
    struct error *err;
};

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Median seconds of `measure(arg)` over a few trials; negative when one failed. */
static double median(double (*measure)(struct stage *s, enum part part, int repeats),
                     struct stage *s, enum part part, int repeats)
{
    double seconds[TRIALS];

    for (int i = 0; i < TRIALS; i++) {
        seconds[i] = measure(s, part, repeats);
        if (seconds[i] < 0)
            return -1;
    }
    qsort(seconds, TRIALS, sizeof(*seconds), compare_doubles);
    return seconds[TRIALS / 2];
}

/* Seconds of one of many steps, two of them under way. */
static double time_steps(struct stage *s, enum part part, int steps)
{
    struct backend *be = s->core->be;
    int64_t start = 0;

    (void)part;
    for (int i = 0; i <= WARM_UP + steps; i++) {
        if (i == WARM_UP + 1)
            start = clock_us();
        struct tensor logits = model_forward(s->core->model, s->batch);
        be->ops->sample(be, logits, NULL, s->results[i % BACKEND_MAX_STEPS]);
        if (i > 0 && be->ops->finish(be, s->err))
            return -1;
    }
    int64_t us = clock_us() - start;
    return be->ops->finish(be, s->err) ? -1 : (double)us * 1e-6 / steps;
}

/* Seconds of one step in which the part's operations run `repeats` times more. */
static double time_part(struct stage *s, enum part part, int repeats)
{
    struct backend *be = s->core->be;
    const struct backend_ops *real = be->ops;
    struct backend_ops partial = ops_of_part(real, part);
    int64_t start = clock_us();

    struct tensor logits = model_forward(s->core->model, s->batch);
    be->ops = &partial;
    for (int i = 0; i < repeats; i++)
        model_forward(s->core->model, s->batch);
    be->ops = real;
    be->ops->sample(be, logits, NULL, s->results[0]);
    return be->ops->finish(be, s->err) ? -1 : (double)(clock_us() - start) * 1e-6;
}

static int time_parts(struct stage *s, struct bench_split *out)
{
    const struct {
        enum part part;
        double *out;
    } parts[] = {
        {PART_ATTENTION, &out->attention}, {PART_MOE, &out->moe}, {PART_LINEAR, &out->linear}};
    double nothing = median(time_part, s, PART_NONE, REPEATS);

    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]) && nothing >= 0; i++) {
        double seconds = median(time_part, s, parts[i].part, REPEATS);
        if (seconds < 0)
            return -1;
        *parts[i].out = seconds > nothing ? (seconds - nothing) / REPEATS : 0;
    }
    return nothing < 0 ? -1 : 0;
}

/* A step of generation: every sequence has pages of its own. */
static void fill_batch(struct batch *batch, int32_t seqs, int32_t context, int32_t vocab,
                       int32_t kv_pages)
{
    int32_t each = (context + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
    int32_t *pages = mem_zalloc((size_t)each, sizeof(*pages));

    ASSERT((int64_t)each * seqs <= kv_pages);
    batch_clear(batch);
    for (int32_t i = 0; i < seqs; i++) {
        int32_t token = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)vocab);
        for (int32_t p = 0; p < each; p++) /* far apart, as pages of a busy pool are */
            pages[p] = p * seqs + i;
        batch_add(batch,
                  (struct batch_seq){
                      .slot = i, .n_rows = 1, .kv_len = context, .absorbed = 1, .wants_logits = 1},
                  &token, pages, 1);
    }
    free(pages);
}

static void add_rooflines(struct bench_split *out, const struct engine_core *core, int32_t seqs,
                          int32_t context, const struct backend_speed *speed)
{
    struct step_cost cost = decode_cost(&core->config, seqs, context, core->be->kv_dtype);
    double bytes = speed->bytes_per_s, flops = speed->flops_per_s;

    out->attention_roofline = cost_seconds(&cost.attention, bytes, flops);
    out->moe_roofline = cost_seconds(&cost.moe, bytes, flops);
    out->linear_roofline = cost_seconds(&cost.linear, bytes, flops);
}

int bench_split(struct engine_core *core, int32_t seqs, int32_t context,
                const struct backend_speed *speed, struct bench_split *out, struct error *err)
{
    static const struct sampling_params greedy = {.top_p = 1, .repetition_penalty = 1};
    struct batch_limits limits = scheduler_config_limits(&core->sched);
    struct stage s = {.core = core, .batch = batch_new(limits), .err = err};
    int rc = -1;

    for (int i = 0; i < BACKEND_MAX_STEPS; i++)
        s.results[i] = mem_zalloc((size_t)limits.max_logits, sizeof(**s.results));
    for (int32_t slot = 0; slot < seqs; slot++)
        core->be->ops->sampler_open(core->be, slot, &greedy, NULL, 0);
    fill_batch(s.batch, seqs, context, core->config.vocab_size, core->sched.kv_pages);
    out->device = median(time_steps, &s, PART_NONE, STEPS);
    if (out->device >= 0)
        rc = time_parts(&s, out);
    for (int32_t slot = 0; slot < seqs; slot++)
        core->be->ops->sampler_close(core->be, slot);
    for (int i = 0; i < BACKEND_MAX_STEPS; i++)
        free(s.results[i]);
    free(s.batch);
    add_rooflines(out, core, seqs, context, speed);
    return rc;
}
