/* What the programs that test experts share: the layer in double, random choices, one call and what
 * must hold of it. */
#pragma once

#include "kernels/cuda/moe.h"
#include "tests/gpu/gemm_check.cuh"

#include <math.h>
#include <string.h>

/* A layer's weights, exactly: (experts, i, d), (experts, d, i), and as moe.h has the shared ones.
 */
struct moe_exact {
    int d, i, experts, top_k, shared;
    const float *gate, *up, *down, *shared_gate, *shared_up, *shared_down;
};

/* hidden[pair][j] of (row, slot) pairs, rounded to bf16; slot >= top_k: shared. */
static __global__ void reference_hidden(struct moe_exact l, const float *x, const int *ids,
                                        bf16 *hidden)
{
    int slots = l.top_k + l.shared, pair = blockIdx.x, row = pair / slots, slot = pair % slots;
    int j = blockIdx.y * blockDim.x + threadIdx.x;
    int e = slot < l.top_k ? ids[row * l.top_k + slot] : slot - l.top_k;
    const float *gate = slot < l.top_k ? l.gate : l.shared_gate;
    const float *up = slot < l.top_k ? l.up : l.shared_up;
    double g = 0, u = 0;

    if (j >= l.i)
        return;
    if (e < 0) {
        hidden[(int64_t)pair * l.i + j] = 0;
        return;
    }
    for (int k = 0; k < l.d; k++) {
        double v = x[(int64_t)row * l.d + k];
        g += v * gate[((int64_t)e * l.i + j) * l.d + k];
        u += v * up[((int64_t)e * l.i + j) * l.d + k];
    }
    hidden[(int64_t)pair * l.i + j] = (bf16)(float)(g / (1 + exp(-g)) * u);
}

static __global__ void reference_out(struct moe_exact l, const float *hidden, const int *ids,
                                     const float *weights, const bf16 *residual, float *out)
{
    int slots = l.top_k + l.shared, row = blockIdx.x, j = blockIdx.y * blockDim.x + threadIdx.x;

    if (j >= l.d)
        return;
    double sum = residual ? (float)residual[(int64_t)row * l.d + j] : 0;
    for (int s = 0; s < slots; s++) {
        bool routed = s < l.top_k;
        int e = routed ? ids[row * l.top_k + s] : s - l.top_k;
        const float *h = hidden + ((int64_t)row * slots + s) * l.i;
        const float *w = routed ? l.down + ((int64_t)e * l.d + j) * l.i
                                : l.shared_down + ((int64_t)j * l.shared + e) * l.i;
        double y = 0;
        if (e < 0)
            continue;
        for (int k = 0; k < l.i; k++)
            y += (double)h[k] * w[k];
        sum += (routed ? weights[row * l.top_k + s] : 1.0f) * y;
    }
    out[(int64_t)row * l.d + j] = (float)sum;
}

enum routing { EVEN, ONE_EXPERT, PADDED };

/* top_k distinct experts a row; ONE_EXPERT: the first is always the same; PADDED: each third row
 * has none. */
static std::vector<int> random_ids(int m, const struct moe_exact &l, enum routing how)
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

static __global__ void widen_kernel(const bf16 *in, float *out, int64_t n)
{
    int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;

    if (i < n)
        out[i] = (float)in[i];
}

static inline float *widen(const bf16 *in, int64_t n)
{
    float *out;

    CHECK(cudaMalloc(&out, (size_t)(n ? n : 1) * sizeof(float)));
    widen_kernel<<<(unsigned)(n / 256 + 1), 256>>>(in, out, n);
    CHECK(cudaGetLastError());
    return out;
}

/* One call with fresh inputs; `args` lacks the weights alone. */
struct moe_case {
    struct moe_args args;
    bf16 *x, *residual, *out;
    float *weights;
    int *ids;
    char *workspace, what[160];
};

