/* The forward pass of DeepSeek V2 / V3 style models over the backend's operations.
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
    struct tensor x;                      /* (T, d) residual stream */
    struct tensor h;                      /* (T, d) normalised input of a block */
    struct tensor y;                      /* (T, d) output of a block */
    struct tensor q_a, q_a_norm;          /* (T, q_lora_rank) */
    struct tensor q;                      /* (T, H * (nope + rope)) */
    struct tensor kv;                     /* (T, kv_lora_rank + rope) */
    struct tensor attn;                   /* (T, H * v) */
    struct tensor gate, up;               /* (T, i) dense FFN */
    struct tensor shared_gate, shared_up; /* (T, i) shared experts */
    struct tensor shared;                 /* (T, d) shared experts' output */
    struct tensor router;                 /* (T, experts) F32 */
    struct tensor expert_ids;             /* (T, top_k) I32 */
    struct tensor expert_weights;         /* (T, top_k) F32 */
    struct tensor last, last_norm;        /* (R, d) */
    struct tensor logits;                 /* (R, V) F32 */
};

enum { N_ACTIVATIONS = sizeof(struct step) / sizeof(struct tensor) };

struct model {
    struct model_config config;
    struct model_weights weights;
    struct backend *be;
    struct tensor kv_cache[MODEL_MAX_LAYERS]; /* see struct mla_layer */
    struct step memory;                       /* at full size */
};

static const struct tensor NO_BIAS;

struct model *model_load(const char *dir, const struct model_config *config, struct backend *be,
                         const atomic_int *cancel, struct error *err)
{
    struct model *model = mem_zalloc(1, sizeof(*model));

    model->config = *config;
    model->be = be;
    if (weights_load(&model->weights, config, dir, be, cancel, err)) {
        free(model);
        return NULL;
    }
    return model;
}

