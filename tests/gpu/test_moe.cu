/* moe_experts against plain products, pair by pair: odd sizes, skewed routing, padding rows, many
 * rows, the same bits again and in other batches. */
#include "kernels/cuda/moe.h"
#include "tests/gpu/gemm_check.cuh"

#include <math.h>
#include <string.h>

static int failures;

struct layer {
    int d, i, experts, top_k, shared;
    bf16 *gate, *up, *down, *shared_gate, *shared_up, *shared_down;
};

static struct layer new_layer(int d, int i, int experts, int top_k, int shared)
{
    struct layer l = {d, i, experts, top_k, shared, 0, 0, 0, 0, 0, 0};
    int64_t n = (int64_t)experts * d * i, s = (int64_t)shared * d * i;

    l.up = random_matrix<bf16>(n, 1 / sqrtf((float)d));
    l.gate = random_matrix<bf16>(n, 1 / sqrtf((float)d));
    l.down = random_matrix<bf16>(n, 1 / sqrtf((float)i));
    l.shared_gate = random_matrix<bf16>(s, 1 / sqrtf((float)d));
    l.shared_up = random_matrix<bf16>(s, 1 / sqrtf((float)d));
    l.shared_down = random_matrix<bf16>(s, 1 / sqrtf((float)i));
    return l;
}

static void free_layer(struct layer *l)
{
    for (bf16 *p : {l->gate, l->up, l->down, l->shared_gate, l->shared_up, l->shared_down})
        CHECK(cudaFree(p));
}

/* hidden[pair][j] of (row, slot) pairs, rounded to bf16; slot >= top_k: shared. */
static __global__ void reference_hidden(struct layer l, const bf16 *x, const int *ids, bf16 *hidden)
{
    int slots = l.top_k + l.shared, pair = blockIdx.x, row = pair / slots, slot = pair % slots;
    int j = blockIdx.y * blockDim.x + threadIdx.x;
    int e = slot < l.top_k ? ids[row * l.top_k + slot] : slot - l.top_k;
    const bf16 *gate = slot < l.top_k ? l.gate : l.shared_gate;
    const bf16 *up = slot < l.top_k ? l.up : l.shared_up;
    float g = 0, u = 0;

    if (j >= l.i || e < 0)
        return;
    for (int k = 0; k < l.d; k++) {
        float v = (float)x[(int64_t)row * l.d + k];
        g += v * (float)gate[((int64_t)e * l.i + j) * l.d + k];
        u += v * (float)up[((int64_t)e * l.i + j) * l.d + k];
    }
    hidden[(int64_t)pair * l.i + j] = (bf16)(g / (1 + expf(-g)) * u);
}

static __global__ void reference_out(struct layer l, const bf16 *hidden, const int *ids,
                                     const float *weights, const bf16 *residual, float *out)
{
    int slots = l.top_k + l.shared, row = blockIdx.x, j = blockIdx.y * blockDim.x + threadIdx.x;

    if (j >= l.d)
        return;
    float sum = residual ? (float)residual[(int64_t)row * l.d + j] : 0;
    for (int s = 0; s < slots; s++) {
        bool routed = s < l.top_k;
        int e = routed ? ids[row * l.top_k + s] : s - l.top_k;
        const bf16 *h = hidden + ((int64_t)row * slots + s) * l.i;
        const bf16 *w = routed ? l.down + ((int64_t)e * l.d + j) * l.i
                               : l.shared_down + ((int64_t)j * l.shared + e) * l.i;
        float y = 0;
        if (e < 0)
            continue;
        for (int k = 0; k < l.i; k++)
            y += (float)h[k] * (float)w[k];
        sum += (routed ? weights[row * l.top_k + s] : 1.0f) * y;
    }
    out[(int64_t)row * l.d + j] = sum;
}

enum routing { EVEN, ONE_EXPERT, PADDED };

/* top_k distinct experts a row; ONE_EXPERT: the first is always the same; PADDED: each third row
 * has none. */
static std::vector<int> random_ids(int m, const struct layer &l, enum routing how)
{
    std::vector<int> ids((size_t)m * l.top_k);

    for (int r = 0; r < m; r++) {
        std::vector<int> order(l.experts);
        for (int e = 0; e < l.experts; e++)
            order[e] = e;
        for (int s = 0; s < l.top_k; s++) {
            std::swap(order[s], order[s + rand() % (l.experts - s)]);
            if (how == ONE_EXPERT && s == 0)
                std::swap(order[0], *std::find(order.begin(), order.end(), l.experts / 2));
            ids[(size_t)r * l.top_k + s] = how == PADDED && r % 3 == 2 ? -1 : order[s];
        }
    }
    return ids;
}

