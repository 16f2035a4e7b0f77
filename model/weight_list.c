#include "model/weight_list.h"

#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_ITEMS_PER_LAYER = sizeof(struct layer_weights) / sizeof(struct tensor),
    MAX_ITEMS_PER_MTP = sizeof(struct mtp_weights) / sizeof(struct tensor),
    MAX_OTHERS = 3
};

/* Where items are added, and what they have in common. */
struct writer {
    struct weight_list *list;
    const struct model_config *config;
    int32_t layer;
    int32_t together; /* of the items that follow */
};

static void add(struct writer *w, struct tensor *dst, enum weight_use use, const char *part,
                int64_t rows, int64_t cols)
{
    w->list->items[w->list->n++] = (struct weight_item){.dst = dst,
                                                        .use = use,
                                                        .part = part,
                                                        .layer = w->layer,
                                                        .rows = rows,
                                                        .cols = cols,
                                                        .scale = 1,
                                                        .together = w->together};
}

static void add_vector(struct writer *w, struct tensor *dst, const char *part, int64_t n)
{
    add(w, dst, WEIGHT_EXACT, part, n, 0);
}

static void add_scaled(struct writer *w, struct tensor *dst, const char *part, int64_t n,
                       float scale)
{
    add_vector(w, dst, part, n);
    w->list->items[w->list->n - 1].scale = scale;
}

static void add_matrix(struct writer *w, struct tensor *dst, const char *part, int64_t rows,
                       int64_t cols)
{
    add(w, dst, WEIGHT_MATRIX, part, rows, cols);
}

static void add_experts(struct writer *w, struct tensor *dst, const char *part, int64_t rows,
                        int64_t cols)
{
    add(w, dst, WEIGHT_MATRIX, part, rows, cols);
    w->list->items[w->list->n - 1].experts = w->config->router.experts;
}

static void add_attention(struct writer *w, struct layer_weights *l)
{
    const struct model_config *c = w->config;
    const struct mla_shape *mla = &c->mla;
    int64_t d = c->hidden_size, q_lora = c->q_lora_rank, kv_lora = mla->kv_lora_rank;
    int64_t q_rows = (int64_t)mla->heads * (mla->nope_dim + mla->rope_dim);
    int64_t kv_b_rows = (int64_t)mla->heads * (mla->nope_dim + mla->v_dim);
    int64_t kv_rows = kv_lora + mla->rope_dim;

    if (q_lora == 0) {
        add_matrix(w, &l->q, "self_attn.q_proj.weight", q_rows, d);
    } else {
        add_matrix(w, &l->q_a, "self_attn.q_a_proj.weight", q_lora, d);
        add_scaled(w, &l->q_a_norm, "self_attn.q_a_layernorm.weight", q_lora, c->norm_scale.q);
        add_matrix(w, &l->q, "self_attn.q_b_proj.weight", q_rows, q_lora);
    }
    add_matrix(w, &l->kv_a, "self_attn.kv_a_proj_with_mqa.weight", kv_rows, d);
    add_scaled(w, &l->kv_a_norm, "self_attn.kv_a_layernorm.weight", kv_lora, c->norm_scale.kv);
    add(w, &l->kv_b, WEIGHT_TABLE, "self_attn.kv_b_proj.weight", kv_b_rows, kv_lora);
    add_matrix(w, &l->o, "self_attn.o_proj.weight", d, (int64_t)mla->heads * mla->v_dim);
    if (!c->attention_bias) /* which q_proj, q_b and kv_b never have */
        return;
    if (q_lora)
        add_vector(w, &l->q_a_bias, "self_attn.q_a_proj.bias", q_lora);
    add_vector(w, &l->kv_a_bias, "self_attn.kv_a_proj_with_mqa.bias", kv_rows);
    add_vector(w, &l->o_bias, "self_attn.o_proj.bias", d);
}

static void add_indexer(struct writer *w, struct layer_weights *l)
{
    const struct index_shape *index = &w->config->index;
    int64_t d = w->config->hidden_size, q_rows = (int64_t)index->heads * index->dim;

    add_matrix(w, &l->index.q, "self_attn.indexer.wq_b.weight", q_rows, w->config->q_lora_rank);
    add_matrix(w, &l->index.k, "self_attn.indexer.wk.weight", index->dim, d);
    add_vector(w, &l->index.norm, "self_attn.indexer.k_norm.weight", index->dim);
    add_vector(w, &l->index.norm_bias, "self_attn.indexer.k_norm.bias", index->dim);
    add(w, &l->index.weights, WEIGHT_EXACT, "self_attn.indexer.weights_proj.weight", index->heads,
        d);
}

static void add_moe(struct writer *w, struct layer_weights *l)
{
    const struct model_config *c = w->config;
    int64_t d = c->hidden_size, width = c->moe_intermediate, shared = c->shared_intermediate;
    int64_t choices = c->router.experts + c->router.identity;

    add(w, &l->router, WEIGHT_EXACT, "mlp.gate.weight", choices, d);
    if (c->router_bias)
        add_vector(w, &l->router_bias, "mlp.gate.e_score_correction_bias", choices);
    w->together = 2 * w->layer + 1;
    add_experts(w, &l->experts.gate, "gate_proj.weight", width, d);
    add_experts(w, &l->experts.up, "up_proj.weight", width, d);
    add_experts(w, &l->experts.down, "down_proj.weight", d, width);
    if (shared > 0) {
        add_matrix(w, &l->gate, "mlp.shared_experts.gate_proj.weight", shared, d);
        add_matrix(w, &l->up, "mlp.shared_experts.up_proj.weight", shared, d);
        add_matrix(w, &l->down, "mlp.shared_experts.down_proj.weight", d, shared);
    }
    w->together = 0;
    if (c->moe_post_norm)
        add_vector(w, &l->moe_norm, "post_mlp_layernorm.weight", d);
}

