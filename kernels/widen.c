#include "kernels/widen.h"

#include "base/panic.h"

#include <math.h>
#include <string.h>

static float float_of_bits(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

static float f16_to_f32(uint16_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16;
    uint32_t exponent = (bits >> 10) & 31, mantissa = bits & 1023;

    if (exponent == 31) /* infinity, NaN */
        return float_of_bits(sign | 0x7f800000 | mantissa << 13);
    if (exponent == 0) /* zero, subnormal: mantissa * 2^-24 */
        return sign ? -(float)mantissa * 0x1p-24f : (float)mantissa * 0x1p-24f;
    return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

float e4m3_to_f32(uint8_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x80) << 24;
    uint32_t exponent = (bits >> 3) & 15, mantissa = bits & 7;

    if (exponent == 15 && mantissa == 7)
        return float_of_bits(sign | 0x7fc00000);
    if (exponent == 0) /* zero, subnormal: mantissa * 2^-9 */
        return sign ? -(float)mantissa * 0x1p-9f : (float)mantissa * 0x1p-9f;
    return float_of_bits(sign | (exponent + 120) << 23 | mantissa << 20);
}

void widen_to_f32(float *out, const void *in, enum dtype dtype, int64_t n)
{
    const uint16_t *half = in;
    const uint8_t *exponent = in;

    ASSERT(dtype == DTYPE_F32 || dtype == DTYPE_BF16 || dtype == DTYPE_F16 ||
           dtype == DTYPE_F8_E8M0);
    if (dtype == DTYPE_F32)
        memcpy(out, in, (size_t)n * sizeof(*out));
    else if (dtype == DTYPE_BF16)
        for (int64_t i = 0; i < n; i++)
            out[i] = float_of_bits((uint32_t)half[i] << 16);
    else if (dtype == DTYPE_F8_E8M0)
        for (int64_t i = 0; i < n; i++)
            out[i] = exponent[i] == 255 ? NAN : ldexpf(1, exponent[i] - 127);
    else
        for (int64_t i = 0; i < n; i++)
            out[i] = f16_to_f32(half[i]);
}
