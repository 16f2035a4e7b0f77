/* config.json and generation_config.json to a checked `struct model_config`.
 *
 * Meaning and defaults of the keys are those of transformers 5.17 (models/deepseek_v2,
 * deepseek_v3). What shapes the model must be written in the file all the same: transformers'
 * defaults for it (hidden_size 4096, ...) fit no checkpoint. Not read, because nothing depends on
 * them here: torch_dtype (each tensor names its own type), num_key_value_heads (MLA has one latent
 * for all heads), head_dim, and the keys of training. */
#include "model/config.h"

#include "base/buffer.h"
#include "base/file.h"
#include "base/log.h"
#include "model/config_indexer.h"
#include "model/config_quant.h"
#include "model/config_rope.h"
#include "model/family.h"
#include "model/folder.h"
#include "model/keys.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    CONFIG_MAX_BYTES = 4 << 20,
    MAX_VOCAB = 1 << 24,
    MAX_WIDTH = 1 << 20, /* of a hidden or intermediate vector */
    MAX_HEADS = 1024,
    MAX_HEAD_DIM = 1024,
    MAX_LORA_RANK = 4096,
    MAX_EXPERTS = 4096,
};

/* transformers builds q_a_layernorm and kv_a_layernorm without giving them rms_norm_eps. */
static const float LORA_NORM_EPS = 1e-6f;

static int read_shape(const struct keys *k, const struct graph *graph, struct model_config *c)
{
    static const char *const activations[] = {"silu", NULL};
    int32_t each = graph->shortcut_moe ? 2 : 1; /* layers to one of the file's */
    const char *activation;
    double eps;
    bool mlp_bias;

    if (keys_int(k, "vocab_size", 1, MAX_VOCAB, &c->vocab_size) ||
        keys_int(k, "hidden_size", 1, MAX_WIDTH, &c->hidden_size) ||
        keys_int(k, "num_hidden_layers", 1, MODEL_MAX_LAYERS / each, &c->layers) ||
        keys_int(k, "intermediate_size", 1, MAX_WIDTH, &c->dense_intermediate) ||
        keys_number_or(k, "rms_norm_eps", 1e-6, 1e-12, 0.1, &eps) ||
        keys_choice_or(k, "hidden_act", "silu", activations, &activation) ||
        keys_bool_or(k, "tie_word_embeddings", graph->tie_embeddings, &c->tie_embeddings) ||
        keys_bool_or(k, "attention_bias", false, &c->attention_bias) ||
        keys_bool_or(k, "mlp_bias", false, &mlp_bias))
        return -1;
    if (mlp_bias)
        return keys_refuse(k, "mlp_bias", "false");
    c->layers *= each;
    c->rms_norm_eps = (float)eps;
    c->lora_norm_eps = LORA_NORM_EPS;
    c->shortcut_moe = graph->shortcut_moe;
    c->moe_post_norm = graph->moe_post_norm;
    if (graph->max_positions)
        return keys_int_or(k, "max_position_embeddings", graph->max_positions, 1,
                           CONFIG_MAX_POSITIONS, &c->max_positions);
    return keys_int(k, "max_position_embeddings", 1, CONFIG_MAX_POSITIONS, &c->max_positions);
}

/* MiniCPM's scales: of embeddings (m), of what each block adds to the residual stream (r), and of
 * the head's input (h). Here the stream is kept divided by r, so that blocks are added as they are:
 * what reads it, a norm, is the same for both but for its epsilon. */
static int read_mup(const struct keys *k, struct model_config *c)
{
    double m, depth, base, r;

    if (keys_number_or(k, "scale_emb", 12, 1e-6, 1e6, &m) ||
        keys_number_or(k, "scale_depth", json_get(k->object, "scale_depth") ? sqrt(c->layers) : 1.4,
                       1e-6, 1e6, &depth) ||
        keys_number_or(k, "dim_model_base",
                       json_get(k->object, "dim_model_base") ? c->hidden_size : 256, 1, MAX_WIDTH,
                       &base))
        return -1;
    r = depth / sqrt(c->layers);
    c->embed_scale = (float)(m / r);
    c->rms_norm_eps = (float)((double)c->rms_norm_eps / (r * r));
    c->norm_scale.final = (float)(base / c->hidden_size);
    return 0;
}

