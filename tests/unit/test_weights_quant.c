/* Quantized matrices of a checkpoint: multiplied out as their scales say, or uploaded as they are
 * where the backend keeps them. */
#include "tests/unit/unit.h"

#include "model/dequant.h"
#include "tests/unit/checkpoint.h"

#include <math.h>

/* ---- FP8 ------------------------------------------------------------------------------------- */

/* E4M3 by its definition: bias 7, subnormals at exponent 0, all ones NaN, no infinity. */
static double e4m3_by_definition(int bits)
{
    int exponent = bits >> 3 & 15, mantissa = bits & 7;
    double magnitude = exponent == 0 ? ldexp(mantissa, -9) : ldexp(8 + mantissa, exponent - 10);

    if (exponent == 15 && mantissa == 7)
        return NAN;
    return bits & 0x80 ? -magnitude : magnitude;
}

START_TEST(test_e4m3_values)
{
    static const struct {
        int bits;
        float value;
    } known[] = {
        {0x00, 0},  {0x01, 0.001953125f}, {0x07, 0.013671875f}, {0x08, 0.015625f}, {0x38, 1},
        {0xb8, -1}, {0x7e, 448},          {0xfe, -448},         {0x81, -0x1p-9f},  {0x3f, 1.875f},
        {0x40, 2},  {0x77, 240}};

    for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++)
        ck_assert_float_eq(e4m3_to_f32((uint8_t)known[i].bits), known[i].value);
    for (int bits = 0; bits < 256; bits++) {
        float value = e4m3_to_f32((uint8_t)bits);
        if ((bits & 0x7f) == 0x7f)
            ck_assert_float_nan(value);
        else
            ck_assert_float_eq(value, (float)e4m3_by_definition(bits));
    }
}
END_TEST

/* Turns FP8 on, in blocks that fit no matrix evenly. */
static void use_fp8(void)
{
    config.quantization = QUANT_FP8_BLOCK;
    config.quant_block[0] = 4;
    config.quant_block[1] = 3;
}

/* data[r, c] is the FP8 byte start + r * cols + c times its block's scale. */
static void assert_is_dequantised(const float *data, int start, const char *scale_name, int rows,
                                  int cols)
{
    int scale_cols = (cols + 2) / 3;

    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < cols; c++) {
            float value = (float)e4m3_by_definition((start + r * cols + c) & 255);
            float scale = value_of(scale_name, r / 4 * scale_cols + c / 3);
            if (isnan(value))
                ck_assert_float_nan(data[r * cols + c]);
            else
                ck_assert_float_eq(data[r * cols + c], value * scale);
        }
    }
}

START_TEST(test_fp8_matrix_is_multiplied_out_block_by_block)
{
    const char *scales = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight_scale_inv";

    use_fp8();
    set_fp8(find_item("model.layers.1.self_attn.kv_a_proj_with_mqa.weight"), 100);
    put(scales, 3, 3); /* of (10, 8) in 4 x 3 blocks */
    struct model_weights w = load_good();
    ck_assert_int_eq(w.layers[1].kv_a.dtype, DTYPE_F32);
    assert_is_dequantised(w.layers[1].kv_a.data, 100, scales, 10, 8);
    assert_is(&w.layers[0].kv_a, "model.layers.0.self_attn.kv_a_proj_with_mqa.weight");
    free_good(&w);
}
END_TEST

START_TEST(test_fp8_experts_each_use_their_own_scales)
{
    char name[96];

    use_fp8();
    for (int e = 0; e < 3; e++) {
        snprintf(name, sizeof(name), "model.layers.1.mlp.experts.%d.down_proj.weight", e);
        set_fp8(find_item(name), 40 * e);
        snprintf(name, sizeof(name), "model.layers.1.mlp.experts.%d.down_proj.weight_scale_inv", e);
        set_dtype(put(name, 2, 2), e == 1 ? "BF16" : "F32");
    }
    struct model_weights w = load_good();
    for (int e = 0; e < 3; e++) {
        snprintf(name, sizeof(name), "model.layers.1.mlp.experts.%d.down_proj.weight_scale_inv", e);
        assert_is_dequantised((float *)w.layers[1].experts.down.data + 32 * e, 40 * e, name, 8, 4);
    }
    free_good(&w);
}
END_TEST

