/* A magnitude is compared with a bound from its first digit on: while all digits are equal the
 * number is on the edge; one digit to the inner side, and the rest is free. Integers are compared
 * with those of the same length; longer and shorter ones are in or out as a whole. */
#include "model/grammar_number.h"

#include "base/panic.h"
#include "model/grammar_text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The digits of a magnitude: before the point without leading, after it without trailing zeros. */
struct magnitude {
    char whole[NUMBER_MAX_DIGITS + 2];
    char fraction[NUMBER_MAX_DIGITS + 2];
    bool exclusive;
};

/* Digits of a number near a bound: as many as a double tells apart, so that a number on the right
 * side of an exclusive bound stays there when it is read. */
enum { EXACT_DIGITS = 14 };

/* ---- bounds ---- */

int number_bound_set(struct number_bound *b, double value, bool exclusive)
{
    int places = 0;

    *b = (struct number_bound){.there = true, .exclusive = exclusive, .value = value};
    if (!isfinite(value) || fabs(value) >= NUMBER_LIMIT)
        return -1;
    do { /* until it reads back the same */
        snprintf(b->text, sizeof(b->text), "%.*f", places, value);
    } while (strtod(b->text, NULL) != value && places++ < NUMBER_MAX_DIGITS);
    return strtod(b->text, NULL) == value ? 0 : -1;
}

static struct magnitude magnitude_of(const struct number_bound *b)
{
    struct magnitude m = {.exclusive = b->exclusive};
    const char *text = b->text + (b->text[0] == '-'), *point = strchr(text, '.');
    size_t whole = point ? (size_t)(point - text) : strlen(text);

    ASSERT(whole < sizeof(m.whole));
    memcpy(m.whole, text, whole);
    if (point)
        snprintf(m.fraction, sizeof(m.fraction), "%s", point + 1);
    for (size_t n = strlen(m.fraction); n > 0 && m.fraction[n - 1] == '0'; n--)
        m.fraction[n - 1] = '\0';
    return m;
}

/* ---- digits ---- */

static uint32_t digit_range(struct rules *r, int low, int high)
{
    struct byte_set set = {{0}};

    if (low > high)
        return NODE_NONE;
    byte_set_add(&set, (unsigned)('0' + low), (unsigned)('0' + high));
    return rules_class(r, &set);
}

static uint32_t free_digits(struct rules *r, uint32_t min, uint32_t max)
{
    return rules_repeat(r, digit_range(r, 0, 9), min, max);
}

/* Some alternatives, of which those that are NODE_NONE don't count. */
static uint32_t choice_of(struct rules *r, const uint32_t *nodes, size_t count)
{
    uint32_t there[8], n = 0;

    for (size_t i = 0; i < count; i++)
        if (nodes[i] != NODE_NONE)
            there[n++] = nodes[i];
    return n ? rules_choice(r, there, n) : NODE_NONE;
}

#define CHOICE_OF(r, ...)                                                                          \
    choice_of(r, (const uint32_t[]){__VA_ARGS__},                                                  \
              sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))

/* Two nodes in order; NODE_NONE when one of them is. */
static uint32_t then(struct rules *r, uint32_t a, uint32_t b)
{
    return a == NODE_NONE || b == NODE_NONE ? NODE_NONE : RULES_SEQUENCE(r, a, b);
}

/* Strings of exactly strlen(low) digits from `low` to `high`; NULL: no bound. */
static uint32_t same_length(struct rules *r, const char *low, const char *high, size_t len)
{
    if (len == 0)
        return NODE_EMPTY;
    if (!low && !high)
        return free_digits(r, (uint32_t)len, (uint32_t)len);
    int from = low ? low[0] - '0' : 0, to = high ? high[0] - '0' : 9;
    const char *low_rest = low ? low + 1 : NULL, *high_rest = high ? high + 1 : NULL;
    if (from > to)
        return NODE_NONE;
    if (low && high && from == to)
        return then(r, digit_range(r, from, to), same_length(r, low_rest, high_rest, len - 1));
    uint32_t at_low = NODE_NONE, at_high = NODE_NONE;
    if (low)
        at_low = then(r, digit_range(r, from, from), same_length(r, low_rest, NULL, len - 1));
    if (high)
        at_high = then(r, digit_range(r, to, to), same_length(r, NULL, high_rest, len - 1));
    uint32_t between = then(r, digit_range(r, from + (low != NULL), to - (high != NULL)),
                            free_digits(r, (uint32_t)len - 1, (uint32_t)len - 1));
    return CHOICE_OF(r, at_low, between, at_high);
}

