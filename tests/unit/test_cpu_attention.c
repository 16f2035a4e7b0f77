/* Attention of the CPU backend: both forms against a naive one in double precision, over shuffled
 * pages with NaN wherever nothing was written; and that neither chunks, nor the rest of the batch,
 * nor threads change a bit. */
#include "tests/unit/test_cpu.h"

enum { H = 3, LORA = 44, NOPE = 12, ROPE = 8, V = 20, Q_HEAD = NOPE + ROPE, KV = LORA + ROPE };
enum { SEQ_PAGES = 5, MAX_CONTEXT = 300, N_SEQS = 12, CACHE_PAGES = N_SEQS * SEQ_PAGES + 3 };

/* One attention layer. Queries and latents of (sequence, position) are fixed random numbers, so
 * that a sequence can be run in any pieces. */
struct rig {
    struct backend *be;
    struct mla_layer layer;
    struct rope_config rope;
    struct tensor norm, q, kv, out;
    struct batch *batch;
    float result[N_SEQS][MAX_CONTEXT][H * V];
};

/* A piece of a sequence: its tokens from .. to - 1. */
struct piece {
    int32_t seq, from, to, absorbed;
};

static struct rig *rig_open(int threads, enum dtype dtype)
{
    struct rig *g = calloc(1, sizeof(*g));
    struct backend *be = g->be = open_cpu(threads);
    int64_t cache[] = {CACHE_PAGES, KV_PAGE_TOKENS, KV};

    g->layer.shape = (struct mla_shape){H, LORA, NOPE, ROPE, V, 0.37f};
    g->layer.kv_b = RANDOM_WEIGHT(be, 1, dtype, H * (NOPE + V), LORA);
    be->ops->alloc(be, &g->layer.kv_cache, be->kv_dtype, 3, cache, &test_error);
    for (int64_t i = 0; i < tensor_elements(&g->layer.kv_cache); i++)
        ((float *)g->layer.kv_cache.data)[i] = NAN;
    g->norm = RANDOM_WEIGHT(be, 2, DTYPE_F32, LORA);
    g->q = new_tensor(be, DTYPE_F32, TEST_ROWS, H * Q_HEAD);
    g->kv = new_tensor(be, DTYPE_F32, TEST_ROWS, KV);
    g->out = new_tensor(be, DTYPE_F32, TEST_ROWS, H * V);
    g->rope = (struct rope_config){.dim = ROPE, .magnitude = 1.25f};
    for (int i = 0; i < ROPE / 2; i++)
        g->rope.inv_freq[i] = powf(100, -(float)i / (ROPE / 2));
    g->batch = batch_new((struct batch_limits){TEST_ROWS, TEST_SEQS, TEST_PAGES, 0});
    struct backend_shapes shapes = {.mla = g->layer.shape};
    ck_assert_int_eq(be->ops->reserve(be, &shapes, &test_error), 0);
    return g;
}

static void rig_close(struct rig *g)
{
    RELEASE(g->be, &g->layer.kv_b, &g->layer.kv_cache, &g->norm, &g->q, &g->kv, &g->out);
    g->be->ops->close(g->be);
    free(g->batch);
    free(g);
}

static float q_at(int32_t seq, int32_t position, int32_t i)
{
    return 2 * random_at(((uint64_t)seq * 1000 + (uint64_t)position) * 1000 + (uint64_t)i);
}

static float kv_at(int32_t seq, int32_t position, int32_t i)
{
    return q_at(seq + 500, position, i);
}

/* Pages in an order of no meaning. */
static int32_t page_of(int32_t seq, int32_t i)
{
    return (seq * SEQ_PAGES + i + 1) * 31 % CACHE_PAGES; /* 31 has no factor in common with 63 */
}

/* One step of these pieces; the rows of `out` go to g->result. */
static void run(struct rig *g, const struct piece *pieces, int n)
{
    const struct backend_ops *ops = g->be->ops;
    int32_t pages[SEQ_PAGES], tokens[TEST_ROWS] = {0};

    batch_clear(g->batch);
    for (int p = 0; p < n; p++) {
        const struct piece *at = &pieces[p];
        int32_t first = g->batch->n_rows;
        for (int32_t i = 0; i < SEQ_PAGES; i++)
            pages[i] = page_of(at->seq, i);
        batch_add(g->batch,
                  (struct batch_seq){
                      .n_rows = at->to - at->from, .kv_len = at->to, .absorbed = at->absorbed},
                  tokens, pages, 0);
        for (int32_t t = at->from; t < at->to; t++) {
            for (int32_t i = 0; i < H * Q_HEAD; i++)
                ((float *)g->q.data)[(first + t - at->from) * H * Q_HEAD + i] = q_at(at->seq, t, i);
            for (int32_t i = 0; i < KV; i++)
                ((float *)g->kv.data)[(first + t - at->from) * KV + i] = kv_at(at->seq, t, i);
        }
    }
    struct tensor q = tensor_rows(g->q, g->batch->n_rows);
    struct tensor kv = tensor_rows(g->kv, g->batch->n_rows);
    struct tensor out = tensor_rows(g->out, g->batch->n_rows);
    for (int64_t i = 0; i < tensor_elements(&out); i++)
        ((float *)out.data)[i] = NAN; /* every row must be written */
    ops->begin(g->be, g->batch);
    ops->rope_kv_write(g->be, q, kv, &g->layer, g->norm, 1e-5f, &g->rope);
    ops->mla_prefill(g->be, out, q, &g->layer);
    ops->mla_decode(g->be, out, q, &g->layer);
    ck_assert_int_eq(ops->finish(g->be, &test_error), 0);
    for (int p = 0, row = 0; p < n; p++)
        for (int32_t t = pieces[p].from; t < pieces[p].to; t++, row++)
            memcpy(g->result[pieces[p].seq][t], (float *)out.data + row * H * V,
                   H * V * sizeof(float));
}