START_TEST(test_fp8_with_one_scale_a_matrix)
{
    const char *scale = "lm_head.weight_scale_inv";

    config.quantization = QUANT_FP8_TENSOR;
    set_fp8(find_item("lm_head.weight"), 7);
    put(scale, 1, 0);
    struct model_weights w = load_good();
    for (int i = 0; i < 17 * 8; i++)
        if ((7 + i) % 128 != 127)
            ck_assert_float_eq(((float *)w.lm_head.data)[i],
                               (float)e4m3_by_definition((7 + i) & 255) * value_of(scale, 0));
    free_good(&w);
    drop(scale);
    put(scale, 2, 0);
    write_checkpoint();
    assert_fails("\"lm_head.weight_scale_inv\" must hold one number a matrix");
}
END_TEST

/* MiniCPM3's and LongCat-Flash's scales are multiplied into norms, of any dtype. */
START_TEST(test_fp8_stays_where_the_backend_keeps_it)
{
    const char *scales = "model.layers.0.mlp.down_proj.weight_scale_inv";
    const char *small = "model.layers.0.self_attn.o_proj.weight";
    char name[96];

    config.quantization = QUANT_FP8_BLOCK;
    config.quant_block[0] = config.quant_block[1] = 128;
    config.dense_intermediate = 256;
    static const char *const parts[] = {"gate_proj", "up_proj", "down_proj"};
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof(name), "model.layers.0.mlp.%s.weight", parts[i]);
        drop(name);
        put(name, i < 2 ? 256 : 8, i < 2 ? 8 : 256);
    }
    set_fp8(find_item("model.layers.0.mlp.down_proj.weight"), 3);
    put(scales, 1, 2);
    set_fp8(find_item(small), 0); /* (8, 10): no whole blocks */
    put("model.layers.0.self_attn.o_proj.weight_scale_inv", 1, 1);
    backend.keeps_fp8 = 1;
    struct model_weights w = load_good();
    const struct tensor *down = &w.layers[0].down;
    ck_assert_int_eq(down->dtype, DTYPE_F8_E4M3);
    for (int i = 0; i < 8 * 256; i++)
        ck_assert_uint_eq(((unsigned char *)down->data)[i], (3 + i) & 255);
    for (int i = 0; i < 2; i++)
        ck_assert_float_eq(down->scales[i], value_of(scales, i));
    ck_assert_int_eq(w.layers[0].o.dtype, DTYPE_F32);
    free_good(&w);
    backend.keeps_fp8 = 0;
}
END_TEST

START_TEST(test_fp8_without_its_scales_is_refused)
{
    use_fp8();
    set_fp8(find_item("lm_head.weight"), 0);
    write_checkpoint();
    assert_fails("tensor \"lm_head.weight_scale_inv\" is missing");
}
END_TEST

START_TEST(test_fp8_with_scales_of_another_shape_is_refused)
{
    use_fp8();
    set_fp8(find_item("lm_head.weight"), 0);
    put("lm_head.weight_scale_inv", 4, 3);
    write_checkpoint();
    assert_fails(
        "\"lm_head.weight_scale_inv\" must have shape (5, 3) by config.json, found (4, 3)");
}
END_TEST

START_TEST(test_fp8_without_quantization_config_is_refused)
{
    set_fp8(find_item("lm_head.weight"), 0);
    put("lm_head.weight_scale_inv", 1, 1);
    write_checkpoint();
    assert_fails("\"lm_head.weight\" is F8_E4M3, but config.json has no quantization_config");
}
END_TEST

START_TEST(test_fp8_vectors_are_refused)
{
    use_fp8();
    set_fp8(find_item("model.norm.weight"), 0);
    write_checkpoint();
    assert_fails("\"model.norm.weight\" is F8_E4M3, but only matrices can be");
}
END_TEST

/* ---- INT4 ------------------------------------------------------------------------------------ */

static const char *const projections[] = {"gate_proj", "up_proj", "down_proj"};

/* Packs all experts, with scales for groups of `group` columns (0: a row) of this dtype. */
static void use_int4(int group, const char *dtype)
{
    char name[96];

    config.quantization = QUANT_INT4;
    config.quant_compressed = true;
    config.quant_block[0] = 1;
    config.quant_block[1] = group;
    for (int e = 0; e < 9; e++) {
        snprintf(name, sizeof(name), "model.layers.1.mlp.experts.%d.%s.weight", e / 3,
                 projections[e % 3]);
        struct item *item = find_item(name);
        int64_t rows = item->rows, cols = item->cols;
        set_packed(item, 16 * e);
        snprintf(name + strlen(name), sizeof(name) - strlen(name), "_scale");
        set_dtype(put(name, rows, group ? (cols + group - 1) / group : 1), dtype);
    }
}

