/* Time and entropy. Durations are measured on the monotonic clock; only timestamps
 * shown to users are unix time. */
#pragma once

#include <stdint.h>

/* Monotonic time in microseconds. */
int64_t clock_us(void);

/* Seconds since the unix epoch. */
int64_t clock_unix_s(void);

/* Microseconds since the unix epoch. */
int64_t clock_unix_us(void);

/* 64 unpredictable bits from the operating system (request ids, default seeds). */
uint64_t clock_entropy(void);
