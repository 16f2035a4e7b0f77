/* The forward pass of DeepSeek V2 / V3 style models over the backend's operations.
 *
 * Layers of multi-token prediction, where they are loaded, are layers after the last, each with a
 * beginning and an end of its own (model_draft).
 *
 * The model owns its weights, one set of activations sized for the largest batch, and one KV cache
 * tensor a layer; all of it is the backend's memory. A step works on views of the activations cut
 * to its rows (struct step). Nothing here allocates once model_reserve is done. */
#include "model/model.h"

#include "base/memory.h"
#include "model/weights.h"

#include <stdlib.h>

/* Rows of activations: T of the batch, or R of its logit rows. */
struct step {
    struct tensor x;               /* (T, d) residual stream */
    struct tensor h;               /* (T, d) normalised input of a block */
    struct tensor q_a, q_a_norm;   /* (T, q_lora_rank) */
    struct tensor q;               /* (T, H * (nope + rope)) */
    struct tensor kv;              /* (T, kv_lora_rank + rope) */
    struct tensor attn;            /* (T, H * v) */
    struct tensor index_q;         /* (T, index heads * dim) */
    struct tensor index_k;         /* (T, index dim) */
    struct tensor index_weights;   /* (T, index heads) F32 */
    struct tensor hidden;          /* (T, i) dense FFN */
    struct tensor joined;          /* (T, 2 d) what a layer of multi-token prediction takes, */
    struct tensor hidden_out;      /* (T, d) and what it gets from the pass before; or none */
    struct tensor shortcut;        /* (T, d) what the next layer's experts take, or none */
    struct tensor moe;             /* (T, d) what experts give, where a norm follows, or none */
    struct tensor router;          /* (T, experts) F32 */
    struct tensor expert_ids;      /* (T, top_k) I32 */
    struct tensor expert_weights;  /* (T, top_k) F32 */
    struct tensor last, last_norm; /* (R, d) */
    struct tensor logits;          /* (R, V) F32 */
};

enum { N_ACTIVATIONS = sizeof(struct step) / sizeof(struct tensor) };

struct model {
    struct model_config config;
    struct model_weights weights;
    struct backend *be;
    struct tensor kv_cache[MODEL_MAX_LAYERS];  /* see struct mla_layer */
    struct tensor key_cache[MODEL_MAX_LAYERS]; /* of layers with an indexer: struct index_layer */
    struct step memory;                        /* at full size */
};

static const struct tensor NONE;

struct model *model_load(const char *dir, const struct model_config *config, struct backend *be,
                         const atomic_int *cancel, struct error *err)
{
    struct model *model = mem_zalloc(1, sizeof(*model));

    model->config = *config;
    model->be = be;
    if (dir ? weights_load(&model->weights, config, dir, be, cancel, err)
            : weights_random(&model->weights, config, be, cancel, err)) {
        free(model);
        return NULL;
    }
    return model;
}

int model_want_mtp(struct model_config *config, const char *dir, struct error *err)
{
    config->mtp_layers = config->mtp_declared;
    return dir ? weights_count_mtp(config, dir, &config->mtp_layers, err) : 0;
}

uint64_t model_weight_bytes(const struct model_config *config, size_t matrix_bytes,
                            const struct backend *be)
{
    return weights_bytes(config, matrix_bytes, be);
}

size_t model_kv_token_bytes(const struct model_config *config, enum dtype kv_dtype)
{
    size_t elements = (size_t)kv_row_elements(&config->mla, kv_dtype);
    size_t bytes = elements * dtype_size(kv_dtype) * (size_t)model_config_all_layers(config);

    for (int i = 0; i < model_config_all_layers(config); i++)
        if (config->has_indexer[i])
            bytes += (size_t)config->index.dim * dtype_size(index_key_dtype(kv_dtype));
    return bytes;
}

/* A (rows, columns) activation; none when it has no columns. */
static int alloc_rows(struct model *model, struct tensor *t, enum dtype dtype, int32_t rows,
                      int64_t columns, struct error *err)
{
    int64_t shape[] = {rows, columns};

    if (columns == 0)
        return 0;
    return model->be->ops->alloc(model->be, t, dtype, 2, shape, err);
}

