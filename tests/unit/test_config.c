/* config.json of the released models becomes the numbers transformers computes, and every value
 * that can't be served is refused by its name. */
#include "tests/unit/unit.h"

#include "model/config.h"
#include "model/model.h"
#include "tests/unit/folder.h"

#include <math.h>

/* Objects without their last brace, so that a test can add keys: of equal keys the last counts. */

static const char V2_LITE[] =
    "{\"architectures\": [\"DeepseekV2ForCausalLM\"], \"attention_bias\": false,"
    "\"attention_dropout\": 0.0, \"auto_map\": {\"AutoConfig\": \"configuration_deepseek.X\"},"
    "\"aux_loss_alpha\": 0.001, \"bos_token_id\": 100000, \"eos_token_id\": 100001,"
    "\"first_k_dense_replace\": 1, \"hidden_act\": \"silu\", \"hidden_size\": 2048,"
    "\"initializer_range\": 0.02, \"intermediate_size\": 10944, \"kv_lora_rank\": 512,"
    "\"max_position_embeddings\": 163840, \"model_type\": \"deepseek_v2\","
    "\"moe_intermediate_size\": 1408, \"moe_layer_freq\": 1, \"n_group\": 1,"
    "\"n_routed_experts\": 64, \"n_shared_experts\": 2, \"norm_topk_prob\": false,"
    "\"num_attention_heads\": 16, \"num_experts_per_tok\": 6, \"num_hidden_layers\": 27,"
    "\"num_key_value_heads\": 16, \"pretraining_tp\": 1, \"q_lora_rank\": null,"
    "\"qk_nope_head_dim\": 128, \"qk_rope_head_dim\": 64, \"rms_norm_eps\": 1e-06,"
    "\"rope_scaling\": {\"beta_fast\": 32, \"beta_slow\": 1, \"factor\": 40, \"mscale\": 0.707,"
    "\"mscale_all_dim\": 0.707, \"original_max_position_embeddings\": 4096, \"type\": \"yarn\"},"
    "\"rope_theta\": 10000, \"routed_scaling_factor\": 1.0, \"scoring_func\": \"softmax\","
    "\"seq_aux\": true, \"tie_word_embeddings\": false, \"topk_group\": 1,"
    "\"topk_method\": \"greedy\", \"torch_dtype\": \"bfloat16\","
    "\"transformers_version\": \"4.33.1\", \"use_cache\": true, \"v_head_dim\": 128,"
    "\"vocab_size\": 102400";

static const char V3[] =
    "{\"architectures\": [\"DeepseekV3ForCausalLM\"], \"attention_bias\": false,"
    "\"attention_dropout\": 0.0, \"bos_token_id\": 0, \"eos_token_id\": 1, \"ep_size\": 1,"
    "\"first_k_dense_replace\": 3, \"hidden_act\": \"silu\", \"hidden_size\": 7168,"
    "\"initializer_range\": 0.02, \"intermediate_size\": 18432, \"kv_lora_rank\": 512,"
    "\"max_position_embeddings\": 163840, \"model_type\": \"deepseek_v3\","
    "\"moe_intermediate_size\": 2048, \"moe_layer_freq\": 1, \"n_group\": 8,"
    "\"n_routed_experts\": 256, \"n_shared_experts\": 1, \"norm_topk_prob\": true,"
    "\"num_attention_heads\": 128, \"num_experts_per_tok\": 8, \"num_hidden_layers\": 61,"
    "\"num_key_value_heads\": 128, \"num_nextn_predict_layers\": 1, \"q_lora_rank\": 1536,"
    "\"qk_nope_head_dim\": 128, \"qk_rope_head_dim\": 64,"
    "\"quantization_config\": {\"activation_scheme\": \"dynamic\", \"fmt\": \"e4m3\","
    "\"quant_method\": \"fp8\", \"weight_block_size\": [128, 128]}, \"rms_norm_eps\": 1e-06,"
    "\"rope_scaling\": {\"beta_fast\": 32, \"beta_slow\": 1, \"factor\": 40, \"mscale\": 1.0,"
    "\"mscale_all_dim\": 1.0, \"original_max_position_embeddings\": 4096, \"type\": \"yarn\"},"
    "\"rope_theta\": 10000, \"routed_scaling_factor\": 2.5, \"scoring_func\": \"sigmoid\","
    "\"tie_word_embeddings\": false, \"topk_group\": 4, \"topk_method\": \"noaux_tc\","
    "\"torch_dtype\": \"bfloat16\", \"transformers_version\": \"4.33.1\", \"use_cache\": true,"
    "\"v_head_dim\": 128, \"vocab_size\": 129280";

