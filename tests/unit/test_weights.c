/* Tensors of a checkpoint arrive at the backend under the right name, in the right dtype and order;
 * whatever goes wrong on the way, nothing stays allocated. The backend here is a fake that copies
 * what it is given and counts what is alive. */
#include "tests/unit/unit.h"

#include "base/memory.h"
#include "kernels/widen.h"
#include "model/dequant.h"
#include "model/weights.h"
#include "tests/unit/folder.h"

#include <math.h>

/* ---- the fake backend ------------------------------------------------------------------------ */

static struct {
    int live;
    atomic_int uploads;
    int fail_at;   /* this upload fails; 0: none */
    int cancel_at; /* `cancel` is set during this upload; 0: never */
    atomic_int cancel;
} fake;

static int fake_alloc_weight(struct backend *be, struct tensor *dst, enum weight_use use,
                             enum dtype file_dtype, int rank, const int64_t *shape,
                             struct error *err)
{
    (void)be;
    (void)err;
    *dst = (struct tensor){.dtype = use == WEIGHT_EXACT ? DTYPE_F32 : file_dtype, .rank = rank};
    memcpy(dst->shape, shape, (size_t)rank * sizeof(*shape));
    dst->data = mem_zalloc(1, tensor_bytes(dst));
    if (file_dtype == DTYPE_F8_E4M3) /* one matrix of at most 128 rows */
        dst->scales = mem_zalloc((size_t)(shape[rank - 1] + 127) / 128, sizeof(float));
    fake.live++;
    return 0;
}

static int fake_upload(struct backend *be, struct tensor *dst, int64_t first,
                       const struct tensor *host, struct error *err)
{
    char *out = (char *)dst->data + (size_t)first * dtype_size(dst->dtype);
    int number = atomic_fetch_add(&fake.uploads, 1) + 1;

    (void)be;
    if (number == fake.fail_at)
        return error_set(err, "the device is full");
    if (number == fake.cancel_at)
        fake.cancel = 1;
    if (dst->dtype == host->dtype)
        memcpy(out, host->data, tensor_bytes(host));
    else
        widen_to_f32((float *)out, host->data, host->dtype, tensor_elements(host));
    return 0;
}

static void fake_release(struct backend *be, struct tensor *t)
{
    (void)be;
    free(t->data);
    free(t->scales);
    t->data = NULL;
    fake.live--;
}

static void *fake_stage_alloc(struct backend *be, size_t bytes)
{
    (void)be;
    return malloc(bytes);
}

static void fake_stage_free(struct backend *be, void *stage)
{
    (void)be;
    free(stage);
}

static const struct backend_ops fake_ops = {.name = "fake",
                                            .stage_alloc = fake_stage_alloc,
                                            .stage_free = fake_stage_free,
                                            .alloc_weight = fake_alloc_weight,
                                            .upload = fake_upload,
                                            .release = fake_release};
static struct backend backend = {.ops = &fake_ops};

/* ---- a checkpoint in memory ------------------------------------------------------------------ */

enum {
    MAX_READERS = 16, /* threads of the loader: each may be in an upload when the load ends */
    MAX_ITEMS = 96,
    N_TENSORS = 38, /* of make_checkpoint */
};

struct item {
    char name[96];
    const char *dtype;
    int64_t rows, cols; /* cols 0: one dimension */
    unsigned char *bytes;
    size_t len;
};

static struct item items[MAX_ITEMS];
static int n_items;
static struct model_config config;
static char dir[FOLDER_PATH_BYTES];

/* The value that element `i` of tensor `name` has: n/64 in [-1, 1], exact in BF16 and F16. */
static float value_of(const char *name, int64_t i)
{
    uint32_t hash = 2166136261u;

    for (; *name; name++)
        hash = (hash ^ (unsigned char)*name) * 16777619u;
    return ((float)((hash + (uint32_t)i * 7919) % 129) - 64) / 64;
}

static int64_t elements(const struct item *item)
{
    return item->rows * (item->cols ? item->cols : 1);
}

static struct item *find_item(const char *name)
{
    for (int i = 0; i < n_items; i++)
        if (strcmp(items[i].name, name) == 0)
            return &items[i];
    ck_abort_msg("no tensor %s", name);
}

/* Gives the item `dtype` and the bytes of its values in it. F16 from F32 by exponent shift, which
 * holds for the values above. */
