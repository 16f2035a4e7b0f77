/* Families with keys, names and defaults of their own: what their files mean, and what is refused.
 * Their graphs are checked in test_logits. */
#include "tests/unit/unit.h"

#include "model/config.h"
#include "tests/unit/folder.h"

#include <math.h>

/* Objects without their last brace: of equal keys the last counts. */

static const char MINICPM3[] =
    "{\"architectures\": [\"MiniCPM3ForCausalLM\"], \"model_type\": \"minicpm3\","
    "\"vocab_size\": 73448, \"hidden_size\": 2560, \"intermediate_size\": 6400,"
    "\"num_hidden_layers\": 62, \"num_attention_heads\": 40, \"q_lora_rank\": 768,"
    "\"kv_lora_rank\": 256, \"qk_nope_head_dim\": 64, \"qk_rope_head_dim\": 4,"
    "\"max_position_embeddings\": 32768, \"rms_norm_eps\": 1e-05, \"scale_emb\": 12,"
    "\"scale_depth\": 1.4, \"dim_model_base\": 256, \"bos_token_id\": 1, \"eos_token_id\": 2,"
    "\"rope_scaling\": {\"type\": \"longrope\", \"original_max_position_embeddings\": 32768,"
    "\"short_factor\": [1, 2], \"long_factor\": [1, 3]}";

static const char MISTRAL4[] =
    "{\"model_type\": \"mistral4\", \"vocab_size\": 131072, \"hidden_size\": 4096,"
    "\"intermediate_size\": 12288, \"moe_intermediate_size\": 2048, \"num_hidden_layers\": 36,"
    "\"num_attention_heads\": 32, \"n_shared_experts\": 1, \"n_routed_experts\": 128,"
    "\"num_experts_per_tok\": 4, \"first_k_dense_replace\": 0, \"n_group\": 1, \"topk_group\": 1,"
    "\"norm_topk_prob\": true, \"routed_scaling_factor\": 1.0, \"q_lora_rank\": 1024,"
    "\"kv_lora_rank\": 256, \"qk_nope_head_dim\": 64, \"qk_rope_head_dim\": 64,"
    "\"v_head_dim\": 128, \"max_position_embeddings\": 1048576, \"rms_norm_eps\": 1e-06,"
    "\"bos_token_id\": 1, \"eos_token_id\": 2, \"rope_parameters\": {\"type\": \"yarn\","
    "\"rope_type\": \"yarn\", \"rope_theta\": 10000.0, \"factor\": 128.0, \"beta_fast\": 32.0,"
    "\"original_max_position_embeddings\": 8192, \"beta_slow\": 1.0, \"mscale\": 1.0,"
    "\"mscale_all_dim\": 1.0, \"llama_4_scaling_beta\": 0.1, \"partial_rotary_factor\": 0.5}";

static const char MISTRAL_LARGE_3[] =
    "{\"dim\": 7168, \"n_layers\": 61, \"head_dim\": 128, \"hidden_dim\": 16384,"
    "\"n_heads\": 128, \"n_kv_heads\": 128, \"rope_theta\": 10000.0, \"norm_eps\": 1e-06,"
    "\"vocab_size\": 131072, \"tied_embeddings\": false, \"max_position_embeddings\": 294912,"
    "\"q_lora_rank\": 1536, \"qk_rope_head_dim\": 64, \"qk_nope_head_dim\": 128,"
    "\"kv_lora_rank\": 512, \"v_head_dim\": 128, \"quantization\": {\"qformat_weight\":"
    "\"fp8_e4m3\", \"qscheme_act\": \"TENSOR\"}, \"yarn\": {\"factor\": 36, \"beta\": 32,"
    "\"alpha\": 1, \"original_max_position_embeddings\": 8192, \"apply_scale\": false},"
    "\"moe\": {\"route_every_n\": 1, \"first_k_dense_replace\": 3, \"num_experts\": 128,"
    "\"num_experts_per_tok\": 4, \"num_expert_groups\": 1, \"num_expert_groups_per_tok\": 1,"
    "\"routed_scale\": 1.0, \"expert_hidden_dim\": 4096, \"num_shared_experts\": 1},"
    "\"llama_4_scaling\": {\"original_max_position_embeddings\": 8192, \"beta\": 0.1}";