/* Whole numbers without a sign from `low` to `high` (digits without leading zeros; `high` NULL: no
 * bound). */
static uint32_t whole_range(struct rules *r, const char *low, const char *high)
{
    size_t shortest = strlen(low), longest = high ? strlen(high) : NUMBER_MAX_DIGITS;
    uint32_t all[NUMBER_MAX_DIGITS + 3], n = 0;

    for (size_t len = shortest; len <= longest && n < NUMBER_MAX_DIGITS + 2; len++) {
        char first[NUMBER_MAX_DIGITS + 4] = "1"; /* the lowest of this length */
        memset(first + 1, '0', len);
        first[len] = '\0';
        const char *from = len == shortest ? low : first;
        uint32_t node = same_length(r, from, high && len == longest ? high : NULL, len);
        if (node != NODE_NONE)
            all[n++] = node;
    }
    return n ? rules_choice(r, all, n) : NODE_NONE;
}

/* ---- fractions: the digits after the point ----
 *
 * `room` is how many digits may still come where they are free; a bound that has more is followed
 * to its end, but no digit past that room differs from its own. */

static uint32_t less_room(uint32_t room)
{
    return room ? room - 1 : 0;
}

/* A digit from `low` to `high`, and free ones after it. */
static uint32_t digit_and_more(struct rules *r, int low, int high, uint32_t room)
{
    return room ? then(r, digit_range(r, low, high), free_digits(r, 0, room - 1)) : NODE_NONE;
}

/* Digits that are more than the rest of `bound`, or as much unless it is exclusive. At the `first`
 * digit there has to be one. */
static uint32_t fraction_from(struct rules *r, const char *bound, bool exclusive, uint32_t room,
                              bool first)
{
    int digit = *bound - '0';

    if (!*bound && !exclusive)
        return room || !first ? free_digits(r, first, room) : NODE_NONE;
    if (!*bound)
        return then(r, rules_repeat(r, digit_range(r, 0, 0), 0, less_room(room)),
                    digit_and_more(r, 1, 9, room));
    uint32_t rest = fraction_from(r, bound + 1, exclusive, less_room(room), false);
    return CHOICE_OF(r, digit_and_more(r, digit + 1, 9, room),
                     then(r, digit_range(r, digit, digit), rest));
}

/* Digits that are less than the rest of `bound`, or as much unless it is exclusive. */
static uint32_t fraction_to(struct rules *r, const char *bound, bool exclusive, uint32_t room,
                            bool first)
{
    int digit = *bound - '0';

    if (!*bound)
        return exclusive || (first && !room) ? NODE_NONE
                                             : rules_repeat(r, digit_range(r, 0, 0), first, room);
    uint32_t rest = fraction_to(r, bound + 1, exclusive, less_room(room), false);
    return CHOICE_OF(r, first ? NODE_NONE : NODE_EMPTY, digit_and_more(r, 0, digit - 1, room),
                     then(r, digit_range(r, digit, digit), rest));
}

/* Digits between the rests of two bounds, which are equal up to here. */
static uint32_t fraction_between(struct rules *r, const struct magnitude *low,
                                 const struct magnitude *high, size_t at, uint32_t room, bool first)
{
    const char *from = low->fraction + at, *to = high->fraction + at;

    if (!*from && !low->exclusive)
        return fraction_to(r, to, high->exclusive, room, first);
    if (!*to) /* the low one goes on, or is as much and exclusive */
        return NODE_NONE;
    int a = *from ? *from - '0' : 0, b = *to - '0';
    if (a > b)
        return NODE_NONE;
    if (!*from) { /* exclusive: more than zeros, and up to the high one */
        struct magnitude zero = *low;
        snprintf(zero.fraction + at, sizeof(zero.fraction) - at, "0");
        return fraction_between(r, &zero, high, at, room, first);
    }
    room = less_room(room);
    if (a == b)
        return then(r, digit_range(r, a, a), fraction_between(r, low, high, at + 1, room, false));
    return CHOICE_OF(
        r, then(r, digit_range(r, a, a), fraction_from(r, from + 1, low->exclusive, room, false)),
        digit_and_more(r, a + 1, b - 1, room + 1),
        then(r, digit_range(r, b, b), fraction_to(r, to + 1, high->exclusive, room, false)));
}