static const char MOONLIGHT[] =
    "{\"architectures\": [\"DeepseekV3ForCausalLM\"], \"attention_bias\": false,"
    "\"aux_loss_alpha\": 0.001, \"bos_token_id\": 163584, \"eos_token_id\": 163585,"
    "\"first_k_dense_replace\": 1, \"hidden_act\": \"silu\", \"hidden_size\": 2048,"
    "\"intermediate_size\": 11264, \"kv_lora_rank\": 512, \"max_position_embeddings\": 8192,"
    "\"model_type\": \"deepseek_v3\", \"moe_intermediate_size\": 1408, \"moe_layer_freq\": 1,"
    "\"n_group\": 1, \"n_routed_experts\": 64, \"n_shared_experts\": 2, \"norm_topk_prob\": true,"
    "\"num_attention_heads\": 16, \"num_experts_per_tok\": 6, \"num_hidden_layers\": 27,"
    "\"num_key_value_heads\": 16, \"num_nextn_predict_layers\": 0, \"q_lora_rank\": null,"
    "\"qk_nope_head_dim\": 128, \"qk_rope_head_dim\": 64, \"rms_norm_eps\": 1e-05,"
    "\"rope_scaling\": null, \"rope_theta\": 50000.0, \"routed_scaling_factor\": 2.446,"
    "\"scoring_func\": \"sigmoid\", \"seq_aux\": true, \"tie_word_embeddings\": false,"
    "\"topk_group\": 1, \"topk_method\": \"noaux_tc\", \"torch_dtype\": \"bfloat16\","
    "\"v_head_dim\": 128, \"vocab_size\": 163840";

static const char KIMI_K2[] =
    "{\"architectures\": [\"DeepseekV3ForCausalLM\"], \"attention_bias\": false,"
    "\"bos_token_id\": 163584, \"eos_token_id\": 163585, \"first_k_dense_replace\": 1,"
    "\"hidden_act\": \"silu\", \"hidden_size\": 7168, \"intermediate_size\": 18432,"
    "\"kv_lora_rank\": 512, \"max_position_embeddings\": 131072, \"model_type\": \"kimi_k2\","
    "\"moe_intermediate_size\": 2048, \"moe_layer_freq\": 1, \"n_group\": 1,"
    "\"n_routed_experts\": 384, \"n_shared_experts\": 1, \"norm_topk_prob\": true,"
    "\"num_attention_heads\": 64, \"num_experts_per_tok\": 8, \"num_hidden_layers\": 61,"
    "\"num_key_value_heads\": 64, \"num_nextn_predict_layers\": 0, \"q_lora_rank\": 1536,"
    "\"qk_nope_head_dim\": 128, \"qk_rope_head_dim\": 64, \"quantization_config\":"
    "{\"activation_scheme\": \"dynamic\", \"fmt\": \"e4m3\", \"quant_method\": \"fp8\","
    "\"weight_block_size\": [128, 128]}, \"rms_norm_eps\": 1e-06, \"rope_scaling\":"
    "{\"beta_fast\": 1.0, \"beta_slow\": 1.0, \"factor\": 32.0, \"mscale\": 1.0,"
    "\"mscale_all_dim\": 1.0, \"original_max_position_embeddings\": 4096, \"type\": \"yarn\"},"
    "\"rope_theta\": 50000.0, \"routed_scaling_factor\": 2.827, \"scoring_func\": \"sigmoid\","
    "\"seq_aux\": true, \"tie_word_embeddings\": false, \"topk_group\": 1,"
    "\"topk_method\": \"noaux_tc\", \"torch_dtype\": \"bfloat16\", \"v_head_dim\": 128,"
    "\"vocab_size\": 163840";

/* Loads `base` with `more` added (", \"key\": value"), and a generation_config.json if not NULL. */
static int load_with(struct model_config *config, const char *base, const char *more,
                     const char *generation, struct error *err)
{
    char dir[FOLDER_PATH_BYTES], text[8192];
    int rc;

    folder_make(dir);
    snprintf(text, sizeof(text), "%s%s}", base, more);
    folder_write_text(dir, "config.json", text);
    if (generation)
        folder_write_text(dir, "generation_config.json", generation);
    err->message[0] = '\0';
    rc = model_config_load(config, dir, err);
    folder_remove(dir);
    return rc;
}