/* Rotates dims of x in place: pairs (2i, 2i+1), or (i, i + ROPE/2). */
static void naive_rope(double *x, int32_t position, const struct rope_config *rope)
{
    for (int i = 0; i < ROPE / 2; i++) {
        int a = rope->half_split ? i : 2 * i, b = rope->half_split ? i + ROPE / 2 : 2 * i + 1;
        double angle = (float)position * rope->inv_freq[i];
        double first = x[a], second = x[b], m = rope->magnitude;
        x[a] = m * (first * cos(angle) - second * sin(angle));
        x[b] = m * (second * cos(angle) + first * sin(angle));
    }
}

struct token {
    double k[H][Q_HEAD], v[H][V];
};

/* Every head's key (nope, then rope) and value at a position. */
static void naive_token(const struct rig *g, int32_t seq, int32_t position, struct token *token)
{
    double c[KV], squares = 0;

    for (int i = 0; i < KV; i++)
        c[i] = kv_at(seq, position, i);
    for (int i = 0; i < LORA; i++)
        squares += c[i] * c[i];
    for (int i = 0; i < LORA; i++)
        c[i] *= f32_of(&g->norm, i) / sqrt(squares / LORA + 1e-5);
    naive_rope(c + LORA, position, &g->rope);
    for (int h = 0; h < H; h++) {
        for (int i = 0; i < NOPE + V; i++) {
            double sum = 0;
            for (int j = 0; j < LORA; j++)
                sum += f32_of(&g->layer.kv_b, (h * (NOPE + V) + i) * LORA + j) * c[j];
            *(i < NOPE ? &token->k[h][i] : &token->v[h][i - NOPE]) = sum;
        }
        memcpy(token->k[h] + NOPE, c + LORA, ROPE * sizeof(double));
    }
}

static void naive_attention(const struct rig *g, const struct token *tokens, int32_t seq,
                            int32_t position, int h, double *out)
{
    double q[Q_HEAD], sum = 0;

    for (int i = 0; i < Q_HEAD; i++)
        q[i] = q_at(seq, position, h * Q_HEAD + i);
    naive_rope(q + NOPE, position, &g->rope);
    memset(out, 0, V * sizeof(double));
    for (int32_t t = 0; t <= position; t++) {
        double score = 0;
        for (int i = 0; i < Q_HEAD; i++)
            score += q[i] * tokens[t].k[h][i];
        double p = exp(score * (double)0.37f);
        sum += p;
        for (int i = 0; i < V; i++)
            out[i] += p * tokens[t].v[h][i];
    }
    for (int i = 0; i < V; i++)
        out[i] /= sum;
}

static void check_rows(const struct rig *g, int32_t seq, int32_t length)
{
    struct token *tokens = calloc((size_t)length, sizeof(*tokens));
    double expected[V];

    for (int32_t t = 0; t < length; t++)
        naive_token(g, seq, t, &tokens[t]);
    for (int32_t t = 0; t < length; t++) {
        for (int h = 0; h < H; h++) {
            naive_attention(g, tokens, seq, t, h, expected);
            for (int i = 0; i < V; i++)
                assert_near(g->result[seq][t][h * V + i], expected[i], 3e-5);
        }
    }
    free(tokens);
}

static const int32_t lengths[] = {1, 2, 63, 64, 65, 128, 130, 290};
enum { N_LENGTHS = sizeof(lengths) / sizeof(lengths[0]) };

START_TEST(test_prefill_is_causal_attention_over_the_pages)
{
    for (int form = 0; form < 3; form++) {
        struct rig *g = rig_open(2, form == 1 ? DTYPE_BF16 : DTYPE_F32);
        g->rope.half_split = form == 2;
        for (int32_t s = 0; s < N_LENGTHS; s++) {
            run(g, &(struct piece){s, 0, lengths[s], 0}, 1);
            check_rows(g, s, lengths[s]);
        }
        rig_close(g);
    }
}
END_TEST