static void add_dense(struct writer *w, struct layer_weights *l)
{
    int64_t d = w->config->hidden_size, width = w->config->dense_intermediate;

    w->together = 2 * w->layer + 2;
    add_matrix(w, &l->gate, "mlp.gate_proj.weight", width, d);
    add_matrix(w, &l->up, "mlp.up_proj.weight", width, d);
    w->together = 0;
    add_matrix(w, &l->down, "mlp.down_proj.weight", d, width);
}

static void add_layer(struct writer *w, struct layer_weights *l)
{
    const struct model_config *c = w->config;

    add_vector(w, &l->input_norm, "input_layernorm.weight", c->hidden_size);
    add_attention(w, l);
    if (c->has_indexer[w->layer])
        add_indexer(w, l);
    add_vector(w, &l->post_norm, "post_attention_layernorm.weight", c->hidden_size);
    if (c->is_moe[w->layer])
        add_moe(w, l);
    if (c->shortcut_moe || !c->is_moe[w->layer])
        add_dense(w, l);
}

/* The last item added is `other` where a checkpoint has none of its own. */
static void or_else(struct writer *w, const struct tensor *other)
{
    w->list->items[w->list->n - 1].stand_in = other;
}

/* eh_proj is no WEIGHT_MATRIX: released files have it in bf16 beside FP8, and so it is kept. */
static void add_mtp(struct writer *w, struct mtp_weights *m, const struct model_weights *model)
{
    int64_t d = w->config->hidden_size, vocab = w->config->vocab_size;

    add_vector(w, &m->embed_norm, "enorm.weight", d);
    add_vector(w, &m->hidden_norm, "hnorm.weight", d);
    add(w, &m->join, WEIGHT_TABLE, "eh_proj.weight", d, 2 * d);
    add_vector(w, &m->final_norm, "shared_head.norm.weight", d);
    add(w, &m->embed, WEIGHT_TABLE, "embed_tokens.weight", vocab, d);
    or_else(w, &model->embed);
    add_matrix(w, &m->lm_head, "shared_head.head.weight", vocab, d);
    or_else(w, &model->lm_head);
}

struct weight_list weight_list_new(struct model_weights *weights, const struct model_config *config)
{
    size_t most = (size_t)model_config_all_layers(config) * MAX_ITEMS_PER_LAYER +
                  (size_t)config->mtp_layers * MAX_ITEMS_PER_MTP + MAX_OTHERS;
    struct weight_list list = {.items = mem_zalloc(most, sizeof(*list.items))};
    struct writer w = {.list = &list, .config = config, .layer = -1};
    int64_t d = config->hidden_size;

    add(&w, &weights->embed, WEIGHT_TABLE, "model.embed_tokens.weight", config->vocab_size, d);
    for (w.layer = 0; w.layer < config->layers; w.layer++)
        add_layer(&w, &weights->layers[w.layer]);
    w.layer = -1;
    add_scaled(&w, &weights->final_norm, "model.norm.weight", d, config->norm_scale.final);
    add_matrix(&w, &weights->lm_head, "lm_head.weight", config->vocab_size, d);
    if (config->tie_embeddings)
        or_else(&w, &weights->embed);
    for (int32_t i = 0; i < config->mtp_layers; i++) {
        w.layer = config->layers + i;
        add_mtp(&w, &weights->mtp[i], weights);
        add_layer(&w, &weights->layers[w.layer]);
    }
    return list;
}

void weight_list_leave_out(struct weight_list *list, int i)
{
    struct weight_item item = list->items[i];

    ASSERT(i < list->n && item.stand_in);
    /* Behind those that were left out before. */
    memmove(&list->items[i], &list->items[i + 1],
            (size_t)(list->n + list->n_left_out - i - 1) * sizeof(item));
    list->n--;
    list->items[list->n + list->n_left_out++] = item;
}

void weight_list_bind(const struct weight_list *list)
{
    /* In the order of the list: one may stand in for the next. */
    for (int i = list->n; i < list->n + list->n_left_out; i++)
        *list->items[i].dst = *list->items[i].stand_in;
}

void weight_list_free(struct weight_list *list)
{
    free(list->items);
    *list = (struct weight_list){0};
}

void weight_name(const struct weight_item *item, int32_t expert, char out[WEIGHT_NAME_BYTES])
{
    if (item->layer < 0)
        snprintf(out, WEIGHT_NAME_BYTES, "%s", item->part);
    else if (item->experts == 0)
        snprintf(out, WEIGHT_NAME_BYTES, "model.layers.%d.%s", item->layer, item->part);
    else
        snprintf(out, WEIGHT_NAME_BYTES, "model.layers.%d.mlp.experts.%d.%s", item->layer, expert,
                 item->part);
}

int weight_shape(const struct weight_item *item, int64_t shape[TENSOR_MAX_RANK])
{
    int rank = 0;

    if (item->experts)
        shape[rank++] = item->experts;
    shape[rank++] = item->rows;
    if (item->cols)
        shape[rank++] = item->cols;
    return rank;
}
