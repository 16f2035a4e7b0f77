/* The CPU backend's operations on rows, against naive double-precision versions; and that a row's
 * bits depend neither on the other rows nor on the number of threads. */
#include "tests/unit/test_cpu.h"

static const struct tensor none;

static void linear(struct backend *be, struct tensor out, struct tensor x, struct tensor w,
                   struct tensor bias)
{
    be->ops->linear(be, x, &(struct linear_part){out, w, bias, none}, 1);
}

/* x (m, k) by weight (n, k); bias (n) or NULL. */
static void check_linear(struct backend *be, int64_t m, int64_t n, int64_t k, enum dtype dtype,
                         int with_bias)
{
    struct tensor x = random_tensor(be, 1, m, k), out = new_tensor(be, DTYPE_F32, m, n);
    struct tensor w = RANDOM_WEIGHT(be, 2, dtype, n, k);
    struct tensor bias = RANDOM_WEIGHT(be, 3, dtype, n);

    ck_assert_int_eq(w.dtype, dtype);
    linear(be, out, x, w, with_bias ? bias : none);
    for (int64_t r = 0; r < m; r++) {
        for (int64_t o = 0; o < n; o++) {
            double sum = with_bias ? f32_of(&bias, o) : 0;
            for (int64_t i = 0; i < k; i++)
                sum += (double)f32_of(&x, r * k + i) * f32_of(&w, o * k + i);
            assert_near(f32_of(&out, r * n + o), sum, 1e-5);
        }
    }
    RELEASE(be, &x, &out, &w, &bias);
}

START_TEST(test_linear_is_x_times_weight_transposed)
{
    static const int64_t shapes[][3] = {{1, 1, 1},    {1, 5, 3},     {3, 7, 13},   {2, 3, 8},
                                        {5, 13, 40},  {8, 12, 64},   {70, 33, 96}, {1, 300, 257},
                                        {129, 50, 9}, {64, 200, 100}};
    struct backend *be = open_cpu(2);

    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
        for (int form = 0; form < 4; form++)
            check_linear(be, shapes[i][0], shapes[i][1], shapes[i][2],
                         form & 1 ? DTYPE_BF16 : DTYPE_F32, form >> 1);
    be->ops->close(be);
}
END_TEST

START_TEST(test_linear_row_has_the_same_bits_alone_and_in_any_batch)
{
    enum { M = 67, N = 101, K = 203 };
    for (int threads = 1; threads <= 3; threads++) {
        for (int bf16 = 0; bf16 < 2; bf16++) {
            struct backend *be = open_cpu(threads), *one = open_cpu(1);
            struct tensor x = random_tensor(be, 1, M, K);
            struct tensor w = RANDOM_WEIGHT(be, 2, bf16 ? DTYPE_BF16 : DTYPE_F32, N, K);
            struct tensor all = new_tensor(be, DTYPE_F32, M, N);
            struct tensor row = new_tensor(be, DTYPE_F32, 1, N);
            linear(be, all, x, w, none);
            for (int64_t r = 0; r < M; r++) {
                struct tensor alone = tensor_rows(x, 1);
                alone.data = (float *)x.data + r * K;
                linear(one, row, alone, w, none);
                assert_same_bits(row.data, (float *)all.data + r * N, N * sizeof(float));
            }
            RELEASE(be, &x, &w, &all, &row);
            be->ops->close(be);
            one->ops->close(one);
        }
    }
}
END_TEST