/* Factors on what leaves the norms of the two latents; they are multiplied into the norms. */
static int read_lora_scale(const struct keys *k, struct model_config *c)
{
    static const char *const methods[] = {"MLA", NULL};
    const char *method;
    bool q, kv;

    if (keys_choice_or(k, "attention_method", methods[0], methods, &method) ||
        keys_bool_or(k, "mla_scale_q_lora", true, &q) ||
        keys_bool_or(k, "mla_scale_kv_lora", true, &kv))
        return -1;
    if (c->q_lora_rank == 0)
        return keys_refuse(k, "q_lora_rank", "a whole number from 1");
    if (q)
        c->norm_scale.q = (float)sqrt((double)c->hidden_size / c->q_lora_rank);
    if (kv)
        c->norm_scale.kv = (float)sqrt((double)c->hidden_size / c->mla.kv_lora_rank);
    return 0;
}

static int read_attention(const struct keys *k, const struct graph *graph, struct model_config *c)
{
    struct mla_shape *mla = &c->mla;

    if (!keys_get(k, "q_lora_rank") && !graph->q_lora_optional)
        return keys_refuse(k, "q_lora_rank", "a whole number, or null for none");
    if (keys_count_or(k, "q_lora_rank", 0, MAX_LORA_RANK, &c->q_lora_rank) ||
        keys_int(k, "num_attention_heads", 1, MAX_HEADS, &mla->heads) ||
        keys_int(k, "kv_lora_rank", 1, MAX_LORA_RANK, &mla->kv_lora_rank) ||
        keys_int(k, "qk_nope_head_dim", 1, MAX_HEAD_DIM, &mla->nope_dim) ||
        keys_int(k, "qk_rope_head_dim", 2, ROPE_MAX_DIM, &mla->rope_dim))
        return -1;
    if (mla->rope_dim % 2)
        return keys_refuse(k, "qk_rope_head_dim", "an even number");
    mla->v_dim = c->hidden_size / mla->heads;
    if ((!graph->v_head_dim_optional || keys_present(k, "v_head_dim") || mla->v_dim < 1 ||
         mla->v_dim > MAX_HEAD_DIM) &&
        keys_int(k, "v_head_dim", 1, MAX_HEAD_DIM, &mla->v_dim))
        return -1;
    if (graph->scales_lora && read_lora_scale(k, c))
        return -1;
    return graph->reads_mup ? read_mup(k, c) : 0;
}

/* The groups of experts must leave enough to choose from. */
static int check_groups(const struct keys *k, const struct router_config *router)
{
    int32_t size, experts = router->experts + router->identity;

    if (experts % router->groups)
        return keys_refuse(k, "n_group", "a divisor of n_routed_experts");
    size = experts / router->groups;
    if (router->scoring == ROUTER_SIGMOID && size < 2)
        return keys_refuse(k, "n_group", "at most half of n_routed_experts");
    if (router->top_groups > router->groups)
        return keys_refuse(k, "topk_group", "at most n_group");
    if (router->top_k > router->top_groups * size)
        return keys_refuse(k, "num_experts_per_tok", "at most the experts of topk_group groups");
    return 0;
}

static int read_router(const struct keys *k, const struct graph *graph, struct model_config *c)
{
    struct router_config *router = &c->router;
    int32_t experts = router->experts + router->identity;
    int32_t groups = graph->experts_per_group ? experts / graph->experts_per_group : graph->n_group;
    const char *scoring, *method;
    double scale;
    bool normalize;

    if (keys_choice_or(k, "scoring_func", graph->scoring_func[0], graph->scoring_func, &scoring) ||
        keys_choice_or(k, "topk_method", graph->topk_methods[0], graph->topk_methods, &method) ||
        keys_int(k, "num_experts_per_tok", 1, experts, &router->top_k) ||
        keys_count_or(k, "n_group", groups, MAX_EXPERTS, &router->groups) ||
        keys_count_or(k, "topk_group", graph->topk_group, MAX_EXPERTS, &router->top_groups) ||
        keys_bool_or(k, "norm_topk_prob", graph->reads_norm_topk_prob, &normalize) ||
        keys_number_or(k, "routed_scaling_factor", graph->routed_scaling_factor, 1e-6, 1e6, &scale))
        return -1;
    if (normalize && !graph->reads_norm_topk_prob)
        log_warning("%s: \"norm_topk_prob\" is ignored for this model type, as in transformers",
                    k->file);
    if (graph->one_group && router->groups > 1)
        return keys_refuse(k, "n_group", "1 for this model type");
    router->scoring = graph->scoring;
    router->normalize = normalize && graph->reads_norm_topk_prob;
    router->scale = (float)scale;
    if (strcmp(method, "greedy") == 0 || router->groups == 0)
        router->groups = router->top_groups = 1;
    if (router->top_groups == 0)
        router->top_groups = router->groups;
    c->router_bias = graph->router_bias;
    return check_groups(k, router);
}