static struct model_config load_good(const char *base, const char *more, const char *generation)
{
    struct model_config config;
    struct error err;

    ck_assert_msg(load_with(&config, base, more, generation, &err) == 0, "%s", err.message);
    return config;
}

static void assert_refused(const char *base, const char *more, const char *generation,
                           const char *words)
{
    struct model_config config;
    struct error err;

    ck_assert_msg(load_with(&config, base, more, generation, &err) == -1, "accepted: %s", more);
    ck_assert_msg(strstr(err.message, words) != NULL, "\"%s\" says nothing of %s", err.message,
                  words);
}

static void assert_near(double value, double expected)
{
    ck_assert_double_le(fabs(value - expected), 2e-7 * fabs(expected));
}

/* ---- released models: inv_freq and scales are what transformers 5.17 prints ------------------ */

START_TEST(test_v2_lite_is_read_as_released)
{
    struct model_config c = load_good(V2_LITE, "", NULL);

    ck_assert_str_eq(c.model_type, "deepseek_v2");
    ck_assert_int_eq(c.layers, 27);
    ck_assert_int_eq(c.hidden_size, 2048);
    ck_assert_int_eq(c.q_lora_rank, 0);
    ck_assert_int_eq(c.mla.heads, 16);
    ck_assert_int_eq(c.mla.kv_lora_rank, 512);
    ck_assert_int_eq(c.dense_intermediate, 10944);
    ck_assert_int_eq(c.shared_intermediate, 2816);
    ck_assert_int_eq(c.is_moe[0], false);
    ck_assert_int_eq(c.is_moe[1], true);
    ck_assert_int_eq(c.is_moe[26], true);
    ck_assert_int_eq(c.is_moe[27], false);
    ck_assert_int_eq(c.router.scoring, ROUTER_SOFTMAX);
    ck_assert_int_eq(c.router.top_k, 6);
    ck_assert_int_eq(c.router.groups, 1);
    ck_assert_int_eq(c.router.normalize, 0);
    ck_assert_int_eq(c.router_bias, false);
    ck_assert_int_eq(c.quantization, QUANT_NONE);
    ck_assert_int_eq(c.bos, 100000);
    ck_assert_int_eq(c.n_eos, 1);
    ck_assert_int_eq(c.eos[0], 100001);
    assert_near(c.mla.softmax_scale, 0.1147213867929261);
    assert_near(c.rope.magnitude, 1);
    ck_assert_int_eq(c.rope.half_split, 0);
    assert_near(c.rope.inv_freq[0], 1);
    assert_near(c.rope.inv_freq[1], 0.749894202);
    assert_near(c.rope.inv_freq[11], 0.0390069261);
    assert_near(c.rope.inv_freq[16], 0.00550000044);
    assert_near(c.rope.inv_freq[22], 0.00017782794);
    assert_near(c.rope.inv_freq[31], 3.33380353e-06);
}
END_TEST

START_TEST(test_v3_is_read_as_released)
{
    struct model_config c = load_good(V3, "", NULL);

    ck_assert_int_eq(c.q_lora_rank, 1536);
    ck_assert_int_eq(c.router.scoring, ROUTER_SIGMOID);
    ck_assert_int_eq(c.router.experts, 256);
    ck_assert_int_eq(c.router.groups, 8);
    ck_assert_int_eq(c.router.top_groups, 4);
    ck_assert_int_eq(c.router.normalize, 1);
    assert_near(c.router.scale, 2.5f);
    ck_assert_int_eq(c.router_bias, true);
    ck_assert_int_eq(c.is_moe[2], false);
    ck_assert_int_eq(c.is_moe[3], true);
    ck_assert_int_eq(c.quantization, QUANT_FP8_BLOCK);
    ck_assert_int_eq(c.quant_block[0], 128);
    ck_assert_int_eq(c.quant_block[1], 128);
    assert_near(c.mla.softmax_scale, 0.1352337788608801);
    assert_near(c.rope.magnitude, 1);
    assert_near(c.rope.inv_freq[15], 0.0083345091);
}
END_TEST

/* DeepSeek-V3's layer of multi-token prediction: 11.5e9 parameters, by its README_WEIGHTS.md, and
 * eh_proj. */
