/* The shapes in config/models/ are those of the released models, and random weights of a shape run.
 */
#include "tests/unit/unit.h"

#include "kernels/backend.h"
#include "model/config.h"
#include "model/cost.h"
#include "model/dummy_tokenizer.h"
#include "model/model.h"
#include "tests/unit/folder.h"

#include <math.h>
#include <string.h>

/* What the models' cards and files say. A checkpoint may hold more: GLM-4.7-Flash and JoyAI have a
 * multi-token prediction layer. */
static const struct shape {
    const char *file;
    size_t kv_token_bytes; /* bf16 */
    double gb;             /* of weights in bf16 */
} shapes[] = {
    {"config/models/deepseek-v2-lite.json", 31104, 31.4},
    {"config/models/moonlight-16b-a3b.json", 31104, 32.0},
    {"config/models/glm-4.7-flash.json", 54144, 59.9},
    {"config/models/joyai-llm-flash.json", 46080, 98},
    {"config/models/youtu-llm-2b.json", 36864, 3.9},
    {"config/models/minicpm3-4b.json", 35712, 8.1},
    {"config/models/mistral-small-4.json", 23040, 2 * 119},
    {"config/models/mistral-large-3.json", 70272, 2 * 673},
    {"config/models/longcat-flash.json", 64512, 2 * 561},
    {"config/models/a.x-k1.json", 70272, 2 * 519},
    {"config/models/sarvam-105b.json", 36864, 210},
};

START_TEST(test_known_shapes_have_the_size_of_the_released_models)
{
    const struct shape *shape = &shapes[_i];
    struct model_config config;
    struct error err;

    ck_assert_msg(model_config_load(&config, shape->file, &err) == 0, "%s", err.message);
    ck_assert_uint_eq(model_kv_token_bytes(&config, DTYPE_BF16), shape->kv_token_bytes);
    double gb = (double)model_weight_bytes(&config, 2, NULL) * 1e-9;
    printf("  %-40s %.2f GB\n", shape->file, gb);
    ck_assert_double_ge(gb, shape->gb * 0.96);
    ck_assert_double_le(gb, shape->gb * 1.02);
}
END_TEST

/* A layer as its others, eh_proj, and norms; the vocabulary's matrices are shared. */
START_TEST(test_multi_token_prediction_counts_when_it_is_wanted)
{
    struct model_config config;
    struct error err;

    ck_assert_int_eq(model_config_load(&config, "config/models/glm-4.7-flash.json", &err), 0);
    double before = (double)model_weight_bytes(&config, 2, NULL), d = 2048;
    struct step_cost cost = decode_cost(&config, 4, 1000, DTYPE_BF16);
    ck_assert_int_eq(model_want_mtp(&config, NULL, &err), 0);
    ck_assert_int_eq(config.mtp_layers, 1);
    ck_assert_uint_eq(model_kv_token_bytes(&config, DTYPE_BF16), 48 * 1152);
    double attention = 768 * d + 20 * 256 * 768.0 + 576 * d + 20 * 448 * 512.0 + 20 * 256 * d;
    double moe = 65 * 3 * 1536 * d, added = (double)model_weight_bytes(&config, 2, NULL) - before;
    ck_assert_double_eq_tol(added, 2 * (attention + moe + 2 * d * d), 1e6); /* norms, router */
    struct step_cost again = decode_cost(&config, 4, 1000, DTYPE_BF16);
    ck_assert_double_eq(cost_sum(&again).bytes, cost_sum(&cost).bytes);
}
END_TEST

START_TEST(test_fp8_weights_take_half_where_they_stay)
{
    const struct backend keeps = {.keeps_fp8 = 1};
    struct model_config config;
    struct error err;

    ck_assert_int_eq(model_config_load(&config, "config/models/deepseek-v2-lite-fp8.json", &err),
                     0);
    double wide = (double)model_weight_bytes(&config, 2, NULL);
    double kept = (double)model_weight_bytes(&config, 2, &keeps);
    double table = 2.0 * 102400 * 2048 * 2 + 27 * 4096.0 * 512 * 2; /* embeddings, head, kv_b */
    double uneven = 10944.0 * 2048 * 2;                             /* no whole blocks of columns */
    ck_assert_double_le(kept - table - uneven, 0.505 * (wide - table - uneven));
    ck_assert_double_ge(kept - table - uneven, 0.5 * (wide - table - uneven));
}
END_TEST