/* "mlp_layer_types": "dense" or "sparse" for each layer; absent, the layers stay as they are. */
static int read_layer_types(const struct keys *k, struct model_config *c)
{
    const struct json *list = json_get(k->object, "mlp_layer_types");
    const struct json *type = json_is(list, JSON_ARRAY) ? json_first(list) : NULL;
    static const char *const wanted = "\"dense\" or \"sparse\" for each layer";

    if (!keys_present(k, "mlp_layer_types"))
        return 0;
    if (!json_is(list, JSON_ARRAY) || json_count(list) != (size_t)c->layers)
        return keys_refuse(k, "mlp_layer_types", wanted);
    for (int i = 0; i < c->layers; i++, type = json_next(type)) {
        const char *text = json_is(type, JSON_STRING) ? json_string(type) : "";
        c->is_moe[i] = strcmp(text, "sparse") == 0;
        if (!c->is_moe[i] && strcmp(text, "dense") != 0)
            return keys_refuse(k, "mlp_layer_types", wanted);
    }
    return 0;
}

/* LongCat-Flash's experts that give their input back, and its router's bias, which is none that
 * transformers adds. */
static int read_identity_experts(const struct keys *k, struct model_config *c)
{
    static const char *const types[] = {"identity", NULL};
    const char *type;
    bool bias;

    if (keys_count_or(k, "zero_expert_num", 0, MAX_EXPERTS, &c->router.identity) ||
        keys_choice_or(k, "zero_expert_type", types[0], types, &type) ||
        keys_bool_or(k, "router_bias", false, &bias))
        return -1;
    return bias ? keys_refuse(k, "router_bias", "false") : 0;
}

/* Which layers are mixtures of experts. transformers ignores moe_layer_freq; DeepSeek's code has
 * it, and released checkpoints set it to 1. */
static int read_moe(const struct keys *k, const struct graph *graph, struct model_config *c)
{
    int32_t first, every, shared, n_moe = 0;

    if (keys_count_or(k, "n_routed_experts", 0, MAX_EXPERTS, &c->router.experts) ||
        keys_int_or(k, "first_k_dense_replace", graph->first_k_dense_replace, 0, MODEL_MAX_LAYERS,
                    &first) ||
        keys_int_or(k, "moe_layer_freq", 1, 1, MODEL_MAX_LAYERS, &every))
        return -1;
    for (int i = first; i < c->layers && c->router.experts > 0; i++)
        c->is_moe[i] = graph->shortcut_moe ? i % 2 : i % every == 0;
    if (graph->shortcut_moe && read_identity_experts(k, c))
        return -1;
    if (graph->reads_mlp_layer_types && c->router.experts > 0 && read_layer_types(k, c))
        return -1;
    for (int i = 0; i < c->layers; i++)
        n_moe += c->is_moe[i];
    if (n_moe == 0) {
        c->router = (struct router_config){0};
        c->shortcut_moe = c->moe_post_norm = false;
        return 0;
    }
    if (keys_int(k, "moe_intermediate_size", 1, MAX_WIDTH, &c->moe_intermediate) ||
        keys_count_or(k, "n_shared_experts", graph->n_shared_experts, MAX_EXPERTS, &shared) ||
        read_router(k, graph, c))
        return -1;
    if ((int64_t)shared * c->moe_intermediate > MAX_WIDTH)
        return keys_refuse(k, "n_shared_experts", "smaller for this moe_intermediate_size");
    c->shared_intermediate = shared * c->moe_intermediate;
    return 0;
}

/* Layers of multi-token prediction are built as the last layer is, all with an indexer where there
 * are indexers; in a graph of pairs, as one without experts. */