START_TEST(test_multi_token_prediction_is_declared_but_not_wanted)
{
    const struct backend keeps = {.keeps_fp8 = 1};
    struct model_config c = load_good(V3, "", NULL);
    struct error err;

    ck_assert_int_eq(c.mtp_declared, 1);
    ck_assert_int_eq(c.mtp_layers, 0);
    ck_assert(c.is_moe[61] && !c.is_moe[62] && !c.has_indexer[61]);
    double before = (double)model_weight_bytes(&c, 2, NULL);
    double kept = (double)model_weight_bytes(&c, 2, &keeps);
    ck_assert_int_eq(model_want_mtp(&c, NULL, &err), 0);
    ck_assert_double_eq_tol((double)model_weight_bytes(&c, 2, NULL) - before, 2 * 11.6e9, 0.05e9);
    ck_assert_double_eq_tol((double)model_weight_bytes(&c, 2, &keeps) - kept, 11.75e9, 0.05e9);

    ck_assert_int_eq(load_good(MOONLIGHT, "", NULL).mtp_declared, 0);
    ck_assert_int_eq(load_good(V2_LITE, "", NULL).mtp_declared, 0);
    ck_assert_int_eq(load_good(V3, ", \"num_nextn_predict_layers\": null", NULL).mtp_declared, 0);
    assert_refused(V3, ", \"num_nextn_predict_layers\": 196", NULL, "\"num_nextn_predict_layers\"");
    assert_refused(V3, ", \"num_nextn_predict_layers\": -1", NULL, "\"num_nextn_predict_layers\"");
}
END_TEST

START_TEST(test_moonlight_is_read_as_released)
{
    struct model_config c = load_good(MOONLIGHT, "", NULL);

    assert_near(c.rms_norm_eps, 1e-5f);
    assert_near(c.lora_norm_eps, 1e-6f);
    ck_assert_int_eq(c.router.groups, 1);
    ck_assert_int_eq(c.router_bias, true);
    assert_near(c.router.scale, 2.446f);
    assert_near(c.mla.softmax_scale, 0.07216878364870322);
    assert_near(c.rope.inv_freq[1], 0.713111103);
    assert_near(c.rope.inv_freq[31], 2.80461209e-05);
}
END_TEST

START_TEST(test_kimi_k2_is_read_as_released)
{
    struct model_config c = load_good(KIMI_K2, "", NULL);

    ck_assert_str_eq(c.model_type, "kimi_k2");
    ck_assert_int_eq(c.router.experts, 384);
    assert_near(c.router.scale, 2.827f);
    assert_near(c.mla.softmax_scale, 0.13086079996295005);
    assert_near(c.rope.inv_freq[16], 0.00447213603);
    assert_near(c.rope.inv_freq[20], 3.61404673e-05);
    assert_near(c.rope.inv_freq[31], 8.76441277e-07);
}
END_TEST

START_TEST(test_joyai_uses_the_v3_graph)
{
    struct model_config c = load_good(MOONLIGHT, ", \"model_type\": \"joyai_llm_flash\"", NULL);

    ck_assert_str_eq(c.model_type, "joyai_llm_flash");
    ck_assert_int_eq(c.router.scoring, ROUTER_SIGMOID);
}
END_TEST

/* ---- keys that change the arithmetic --------------------------------------------------------- */

START_TEST(test_yarn_without_both_mscales_scales_by_the_factor_alone)
{
    struct model_config c =
        load_good(V3,
                  ", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 40, \"mscale\": 0.707,"
                  "\"original_max_position_embeddings\": 4096}",
                  NULL);

    assert_near(c.rope.magnitude, 1.3688879454113936);
    assert_near(c.mla.softmax_scale, 0.07216878364870322);
}
END_TEST

START_TEST(test_yarn_attention_factor_and_untruncated_ramp)
{
    struct model_config c = load_good(
        V3,
        ", \"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 40, \"attention_factor\": 1.25,"
        "\"truncate\": false, \"beta_fast\": null, \"mscale\": 1.2, "
        "\"mscale_all_dim\": 0.6,"
        "\"original_max_position_embeddings\": 4096}",
        NULL);

    assert_near(c.rope.magnitude, 1.25);
    assert_near(c.mla.softmax_scale, 0.10765083520013144);
    assert_near(c.rope.inv_freq[11], 0.0403675847);
    assert_near(c.rope.inv_freq[22], 0.000118387645);
}
END_TEST