START_TEST(test_uploaded_f16_becomes_f32)
{
    struct backend *be = open_cpu(1);
    uint16_t half[] = {0x3c00, 0xc000, 0x7bff, 0x0001, 0x83ff, 0x0000, 0x7c00, 0x3555};
    float expected[] = {1, -2, 65504, 0x1p-24f, -0x3ffp-24f, 0, INFINITY, 0x1.554p-2f};
    struct tensor host = {.data = half, .dtype = DTYPE_F16, .rank = 2, .shape = {2, 4}}, t;
    float back[8];

    ck_assert_int_eq(backend_upload(be, &t, WEIGHT_MATRIX, &host, &test_error), 0);
    ck_assert_int_eq(t.dtype, DTYPE_F32);
    be->ops->download(be, back, &t);
    assert_same_bits(back, expected, sizeof(back));
    be->ops->release(be, &t);
    ck_assert_ptr_null(t.data);

    host.dtype = DTYPE_F8_E4M3;
    ck_assert_int_eq(backend_upload(be, &t, WEIGHT_MATRIX, &host, &test_error), -1);
    be->ops->close(be);
}
END_TEST

START_TEST(test_rmsnorm)
{
    struct backend *be = open_cpu(2);

    for (int64_t n = 1; n < 300; n = n * 2 + 1) {
        struct tensor x = random_tensor(be, 1, 40, n), w = RANDOM_WEIGHT(be, 2, DTYPE_BF16, n);
        struct tensor out = new_tensor(be, DTYPE_F32, 40, n);
        be->ops->rmsnorm(be, out, x, w, 1e-3f);
        for (int64_t r = 0; r < 40; r++) {
            double squares = 0;
            for (int64_t i = 0; i < n; i++)
                squares += pow(f32_of(&x, r * n + i), 2);
            for (int64_t i = 0; i < n; i++)
                assert_near(
                    f32_of(&out, r * n + i),
                    f32_of(&x, r * n + i) / sqrt(squares / (double)n + 1e-3) * f32_of(&w, i), 1e-6);
        }
        RELEASE(be, &x, &w, &out);
    }
    be->ops->close(be);
}
END_TEST

static double dot_of(const struct tensor *x, int64_t r, const struct tensor *w, int64_t o)
{
    int64_t k = w->shape[w->rank - 1];
    double sum = 0;

    for (int64_t i = 0; i < k; i++)
        sum += (double)f32_of(x, r * k + i) * f32_of(w, o * k + i);
    return sum;
}

static double silu(double x)
{
    return x / (1 + exp(-x));
}

START_TEST(test_linear_of_parts_and_onto_a_residual)
{
    struct backend *be = open_cpu(2);
    enum { M = 70, N = 205, K = 50 };
    struct tensor x = random_tensor(be, 1, M, K), out = new_tensor(be, DTYPE_F32, M, N);
    struct tensor sum = random_tensor(be, 2, M, N), before = random_tensor(be, 2, M, N);
    struct tensor w = RANDOM_WEIGHT(be, 3, DTYPE_BF16, N, K);
    struct tensor v = RANDOM_WEIGHT(be, 4, DTYPE_F32, N, K);
    struct tensor bias = RANDOM_WEIGHT(be, 5, DTYPE_F32, N);
    struct linear_part parts[] = {{out, w, none, none}, {sum, v, bias, sum}};

    be->ops->linear(be, x, parts, 2);
    for (int64_t i = 0; i < M * N; i++) {
        double product = dot_of(&x, i / N, &v, i % N) + f32_of(&bias, i % N);
        assert_near(f32_of(&out, i), dot_of(&x, i / N, &w, i % N), 1e-5);
        assert_near(f32_of(&sum, i), f32_of(&before, i) + product, 1e-5);
    }
    RELEASE(be, &x, &out, &sum, &before, &w, &v, &bias);
    be->ops->close(be);
}
END_TEST

START_TEST(test_gated)
{
    struct backend *be = open_cpu(2);
    enum { M = 70, N = 205, K = 50 };
    struct tensor x = random_tensor(be, 1, M, K), out = new_tensor(be, DTYPE_F32, M, N);
    struct tensor gate = RANDOM_WEIGHT(be, 2, DTYPE_F32, N, K);
    struct tensor up = RANDOM_WEIGHT(be, 3, DTYPE_F32, N, K);

    for (int64_t i = 0; i < K; i++) /* also where exp overflows */
        ((float *)x.data)[i] *= 200;
    be->ops->gated(be, out, x, gate, up);
    for (int64_t i = 0; i < M * N; i++) {
        double g = dot_of(&x, i / N, &gate, i % N);
        assert_near(f32_of(&out, i), silu(g) * dot_of(&x, i / N, &up, i % N), 1e-4);
    }
    RELEASE(be, &x, &out, &gate, &up);
    be->ops->close(be);
}
END_TEST