/* Element `i` of the matrix that set_packed made from `start`. */
static float int4_value(int start, int64_t i)
{
    return (float)(((start + i / 2) >> i % 2 * 4 & 15) - 8);
}

static void assert_is_int4(const float *data, int e, int64_t rows, int64_t cols, int group)
{
    int64_t groups = group ? (cols + group - 1) / group : 1;
    char scale[96];

    snprintf(scale, sizeof(scale), "model.layers.1.mlp.experts.%d.%s.weight_scale", e / 3,
             projections[e % 3]);
    for (int64_t i = 0; i < rows * cols; i++) {
        float factor = value_of(scale, i / cols * groups + (group ? i % cols / group : 0));
        ck_assert_float_eq(data[i], int4_value(16 * e, i) * factor);
    }
}

START_TEST(test_int4_is_multiplied_out_group_by_group)
{
    static const int groups[] = {8, 2, 12, 0};
    static const char *const dtypes[] = {"BF16", "F32", "F16", "BF16"};

    free_checkpoint();
    make_sized(16, 24);
    use_int4(groups[_i], dtypes[_i]);
    struct model_weights w = load_good();
    const struct moe_weights *experts = &w.layers[1].experts;
    const struct tensor *blocks[] = {&experts->gate, &experts->up, &experts->down};
    for (int e = 0; e < 9; e++) {
        int64_t rows = e % 3 == 2 ? 16 : 24, cols = e % 3 == 2 ? 24 : 16;
        ck_assert_int_eq(blocks[e % 3]->dtype, DTYPE_F32);
        assert_is_int4((float *)blocks[e % 3]->data + e / 3 * rows * cols, e, rows, cols,
                       groups[_i]);
    }
    free_good(&w);
}
END_TEST

/* What comes with wider groups is repeated for those of I4_GROUP. */
START_TEST(test_int4_stays_where_the_backend_keeps_it)
{
    static const int groups[] = {32, 64, 128, 0};
    int group = groups[_i], columns = group ? group : 128;

    free_checkpoint();
    make_sized(128, 128);
    use_int4(group, "BF16");
    backend.keeps_int4 = 1;
    struct model_weights w = load_good();
    const struct moe_weights *experts = &w.layers[1].experts;
    const struct tensor *blocks[] = {&experts->gate, &experts->up, &experts->down};
    for (int e = 0; e < 9; e++) {
        const struct tensor *block = blocks[e % 3];
        const uint8_t *bytes = (const uint8_t *)block->data + e / 3 * 128 * 64;
        char scale[96];
        snprintf(scale, sizeof(scale), "model.layers.1.mlp.experts.%d.%s.weight_scale", e / 3,
                 projections[e % 3]);
        ck_assert_int_eq(block->dtype, DTYPE_I4);
        for (int i = 0; i < 128 * 64; i++)
            ck_assert_uint_eq(bytes[i], (16 * e + i) & 255);
        for (int i = 0; i < 128 * 4; i++) {
            float value;
            widen_to_f32(&value, block->group_scales + e / 3 * 128 * 4 + i, DTYPE_BF16, 1);
            ck_assert_float_eq(
                value, value_of(scale, i / 4 * (128 / columns) + i % 4 * I4_GROUP / columns));
        }
    }
    ck_assert_int_eq(w.layers[1].gate.dtype, DTYPE_F32); /* shared experts, never packed */
    free_good(&w);
    backend.keeps_int4 = 0;
}
END_TEST

/* Groups that I4_GROUP does not divide, or scales that BF16 can't hold: for no backend to keep. */
START_TEST(test_int4_of_another_kind_is_multiplied_out)
{
    free_checkpoint();
    make_sized(128, 128);
    use_int4(_i ? 32 : 16, _i ? "F16" : "BF16");
    backend.keeps_int4 = 1;
    struct model_weights w = load_good();
    ck_assert_int_eq(w.layers[1].experts.gate.dtype, DTYPE_F32);
    assert_is_int4(w.layers[1].experts.gate.data, 0, 128, 128, _i ? 32 : 16);
    free_good(&w);
    backend.keeps_int4 = 0;
}
END_TEST

