/* Dot products and weighted sums: where a model's time goes.
 *
 * Both have one order of summation per result. A dot product keeps eight partial sums (lanes), lane
 * l taking the elements i with i % 8 == l in rising order; a last part shorter than eight is padded
 * with zeros; the lanes are then added in the fixed order of sum_lanes(). A weighted sum adds its
 * terms one after another. Several rows and outputs are computed together (a tile) only so that
 * what was loaded once is used several times. */
#include "kernels/cpu/cpu.h"

#include <string.h>

typedef uint16_t u16x8 __attribute__((vector_size(16)));
typedef uint16_t u16x8_unaligned __attribute__((vector_size(16), aligned(2), may_alias));
typedef float v4 __attribute__((vector_size(16)));

enum { MAX_TILE = 4 };

/* Eight elements from `at` on. A BF16 is the upper half of an F32: a zero goes below each. */
CPU_INLINE void load(cpu_v8 *out, const void *p, int64_t at, enum dtype dtype)
{
    if (dtype == DTYPE_BF16) {
        u16x8 h = *(const u16x8_unaligned *)((const uint16_t *)p + at), z = {0};
        *out = (cpu_v8)__builtin_shufflevector(z, h, 0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14,
                                               0, 15);
    } else {
        *out = *(const cpu_v8_unaligned *)((const float *)p + at);
    }
}

CPU_INLINE float load_one(const void *p, int64_t at, enum dtype dtype)
{
    if (dtype == DTYPE_F32)
        return ((const float *)p)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)p)[at] << 16;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* The elements at .. end - 1, fewer than eight; zeros in the other lanes. */
CPU_INLINE void load_tail(cpu_v8 *out, const void *p, int64_t at, int64_t end, enum dtype dtype)
{
    *out = (cpu_v8){0};
    for (int64_t i = at; i < end; i++)
        (*out)[i - at] = load_one(p, i, dtype);
}

CPU_INLINE float sum_lanes(const cpu_v8 *v)
{
    v4 half =
        __builtin_shufflevector(*v, *v, 0, 1, 2, 3) + __builtin_shufflevector(*v, *v, 4, 5, 6, 7);
    v4 pair = half + __builtin_shufflevector(half, half, 2, 3, 0, 1);

    return pair[0] + pair[1];
}

/* A tile of `rows` x `outs` dot products from row `r` and output `o` on. The counts and the dtype
 * are constants where this is inlined, so that the loops unroll and `acc` stays in registers. */
CPU_INLINE void dots_tile(const struct cpu_dots *d, int64_t r, int64_t o, int rows, int outs,
                          enum dtype dtype)
{
    const float *x[MAX_TILE];
    const void *w[MAX_TILE];
    cpu_v8 acc[MAX_TILE][MAX_TILE] = {0}, xv[MAX_TILE], wv;
    int64_t whole = d->k - d->k % CPU_LANES;

    for (int a = 0; a < rows; a++)
        x[a] = d->x + (size_t)(d->x_index ? d->x_index[r + a] : r + a) * d->x_stride;
    for (int b = 0; b < outs; b++)
        w[b] = cpu_rows_from(d->w, o + b).data;

    for (int64_t i = 0; i < whole; i += CPU_LANES) {
#pragma GCC unroll 4
        for (int a = 0; a < rows; a++)
            load(&xv[a], x[a], i, DTYPE_F32);
#pragma GCC unroll 4
        for (int b = 0; b < outs; b++) {
            load(&wv, w[b], i, dtype);
#pragma GCC unroll 4
            for (int a = 0; a < rows; a++)
                acc[a][b] += xv[a] * wv;
        }
    }
    if (whole < d->k) {
#pragma GCC unroll 4
        for (int b = 0; b < outs; b++) {
            load_tail(&wv, w[b], whole, d->k, dtype);
#pragma GCC unroll 4
            for (int a = 0; a < rows; a++) {
                load_tail(&xv[a], x[a], whole, d->k, DTYPE_F32);
                acc[a][b] += xv[a] * wv;
            }
        }
    }
#pragma GCC unroll 4
    for (int a = 0; a < rows; a++)
#pragma GCC unroll 4
        for (int b = 0; b < outs; b++)
            d->out[(size_t)(r + a) * d->out_stride + (size_t)(o + b)] = sum_lanes(&acc[a][b]);
}

/* Rows first .. end - 1 in tiles of `rows` x `outs`. Outputs outside, rows inside: the few rows of
 * w stay in the nearest cache. */
CPU_INLINE void dots_band(const struct cpu_dots *d, int64_t first, int64_t end, int rows, int outs,
                          enum dtype dtype)
{
    int64_t o = 0;

    for (; o + outs <= d->outs; o += outs)
        for (int64_t r = first; r < end; r += rows)
            dots_tile(d, r, o, rows, outs, dtype);
    for (; o < d->outs; o++)
        for (int64_t r = first; r < end; r += rows)
            dots_tile(d, r, o, rows, 1, dtype);
}