START_TEST(test_embed_and_gather_follow_the_batch)
{
    struct backend *be = open_cpu(1);
    enum { D = 11 };
    struct batch *batch = batch_new((struct batch_limits){TEST_ROWS, TEST_SEQS, TEST_PAGES, 0});
    int32_t tokens[] = {7, 49, 0}, page = 0;
    struct tensor x = new_tensor(be, DTYPE_F32, 4, D), out = new_tensor(be, DTYPE_F32, 2, D);

    batch_add(batch, (struct batch_seq){.n_rows = 3, .kv_len = 3, .wants_logits = 1}, tokens, &page,
              0);
    batch_add(batch, (struct batch_seq){.n_rows = 1, .kv_len = 3, .wants_logits = 1}, tokens, &page,
              0);
    be->ops->begin(be, batch);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        struct tensor table = RANDOM_WEIGHT(be, 1, bf16 ? DTYPE_BF16 : DTYPE_F32, TEST_VOCAB, D);
        be->ops->embed(be, x, table, 12);
        be->ops->gather_logit_rows(be, out, x);
        for (int64_t i = 0; i < D; i++) {
            assert_near(f32_of(&x, D + i), 12 * f32_of(&table, 49 * D + i), 1e-7);
            assert_near(f32_of(&out, i), 12 * f32_of(&table, i), 1e-7);
            assert_near(f32_of(&out, D + i), 12 * f32_of(&table, 7 * D + i), 1e-7);
        }
        be->ops->release(be, &table);
    }
    ck_assert_int_eq(be->ops->finish(be, &test_error), 0);
    RELEASE(be, &x, &out);
    free(batch);
    be->ops->close(be);
}
END_TEST

/* --- routing --- */

/* Sorts indices by falling value, equal ones by index. */
static void sort_falling(int32_t *index, const double *value, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        index[i] = i;
    for (int32_t i = 1; i < n; i++)
        for (int32_t j = i; j > 0 && value[index[j]] > value[index[j - 1]]; j--) {
            int32_t swap = index[j];
            index[j] = index[j - 1];
            index[j - 1] = swap;
        }
}

/* The definition, by sorting: ids and weights of one row. */
static void naive_route(int32_t *ids, double *weights, const float *logits, const float *bias,
                        const struct router_config *c)
{
    double score[64], choice[64], group[64], in_group[64], sum = 0;
    int32_t order[64], n = c->experts, size = n / c->groups;
    int is_softmax = c->scoring == ROUTER_SOFTMAX;

    for (int32_t e = 0; e < n; e++)
        sum += exp(logits[e]);
    for (int32_t e = 0; e < n; e++) {
        score[e] = is_softmax ? exp(logits[e]) / sum : 1 / (1 + exp(-logits[e]));
        choice[e] = score[e] + (bias ? bias[e] : 0);
    }
    for (int32_t g = 0; g < c->groups; g++) {
        memcpy(in_group, choice + g * size, (size_t)size * sizeof(double));
        sort_falling(order, in_group, size);
        group[g] = in_group[order[0]] + (is_softmax ? 0 : in_group[order[1]]);
    }
    sort_falling(order, group, c->groups);
    for (int32_t g = c->top_groups; g < c->groups; g++)
        for (int32_t i = 0; i < size; i++)
            choice[order[g] * size + i] = is_softmax ? 0 : -INFINITY;
    sort_falling(order, choice, n);
    sum = 1e-20;
    for (int32_t i = 0; i < c->top_k; i++)
        sum += score[order[i]];
    for (int32_t i = 0; i < c->top_k; i++) {
        ids[i] = order[i];
        weights[i] = score[order[i]] / (c->normalize ? sum : 1) * c->scale;
    }
}