static int alloc_activations(struct model *model, struct batch_limits limits, struct error *err)
{
    const struct model_config *c = &model->config;
    struct step *m = &model->memory;
    enum dtype act = model->be->activation_dtype;
    int32_t rows = limits.max_rows, last_rows = limits.max_logits;
    int64_t d = c->hidden_size, heads = c->mla.heads;
    int64_t top_k = c->router.experts ? c->router.top_k : 0;
    const struct {
        struct tensor *t;
        enum dtype dtype;
        int32_t rows;
        int64_t columns;
    } wanted[] = {
        {&m->x, act, rows, d},
        {&m->h, act, rows, d},
        {&m->q_a, act, rows, c->q_lora_rank},
        {&m->q_a_norm, act, rows, c->q_lora_rank},
        {&m->q, act, rows, heads * (c->mla.nope_dim + c->mla.rope_dim)},
        {&m->kv, act, rows, c->mla.kv_lora_rank + c->mla.rope_dim},
        {&m->attn, act, rows, heads * c->mla.v_dim},
        {&m->index_q, act, rows, (int64_t)c->index.heads * c->index.dim},
        {&m->index_k, act, rows, c->index.dim},
        {&m->index_weights, DTYPE_F32, rows, c->index.heads},
        {&m->hidden, act, rows, c->dense_intermediate},
        {&m->joined, act, rows, c->mtp_layers ? 2 * d : 0},
        {&m->hidden_out, act, rows, c->mtp_layers ? d : 0},
        {&m->shortcut, act, rows, c->shortcut_moe ? d : 0},
        {&m->moe, act, rows, c->moe_post_norm ? d : 0},
        {&m->router, DTYPE_F32, rows, c->router.experts + c->router.identity},
        {&m->expert_ids, DTYPE_I32, rows, top_k},
        {&m->expert_weights, DTYPE_F32, rows, top_k},
        {&m->last, act, last_rows, d},
        {&m->last_norm, act, last_rows, d},
        {&m->logits, DTYPE_F32, last_rows, c->vocab_size},
    };

    _Static_assert(sizeof(wanted) / sizeof(wanted[0]) == N_ACTIVATIONS, "each is allocated");
    for (int i = 0; i < N_ACTIVATIONS; i++)
        if (alloc_rows(model, wanted[i].t, wanted[i].dtype, wanted[i].rows, wanted[i].columns, err))
            return -1;
    return 0;
}

void model_free(struct model *model)
{
    struct tensor *activations = (struct tensor *)&model->memory;

    for (int i = 0; i < N_ACTIVATIONS; i++)
        model->be->ops->release(model->be, &activations[i]);
    for (int i = 0; i < model_config_all_layers(&model->config); i++) {
        model->be->ops->release(model->be, &model->kv_cache[i]);
        model->be->ops->release(model->be, &model->key_cache[i]);
    }
    weights_free(&model->weights, &model->config, model->be);
    free(model);
}

/* The activations cut to a number of rows and of logit rows. */
static struct step step_views(const struct model *model, int32_t rows, int32_t logit_rows)
{
    struct step s = model->memory;
    struct tensor *views = (struct tensor *)&s;

    for (int i = 0; i < N_ACTIVATIONS; i++) {
        bool of_logits = &views[i] >= &s.last;
        if (views[i].data)
            views[i] = tensor_rows(views[i], of_logits ? logit_rows : rows);
    }
    return s;
}

/* out = x weight^T + bias. */
static void linear(struct backend *be, struct tensor out, struct tensor x, struct tensor weight,
                   struct tensor bias)
{
    be->ops->linear(be, x, &(struct linear_part){out, weight, bias, NONE}, 1);
}

/* sum += x weight^T + bias. */
static void linear_add(struct backend *be, struct tensor sum, struct tensor x, struct tensor weight,
                       struct tensor bias)
{
    be->ops->linear(be, x, &(struct linear_part){sum, weight, bias, sum}, 1);
}

/* Chooses the tokens that rows attend to in this layer and those after it without an indexer. */
static void choose_tokens(struct model *model, const struct step *s, int layer)
{
    const struct model_config *c = &model->config;
    const struct layer_weights *w = &model->weights.layers[layer];
    struct backend *be = model->be;
    struct index_layer index = {.shape = c->index,
                                .norm = w->index.norm,
                                .norm_bias = w->index.norm_bias,
                                .key_cache = model->key_cache[layer]};

    linear(be, s->index_q, s->q_a_norm, w->index.q, NONE);
    linear(be, s->index_weights, s->h, w->index.weights, NONE);
    be->ops->index_tokens(be, s->index_q, s->index_k, s->index_weights, &index, &c->index_rope);
}