START_TEST(test_yarn_without_original_length_uses_the_whole_context)
{
    struct model_config c =
        load_good(V3, ", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 40}", NULL);

    assert_near(c.rope.inv_freq[15], 0.0133352149);
    assert_near(c.rope.inv_freq[28], 0.000197642352);
}
END_TEST

START_TEST(test_rope_parameters_spelling)
{
    struct model_config c = load_good(
        MOONLIGHT, ", \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 500.0}",
        NULL);
    struct model_config both = load_good(
        V3, ", \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 500.0}", NULL);

    assert_near(c.rope.inv_freq[1], 0.823487818);       /* wins over rope_theta outside */
    assert_near(both.rope.inv_freq[16], 0.00550000044); /* rope_scaling wins over it */
}
END_TEST

START_TEST(test_rope_interleave_belongs_to_v3)
{
    ck_assert_int_eq(load_good(V3, ", \"rope_interleave\": false", NULL).rope.half_split, 1);
    ck_assert_int_eq(load_good(V2_LITE, ", \"rope_interleave\": false", NULL).rope.half_split, 0);
}
END_TEST

START_TEST(test_v2_groups_count_only_when_the_method_uses_them)
{
    const char *groups = ", \"n_group\": 8, \"topk_group\": 3";
    struct model_config greedy = load_good(V2_LITE, groups, NULL);
    struct model_config limited = load_good(
        V2_LITE, ", \"n_group\": 8, \"topk_group\": 3, \"topk_method\": \"group_limited_greedy\"",
        NULL);

    ck_assert_int_eq(greedy.router.groups, 1);
    ck_assert_int_eq(limited.router.groups, 8);
    ck_assert_int_eq(limited.router.top_groups, 3);
}
END_TEST

START_TEST(test_v2_never_normalises_as_in_transformers)
{
    ck_assert_int_eq(load_good(V2_LITE, ", \"norm_topk_prob\": true", NULL).router.normalize, 0);
    ck_assert_int_eq(load_good(V3, ", \"norm_topk_prob\": false", NULL).router.normalize, 0);
}
END_TEST

START_TEST(test_null_means_none)
{
    struct model_config c = load_good(
        V3, ", \"n_shared_experts\": null, \"n_group\": null, \"topk_group\": null", NULL);
    struct model_config dense = load_good(V3, ", \"n_routed_experts\": null", NULL);

    ck_assert_int_eq(c.shared_intermediate, 0);
    ck_assert_int_eq(c.router.groups, 1);
    ck_assert_int_eq(c.router.top_groups, 1);
    ck_assert_int_eq(dense.router.experts, 0);
    ck_assert_int_eq(dense.is_moe[60], false);
}
END_TEST

START_TEST(test_moe_layer_freq_skips_layers)
{
    struct model_config c = load_good(V3, ", \"moe_layer_freq\": 2", NULL);

    ck_assert_int_eq(c.is_moe[3], false);
    ck_assert_int_eq(c.is_moe[4], true);
    ck_assert_int_eq(c.is_moe[5], false);
}
END_TEST

START_TEST(test_model_without_moe_layers_has_no_router)
{
    struct model_config c = load_good(V3, ", \"first_k_dense_replace\": 61", NULL);

    ck_assert_int_eq(c.router.experts, 0);
    ck_assert_int_eq(c.shared_intermediate, 0);
}
END_TEST

/* ---- generation_config.json ------------------------------------------------------------------ */

START_TEST(test_defaults_without_generation_config)
{
    struct model_config c = load_good(V3, "", NULL);

    ck_assert_float_eq(c.default_temperature, 1);
    ck_assert_float_eq(c.default_top_p, 1);
    ck_assert_int_eq(c.default_top_k, 0);
    ck_assert_float_eq(c.default_repetition_penalty, 1);
}
END_TEST

START_TEST(test_generation_config_gives_defaults_and_more_end_tokens)
{
    struct model_config c =
        load_good(MOONLIGHT, "",
                  "{\"do_sample\": true, \"temperature\": 0.3, \"top_p\": 0.95, \"top_k\": 40,"
                  "\"repetition_penalty\": 1.05, \"eos_token_id\": [163585, 163586]}");

    ck_assert_float_eq(c.default_temperature, 0.3f);
    ck_assert_float_eq(c.default_top_p, 0.95f);
    ck_assert_int_eq(c.default_top_k, 40);
    ck_assert_float_eq(c.default_repetition_penalty, 1.05f);
    ck_assert_int_eq(c.n_eos, 2);
    ck_assert_int_eq(c.eos[0], 163585);
    ck_assert_int_eq(c.eos[1], 163586);
}
END_TEST

