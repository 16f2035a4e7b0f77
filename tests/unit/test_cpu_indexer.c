/* The CPU backend's indexer: the tokens chosen against a naive sum in double precision, and that
 * what is chosen, and attention to it, don't depend on how a sequence is cut. */
#include "kernels/cpu/cpu.h"
#include "tests/unit/test_cpu.h"

enum { H = 2, LORA = 16, NOPE = 8, ROPE = 8, V = 8, KV = LORA + ROPE, Q = H * (NOPE + ROPE) };
enum { HEADS = 3, DIM = 12, TOP_K = 20, LENGTH = 150, SEQ_PAGES = 3, N_SEQS = 2 };

struct rig {
    struct backend *be;
    struct mla_layer mla;
    struct index_layer index;
    struct rope_config rope, index_rope;
    struct tensor norm, q, kv, out, index_q, index_k, weights;
    struct batch *batch;
    float weight_scale;
    int32_t chosen[LENGTH][TOP_K]; /* of sequence 0 */
    float result[LENGTH][H * V];
};

struct piece {
    int32_t seq, from, to, absorbed;
};

static struct rig *rig_open(int threads)
{
    struct rig *g = calloc(1, sizeof(*g));
    struct backend *be = g->be = open_cpu(threads);
    int64_t pages = N_SEQS * SEQ_PAGES;
    struct backend_shapes shapes = {.mla = {H, LORA, NOPE, ROPE, V, 0.4f},
                                    .index = {TOP_K, HEADS, DIM, LENGTH}};

    g->mla.shape = shapes.mla;
    g->mla.kv_b = RANDOM_WEIGHT(be, 1, DTYPE_F32, H * (NOPE + V), LORA);
    g->norm = RANDOM_WEIGHT(be, 2, DTYPE_F32, LORA);
    g->index.shape = shapes.index;
    g->index.norm = RANDOM_WEIGHT(be, 3, DTYPE_F32, DIM);
    g->index.norm_bias = RANDOM_WEIGHT(be, 4, DTYPE_F32, DIM);
    be->ops->alloc(be, &g->mla.kv_cache, DTYPE_F32, 3, (int64_t[]){pages, KV_PAGE_TOKENS, KV},
                   &test_error);
    be->ops->alloc(be, &g->index.key_cache, DTYPE_F32, 3, (int64_t[]){pages, KV_PAGE_TOKENS, DIM},
                   &test_error);
    for (int64_t i = 0; i < tensor_elements(&g->index.key_cache); i++)
        ((float *)g->index.key_cache.data)[i] = NAN;
    g->q = new_tensor(be, DTYPE_F32, TEST_ROWS, Q);
    g->kv = new_tensor(be, DTYPE_F32, TEST_ROWS, KV);
    g->out = new_tensor(be, DTYPE_F32, TEST_ROWS, H * V);
    g->index_q = new_tensor(be, DTYPE_F32, TEST_ROWS, HEADS * DIM);
    g->index_k = new_tensor(be, DTYPE_F32, TEST_ROWS, DIM);
    g->weights = new_tensor(be, DTYPE_F32, TEST_ROWS, HEADS);
    g->rope = (struct rope_config){.dim = ROPE, .magnitude = 1.25f};
    for (int i = 0; i < ROPE / 2; i++)
        g->rope.inv_freq[i] = powf(100, -(float)i / (ROPE / 2));
    g->index_rope = g->rope;
    g->index_rope.half_split = 1;
    g->weight_scale = 1;
    g->batch = batch_new((struct batch_limits){TEST_ROWS, TEST_SEQS, TEST_PAGES, 0});
    ck_assert_int_eq(be->ops->reserve(be, &shapes, &test_error), 0);
    return g;
}

static void rig_close(struct rig *g)
{
    RELEASE(g->be, &g->mla.kv_b, &g->mla.kv_cache, &g->norm, &g->q, &g->kv, &g->out);
    RELEASE(g->be, &g->index.norm, &g->index.norm_bias, &g->index.key_cache, &g->index_q,
            &g->index_k, &g->weights);
    g->be->ops->close(g->be);
    free(g->batch);
    free(g);
}

