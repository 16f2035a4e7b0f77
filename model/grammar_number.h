/* Numbers between bounds, as rules over their digits. */
#pragma once

#include "model/grammar_rules.h"

#define NUMBER_LIMIT                                                                               \
    1e18 /* all numbers that are made with a bound are below, without their sign                   \
          */

enum { NUMBER_MAX_DIGITS = 18, NUMBER_MAX_MULTIPLES = 4096, NUMBER_MAX_DIVISOR = 128 };

/* A bound; `text` is a decimal number without an exponent. */
struct number_bound {
    bool there, exclusive;
    double value;
    char text[40];
};

/* Writes a finite number as the shortest decimal that reads back the same. -1 when it is as large
 * as NUMBER_LIMIT, or takes more than NUMBER_MAX_DIGITS digits after its point. */
int number_bound_set(struct number_bound *bound, double value, bool exclusive);

/* A number from `low` to `high`, of which either may be missing, without an exponent. With
 * `integer`, one without a fraction. Fails when there is none. */
uint32_t rules_number(struct rules *rules, const struct number_bound *low,
                      const struct number_bound *high, bool integer);

/* An integer that is a multiple of `divisor` > 0, and between the bounds. */
uint32_t rules_multiple(struct rules *rules, const struct number_bound *low,
                        const struct number_bound *high, int64_t divisor);
