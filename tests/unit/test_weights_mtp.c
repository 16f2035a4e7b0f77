/* Layers of multi-token prediction: loaded whole when they are asked for and there, what they share
 * with the model once, and never looked at otherwise. */
#include "tests/unit/unit.h"

#include "tests/unit/checkpoint.h"

enum { MTP = 2 /* the first layer after the model's two */, N_MTP_TENSORS = 27 };

static struct item *put_part(const char *part, int rows, int cols)
{
    char name[96];

    snprintf(name, sizeof(name), "model.layers.%d.%s", MTP, part);
    return put(name, rows, cols);
}

/* One such layer, without matrices of the vocabulary, and a config that declares and wants it. */
static void make_mtp_checkpoint(void)
{
    make_checkpoint();
    config.is_moe[MTP] = true;
    config.mtp_declared = config.mtp_layers = 1;
    put_part("enorm.weight", 8, 0);
    put_part("hnorm.weight", 8, 0);
    put_part("eh_proj.weight", 8, 16);
    put_part("shared_head.norm.weight", 8, 0);
    put_part("input_layernorm.weight", 8, 0);
    put_part("post_attention_layernorm.weight", 8, 0);
    put_part("self_attn.q_a_proj.weight", 7, 8);
    put_part("self_attn.q_a_layernorm.weight", 7, 0);
    put_part("self_attn.q_b_proj.weight", 14, 7);
    put_part("self_attn.kv_a_proj_with_mqa.weight", 10, 8);
    put_part("self_attn.kv_a_layernorm.weight", 6, 0);
    put_part("self_attn.kv_b_proj.weight", 16, 6);
    put_part("self_attn.o_proj.weight", 8, 10);
    put_part("mlp.gate.weight", 3, 8);
    put_part("mlp.gate.e_score_correction_bias", 3, 0);
    for (int e = 0; e < 3; e++) {
        char prefix[64];
        snprintf(prefix, sizeof(prefix), "model.layers.%d.mlp.experts.%d", MTP, e);
        put_mlp(prefix, 4);
    }
    put_mlp("model.layers.2.mlp.shared_experts", 5);
    ck_assert_int_eq(n_items, N_TENSORS + N_MTP_TENSORS);
}

static int32_t counted(void)
{
    struct error err = {""};
    int32_t count = -1;

    write_checkpoint();
    ck_assert_msg(weights_count_mtp(&config, dir, &count, &err) == 0, "%s", err.message);
    return count;
}

/* Gives one item the bytes of another of its size. */
static void copy_bytes(const char *to, const char *from)
{
    struct item *a = find_item(to), *b = find_item(from);

    ck_assert_uint_eq(a->len, b->len);
    memcpy(a->bytes, b->bytes, a->len);
}

static void put_vocabulary(void)
{
    put_part("embed_tokens.weight", 17, 8);
    put_part("shared_head.head.weight", 17, 8);
}

START_TEST(test_layer_that_is_wanted_is_loaded)
{
    struct model_weights w = load_good();
    const struct layer_weights *layer = &w.layers[MTP];

    assert_is(&w.mtp[0].embed_norm, "model.layers.2.enorm.weight");
    assert_is(&w.mtp[0].hidden_norm, "model.layers.2.hnorm.weight");
    assert_is(&w.mtp[0].join, "model.layers.2.eh_proj.weight");
    assert_is(&w.mtp[0].final_norm, "model.layers.2.shared_head.norm.weight");
    assert_is(&layer->input_norm, "model.layers.2.input_layernorm.weight");
    assert_is(&layer->q, "model.layers.2.self_attn.q_b_proj.weight");
    assert_is(&layer->kv_b, "model.layers.2.self_attn.kv_b_proj.weight");
    assert_is(&layer->router_bias, "model.layers.2.mlp.gate.e_score_correction_bias");
    assert_is(&layer->down, "model.layers.2.mlp.shared_experts.down_proj.weight");
    ck_assert_int_eq(layer->experts.up.shape[0], 3);
    ck_assert_float_eq(((float *)layer->experts.up.data)[4 * 8],
                       value_of("model.layers.2.mlp.experts.1.up_proj.weight", 0));
    assert_is(&w.layers[1].router, "model.layers.1.mlp.gate.weight");
    free_good(&w);
}
END_TEST

START_TEST(test_layer_that_is_not_wanted_is_not_looked_at)
{
    config.mtp_layers = 0;
    find_item("model.layers.2.eh_proj.weight")->dtype = "U32";
    drop("model.layers.2.hnorm.weight");
    struct model_weights w = load_good();
    free_good(&w);
}
END_TEST

START_TEST(test_vocabulary_that_is_not_stored_is_the_models)
{
    struct model_weights w = load_good();
    ck_assert_ptr_eq(w.mtp[0].embed.data, w.embed.data);
    ck_assert_ptr_eq(w.mtp[0].lm_head.data, w.lm_head.data);
    ck_assert_ptr_ne(w.lm_head.data, w.embed.data);
    free_good(&w);
}
END_TEST

START_TEST(test_vocabulary_that_is_stored_again_is_the_models)
{
    put_vocabulary();
    copy_bytes("model.layers.2.embed_tokens.weight", "model.embed_tokens.weight");
    copy_bytes("model.layers.2.shared_head.head.weight", "lm_head.weight");
    struct model_weights w = load_good();
    ck_assert_ptr_eq(w.mtp[0].embed.data, w.embed.data);
    ck_assert_ptr_eq(w.mtp[0].lm_head.data, w.lm_head.data);
    free_good(&w);
}
END_TEST

