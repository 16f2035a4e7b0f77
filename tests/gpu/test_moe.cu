/* moe_experts against plain products, pair by pair: odd sizes, skewed routing, padding rows, many
 * rows, the same bits again and in other batches. */
#include "tests/gpu/moe_check.cuh"

static int failures;

enum matrix { GATE, UP, DOWN, SHARED_GATE, SHARED_UP, SHARED_DOWN, N_MATRICES };

struct layer {
    bf16 *data[N_MATRICES];
    struct moe_exact exact;
};

static struct layer new_layer(int d, int i, int experts, int top_k, int shared)
{
    struct layer l;
    float *exact[N_MATRICES];

    for (int k = 0; k < N_MATRICES; k++) {
        int64_t n = (int64_t)(k < SHARED_GATE ? experts : shared) * d * i;
        bool down = k == DOWN || k == SHARED_DOWN;
        l.data[k] = random_matrix<bf16>(n, 1 / sqrtf((float)(down ? i : d)));
        exact[k] = widen(l.data[k], n);
    }
    l.exact = {d,
               i,
               experts,
               top_k,
               shared,
               exact[GATE],
               exact[UP],
               exact[DOWN],
               exact[SHARED_GATE],
               exact[SHARED_UP],
               exact[SHARED_DOWN]};
    return l;
}

static void free_layer(struct layer *l)
{
    for (bf16 *p : l->data)
        CHECK(cudaFree(p));
    for (const float *p : {l->exact.gate, l->exact.up, l->exact.down, l->exact.shared_gate,
                           l->exact.shared_up, l->exact.shared_down})
        CHECK(cudaFree((void *)p));
}

static void test_moe(const struct layer &l, int m, enum routing how, bool with_residual,
                     int invariant)
{
    const struct moe_exact &e = l.exact;
    size_t bytes = moe_workspace(m, e.d, e.i, e.experts, e.top_k, e.shared);
    struct moe_case c = new_case(e, m, how, with_residual, invariant, bytes, 0);

    c.args.gate = l.data[GATE];
    c.args.up = l.data[UP];
    c.args.down = l.data[DOWN];
    c.args.shared_gate = l.data[SHARED_GATE];
    c.args.shared_up = l.data[SHARED_UP];
    c.args.shared_down = l.data[SHARED_DOWN];
    failures += check_case(
        e, &c, 6e-3, m * e.top_k <= MOE_SMALL_PAIRS && (m <= 16 || invariant),
        [&] { return succeeded(c.what, moe_experts(&c.args, nullptr)); },
        [](const bf16 *p, int rows, int n) { return widen(p, (int64_t)rows * n); });
    free_case(&c);
}

/* An argument: only what a sanitizer can do in a short time. */
int main(int argc, char **argv)
{
    bool quick = argc > 1;

    (void)argv;
    const int shapes[][5] = {
        {64, 32, 4, 2, 0}, {128, 40, 8, 3, 1}, {256, 128, 16, 4, 2}, {200, 72, 5, 5, 1}};

    for (auto &s : shapes) {
        struct layer l = new_layer(s[0], s[1], s[2], s[3], s[4]);
        for (int m : {1, 2, 3, 5, 8, 11, 16, 17, 33, 64, 65, 130, 256, 600, 1000})
            for (enum routing how : {EVEN, ONE_EXPERT, PADDED})
                if (!quick || (how == PADDED && (m == 3 || m == 16 || m == 65 || m == 1000)))
                    test_moe(l, m, how, m % 2, m / 2 % 2);
        free_layer(&l);
    }
    printf("small shapes: %d failures\n", failures);
    if (quick)
        return failures != 0;
    struct layer l = new_layer(2048, 1408, 64, 6, 2);
    for (int m : {1, 3, 8, 11, 16, 32, 100, 256, 1000, 2048})
        test_moe(l, m, m == 100 ? ONE_EXPERT : m == 3 ? PADDED : EVEN, m != 1, m == 256);
    free_layer(&l);
    printf("DeepSeek-V2-Lite: %d failures\n", failures);
    printf("%s\n", failures ? "FAILED" : "ok");
    return failures != 0;
}
