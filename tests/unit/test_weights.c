/* Tensors of a checkpoint arrive at the backend under the right name, in the right dtype and order;
 * whatever goes wrong on the way, nothing stays allocated. */
#include "tests/unit/unit.h"

#include "tests/unit/checkpoint.h"

#include <math.h>

START_TEST(test_every_tensor_lands_in_its_place)
{
    struct model_weights w = load_good();
    const struct layer_weights *dense = &w.layers[0], *moe = &w.layers[1];

    assert_is(&w.embed, "model.embed_tokens.weight");
    assert_is(&w.final_norm, "model.norm.weight");
    assert_is(&w.lm_head, "lm_head.weight");
    assert_is(&dense->input_norm, "model.layers.0.input_layernorm.weight");
    assert_is(&moe->input_norm, "model.layers.1.input_layernorm.weight");
    assert_is(&moe->post_norm, "model.layers.1.post_attention_layernorm.weight");
    assert_is(&moe->q_a, "model.layers.1.self_attn.q_a_proj.weight");
    assert_is(&moe->q_a_norm, "model.layers.1.self_attn.q_a_layernorm.weight");
    assert_is(&moe->q, "model.layers.1.self_attn.q_b_proj.weight");
    assert_is(&moe->kv_a, "model.layers.1.self_attn.kv_a_proj_with_mqa.weight");
    assert_is(&moe->kv_a_norm, "model.layers.1.self_attn.kv_a_layernorm.weight");
    assert_is(&moe->kv_b, "model.layers.1.self_attn.kv_b_proj.weight");
    assert_is(&moe->o, "model.layers.1.self_attn.o_proj.weight");
    assert_is(&dense->gate, "model.layers.0.mlp.gate_proj.weight");
    assert_is(&dense->up, "model.layers.0.mlp.up_proj.weight");
    assert_is(&dense->down, "model.layers.0.mlp.down_proj.weight");
    assert_is(&moe->gate, "model.layers.1.mlp.shared_experts.gate_proj.weight");
    assert_is(&moe->down, "model.layers.1.mlp.shared_experts.down_proj.weight");
    assert_is(&moe->router, "model.layers.1.mlp.gate.weight");
    assert_is(&moe->router_bias, "model.layers.1.mlp.gate.e_score_correction_bias");
    ck_assert_ptr_null(dense->router.data);
    ck_assert_ptr_null(dense->experts.gate.data);
    ck_assert_ptr_null(moe->q_a_bias.data);
    free_good(&w);
}
END_TEST

START_TEST(test_experts_are_gathered_in_order)
{
    struct model_weights w = load_good();

    assert_is_expert_block(&w.layers[1].experts.gate, "gate_proj", 4, 8);
    assert_is_expert_block(&w.layers[1].experts.up, "up_proj", 4, 8);
    assert_is_expert_block(&w.layers[1].experts.down, "down_proj", 8, 4);
    free_good(&w);
}
END_TEST

START_TEST(test_model_without_q_lora_binds_q_proj)
{
    config.q_lora_rank = 0;
    put("model.layers.0.self_attn.q_proj.weight", 14, 8);
    put("model.layers.1.self_attn.q_proj.weight", 14, 8);
    struct model_weights w = load_good();
    assert_is(&w.layers[1].q, "model.layers.1.self_attn.q_proj.weight");
    ck_assert_ptr_null(w.layers[1].q_a.data);
    ck_assert_ptr_null(w.layers[1].q_a_norm.data);
    free_good(&w);
}
END_TEST

START_TEST(test_attention_biases)
{
    config.attention_bias = true;
    for (int n = 0; n < 2; n++) {
        char name[96];
        snprintf(name, sizeof(name), "model.layers.%d.self_attn.q_a_proj.bias", n);
        put(name, 7, 0);
        snprintf(name, sizeof(name), "model.layers.%d.self_attn.kv_a_proj_with_mqa.bias", n);
        put(name, 10, 0);
        snprintf(name, sizeof(name), "model.layers.%d.self_attn.o_proj.bias", n);
        put(name, 8, 0);
    }
    struct model_weights w = load_good();
    assert_is(&w.layers[1].q_a_bias, "model.layers.1.self_attn.q_a_proj.bias");
    assert_is(&w.layers[1].kv_a_bias, "model.layers.1.self_attn.kv_a_proj_with_mqa.bias");
    assert_is(&w.layers[1].o_bias, "model.layers.1.self_attn.o_proj.bias");
    free_good(&w);
}
END_TEST

START_TEST(test_tied_head_is_the_embedding_and_freed_once)
{
    config.tie_embeddings = true;
    drop("lm_head.weight");
    struct model_weights w = load_good();
    ck_assert_ptr_eq(w.lm_head.data, w.embed.data);
    free_good(&w);
}
END_TEST

START_TEST(test_head_that_is_there_counts_even_when_tied)
{
    config.tie_embeddings = true;
    struct model_weights w = load_good();
    assert_is(&w.lm_head, "lm_head.weight");
    free_good(&w);
}
END_TEST

