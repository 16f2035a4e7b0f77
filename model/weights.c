/* Names of a checkpoint, their shapes, and what is done to a tensor on its way to the backend.
 *
 * One tensor at a time goes through `staging` on the host: read in the file's dtype, or read into
 * `raw` and converted to F32 when it is FP8 or the forward pass wants F32. The experts of a layer
 * go as one block, (experts, rows, cols), put together in `staging`. Both buffers grow to the
 * largest tensor and are kept until the end. Tensors that the graph has no place for (the
 * multi-token prediction layer after the last, rotary inv_freq) are never looked at. */
#include "model/weights.h"

#include "base/memory.h"
#include "kernels/widen.h"
#include "model/dequant.h"
#include "model/safetensors.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PART_MAX_BYTES = 64, NAME_MAX_BYTES = 96, SHAPE_TEXT_BYTES = 96 };

struct scratch {
    void *data;
    size_t size;
};

struct loader {
    const struct model_config *config;
    struct safetensors *st;
    struct backend *be;
    const atomic_int *cancel;
    struct error *err;
    struct scratch staging, raw, scales;
};

/* How a tensor is handed to the backend. */
enum keep { KEEP_DTYPE, KEEP_AS_F32 };

static void *scratch_of(struct scratch *s, size_t size)
{
    if (s->size < size) {
        free(s->data); /* its contents need not be copied */
        s->data = mem_alloc(size);
        s->size = size;
    }
    return s->data;
}

static const char *shape_text(char out[SHAPE_TEXT_BYTES], const struct tensor *t)
{
    int used = snprintf(out, SHAPE_TEXT_BYTES, "(");

    for (int i = 0; i < t->rank; i++)
        used += snprintf(out + used, (size_t)(SHAPE_TEXT_BYTES - used), "%s%lld", i ? ", " : "",
                         (long long)t->shape[i]);
    snprintf(out + used, (size_t)(SHAPE_TEXT_BYTES - used), ")");
    return out;
}

/* Looks the tensor up; its shape must be that of `want`. */
static int find_tensor(const struct loader *l, const char *name, const struct tensor *want,
                       struct tensor *info)
{
    char expected[SHAPE_TEXT_BYTES], found[SHAPE_TEXT_BYTES];
    bool same;

    if (l->cancel && *l->cancel)
        return error_set(l->err, "loading the model was cancelled");
    if (safetensors_info(l->st, name, info, l->err))
        return -1;
    same = info->rank == want->rank;
    for (int i = 0; same && i < want->rank; i++)
        same = info->shape[i] == want->shape[i];
    if (!same)
        return error_set(l->err, "%s: tensor \"%s\" must have shape %s by config.json, found %s",
                         safetensors_file(l->st, name), name, shape_text(expected, want),
                         shape_text(found, info));
    if (info->dtype == DTYPE_I32 || info->dtype == DTYPE_I64)
        return error_set(l->err, "%s: tensor \"%s\" holds whole numbers, not floats",
                         safetensors_file(l->st, name), name);
    return 0;
}

/* Reads any float tensor but FP8 into `out` as F32. */
static int read_widened(struct loader *l, const char *name, const struct tensor *info, float *out)
{
    if (info->dtype == DTYPE_F32)
        return safetensors_read(l->st, name, out, l->err);
    void *raw = scratch_of(&l->raw, tensor_bytes(info));
    if (safetensors_read(l->st, name, raw, l->err))
        return -1;
    widen_to_f32(out, raw, info->dtype, tensor_elements(info));
    return 0;
}

