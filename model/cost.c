#include "model/cost.h"

#include "model/model.h"

#include <math.h>

static const double WEIGHT_BYTES = 2; /* of a matrix's element: bf16 */

/* Of one that a GPU keeps as FP8, where the checkpoint has it so. */
static double product_bytes(const struct model_config *c)
{
    return c->quantization == QUANT_FP8_BLOCK ? 1 : WEIGHT_BYTES;
}

/* Of an expert's, which a GPU keeps as INT4 too: half a byte, and a scale for each group. */
static double expert_bytes(const struct model_config *c)
{
    bool int4 = c->quantization == QUANT_INT4 && c->quantized.experts;

    return int4 ? 0.5 + WEIGHT_BYTES / I4_GROUP : product_bytes(c);
}

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

/* Elements of the indexer's matrices, of a layer that has one. */
static double indexer_linear(const struct model_config *c)
{
    double q_rows = (double)c->index.heads * c->index.dim;

    return q_rows * c->q_lora_rank + (c->index.dim + c->index.heads) * (double)c->hidden_size;
}

static int indexers(const struct model_config *c)
{
    int n = 0;

    for (int i = 0; i < c->layers; i++)
        n += c->has_indexer[i];
    return n;
}

/* Of `seen` tokens those that a row attends to; it looks at the keys of all of them first when they
 * are more. */
static double attended(const struct model_config *c, double seen)
{
    return c->index.top_k > 0 && seen > c->index.top_k ? c->index.top_k : seen;
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

/* A matrix that `tokens` tokens are multiplied with, of `each` bytes an element. */
static void add_matrix(struct cost *cost, double each, double elements, double tokens)
{
    add(cost, elements * each, 2 * elements * tokens);
}

/* Everything that depends on the number of tokens alone; `rows` of them go through the head. */
static struct step_cost token_cost(const struct model_config *c, double tokens, double rows)
{
    struct step_cost cost = {0};
    double each = product_bytes(c);

    for (int i = 0; i < c->layers; i++) {
        add_matrix(&cost.linear, each, attention_linear(c), tokens);
        if (c->has_indexer[i])
            add_matrix(&cost.linear, each, indexer_linear(c), tokens);
        if (!c->is_moe[i] || c->shortcut_moe)
            add_matrix(&cost.linear, each, ffn_elements(c, c->dense_intermediate), tokens);
        if (!c->is_moe[i])
            continue;
        /* Identity experts are chosen as often as others, and cost nothing. */
        double experts = c->router.experts, choices = experts + c->router.identity;
        double top_k = c->router.top_k * experts / choices;
        double one = ffn_elements(c, c->moe_intermediate);
        double touched = experts * (1 - pow(1 - top_k / experts, tokens));
        add(&cost.linear, 4 * choices * c->hidden_size, 2 * choices * c->hidden_size * tokens);
        add(&cost.moe, touched * one * expert_bytes(c), 2 * one * top_k * tokens);
        add_matrix(&cost.moe, each, ffn_elements(c, c->shared_intermediate), tokens);
    }
    add_matrix(&cost.linear, WEIGHT_BYTES, (double)c->vocab_size * c->hidden_size, rows);
    return cost;
}

/* Of the cache of the layers that every step goes through. */
static double kv_token_bytes(const struct model_config *c, enum dtype kv_dtype)
{
    struct model_config without_mtp = *c;

    without_mtp.mtp_layers = 0;
    return (double)model_kv_token_bytes(&without_mtp, kv_dtype);
}

struct step_cost decode_cost(const struct model_config *c, int32_t seqs, double context,
                             enum dtype kv_dtype)
{
    struct step_cost cost = token_cost(c, seqs, seqs);
    double lora = c->mla.kv_lora_rank, rope = c->mla.rope_dim, rows = attended(c, context);
    double keys = rows < context ? context * indexers(c) * c->index.dim : 0;
    double key_bytes = (double)dtype_size(index_key_dtype(kv_dtype));
    double row_bytes = kv_token_bytes(c, kv_dtype) - (double)indexers(c) * c->index.dim * key_bytes;

    add(&cost.attention, seqs * rows * row_bytes, 0);
    add(&cost.attention, seqs * keys * key_bytes, 2 * c->index.heads * keys * seqs);
    for (int i = 0; i < c->layers; i++) {
        add_matrix(&cost.attention, WEIGHT_BYTES, kv_b_elements(c), seqs);
        /* In latent space: scores over latent and rope key, values over the latent. */
        add(&cost.attention, 0, 2 * c->mla.heads * (2 * lora + rope) * rows * seqs);
    }
    return cost;
}

struct step_cost prefill_cost(const struct model_config *c, int64_t tokens, int32_t length,
                              int32_t step_tokens, enum dtype kv_dtype)
{
    double n = (double)tokens, steps = ceil(n / step_tokens), sequences = n / length;
    struct step_cost cost = token_cost(c, n, sequences);
    double pairs = n * (length + 1) / 2, heads = c->mla.heads, k = attended(c, length);
    double chosen = sequences * k * (length - (k - 1) / 2); /* of the pairs */
    double scored = k < length ? pairs * indexers(c) : 0;

    /* Weights are read in every step, and the cache is written once. */
    cost.linear.bytes *= steps;
    cost.moe.bytes *= steps;
    add(&cost.attention, n * kv_token_bytes(c, kv_dtype),
        2.0 * c->index.heads * c->index.dim * scored);
    for (int i = 0; i < c->layers; i++) {
        add(&cost.attention, steps * kv_b_elements(c) * WEIGHT_BYTES, 2 * kv_b_elements(c) * n);
        add(&cost.attention, 0,
            2 * heads * (c->mla.nope_dim + c->mla.rope_dim + c->mla.v_dim) * chosen);
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
