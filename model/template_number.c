#include "model/template_number.h"

#include "model/template_unicode.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *tpl_operator_name(enum tpl_operator op)
{
    static const char *const names[] = {"+", "-", "*", "/", "//", "%", "**"};

    return names[op];
}

/* long double holds both a double and a 64-bit integer exactly where it has 64 bits or more; of
 * larger integers only so many digits count. */
static long double as_long_double(struct tpl_value v)
{
    int64_t integer;

    if (v.type == TPL_BIG)
        return strtold(v.string->data, NULL);
    return tpl_as_integer(v, &integer) ? (long double)integer : (long double)v.number;
}

int tpl_compare_numbers(struct tpl_value a, struct tpl_value b)
{
    long double x = as_long_double(a), y = as_long_double(b);

    return x < y ? -1 : x > y ? 1 : x == y ? 0 : 2;
}

/* ---- arithmetic ---------------------------------------------------------------------------- */

_Noreturn static void overflow(struct tpl_heap *h, enum tpl_operator op)
{
    tpl_fail(h, "the result of '%s' is too large", tpl_operator_name(op));
}

_Noreturn static void zero_division(struct tpl_heap *h)
{
    tpl_fail(h, "division by zero");
}

static int64_t floor_div(int64_t a, int64_t b)
{
    int64_t q = a / b;

    return q - (a % b != 0 && (a < 0) != (b < 0));
}