/* ---- magnitudes ---- */

/* Adds `delta` (1 or -1) to a whole number that stays >= 0. */
static void whole_add(const char *whole, int delta, char out[NUMBER_MAX_DIGITS + 4])
{
    snprintf(out, NUMBER_MAX_DIGITS + 4, "%lld", strtoll(whole, NULL, 10) + delta);
}

/* The whole number with a fraction behind it, or alone if zero is a good fraction. */
static uint32_t with_fraction(struct rules *r, uint32_t whole, uint32_t fraction, bool alone)
{
    if (whole == NODE_NONE || (fraction == NODE_NONE && !alone))
        return NODE_NONE;
    if (fraction == NODE_NONE)
        return whole;
    uint32_t tail = then(r, rules_text(r, "."), fraction);
    return then(r, whole, alone ? rules_optional(r, tail) : tail);
}

/* How many digits may follow the point. */
static uint32_t room_of(const struct magnitude *low, const struct magnitude *high)
{
    size_t whole = strlen(low->whole);

    if (high && strlen(high->whole) > whole)
        whole = strlen(high->whole);
    return whole < EXACT_DIGITS ? (uint32_t)(EXACT_DIGITS - whole) : 0;
}

/* Numbers without a sign from `low` to `high` (NULL: no bound). */
static uint32_t magnitude_range(struct rules *r, const struct magnitude *low,
                                const struct magnitude *high, bool integer)
{
    char from[NUMBER_MAX_DIGITS + 4], to[NUMBER_MAX_DIGITS + 4];
    bool low_alone = !*low->fraction && !low->exclusive;
    bool high_alone = high && (*high->fraction || !high->exclusive);
    bool same = high && strcmp(low->whole, high->whole) == 0;
    uint32_t room = room_of(low, high), at_high = NODE_NONE;

    integer = integer || (room == 0 && !*low->fraction && !(high && *high->fraction));

    if (same) {
        uint32_t fraction = integer ? NODE_NONE : fraction_between(r, low, high, 0, room, true);
        return with_fraction(r, rules_text(r, low->whole), fraction, low_alone && high_alone);
    }
    uint32_t at_low = with_fraction(
        r, rules_text(r, low->whole),
        integer ? NODE_NONE : fraction_from(r, low->fraction, low->exclusive, room, true),
        low_alone);
    whole_add(low->whole, 1, from);
    uint32_t between = NODE_NONE;
    if (high) {
        at_high = with_fraction(
            r, rules_text(r, high->whole),
            integer ? NODE_NONE : fraction_to(r, high->fraction, high->exclusive, room, true),
            high_alone);
        whole_add(high->whole, -1, to);
        if (strtoll(from, NULL, 10) > strtoll(high->whole, NULL, 10))
            return NODE_NONE; /* the bounds are the wrong way round */
        if (strtoll(from, NULL, 10) <= strtoll(to, NULL, 10))
            between = whole_range(r, from, to);
    } else {
        between = whole_range(r, from, NULL);
    }
    return CHOICE_OF(r, at_low,
                     with_fraction(r, between, integer ? NODE_NONE : free_digits(r, 1, room), true),
                     at_high);
}

uint32_t rules_number(struct rules *r, const struct number_bound *low,
                      const struct number_bound *high, bool integer)
{
    struct magnitude zero = {.whole = "0"}, bounds[2];
    bool below = !low->there || low->value < 0, above = !high->there || high->value > 0;
    bool zero_out = (low->there && low->value == 0 && low->exclusive) ||
                    (high->there && high->value == 0 && high->exclusive);
    uint32_t negative = NODE_NONE, positive = NODE_NONE;

    if (low->there)
        bounds[0] = magnitude_of(low);
    if (high->there)
        bounds[1] = magnitude_of(high);
    zero.exclusive = zero_out;
    if (below) {
        const struct magnitude *nearest = high->there && high->value < 0 ? &bounds[1] : &zero;
        struct magnitude above_zero = zero;
        above_zero.exclusive = true; /* "-0" is left out */
        negative = magnitude_range(r, nearest == &zero ? &above_zero : nearest,
                                   low->there ? &bounds[0] : NULL, integer);
        negative = then(r, rules_text(r, "-"), negative);
    }
    if (above)
        positive = magnitude_range(r, low->there && low->value > 0 ? &bounds[0] : &zero,
                                   high->there ? &bounds[1] : NULL, integer);
    else if (high->value == 0 && !zero_out && (!low->there || low->value <= 0))
        positive = rules_text(r, "0");
    uint32_t node = CHOICE_OF(r, positive, negative);
    return node == NODE_NONE ? rules_fail(r, "no number is between its bounds") : node;
}