START_TEST(test_decode_is_causal_attention_over_the_pages)
{
    for (int form = 0; form < 2; form++) {
        struct rig *g = rig_open(2, form ? DTYPE_BF16 : DTYPE_F32);
        for (int32_t s = 0; s < N_LENGTHS; s++) {
            run(g, &(struct piece){s, 0, lengths[s], 1}, 1); /* recomputed: many rows at once */
            check_rows(g, s, lengths[s]);
        }
        rig_close(g);
    }
}
END_TEST

START_TEST(test_prefill_and_decode_agree)
{
    struct rig *a = rig_open(1, DTYPE_F32), *b = rig_open(1, DTYPE_F32);

    run(a, &(struct piece){0, 0, 290, 0}, 1);
    run(b, &(struct piece){0, 0, 290, 1}, 1);
    for (int t = 0; t < 290; t++)
        for (int i = 0; i < H * V; i++)
            assert_near(a->result[0][t][i], b->result[0][t][i], 1e-5);
    rig_close(a);
    rig_close(b);
}
END_TEST

START_TEST(test_chunks_of_a_prompt_change_no_bit)
{
    static const int32_t sizes[] = {1, 7, 64, 100, 289};
    struct rig *whole = rig_open(2, DTYPE_F32);

    run(whole, &(struct piece){0, 0, 290, 0}, 1);
    for (size_t c = 0; c < sizeof(sizes) / sizeof(sizes[0]); c++) {
        struct rig *cut = rig_open(1, DTYPE_F32);
        for (int32_t at = 0; at < 290; at += sizes[c])
            run(cut, &(struct piece){0, at, at + sizes[c] < 290 ? at + sizes[c] : 290, 0}, 1);
        assert_same_bits(cut->result[0], whole->result[0], 290 * sizeof(whole->result[0][0]));
        rig_close(cut);
    }
    rig_close(whole);
}
END_TEST

START_TEST(test_decoding_one_by_one_or_several_at_once_changes_no_bit)
{
    struct rig *ragged = rig_open(2, DTYPE_F32), *single = rig_open(1, DTYPE_F32);

    run(ragged, &(struct piece){0, 0, 140, 1}, 1);
    for (int32_t t = 0; t < 140; t++)
        run(single, &(struct piece){0, t, t + 1, 1}, 1);
    assert_same_bits(single->result[0], ragged->result[0], 140 * sizeof(single->result[0][0]));
    rig_close(ragged);
    rig_close(single);
}
END_TEST

START_TEST(test_a_sequence_has_the_same_bits_alone_and_in_any_batch)
{
    static const struct piece mixed[] = {
        {0, 0, 70, 0},  {1, 40, 41, 1},   {2, 130, 133, 1},  {3, 64, 65, 1},
        {4, 63, 64, 1}, {5, 20, 90, 0},   {6, 100, 101, 1},  {7, 200, 201, 1},
        {8, 0, 1, 0},   {9, 250, 251, 1}, {10, 127, 128, 1}, {11, 0, 65, 0},
    };
    enum { N = sizeof(mixed) / sizeof(mixed[0]) };
    for (int threads = 1; threads <= 3; threads++) {
        struct rig *together = rig_open(threads, DTYPE_BF16), *alone = rig_open(1, DTYPE_BF16);
        for (int p = 0; p < N; p++) {
            struct piece context = {mixed[p].seq, 0, mixed[p].from, 0};
            if (context.to > 0) {
                run(together, &context, 1);
                run(alone, &context, 1);
            }
            run(alone, &mixed[p], 1);
        }
        run(together, mixed, N);
        for (int p = 0; p < N; p++)
            assert_same_bits(alone->result[p], together->result[p], sizeof(alone->result[p]));
        rig_close(together);
        rig_close(alone);
    }
}
END_TEST

START_TEST(test_angles_are_renewed_with_every_step)
{
    struct rig *g = rig_open(1, DTYPE_F32);

    run(g, &(struct piece){0, 0, 10, 0}, 1);
    g->rope.half_split = 1; /* another configuration within reach of the first one's angles */
    g->rope.inv_freq[1] *= 3;
    run(g, &(struct piece){1, 0, 10, 0}, 1);
    run(g, &(struct piece){1, 10, 20, 0}, 1);
    check_rows(g, 1, 20);
    rig_close(g);
}
END_TEST

static void add(TCase *t)
{
    tcase_add_test(t, test_prefill_is_causal_attention_over_the_pages);
    tcase_add_test(t, test_decode_is_causal_attention_over_the_pages);
    tcase_add_test(t, test_prefill_and_decode_agree);
    tcase_add_test(t, test_chunks_of_a_prompt_change_no_bit);
    tcase_add_test(t, test_decoding_one_by_one_or_several_at_once_changes_no_bit);
    tcase_add_test(t, test_a_sequence_has_the_same_bits_alone_and_in_any_batch);
    tcase_add_test(t, test_angles_are_renewed_with_every_step);
}

UNIT_MAIN("cpu_attention", add)