START_TEST(test_vocabulary_of_its_own_is_loaded)
{
    put_vocabulary();
    copy_bytes("model.layers.2.embed_tokens.weight", "model.embed_tokens.weight");
    find_item("model.layers.2.embed_tokens.weight")->bytes[17 * 8 * 4 - 1] ^= 1; /* the last bit */
    set_dtype(find_item("model.layers.2.shared_head.head.weight"), "BF16");
    struct model_weights w = load_good();
    ck_assert_ptr_ne(w.mtp[0].embed.data, w.embed.data);
    ck_assert_mem_eq(w.mtp[0].embed.data, w.embed.data, 17 * 8 * 4 - 4);
    ck_assert_int_eq(w.mtp[0].lm_head.dtype, DTYPE_BF16);
    free_good(&w);
}
END_TEST

START_TEST(test_tied_model_lends_its_embedding_as_head)
{
    config.tie_embeddings = true;
    drop("lm_head.weight");
    put_vocabulary();
    copy_bytes("model.layers.2.embed_tokens.weight", "model.embed_tokens.weight");
    copy_bytes("model.layers.2.shared_head.head.weight", "model.embed_tokens.weight");
    struct model_weights w = load_good();
    ck_assert_ptr_eq(w.mtp[0].lm_head.data, w.embed.data);
    ck_assert_ptr_eq(w.mtp[0].embed.data, w.embed.data);
    ck_assert_ptr_eq(w.lm_head.data, w.embed.data);
    free_good(&w);
}
END_TEST

/* FP8 heads whose values are the same, and whose scales are (0) or aren't (1). */
START_TEST(test_quantized_head_is_the_same_if_its_scales_are)
{
    config.quantization = QUANT_FP8_TENSOR;
    put_vocabulary();
    set_fp8(find_item("lm_head.weight"), 0);
    set_fp8(find_item("model.layers.2.shared_head.head.weight"), 0);
    put("lm_head.weight_scale_inv", 1, 0);
    put_part("shared_head.head.weight_scale_inv", 1, 0);
    copy_bytes("model.layers.2.shared_head.head.weight_scale_inv", "lm_head.weight_scale_inv");
    find_item("lm_head.weight_scale_inv")->bytes[3] ^= (unsigned char)_i;
    struct model_weights w = load_good();
    ck_assert_int_eq(w.mtp[0].lm_head.data == w.lm_head.data, _i == 0);
    free_good(&w);
}
END_TEST

START_TEST(test_layers_that_are_there_are_counted)
{
    ck_assert_int_eq(counted(), 1);
    config.mtp_declared = 2;
    config.is_moe[MTP + 1] = true;
    ck_assert_int_eq(counted(), 1);
    put("model.layers.3.mlp.shared_experts.up_proj.weight", 5, 8);
    ck_assert_int_eq(counted(), 2);
    config.mtp_declared = 0;
    ck_assert_int_eq(counted(), 0);
}
END_TEST

START_TEST(test_declared_layer_may_be_absent)
{
    while (n_items > N_TENSORS)
        drop(items[n_items - 1].name);
    ck_assert_int_eq(counted(), 0);
    config.mtp_layers = 0;
    struct model_weights w = load_good();
    free_good(&w);
}
END_TEST

START_TEST(test_each_tensor_that_is_missing_in_a_layer_is_named)
{
    char name[96], words[128];

    snprintf(name, sizeof(name), "%s", items[N_TENSORS + _i].name);
    drop(name);
    ck_assert_int_eq(counted(), 1);
    snprintf(words, sizeof(words), "\"%s\" is missing", name);
    assert_fails(words);
}
END_TEST

START_TEST(test_failing_upload_frees_everything)
{
    put_vocabulary();
    write_checkpoint();
    for (int n = 1; n < 60; n += 6) {
        fake.uploads = 0;
        fake.fail_at = n;
        assert_fails("the device is full");
    }
}
END_TEST

static void add_tests(TCase *t)
{
    tcase_add_checked_fixture(t, make_mtp_checkpoint, free_checkpoint);
    tcase_add_test(t, test_layer_that_is_wanted_is_loaded);
    tcase_add_test(t, test_layer_that_is_not_wanted_is_not_looked_at);
    tcase_add_test(t, test_vocabulary_that_is_not_stored_is_the_models);
    tcase_add_test(t, test_vocabulary_that_is_stored_again_is_the_models);
    tcase_add_test(t, test_vocabulary_of_its_own_is_loaded);
    tcase_add_test(t, test_tied_model_lends_its_embedding_as_head);
    tcase_add_loop_test(t, test_quantized_head_is_the_same_if_its_scales_are, 0, 2);
    tcase_add_test(t, test_layers_that_are_there_are_counted);
    tcase_add_test(t, test_declared_layer_may_be_absent);
    tcase_add_loop_test(t, test_each_tensor_that_is_missing_in_a_layer_is_named, 0, N_MTP_TENSORS);
    tcase_add_test(t, test_failing_upload_frees_everything);
}

UNIT_MAIN("weights_mtp", add_tests)