START_TEST(test_embed_of_a_pending_token_is_that_of_the_last_draw)
{
    struct backend *be = open_cpu(1);
    enum { D = 5, SLOT = 3 };
    struct sampling_params greedy = {.top_p = 1, .repetition_penalty = 1};
    struct batch *batch = batch_new((struct batch_limits){TEST_ROWS, TEST_SEQS, TEST_PAGES, 0});
    struct batch_seq seq = {.slot = SLOT, .n_rows = 1, .kv_len = 1, .wants_logits = 1};
    struct tensor table = RANDOM_WEIGHT(be, 1, DTYPE_F32, TEST_VOCAB, D);
    struct tensor logits = random_tensor(be, 2, 1, TEST_VOCAB), x = new_tensor(be, DTYPE_F32, 1, D);
    struct sampling_result results[2];
    int32_t token = 7, pending = -1, page = 0;

    be->ops->sampler_open(be, SLOT, &greedy, NULL, 0);
    batch_add(batch, seq, &token, &page, 0);
    ck_assert_int_eq(be->ops->begin(be, batch), 0);
    be->ops->sample(be, logits, NULL, &results[0]);

    batch_clear(batch); /* the next step begins before the first is finished */
    seq.kv_len = 2;
    batch_add(batch, seq, &pending, &page, 1);
    ck_assert_int_eq(be->ops->begin(be, batch), 0);
    be->ops->embed(be, x, table, 1);
    be->ops->sample(be, logits, NULL, &results[1]);
    ck_assert_int_eq(be->ops->finish(be, &test_error), 0);
    assert_same_bits(x.data, (float *)table.data + results[0].token * D, D * sizeof(float));
    ck_assert_int_eq(be->ops->finish(be, &test_error), 0);
    ck_assert_int_eq(results[1].token, results[0].token);
    RELEASE(be, &table, &logits, &x);
    free(batch);
    be->ops->close(be);
}
END_TEST

START_TEST(test_route_chooses_as_defined)
{
    static const struct router_config configs[] = {
        {ROUTER_SOFTMAX, 8, 2, 1, 1, 0, 1, 0},     {ROUTER_SOFTMAX, 32, 6, 8, 3, 0, 16, 0},
        {ROUTER_SOFTMAX, 16, 4, 1, 1, 1, 1, 0},    {ROUTER_SIGMOID, 64, 6, 1, 1, 1, 2.446f, 0},
        {ROUTER_SIGMOID, 32, 8, 8, 4, 1, 2.5f, 0}, {ROUTER_SIGMOID, 12, 12, 1, 1, 0, 1, 0},
    };
    struct backend *be = open_cpu(2);
    enum { ROWS = 200 };

    for (size_t c = 0; c < sizeof(configs) / sizeof(configs[0]); c++) {
        const struct router_config *config = &configs[c];
        int32_t n = config->experts, k = config->top_k, expected_ids[64];
        double expected[64];
        struct tensor logits = random_tensor(be, c, ROWS, n), bias = RANDOM_WEIGHT(be, 5, 0, n);
        struct tensor ids = new_tensor(be, DTYPE_I32, ROWS, k);
        struct tensor weights = new_tensor(be, DTYPE_F32, ROWS, k);
        int biased = config->scoring == ROUTER_SIGMOID;
        be->ops->route(be, ids, weights, logits, biased ? bias : none, config);
        for (int64_t r = 0; r < ROWS; r++) {
            naive_route(expected_ids, expected, (float *)logits.data + r * n,
                        biased ? bias.data : NULL, config);
            for (int32_t i = 0; i < k; i++) {
                ck_assert_int_eq(((int32_t *)ids.data)[r * k + i], expected_ids[i]);
                assert_near(f32_of(&weights, r * k + i), expected[i], 1e-6);
            }
        }
        RELEASE(be, &logits, &bias, &ids, &weights);
    }
    be->ops->close(be);
}
END_TEST