/* Reads an FP8 matrix "X" and its block scales "X_scale_inv" into `out` as F32. */
static int read_fp8(struct loader *l, const char *name, const struct tensor *info, float *out)
{
    const int32_t *block = l->config->quant_block;
    char scale_name[NAME_MAX_BYTES + 16];
    struct tensor want = {.rank = 2}, scale_info;

    if (l->config->quantization != QUANT_FP8_BLOCK || info->rank != 2)
        return error_set(
            l->err, "%s: tensor \"%s\" is F8_E4M3, but %s", safetensors_file(l->st, name), name,
            info->rank != 2 ? "only matrices can be" : "config.json has no quantization_config");
    snprintf(scale_name, sizeof(scale_name), "%s_scale_inv", name);
    for (int i = 0; i < 2; i++)
        want.shape[i] = (info->shape[i] + block[i] - 1) / block[i];
    if (find_tensor(l, scale_name, &want, &scale_info))
        return error_prefix(l->err, "the scales of an FP8 tensor");
    if (scale_info.dtype == DTYPE_F8_E4M3)
        return error_set(l->err, "%s: tensor \"%s\" can't be F8_E4M3 itself",
                         safetensors_file(l->st, scale_name), scale_name);
    float *scales = scratch_of(&l->scales, (size_t)tensor_elements(&want) * sizeof(float));
    if (read_widened(l, scale_name, &scale_info, scales))
        return -1;
    void *raw = scratch_of(&l->raw, tensor_bytes(info));
    if (safetensors_read(l->st, name, raw, l->err))
        return -1;
    dequant_fp8_blocks(out, raw, scales, info->shape[0], info->shape[1], block);
    return 0;
}

/* Reads a tensor into `out` as `dtype`: its own, or F32. */
static int read_as(struct loader *l, const char *name, const struct tensor *info, enum dtype dtype,
                   void *out)
{
    if (info->dtype == dtype)
        return safetensors_read(l->st, name, out, l->err);
    ASSERT(dtype == DTYPE_F32);
    return info->dtype == DTYPE_F8_E4M3 ? read_fp8(l, name, info, out)
                                        : read_widened(l, name, info, out);
}

/* The dtype a tensor has on the host: FP8 is multiplied out. */
static enum dtype host_dtype(const struct tensor *info, enum keep keep)
{
    return keep == KEEP_AS_F32 || info->dtype == DTYPE_F8_E4M3 ? DTYPE_F32 : info->dtype;
}

/* Loads tensor `name` of shape (rows, cols), or (rows) when `cols` is 0. */
static int load(struct loader *l, struct tensor *dst, enum keep keep, const char *name,
                int64_t rows, int64_t cols)
{
    struct tensor host = {.rank = cols ? 2 : 1, .shape = {rows, cols}}, info;

    if (find_tensor(l, name, &host, &info))
        return -1;
    host.dtype = host_dtype(&info, keep);
    host.data = scratch_of(&l->staging, tensor_bytes(&host));
    if (read_as(l, name, &info, host.dtype, host.data))
        return -1;
    if (l->be->ops->upload(l->be, dst, &host, l->err))
        return error_prefix(l->err, "%s", name);
    return 0;
}

/* The same for "model.layers.LAYER.PART". */
static int load_part(struct loader *l, struct tensor *dst, int layer, const char *part,
                     int64_t rows, int64_t cols)
{
    char name[NAME_MAX_BYTES];

    snprintf(name, sizeof(name), "model.layers.%d.%s", layer, part);
    return load(l, dst, KEEP_DTYPE, name, rows, cols);
}

static void expert_name(char out[NAME_MAX_BYTES], int layer, int expert, const char *part)
{
    snprintf(out, NAME_MAX_BYTES, "model.layers.%d.mlp.experts.%d.%s.weight", layer, expert, part);
}

/* One projection of all experts as a block (experts, rows, cols). Its dtype is that of the experts,
 * or F32 when they differ. */
