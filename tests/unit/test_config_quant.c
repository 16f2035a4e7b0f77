/* Which matrices of a checkpoint are quantized and how, by its quantization_config: in
 * compressed-tensors' dialect, and DeepSeek's where test_config.c has not said it all. */
#include "tests/unit/unit.h"

#include "model/config.h"
#include "model/model.h"
#include "tests/unit/folder.h"

static const char BASE[] =
    "{\"architectures\": [\"DeepseekV3ForCausalLM\"], \"model_type\": \"deepseek_v3\","
    "\"first_k_dense_replace\": 1, \"hidden_size\": 64, \"intermediate_size\": 64,"
    "\"kv_lora_rank\": 32, \"max_position_embeddings\": 256, \"moe_intermediate_size\": 32,"
    "\"n_group\": 1, \"n_routed_experts\": 4, \"num_attention_heads\": 2,"
    "\"num_experts_per_tok\": 2, \"num_hidden_layers\": 3, \"q_lora_rank\": null,"
    "\"qk_nope_head_dim\": 16, \"qk_rope_head_dim\": 16, \"topk_group\": 1, \"v_head_dim\": 16,"
    "\"vocab_size\": 100";

/* What compressed-tensors writes: `weights` and `targets` of its one group, and `more`. */
static int load_group(struct model_config *config, const char *format, const char *weights,
                      const char *targets, const char *more, struct error *err)
{
    char dir[FOLDER_PATH_BYTES], text[4096];
    int rc;

    folder_make(dir);
    snprintf(text, sizeof(text),
             "%s, \"quantization_config\": {\"quant_method\": \"compressed-tensors\", \"format\": "
             "\"%s\", \"config_groups\": {\"group_0\": {\"targets\": %s, \"input_activations\": "
             "null, \"weights\": {%s}}}%s}}",
             BASE, format, targets, weights, more);
    folder_write_text(dir, "config.json", text);
    err->message[0] = '\0';
    rc = model_config_load(config, dir, err);
    folder_remove(dir);
    return rc;
}

static const char INT4[] = "\"num_bits\": 4, \"type\": \"int\", \"strategy\": \"group\","
                           "\"group_size\": 32, \"symmetric\": true, \"actorder\": null";

static struct model_config good(const char *format, const char *weights, const char *targets,
                                const char *more)
{
    struct model_config config;
    struct error err;

    ck_assert_msg(load_group(&config, format, weights, targets, more, &err) == 0, "%s",
                  err.message);
    ck_assert(config.quant_compressed);
    return config;
}

static void refused(const char *format, const char *weights, const char *more, const char *words)
{
    struct model_config config;
    struct error err;

    ck_assert_int_eq(load_group(&config, format, weights, "[\"Linear\"]", more, &err), -1);
    ck_assert_msg(strstr(err.message, words) != NULL, "\"%s\" says nothing of %s", err.message,
                  words);
}

START_TEST(test_kimi_quantizes_its_experts_alone)
{
    struct model_config c;
    struct error err;

    ck_assert_msg(model_config_load(&c, "config/models/kimi-k2-thinking.json", &err) == 0, "%s",
                  err.message);
    ck_assert_int_eq(c.quantization, QUANT_INT4);
    ck_assert_int_eq(c.quant_block[0], 1);
    ck_assert_int_eq(c.quant_block[1], 32);
    ck_assert(c.quantized.experts && !c.quantized.shared && !c.quantized.dense);
    ck_assert(!c.quantized.attention && !c.quantized.head);
}
END_TEST

START_TEST(test_int4_experts_take_four_and_a_half_bits_where_they_stay)
{
    const double experts = 60.0 * 384 * 3 * 7168 * 2048;
    const struct backend keeps = {.keeps_int4 = 1};
    struct model_config c;
    struct error err;

    ck_assert_int_eq(model_config_load(&c, "config/models/kimi-k2-thinking.json", &err), 0);
    double wide = (double)model_weight_bytes(&c, 2, NULL);
    double kept = (double)model_weight_bytes(&c, 2, &keeps);
    ck_assert_double_eq_tol(wide - kept, experts * (2 - 4.5 / 8), 1);
    ck_assert_double_eq_tol(kept, 595e9, 0.01 * 595e9);
}
END_TEST

START_TEST(test_everything_that_is_not_ignored_is_quantized)
{
    struct model_config c = good("pack-quantized", INT4, "[\"Linear\"]", "");

    ck_assert(c.quantized.experts && c.quantized.shared && c.quantized.dense);
    ck_assert(c.quantized.attention && c.quantized.head);
}
END_TEST

START_TEST(test_ignored_names_are_whole_and_patterns_begin_them)
{
    struct model_config c = good("pack-quantized", INT4, "[\"Linear\"]",
                                 ", \"ignore\": [\"head\", \"re:self_attn\", \"lm_hea\","
                                 "\"model.layers.1.mlp.shared_experts.down_proj\"]");

    ck_assert(c.quantized.attention && c.quantized.head && !c.quantized.shared);
    c = good(
        "pack-quantized", INT4, "[\"Linear\"]",
        ", \"ignore\": [\"lm_head\", \"re:model.*self_attn\", \"re:.*mlp.(gate|down)_proj$\"]");
    ck_assert(!c.quantized.attention && !c.quantized.head && !c.quantized.dense);
    ck_assert(c.quantized.experts && c.quantized.shared);
}
END_TEST

