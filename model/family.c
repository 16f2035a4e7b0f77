/* The table of model types, and what each graph has that others have not: see family.h. */
#include "model/family.h"

#include "base/buffer.h"

#include <string.h>

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

/* DeepSeek-V3.2: V3 whose rows attend to the tokens that an indexer chooses. */
static const struct graph graph_v32 = {
    .scoring = ROUTER_SIGMOID,
    .scoring_func = {"sigmoid"},
    .topk_methods = {"noaux_tc"},
    .router_bias = true,
    .reads_norm_topk_prob = true,
    .reads_mlp_layer_types = true,
    .has_indexer = true,
    .first_k_dense_replace = 3,
    .n_shared_experts = 1,
    .n_group = 8,
    .topk_group = 4,
    .routed_scaling_factor = 2.5,
};

/* GLM-5: the same with one group; layers may share a choice. */
static const struct graph graph_glm_moe_dsa = {
    .scoring = ROUTER_SIGMOID,
    .scoring_func = {"sigmoid"},
    .topk_methods = {"noaux_tc"},
    .router_bias = true,
    .reads_norm_topk_prob = true,
    .reads_mlp_layer_types = true,
    .has_indexer = true,
    .indexer_interleave = true,
    .first_k_dense_replace = 3,
    .n_shared_experts = 1,
    .n_group = 1,
    .topk_group = 1,
    .routed_scaling_factor = 2.5,
};

/* Youtu-LLM: the same attention, and no experts. */
static const struct graph graph_youtu = {
    .reads_rope_interleave = true,
    .tie_embeddings = true,
};

/* MiniCPM3: dense layers; embeddings, branches and logits are scaled. */
static const char *const minicpm3_rope[] = {"default", "longrope", NULL};

static const struct graph graph_minicpm3 = {
    .rope_types = minicpm3_rope,
    .rope_half_split = true,
    .tie_embeddings = true,
    .v_head_dim_optional = true,
    .reads_mup = true,
};

/* Mistral Small 4: V3's layers with another router. The checkpoint's makers train without YaRN's
 * factor on the softmax scale ("apply_scale": false in their params.json), which the conversion to
 * config.json drops, and transformers from July 2026 on puts in. */
static const struct graph graph_mistral4 = {
    .scoring = ROUTER_SOFTMAX,
    .scoring_func = {"softmax"},
    .topk_methods = {"greedy"},
    .reads_norm_topk_prob = true,
    .one_group = true,
    .reads_rope_interleave = true,
    .needs_rope_scaling = true,
    .rope_is_part_of_head = true,
    .yarn_keeps_softmax_scale = true,
    .n_shared_experts = 1,
    .n_group = 1,
    .topk_group = 1,
    .routed_scaling_factor = 1,
};

/* The same layers as Mistral's own files have them (Mistral Large 3). "hidden_dim" is that of dense
 * layers; YaRN's and the other scale stand in objects of their own. */
static const struct key_name mistral_names[] = {
    {"hidden_size", "dim"},
    {"num_hidden_layers", "n_layers"},
    {"num_attention_heads", "n_heads"},
    {"intermediate_size", "hidden_dim"},
    {"rms_norm_eps", "norm_eps"},
    {"hidden_act", "activation"},
    {"tie_word_embeddings", "tied_embeddings"},
    {"n_routed_experts", "moe.num_experts"},
    {"num_experts_per_tok", "moe.num_experts_per_tok"},
    {"moe_intermediate_size", "moe.expert_hidden_dim"},
    {"first_k_dense_replace", "moe.first_k_dense_replace"},
    {"moe_layer_freq", "moe.route_every_n"},
    {"routed_scaling_factor", "moe.routed_scale"},
    {"n_shared_experts", "moe.num_shared_experts"},
    {"n_group", "moe.num_expert_groups"},
    {"topk_group", "moe.num_expert_groups_per_tok"},
    {"use_load_balancing_bias", "moe.use_load_balancing_bias"},
    {"beta_fast", "beta"},
    {"beta_slow", "alpha"},
    {NULL, NULL},
};