/* Inputs by what they are, sequence and position. */
static float input(int32_t what, int32_t seq, int32_t position, int32_t i)
{
    return 2 *
           random_at((((uint64_t)what * 10 + (uint64_t)seq) * 1000 + (uint64_t)position) * 1000 +
                     (uint64_t)i);
}

static void fill(struct tensor *t, int32_t what, int32_t row, const struct piece *p, float scale)
{
    int32_t width = (int32_t)t->shape[1];

    for (int32_t at = p->from; at < p->to; at++)
        for (int32_t i = 0; i < width; i++)
            ((float *)t->data)[(row + at - p->from) * width + i] =
                scale * input(what, p->seq, at, i);
}

static int32_t page_of(int32_t seq, int32_t i)
{
    return (i * N_SEQS + seq) * 5 % (N_SEQS * SEQ_PAGES);
}

static void run(struct rig *g, const struct piece *pieces, int n)
{
    const struct backend_ops *ops = g->be->ops;
    int32_t pages[SEQ_PAGES], tokens[TEST_ROWS] = {0};
    struct tensor *all[] = {&g->q, &g->kv, &g->index_q, &g->index_k, &g->weights};
    struct tensor part[5], out;

    batch_clear(g->batch);
    for (int p = 0; p < n; p++) {
        for (int32_t i = 0; i < SEQ_PAGES; i++)
            pages[i] = page_of(pieces[p].seq, i);
        for (int i = 0; i < 5; i++)
            fill(all[i], i, g->batch->n_rows, &pieces[p], i == 4 ? g->weight_scale : 1);
        batch_add(g->batch,
                  (struct batch_seq){.n_rows = pieces[p].to - pieces[p].from,
                                     .kv_len = pieces[p].to,
                                     .absorbed = pieces[p].absorbed},
                  tokens, pages, 0);
    }
    for (int i = 0; i < 5; i++)
        part[i] = tensor_rows(*all[i], g->batch->n_rows);
    out = tensor_rows(g->out, g->batch->n_rows);
    for (int64_t i = 0; i < tensor_elements(&out); i++)
        ((float *)out.data)[i] = NAN; /* every row must be written */
    ops->begin(g->be, g->batch);
    ops->index_tokens(g->be, part[2], part[3], part[4], &g->index, &g->index_rope);
    ops->rope_kv_write(g->be, part[0], part[1], &g->mla, g->norm, 1e-5f, &g->rope);
    ops->mla_prefill(g->be, out, part[0], &g->mla);
    ops->mla_decode(g->be, out, part[0], &g->mla);
    for (int p = 0, row = 0; p < n; p++)
        for (int32_t t = pieces[p].from; t < pieces[p].to; t++, row++) {
            if (pieces[p].seq != 0)
                continue;
            memcpy(g->result[t], (float *)out.data + row * H * V, sizeof(g->result[t]));
            if (t >= TOP_K)
                memcpy(g->chosen[t], cpu_index_chosen(cpu_backend(g->be), row),
                       sizeof(g->chosen[t]));
        }
    ck_assert_int_eq(ops->finish(g->be, &test_error), 0);
}

/* ---- in double precision ------------------------------------------------------------------- */

static void rotate(double *x, int32_t position, const struct rope_config *rope)
{
    for (int i = 0; i < ROPE / 2; i++) {
        double angle = (float)position * rope->inv_freq[i], m = rope->magnitude;
        double first = x[i], second = x[i + ROPE / 2];
        x[i] = m * (first * cos(angle) - second * sin(angle));
        x[i + ROPE / 2] = m * (second * cos(angle) + first * sin(angle));
    }
}