static int read_mtp(const struct keys *k, const struct graph *graph, struct model_config *c)
{
    int32_t most = MODEL_MAX_LAYERS - c->layers;
    int32_t unsaid = graph->mtp_layers < most ? graph->mtp_layers : most;

    if (keys_count_or(k, "num_nextn_predict_layers", unsaid, most, &c->mtp_declared))
        return -1;
    for (int i = c->layers; i < c->layers + c->mtp_declared; i++) {
        c->is_moe[i] = !c->shortcut_moe && c->is_moe[c->layers - 1];
        c->has_indexer[i] = c->index.top_k > 0;
    }
    return 0;
}

bool model_config_add_eos(struct model_config *config, int32_t id)
{
    for (int i = 0; i < config->n_eos; i++)
        if (config->eos[i] == id)
            return true;
    if (config->n_eos == MODEL_MAX_EOS)
        return false;
    config->eos[config->n_eos++] = id;
    return true;
}

static int add_eos(const struct keys *k, const struct json *id, struct model_config *c)
{
    int64_t value;

    if (!json_integer(id, &value) || value < 0 || value >= c->vocab_size) {
        char expected[96];
        snprintf(expected, sizeof(expected), "a token id, or a list of ids, from 0 to %d",
                 c->vocab_size - 1);
        return keys_refuse(k, "eos_token_id", expected);
    }
    if (!model_config_add_eos(c, (int32_t)value))
        return error_set(k->err, "%s: \"eos_token_id\" brings the end tokens to more than %d",
                         k->file, MODEL_MAX_EOS);
    return 0;
}

/* Adds "eos_token_id", a number or a list, to the end tokens. Absent or null adds none. */
static int read_eos(const struct keys *k, struct model_config *c)
{
    const struct json *value = json_get(k->object, "eos_token_id");

    if (!keys_present(k, "eos_token_id"))
        return 0;
    if (!json_is(value, JSON_ARRAY))
        return add_eos(k, value, c);
    for (const struct json *id = json_first(value); id; id = json_next(id))
        if (add_eos(k, id, c))
            return -1;
    return 0;
}

static int read_layers(struct model_config *c, const struct keys *k, const struct family *family)
{
    const struct graph *graph = family->graph;

    snprintf(c->model_type, sizeof(c->model_type), "%s", family->model_type);
    if (read_shape(k, graph, c) || read_attention(k, graph, c) || config_rope_read(k, graph, c) ||
        (graph->has_indexer && config_indexer_read(k, graph->indexer_interleave, c)))
        return -1;
    return read_moe(k, graph, c) || read_mtp(k, graph, c) ? -1 : 0;
}

static int read_config(struct model_config *c, const struct keys *k)
{
    const struct json *inner = family_text_config(k);
    const struct family *family;
    struct keys text = *k;

    if (inner) {
        text.object = inner;
        text.within = "text_config.";
    }
    family = family_find(&text);
    if (!family)
        return -1;
    text.names = family->graph->names;
    if (read_layers(c, &text, family) || config_quant_read(&text, k, c) || read_eos(&text, c) ||
        (inner && read_eos(k, c)) ||
        keys_int_or(k, "bos_token_id", -1, 0, c->vocab_size - 1, &c->bos))
        return -1;
    return keys_int_or(&text, "bos_token_id", c->bos, 0, c->vocab_size - 1, &c->bos);
}

/* Mistral's params.json. It says nothing of tokens: all of Mistral's tokenizers have these. */
static int read_params(struct model_config *c, const struct keys *k)
{
    enum { BOS = 1, EOS = 2 };
    struct keys keys = *k;
    bool router_bias;

    keys.names = family_mistral_params.graph->names;
    if (!keys_present(k, "kv_lora_rank"))
        return error_set(k->err,
                         "%s: no \"kv_lora_rank\": of Mistral's models those with multi-head "
                         "latent attention are supported",
                         k->file);
    if (read_layers(c, &keys, &family_mistral_params) || config_quant_read_params(k, c) ||
        keys_bool_or(&keys, "use_load_balancing_bias", false, &router_bias))
        return -1;
    if (router_bias)
        return keys_refuse(&keys, "use_load_balancing_bias", "false");
    c->bos = BOS;
    model_config_add_eos(c, EOS);
    return 0;
}