static const struct graph graph_mistral_params = {
    .scoring = ROUTER_SOFTMAX,
    .scoring_func = {"softmax"},
    .topk_methods = {"greedy"},
    .reads_norm_topk_prob = true,
    .one_group = true,
    .n_shared_experts = 1,
    .n_group = 1,
    .topk_group = 1,
    .routed_scaling_factor = 1,
    .max_positions = 128000,
    .names = mistral_names,
};

/* LongCat-Flash: two layers of attention and dense FFN to one of experts, some of which do nothing.
 * Its files have a layer of multi-token prediction, of which its config.json says nothing. */
static const struct key_name longcat_names[] = {
    {"num_hidden_layers", "num_layers"},
    {"intermediate_size", "ffn_hidden_size"},
    {"moe_intermediate_size", "expert_ffn_hidden_size"},
    {"num_experts_per_tok", "moe_topk"},
    {NULL, NULL},
};

static const struct graph graph_longcat_flash = {
    .scoring = ROUTER_SOFTMAX,
    .scoring_func = {"softmax"},
    .topk_methods = {"greedy"},
    .router_bias = true,
    .one_group = true,
    .scales_lora = true,
    .shortcut_moe = true,
    .mtp_layers = 1,
    .n_group = 1,
    .topk_group = 1,
    .routed_scaling_factor = 6,
    .names = longcat_names,
};

/* A.X-K1: V3 with one norm more. */
static const struct graph graph_axk1 = {
    .scoring = ROUTER_SIGMOID,
    .scoring_func = {"sigmoid"},
    .topk_methods = {"noaux_tc"},
    .router_bias = true,
    .reads_norm_topk_prob = true,
    .reads_rope_interleave = true,
    .moe_post_norm = true,
    .first_k_dense_replace = 1,
    .n_shared_experts = 1,
    .n_group = 8,
    .topk_group = 4,
    .routed_scaling_factor = 2.5,
};

/* Sarvam-105B: V3 by other names. Its own code makes groups of eight experts where the file says
 * nothing of them. */
static const struct key_name sarvam_names[] = {
    {"n_routed_experts", "num_experts"},
    {"n_shared_experts", "num_shared_experts"},
    {"scoring_func", "score_function"},
    {NULL, NULL},
};

static const char *const sarvam_rope[] = {"deepseek_yarn", "yarn", NULL};

static const struct graph graph_sarvam_mla = {
    .rope_types = sarvam_rope,
    .needs_rope_scaling = true,
    .scoring = ROUTER_SIGMOID,
    .scoring_func = {"sigmoid"},
    .topk_methods = {"noaux_tc"},
    .router_bias = true,
    .reads_norm_topk_prob = true,
    .q_lora_optional = true,
    .experts_per_group = 8,
    .first_k_dense_replace = 1,
    .n_shared_experts = 1,
    .topk_group = 2,
    .routed_scaling_factor = 2.5,
    .names = sarvam_names,
};

static const struct family families[] = {
    {"deepseek_v2", "DeepseekV2ForCausalLM", &graph_v2},
    {"deepseek_v3", "DeepseekV3ForCausalLM", &graph_v3},
    {"kimi_k2", "DeepseekV3ForCausalLM", &graph_v3},
    {"joyai_llm_flash", "DeepseekV3ForCausalLM", &graph_v3},
    {"deepseek_v32", "DeepseekV32ForCausalLM", &graph_v32},
    {"glm4_moe_lite", "Glm4MoeLiteForCausalLM", &graph_glm4_moe_lite},
    {"glm_moe_dsa", "GlmMoeDsaForCausalLM", &graph_glm_moe_dsa},
    {"youtu", "YoutuForCausalLM", &graph_youtu},
    {"youtu_llm", "YoutuForCausalLM", &graph_youtu},
    {"minicpm3", "MiniCPM3ForCausalLM", &graph_minicpm3},
    {"mistral4", "Mistral4ForCausalLM", &graph_mistral4},
    {"longcat_flash", "LongcatFlashForCausalLM", &graph_longcat_flash},
    {"axk1", "AXK1ForCausalLM", &graph_axk1},
    {"AXK1", "AXK1ForCausalLM", &graph_axk1},
    {"sarvam_mla", "SarvamMLAForCausalLM", &graph_sarvam_mla},
};