START_TEST(test_packed_weights_that_are_not_what_they_should_be_are_refused)
{
    free_checkpoint();
    make_sized(16, 24);
    use_int4(8, "BF16");
    struct item *item = find_item("model.layers.1.mlp.experts.1.up_proj.weight_packed");
    item->dtype = "F32";
    write_checkpoint();
    assert_fails("experts.1.up_proj.weight_packed\" must be I32");
    item->dtype = "I32";
    item->rows = 48;
    item->cols = 1;
    write_checkpoint();
    assert_fails("weight_packed\" must have shape (24, 2) by config.json, found (48, 1)");
    drop(item->name);
    write_checkpoint();
    assert_fails("\"model.layers.1.mlp.experts.1.up_proj.weight\" is missing");
}
END_TEST

START_TEST(test_packed_rows_must_be_whole_words)
{
    free_checkpoint();
    make_sized(16, 20);
    use_int4(8, "BF16");
    write_checkpoint();
    assert_fails("down_proj.weight_packed\": only rows of a multiple of 8 can be packed");
}
END_TEST

START_TEST(test_packed_weights_without_their_scales_are_refused)
{
    free_checkpoint();
    make_sized(16, 24);
    use_int4(8, "BF16");
    drop("model.layers.1.mlp.experts.2.down_proj.weight_scale");
    write_checkpoint();
    assert_fails("the scales of a packed tensor");
}
END_TEST

/* 2^(byte - 127) */
START_TEST(test_scales_may_be_stored_as_exponents)
{
    const char *name = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight";
    const int bytes[] = {127, 0, 254, 120, 130, 128, 126, 1};

    use_fp8();
    config.quant_block[0] = config.quant_block[1] = 4;
    set_fp8(find_item(name), 100);
    struct item *scales = put("model.layers.1.self_attn.kv_a_proj_with_mqa.weight_scale_inv", 3, 2);
    set_fp8(scales, 0);
    scales->dtype = "F8_E8M0";
    for (int i = 0; i < 6; i++)
        scales->bytes[i] = (unsigned char)bytes[i];
    struct model_weights w = load_good();
    for (int i = 0; i < 10 * 8; i++) {
        double scale = ldexp(1, bytes[i / 32 * 2 + i % 8 / 4] - 127);
        float want = (float)(e4m3_by_definition((100 + i) & 255) * scale);
        float got = ((float *)w.layers[1].kv_a.data)[i];
        ck_assert(got == want || (isnan(got) && isnan(want)));
    }
    free_good(&w);
}
END_TEST

START_TEST(test_exponents_are_no_weights)
{
    use_fp8();
    set_fp8(find_item("lm_head.weight"), 0);
    find_item("lm_head.weight")->dtype = "F8_E8M0";
    write_checkpoint();
    assert_fails("\"lm_head.weight\" is F8_E8M0, which is for scales alone");
}
END_TEST

static void add_tests(TCase *t)
{
    tcase_add_checked_fixture(t, make_checkpoint, free_checkpoint);
    tcase_add_test(t, test_e4m3_values);
    tcase_add_test(t, test_fp8_matrix_is_multiplied_out_block_by_block);
    tcase_add_test(t, test_fp8_experts_each_use_their_own_scales);
    tcase_add_test(t, test_fp8_with_one_scale_a_matrix);
    tcase_add_test(t, test_fp8_stays_where_the_backend_keeps_it);
    tcase_add_test(t, test_fp8_without_its_scales_is_refused);
    tcase_add_test(t, test_fp8_with_scales_of_another_shape_is_refused);
    tcase_add_test(t, test_fp8_without_quantization_config_is_refused);
    tcase_add_test(t, test_fp8_vectors_are_refused);
    tcase_add_test(t, test_scales_may_be_stored_as_exponents);
    tcase_add_test(t, test_exponents_are_no_weights);
    tcase_add_loop_test(t, test_int4_is_multiplied_out_group_by_group, 0, 4);
    tcase_add_loop_test(t, test_int4_stays_where_the_backend_keeps_it, 0, 4);
    tcase_add_loop_test(t, test_int4_of_another_kind_is_multiplied_out, 0, 2);
    tcase_add_test(t, test_packed_weights_that_are_not_what_they_should_be_are_refused);
    tcase_add_test(t, test_packed_rows_must_be_whole_words);
    tcase_add_test(t, test_packed_weights_without_their_scales_are_refused);
}

UNIT_MAIN("weights_quant", add_tests)