static double naive_score(const struct rig *g, int32_t row, int32_t token)
{
    double key[DIM], mean = 0, squares = 0, score = 0;

    for (int i = 0; i < DIM; i++)
        mean += input(3, 0, token, i) / (double)DIM;
    for (int i = 0; i < DIM; i++) {
        key[i] = input(3, 0, token, i) - mean;
        squares += key[i] * key[i];
    }
    for (int i = 0; i < DIM; i++)
        key[i] = key[i] / sqrt(squares / DIM + 1e-6) * f32_of(&g->index.norm, i) +
                 f32_of(&g->index.norm_bias, i);
    rotate(key, token, &g->index_rope);
    for (int h = 0; h < HEADS; h++) {
        double query[DIM], product = 0;
        for (int i = 0; i < DIM; i++)
            query[i] = input(2, 0, row, h * DIM + i);
        rotate(query, row, &g->index_rope);
        for (int i = 0; i < DIM; i++)
            product += query[i] * key[i];
        score += input(4, 0, row, h) * (product > 0 ? product : 0);
    }
    return score;
}

/* How many tokens the row sees that come before this one in the order of scores. */
static int32_t naive_place(const double *scores, int32_t seen, int32_t token)
{
    int32_t before = 0;

    for (int32_t t = 0; t < seen; t++)
        before += scores[t] > scores[token] + 1e-5 ||
                  (fabs(scores[t] - scores[token]) <= 1e-5 && t < token);
    return before;
}

START_TEST(test_rows_choose_the_tokens_with_the_largest_scores)
{
    struct rig *g = rig_open(2);

    run(g, &(struct piece){0, 0, LENGTH, 0}, 1);
    for (int32_t row = TOP_K; row < LENGTH; row++) {
        double scores[LENGTH];
        for (int32_t t = 0; t <= row; t++)
            scores[t] = naive_score(g, row, t);
        for (int i = 0; i < TOP_K; i++) {
            ck_assert_int_lt(naive_place(scores, row + 1, g->chosen[row][i]), TOP_K);
            ck_assert(i == 0 || g->chosen[row][i] > g->chosen[row][i - 1]);
        }
    }
    rig_close(g);
}
END_TEST

START_TEST(test_of_equal_scores_the_earlier_are_chosen)
{
    struct rig *g = rig_open(1);

    g->weight_scale = 0; /* some zeros are negative: they are equal too */
    run(g, &(struct piece){0, 0, LENGTH, 0}, 1);
    for (int32_t row = TOP_K; row < LENGTH; row++)
        for (int i = 0; i < TOP_K; i++)
            ck_assert_int_eq(g->chosen[row][i], i);
    rig_close(g);
}
END_TEST

START_TEST(test_how_a_sequence_is_cut_changes_neither_choice_nor_bits)
{
    struct rig *whole = rig_open(1), *cut = rig_open(2);

    run(whole, &(struct piece){0, 0, LENGTH, 0}, 1);
    run(cut, (struct piece[]){{1, 0, 40, 0}, {0, 0, 7, 0}}, 2);
    run(cut, (struct piece[]){{0, 7, 33, 0}, {1, 40, 90, 0}}, 2);
    run(cut, (struct piece[]){{1, 90, 91, 1}, {0, 33, 100, 0}}, 2);
    for (int32_t t = 100; t < LENGTH; t++) /* past TOP_K prompts and generated tokens are alike */
        run(cut, (struct piece[]){{0, t, t + 1, t % 2}, {1, t - 9, t - 8, 1}}, 2);
    ck_assert_mem_eq(whole->chosen, cut->chosen, sizeof(whole->chosen));
    ck_assert_mem_eq(whole->result, cut->result, sizeof(whole->result));
    rig_close(whole);
    rig_close(cut);
}
END_TEST

static void add(TCase *t)
{
    tcase_add_test(t, test_rows_choose_the_tokens_with_the_largest_scores);
    tcase_add_test(t, test_of_equal_scores_the_earlier_are_chosen);
    tcase_add_test(t, test_how_a_sequence_is_cut_changes_neither_choice_nor_bits);
}

UNIT_MAIN("cpu_indexer", add)