const struct family family_mistral_params = {"mistral_large_3", NULL, &graph_mistral_params};

/* Relatives whose layers are something else. */
static const struct {
    const char *model_type, *reason;
} others[] = {
    {"deepseek_v4", "its attention is not multi-head latent attention"},
    {"kimi_linear", "most of its layers are linear attention"},
    {"glm5_next", "most of its layers are linear attention"},
    {"glm5_next_text", "most of its layers are linear attention"},
    {"bailing_hybrid", "most of its layers are linear attention"},
    {"bailing_moe_linear", "most of its layers are linear attention"},
    {"longcat_flash_ngram", "it embeds sequences of tokens too"},
    {"axk2", "its attention and its norms are gated"},
};

/* Models that see images and more, around a text model. */
static const char *const wrappers[] = {"kimi_k25", "mistral3"};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* The first of "architectures", or NULL. */
static const char *architecture_of(const struct json *root)
{
    const struct json *list = json_get(root, "architectures");
    const struct json *first = json_is(list, JSON_ARRAY) ? json_first(list) : NULL;

    return json_is(first, JSON_STRING) ? json_string(first) : NULL;
}

static bool is_empty(const struct keys *k, const char *key)
{
    const struct json *value = json_get(k->object, key);

    return json_is(value, JSON_ARRAY) && !json_first(value);
}

static void refuse_family(const struct keys *k, const char *type, const char *architecture)
{
    struct buffer supported;

    for (size_t i = 0; i < COUNT(others); i++) {
        if (strcmp(type, others[i].model_type) == 0) {
            error_set(k->err, "%s: model type \"%s\" is not supported: %s", k->file, type,
                      others[i].reason);
            return;
        }
    }
    buffer_init(&supported, sizeof(k->err->message));
    for (size_t i = 0; i < COUNT(families); i++)
        buffer_printf(&supported, "%s%s", i ? ", " : "", families[i].model_type);
    error_set(k->err, "%s: model type \"%.64s\"%s%.64s is not supported; supported are %s", k->file,
              type, architecture ? " with architecture " : "", architecture ? architecture : "",
              supported.data);
    buffer_free(&supported);
}

const struct family *family_find(const struct keys *k)
{
    const struct json *type = json_get(k->object, "model_type");
    const char *architecture = architecture_of(k->object);

    if (!json_is(type, JSON_STRING)) {
        keys_refuse(k, "model_type", "a string");
        return NULL;
    }
    if (keys_present(k, "architectures") && !architecture && !is_empty(k, "architectures")) {
        keys_refuse(k, "architectures", "a list of strings");
        return NULL;
    }
    for (size_t i = 0; i < COUNT(families); i++)
        if (strcmp(json_string(type), families[i].model_type) == 0 &&
            (!architecture || strcmp(architecture, families[i].architecture) == 0))
            return &families[i];
    refuse_family(k, json_string(type), architecture);
    return NULL;
}

const struct json *family_text_config(const struct keys *k)
{
    const struct json *type = json_get(k->object, "model_type");
    const struct json *text = json_get(k->object, "text_config");

    for (size_t i = 0; i < COUNT(wrappers); i++)
        if (json_is(type, JSON_STRING) && strcmp(json_string(type), wrappers[i]) == 0 &&
            json_is(text, JSON_OBJECT))
            return text;
    return NULL;
}