START_TEST(test_route_ties_go_to_the_lowest_index)
{
    struct router_config config = {ROUTER_SIGMOID, 8, 3, 4, 2, 1, 1, 0};
    struct backend *be = open_cpu(1);
    struct tensor logits = new_tensor(be, DTYPE_F32, 1, 8); /* zeros */
    struct tensor ids = new_tensor(be, DTYPE_I32, 1, 3), w = new_tensor(be, DTYPE_F32, 1, 3);
    int32_t expected[] = {0, 1, 2};

    be->ops->route(be, ids, w, logits, none, &config);
    assert_same_bits(ids.data, expected, sizeof(expected));
    assert_near(f32_of(&w, 2), 1.0 / 3, 1e-6);

    /* Not a number anywhere: still different, valid ids. */
    for (int i = 0; i < 8; i++)
        ((float *)logits.data)[i] = NAN;
    be->ops->route(be, ids, w, logits, none, &config);
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < i; j++)
            ck_assert_int_ne(((int32_t *)ids.data)[i], ((int32_t *)ids.data)[j]);
    RELEASE(be, &logits, &ids, &w);
    be->ops->close(be);
}
END_TEST

START_TEST(test_route_weighs_with_the_score_and_not_the_bias)
{
    struct router_config config = {ROUTER_SIGMOID, 4, 1, 1, 1, 0, 1, 0};
    struct backend *be = open_cpu(1);
    struct tensor logits = new_tensor(be, DTYPE_F32, 1, 4), bias = new_tensor(be, DTYPE_F32, 1, 4);
    struct tensor ids = new_tensor(be, DTYPE_I32, 1, 1), w = new_tensor(be, DTYPE_F32, 1, 1);

    ((float *)logits.data)[2] = -18;
    ((float *)bias.data)[2] = 12;
    be->ops->route(be, ids, w, logits, bias, &config);
    ck_assert_int_eq(*(int32_t *)ids.data, 2);
    ck_assert_float_eq_tol(f32_of(&w, 0), 1.523e-8f, 1e-11f); /* s + 12 - 12 would be 0 */
    RELEASE(be, &logits, &bias, &ids, &w);
    be->ops->close(be);
}
END_TEST

/* --- experts --- */

enum { E = 5, TOP_K = 3, D = 19, I = 29, SHARED = 58, MOE_ROWS = 290 };

struct experts {
    struct backend *be;
    struct moe_weights weights;
    struct tensor x, ids, w, out;
};

static struct experts open_experts(int threads, enum dtype dtype)
{
    struct backend *be = open_cpu(threads);
    struct experts m = {.be = be,
                        .weights = {RANDOM_WEIGHT(be, 1, dtype, E, I, D),
                                    RANDOM_WEIGHT(be, 2, dtype, E, I, D),
                                    RANDOM_WEIGHT(be, 3, dtype, E, D, I)},
                        .x = random_tensor(be, 4, MOE_ROWS, D),
                        .ids = new_tensor(be, DTYPE_I32, MOE_ROWS, TOP_K),
                        .w = random_tensor(be, 5, MOE_ROWS, TOP_K),
                        .out = random_tensor(be, 6, MOE_ROWS, D)};
    struct backend_shapes shapes = {.hidden_size = D,
                                    .mla = {1, 8, 8, 8, 8, 1},
                                    .router = {.experts = E, .top_k = TOP_K, .groups = 1},
                                    .moe_intermediate = I,
                                    .shared_intermediate = SHARED};