static const char LONGCAT[] =
    "{\"architectures\": [\"LongcatFlashForCausalLM\"], \"model_type\": \"longcat_flash\","
    "\"vocab_size\": 131072, \"hidden_size\": 6144, \"ffn_hidden_size\": 12288,"
    "\"expert_ffn_hidden_size\": 2048, \"num_layers\": 28, \"num_attention_heads\": 64,"
    "\"kv_lora_rank\": 512, \"q_lora_rank\": 1536, \"qk_rope_head_dim\": 64,"
    "\"v_head_dim\": 128, \"qk_nope_head_dim\": 128, \"mla_scale_q_lora\": true,"
    "\"mla_scale_kv_lora\": true, \"routed_scaling_factor\": 6.0, \"n_routed_experts\": 512,"
    "\"rms_norm_eps\": 1e-05, \"rope_theta\": 10000000.0, \"attention_method\": \"MLA\","
    "\"max_position_embeddings\": 131072, \"zero_expert_num\": 256, \"zero_expert_type\":"
    "\"identity\", \"moe_topk\": 12, \"router_bias\": false, \"eos_token_id\": 2";

static const char SARVAM[] =
    "{\"architectures\": [\"SarvamMLAForCausalLM\"], \"model_type\": \"sarvam_mla\","
    "\"vocab_size\": 262144, \"hidden_size\": 4096, \"intermediate_size\": 16384,"
    "\"moe_intermediate_size\": 2048, \"num_hidden_layers\": 32, \"num_attention_heads\": 64,"
    "\"num_experts\": 128, \"num_shared_experts\": 1, \"num_experts_per_tok\": 8,"
    "\"first_k_dense_replace\": 1, \"kv_lora_rank\": 512, \"qk_nope_head_dim\": 128,"
    "\"qk_rope_head_dim\": 64, \"v_head_dim\": 128, \"max_position_embeddings\": 131072,"
    "\"routed_scaling_factor\": 2.5, \"rope_scaling\": {\"type\": \"deepseek_yarn\","
    "\"factor\": 40, \"mscale\": 1.0, \"mscale_all_dim\": 1.0,"
    "\"original_max_position_embeddings\": 4096}, \"eos_token_id\": 1";

/* Loads `base` with `more` added as `file`; `generation` is a generation_config.json, or NULL. */
static int load(struct model_config *config, const char *file, const char *base, const char *more,
                const char *generation, struct error *err)
{
    char dir[FOLDER_PATH_BYTES], text[8192];
    int rc;

    folder_make(dir);
    snprintf(text, sizeof(text), "%s%s}", base, more);
    folder_write_text(dir, file, text);
    if (generation)
        folder_write_text(dir, "generation_config.json", generation);
    err->message[0] = '\0';
    rc = model_config_load(config, dir, err);
    folder_remove(dir);
    return rc;
}

static struct model_config good(const char *file, const char *base, const char *more)
{
    struct model_config config;
    struct error err;

    ck_assert_msg(load(&config, file, base, more, NULL, &err) == 0, "%s", err.message);
    return config;
}

static void refused(const char *file, const char *base, const char *more, const char *words)
{
    struct model_config config;
    struct error err;

    ck_assert_msg(load(&config, file, base, more, NULL, &err) == -1, "accepted: %s", more);
    ck_assert_msg(strstr(err.message, words) != NULL, "\"%s\" says nothing of %s", err.message,
                  words);
}

static void near(double value, double expected)
{
    ck_assert_double_le(fabs(value - expected), 1e-6 * fabs(expected));
}

