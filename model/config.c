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
#include "model/keys.h"
#include "model/rope.h"

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
    MAX_POSITIONS = 1 << 24, /* whole numbers that float32 angles can still tell apart */
    MAX_QUANT_BLOCK = 4096,
};

/* transformers builds q_a_layernorm and kv_a_layernorm without giving them rms_norm_eps. */
static const float LORA_NORM_EPS = 1e-6f;

/* A graph of layers, and what config.json means for it where a key is absent. */
struct graph {
    enum router_scoring scoring;
    const char *scoring_func[2];
    const char *topk_methods[3]; /* the first is the default */
    bool router_bias;            /* has e_score_correction_bias */
    bool reads_norm_topk_prob;   /* or else weights are never normalised */
    bool reads_rope_interleave;  /* or else pairs are always interleaved */
    bool reads_mlp_layer_types;  /* which, where they are there, say what layers are MoE */
    bool tie_embeddings;
    int32_t first_k_dense_replace, n_shared_experts, n_group, topk_group;
    double routed_scaling_factor;
};

/* DeepSeek's own deepseek_v2 code divides the weights by their sum when norm_topk_prob is set (and
 * leaves out the scale then). transformers knows no norm_topk_prob there, nor is it set in any
 * released checkpoint; transformers is followed. */
static const struct graph graph_v2 = {
    .scoring = ROUTER_SOFTMAX,
    .scoring_func = {"softmax"},
    .topk_methods = {"greedy", "group_limited_greedy"},
    .n_shared_experts = 2,
    .routed_scaling_factor = 1,
};

static const struct graph graph_v3 = {
    .scoring = ROUTER_SIGMOID,
    .scoring_func = {"sigmoid"},
    .topk_methods = {"noaux_tc"},
    .router_bias = true,
    .reads_norm_topk_prob = true,
    .reads_rope_interleave = true,
    .first_k_dense_replace = 3,
    .n_shared_experts = 1,
    .n_group = 8,
    .topk_group = 4,
    .routed_scaling_factor = 2.5,
};

/* GLM-4.7-Flash: its layers are DeepSeek-V3's. */
static const struct graph graph_glm4_moe_lite = {
    .scoring = ROUTER_SIGMOID,
    .scoring_func = {"sigmoid"},
    .topk_methods = {"noaux_tc"},
    .router_bias = true,
    .reads_norm_topk_prob = true,
    .reads_rope_interleave = true,
    .reads_mlp_layer_types = true,
    .first_k_dense_replace = 1,
    .n_shared_experts = 1,
    .n_group = 1,
    .topk_group = 1,
    .routed_scaling_factor = 1.8,
};

/* Youtu-LLM: the same attention, and no experts. */
static const struct graph graph_youtu = {
    .reads_rope_interleave = true,
    .tie_embeddings = true,
};

static const struct family {
    const char *model_type;
    const char *architecture;
    const struct graph *graph;
} families[] = {
    {"deepseek_v2", "DeepseekV2ForCausalLM", &graph_v2},
    {"deepseek_v3", "DeepseekV3ForCausalLM", &graph_v3},
    {"kimi_k2", "DeepseekV3ForCausalLM", &graph_v3},
    {"joyai_llm_flash", "DeepseekV3ForCausalLM", &graph_v3},
    {"glm4_moe_lite", "Glm4MoeLiteForCausalLM", &graph_glm4_moe_lite},
    {"youtu", "YoutuForCausalLM", &graph_youtu},
    {"youtu_llm", "YoutuForCausalLM", &graph_youtu},
};

enum { N_FAMILIES = sizeof(families) / sizeof(*families) };

/* The first of "architectures", or NULL. */
static const char *architecture_of(const struct json *root)
{
    const struct json *list = json_get(root, "architectures");
    const struct json *first = json_is(list, JSON_ARRAY) ? json_first(list) : NULL;

    return json_is(first, JSON_STRING) ? json_string(first) : NULL;
}

static void refuse_family(const struct keys *k, const char *type, const char *architecture)
{
    struct buffer supported;

    buffer_init(&supported, sizeof(k->err->message));
    for (size_t i = 0; i < N_FAMILIES; i++)
        buffer_printf(&supported, "%s%s", i ? ", " : "", families[i].model_type);
    error_set(k->err, "%s: model type \"%.64s\"%s%.64s is not supported; supported are %s", k->file,
              type, architecture ? " with architecture " : "", architecture ? architecture : "",
              supported.data);
    buffer_free(&supported);
}