/* ---- multiples ---- */

/* Multiples between two bounds, one by one. */
static uint32_t list_multiples(struct rules *r, int64_t first, int64_t last, int64_t divisor)
{
    static const size_t room = 24;
    size_t count = (size_t)((last - first) / divisor) + 1;
    struct rules_string *strings = calloc(count, sizeof(*strings));
    char *text = calloc(count, room);

    ASSERT(strings && text);
    for (size_t i = 0; i < count; i++) {
        strings[i].text = text + i * room;
        strings[i].len = (size_t)snprintf(text + i * room, room, "%lld",
                                          (long long)(first + (int64_t)i * divisor));
    }
    uint32_t node = rules_strings(r, strings, count);
    free(strings);
    free(text);
    return node;
}

/* Multiples of any size, by long division: a rule for each remainder and number of digits that may
 * still come. */
static uint32_t divide_digits(struct rules *r, uint32_t divisor)
{
    enum { DIGITS = 15 };
    uint32_t after[2][NUMBER_MAX_DIVISOR]; /* by remainder: what may follow it */
    uint32_t nodes[11];

    for (uint32_t left = 0; left <= DIGITS; left++)
        for (uint32_t rest = 0; rest < divisor && !r->failed; rest++) {
            uint32_t n = 0;
            if (rest == 0)
                nodes[n++] = NODE_EMPTY;
            for (uint32_t d = left == DIGITS; left > 0 && d < 10; d++) {
                uint32_t to = after[(left - 1) % 2][(rest * 10 + d) % divisor];
                if (to != NODE_NONE)
                    nodes[n++] = RULES_SEQUENCE(r, digit_range(r, (int)d, (int)d), to);
            }
            if (left == DIGITS && rest == 0) { /* the first digit: not 0, and one has to be there */
                nodes[0] = rules_text(r, "0");
                uint32_t positive = n > 1 ? rules_choice(r, nodes + 1, n - 1) : NODE_NONE;
                uint32_t sign = rules_optional(r, rules_text(r, "-"));
                return CHOICE_OF(r, nodes[0], then(r, sign, positive));
            }
            after[left % 2][rest] = n ? rules_choice(r, nodes, n) : NODE_NONE;
        }
    return NODE_EMPTY;
}

uint32_t rules_multiple(struct rules *r, const struct number_bound *low,
                        const struct number_bound *high, int64_t divisor)
{
    if (divisor == 1)
        return rules_number(r, low, high, true);
    if (low->there && high->there) {
        double first = ceil(low->value / (double)divisor),
               last = floor(high->value / (double)divisor);
        first += low->exclusive && first * (double)divisor == low->value;
        last -= high->exclusive && last * (double)divisor == high->value;
        if (last < first)
            return rules_fail(r, "no multiple is between its bounds");
        if (last - first < NUMBER_MAX_MULTIPLES && fabs(first) < 1e15 / (double)divisor &&
            fabs(last) < 1e15 / (double)divisor)
            return list_multiples(r, (int64_t)first * divisor, (int64_t)last * divisor, divisor);
        return rules_fail(r, "\"multipleOf\" between bounds is supported for up to %d multiples",
                          NUMBER_MAX_MULTIPLES);
    }
    if (low->there || high->there)
        return rules_fail(r, "\"multipleOf\" is supported with both bounds or with none");
    if (divisor > NUMBER_MAX_DIVISOR)
        return rules_fail(r, "\"multipleOf\" without bounds is supported up to %d",
                          NUMBER_MAX_DIVISOR);
    return divide_digits(r, (uint32_t)divisor);
}