/* 4 x 3 sums and their operands just fit the 16 vector registers of AVX2. */
CPU_INLINE void dots_of(const struct cpu_dots *d, enum dtype dtype)
{
    int64_t by_four = d->rows - d->rows % 4, by_two = d->rows - d->rows % 2;

    if (by_four > 0)
        dots_band(d, 0, by_four, 4, 3, dtype);
    if (by_two > by_four)
        dots_band(d, by_four, by_two, 2, 4, dtype);
    if (d->rows > by_two)
        dots_band(d, by_two, d->rows, 1, 4, dtype);
}

CPU_CLONES static void dots_f32(const struct cpu_dots *d)
{
    dots_of(d, DTYPE_F32);
}

CPU_CLONES static void dots_bf16(const struct cpu_dots *d)
{
    dots_of(d, DTYPE_BF16);
}

void cpu_dots(const struct cpu_dots *job)
{
    if (job->w.dtype == DTYPE_BF16)
        dots_bf16(job);
    else
        dots_f32(job);
}

/* `rows` sums of `vectors` times eight columns, from row `r` and column `i` on; constants as above.
 */
CPU_INLINE void sum_tile(const struct cpu_weighted_sum *s, int64_t r, int64_t i, int rows,
                         int vectors, enum dtype dtype)
{
    cpu_v8 acc[MAX_TILE][MAX_TILE], v;

#pragma GCC unroll 4
    for (int a = 0; a < rows; a++)
#pragma GCC unroll 4
        for (int b = 0; b < vectors; b++)
            load(&acc[a][b], s->out + (size_t)(r + a) * s->out_stride, i + b * CPU_LANES,
                 DTYPE_F32);
    for (int64_t j = 0; j < s->terms; j++) {
        const void *row = cpu_rows_from(s->v, j).data;
#pragma GCC unroll 4
        for (int b = 0; b < vectors; b++) {
            load(&v, row, i + b * CPU_LANES, dtype);
#pragma GCC unroll 4
            for (int a = 0; a < rows; a++)
                acc[a][b] += v * s->coef[(size_t)(r + a) * s->coef_stride + (size_t)j];
        }
    }
#pragma GCC unroll 4
    for (int a = 0; a < rows; a++)
#pragma GCC unroll 4
        for (int b = 0; b < vectors; b++)
            *(cpu_v8_unaligned *)(s->out + (size_t)(r + a) * s->out_stride + i + b * CPU_LANES) =
                acc[a][b];
}

/* Rows first .. end - 1 in tiles of `rows` rows; the columns after the last whole tile one by one.
 */
CPU_INLINE void sums_band(const struct cpu_weighted_sum *s, int64_t first, int64_t end, int rows,
                          int vectors, enum dtype dtype)
{
    int64_t step = vectors * CPU_LANES, whole = s->n - s->n % step;

    for (int64_t r = first; r < end; r += rows)
        for (int64_t i = 0; i < whole; i += step)
            sum_tile(s, r, i, rows, vectors, dtype);
    for (int64_t r = first; r < end; r++) {
        for (int64_t i = whole; i < s->n; i++) {
            float *out = s->out + (size_t)r * s->out_stride + (size_t)i;
            for (int64_t j = 0; j < s->terms; j++)
                *out += s->coef[(size_t)r * s->coef_stride + (size_t)j] *
                        load_one(cpu_rows_from(s->v, j).data, i, dtype);
        }
    }
}

CPU_INLINE void sums_of(const struct cpu_weighted_sum *s, enum dtype dtype)
{
    int64_t by_four = s->rows - s->rows % 4, by_two = s->rows - s->rows % 2;

    if (by_four > 0)
        sums_band(s, 0, by_four, 4, 2, dtype);
    if (by_two > by_four)
        sums_band(s, by_four, by_two, 2, 4, dtype);
    if (s->rows > by_two)
        sums_band(s, by_two, s->rows, 1, 4, dtype);
}

CPU_CLONES static void sums_f32(const struct cpu_weighted_sum *s)
{
    sums_of(s, DTYPE_F32);
}

CPU_CLONES static void sums_bf16(const struct cpu_weighted_sum *s)
{
    sums_of(s, DTYPE_BF16);
}

void cpu_weighted_sum(const struct cpu_weighted_sum *job)
{
    if (job->v.dtype == DTYPE_BF16)
        sums_bf16(job);
    else
        sums_f32(job);
}

float cpu_sum_squares(const float *x, int64_t n)
{
    float sum;

    cpu_dots(&(struct cpu_dots){
        .out = &sum, .x = x, .w = {.data = x, .dtype = DTYPE_F32}, .rows = 1, .outs = 1, .k = n});
    return sum;
}

CPU_CLONES void cpu_scale(float *x, float factor, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] *= factor;
}
