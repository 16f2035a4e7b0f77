/* SipHash-2-4 (Aumasson and Bernstein, 2012) under a key drawn when the process starts: a 64-bit
 * hash for which no outsider can make two inputs collide. */
#pragma once

#include <stddef.h>
#include <stdint.h>

uint64_t siphash(const void *data, size_t len);

/* With the key given (for the reference's test vectors). */
uint64_t siphash_keyed(const void *data, size_t len, const uint64_t key[2]);
