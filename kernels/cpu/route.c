/* Which experts a row goes to, and with what weights (DeepSeek-V2 section 2.2, V3 section 2.1.2).
 * Among equal scores the lowest index wins. */
#include "kernels/cpu/cpu.h"

#include <math.h>
#include <string.h>

/* Index of the largest value that is not taken yet, and takes it. */
static int32_t take_largest(const float *values, unsigned char *taken, int32_t n)
{
    int32_t best = -1;

    for (int32_t i = 0; i < n; i++)
        if (!taken[i] && (best < 0 || values[i] > values[best]))
            best = i;
    taken[best] = 1;
    return best;
}

static void softmax(float *out, const float *logits, int32_t n)
{
    float max = logits[0], sum = 0;

    for (int32_t i = 1; i < n; i++)
        max = logits[i] > max ? logits[i] : max;
    for (int32_t i = 0; i < n; i++) {
        out[i] = expf(logits[i] - max);
        sum += out[i];
    }
    for (int32_t i = 0; i < n; i++)
        out[i] /= sum;
}

/* How good a group of experts is: by its best one (softmax), or its best two (sigmoid). */
static float group_score(const float *choice, int32_t n, enum router_scoring scoring)
{
    float first = -INFINITY, second = -INFINITY;

    for (int32_t i = 0; i < n; i++) {
        if (choice[i] > first) {
            second = first;
            first = choice[i];
        } else if (choice[i] > second) {
            second = choice[i];
        }
    }
    return scoring == ROUTER_SOFTMAX || n == 1 ? first : first + second;
}

/* Masks the experts outside the best groups. */
static void limit_to_groups(float *choice, const struct router_config *config)
{
    float group_scores[CPU_MAX_EXPERTS];
    unsigned char kept[CPU_MAX_EXPERTS] = {0};
    int32_t size = config->experts / config->groups;
    float masked = config->scoring == ROUTER_SOFTMAX ? 0.0f : -INFINITY;

    for (int32_t g = 0; g < config->groups; g++)
        group_scores[g] = group_score(choice + g * size, size, config->scoring);
    for (int32_t i = 0; i < config->top_groups; i++)
        take_largest(group_scores, kept, config->groups);
    for (int32_t e = 0; e < config->experts; e++)
        if (!kept[e / size])
            choice[e] = masked;
}

static void route_row(int32_t *ids, float *weights, const float *logits, const float *bias,
                      const struct router_config *config)
{
    float scores[CPU_MAX_EXPERTS], choice[CPU_MAX_EXPERTS], sum = 0;
    unsigned char taken[CPU_MAX_EXPERTS] = {0};
    int32_t n = config->experts + config->identity;

    if (config->scoring == ROUTER_SOFTMAX)
        softmax(scores, logits, n);
    else
        for (int32_t e = 0; e < n; e++)
            scores[e] = 1.0f / (1.0f + expf(-logits[e]));

    /* The bias steers the choice only; weights are the scores themselves. */
    for (int32_t e = 0; e < n; e++)
        choice[e] = scores[e] + (bias ? bias[e] : 0.0f);
    if (config->groups > 1)
        limit_to_groups(choice, config);

    for (int32_t i = 0; i < config->top_k; i++) {
        ids[i] = take_largest(choice, taken, n);
        weights[i] = scores[ids[i]];
        sum += weights[i];
    }
    for (int32_t i = 0; i < config->top_k; i++)
        weights[i] = (config->normalize ? weights[i] / (sum + 1e-20f) : weights[i]) * config->scale;
}

struct route {
    int32_t *ids;
    float *weights;
    const float *logits, *bias;
    const struct router_config *config;
};

static void run(void *context, int64_t first, int64_t end, int thread)
{
    const struct route *op = context;
    int64_t n = op->config->experts + op->config->identity, k = op->config->top_k;

    (void)thread;
    for (int64_t r = first; r < end; r++)
        route_row(op->ids + r * k, op->weights + r * k, op->logits + r * n, op->bias, op->config);
}

void cpu_route(struct backend *be, struct tensor ids, struct tensor weights, struct tensor logits,
               struct tensor bias, const struct router_config *config)
{
    int64_t rows = logits.shape[0], n = config->experts + config->identity, k = config->top_k;
    struct route op = {ids.data, cpu_f32_out(&weights), cpu_f32(&logits),
                       bias.data ? cpu_f32(&bias) : NULL, config};

    ASSERT(n <= CPU_MAX_EXPERTS && k > 0 && k <= n && cpu_last_dim(&logits) == n);
    ASSERT(config->groups <= 1 || (n % config->groups == 0 && config->identity == 0 &&
                                   config->top_groups <= config->groups));
    ASSERT(ids.dtype == DTYPE_I32 && cpu_last_dim(&ids) == k && cpu_last_dim(&weights) == k);
    cpu_parallel(cpu_backend(be), 4 * rows * n * (k + 4), rows, 16, run, &op);
}