/* The family that the file names, or NULL and a message. */
static const struct family *find_family(const struct keys *k)
{
    const struct json *type = json_get(k->object, "model_type");
    const char *architecture = architecture_of(k->object);

    if (!json_is(type, JSON_STRING)) {
        keys_refuse(k, "model_type", "a string");
        return NULL;
    }
    if (keys_present(k, "architectures") && !architecture) {
        keys_refuse(k, "architectures", "a list of strings");
        return NULL;
    }
    for (size_t i = 0; i < N_FAMILIES; i++)
        if (strcmp(json_string(type), families[i].model_type) == 0 &&
            (!architecture || strcmp(architecture, families[i].architecture) == 0))
            return &families[i];
    refuse_family(k, json_string(type), architecture);
    return NULL;
}

static int read_shape(const struct keys *k, const struct graph *graph, struct model_config *c)
{
    static const char *const activations[] = {"silu", NULL};
    const char *activation;
    double eps;
    bool mlp_bias;

    if (keys_int(k, "vocab_size", 1, MAX_VOCAB, &c->vocab_size) ||
        keys_int(k, "hidden_size", 1, MAX_WIDTH, &c->hidden_size) ||
        keys_int(k, "num_hidden_layers", 1, MODEL_MAX_LAYERS, &c->layers) ||
        keys_int(k, "intermediate_size", 1, MAX_WIDTH, &c->dense_intermediate) ||
        keys_int(k, "max_position_embeddings", 1, MAX_POSITIONS, &c->max_positions) ||
        keys_number_or(k, "rms_norm_eps", 1e-6, 1e-12, 0.1, &eps) ||
        keys_choice_or(k, "hidden_act", "silu", activations, &activation) ||
        keys_bool_or(k, "tie_word_embeddings", graph->tie_embeddings, &c->tie_embeddings) ||
        keys_bool_or(k, "attention_bias", false, &c->attention_bias) ||
        keys_bool_or(k, "mlp_bias", false, &mlp_bias))
        return -1;
    if (mlp_bias)
        return keys_refuse(k, "mlp_bias", "false");
    c->rms_norm_eps = (float)eps;
    c->lora_norm_eps = LORA_NORM_EPS;
    return 0;
}

static int read_attention(const struct keys *k, struct model_config *c)
{
    struct mla_shape *mla = &c->mla;

    if (!json_get(k->object, "q_lora_rank"))
        return keys_refuse(k, "q_lora_rank", "a whole number, or null for none");
    if (keys_count_or(k, "q_lora_rank", 0, MAX_LORA_RANK, &c->q_lora_rank) ||
        keys_int(k, "num_attention_heads", 1, MAX_HEADS, &mla->heads) ||
        keys_int(k, "kv_lora_rank", 1, MAX_LORA_RANK, &mla->kv_lora_rank) ||
        keys_int(k, "qk_nope_head_dim", 1, MAX_HEAD_DIM, &mla->nope_dim) ||
        keys_int(k, "qk_rope_head_dim", 2, ROPE_MAX_DIM, &mla->rope_dim) ||
        keys_int(k, "v_head_dim", 1, MAX_HEAD_DIM, &mla->v_dim))
        return -1;
    if (mla->rope_dim % 2)
        return keys_refuse(k, "qk_rope_head_dim", "an even number");
    return 0;
}

/* Where the rope's keys stand: "rope_scaling" of released configs or "rope_parameters" as
 * transformers 5 writes it. A rope_scaling that isn't empty wins. */
static int find_rope(const struct keys *k, struct keys *rope)
{
    static const char *const names[][2] = {{"rope_scaling", "rope_scaling."},
                                           {"rope_parameters", "rope_parameters."}};

    *rope = *k;
    rope->object = NULL;
    for (size_t i = 0; i < 2 && !rope->object; i++) {
        const struct json *value = json_get(k->object, names[i][0]);
        if (!keys_present(k, names[i][0]))
            continue;
        if (!json_is(value, JSON_OBJECT))
            return keys_refuse(k, names[i][0], "null or an object");
        if (json_count(value) > 0) {
            rope->object = value;
            rope->within = names[i][1];
        }
    }
    return 0;
}