START_TEST(test_do_sample_false_is_greedy)
{
    struct model_config c =
        load_good(V3, "", "{\"do_sample\": false, \"temperature\": 0.6, \"top_k\": -1}");

    ck_assert_float_eq(c.default_temperature, 0);
    ck_assert_int_eq(c.default_top_k, 0);
    c = load_good(V3, "", "{\"do_sample\": null, \"temperature\": null, \"top_p\": null}");
    ck_assert_float_eq(c.default_temperature, 1);
}
END_TEST

/* ---- refusals -------------------------------------------------------------------------------- */

static const struct {
    const char *more;  /* added to V3's config */
    const char *words; /* the message names it */
} bad[] = {
    {", \"vocab_size\": 0", "\"vocab_size\""},
    {", \"vocab_size\": \"many\"", "\"vocab_size\""},
    {", \"vocab_size\": 1e12", "\"vocab_size\""},
    {", \"hidden_size\": -1", "\"hidden_size\""},
    {", \"hidden_size\": 7168.5", "\"hidden_size\""},
    {", \"hidden_size\": null", "\"hidden_size\""},
    {", \"num_hidden_layers\": 0", "\"num_hidden_layers\""},
    {", \"num_hidden_layers\": 257", "\"num_hidden_layers\""},
    {", \"intermediate_size\": []", "\"intermediate_size\""},
    {", \"moe_intermediate_size\": 0", "\"moe_intermediate_size\""},
    {", \"max_position_embeddings\": 0", "\"max_position_embeddings\""},
    {", \"max_position_embeddings\": 100000000", "\"max_position_embeddings\""},
    {", \"num_attention_heads\": 0", "\"num_attention_heads\""},
    {", \"kv_lora_rank\": \"x\"",
     "\"kv_lora_rank\" must be a whole number from 1 to 4096, got \"x\""},
    {", \"kv_lora_rank\": 0", "\"kv_lora_rank\""},
    {", \"q_lora_rank\": -1", "\"q_lora_rank\""},
    {", \"q_lora_rank\": true", "\"q_lora_rank\""},
    {", \"qk_nope_head_dim\": 0", "\"qk_nope_head_dim\""},
    {", \"qk_rope_head_dim\": 63", "\"qk_rope_head_dim\""},
    {", \"qk_rope_head_dim\": 256", "\"qk_rope_head_dim\""},
    {", \"v_head_dim\": null", "\"v_head_dim\""},
    {", \"rms_norm_eps\": -1e-6", "\"rms_norm_eps\""},
    {", \"rms_norm_eps\": \"1e-6\"", "\"rms_norm_eps\""},
    {", \"hidden_act\": \"gelu\"", "\"hidden_act\" must be \"silu\", got \"gelu\""},
    {", \"tie_word_embeddings\": 1", "\"tie_word_embeddings\""},
    {", \"attention_bias\": \"no\"", "\"attention_bias\""},
    {", \"mlp_bias\": true", "\"mlp_bias\""},
    {", \"n_routed_experts\": -2", "\"n_routed_experts\""},
    {", \"n_routed_experts\": 100000", "\"n_routed_experts\""},
    {", \"n_shared_experts\": 2.5", "\"n_shared_experts\""},
    {", \"n_shared_experts\": 4096", "\"n_shared_experts\""},
    {", \"num_experts_per_tok\": 0", "\"num_experts_per_tok\""},
    {", \"num_experts_per_tok\": 257", "\"num_experts_per_tok\""},
    {", \"num_experts_per_tok\": 129", "\"num_experts_per_tok\""}, /* of 4 groups of 32 */
    {", \"n_group\": 7", "\"n_group\""},
    {", \"n_group\": 256", "\"n_group\""}, /* V3 ranks groups by their best two */
    {", \"topk_group\": 9", "\"topk_group\""},
    {", \"topk_method\": \"greedy\"", "\"topk_method\""},
    {", \"scoring_func\": \"softmax\"", "\"scoring_func\" must be \"sigmoid\""},
    {", \"norm_topk_prob\": 1", "\"norm_topk_prob\""},
    {", \"routed_scaling_factor\": 0", "\"routed_scaling_factor\""},
    {", \"routed_scaling_factor\": 1e999", "\"routed_scaling_factor\""},
    {", \"first_k_dense_replace\": -1", "\"first_k_dense_replace\""},
    {", \"moe_layer_freq\": 0", "\"moe_layer_freq\""},
    {", \"rope_theta\": 0", "\"rope_theta\""},
    {", \"rope_interleave\": \"yes\"", "\"rope_interleave\""},
    {", \"partial_rotary_factor\": 0.5", "\"partial_rotary_factor\""},
    {", \"rope_scaling\": 40", "\"rope_scaling\""},
    {", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}", "\"rope_scaling.type\""},
    {", \"rope_scaling\": {\"rope_type\": \"longrope\"}", "\"rope_scaling.rope_type\""},
    {", \"rope_scaling\": {\"type\": \"yarn\"}", "\"rope_scaling.factor\" is missing"},
    {", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 0.5}", "\"rope_scaling.factor\""},
    {", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4, \"beta_fast\": 0}", ".beta_fast\""},
    {", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4, \"beta_slow\": 64}", ".beta_fast\""},
    {", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4, \"mscale\": -1}", ".mscale\""},
    {", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4, \"mscale_all_dim\": \"1\"}",
     ".mscale_all_dim\""},
    {", \"rope_scaling\": null, \"rope_parameters\": []", "\"rope_parameters\""},
    {", \"eos_token_id\": 129280", "\"eos_token_id\""},
    {", \"eos_token_id\": [1, -1]", "\"eos_token_id\""},
    {", \"eos_token_id\": \"</s>\"", "\"eos_token_id\""},
    {", \"eos_token_id\": [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]", "\"eos_token_id\""},
    {", \"bos_token_id\": -1", "\"bos_token_id\""},
    {", \"quantization_config\": \"fp8\"", "\"quantization_config\""},
    {", \"quantization_config\": {}", "quant_method"},
    {", \"quantization_config\": {\"quant_method\": \"awq\"}", "\"awq\""},
    {", \"quantization_config\": {\"quant_method\": \"fp8\"}", "weight_block_size"},
    {", \"quantization_config\": {\"quant_method\": \"fp8\", \"weight_block_size\": [128]}",
     "weight_block_size"},
    {", \"quantization_config\": {\"quant_method\": \"fp8\", \"weight_block_size\": [128, 0]}",
     "weight_block_size"},
    {", \"quantization_config\": {\"quant_method\": \"fp8\", \"weight_block_size\": [1, 1, 1]}",
     "weight_block_size"},
    {", \"quantization_config\": {\"quant_method\": \"fp8\", \"fmt\": \"e5m2\"}", ".fmt\""},
    {", \"model_type\": \"llama\"", "\"llama\""},
    {", \"model_type\": \"deepseek_v2\"", "DeepseekV3ForCausalLM"},
    {", \"model_type\": \"kimi_linear\", \"architectures\": [\"KimiLinearForCausalLM\"]",
     "\"kimi_linear\" is not supported: most of its layers are linear attention"},
    {", \"model_type\": 3", "\"model_type\""},
    {", \"architectures\": \"DeepseekV3ForCausalLM\"", "\"architectures\""},
    {", \"architectures\": [\"DeepseekV3ForCausalLMNextN\"]", "DeepseekV3ForCausalLMNextN"},
};