static void set_dtype(struct item *item, const char *dtype)
{
    size_t size = strcmp(dtype, "F32") == 0 ? 4 : 2;
    int64_t n = elements(item);

    free(item->bytes);
    item->dtype = dtype;
    item->len = (size_t)n * size;
    item->bytes = mem_zalloc((size_t)n, size);
    for (int64_t i = 0; i < n; i++) {
        float value = value_of(item->name, i);
        uint32_t bits;
        memcpy(&bits, &value, 4);
        uint16_t half = (uint16_t)(bits >> 16);
        if (strcmp(dtype, "F16") == 0)
            half = value == 0
                       ? 0
                       : (uint16_t)((bits >> 16 & 0x8000) | (((bits >> 23) & 255) - 112) << 10 |
                                    (bits >> 13 & 1023));
        memcpy(item->bytes + (size_t)i * size, size == 4 ? (void *)&bits : (void *)&half, size);
    }
}

static struct item *put(const char *name, int64_t rows, int64_t cols)
{
    struct item *item = &items[n_items++];

    ck_assert_int_le(n_items, MAX_ITEMS);
    *item = (struct item){.rows = rows, .cols = cols};
    snprintf(item->name, sizeof(item->name), "%s", name);
    set_dtype(item, "F32");
    return item;
}

/* Makes the item FP8: byte i is start + i. */
static void set_fp8(struct item *item, int start)
{
    int64_t n = elements(item);

    free(item->bytes);
    item->dtype = "F8_E4M3";
    item->len = (size_t)n;
    item->bytes = mem_alloc((size_t)n);
    for (int64_t i = 0; i < n; i++)
        item->bytes[i] = (unsigned char)(start + i);
}

static void drop(const char *name)
{
    struct item *item = find_item(name);

    free(item->bytes);
    *item = items[--n_items];
}

static void write_checkpoint(void)
{
    char *file = mem_alloc(1 << 20);
    size_t used = 8, offset = 0;

    for (int i = 0; i < n_items; i++) {
        used += (size_t)sprintf(file + used, "%c\"%s\":{\"dtype\":\"%s\",\"shape\":[%d",
                                i ? ',' : '{', items[i].name, items[i].dtype, (int)items[i].rows);
        if (items[i].cols)
            used += (size_t)sprintf(file + used, ",%d", (int)items[i].cols);
        used += (size_t)sprintf(file + used, "],\"data_offsets\":[%zu,%zu]}", offset,
                                offset + items[i].len);
        offset += items[i].len;
    }
    file[used++] = '}';
    for (int i = 0; i < 8; i++)
        file[i] = (char)((uint64_t)(used - 8) >> 8 * i);
    for (int i = 0; i < n_items; i++) {
        memcpy(file + used, items[i].bytes, items[i].len);
        used += items[i].len;
    }
    folder_write(dir, "model.safetensors", file, used);
    free(file);
}

static void put_mlp(const char *prefix, int width)
{
    char name[96];

    snprintf(name, sizeof(name), "%s.gate_proj.weight", prefix);
    put(name, width, config.hidden_size);
    snprintf(name, sizeof(name), "%s.up_proj.weight", prefix);
    put(name, width, config.hidden_size);
    snprintf(name, sizeof(name), "%s.down_proj.weight", prefix);
    put(name, config.hidden_size, width);
}

/* Two layers, dense and MoE, with q_lora; no two sizes are equal where they could be mixed up. */
static void make_checkpoint(void)
{
    folder_make(dir);
    memset(&fake, 0, sizeof(fake));
    config = (struct model_config){
        .vocab_size = 17,
        .hidden_size = 8,
        .layers = 2,
        .dense_intermediate = 9,
        .moe_intermediate = 4,
        .shared_intermediate = 5,
        .q_lora_rank = 7,
        .router_bias = true,
        .mla = {.heads = 2, .kv_lora_rank = 6, .nope_dim = 3, .rope_dim = 4, .v_dim = 5},
        .router = {.experts = 3, .top_k = 2},
        .is_moe = {false, true},
        .norm_scale = {1, 1, 1},
    };
    put("model.embed_tokens.weight", 17, 8);
    put("model.norm.weight", 8, 0);
    put("lm_head.weight", 17, 8);
    for (int n = 0; n < 2; n++) {
        static const struct {
            const char *part;
            int rows, cols;
        } parts[] = {
            {"input_layernorm", 8, 0},          {"post_attention_layernorm", 8, 0},
            {"self_attn.q_a_proj", 7, 8},       {"self_attn.q_a_layernorm", 7, 0},
            {"self_attn.q_b_proj", 14, 7},      {"self_attn.kv_a_proj_with_mqa", 10, 8},
            {"self_attn.kv_a_layernorm", 6, 0}, {"self_attn.kv_b_proj", 16, 6},
            {"self_attn.o_proj", 8, 10},
        };
        for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++) {
            char name[96];
            snprintf(name, sizeof(name), "model.layers.%d.%s.weight", n, parts[i].part);
            put(name, parts[i].rows, parts[i].cols);
        }
    }
    put_mlp("model.layers.0.mlp", 9);
    put("model.layers.1.mlp.gate.weight", 3, 8);
    put("model.layers.1.mlp.gate.e_score_correction_bias", 3, 0);
    put_mlp("model.layers.1.mlp.experts.0", 4);
    put_mlp("model.layers.1.mlp.experts.1", 4);
    put_mlp("model.layers.1.mlp.experts.2", 4);
    put_mlp("model.layers.1.mlp.shared_experts", 5);
    ck_assert_int_eq(n_items, N_TENSORS);
}

