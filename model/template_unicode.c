#include "model/template_unicode.h"

#include "base/utf8.h"
#include "model/template_unicode_data.h"

#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

bool tpl_has_property(uint32_t c, enum tpl_property property)
{
    static const struct {
        const uint32_t *points;
        size_t n;
    } tables[] = {
        [TPL_PRINTABLE] = {printable_points, COUNT(printable_points)},
        [TPL_ALPHA] = {alpha_points, COUNT(alpha_points)},
        [TPL_DECIMAL] = {decimal_points, COUNT(decimal_points)},
        [TPL_DIGIT] = {digit_points, COUNT(digit_points)},
        [TPL_NUMERIC] = {numeric_points, COUNT(numeric_points)},
    };
    size_t low = 0, high = tables[property].n; /* points up to c */

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (tables[property].points[middle] <= c)
            low = middle + 1;
        else
            high = middle;
    }
    return low % 2 == 1;
}

bool tpl_is_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
           c == 0x202F || c == 0x205F || c == 0x3000;
}

bool tpl_is_line_end(uint32_t c)
{
    return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
           c == 0x2029;
}

static const struct case_tables {
    const struct case_run *runs;
    const struct case_special *specials;
    size_t n_runs, n_specials;
} cases[] = {
    [TPL_UPPER] = {upper_runs, upper_specials, COUNT(upper_runs), COUNT(upper_specials)},
    [TPL_LOWER] = {lower_runs, lower_specials, COUNT(lower_runs), COUNT(lower_specials)},
    [TPL_TITLE] = {title_runs, title_specials, COUNT(title_runs), COUNT(title_specials)},
};

static const char *special_case(uint32_t c, const struct case_tables *tables)
{
    for (size_t i = 0; i < tables->n_specials && tables->specials[i].code <= c; i++)
        if (tables->specials[i].code == c)
            return tables->specials[i].text;
    return NULL;
}

static uint32_t simple_case(uint32_t c, const struct case_tables *tables)
{
    size_t low = 0, high = tables->n_runs; /* runs that begin up to c */

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (tables->runs[middle].first <= c)
            low = middle + 1;
        else
            high = middle;
    }
    /* Runs of every second character overlap with their neighbours. */
    for (size_t i = low; i > 0 && i + 2 > low; i--) {
        const struct case_run *run = &tables->runs[i - 1];
        if (c <= run->last && (c - run->first) % run->step == 0)
            return (uint32_t)((int64_t)c + run->delta);
    }
    return c;
}

bool tpl_is_upper(uint32_t c)
{
    return simple_case(c, &cases[TPL_LOWER]) != c || special_case(c, &cases[TPL_LOWER]);
}

bool tpl_is_lower(uint32_t c)
{
    return simple_case(c, &cases[TPL_UPPER]) != c || special_case(c, &cases[TPL_UPPER]);
}

void tpl_add_cased(struct tpl_builder *b, uint32_t c, enum tpl_case to, bool foreign)
{
    const char *special = c < 0x80 ? NULL : special_case(c, &cases[to]);
    char bytes[4];

    if (special) {
        tpl_add(b, special, strlen(special), foreign);
        return;
    }
    int size = utf8_encode(simple_case(c, &cases[to]), bytes);
    tpl_add(b, bytes, (size_t)size, foreign);
}

uint32_t tpl_decode(const struct tpl_string *s, size_t at, size_t *size)
{
    uint32_t c = 0;
    int n = utf8_decode(s->data + at, s->len - at, &c);

    *size = n > 0 ? (size_t)n : 1;
    return n > 0 ? c : 0xFFFD;
}

uint32_t tpl_decode_before(const struct tpl_string *s, size_t at, size_t *size)
{
    size_t start = at - 1;

    while (start > 0 && ((unsigned char)s->data[start] & 0xC0) == 0x80)
        start--;
    *size = at - start;
    size_t unused;
    return tpl_decode(s, start, &unused);
}