/* What is left of that; it has the sign of the divisor. */
static int64_t floor_mod(int64_t a, int64_t b)
{
    int64_t rest = b == -1 ? 0 : a % b; /* the smallest number by -1 would overflow */

    return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

static struct tpl_value integer_power(struct tpl_heap *h, int64_t base, int64_t exponent)
{
    int64_t result = 1;

    if (exponent < 0) {
        if (base == 0)
            zero_division(h);
        return tpl_float(pow((double)base, (double)exponent));
    }
    if (base == 0 || base == 1 || base == -1)
        return tpl_int(exponent == 0 ? 1 : base == -1 && exponent % 2 == 0 ? 1 : base);
    for (int64_t i = 0; i < exponent; i++)
        if (__builtin_mul_overflow(result, base, &result))
            overflow(h, TPL_POW);
    return tpl_int(result);
}

static struct tpl_value integer_arithmetic(struct tpl_heap *h, enum tpl_operator op, int64_t a,
                                           int64_t b)
{
    int64_t result = 0;
    bool over = false;

    if ((op == TPL_DIV || op == TPL_FLOOR_DIV || op == TPL_MOD) && b == 0)
        zero_division(h);
    switch (op) {
    case TPL_ADD:
        over = __builtin_add_overflow(a, b, &result);
        break;
    case TPL_SUB:
        over = __builtin_sub_overflow(a, b, &result);
        break;
    case TPL_MUL:
        over = __builtin_mul_overflow(a, b, &result);
        break;
    case TPL_DIV:
        return tpl_float((double)((long double)a / (long double)b));
    case TPL_FLOOR_DIV:
        over = a == INT64_MIN && b == -1;
        result = over ? 0 : floor_div(a, b);
        break;
    case TPL_MOD:
        result = floor_mod(a, b);
        break;
    case TPL_POW:
        return integer_power(h, a, b);
    }
    if (over)
        overflow(h, op);
    return tpl_int(result);
}

/* Python's float_divmod: the remainder has the sign of the divisor. */
static double float_mod(double a, double b, double *quotient)
{
    double mod = fmod(a, b), div = (a - mod) / b;

    if (mod != 0) {
        if ((b < 0) != (mod < 0)) {
            mod += b;
            div -= 1;
        }
    } else {
        mod = copysign(0, b);
    }
    *quotient = div != 0 ? floor(div) + (div - floor(div) > 0.5) : copysign(0, a / b);
    return mod;
}

static double float_power(struct tpl_heap *h, double a, double b)
{
    if (a == 0 && b < 0)
        zero_division(h);
    if (a < 0 && isfinite(a) && isfinite(b) && b != floor(b))
        tpl_fail(h, "a power of a negative number needs a whole exponent");
    double result = pow(a, b);
    if (isinf(result) && isfinite(a) && isfinite(b))
        overflow(h, TPL_POW);
    return result;
}

struct tpl_value tpl_arithmetic(struct tpl_heap *h, enum tpl_operator op, struct tpl_value a,
                                struct tpl_value b)
{
    int64_t i, j;
    double quotient;

    if (tpl_as_integer(a, &i) && tpl_as_integer(b, &j))
        return integer_arithmetic(h, op, i, j);
    double x = tpl_as_double(a), y = tpl_as_double(b);
    if ((op == TPL_DIV || op == TPL_FLOOR_DIV || op == TPL_MOD) && y == 0)
        zero_division(h);
    switch (op) {
    case TPL_ADD:
        return tpl_float(x + y);
    case TPL_SUB:
        return tpl_float(x - y);
    case TPL_MUL:
        return tpl_float(x * y);
    case TPL_DIV:
        return tpl_float(x / y);
    case TPL_FLOOR_DIV:
        float_mod(x, y, &quotient);
        return tpl_float(quotient);
    case TPL_MOD:
        return tpl_float(float_mod(x, y, &quotient));
    case TPL_POW:
        break;
    }
    return tpl_float(float_power(h, x, y));
}

struct tpl_value tpl_negated(struct tpl_heap *h, struct tpl_value v)
{
    int64_t integer;

    if (v.type == TPL_FLOAT)
        return tpl_float(-v.number);
    if (!tpl_as_integer(v, &integer))
        tpl_fail(h, "'-' does not take %s", tpl_type_name(v));
    if (integer == INT64_MIN)
        overflow(h, TPL_SUB);
    return tpl_int(-integer);
}

/* ---- reading ------------------------------------------------------------------------------- */

/* Copies what int() and float() look at: without white space around it and '_' between digits. */
static bool clean_number(const char *text, size_t len, char *out, size_t cap)
{
    struct tpl_string s = {.data = text, .len = len};
    size_t size, n = 0;

    while (s.len > 0 && tpl_is_space(tpl_decode(&s, 0, &size))) {
        s.data += size;
        s.len -= size;
    }
    while (s.len > 0 && tpl_is_space(tpl_decode_before(&s, s.len, &size)))
        s.len -= size;
    for (size_t i = 0; i < s.len; i++) {
        char c = s.data[i];
        if (c == '_') { /* between digits only */
            if (i == 0 || i + 1 == s.len || !strchr("0123456789abcdefABCDEF", s.data[i - 1]) ||
                !s.data[i - 1] || !s.data[i + 1] ||
                !strchr("0123456789abcdefABCDEF", s.data[i + 1]))
                return false;
            continue;
        }
        if (n + 1 == cap || (unsigned char)c >= 0x80 || c == '\0')
            return false;
        out[n++] = c;
    }
    out[n] = '\0';
    return n > 0;
}

static int digit_value(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'z' ? c - 'a' + 10
           : c >= 'A' && c <= 'Z' ? c - 'A' + 10
                                  : 99;
}

bool tpl_parse_integer(const char *text, size_t len, int base, int64_t *integer)
{
    char clean[256], *at = clean;
    bool negative;
    int64_t value = 0;

    if (!clean_number(text, len, clean, sizeof(clean)))
        return false;
    negative = *at == '-';
    at += *at == '-' || *at == '+';
    int prefix = at[0] != '0'                   ? 0
                 : strchr("xX", at[1]) && at[1] ? 16
                 : strchr("oO", at[1]) && at[1] ? 8
                 : strchr("bB", at[1]) && at[1] ? 2
                                                : 0;
    if (prefix && (base == 0 || base == prefix)) {
        base = prefix;
        at += 2;
    } else if (base == 0) {
        if (at[0] == '0' && at[strspn(at, "0")]) /* Python refuses 010 */
            return false;
        base = 10;
    }
    if (!*at)
        return false;
    for (; *at; at++) {
        int digit = digit_value(*at);
        if (digit >= base || __builtin_mul_overflow(value, base, &value) ||
            __builtin_sub_overflow(value, digit, &value)) /* negative: it has one more */
            return false;
    }
    if (!negative && value == INT64_MIN)
        return false;
    *integer = negative ? value : -value;
    return true;
}

bool tpl_parse_float(const char *text, size_t len, double *number)
{
    char clean[512], *end;

    if (!clean_number(text, len, clean, sizeof(clean)))
        return false;
    const char *word = clean + (*clean == '-' || *clean == '+');
    bool named = strcasecmp(word, "inf") == 0 || strcasecmp(word, "infinity") == 0 ||
                 strcasecmp(word, "nan") == 0;
    if (!named && word[strspn(word, "0123456789.eE+-")])
        return false; /* no hexadecimal numbers */
    *number = strtod(clean, &end);
    return *end == '\0' && end != clean;
}

/* ---- writing ------------------------------------------------------------------------------- */

size_t tpl_write_float(double number, char out[TPL_NUMBER_MAX])
{
    char text[32], digits[20];
    int n = 0, exponent, precision;

    if (!isfinite(number))
        return (size_t)sprintf(out, "%s", isnan(number) ? "nan" : number < 0 ? "-inf" : "inf");
    for (precision = 0; precision < 17; precision++) {
        snprintf(text, sizeof(text), "%.*e", precision, number);
        if (strtod(text, NULL) == number)
            break;
    }
    const char *e = strchr(text, 'e');
    exponent = atoi(e + 1);
    for (const char *c = text; c < e; c++)
        if (*c >= '0' && *c <= '9')
            digits[n++] = *c;
    digits[n] = '\0';
    const char *sign = signbit(number) ? "-" : "";
    if (exponent < -4 || exponent >= 16)
        return (size_t)sprintf(out, "%s%c%s%se%c%02d", sign, digits[0], n > 1 ? "." : "",
                               digits + 1, exponent < 0 ? '-' : '+', abs(exponent));
    if (exponent < 0)
        return (size_t)sprintf(out, "%s0.%.*s%s", sign, -exponent - 1, "000000", digits);
    if (n <= exponent + 1)
        return (size_t)sprintf(out, "%s%s%.*s.0", sign, digits, exponent + 1 - n,
                               "0000000000000000");
    return (size_t)sprintf(out, "%s%.*s.%s", sign, exponent + 1, digits, digits + exponent + 1);
}

double tpl_round(double number, int64_t digits)
{
    char text[400];

    if (!isfinite(number) || digits > 300)
        return number;
    if (digits < -308)
        return copysign(0, number);
    if (digits >= 0) { /* printf rounds the exact value, half to even, as Python does */
        snprintf(text, sizeof(text), "%.*f", (int)digits, number);
        return strlen(text) < sizeof(text) - 1 ? strtod(text, NULL) : number;
    }
    double unit = pow(10, (double)-digits);
    return nearbyint(number / unit) * unit;
}