static int read_yarn(const struct keys *k, const struct keys *rope, int32_t max_positions,
                     struct yarn *yarn)
{
    /* transformers lets a key of the top level override, and falls back on the full context. */
    const char *original = "original_max_position_embeddings";
    const struct keys *holder = keys_present(k, original) ? k : rope;

    if (keys_number(rope, "factor", 1, 65536, &yarn->factor) ||
        keys_number_or(holder, original, max_positions, 1, MAX_POSITIONS,
                       &yarn->original_positions) ||
        keys_number_or(rope, "beta_fast", 32, 1e-3, 1e6, &yarn->beta_fast) ||
        keys_number_or(rope, "beta_slow", 1, 1e-3, 1e6, &yarn->beta_slow) ||
        keys_number_or(rope, "mscale", 0, 0, 100, &yarn->mscale) ||
        keys_number_or(rope, "mscale_all_dim", 0, 0, 100, &yarn->mscale_all_dim) ||
        keys_number_or(rope, "attention_factor", 0, 1e-3, 100, &yarn->attention_factor) ||
        keys_bool_or(rope, "truncate", true, &yarn->truncate))
        return -1;
    if (yarn->beta_fast < yarn->beta_slow)
        return keys_refuse(rope, "beta_fast", "at least beta_slow");
    return 0;
}

static int read_rope(const struct keys *k, const struct graph *graph, struct model_config *c)
{
    static const char *const types[] = {"default", "yarn", NULL};
    const char *type;
    struct keys rope;
    struct yarn yarn;
    double theta, partial;
    bool interleave = true, scaled;

    if (find_rope(k, &rope) || keys_choice_or(&rope, "type", "default", types, &type) ||
        keys_choice_or(&rope, "rope_type", type, types, &type) ||
        keys_number_or(k, "rope_theta", 1e4, 2, 1e12, &theta) ||
        keys_number_or(&rope, "rope_theta", theta, 2, 1e12, &theta) ||
        keys_number_or(k, "partial_rotary_factor", 1, 1, 1, &partial) ||
        keys_number_or(&rope, "partial_rotary_factor", 1, 1, 1, &partial))
        return -1;
    if (graph->reads_rope_interleave && keys_bool_or(k, "rope_interleave", true, &interleave))
        return -1;
    scaled = strcmp(type, "yarn") == 0;
    if (scaled && read_yarn(k, &rope, c->max_positions, &yarn))
        return -1;
    c->rope.dim = c->mla.rope_dim;
    c->rope.half_split = !interleave;
    rope_frequencies(&c->rope, theta, scaled ? &yarn : NULL);
    c->mla.softmax_scale = (float)(pow(c->mla.nope_dim + c->mla.rope_dim, -0.5) *
                                   rope_softmax_factor(scaled ? &yarn : NULL));
    return 0;
}