/* `room` bytes at the workspace's beginning are zero, what else is written is poison before. */
static struct moe_case new_case(const struct moe_exact &l, int m, enum routing how,
                                bool with_residual, int invariant, size_t workspace, size_t room)
{
    struct moe_case c;
    auto ids = random_ids(m, l, how);

    memset(&c, 0, sizeof(c));
    c.x = random_matrix<bf16>((int64_t)m * l.d, 1.0f);
    c.residual = random_matrix<bf16>((int64_t)m * l.d, 0.5f);
    c.out = poisoned<bf16>((int64_t)m * l.d);
    c.weights = random_matrix<float>((int64_t)m * l.top_k, 0.4f);
    c.workspace = poisoned<char>((int64_t)workspace);
    CHECK(cudaMemset(c.workspace, 0, room));
    CHECK(cudaMalloc(&c.ids, ids.size() * 4));
    CHECK(cudaMemcpy(c.ids, ids.data(), ids.size() * 4, cudaMemcpyHostToDevice));
    c.args.x = c.x;
    c.args.x_stride = c.args.out_stride = c.args.d = l.d;
    c.args.ids = c.ids;
    c.args.weights = c.weights;
    c.args.residual = with_residual ? c.residual : nullptr;
    c.args.out = c.out;
    c.args.m = m;
    c.args.i = l.i;
    c.args.experts = l.experts;
    c.args.top_k = l.top_k;
    c.args.shared = l.shared;
    c.args.batch_invariant = invariant;
    c.args.workspace = c.workspace;
    c.args.workspace_bytes = workspace;
    snprintf(c.what, sizeof(c.what),
             "moe d %d i %d experts %d top %d shared %d m %d routing %d invariant %d", l.d, l.i,
             l.experts, l.top_k, l.shared, m, how, invariant);
    return c;
}

static void free_case(struct moe_case *c)
{
    for (void *p : {(void *)c->x, (void *)c->residual, (void *)c->out, (void *)c->weights,
                    (void *)c->ids, (void *)c->workspace})
        CHECK(cudaFree(p));
}

/* Norm of the difference to the reference, the same bits again, and, with `alone`, for the first
 * row alone; returns how much of it failed. call(): the experts with c->args, false if they failed;
 * seen(values, rows, n): floats, newly allocated, as the products see bf16 values. */
template <class Call, class Seen>
static int check_case(const struct moe_exact &l, struct moe_case *c, double tolerance, bool alone,
                      Call &&call, Seen &&seen)
{
    int m = c->args.m, slots = l.top_k + l.shared, failed = 0;
    bf16 *hidden = poisoned<bf16>((int64_t)m * slots * l.i);
    float *want = poisoned<float>((int64_t)m * l.d);

    if (!call())
        return 1;
    float *values = seen(c->x, m, l.d);
    reference_hidden<<<dim3(m * slots, (l.i + 127) / 128), 128>>>(l, values, c->ids, hidden);
    CHECK(cudaGetLastError());
    float *seen_hidden = seen(hidden, m * slots, l.i);
    reference_out<<<dim3(m, (l.d + 127) / 128), 128>>>(
        l, seen_hidden, c->ids, c->weights, c->args.residual ? c->residual : nullptr, want);
    CHECK(cudaGetLastError());
    CHECK(cudaDeviceSynchronize());
    failed += !compare(c->what, c->out, want, m, l.d, l.d, tolerance);

    auto first = to_host(c->out, (int64_t)m * l.d);
    CHECK(cudaMemset(c->out, 0xff, (size_t)m * l.d * 2));
    failed += !call();
    if (first != to_host(c->out, (int64_t)m * l.d)) {
        printf("FAIL %s: other bits the second time\n", c->what);
        failed++;
    }
    if (alone && m > 1) {
        c->args.m = 1;
        failed += !call();
        if (memcmp(first.data(), to_host(c->out, l.d).data(), (size_t)l.d * 4)) {
            printf("FAIL %s: row 0 alone has other bits\n", c->what);
            failed++;
        }
    }
    for (void *p : {(void *)hidden, (void *)want, (void *)values, (void *)seen_hidden})
        CHECK(cudaFree(p));
    return failed;
}