    ck_assert_int_eq(be->ops->reserve(be, &shapes, &test_error), 0);
    for (int32_t r = 0; r < MOE_ROWS; r++) /* expert 4 gets no rows; neighbours differ */
        for (int32_t i = 0; i < TOP_K; i++)
            ((int32_t *)m.ids.data)[r * TOP_K + i] = (r * r + i * (r % 2 ? 1 : 3)) % 4;
    return m;
}

static void close_experts(struct experts *m)
{
    RELEASE(m->be, &m->weights.gate, &m->weights.up, &m->weights.down, &m->x, &m->ids, &m->w,
            &m->out);
    m->be->ops->close(m->be);
}

static double naive_moe(const struct experts *m, int64_t r, int64_t o)
{
    double sum = 0;

    for (int64_t k = 0; k < TOP_K; k++) {
        int64_t e = ((int32_t *)m->ids.data)[r * TOP_K + k];
        double out = 0;
        for (int64_t i = 0; i < I; i++) {
            double gate = 0, up = 0;
            for (int64_t j = 0; j < D; j++) {
                gate += (double)f32_of(&m->weights.gate, (e * I + i) * D + j) *
                        f32_of(&m->x, r * D + j);
                up +=
                    (double)f32_of(&m->weights.up, (e * I + i) * D + j) * f32_of(&m->x, r * D + j);
            }
            out += gate / (1 + exp(-gate)) * up * f32_of(&m->weights.down, (e * D + o) * I + i);
        }
        sum += out * f32_of(&m->w, r * TOP_K + k);
    }
    return sum;
}

START_TEST(test_moe_is_the_weighted_sum_of_its_experts)
{
    for (int form = 0; form < 2; form++) {
        struct experts m = open_experts(2, form ? DTYPE_BF16 : DTYPE_F32);
        struct tensor before = random_tensor(m.be, 6, MOE_ROWS, D);
        m.be->ops->moe(m.be, m.out, m.out, m.x, m.ids, m.w, &m.weights, NULL);
        for (int64_t r = 0; r < MOE_ROWS; r += 7)
            for (int64_t o = 0; o < D; o++)
                assert_near(f32_of(&m.out, r * D + o),
                            f32_of(&before, r * D + o) + naive_moe(&m, r, o), 1e-5);
        m.be->ops->release(m.be, &before);
        close_experts(&m);
    }
}
END_TEST

START_TEST(test_shared_experts_serve_every_row)
{
    struct experts with = open_experts(2, DTYPE_F32), without = open_experts(2, DTYPE_F32);
    struct ffn_weights shared = {RANDOM_WEIGHT(with.be, 7, DTYPE_F32, SHARED, D),
                                 RANDOM_WEIGHT(with.be, 8, DTYPE_F32, SHARED, D),
                                 RANDOM_WEIGHT(with.be, 9, DTYPE_F32, D, SHARED)};

    with.be->ops->moe(with.be, with.out, with.out, with.x, with.ids, with.w, &with.weights,
                      &shared);
    without.be->ops->moe(without.be, without.out, without.out, without.x, without.ids, without.w,
                         &without.weights, NULL);
    for (int64_t r = 0; r < MOE_ROWS; r++) {
        double hidden[SHARED];
        for (int64_t i = 0; i < SHARED; i++)
            hidden[i] =
                silu(dot_of(&with.x, r, &shared.gate, i)) * dot_of(&with.x, r, &shared.up, i);
        for (int64_t o = 0; o < D; o++) {
            double sum = f32_of(&without.out, r * D + o);
            for (int64_t i = 0; i < SHARED; i++)
                sum += hidden[i] * f32_of(&shared.down, o * SHARED + i);
            assert_near(f32_of(&with.out, r * D + o), sum, 1e-5);
        }
    }
    RELEASE(with.be, &shared.gate, &shared.up, &shared.down);
    close_experts(&with);
    close_experts(&without);
}
END_TEST

