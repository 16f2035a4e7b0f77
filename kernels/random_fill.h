/* The numbers of dummy weights, the same on every backend. */
#pragma once

#include "kernels/host_device.h"

#include <stdint.h>

/* Element i of the sequence named by `seed`: mean 0, deviation 1, nearly normal (the sum of four
 * uniform numbers of 16 bits out of one splitmix64 hash). */
HOST_DEVICE float random_fill_at(uint64_t seed, uint64_t i)
{
    uint64_t z = (seed * 0xD1342543DE82EF95u + i) * 0x9E3779B97F4A7C15u + 0x1234567;

    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    float sum = (float)(z & 0xffff) + (float)(z >> 16 & 0xffff) + (float)(z >> 32 & 0xffff) +
                (float)(z >> 48);
    return (sum - 131070.0f) * (1.7320508f / 65536.0f);
}