static void free_checkpoint(void)
{
    while (n_items > 0)
        free(items[--n_items].bytes);
    folder_remove(dir);
}

/* ---- loading it ------------------------------------------------------------------------------ */

static struct model_weights load_good(void)
{
    struct model_weights weights;
    struct error err = {""};

    write_checkpoint();
    ck_assert_msg(weights_load(&weights, &config, dir, &backend, &fake.cancel, &err) == 0, "%s",
                  err.message);
    return weights;
}

static void free_good(struct model_weights *weights)
{
    weights_free(weights, &config, &backend);
    ck_assert_int_eq(fake.live, 0);
}

/* The load fails, says `words` and leaves nothing behind. */
static void assert_fails(const char *words)
{
    struct model_weights weights;
    struct error err = {""};

    ck_assert_msg(weights_load(&weights, &config, dir, &backend, &fake.cancel, &err) == -1,
                  "loaded what should fail for: %s", words);
    ck_assert_msg(strstr(err.message, words) != NULL, "\"%s\" says nothing of %s", err.message,
                  words);
    ck_assert_int_eq(fake.live, 0);
}

/* `t` has the shape and the values of tensor `name`, as F32. */
static void assert_is(const struct tensor *t, const char *name)
{
    const struct item *item = find_item(name);

    ck_assert_msg(t->data != NULL, "%s is not there", name);
    ck_assert_int_eq(t->dtype, DTYPE_F32);
    ck_assert_int_eq(t->rank, item->cols ? 2 : 1);
    ck_assert_int_eq(t->shape[0], item->rows);
    ck_assert_int_eq(t->shape[1], item->cols);
    for (int64_t i = 0; i < elements(item); i++)
        ck_assert_float_eq(((float *)t->data)[i], value_of(name, i));
}

/* `t` is (experts, rows, cols) of this projection, expert after expert. */
static void assert_is_expert_block(const struct tensor *t, const char *part, int rows, int cols)
{
    char name[96];

    ck_assert_int_eq(t->dtype, DTYPE_F32);
    ck_assert_int_eq(t->rank, 3);
    ck_assert_int_eq(t->shape[0], 3);
    ck_assert_int_eq(t->shape[1], rows);
    ck_assert_int_eq(t->shape[2], cols);
    for (int e = 0; e < 3; e++) {
        snprintf(name, sizeof(name), "model.layers.1.mlp.experts.%d.%s.weight", e, part);
        for (int i = 0; i < rows * cols; i++)
            ck_assert_float_eq(((float *)t->data)[e * rows * cols + i], value_of(name, i));
    }
}

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
    tcase_add_test(t, test_e4m3_values);
    tcase_add_test(t, test_fp8_matrix_is_multiplied_out_block_by_block);
    tcase_add_test(t, test_fp8_experts_each_use_their_own_scales);
    tcase_add_test(t, test_fp8_with_one_scale_a_matrix);
    tcase_add_test(t, test_norms_are_scaled);
    tcase_add_test(t, test_fp8_stays_where_the_backend_keeps_it);
    tcase_add_test(t, test_fp8_without_its_scales_is_refused);
    tcase_add_test(t, test_fp8_with_scales_of_another_shape_is_refused);
    tcase_add_test(t, test_fp8_without_quantization_config_is_refused);
    tcase_add_test(t, test_fp8_vectors_are_refused);
    tcase_add_loop_test(t, test_each_missing_tensor_is_named, 0, N_TENSORS);
    tcase_add_loop_test(t, test_each_wrong_shape_is_named, 0, N_TENSORS);
    tcase_add_test(t, test_wrong_rank_is_refused);
    tcase_add_test(t, test_missing_folder_is_refused);
    tcase_add_test(t, test_failing_upload_frees_everything);
    tcase_add_test(t, test_cancel_ends_the_load);
}

UNIT_MAIN("weights", add_tests)
