#include "model/dequant.h"

#include "kernels/widen.h"

#include <math.h>
#include <string.h>

static uint16_t to_bf16(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    if (isnan(value))
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* `n` values that share a scale. */
static void dequant_run(void *out, enum dtype dtype, const uint8_t *in, int64_t n, float scale,
                        const float values[256])
{
    if (dtype == DTYPE_F32) {
        for (int64_t i = 0; i < n; i++)
            ((float *)out)[i] = values[in[i]] * scale;
        return;
    }
    for (int64_t i = 0; i < n; i++)
        ((uint16_t *)out)[i] = to_bf16(values[in[i]] * scale);
}

void dequant_fp8_rows(void *out, enum dtype dtype, const uint8_t *in, const struct fp8_matrix *m,
                      int64_t first_row, int64_t rows)
{
    int64_t scale_cols = (m->cols + m->block[1] - 1) / m->block[1];
    float values[256];

    ASSERT(dtype == DTYPE_F32 || dtype == DTYPE_BF16);
    for (int i = 0; i < 256; i++)
        values[i] = e4m3_to_f32((uint8_t)i);
    for (int64_t r = 0; r < rows; r++) {
        const float *scale = m->scales + (first_row + r) / m->block[0] * scale_cols;
        for (int64_t c = 0; c < m->cols; c += m->block[1], scale++) {
            int64_t at = r * m->cols + c, n = m->cols - c < m->block[1] ? m->cols - c : m->block[1];
            dequant_run((char *)out + (size_t)at * dtype_size(dtype), dtype, in + at, n, *scale,
                        values);
        }
    }
}