static int load_experts(struct loader *l, struct tensor *dst, int layer, const char *part,
                        int64_t rows, int64_t cols)
{
    int32_t experts = l->config->router.experts;
    struct tensor one = {.rank = 2, .shape = {rows, cols}}, info;
    struct tensor host = {.rank = 3, .shape = {experts, rows, cols}};
    char name[NAME_MAX_BYTES];

    for (int e = 0; e < experts; e++) {
        expert_name(name, layer, e, part);
        if (find_tensor(l, name, &one, &info))
            return -1;
        enum dtype dtype = host_dtype(&info, KEEP_DTYPE);
        host.dtype = e == 0 || host.dtype == dtype ? dtype : DTYPE_F32;
    }
    one.dtype = host.dtype;
    host.data = scratch_of(&l->staging, tensor_bytes(&host));
    for (int e = 0; e < experts; e++) {
        expert_name(name, layer, e, part);
        if (find_tensor(l, name, &one, &info) ||
            read_as(l, name, &info, host.dtype, (char *)host.data + (size_t)e * tensor_bytes(&one)))
            return -1;
    }
    if (l->be->ops->upload(l->be, dst, &host, l->err))
        return error_prefix(l->err, "model.layers.%d.mlp.experts.*.%s", layer, part);
    return 0;
}

static int load_attention(struct loader *l, struct layer_weights *w, int n)
{
    const struct model_config *c = l->config;
    const struct mla_shape *mla = &c->mla;
    int64_t d = c->hidden_size, q_lora = c->q_lora_rank, kv_lora = mla->kv_lora_rank;
    int64_t q_rows = (int64_t)mla->heads * (mla->nope_dim + mla->rope_dim);
    int64_t kv_rows = (int64_t)mla->heads * (mla->nope_dim + mla->v_dim);

    if (q_lora == 0) {
        if (load_part(l, &w->q, n, "self_attn.q_proj.weight", q_rows, d))
            return -1;
    } else if (load_part(l, &w->q_a, n, "self_attn.q_a_proj.weight", q_lora, d) ||
               load_part(l, &w->q_a_norm, n, "self_attn.q_a_layernorm.weight", q_lora, 0) ||
               load_part(l, &w->q, n, "self_attn.q_b_proj.weight", q_rows, q_lora)) {
        return -1;
    }
    if (load_part(l, &w->kv_a, n, "self_attn.kv_a_proj_with_mqa.weight", kv_lora + mla->rope_dim,
                  d) ||
        load_part(l, &w->kv_a_norm, n, "self_attn.kv_a_layernorm.weight", kv_lora, 0) ||
        load_part(l, &w->kv_b, n, "self_attn.kv_b_proj.weight", kv_rows, kv_lora) ||
        load_part(l, &w->o, n, "self_attn.o_proj.weight", d, (int64_t)mla->heads * mla->v_dim))
        return -1;
    if (!c->attention_bias) /* which q_proj, q_b and kv_b never have */
        return 0;
    if ((q_lora && load_part(l, &w->q_a_bias, n, "self_attn.q_a_proj.bias", q_lora, 0)) ||
        load_part(l, &w->kv_a_bias, n, "self_attn.kv_a_proj_with_mqa.bias", kv_lora + mla->rope_dim,
                  0) ||
        load_part(l, &w->o_bias, n, "self_attn.o_proj.bias", d, 0))
        return -1;
    return 0;
}

/* gate_proj, up_proj and down_proj under `prefix` ("mlp"), `width` wide. */
static int load_mlp(struct loader *l, struct layer_weights *w, int n, const char *prefix,
                    int64_t width)
{
    int64_t d = l->config->hidden_size;
    char part[PART_MAX_BYTES];

    snprintf(part, sizeof(part), "%s.gate_proj.weight", prefix);
    if (load_part(l, &w->gate, n, part, width, d))
        return -1;
    snprintf(part, sizeof(part), "%s.up_proj.weight", prefix);
    if (load_part(l, &w->up, n, part, width, d))
        return -1;
    snprintf(part, sizeof(part), "%s.down_proj.weight", prefix);
    return load_part(l, &w->down, n, part, d, width);
}

