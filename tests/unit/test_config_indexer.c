/* The indexer's keys of config.json: DeepSeek-V3.2's and GLM-5's become the layers that have an
 * indexer, its shape and rope; what can't be served is refused by its name. */
#include "model/model.h"
#include "tests/unit/folder.h"
#include "tests/unit/unit.h"

/* DeepSeek-V3.2's config.json without its last brace; of equal keys the last counts. */
static const char V32[] =
    "{\"architectures\": [\"DeepseekV32ForCausalLM\"], \"attention_bias\": false,"
    "\"bos_token_id\": 0, \"eos_token_id\": 1, \"first_k_dense_replace\": 3,"
    "\"hidden_act\": \"silu\", \"hidden_size\": 7168, \"index_head_dim\": 128,"
    "\"index_n_heads\": 64, \"index_topk\": 2048, \"intermediate_size\": 18432,"
    "\"kv_lora_rank\": 512, \"max_position_embeddings\": 163840, \"model_type\": \"deepseek_v32\","
    "\"moe_intermediate_size\": 2048, \"moe_layer_freq\": 1, \"n_group\": 8,"
    "\"n_routed_experts\": 256, \"n_shared_experts\": 1, \"norm_topk_prob\": true,"
    "\"num_attention_heads\": 128, \"num_experts_per_tok\": 8, \"num_hidden_layers\": 61,"
    "\"num_nextn_predict_layers\": 1, \"q_lora_rank\": 1536, \"qk_nope_head_dim\": 128,"
    "\"qk_rope_head_dim\": 64, \"quantization_config\": {\"activation_scheme\": \"dynamic\","
    "\"fmt\": \"e4m3\", \"quant_method\": \"fp8\", \"scale_fmt\": \"ue8m0\","
    "\"weight_block_size\": [128, 128]}, \"rms_norm_eps\": 1e-06,"
    "\"rope_scaling\": {\"beta_fast\": 32, \"beta_slow\": 1, \"factor\": 40, \"mscale\": 1.0,"
    "\"mscale_all_dim\": 1.0, \"original_max_position_embeddings\": 4096, \"type\": \"yarn\"},"
    "\"rope_theta\": 10000, \"routed_scaling_factor\": 2.5, \"scoring_func\": \"sigmoid\","
    "\"topk_group\": 4, \"topk_method\": \"noaux_tc\", \"v_head_dim\": 128,"
    "\"vocab_size\": 129280";

#define GLM5                                                                                       \
    ", \"architectures\": [\"GlmMoeDsaForCausalLM\"], \"model_type\": \"glm_moe_dsa\","            \
    "\"index_n_heads\": 32, \"num_hidden_layers\": 6, \"n_group\": 1, \"topk_group\": 1,"          \
    "\"rope_scaling\": null"

static int load(struct model_config *config, const char *more, struct error *err)
{
    char dir[FOLDER_PATH_BYTES], text[4096];
    int rc;

    folder_make(dir);
    snprintf(text, sizeof(text), "%s%s}", V32, more);
    folder_write_text(dir, "config.json", text);
    rc = model_config_load(config, dir, err);
    folder_remove(dir);
    return rc;
}

static struct model_config load_good(const char *more)
{
    struct model_config config;
    struct error err;

    ck_assert_msg(load(&config, more, &err) == 0, "%s", err.message);
    return config;
}

static void assert_refused(const char *more, const char *words)
{
    struct model_config config;
    struct error err;

    ck_assert_msg(load(&config, more, &err) == -1, "accepted: %s", more);
    ck_assert_msg(strstr(err.message, words) != NULL, "\"%s\" says nothing of %s", err.message,
                  words);
}

static void assert_layers(const char *more, const char *pattern)
{
    struct model_config config = load_good(more);

    for (int i = 0; i < config.layers; i++)
        ck_assert_msg(config.has_indexer[i] == (pattern[i] == 'F'), "%s: layer %d", more, i);
}