/* Either of the two, for a file whose name doesn't tell. */
static int read_any(struct model_config *c, const struct keys *k)
{
    bool params = keys_present(k, "dim") && !keys_present(k, "hidden_size");

    return params ? read_params(c, k) : read_config(c, k);
}

/* A number of generation_config.json; without it `*out` stays. */
static int generation_number(const struct keys *k, const char *key, double min, double max,
                             float *out)
{
    double value;

    if (keys_number_or(k, key, *out, min, max, &value))
        return -1;
    *out = (float)value;
    return 0;
}

/* What a file asks for and requests get no more: said once, in the log. 0 and 1 ask for nothing. */
static void warn_of_ignored(const struct keys *k)
{
    static const char *const names[] = {"bad_words_ids",
                                        "begin_suppress_tokens",
                                        "encoder_repetition_penalty",
                                        "epsilon_cutoff",
                                        "eta_cutoff",
                                        "forced_eos_token_id",
                                        "max_new_tokens",
                                        "no_repeat_ngram_size",
                                        "num_beams",
                                        "sequence_bias",
                                        "stop_strings",
                                        "suppress_tokens",
                                        "typical_p"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const struct json *value = json_get(k->object, names[i]);
        double number = json_is(value, JSON_NUMBER) ? json_number(value) : -1;
        if (keys_present(k, names[i]) && number != 0 && number != 1)
            log_warning("%s: \"%s\" is ignored", k->file, names[i]);
    }
}

static int read_generation_config(struct model_config *c, const struct keys *k)
{
    bool sample = true;

    warn_of_ignored(k);
    if (read_eos(k, c) ||
        (keys_present(k, "do_sample") && keys_bool_or(k, "do_sample", true, &sample)) ||
        generation_number(k, "temperature", 0, 100, &c->default_temperature) ||
        generation_number(k, "top_p", 1e-6, 1, &c->default_top_p) ||
        generation_number(k, "min_p", 0, 1, &c->default_min_p) ||
        generation_number(k, "repetition_penalty", 1e-2, 100, &c->default_repetition_penalty) ||
        keys_int_or(k, "top_k", 0, -1, MAX_VOCAB, &c->default_top_k))
        return -1;
    if (c->default_top_k < 0) /* -1 is another way to say "all" */
        c->default_top_k = 0;
    if (!sample)
        c->default_temperature = 0;
    return 0;
}

/* Reads one file of `dir` with `read`. */
static int load_file(struct model_config *c, const char *path,
                     int (*read)(struct model_config *, const struct keys *), struct error *err)
{
    struct json *root = json_parse_file(path, CONFIG_MAX_BYTES, err);
    struct keys keys = {path, "", root, err, NULL};
    int rc = -1;

    if (!root)
        return -1;
    if (json_is(root, JSON_OBJECT))
        rc = read(c, &keys);
    else
        error_set(err, "%s: must hold a JSON object", path);
    json_free(root);
    return rc;
}

static const struct model_config NOTHING_SAID = {.bos = -1,
                                                 .embed_scale = 1,
                                                 .norm_scale = {1, 1, 1},
                                                 .default_temperature = 1,
                                                 .default_top_p = 1,
                                                 .default_repetition_penalty = 1};

static int load_folder(struct model_config *config, const char *dir, struct error *err)
{
    char *main_path = path_join(dir, "config.json");
    char *params_path = path_join(dir, "params.json");
    char *generation_path = path_join(dir, "generation_config.json");
    bool params = !file_exists(main_path) && file_exists(params_path);
    int rc = folder_check(dir, err);

    if (rc == 0)
        rc = params ? load_file(config, params_path, read_params, err)
                    : load_file(config, main_path, read_config, err);
    if (rc == 0 && file_exists(generation_path))
        rc = load_file(config, generation_path, read_generation_config, err);
    free(main_path);
    free(params_path);
    free(generation_path);
    return rc;
}

int model_config_load(struct model_config *config, const char *path, struct error *err)
{
    size_t len = strlen(path);

    *config = NOTHING_SAID;
    if (len > 5 && strcmp(path + len - 5, ".json") == 0)
        return load_file(config, path, read_any, err);
    return load_folder(config, path, err);
}