static void test_moe(const struct layer &l, int m, enum routing how, bool with_residual,
                     int invariant)
{
    int slots = l.top_k + l.shared;
    bf16 *x = random_matrix<bf16>((int64_t)m * l.d, 1.0f), *out = poisoned<bf16>((int64_t)m * l.d);
    bf16 *residual = random_matrix<bf16>((int64_t)m * l.d, 0.5f);
    bf16 *hidden = poisoned<bf16>((int64_t)m * slots * l.i);
    float *want = poisoned<float>((int64_t)m * l.d);
    float *weights = random_matrix<float>((int64_t)m * l.top_k, 0.4f);
    auto ids = random_ids(m, l, how);
    size_t bytes = moe_workspace(m, l.d, l.i, l.experts, l.top_k, l.shared);
    char *workspace = poisoned<char>((int64_t)bytes), what[160];
    int *device_ids;
    struct moe_args a;

    CHECK(cudaMalloc(&device_ids, ids.size() * 4));
    CHECK(cudaMemcpy(device_ids, ids.data(), ids.size() * 4, cudaMemcpyHostToDevice));
    memset(&a, 0, sizeof(a));
    a.x = x;
    a.x_stride = l.d;
    a.ids = device_ids;
    a.weights = weights;
    a.gate = l.gate;
    a.up = l.up;
    a.down = l.down;
    a.shared_gate = l.shared_gate;
    a.shared_up = l.shared_up;
    a.shared_down = l.shared_down;
    a.residual = with_residual ? residual : nullptr;
    a.out = out;
    a.out_stride = l.d;
    a.m = m;
    a.d = l.d;
    a.i = l.i;
    a.experts = l.experts;
    a.top_k = l.top_k;
    a.shared = l.shared;
    a.batch_invariant = invariant;
    a.workspace = workspace;
    a.workspace_bytes = bytes;
    snprintf(what, sizeof(what),
             "moe d %d i %d experts %d top %d shared %d m %d routing %d invariant %d", l.d, l.i,
             l.experts, l.top_k, l.shared, m, how, invariant);
    int status = moe_experts(&a, nullptr);
    if (status) {
        printf("FAIL %s: status %d %s\n", what, status, cudaGetErrorString(cudaGetLastError()));
        failures++;
    }
    cudaError_t e = cudaDeviceSynchronize();
    if (e != cudaSuccess) {
        printf("FAIL %s: %s\n", what, cudaGetErrorString(e));
        exit(1);
    }
    reference_hidden<<<dim3(m * slots, (l.i + 127) / 128), 128>>>(l, x, device_ids, hidden);
    reference_out<<<dim3(m, (l.d + 127) / 128), 128>>>(l, hidden, device_ids, weights,
                                                       a.residual ? residual : nullptr, want);
    CHECK(cudaGetLastError());
    CHECK(cudaDeviceSynchronize());
    failures += !compare(what, out, want, m, l.d, l.d, 6e-3);

    auto first = to_host(out, (int64_t)m * l.d);
    CHECK(cudaMemset(out, 0xff, (size_t)m * l.d * 2));
    moe_experts(&a, nullptr);
    CHECK(cudaDeviceSynchronize());
    if (first != to_host(out, (int64_t)m * l.d)) {
        printf("FAIL %s: other bits the second time\n", what);
        failures++;
    }
    if (m > 1 && m * l.top_k <= MOE_SMALL_PAIRS &&
        (m <= 16 || invariant)) { /* the first row alone */
        a.m = 1;
        moe_experts(&a, nullptr);
        CHECK(cudaDeviceSynchronize());
        if (memcmp(first.data(), to_host(out, l.d).data(), (size_t)l.d * 4)) {
            printf("FAIL %s: row 0 alone has other bits\n", what);
            failures++;
        }
    }
    for (void *p : {(void *)x, (void *)out, (void *)residual, (void *)hidden, (void *)want,
                    (void *)weights, (void *)workspace, (void *)device_ids})
        CHECK(cudaFree(p));
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