START_TEST(test_v32_is_read_as_released)
{
    struct model_config c = load_good("");

    ck_assert_int_eq(c.index.top_k, 2048);
    ck_assert_int_eq(c.index.heads, 64);
    ck_assert_int_eq(c.index.dim, 128);
    ck_assert_int_eq(c.index_rope.half_split, 1);
    ck_assert_int_eq(c.rope.half_split, 0);
    ck_assert_int_eq(c.index_rope.dim, 64);
    ck_assert_mem_eq(c.index_rope.inv_freq, c.rope.inv_freq, sizeof(c.rope.inv_freq));
    for (int i = 0; i < c.layers; i++)
        ck_assert(c.has_indexer[i]);
    /* In bf16 a key of 128 values beside each of the 61 rows of 576. */
    ck_assert_uint_eq(model_kv_token_bytes(&c, DTYPE_BF16), 61 * (1152 + 256));
    ck_assert_uint_eq(model_kv_token_bytes(&c, DTYPE_F8_E4M3), 61 * (656 + 256));
    c.mtp_layers = c.mtp_declared;
    ck_assert_uint_eq(model_kv_token_bytes(&c, DTYPE_BF16), 62 * (1152 + 256));
}
END_TEST

START_TEST(test_glm5_rotates_pairs_and_may_share_a_choice)
{
    struct model_config c = load_good(GLM5);

    ck_assert_int_eq(c.index_rope.half_split, 0);
    ck_assert_int_eq(load_good(GLM5 ", \"indexer_rope_interleave\": false").index_rope.half_split,
                     1);
    assert_layers(GLM5, "FFFFFF");
    assert_layers(GLM5 ", \"index_topk_freq\": 4", "FFSSSF");
    assert_layers(GLM5 ", \"index_topk_freq\": 3, \"index_skip_topk_offset\": 3", "FFFSSF");
    assert_layers(GLM5 ", \"index_topk_pattern\": \"FSSFSF\"", "FSSFSF");
    assert_layers(GLM5 ", \"indexer_types\": [\"full\", \"shared\", \"full\", \"shared\","
                       "\"shared\", \"full\"]",
                  "FSFSSF");
    /* A layer that takes another's choice has no keys. */
    c = load_good(GLM5 ", \"index_topk_pattern\": \"FSSFSF\"");
    ck_assert_uint_eq(model_kv_token_bytes(&c, DTYPE_BF16), 6 * 1152 + 3 * 256);
}
END_TEST

START_TEST(test_what_the_indexer_cannot_be_is_refused)
{
    assert_refused(", \"index_topk\": 0", "\"index_topk\"");
    assert_refused(", \"index_topk\": null", "\"index_topk\"");
    assert_refused(", \"index_n_heads\": 1000", "\"index_n_heads\"");
    assert_refused(", \"index_head_dim\": 32", "\"index_head_dim\"");
    assert_refused(", \"q_lora_rank\": null", "\"q_lora_rank\"");
    assert_refused(GLM5 ", \"index_topk_pattern\": \"SFFFFF\"", "\"index_topk_pattern\"");
    assert_refused(GLM5 ", \"index_topk_pattern\": \"FFFF\"", "\"index_topk_pattern\"");
    assert_refused(GLM5 ", \"indexer_types\": [\"full\"]", "\"indexer_types\"");
    assert_refused(GLM5
                   ", \"indexer_types\": [\"full\", 1, \"full\", \"full\", \"full\", \"full\"]",
                   "\"indexer_types\"");
    assert_refused(GLM5 ", \"indexer_types\": 7", "\"indexer_types\"");
}
END_TEST

static void add(TCase *t)
{
    tcase_add_test(t, test_v32_is_read_as_released);
    tcase_add_test(t, test_glm5_rotates_pairs_and_may_share_a_choice);
    tcase_add_test(t, test_what_the_indexer_cannot_be_is_refused);
}

UNIT_MAIN("config_indexer", add)