START_TEST(test_v3_is_cut_to_what_one_gpu_holds)
{
    struct model_config config;
    struct error err;

    ck_assert_int_eq(model_config_load(&config, "config/models/deepseek-v3-5-layers.json", &err),
                     0);
    ck_assert_int_eq(config.mla.heads, 128);
    ck_assert(config.is_moe[4] && !config.is_moe[2]);
    ck_assert_double_le((double)model_weight_bytes(&config, 2, NULL), 0.8 * 80e9);
}
END_TEST

/* DeepSeek-V2-Lite by hand: 2.45e9 active parameters and a cache row of 31,104 bytes; 64 experts of
 * 3 x 1408 x 2048 in 26 layers, of which one token reads 6 and 256 tokens all. */
START_TEST(test_the_cost_of_a_step_is_what_it_must_read_and_multiply)
{
    const double expert_bytes = 3.0 * 1408 * 2048 * 2 * 26;
    struct model_config config;
    struct error err;

    ck_assert_int_eq(model_config_load(&config, shapes[0].file, &err), 0);
    struct step_cost one = decode_cost(&config, 1, 1024, DTYPE_BF16);
    struct step_cost many = decode_cost(&config, 256, 1024, DTYPE_BF16);
    struct cost sum = cost_sum(&one);
    ck_assert_double_eq_tol(sum.bytes, 4.94e9, 0.02e9);
    ck_assert_double_eq_tol(one.moe.bytes, (6 + 2) * expert_bytes, 1);
    ck_assert_double_eq_tol(many.moe.bytes, (64 + 2) * expert_bytes, 0.001 * expert_bytes);
    ck_assert_double_eq_tol(many.moe.flops, 256 * one.moe.flops, 1);
    ck_assert_double_eq_tol(many.attention.bytes - one.attention.bytes, 255 * 1024 * 31104.0, 1);
    ck_assert_double_eq_tol(cost_seconds(&sum, 3.1e12, 989e12), sum.bytes / 3.1e12, 1e-9);

    /* 2 operations a parameter and token, and attention over half the square. */
    struct step_cost prompt = prefill_cost(&config, 8192, 8192, 8192, DTYPE_BF16);
    double pairs = 8192.0 * 8193 / 2;
    sum = cost_sum(&prompt);
    ck_assert_double_eq_tol(prompt.attention.flops,
                            27 * 16 * (2 * 320 * pairs + 2 * 131072.0 * 8192), 1e6);
    ck_assert_double_eq_tol(sum.flops - 27 * 16 * 640 * pairs, 2 * 2.24e9 * 8192, 0.01e13);
}
END_TEST

enum { VOCAB = 600, PROMPT = 40 };

static const char SMALL[] =
    "{\"model_type\": \"deepseek_v3\", \"vocab_size\": 600, \"hidden_size\": 64,"
    "\"intermediate_size\": 96, \"moe_intermediate_size\": 32, \"num_hidden_layers\": 3,"
    "\"num_attention_heads\": 2, \"n_shared_experts\": 1, \"n_routed_experts\": 8,"
    "\"num_experts_per_tok\": 2, \"first_k_dense_replace\": 1, \"n_group\": 1, \"topk_group\": 1,"
    "\"q_lora_rank\": 24, \"kv_lora_rank\": 32, \"qk_nope_head_dim\": 16, \"qk_rope_head_dim\": 8,"
    "\"v_head_dim\": 16, \"max_position_embeddings\": 512}";