START_TEST(test_names_of_a_model_with_images_are_ignored_too)
{
    struct model_config c = good("pack-quantized", INT4, "[\"Linear\"]",
                                 ", \"ignore\": [\"re:language_model.*(attn|shared)\","
                                 "\"language_model.lm_head\"]");

    ck_assert(!c.quantized.attention && !c.quantized.head && !c.quantized.shared);
    ck_assert(c.quantized.experts);
}
END_TEST

START_TEST(test_targets_may_be_patterns)
{
    struct model_config c = good("pack-quantized", INT4, "[\"re:.*mlp.experts.*\"]", "");

    ck_assert(c.quantized.experts && !c.quantized.shared && !c.quantized.attention);
}
END_TEST

START_TEST(test_a_scale_for_a_whole_row)
{
    struct model_config c =
        good("pack-quantized", "\"num_bits\": 4, \"type\": \"int\", \"strategy\": \"channel\"",
             "[\"Linear\"]", "");

    ck_assert_int_eq(c.quantization, QUANT_INT4);
    ck_assert_int_eq(c.quant_block[0], 1);
    ck_assert_int_eq(c.quant_block[1], 0);
}
END_TEST

START_TEST(test_fp8_of_compressed_tensors)
{
    static const struct {
        const char *strategy;
        enum quantization quantization;
        int32_t block[2];
    } cases[] = {
        {"\"strategy\": \"tensor\"", QUANT_FP8_TENSOR, {0, 0}},
        {"\"strategy\": \"channel\"", QUANT_FP8_BLOCK, {1, 0}},
        {"\"strategy\": \"block\", \"block_structure\": [128, 64]", QUANT_FP8_BLOCK, {128, 64}},
    };
    char weights[256];

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        snprintf(weights, sizeof(weights), "\"num_bits\": 8, \"type\": \"float\", %s",
                 cases[i].strategy);
        struct model_config c = good("float-quantized", weights, "[\"Linear\"]", "");
        ck_assert_int_eq(c.quantization, cases[i].quantization);
        ck_assert_int_eq(c.quant_block[0], cases[i].block[0]);
        ck_assert_int_eq(c.quant_block[1], cases[i].block[1]);
    }
}
END_TEST

static const struct {
    const char *format, *weights, *more, *words;
} bad[] = {
    {"nvfp4-pack-quantized", INT4, "", ".format\" must be \"pack-quantized\" (INT4)"},
    {"pack-quantized", "\"num_bits\": 8", "", ".num_bits\" must be 4, got 8"},
    {"pack-quantized", "\"num_bits\": 4, \"symmetric\": false", "", ".symmetric\" must be true"},
    {"pack-quantized", "\"num_bits\": 4, \"actorder\": \"group\"", "", ".actorder\" must be"},
    {"pack-quantized", "\"num_bits\": 4, \"strategy\": \"tensor\"", "", ".strategy\" must be"},
    {"pack-quantized", "\"num_bits\": 4", "", ".group_size\" is missing"},
    {"float-quantized", "\"num_bits\": 8, \"type\": \"int\"", "", ".type\" must be \"float\""},
    {"float-quantized", "\"num_bits\": 8, \"type\": \"float\", \"strategy\": \"block\"", "",
     ".block_structure\" is missing"},
    {"pack-quantized", INT4, ", \"ignore\": \"lm_head\"", ".ignore\" must be a list of names"},
    {"pack-quantized", INT4, ", \"ignore\": [\"re:(\"]", "quantization_config.ignore\""},
    {"pack-quantized", INT4, ", \"sparsity_config\": {\"format\": \"sparse-24-bitmask\"}",
     "sparse weights"},
    {"pack-quantized", INT4, ", \"transform_config\": {\"config_groups\": {\"R1\": {}}}",
     "transform_config\" is not supported"},
    {"pack-quantized", INT4, ", \"config_groups\": {}", ".config_groups\" must be an object"},
    {"pack-quantized", INT4, ", \"config_groups\": {\"a\": {}}", ".weights\" is missing"},
    {"pack-quantized", INT4,
     ", \"config_groups\": {\"a\": {\"weights\": {\"num_bits\": 4, \"group_size\": 32}}, \"b\": "
     "{\"weights\": {\"num_bits\": 4, \"group_size\": 64}}}",
     "weights of several kinds"},
};

START_TEST(test_what_is_not_supported_is_refused_in_a_sentence)
{
    refused(bad[_i].format, bad[_i].weights, bad[_i].more, bad[_i].words);
    refused(bad[_i].format, bad[_i].weights, bad[_i].more, "/config.json: ");
}
END_TEST

static void add_tests(TCase *t)
{
    tcase_add_test(t, test_kimi_quantizes_its_experts_alone);
    tcase_add_test(t, test_int4_experts_take_four_and_a_half_bits_where_they_stay);
    tcase_add_test(t, test_everything_that_is_not_ignored_is_quantized);
    tcase_add_test(t, test_ignored_names_are_whole_and_patterns_begin_them);
    tcase_add_test(t, test_names_of_a_model_with_images_are_ignored_too);
    tcase_add_test(t, test_targets_may_be_patterns);
    tcase_add_test(t, test_a_scale_for_a_whole_row);
    tcase_add_test(t, test_fp8_of_compressed_tensors);
    tcase_add_loop_test(t, test_what_is_not_supported_is_refused_in_a_sentence, 0,
                        sizeof(bad) / sizeof(bad[0]));
}

UNIT_MAIN("config_quant", add_tests)
