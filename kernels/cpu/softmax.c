/* exp in eight lanes, and the two functions made of it: a softmax over blocks, and SwiGLU. */
#include "kernels/cpu/cpu.h"

#include <math.h>

typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));

/* x = exp(x) to within 2 units in the last place; 0 below -87.3, where it would be subnormal, and
 * held at exp(88) above. exp(x) = 2^n * exp(f), n = round(x / ln 2), |f| <= ln 2 / 2, and exp(f) by
 * the Cephes polynomial. Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits. */
CPU_INLINE void exp8(cpu_v8 *x)
{
    const float rounder = 12582912.0f, log2e = 1.44269504088896f;
    const float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    cpu_v8 lowest = (cpu_v8){0} - 87.3f, highest = (cpu_v8){0} + 88.0f, v = *x;
    i32x8 vanishes = v<lowest, large = v> highest;

    v = (cpu_v8)(((i32x8)v & ~large) | ((i32x8)highest & large));
    cpu_v8 shifted = v * log2e + rounder;
    cpu_v8 n = shifted - rounder;
    cpu_v8 f = v - n * ln2_high - n * ln2_low;
    cpu_v8 p = f * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * (f * f) + f + 1.0f;
    cpu_v8 power = (cpu_v8)(((u32x8)shifted + 127u) << 23);
    *x = (cpu_v8)((i32x8)(p * power) & ~vanishes);
}

CPU_CLONES float cpu_softmax_block(float *scores, int64_t n, float scale, float *max, float *sum)
{
    cpu_v8_unaligned *lanes = (cpu_v8_unaligned *)scores;
    int64_t blocks = (n + CPU_LANES - 1) / CPU_LANES;
    cpu_v8 total = {0};
    float highest = *max;

    for (int64_t i = 0; i < n; i++) {
        scores[i] *= scale;
        highest = scores[i] > highest ? scores[i] : highest;
    }
    for (int64_t i = n; i < blocks * CPU_LANES; i++)
        scores[i] = -INFINITY;
    for (int64_t b = 0; b < blocks; b++) {
        cpu_v8 e = lanes[b] - highest;
        exp8(&e);
        lanes[b] = e;
        total += e;
    }
    float block_sum = 0;
    for (int l = 0; l < CPU_LANES; l++)
        block_sum += total[l];
    float factor = *max == highest ? 1.0f : expf(*max - highest);
    *max = highest;
    *sum = *sum * factor + block_sum;
    return factor;
}

CPU_CLONES void cpu_swiglu_row(float *gate, const float *up, int64_t n)
{
    int64_t i = 0;

    for (; i + CPU_LANES <= n; i += CPU_LANES) {
        cpu_v8 g = *(const cpu_v8_unaligned *)(gate + i), e = -g;
        exp8(&e);
        *(cpu_v8_unaligned *)(gate + i) = g / (e + 1.0f) * *(const cpu_v8_unaligned *)(up + i);
    }
    if (i < n) {
        cpu_v8 g = {0};
        for (int64_t l = 0; i + l < n; l++)
            g[l] = gate[i + l];
        cpu_v8 e = -g;
        exp8(&e);
        g = g / (e + 1.0f);
        for (int64_t l = 0; i + l < n; l++)
            gate[i + l] = g[l] * up[i + l];
    }
}