START_TEST(test_bad_values_are_refused_by_name)
{
    assert_refused(V3, bad[_i].more, NULL, bad[_i].words);
    assert_refused(V3, bad[_i].more, NULL, "/config.json: ");
}
END_TEST

static const char *const required[] = {
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "moe_intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_experts_per_tok",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "model_type",
};

START_TEST(test_missing_keys_are_named)
{
    char text[sizeof(V3)], key[64];
    char *at;

    memcpy(text, V3, sizeof(V3));
    snprintf(key, sizeof(key), "\"%s\":", required[_i]);
    at = strstr(text, key);
    ck_assert_ptr_nonnull(at);
    at[1] = '_';
    at = strchr(key, ':');
    snprintf(at, 16, " is missing");
    assert_refused(text, "", NULL, key);
}
END_TEST

static const struct {
    const char *text;
    const char *words;
} bad_generation[] = {
    {"[]", "must hold a JSON object"},
    {"{", "syntax"},
    {"{\"temperature\": -0.1}", "\"temperature\""},
    {"{\"temperature\": \"hot\"}", "\"temperature\""},
    {"{\"top_p\": 0}", "\"top_p\""},
    {"{\"top_p\": 1.5}", "\"top_p\""},
    {"{\"top_k\": -2}", "\"top_k\""},
    {"{\"top_k\": 1.5}", "\"top_k\""},
    {"{\"repetition_penalty\": 0}", "\"repetition_penalty\""},
    {"{\"do_sample\": \"no\"}", "\"do_sample\""},
    {"{\"eos_token_id\": 129280}", "\"eos_token_id\""},
};

