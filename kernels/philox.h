/* Random numbers of the samplers. Philox4x32-10, a counter-based generator (Salmon et al. 2011,
 * "Parallel random numbers: as easy as 1, 2, 3"): four random words from a counter and a key,
 * without any state. */
#pragma once

#include "kernels/host_device.h"

#include <math.h>
#include <stdint.h>

/* The largest noise gumbel() can return, rounded up: -log(-log(1 - 2^-53)). */
#define GUMBEL_MAX 36.8

HOST_DEVICE void philox4x32_10(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];

    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53 * c0, b = (uint64_t)0xCD9E8D57 * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* 52 random bits for each of the tokens 2 pair and 2 pair + 1 of a row. */
HOST_DEVICE void sampling_bits_of_pair(uint64_t bits[2], uint64_t seed, int32_t step, int32_t pair)
{
    const uint32_t counter[4] = {(uint32_t)pair, (uint32_t)step, 0, 0};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t word[4];

    philox4x32_10(word, counter, key);
    bits[0] = (uint64_t)(word[0] >> 6) << 26 | word[1] >> 6;
    bits[1] = (uint64_t)(word[2] >> 6) << 26 | word[3] >> 6;
}

/* Those of one token. */
HOST_DEVICE uint64_t sampling_bits(uint64_t seed, int32_t step, int32_t token)
{
    uint64_t bits[2];

    sampling_bits_of_pair(bits, seed, step, token / 2);
    return bits[token % 2];
}

/* Standard Gumbel noise, -log(-log(u)), with u in (0, 1) of the 52 bits and a half. */
HOST_DEVICE double gumbel(uint64_t bits)
{
    return -log(-log(((double)bits + 0.5) * 0x1p-52));
}