/* x += attention of h (DeepSeek-V2, section 2.1); writes the rows' latents to the layer's cache. */
static void attention(struct model *model, const struct step *s, int layer)
{
    const struct model_config *c = &model->config;
    const struct layer_weights *w = &model->weights.layers[layer];
    struct backend *be = model->be;
    const struct backend_ops *op = be->ops;
    struct mla_layer mla = {.shape = c->mla, .kv_b = w->kv_b, .kv_cache = model->kv_cache[layer]};
    struct linear_part down[] = {{s->kv, w->kv_a, w->kv_a_bias, NONE},
                                 {s->q_a, w->q_a, w->q_a_bias, NONE},
                                 {s->index_k, w->index.k, NONE, NONE}};
    struct linear_part direct[] = {down[0], {s->q, w->q, NONE, NONE}};

    op->linear(be, s->h, c->q_lora_rank ? down : direct, c->has_indexer[layer] ? 3 : 2);
    if (c->q_lora_rank) {
        op->rmsnorm(be, s->q_a_norm, s->q_a, w->q_a_norm, c->lora_norm_eps);
        linear(be, s->q, s->q_a_norm, w->q, NONE);
    }
    if (c->query_scale.beta > 0)
        op->scale_by_position(be, s->q, c->query_scale.beta, c->query_scale.every);
    if (c->has_indexer[layer])
        choose_tokens(model, s, layer);
    op->rope_kv_write(be, s->q, s->kv, &mla, w->kv_a_norm, c->lora_norm_eps, &c->rope);
    op->mla_prefill(be, s->attn, s->q, &mla);
    op->mla_decode(be, s->attn, s->q, &mla);
    linear_add(be, s->x, s->attn, w->o, w->o_bias);
}

/* x += down(silu(gate h) * up h). */
static void dense_ffn(struct model *model, const struct step *s, const struct layer_weights *w,
                      struct tensor h)
{
    struct backend *be = model->be;

    be->ops->gated(be, s->hidden, h, w->gate, w->up);
    linear_add(be, s->x, s->hidden, w->down, NONE);
}

/* x += routed experts of h, and the shared ones; or the norm of all that. */
static void moe_ffn(struct model *model, const struct step *s, const struct layer_weights *w,
                    struct tensor h)
{
    const struct model_config *c = &model->config;
    struct backend *be = model->be;
    const struct backend_ops *op = be->ops;
    struct ffn_weights shared = {w->gate, w->up, w->down};
    bool normed = c->moe_post_norm;

    linear(be, s->router, h, w->router, NONE);
    op->route(be, s->expert_ids, s->expert_weights, s->router, w->router_bias, &c->router);
    if (c->router.identity > 0)
        op->identity_experts(be, s->x, h, s->expert_ids, s->expert_weights, c->router.experts);
    op->moe(be, normed ? s->moe : s->x, normed ? NONE : s->x, h, s->expert_ids, s->expert_weights,
            &w->experts, c->shared_intermediate ? &shared : NULL);
    if (normed) {
        op->rmsnorm(be, s->moe, s->moe, w->moe_norm, c->rms_norm_eps);
        op->add(be, s->x, s->moe);
    }
}

/* The second half of a layer: x += feed-forward of the normalised x. With shortcut_moe that of a
 * pair's first layer is kept for the experts of its second. */
static void feed_forward(struct model *model, const struct step *s, int layer)
{
    const struct model_config *c = &model->config;
    const struct layer_weights *w = &model->weights.layers[layer];
    struct tensor h = c->shortcut_moe && layer % 2 == 0 ? s->shortcut : s->h;

    model->be->ops->rmsnorm(model->be, h, s->x, w->post_norm, c->rms_norm_eps);
    if (c->shortcut_moe || !c->is_moe[layer])
        dense_ffn(model, s, w, h);
    if (c->is_moe[layer])
        moe_ffn(model, s, w, c->shortcut_moe ? s->shortcut : h);
}

static void layer_forward(struct model *model, const struct step *s, int layer)
{
    const struct layer_weights *w = &model->weights.layers[layer];

    model->be->ops->rmsnorm(model->be, s->h, s->x, w->input_norm, model->config.rms_norm_eps);
    attention(model, s, layer);
    feed_forward(model, s, layer);
}

/* From x to the logits; where there is multi-token prediction, hidden states for it. */
static void predict(struct model *model, const struct step *s, struct tensor norm,
                    struct tensor lm_head)
{
    const struct model_config *c = &model->config;
    struct backend *be = model->be;
    const struct backend_ops *op = be->ops;

    if (c->mtp_layers)
        op->rmsnorm(be, s->hidden_out, s->x, norm, c->rms_norm_eps);
    op->gather_logit_rows(be, s->last, s->x);
    op->rmsnorm(be, s->last_norm, s->last, norm, c->rms_norm_eps);
    linear(be, s->logits, s->last_norm, lm_head, NONE);
}