static int load_moe(struct loader *l, struct layer_weights *w, int n)
{
    const struct model_config *c = l->config;
    int64_t d = c->hidden_size, width = c->moe_intermediate;
    char name[NAME_MAX_BYTES];

    snprintf(name, sizeof(name), "model.layers.%d.mlp.gate.weight", n);
    if (load(l, &w->router, KEEP_AS_F32, name, c->router.experts, d))
        return -1;
    snprintf(name, sizeof(name), "model.layers.%d.mlp.gate.e_score_correction_bias", n);
    if (c->router_bias && load(l, &w->router_bias, KEEP_AS_F32, name, c->router.experts, 0))
        return -1;
    if (load_experts(l, &w->experts.gate, n, "gate_proj", width, d) ||
        load_experts(l, &w->experts.up, n, "up_proj", width, d) ||
        load_experts(l, &w->experts.down, n, "down_proj", d, width))
        return -1;
    if (c->shared_intermediate == 0)
        return 0;
    return load_mlp(l, w, n, "mlp.shared_experts", c->shared_intermediate);
}

static int load_layer(struct loader *l, struct layer_weights *w, int n)
{
    const struct model_config *c = l->config;

    if (load_part(l, &w->input_norm, n, "input_layernorm.weight", c->hidden_size, 0) ||
        load_attention(l, w, n) ||
        load_part(l, &w->post_norm, n, "post_attention_layernorm.weight", c->hidden_size, 0))
        return -1;
    return c->is_moe[n] ? load_moe(l, w, n) : load_mlp(l, w, n, "mlp", c->dense_intermediate);
}

static int load_model(struct loader *l, struct model_weights *w)
{
    const struct model_config *c = l->config;

    if (load(l, &w->embed, KEEP_DTYPE, "model.embed_tokens.weight", c->vocab_size, c->hidden_size))
        return -1;
    for (int n = 0; n < c->layers; n++)
        if (load_layer(l, &w->layers[n], n))
            return -1;
    if (load(l, &w->final_norm, KEEP_DTYPE, "model.norm.weight", c->hidden_size, 0))
        return -1;
    /* A head of its own counts even in a tied model, as in transformers. */
    if (!c->tie_embeddings || safetensors_has(l->st, "lm_head.weight"))
        return load(l, &w->lm_head, KEEP_DTYPE, "lm_head.weight", c->vocab_size, c->hidden_size);
    w->lm_head = w->embed;
    return 0;
}

int weights_load(struct model_weights *weights, const struct model_config *config, const char *dir,
                 struct backend *be, const atomic_int *cancel, struct error *err)
{
    struct loader l = {.config = config, .be = be, .cancel = cancel, .err = err};
    int rc;

    memset(weights, 0, sizeof(*weights));
    l.st = safetensors_open(dir, err);
    if (!l.st)
        return -1;
    weights->layers = mem_zalloc((size_t)config->layers, sizeof(*weights->layers));
    rc = load_model(&l, weights);
    if (rc)
        weights_free(weights, config, be);
    free(l.staging.data);
    free(l.raw.data);
    free(l.scales.data);
    safetensors_close(l.st);
    return rc;
}

static void release(struct backend *be, struct tensor *t)
{
    if (t->data)
        be->ops->release(be, t);
    t->data = NULL;
}

static void free_layer(struct layer_weights *w, struct backend *be)
{
    struct tensor *const all[] = {
        &w->input_norm, &w->post_norm,    &w->q,         &w->q_a,         &w->q_a_bias,
        &w->q_a_norm,   &w->kv_a,         &w->kv_a_bias, &w->kv_a_norm,   &w->kv_b,
        &w->o,          &w->o_bias,       &w->router,    &w->router_bias, &w->experts.gate,
        &w->experts.up, &w->experts.down, &w->gate,      &w->up,          &w->down,
    };

    _Static_assert(sizeof(all) / sizeof(*all) == sizeof(*w) / sizeof(struct tensor),
                   "every tensor of a layer is released");
    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
        release(be, all[i]);
}

void weights_free(struct model_weights *weights, const struct model_config *config,
                  struct backend *be)
{
    if (weights->lm_head.data == weights->embed.data) /* tied: one memory, freed once */
        weights->lm_head.data = NULL;
    release(be, &weights->embed);
    release(be, &weights->final_norm);
    release(be, &weights->lm_head);
    for (int n = 0; weights->layers && n < config->layers; n++)
        free_layer(&weights->layers[n], be);
    free(weights->layers);
    weights->layers = NULL;
}