START_TEST(test_moe_row_has_the_same_bits_alone_and_in_any_batch)
{
    struct experts many = open_experts(3, DTYPE_F32), one = open_experts(1, DTYPE_F32);

    many.be->ops->moe(many.be, many.out, many.out, many.x, many.ids, many.w, &many.weights, NULL);
    for (int64_t r = 0; r < MOE_ROWS; r++) {
        struct tensor x = tensor_rows(one.x, 1), ids = tensor_rows(one.ids, 1);
        struct tensor w = tensor_rows(one.w, 1), out = tensor_rows(one.out, 1);
        x.data = (float *)x.data + r * D;
        ids.data = (int32_t *)ids.data + r * TOP_K;
        w.data = (float *)w.data + r * TOP_K;
        out.data = (float *)one.out.data + r * D;
        one.be->ops->moe(one.be, out, out, x, ids, w, &one.weights, NULL);
        assert_same_bits(out.data, (float *)many.out.data + r * D, D * sizeof(float));
    }
    close_experts(&many);
    close_experts(&one);
}
END_TEST

START_TEST(test_moe_without_a_residual_writes_its_output)
{
    struct experts added = open_experts(1, DTYPE_F32), alone = open_experts(1, DTYPE_F32);

    memset(added.out.data, 0, tensor_bytes(&added.out));
    added.be->ops->moe(added.be, added.out, added.out, added.x, added.ids, added.w, &added.weights,
                       NULL);
    alone.be->ops->moe(alone.be, alone.out, none, alone.x, alone.ids, alone.w, &alone.weights,
                       NULL);
    assert_same_bits(alone.out.data, added.out.data, tensor_bytes(&added.out));
    close_experts(&added);
    close_experts(&alone);
}
END_TEST

START_TEST(test_identity_experts_give_their_input_back_and_leave_the_rest_to_moe)
{
    struct experts with = open_experts(1, DTYPE_F32), rest = open_experts(1, DTYPE_F32);
    int32_t *ids = with.ids.data, *others = rest.ids.data;
    float kept = f32_of(&with.w, 0), back = f32_of(&with.w, TOP_K - 1);

    memset(with.out.data, 0, tensor_bytes(&with.out));
    ids[TOP_K - 1] = E + 1; /* of the first row: identity */
    with.be->ops->identity_experts(with.be, with.out, with.x, with.ids, with.w, E);
    ck_assert(ids[TOP_K - 1] == -1 && ids[0] >= 0 && kept != 0);
    for (int64_t o = 0; o < D; o++) {
        assert_near(f32_of(&with.out, o), back * f32_of(&with.x, o), 1e-6);
        ck_assert_float_eq(f32_of(&with.out, D + o), 0);
    }

    /* -1 is the same as a weight of 0. */
    with.be->ops->moe(with.be, with.out, none, with.x, with.ids, with.w, &with.weights, NULL);
    ((float *)rest.w.data)[TOP_K - 1] = 0;
    ck_assert_int_ge(others[TOP_K - 1], 0);
    rest.be->ops->moe(rest.be, rest.out, none, rest.x, rest.ids, rest.w, &rest.weights, NULL);
    for (int64_t o = 0; o < 2 * D; o++)
        assert_near(f32_of(&with.out, o), f32_of(&rest.out, o), 1e-6);
    close_experts(&with);
    close_experts(&rest);
}
END_TEST

START_TEST(test_route_ranks_identity_experts_with_the_others)
{
    struct router_config config = {ROUTER_SOFTMAX, 2, 2, 1, 1, 0, 6, 2};
    struct backend *be = open_cpu(1);
    struct tensor logits = new_tensor(be, DTYPE_F32, 1, 4);
    struct tensor ids = new_tensor(be, DTYPE_I32, 1, 2), w = new_tensor(be, DTYPE_F32, 1, 2);

    ((float *)logits.data)[0] = logf(2);
    ((float *)logits.data)[3] = logf(4); /* 2, 1, 1, 4 of 8 */
    be->ops->route(be, ids, w, logits, none, &config);
    ck_assert(((int32_t *)ids.data)[0] == 3 && ((int32_t *)ids.data)[1] == 0);
    assert_near(f32_of(&w, 0), 6 * 0.5, 1e-6);
    assert_near(f32_of(&w, 1), 6 * 0.25, 1e-6);
    RELEASE(be, &logits, &ids, &w);
    be->ops->close(be);
}
END_TEST