START_TEST(test_minicpm3_keeps_its_stream_divided_by_the_residual_scale)
{
    struct model_config c = good("config.json", MINICPM3, "");
    double r = 1.4 / sqrt(62);

    near(c.embed_scale, 12 / r);
    near(c.rms_norm_eps, 1e-5 / (r * r));
    near(c.norm_scale.final, 256.0 / 2560);
    ck_assert_int_eq(c.mla.v_dim, 64);
    ck_assert(c.tie_embeddings && c.rope.half_split && c.router.experts == 0);
    near(c.rope.inv_freq[1], 1 / (2 * 100.0)); /* short_factor */
    near(c.rope.magnitude, 1);
    refused("config.json", MINICPM3, ", \"hidden_size\": 39", "\"v_head_dim\" is missing");
    c = good("config.json", MINICPM3, ", \"scale_depth\": null, \"dim_model_base\": null");
    near(c.embed_scale, 12);
    near(c.norm_scale.final, 1);
}
END_TEST

START_TEST(test_longrope_that_would_change_cached_keys_is_refused)
{
    static const char *const longer = ", \"max_position_embeddings\": 65536";
    static const char *const same =
        ", \"max_position_embeddings\": 65536, \"rope_scaling\": {\"type\": \"longrope\","
        "\"original_max_position_embeddings\": 32768, \"short_factor\": [1, 2],"
        "\"long_factor\": [1, 2]}";

    refused("config.json", MINICPM3, longer, "with \"max_position_embeddings\": 32768 the model");
    near(good("config.json", MINICPM3, same).rope.magnitude, sqrt(1 + log(2) / log(32768)));
    refused("config.json", MINICPM3,
            ", \"rope_scaling\": {\"type\": \"longrope\", \"short_factor\": [1],"
            "\"long_factor\": [1]}",
            "\"rope_scaling.short_factor\"");
    refused("config.json", MINICPM3, ", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2}",
            "\"rope_scaling.type\"");
}
END_TEST

START_TEST(test_mistral4_leaves_the_softmax_scale_alone)
{
    struct model_config c = good("config.json", MISTRAL4, "");

    near(c.mla.softmax_scale, pow(128, -0.5));
    near(c.rope.magnitude, 1);
    ck_assert(!c.rope.half_split && !c.router_bias && c.router.normalize == 1);
    ck_assert_int_eq(c.router.scoring, ROUTER_SOFTMAX);
    near(c.query_scale.beta, 0.1);
    ck_assert_int_eq(c.query_scale.every, 8192);
    refused("config.json", MISTRAL4, ", \"n_group\": 2", "\"n_group\" must be 1");
    refused("config.json", MISTRAL4, ", \"rope_parameters\": null", "\"rope_scaling\"");
    refused("config.json", MISTRAL4,
            ", \"rope_parameters\": {\"type\": \"yarn\", \"factor\": 4,"
            "\"partial_rotary_factor\": 1}",
            "partial_rotary_factor");
}
END_TEST

START_TEST(test_a_text_model_inside_another_is_read_and_end_tokens_are_united)
{
    char outer[4096];
    struct model_config c;
    struct error err;

    snprintf(outer, sizeof(outer),
             "{\"architectures\": [\"Mistral3ForConditionalGeneration\"], \"model_type\":"
             "\"mistral3\", \"eos_token_id\": 7, \"quantization_config\": {\"quant_method\":"
             "\"fp8\", \"activation_scheme\": \"static\", \"weight_block_size\": null},"
             "\"text_config\": %s}",
             MISTRAL4);
    ck_assert_msg(load(&c, "config.json", outer, "", "{\"eos_token_id\": [2, 9]}", &err) == 0, "%s",
                  err.message);
    ck_assert_str_eq(c.model_type, "mistral4");
    ck_assert_int_eq(c.quantization, QUANT_FP8_TENSOR);
    ck_assert_int_eq(c.n_eos, 3);
    ck_assert(c.eos[0] == 2 && c.eos[1] == 7 && c.eos[2] == 9 && c.bos == 1);
    refused("config.json",
            "{\"model_type\": \"mistral3\", \"text_config\": {\"model_type\": \"mistral\"}", "",
            "\"mistral\" is not supported");
    refused("config.json", "{\"model_type\": \"mistral3\"", "", "\"mistral3\" is not supported");
}
END_TEST