START_TEST(test_model_without_shared_experts)
{
    config.shared_intermediate = 0;
    drop("model.layers.1.mlp.shared_experts.up_proj.weight");
    struct model_weights w = load_good();
    ck_assert_ptr_null(w.layers[1].gate.data);
    free_good(&w);
}
END_TEST

START_TEST(test_tensors_without_a_place_are_ignored)
{
    put("model.layers.0.self_attn.rotary_emb.inv_freq", 2, 0)->dtype = "U32";
    struct model_weights w = load_good();
    free_good(&w);
}
END_TEST

/* ---- dtypes ---------------------------------------------------------------------------------- */

/* The layer after the last that predicts a token more (multi-token prediction), as released
 * checkpoints have it, here with formats that no other layer may have. */
START_TEST(test_layer_after_the_last_is_not_looked_at)
{
    put("model.layers.2.enorm.weight", 3, 0);
    put("model.layers.2.hnorm.weight", 3, 0);
    put("model.layers.2.eh_proj.weight", 8, 16)->dtype = "U32";
    put("model.layers.2.embed_tokens.weight", 2, 2);
    put("model.layers.2.shared_head.norm.weight", 3, 0);
    put("model.layers.2.shared_head.head.weight", 2, 2);
    put("model.layers.2.self_attn.o_proj.weight", 7, 7);
    set_fp8(put("model.layers.2.mlp.experts.0.down_proj.weight", 2, 2), 0); /* without scales */
    struct model_weights w = load_good();
    free_good(&w);
}
END_TEST

START_TEST(test_matrices_keep_their_dtype_and_the_router_becomes_f32)
{
    set_dtype(find_item("model.embed_tokens.weight"), "BF16");
    set_dtype(find_item("model.norm.weight"), "F16");
    set_dtype(find_item("model.layers.1.mlp.gate.weight"), "BF16");
    set_dtype(find_item("model.layers.1.mlp.gate.e_score_correction_bias"), "F16");
    struct model_weights w = load_good();
    ck_assert_int_eq(w.embed.dtype, DTYPE_BF16);
    ck_assert_mem_eq(w.embed.data, find_item("model.embed_tokens.weight")->bytes,
                     tensor_bytes(&w.embed));
    ck_assert_int_eq(w.final_norm.dtype, DTYPE_F32);
    assert_is(&w.layers[1].router, "model.layers.1.mlp.gate.weight");
    assert_is(&w.layers[1].router_bias, "model.layers.1.mlp.gate.e_score_correction_bias");
    free_good(&w);
}
END_TEST

START_TEST(test_experts_of_one_dtype_keep_it)
{
    for (int e = 0; e < 3; e++) {
        char name[96];
        snprintf(name, sizeof(name), "model.layers.1.mlp.experts.%d.up_proj.weight", e);
        set_dtype(find_item(name), "BF16");
    }
    struct model_weights w = load_good();
    const struct tensor *up = &w.layers[1].experts.up;
    ck_assert_int_eq(up->dtype, DTYPE_BF16);
    ck_assert_mem_eq((char *)up->data + 2 * 4 * 8 * 2,
                     find_item("model.layers.1.mlp.experts.2.up_proj.weight")->bytes, 4 * 8 * 2);
    free_good(&w);
}
END_TEST

START_TEST(test_experts_of_mixed_dtypes_become_f32)
{
    set_dtype(find_item("model.layers.1.mlp.experts.0.up_proj.weight"), "BF16");
    set_dtype(find_item("model.layers.1.mlp.experts.1.up_proj.weight"), "F16");
    struct model_weights w = load_good();
    assert_is_expert_block(&w.layers[1].experts.up, "up_proj", 4, 8);
    free_good(&w);
}
END_TEST

START_TEST(test_whole_numbers_are_no_weights)
{
    find_item("model.norm.weight")->dtype = "I32";
    write_checkpoint();
    assert_fails("\"model.norm.weight\" holds whole numbers");
}
END_TEST

START_TEST(test_unsupported_dtype_is_named)
{
    find_item("model.norm.weight")->dtype = "U32";
    write_checkpoint();
    assert_fails("\"model.norm.weight\" has dtype U32");
}
END_TEST

START_TEST(test_half_precision_corner_values)
{
    static const uint16_t half[] = {0x0000, 0x8000, 0x0001, 0x83ff, 0x0400, 0x7bff, 0x7c00, 0x3c00};
    static const float expected[] = {0,        -0.0f, 0x1p-24f, -0x1.ff8p-15f,
                                     0x1p-14f, 65504, INFINITY, 1};
    float out[8];
    const uint16_t nan = 0x7e01;

    widen_to_f32(out, half, DTYPE_F16, 8);
    for (int i = 0; i < 8; i++)
        ck_assert_float_eq(out[i], expected[i]);
    ck_assert(signbit(out[1]));
    widen_to_f32(out, &nan, DTYPE_F16, 1);
    ck_assert_float_nan(out[0]);
}
END_TEST