START_TEST(test_add_and_scale_by_position)
{
    struct backend *be = open_cpu(1);
    struct tensor sum = random_tensor(be, 1, 3, 5), x = random_tensor(be, 2, 3, 5);
    struct tensor before = random_tensor(be, 1, 3, 5);
    struct batch *batch =
        batch_new((struct batch_limits){.max_rows = 8, .max_seqs = 1, .max_pages = 1});
    int32_t tokens[3] = {0}, page = 0;

    be->ops->add(be, sum, x);
    for (int64_t i = 0; i < 15; i++)
        ck_assert_float_eq(f32_of(&sum, i), f32_of(&before, i) + f32_of(&x, i));

    /* Positions 3, 4, 5, every 4: the first is not scaled. */
    batch_add(batch, (struct batch_seq){.n_rows = 3, .kv_len = 6}, tokens, &page, 0);
    be->ops->begin(be, batch);
    be->ops->scale_by_position(be, before, 0.5f, 4);
    for (int64_t i = 0; i < 15; i++)
        assert_near(f32_of(&before, i),
                    (f32_of(&sum, i) - f32_of(&x, i)) * (i < 5 ? 1 : 1 + 0.5 * log(2)), 1e-5);
    RELEASE(be, &sum, &x, &before);
    free(batch);
    be->ops->close(be);
}
END_TEST

START_TEST(test_concat_puts_rows_side_by_side)
{
    struct backend *be = open_cpu(1);
    struct tensor a = random_tensor(be, 1, 3, 2), b = random_tensor(be, 2, 3, 5);
    struct tensor out = random_tensor(be, 3, 3, 7);

    be->ops->concat(be, out, a, b);
    for (int64_t i = 0; i < 21; i++)
        ck_assert_float_eq(f32_of(&out, i), i % 7 < 2 ? f32_of(&a, i / 7 * 2 + i % 7)
                                                      : f32_of(&b, i / 7 * 5 + i % 7 - 2));
    RELEASE(be, &a, &b, &out);
    be->ops->close(be);
}
END_TEST

static void add(TCase *t)
{
    tcase_add_test(t, test_linear_is_x_times_weight_transposed);
    tcase_add_test(t, test_linear_row_has_the_same_bits_alone_and_in_any_batch);
    tcase_add_test(t, test_uploaded_f16_becomes_f32);
    tcase_add_test(t, test_rmsnorm);
    tcase_add_test(t, test_linear_of_parts_and_onto_a_residual);
    tcase_add_test(t, test_gated);
    tcase_add_test(t, test_embed_and_gather_follow_the_batch);
    tcase_add_test(t, test_embed_of_a_pending_token_is_that_of_the_last_draw);
    tcase_add_test(t, test_route_chooses_as_defined);
    tcase_add_test(t, test_route_ties_go_to_the_lowest_index);
    tcase_add_test(t, test_route_weighs_with_the_score_and_not_the_bias);
    tcase_add_test(t, test_moe_is_the_weighted_sum_of_its_experts);
    tcase_add_test(t, test_shared_experts_serve_every_row);
    tcase_add_test(t, test_moe_row_has_the_same_bits_alone_and_in_any_batch);
    tcase_add_test(t, test_moe_without_a_residual_writes_its_output);
    tcase_add_test(t, test_identity_experts_give_their_input_back_and_leave_the_rest_to_moe);
    tcase_add_test(t, test_route_ranks_identity_experts_with_the_others);
    tcase_add_test(t, test_add_and_scale_by_position);
    tcase_add_test(t, test_concat_puts_rows_side_by_side);
}

UNIT_MAIN("cpu_ops", add)