START_TEST(test_mistral_large_3_is_read_from_params_json)
{
    struct model_config c = good("params.json", MISTRAL_LARGE_3, "");

    ck_assert_int_eq(c.layers, 61);
    ck_assert_int_eq(c.hidden_size, 7168);
    ck_assert_int_eq(c.dense_intermediate, 16384);
    ck_assert_int_eq(c.moe_intermediate, 4096);
    ck_assert(!c.is_moe[2] && c.is_moe[3]);
    ck_assert_int_eq(c.max_positions, 294912);
    ck_assert_int_eq(c.quantization, QUANT_FP8_TENSOR);
    ck_assert(c.n_eos == 1 && c.eos[0] == 2 && c.bos == 1);
    near(c.mla.softmax_scale, pow(192, -0.5)); /* apply_scale false */
    near(c.rope.magnitude, 1);
    near(c.query_scale.beta, 0.1);
    c = good("params.json", MISTRAL_LARGE_3,
             ", \"yarn\": {\"factor\": 36, \"original_max_position_embeddings\": 8192}");
    near(c.mla.softmax_scale, pow(192, -0.5) * pow(0.1 * log(36) + 1, 2));
}
END_TEST

START_TEST(test_messages_use_the_names_of_the_file)
{
    refused("params.json", MISTRAL_LARGE_3, ", \"dim\": 0", "params.json: \"dim\" must be");
    refused("params.json", MISTRAL_LARGE_3, ", \"moe\": {\"num_experts\": -1}",
            "\"moe.num_experts\" must be");
    refused("params.json", MISTRAL_LARGE_3, ", \"kv_lora_rank\": null",
            "those with multi-head latent attention are supported");
    refused("params.json", MISTRAL_LARGE_3, ", \"quantization\": {\"qformat_weight\": \"int4\"}",
            "\"qformat_weight\"");
    refused("config.json", LONGCAT, ", \"num_layers\": 129", "\"num_layers\" must be");
    refused("config.json", LONGCAT, ", \"moe_topk\": 769", "\"moe_topk\" must be");
    refused("config.json", SARVAM, ", \"num_experts\": 0.5", "\"num_experts\" must be");
}
END_TEST

START_TEST(test_longcat_has_two_layers_to_one_of_its_file)
{
    struct model_config c = good("config.json", LONGCAT, "");

    ck_assert_int_eq(c.layers, 56);
    ck_assert(c.shortcut_moe && !c.is_moe[0] && c.is_moe[1] && c.is_moe[55]);
    ck_assert_int_eq(c.router.experts, 512);
    ck_assert_int_eq(c.router.identity, 256);
    ck_assert_int_eq(c.router.top_k, 12);
    ck_assert(c.router.normalize == 0 && c.router_bias && c.shared_intermediate == 0);
    ck_assert(c.mtp_declared == 1 && !c.is_moe[56]);
    near(c.norm_scale.q, 2);
    near(c.norm_scale.kv, sqrt(12));
    c = good("config.json", LONGCAT, ", \"mla_scale_q_lora\": false");
    near(c.norm_scale.q, 1);
    refused("config.json", LONGCAT, ", \"zero_expert_type\": \"copy\"", "\"zero_expert_type\"");
    refused("config.json", LONGCAT, ", \"router_bias\": true", "\"router_bias\" must be false");
    refused("config.json", LONGCAT, ", \"attention_method\": \"MHA\"", "\"attention_method\"");
}
END_TEST