size_t model_kv_token_bytes(const struct model_config *config, enum dtype kv_dtype)
{
    size_t width = (size_t)(config->mla.kv_lora_rank + config->mla.rope_dim);

    return width * dtype_size(kv_dtype) * (size_t)config->layers;
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
        {&m->y, act, rows, d},
        {&m->q_a, act, rows, c->q_lora_rank},
        {&m->q_a_norm, act, rows, c->q_lora_rank},
        {&m->q, act, rows, heads * (c->mla.nope_dim + c->mla.rope_dim)},
        {&m->kv, act, rows, c->mla.kv_lora_rank + c->mla.rope_dim},
        {&m->attn, act, rows, heads * c->mla.v_dim},
        {&m->gate, act, rows, c->dense_intermediate},
        {&m->up, act, rows, c->dense_intermediate},
        {&m->shared_gate, act, rows, c->shared_intermediate},
        {&m->shared_up, act, rows, c->shared_intermediate},
        {&m->shared, act, rows, c->shared_intermediate ? d : 0},
        {&m->router, DTYPE_F32, rows, c->router.experts},
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

int model_reserve(struct model *model, struct batch_limits limits, int32_t kv_pages,
                  struct error *err)
{
    if (limits.max_logits == 0)
        limits.max_logits = limits.max_seqs;

    const struct model_config *c = &model->config;
    int64_t width = c->mla.kv_lora_rank + c->mla.rope_dim;
    int64_t shape[] = {kv_pages, KV_PAGE_TOKENS, width};

    for (int i = 0; i < c->layers; i++)
        if (model->be->ops->alloc(model->be, &model->kv_cache[i], model->be->kv_dtype, 3, shape,
                                  err))
            return -1;
    if (alloc_activations(model, limits, err))
        return -1;
    return model->be->ops->reserve(model->be, &c->mla, &c->router, c->moe_intermediate, err);
}

void model_free(struct model *model)
{
    struct tensor *activations = (struct tensor *)&model->memory;

    for (int i = 0; i < N_ACTIVATIONS; i++)
        model->be->ops->release(model->be, &activations[i]);
    for (int i = 0; i < model->config.layers; i++)
        model->be->ops->release(model->be, &model->kv_cache[i]);
    weights_free(&model->weights, &model->config, model->be);
    free(model);
}

/* The activations cut to the rows of a batch. */
static struct step step_views(const struct model *model, const struct batch *batch)
{
    struct step s = model->memory;
    struct tensor *views = (struct tensor *)&s;

    for (int i = 0; i < N_ACTIVATIONS; i++) {
        bool of_logits = &views[i] >= &s.last;
        if (views[i].data)
            views[i] = tensor_rows(views[i], of_logits ? batch->n_logits : batch->n_rows);
    }
    return s;
}

/* y = attention of h (DeepSeek-V2, section 2.1); writes the rows' latents to the layer's cache. */
static void attention(struct model *model, const struct step *s, int layer)
{
    const struct model_config *c = &model->config;
    const struct layer_weights *w = &model->weights.layers[layer];
    struct backend *be = model->be;
    const struct backend_ops *op = be->ops;
    struct mla_layer mla = {.shape = c->mla, .kv_b = w->kv_b, .kv_cache = model->kv_cache[layer]};

    if (c->q_lora_rank) {
        op->linear(be, s->q_a, s->h, w->q_a, w->q_a_bias);
        op->rmsnorm(be, s->q_a_norm, s->q_a, w->q_a_norm, c->lora_norm_eps);
        op->linear(be, s->q, s->q_a_norm, w->q, NO_BIAS);
    } else {
        op->linear(be, s->q, s->h, w->q, NO_BIAS);
    }
    op->linear(be, s->kv, s->h, w->kv_a, w->kv_a_bias);
    op->rope_kv_write(be, s->q, s->kv, &mla, w->kv_a_norm, c->lora_norm_eps, &c->rope);
    op->mla_prefill(be, s->attn, s->q, &mla);
    op->mla_decode(be, s->attn, s->q, &mla);
    op->linear(be, s->y, s->attn, w->o, w->o_bias);
}

/* out = down(silu(gate h) * up h). */
static void swiglu_ffn(struct model *model, const struct layer_weights *w, struct tensor out,
                       struct tensor h, struct tensor gate, struct tensor up)
{
    struct backend *be = model->be;

    be->ops->linear(be, gate, h, w->gate, NO_BIAS);
    be->ops->linear(be, up, h, w->up, NO_BIAS);
    be->ops->swiglu(be, gate, up);
    be->ops->linear(be, out, gate, w->down, NO_BIAS);
}

/* y = routed experts of h, plus the shared ones. */
static void moe_ffn(struct model *model, const struct step *s, const struct layer_weights *w)
{
    struct backend *be = model->be;
    const struct backend_ops *op = be->ops;

    op->linear(be, s->router, s->h, w->router, NO_BIAS);
    op->route(be, s->expert_ids, s->expert_weights, s->router, w->router_bias,
              &model->config.router);
    op->moe(be, s->y, s->h, s->expert_ids, s->expert_weights, &w->experts);
    if (w->gate.data) {
        swiglu_ffn(model, w, s->shared, s->h, s->shared_gate, s->shared_up);
        op->add(be, s->y, s->shared);
    }
}

struct tensor model_forward(struct model *model, const struct batch *batch)
{
    const struct model_config *c = &model->config;
    const struct model_weights *w = &model->weights;
    struct step s = step_views(model, batch);
    struct backend *be = model->be;
    const struct backend_ops *op = be->ops;

    op->begin(be, batch);
    op->embed(be, s.x, w->embed, 1.0f);
    for (int i = 0; i < c->layers; i++) {
        op->rmsnorm(be, s.h, s.x, w->layers[i].input_norm, c->rms_norm_eps);
        attention(model, &s, i);
        op->add(be, s.x, s.y);
        op->rmsnorm(be, s.h, s.x, w->layers[i].post_norm, c->rms_norm_eps);
        if (c->is_moe[i])
            moe_ffn(model, &s, &w->layers[i]);
        else
            swiglu_ffn(model, &w->layers[i], s.y, s.h, s.gate, s.up);
        op->add(be, s.x, s.y);
    }
    op->gather_logit_rows(be, s.last, s.x);
    op->rmsnorm(be, s.last_norm, s.last, w->final_norm, c->rms_norm_eps);
    op->linear(be, s.logits, s.last_norm, w->lm_head, NO_BIAS);
    return s.logits;
}