/* The whole transformer, from the batch's tokens to s->logits. */
static void forward(struct model *model, const struct step *s)
{
    const struct model_weights *w = &model->weights;

    model->be->ops->embed(model->be, s->x, w->embed, model->config.embed_scale);
    for (int i = 0; i < model->config.layers; i++)
        layer_forward(model, s, i);
    predict(model, s, w->final_norm, w->lm_head);
}

struct tensor model_forward(struct model *model, const struct batch *batch)
{
    struct step s = step_views(model, batch->n_rows, batch->n_logits);

    ASSERT(!batch->draft);
    if (model->be->ops->begin(model->be, batch) == 0)
        forward(model, &s);
    return s.logits;
}

struct model_hidden model_hidden(const struct model *model, const struct batch *batch)
{
    struct step s = step_views(model, batch->n_rows, batch->n_logits);

    ASSERT(model->config.mtp_layers > 0);
    return (struct model_hidden){s.hidden_out, s.last_norm};
}

/* vLLM's deepseek_mtp.py puts 0 in place of the embedding at position 0; DeepSeek's report
 * (equation 21) and SGLang's deepseek_nextn.py don't, nor does this. Both take hidden states after
 * the last norm, of the model and (vLLM from its pull request 45895 on) of the pass before. */
struct tensor model_draft(struct model *model, const struct batch *batch, int32_t layer,
                          struct tensor hidden)
{
    const struct model_config *c = &model->config;
    const struct mtp_weights *w = &model->weights.mtp[layer];
    struct step s = step_views(model, batch->n_rows, batch->n_logits);
    struct backend *be = model->be;
    const struct backend_ops *op = be->ops;

    ASSERT(batch->draft && layer < c->mtp_layers && hidden.shape[0] == batch->n_rows);
    op->begin(be, batch);
    op->embed(be, s.x, w->embed, c->embed_scale);
    op->rmsnorm(be, s.h, s.x, w->embed_norm, c->rms_norm_eps);
    op->rmsnorm(be, s.x, hidden, w->hidden_norm, c->rms_norm_eps);
    op->concat(be, s.joined, s.h, s.x);
    linear(be, s.x, s.joined, w->join, NONE);
    layer_forward(model, &s, c->layers + layer);
    predict(model, &s, w->final_norm, w->lm_head);
    return s.logits;
}

/* Records the decode steps that the backend wants to have as graphs. */
static int capture(struct model *model, struct error *err)
{
    const struct backend_ops *op = model->be->ops;
    int32_t rows;

    for (int32_t graph = 0; (rows = op->capture_begin(model->be, graph)) > 0; graph++) {
        struct step s = step_views(model, rows, rows);
        forward(model, &s);
        op->sample(model->be, s.logits, NULL, NULL);
        if (op->capture_end(model->be, err))
            return -1;
    }
    return 0;
}

int model_reserve(struct model *model, struct batch_limits limits, struct error *err)
{
    if (limits.max_logits == 0)
        limits.max_logits = limits.max_seqs;

    const struct model_config *c = &model->config;
    struct backend_shapes shapes = {.hidden_size = c->hidden_size,
                                    .mla = c->mla,
                                    .router = c->router,
                                    .moe_intermediate = c->moe_intermediate,
                                    .shared_intermediate = c->shared_intermediate,
                                    .index = c->index,
                                    .ue8m0 = c->quant_ue8m0};

    if (alloc_activations(model, limits, err))
        return -1;
    return model->be->ops->reserve(model->be, &shapes, err);
}

int model_open_cache(struct model *model, int32_t kv_pages, struct error *err)
{
    const struct model_config *c = &model->config;
    enum dtype kv = model->be->kv_dtype, key = index_key_dtype(kv);
    int64_t shape[] = {kv_pages, KV_PAGE_TOKENS, kv_row_elements(&c->mla, kv)};
    int64_t key_shape[] = {kv_pages, KV_PAGE_TOKENS, c->index.dim};
    const struct backend_ops *op = model->be->ops;

    for (int i = 0; i < model_config_all_layers(c); i++)
        if (op->alloc(model->be, &model->kv_cache[i], kv, 3, shape, err) ||
            (c->has_indexer[i] &&
             op->alloc(model->be, &model->key_cache[i], key, 3, key_shape, err)))
            return -1;
    return capture(model, err);
}

void model_randomize_cache(struct model *model)
{
    struct backend *be = model->be;
    struct error err;

    for (int i = 0; i < model->config.layers && be->kv_dtype != DTYPE_F8_E4M3; i++)
        be->ops->fill_random(be, &model->kv_cache[i], (uint64_t)i + 1, 1, &err);
}