START_TEST(test_sarvam_makes_groups_of_eight_where_its_file_says_nothing)
{
    struct model_config c = good("config.json", SARVAM, "");

    ck_assert_int_eq(c.router.groups, 16);
    ck_assert_int_eq(c.router.top_groups, 2);
    ck_assert_int_eq(c.q_lora_rank, 0);
    near(c.mla.softmax_scale, pow(192, -0.5) * pow(0.1 * log(40) + 1, 2));
    c = good("config.json", SARVAM, ", \"n_group\": 1, \"topk_group\": 1");
    ck_assert_int_eq(c.router.groups, 1);
    refused("config.json", SARVAM, ", \"rope_scaling\": null", "\"rope_scaling\" must be");
}
END_TEST

static const struct {
    const char *model_type, *reason;
} others[] = {
    {"deepseek_v4", "its attention is not multi-head latent attention"},
    {"kimi_linear", "linear attention"},
    {"glm5_next", "linear attention"},
    {"bailing_hybrid", "linear attention"},
    {"longcat_flash_ngram", "it embeds sequences of tokens"},
    {"axk2", "its attention and its norms are gated"},
};

START_TEST(test_relatives_are_refused_with_the_reason)
{
    char text[128];

    snprintf(text, sizeof(text), "{\"model_type\": \"%s\"", others[_i].model_type);
    refused("config.json", text, "", others[_i].reason);
}
END_TEST

static const struct {
    const char *file, *text;
} released[] = {
    {"config.json", MINICPM3}, {"config.json", MISTRAL4}, {"params.json", MISTRAL_LARGE_3},
    {"config.json", LONGCAT},  {"config.json", SARVAM},
};

/* Whatever the file says, what is accepted is in range. */
START_TEST(test_mutated_files_never_crash)
{
    static const char alphabet[] = "{}[]\",:0123456789-.e ";
    size_t len = strlen(released[_i].text);
    uint32_t random = 2463534242u;
    int accepted = 0;

    for (int round = 0; round < 1500; round++) {
        struct model_config c;
        struct error err;
        char text[4096];
        memcpy(text, released[_i].text, len + 1);
        for (int change = 0; change < 1 + round % 3; change++) {
            random = random * 1664525u + 1013904223u;
            text[(random >> 8) % len] = alphabet[(random >> 4) % 22];
        }
        if (load(&c, released[_i].file, text, "", NULL, &err))
            continue;
        accepted++;
        ck_assert(c.layers >= 1 && c.layers <= MODEL_MAX_LAYERS && c.mla.v_dim >= 1);
        ck_assert(c.router.top_k <= c.router.experts + c.router.identity);
        ck_assert(isfinite(c.embed_scale) && isfinite(c.norm_scale.q) && isfinite(c.rms_norm_eps));
        ck_assert(c.query_scale.beta == 0 || c.query_scale.every > 0);
        for (int i = 0; i < c.rope.dim / 2; i++)
            ck_assert(isfinite(c.rope.inv_freq[i]));
    }
    ck_assert_int_gt(accepted, 0);
}
END_TEST

static void add_tests(TCase *tcase)
{
    tcase_add_test(tcase, test_minicpm3_keeps_its_stream_divided_by_the_residual_scale);
    tcase_add_test(tcase, test_longrope_that_would_change_cached_keys_is_refused);
    tcase_add_test(tcase, test_mistral4_leaves_the_softmax_scale_alone);
    tcase_add_test(tcase, test_a_text_model_inside_another_is_read_and_end_tokens_are_united);
    tcase_add_test(tcase, test_mistral_large_3_is_read_from_params_json);
    tcase_add_test(tcase, test_messages_use_the_names_of_the_file);
    tcase_add_test(tcase, test_longcat_has_two_layers_to_one_of_its_file);
    tcase_add_test(tcase, test_sarvam_makes_groups_of_eight_where_its_file_says_nothing);
    tcase_add_loop_test(tcase, test_mutated_files_never_crash, 0,
                        sizeof(released) / sizeof(released[0]));
    tcase_add_loop_test(tcase, test_relatives_are_refused_with_the_reason, 0,
                        sizeof(others) / sizeof(others[0]));
}

UNIT_MAIN("family", add_tests)