/* Logits of a prompt's last token. */
static void run_small(float logits[VOCAB])
{
    struct batch_limits limits = {.max_rows = PROMPT, .max_seqs = 1, .max_pages = 8};
    char dir[FOLDER_PATH_BYTES];
    int32_t tokens[PROMPT], pages[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    struct model_config config;
    struct error err;

    folder_make(dir);
    folder_write(dir, "config.json", SMALL, strlen(SMALL));
    ck_assert_msg(model_config_load(&config, dir, &err) == 0, "%s", err.message);
    folder_remove(dir);
    struct backend *be = backend_cpu_open(
        &(struct backend_options){.threads = 1, .slots = 1, .vocab_size = VOCAB, .limits = limits});
    struct model *model = model_load(NULL, &config, be, NULL, &err);
    ck_assert_ptr_nonnull(model);
    ck_assert_int_eq(model_reserve(model, limits, &err), 0);
    ck_assert_int_eq(model_open_cache(model, 8, &err), 0);
    struct batch *batch = batch_new(limits);
    for (int32_t i = 0; i < PROMPT; i++)
        tokens[i] = i * 7 % VOCAB;
    batch_add(batch, (struct batch_seq){.n_rows = PROMPT, .kv_len = PROMPT, .wants_logits = 1},
              tokens, pages, 0);
    struct tensor out = model_forward(model, batch);
    ck_assert_int_eq(be->ops->finish(be, &err), 0);
    memcpy(logits, out.data, VOCAB * sizeof(float));
    free(batch);
    model_free(model);
    be->ops->close(be);
}

START_TEST(test_random_weights_give_the_same_lively_logits_each_time)
{
    float first[VOCAB], second[VOCAB];
    double sum = 0, squares = 0;

    run_small(first);
    run_small(second);
    ck_assert_mem_eq(first, second, sizeof(first));
    for (int i = 0; i < VOCAB; i++) {
        ck_assert(isfinite(first[i]));
        sum += (double)first[i];
        squares += (double)first[i] * (double)first[i];
    }
    double deviation = sqrt(squares / VOCAB - sum / VOCAB * (sum / VOCAB));
    ck_assert_double_gt(deviation, 0.3);
    ck_assert_double_lt(deviation, 3);
}
END_TEST

START_TEST(test_a_dummy_tokenizer_takes_any_text_and_names_every_id)
{
    struct tokenizer *tok = dummy_tokenizer_new(VOCAB);
    static const char text[] = "Gr\xc3\xbc\xc3\x9f\n\x01 <tag>";
    struct token_list ids;
    struct error err;
    size_t len;

    token_list_init(&ids, 64);
    ck_assert_int_eq(tokenizer_size(tok), VOCAB);
    ck_assert_int_eq(tokenizer_encode(tok, text, strlen(text), ENCODE_WITH_SPECIALS, &ids, &err),
                     0);
    ck_assert_uint_eq(ids.len, strlen(text));
    for (size_t i = 0; i < ids.len; i++)
        ck_assert_int_eq(ids.ids[i], (unsigned char)text[i]);
    for (int32_t id = 0; id < VOCAB; id++) {
        const char *bytes = tokenizer_bytes(tok, id, &len);
        ck_assert_ptr_nonnull(bytes);
        if (id < 256)
            ck_assert(len == 1 && (unsigned char)bytes[0] == id);
    }
    ck_assert_mem_eq(tokenizer_bytes(tok, 599, &len), " w599", 5);
    ck_assert_uint_eq(len, 5);
    token_list_free(&ids);
    tokenizer_free(tok);
}
END_TEST

static void add_tests(TCase *tcase)
{
    tcase_add_loop_test(tcase, test_known_shapes_have_the_size_of_the_released_models, 0,
                        sizeof(shapes) / sizeof(shapes[0]));
    tcase_add_test(tcase, test_the_cost_of_a_step_is_what_it_must_read_and_multiply);
    tcase_add_test(tcase, test_fp8_weights_take_half_where_they_stay);
    tcase_add_test(tcase, test_multi_token_prediction_counts_when_it_is_wanted);
    tcase_add_test(tcase, test_v3_is_cut_to_what_one_gpu_holds);
    tcase_add_test(tcase, test_random_weights_give_the_same_lively_logits_each_time);
    tcase_add_test(tcase, test_a_dummy_tokenizer_takes_any_text_and_names_every_id);
}

UNIT_MAIN("model_shapes", add_tests)
