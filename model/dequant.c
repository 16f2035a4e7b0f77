#include "model/dequant.h"

#include "kernels/widen.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

static uint16_t to_bf16(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    if (isnan(value))
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* What the stored codes stand for: bytes of E4M3, halves of I4. */
static void make_values(enum dtype stored, float values[256])
{
    for (int i = 0; i < 256; i++)
        values[i] = stored == DTYPE_I4 ? (float)((i & 15) - 8) : e4m3_to_f32((uint8_t)i);
}

/* The codes `from` to `end` - 1, which share a scale, times it. */
static inline void dequant_run(void *out, enum dtype dtype, const uint8_t *in, bool packed,
                               int64_t from, int64_t end, float scale, const float values[256])
{
    for (int64_t i = from; i < end; i++) {
        int code = packed ? in[i / 2] >> i % 2 * 4 & 15 : in[i];
        float value = values[code] * scale;
        if (dtype == DTYPE_F32)
            ((float *)out)[i] = value;
        else
            ((uint16_t *)out)[i] = to_bf16(value);
    }
}

void dequant_rows(void *out, enum dtype dtype, const uint8_t *in, const struct scaled_matrix *m,
                  int64_t first_row, int64_t rows)
{
    int64_t scale_cols = (m->cols + m->block[1] - 1) / m->block[1];
    float values[256];

    ASSERT(dtype == DTYPE_F32 || dtype == DTYPE_BF16);
    ASSERT(m->dtype == DTYPE_F8_E4M3 || (m->dtype == DTYPE_I4 && m->cols % 2 == 0));
    make_values(m->dtype, values);
    for (int64_t r = 0; r < rows; r++) {
        int64_t block_row = (first_row + r) / m->block[0] - first_row / m->block[0];
        const float *scale = m->scales + block_row * scale_cols;
        for (int64_t c = 0; c < m->cols; c += m->block[1], scale++) {
            int64_t from = r * m->cols + c;
            int64_t end = r * m->cols + (m->cols - c < m->block[1] ? m->cols : c + m->block[1]);
            if (m->dtype == DTYPE_I4)
                dequant_run(out, dtype, in, true, from, end, *scale, values);
            else
                dequant_run(out, dtype, in, false, from, end, *scale, values);
        }
    }
}
