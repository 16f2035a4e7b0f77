/* A small checkpoint in memory, whose tensors a test changes, and a backend that copies what it is
 * given and counts what is alive. */
#pragma once

#include "base/buffer.h"
#include "base/memory.h"
#include "base/panic.h"
#include "kernels/widen.h"
#include "model/weights.h"
#include "tests/unit/folder.h"

#include <stdatomic.h>

/* ---- the fake backend ------------------------------------------------------------------------ */

static struct {
    int live;
    atomic_int uploads;
    int fail_at;   /* this upload fails; 0: none */
    int cancel_at; /* `cancel` is set during this upload; 0: never */
    atomic_int cancel;
} fake;

static inline int fake_alloc_weight(struct backend *be, struct tensor *dst, enum weight_use use,
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
    if (file_dtype == DTYPE_I4)
        dst->group_scales = mem_zalloc((size_t)tensor_elements(dst) / I4_GROUP, sizeof(uint16_t));
    fake.live++;
    return 0;
}

static inline int fake_upload(struct backend *be, struct tensor *dst, int64_t first,
                              const struct tensor *host, struct error *err)
{
    char *out = (char *)dst->data + dtype_bytes(dst->dtype, (uint64_t)first);
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

static inline void fake_release(struct backend *be, struct tensor *t)
{
    (void)be;
    free(t->data);
    free(t->scales);
    free(t->group_scales);
    t->data = NULL;
    fake.live--;
}

static inline void *fake_stage_alloc(struct backend *be, size_t bytes)
{
    (void)be;
    return malloc(bytes);
}

static inline void fake_stage_free(struct backend *be, void *stage)
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
static inline float value_of(const char *name, int64_t i)
{
    uint32_t hash = 2166136261u;

    for (; *name; name++)
        hash = (hash ^ (unsigned char)*name) * 16777619u;
    return ((float)((hash + (uint32_t)i * 7919) % 129) - 64) / 64;
}

static inline int64_t elements(const struct item *item)
{
    return item->rows * (item->cols ? item->cols : 1);
}

static inline struct item *find_item(const char *name)
{
    for (int i = 0; i < n_items; i++)
        if (strcmp(items[i].name, name) == 0)
            return &items[i];
    ck_abort_msg("no tensor %s", name);
}

/* Gives the item `dtype` and the bytes of its values in it. F16 from F32 by exponent shift, which
 * holds for the values above. */
static inline void set_dtype(struct item *item, const char *dtype)
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

static inline struct item *put(const char *name, int64_t rows, int64_t cols)
{
    struct item *item = &items[n_items++];

    ck_assert_int_le(n_items, MAX_ITEMS);
    *item = (struct item){.rows = rows, .cols = cols};
    snprintf(item->name, sizeof(item->name), "%s", name);
    set_dtype(item, "F32");
    return item;
}

/* Makes the item FP8: byte i is start + i. */
static inline void set_fp8(struct item *item, int start)
{
    int64_t n = elements(item);

    free(item->bytes);
    item->dtype = "F8_E4M3";
    item->len = (size_t)n;
    item->bytes = mem_alloc((size_t)n);
    for (int64_t i = 0; i < n; i++)
        item->bytes[i] = (unsigned char)(start + i);
}

/* Makes the item whole numbers of four bits, of which byte i holds those of start + i. */
static inline void set_packed(struct item *item, int start)
{
    snprintf(item->name + strlen(item->name), sizeof(item->name) - strlen(item->name), "_packed");
    item->cols = (item->cols + 7) / 8 * 4; /* bytes of whole words */
    set_fp8(item, start);
    item->dtype = "I32";
    item->cols /= 4;
}

static inline void drop(const char *name)
{
    struct item *item = find_item(name);

    free(item->bytes);
    *item = items[--n_items];
}

static inline void write_checkpoint(void)
{
    struct buffer file;
    size_t offset = 0;
    uint64_t header;

    buffer_init(&file, 1 << 20);
    buffer_append(&file, "8 bytes.", sizeof(header)); /* for the header's length */
    for (int i = 0; i < n_items; i++) {
        buffer_printf(&file, "%c\"%s\":{\"dtype\":\"%s\",\"shape\":[%d", i ? ',' : '{',
                      items[i].name, items[i].dtype, (int)items[i].rows);
        if (items[i].cols)
            buffer_printf(&file, ",%d", (int)items[i].cols);
        buffer_printf(&file, "],\"data_offsets\":[%zu,%zu]}", offset, offset + items[i].len);
        offset += items[i].len;
    }
    buffer_append_str(&file, "}");
    header = file.len - sizeof(header);
    for (size_t i = 0; i < sizeof(header); i++)
        file.data[i] = (char)(header >> 8 * i);
    for (int i = 0; i < n_items; i++)
        buffer_append(&file, items[i].bytes, items[i].len);
    ASSERT(!file.overflowed);
    folder_write(dir, "model.safetensors", file.data, file.len);
    buffer_free(&file);
}

static inline void put_mlp(const char *prefix, int width)
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
static inline void make_sized(int32_t hidden, int32_t expert_width)
{
    folder_make(dir);
    memset(&fake, 0, sizeof(fake));
    config = (struct model_config){
        .vocab_size = 17,
        .hidden_size = hidden,
        .layers = 2,
        .dense_intermediate = 9,
        .moe_intermediate = expert_width,
        .shared_intermediate = 5,
        .q_lora_rank = 7,
        .router_bias = true,
        .mla = {.heads = 2, .kv_lora_rank = 6, .nope_dim = 3, .rope_dim = 4, .v_dim = 5},
        .router = {.experts = 3, .top_k = 2},
        .is_moe = {false, true},
        .norm_scale = {1, 1, 1},
    };
    put("model.embed_tokens.weight", 17, hidden);
    put("model.norm.weight", hidden, 0);
    put("lm_head.weight", 17, hidden);
    for (int n = 0; n < 2; n++) {
        const struct {
            const char *part;
            int rows, cols;
        } parts[] = {
            {"input_layernorm", hidden, 0},     {"post_attention_layernorm", hidden, 0},
            {"self_attn.q_a_proj", 7, hidden},  {"self_attn.q_a_layernorm", 7, 0},
            {"self_attn.q_b_proj", 14, 7},      {"self_attn.kv_a_proj_with_mqa", 10, hidden},
            {"self_attn.kv_a_layernorm", 6, 0}, {"self_attn.kv_b_proj", 16, 6},
            {"self_attn.o_proj", hidden, 10},
        };
        for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++) {
            char name[96];
            snprintf(name, sizeof(name), "model.layers.%d.%s.weight", n, parts[i].part);
            put(name, parts[i].rows, parts[i].cols);
        }
    }
    put_mlp("model.layers.0.mlp", 9);
    put("model.layers.1.mlp.gate.weight", 3, hidden);
    put("model.layers.1.mlp.gate.e_score_correction_bias", 3, 0);
    put_mlp("model.layers.1.mlp.experts.0", expert_width);
    put_mlp("model.layers.1.mlp.experts.1", expert_width);
    put_mlp("model.layers.1.mlp.experts.2", expert_width);
    put_mlp("model.layers.1.mlp.shared_experts", 5);
    ck_assert_int_eq(n_items, N_TENSORS);
}

static inline void make_checkpoint(void)
{
    make_sized(8, 4);
}

static inline void free_checkpoint(void)
{
    while (n_items > 0)
        free(items[--n_items].bytes);
    folder_remove(dir);
}

/* ---- loading it ------------------------------------------------------------------------------ */

static inline struct model_weights load_good(void)
{
    struct model_weights weights;
    struct error err = {""};

    write_checkpoint();
    ck_assert_msg(weights_load(&weights, &config, dir, &backend, &fake.cancel, &err) == 0, "%s",
                  err.message);
    return weights;
}

static inline void free_good(struct model_weights *weights)
{
    weights_free(weights, &config, &backend);
    ck_assert_int_eq(fake.live, 0);
}

/* The load fails, says `words` and leaves nothing behind. */
static inline void assert_fails(const char *words)
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
static inline void assert_is(const struct tensor *t, const char *name)
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
static inline void assert_is_expert_block(const struct tensor *t, const char *part, int rows,
                                          int cols)
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