START_TEST(test_norms_are_scaled)
{
    config.norm_scale.q = 0.5f;
    config.norm_scale.final = 4;
    set_dtype(find_item("model.norm.weight"), "BF16");
    struct model_weights w = load_good();
    for (int i = 0; i < 7; i++)
        ck_assert_float_eq(((float *)w.layers[0].q_a_norm.data)[i],
                           0.5f * value_of("model.layers.0.self_attn.q_a_layernorm.weight", i));
    for (int i = 0; i < 8; i++)
        ck_assert_float_eq(((float *)w.final_norm.data)[i], 4 * value_of("model.norm.weight", i));
    assert_is(&w.layers[0].kv_a_norm, "model.layers.0.self_attn.kv_a_layernorm.weight");
    free_good(&w);
}
END_TEST

/* ---- what goes wrong ------------------------------------------------------------------------- */

START_TEST(test_each_missing_tensor_is_named)
{
    char words[128];

    snprintf(words, sizeof(words), "/model.safetensors: tensor \"%s\" is missing", items[_i].name);
    drop(items[_i].name);
    write_checkpoint();
    assert_fails(words);
}
END_TEST

START_TEST(test_each_wrong_shape_is_named)
{
    struct item *item = &items[_i];
    char words[160];

    item->rows++;
    set_dtype(item, "F32");
    if (item->cols)
        snprintf(words, sizeof(words), "\"%s\" must have shape (%d, %d) by config.json, found (%d",
                 item->name, (int)item->rows - 1, (int)item->cols, (int)item->rows);
    else
        snprintf(words, sizeof(words), "\"%s\" must have shape (%d) by config.json, found (%d)",
                 item->name, (int)item->rows - 1, (int)item->rows);
    write_checkpoint();
    assert_fails(words);
}
END_TEST

START_TEST(test_wrong_rank_is_refused)
{
    find_item("model.norm.weight")->cols = 1;
    write_checkpoint();
    assert_fails("must have shape (8) by config.json, found (8, 1)");
}
END_TEST

START_TEST(test_missing_folder_is_refused)
{
    assert_fails("holds neither model.safetensors");
}
END_TEST

START_TEST(test_failing_upload_frees_everything)
{
    struct model_weights w = load_good();
    int uploads = fake.uploads;

    free_good(&w);
    ck_assert_int_gt(uploads, 30);
    for (int n = 1; n <= uploads; n++) {
        fake.uploads = 0;
        fake.fail_at = n;
        assert_fails("the device is full");
    }
}
END_TEST

START_TEST(test_cancel_ends_the_load)
{
    write_checkpoint();
    for (int n = 0; n < 22; n += 7) {
        fake.uploads = 0;
        fake.cancel_at = n;
        fake.cancel = n == 0;
        assert_fails("cancelled");
        ck_assert_int_ge(fake.uploads, n);
        ck_assert_int_lt(fake.uploads, n + MAX_READERS);
    }
}
END_TEST

static void add_tests(TCase *t)
{
    tcase_add_checked_fixture(t, make_checkpoint, free_checkpoint);
    tcase_add_test(t, test_every_tensor_lands_in_its_place);
    tcase_add_test(t, test_experts_are_gathered_in_order);
    tcase_add_test(t, test_model_without_q_lora_binds_q_proj);
    tcase_add_test(t, test_attention_biases);
    tcase_add_test(t, test_tied_head_is_the_embedding_and_freed_once);
    tcase_add_test(t, test_head_that_is_there_counts_even_when_tied);
    tcase_add_test(t, test_model_without_shared_experts);
    tcase_add_test(t, test_tensors_without_a_place_are_ignored);
    tcase_add_test(t, test_layer_after_the_last_is_not_looked_at);
    tcase_add_test(t, test_matrices_keep_their_dtype_and_the_router_becomes_f32);
    tcase_add_test(t, test_experts_of_one_dtype_keep_it);
    tcase_add_test(t, test_experts_of_mixed_dtypes_become_f32);
    tcase_add_test(t, test_whole_numbers_are_no_weights);
    tcase_add_test(t, test_unsupported_dtype_is_named);
    tcase_add_test(t, test_half_precision_corner_values);
    tcase_add_test(t, test_norms_are_scaled);
    tcase_add_loop_test(t, test_each_missing_tensor_is_named, 0, N_TENSORS);
    tcase_add_loop_test(t, test_each_wrong_shape_is_named, 0, N_TENSORS);
    tcase_add_test(t, test_wrong_rank_is_refused);
    tcase_add_test(t, test_missing_folder_is_refused);
    tcase_add_test(t, test_failing_upload_frees_everything);
    tcase_add_test(t, test_cancel_ends_the_load);
}

UNIT_MAIN("weights", add_tests)