/* The groups of experts must leave enough to choose from. */
static int check_groups(const struct keys *k, const struct router_config *router)
{
    int32_t size;

    if (router->experts % router->groups)
        return keys_refuse(k, "n_group", "a divisor of n_routed_experts");
    size = router->experts / router->groups;
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
    const char *scoring, *method;
    double scale;
    bool normalize;

    if (keys_choice_or(k, "scoring_func", graph->scoring_func[0], graph->scoring_func, &scoring) ||
        keys_choice_or(k, "topk_method", graph->topk_methods[0], graph->topk_methods, &method) ||
        keys_int(k, "num_experts_per_tok", 1, router->experts, &router->top_k) ||
        keys_count_or(k, "n_group", graph->n_group, MAX_EXPERTS, &router->groups) ||
        keys_count_or(k, "topk_group", graph->topk_group, MAX_EXPERTS, &router->top_groups) ||
        keys_bool_or(k, "norm_topk_prob", graph->reads_norm_topk_prob, &normalize) ||
        keys_number_or(k, "routed_scaling_factor", graph->routed_scaling_factor, 1e-6, 1e6, &scale))
        return -1;
    if (normalize && !graph->reads_norm_topk_prob)
        log_warning("%s: \"norm_topk_prob\" is ignored for this model type, as in transformers",
                    k->file);
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
        c->is_moe[i] = i % every == 0;
    if (graph->reads_mlp_layer_types && c->router.experts > 0 && read_layer_types(k, c))
        return -1;
    for (int i = 0; i < c->layers; i++)
        n_moe += c->is_moe[i];
    if (n_moe == 0) {
        c->router = (struct router_config){0};
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

static int read_quant_block(const struct keys *quant, struct model_config *c)
{
    const struct json *block = json_get(quant->object, "weight_block_size");
    const struct json *size = json_is(block, JSON_ARRAY) ? json_first(block) : NULL;
    int64_t values[2] = {0, 0};
    int n = 0;

    for (; size && n < 2 && json_integer(size, &values[n]); size = json_next(size))
        n++;
    for (int i = 0; i < 2; i++) {
        if (n != 2 || size || values[i] < 1 || values[i] > MAX_QUANT_BLOCK)
            return keys_refuse(quant, "weight_block_size",
                               "two whole numbers from 1 to 4096, such as [128, 128]");
        c->quant_block[i] = (int32_t)values[i];
    }
    c->quantization = QUANT_FP8_BLOCK;
    return 0;
}

/* FP8 weights in blocks with a scale each. How activations would be quantised (activation_scheme)
 * doesn't matter: weights are multiplied out when they are loaded. */
static int read_quantization(const struct keys *k, struct model_config *c)
{
    static const char *const formats[] = {"e4m3", NULL};
    const struct json *value = json_get(k->object, "quantization_config");
    const struct json *method = json_get(value, "quant_method");
    struct keys quant = *k;
    const char *format;

    if (keys_present(k, "compression_config"))
        return error_set(k->err, "%s: \"compression_config\" (compressed tensors) is not supported",
                         k->file);
    if (!keys_present(k, "quantization_config"))
        return 0;
    if (!json_is(value, JSON_OBJECT))
        return keys_refuse(k, "quantization_config", "null or an object");
    quant.object = value;
    quant.within = "quantization_config.";
    if (!json_is(method, JSON_STRING))
        return keys_refuse(&quant, "quant_method", "a string");
    if (strcmp(json_string(method), "fp8") != 0)
        return error_set(k->err,
                         "%s: \"quantization_config.quant_method\" is \"%.64s\", which is not "
                         "supported; supported is \"fp8\" with weight_block_size",
                         k->file, json_string(method));
    if (keys_choice_or(&quant, "fmt", "e4m3", formats, &format))
        return -1;
    return read_quant_block(&quant, c);
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
    for (int i = 0; i < c->n_eos; i++)
        if (c->eos[i] == value)
            return 0;
    if (c->n_eos == MODEL_MAX_EOS)
        return error_set(k->err, "%s: \"eos_token_id\" brings the end tokens to more than %d",
                         k->file, MODEL_MAX_EOS);
    c->eos[c->n_eos++] = (int32_t)value;
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

static int read_config(struct model_config *c, const struct keys *k)
{
    const struct family *family = find_family(k);

    if (!family)
        return -1;
    snprintf(c->model_type, sizeof(c->model_type), "%s", family->model_type);
    if (read_shape(k, family->graph, c) || read_attention(k, c) || read_rope(k, family->graph, c) ||
        read_moe(k, family->graph, c) || read_quantization(k, c) || read_eos(k, c))
        return -1;
    return keys_int_or(k, "bos_token_id", -1, 0, c->vocab_size - 1, &c->bos);
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

static int read_generation_config(struct model_config *c, const struct keys *k)
{
    bool sample = true;

    if (read_eos(k, c) ||
        (keys_present(k, "do_sample") && keys_bool_or(k, "do_sample", true, &sample)) ||
        generation_number(k, "temperature", 0, 100, &c->default_temperature) ||
        generation_number(k, "top_p", 1e-6, 1, &c->default_top_p) ||
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
    struct keys keys = {path, "", root, err};
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

static const struct model_config NOTHING_SAID = {
    .default_temperature = 1, .default_top_p = 1, .default_repetition_penalty = 1};

static int load_folder(struct model_config *config, const char *dir, struct error *err)
{
    char *main_path = path_join(dir, "config.json");
    char *generation_path = path_join(dir, "generation_config.json");
    int rc;

    rc = load_file(config, main_path, read_config, err);
    if (rc == 0 && file_exists(generation_path))
        rc = load_file(config, generation_path, read_generation_config, err);
    free(main_path);
    free(generation_path);
    return rc;
}

int model_config_load(struct model_config *config, const char *path, struct error *err)
{
    size_t len = strlen(path);

    *config = NOTHING_SAID;
    if (len > 5 && strcmp(path + len - 5, ".json") == 0)
        return load_file(config, path, read_config, err);
    return load_folder(config, path, err);
}
