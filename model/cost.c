#include "model/cost.h"

#include "model/model.h"

#include <math.h>

static const double WEIGHT_BYTES = 2; /* of a matrix's element: bf16 */

/* Elements of the matrices of a layer that every token is multiplied with. */
static double attention_linear(const struct model_config *c)
{
    double d = c->hidden_size, heads = c->mla.heads, q_lora = c->q_lora_rank;
    double q_rows = heads * (c->mla.nope_dim + c->mla.rope_dim);
    double q = q_lora > 0 ? q_lora * d + q_rows * q_lora : q_rows * d;

    return q + (c->mla.kv_lora_rank + c->mla.rope_dim) * d + d * heads * c->mla.v_dim;
}

static double kv_b_elements(const struct model_config *c)
{
    return (double)c->mla.heads * (c->mla.nope_dim + c->mla.v_dim) * c->mla.kv_lora_rank;
}

static double ffn_elements(const struct model_config *c, double width)
{
    return 3 * width * c->hidden_size;
}

static void add(struct cost *cost, double bytes, double flops)
{
    cost->bytes += bytes;
    cost->flops += flops;
}

/* A matrix that `tokens` tokens are multiplied with. */
static void add_matrix(struct cost *cost, double elements, double tokens)
{
    add(cost, elements * WEIGHT_BYTES, 2 * elements * tokens);
}

/* Everything that depends on the number of tokens alone; `rows` of them go through the head. */
static struct step_cost token_cost(const struct model_config *c, double tokens, double rows)
{
    struct step_cost cost = {0};

    for (int i = 0; i < c->layers; i++) {
        add_matrix(&cost.linear, attention_linear(c), tokens);
        if (!c->is_moe[i]) {
            add_matrix(&cost.linear, ffn_elements(c, c->dense_intermediate), tokens);
            continue;
        }
        double experts = c->router.experts, top_k = c->router.top_k;
        double one = ffn_elements(c, c->moe_intermediate);
        double touched = experts * (1 - pow(1 - top_k / experts, tokens));
        add(&cost.linear, 4 * experts * c->hidden_size, 2 * experts * c->hidden_size * tokens);
        add(&cost.moe, touched * one * WEIGHT_BYTES, 2 * one * top_k * tokens);
        add_matrix(&cost.moe, ffn_elements(c, c->shared_intermediate), tokens);
    }
    add_matrix(&cost.linear, (double)c->vocab_size * c->hidden_size, rows);
    return cost;
}

struct step_cost decode_cost(const struct model_config *c, int32_t seqs, double context,
                             enum dtype kv_dtype)
{
    struct step_cost cost = token_cost(c, seqs, seqs);
    double lora = c->mla.kv_lora_rank, rope = c->mla.rope_dim;

    add(&cost.attention, seqs * context * (double)model_kv_token_bytes(c, kv_dtype), 0);
    for (int i = 0; i < c->layers; i++) {
        add_matrix(&cost.attention, kv_b_elements(c), seqs);
        /* In latent space: scores over latent and rope key, values over the latent. */
        add(&cost.attention, 0, 2 * c->mla.heads * (2 * lora + rope) * context * seqs);
    }
    return cost;
}

struct step_cost prefill_cost(const struct model_config *c, int64_t tokens, int32_t length,
                              int32_t step_tokens, enum dtype kv_dtype)
{
    double n = (double)tokens, steps = ceil(n / step_tokens), sequences = n / length;
    struct step_cost cost = token_cost(c, n, sequences);
    double pairs = n * (length + 1) / 2, heads = c->mla.heads;

    /* Weights are read in every step, and the cache is written once. */
    cost.linear.bytes *= steps;
    cost.moe.bytes *= steps;
    add(&cost.attention, n * (double)model_kv_token_bytes(c, kv_dtype), 0);
    for (int i = 0; i < c->layers; i++) {
        add(&cost.attention, steps * kv_b_elements(c) * WEIGHT_BYTES, 2 * kv_b_elements(c) * n);
        add(&cost.attention, 0,
            2 * heads * (c->mla.nope_dim + c->mla.rope_dim + c->mla.v_dim) * pairs);
    }
    return cost;
}

struct cost cost_sum(const struct step_cost *cost)
{
    return (struct cost){cost->attention.bytes + cost->moe.bytes + cost->linear.bytes,
                         cost->attention.flops + cost->moe.flops + cost->linear.flops};
}

double cost_seconds(const struct cost *cost, double bytes_per_s, double flops_per_s)
{
    double read = cost->bytes / bytes_per_s, compute = cost->flops / flops_per_s;

    return read > compute ? read : compute;
}
