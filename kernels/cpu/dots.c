/* Dot products and weighted sums: where a model's time goes.
 *
 * Both have one order of summation per result. A dot product keeps eight partial sums (lanes), lane
 * l taking the elements i with i % 8 == l in rising order; a last part shorter than eight is padded
 * with zeros; the lanes are then added in the fixed order of sum_lanes(). A weighted sum adds its
 * terms one after another. Several rows and outputs are computed together (a tile) only so that
 * what was loaded once is used several times. */
#include "kernels/cpu/cpu.h"

#include <string.h>

typedef uint16_t u16x8_unaligned __attribute__((vector_size(16), aligned(2), may_alias));
typedef uint32_t u32x8 __attribute__((vector_size(32)));

enum { MAX_TILE = 4 };

CPU_INLINE void load(cpu_v8 *out, const void *p, int64_t at, enum dtype dtype)
{
    if (dtype == DTYPE_BF16) {
        u16x8_unaligned high = *(const u16x8_unaligned *)((const uint16_t *)p + at);
        *out = (cpu_v8)(__builtin_convertvector(high, u32x8) << 16);
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
    cpu_v8 a = *v;

    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
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

/* Outputs outside, rows inside: the few rows of w stay in the nearest cache. 4 x 3 sums and their
 * operands just fit the 16 vector registers of AVX2. */
CPU_INLINE void dots_of(const struct cpu_dots *d, enum dtype dtype)
{
    int64_t by_four = d->rows - d->rows % 4, o = 0;

    for (; by_four && o + 3 <= d->outs; o += 3)
        for (int64_t r = 0; r < by_four; r += 4)
            dots_tile(d, r, o, 4, 3, dtype);
    for (; by_four && o < d->outs; o++)
        for (int64_t r = 0; r < by_four; r += 4)
            dots_tile(d, r, o, 4, 1, dtype);
    for (int64_t r = by_four; r < d->rows; r++) {
        for (o = 0; o + 4 <= d->outs; o += 4)
            dots_tile(d, r, o, 1, 4, dtype);
        for (; o < d->outs; o++)
            dots_tile(d, r, o, 1, 1, dtype);
    }
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

CPU_INLINE void sums_of(const struct cpu_weighted_sum *s, enum dtype dtype)
{
    int64_t by_four = s->rows - s->rows % 4, whole = s->n - s->n % (2 * CPU_LANES);

    for (int64_t r = 0; r < by_four; r += 4)
        for (int64_t i = 0; i < whole; i += 2 * CPU_LANES)
            sum_tile(s, r, i, 4, 2, dtype);
    for (int64_t r = by_four; r < s->rows; r++) {
        int64_t i = 0;
        for (; i + 4 * CPU_LANES <= whole; i += 4 * CPU_LANES)
            sum_tile(s, r, i, 1, 4, dtype);
        for (; i < whole; i += 2 * CPU_LANES)
            sum_tile(s, r, i, 1, 2, dtype);
    }
    for (int64_t r = 0; r < s->rows; r++) {
        for (int64_t i = whole; i < s->n; i++) {
            float sum = s->out[(size_t)r * s->out_stride + (size_t)i];
            for (int64_t j = 0; j < s->terms; j++)
                sum += s->coef[(size_t)r * s->coef_stride + (size_t)j] *
                       load_one(cpu_rows_from(s->v, j).data, i, dtype);
            s->out[(size_t)r * s->out_stride + (size_t)i] = sum;
        }
    }
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