START_TEST(test_bad_generation_config_is_refused)
{
    assert_refused(V3, "", bad_generation[_i].text, bad_generation[_i].words);
    assert_refused(V3, "", bad_generation[_i].text, "/generation_config.json: ");
}
END_TEST

START_TEST(test_missing_or_broken_file_is_named)
{
    struct model_config config;
    struct error err;

    ck_assert_int_eq(model_config_load(&config, "/nowhere", &err), -1);
    ck_assert_ptr_nonnull(strstr(err.message, "/nowhere: there is no such folder"));
    assert_refused("[1", "", NULL, "syntax error");
    assert_refused("{\"a\": 1}, {", "", NULL, "goes on after its end");
}
END_TEST

/* Whatever the file says, what is accepted is in range. */
START_TEST(test_mutated_configs_never_crash)
{
    static const char alphabet[] = "{}[]\",:0123456789-.e ";
    uint32_t random = 2463534242u;
    int accepted = 0;

    for (int round = 0; round < 3000; round++) {
        struct model_config c;
        struct error err;
        char text[sizeof(V3)];
        memcpy(text, V3, sizeof(V3));
        for (int change = 0; change < 1 + round % 3; change++) {
            random = random * 1664525u + 1013904223u;
            text[(random >> 8) % (sizeof(V3) - 1)] = alphabet[(random >> 4) % 22];
        }
        if (load_with(&c, text, "", NULL, &err))
            continue;
        accepted++;
        ck_assert_int_ge(c.layers, 1);
        ck_assert_int_le(c.layers, MODEL_MAX_LAYERS);
        ck_assert_int_le(c.rope.dim, ROPE_MAX_DIM);
        ck_assert_int_le(c.router.top_k, c.router.experts);
        ck_assert_int_le(c.router.top_groups, c.router.groups);
        for (int i = 0; i < c.rope.dim / 2; i++)
            ck_assert(isfinite(c.rope.inv_freq[i]));
    }
    ck_assert_int_gt(accepted, 0);
}
END_TEST

static void add_tests(TCase *t)
{
    tcase_add_test(t, test_v2_lite_is_read_as_released);
    tcase_add_test(t, test_v3_is_read_as_released);
    tcase_add_test(t, test_multi_token_prediction_is_declared_but_not_wanted);
    tcase_add_test(t, test_moonlight_is_read_as_released);
    tcase_add_test(t, test_kimi_k2_is_read_as_released);
    tcase_add_test(t, test_joyai_uses_the_v3_graph);
    tcase_add_test(t, test_yarn_without_both_mscales_scales_by_the_factor_alone);
    tcase_add_test(t, test_yarn_attention_factor_and_untruncated_ramp);
    tcase_add_test(t, test_yarn_without_original_length_uses_the_whole_context);
    tcase_add_test(t, test_rope_parameters_spelling);
    tcase_add_test(t, test_rope_interleave_belongs_to_v3);
    tcase_add_test(t, test_v2_groups_count_only_when_the_method_uses_them);
    tcase_add_test(t, test_v2_never_normalises_as_in_transformers);
    tcase_add_test(t, test_null_means_none);
    tcase_add_test(t, test_moe_layer_freq_skips_layers);
    tcase_add_test(t, test_model_without_moe_layers_has_no_router);
    tcase_add_test(t, test_defaults_without_generation_config);
    tcase_add_test(t, test_generation_config_gives_defaults_and_more_end_tokens);
    tcase_add_test(t, test_do_sample_false_is_greedy);
    tcase_add_loop_test(t, test_bad_values_are_refused_by_name, 0, sizeof(bad) / sizeof(*bad));
    tcase_add_loop_test(t, test_missing_keys_are_named, 0, sizeof(required) / sizeof(*required));
    tcase_add_loop_test(t, test_bad_generation_config_is_refused, 0,
                        sizeof(bad_generation) / sizeof(*bad_generation));
    tcase_add_test(t, test_missing_or_broken_file_is_named);
    tcase_add_test(t, test_mutated_configs_never_crash);
}

UNIT_MAIN("config", add_tests)
