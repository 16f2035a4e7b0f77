/* What the programs that test experts with quantised weights share: the layer in double, and random
 * choices. */
#pragma once

#include "tests/gpu/gemm_check.cuh"

#include <math.h>

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
