#include "model/dequant.h"

#include "kernels/widen.h"

void dequant_fp8_blocks(float *out, const uint8_t *in, const float *scales, int64_t rows,
                        int64_t cols, const int32_t block[2])
{
    int64_t scale_cols = (cols + block[1] - 1) / block[1];
    float values[256];

    for (int i = 0; i < 256; i++)
        values[i] = e4m3_to_f32((uint8_t)i);
    for (int64_t r = 0; r < rows; r++) {
        const float *scale = scales + r / block[0] * scale_cols;
        for (int64_t c = 0; c < cols; scale++) {
            int64_t end = c + block[1] < cols ? c + block[1] : cols;
            for (; c < end; c++)
                out[r * cols + c] = values[in[r * cols + c]] * *scale;
        }
    }
}
