#include "model/grammar_text.h"

#include "base/utf8.h"
#include "model/vocabulary_trie.h"

#include <stdlib.h>
#include <string.h>

enum {
    STRINGS_MAX_DEPTH = 512, /* of the tree that a list of strings becomes */
    SEQUENCES_MAX = 4 * CODEPOINT_RANGES_MAX,
    ESCAPES_MAX = 40,
};

/* ---- sets of codepoints ---- */

void codepoint_set_add(struct codepoint_set *set, uint32_t low, uint32_t high)
{
    if (low > high)
        return;
    if (set->count == CODEPOINT_RANGES_MAX)
        set->full = true;
    else
        set->ranges[set->count++] = (struct codepoint_range){low, high};
}

void codepoint_set_add_all(struct codepoint_set *set, const struct codepoint_set *other)
{
    for (uint32_t i = 0; i < other->count; i++)
        codepoint_set_add(set, other->ranges[i].low, other->ranges[i].high);
    set->full |= other->full;
}

static int compare_ranges(const void *a, const void *b)
{
    const struct codepoint_range *x = a, *y = b;

    return (x->low > y->low) - (x->low < y->low);
}

/* Sorts the ranges and joins those that touch. */
static void normalise(struct codepoint_set *set)
{
    uint32_t count = 0;

    qsort(set->ranges, set->count, sizeof(set->ranges[0]), compare_ranges);
    for (uint32_t i = 0; i < set->count; i++) {
        struct codepoint_range r = set->ranges[i];
        struct codepoint_range *last = count ? &set->ranges[count - 1] : NULL;
        if (last && r.low <= last->high + 1)
            last->high = r.high > last->high ? r.high : last->high;
        else
            set->ranges[count++] = r;
    }
    set->count = count;
}

void codepoint_set_invert(struct codepoint_set *set)
{
    struct codepoint_set other = {.full = set->full};
    uint32_t from = 0;

    normalise(set);
    for (uint32_t i = 0; i < set->count; i++) {
        if (set->ranges[i].low > from)
            codepoint_set_add(&other, from, set->ranges[i].low - 1);
        from = set->ranges[i].high + 1;
    }
    codepoint_set_add(&other, from, CODEPOINT_MAX);
    *set = other;
}

static bool set_has(const struct codepoint_set *set, uint32_t c)
{
    for (uint32_t i = 0; i < set->count; i++)
        if (c >= set->ranges[i].low && c <= set->ranges[i].high)
            return true;
    return false;
}

/* Takes the characters from `low` to `high` out. */
static void set_remove(struct codepoint_set *set, uint32_t low, uint32_t high)
{
    codepoint_set_invert(set);
    codepoint_set_add(set, low, high);
    codepoint_set_invert(set);
}

/* Whether every plain character is in the set, which is normalised and without surrogates. */
static bool has_all_plain(const struct codepoint_set *set)
{
    uint32_t c = 0;

    for (uint32_t i = 0; i < set->count; i++) {
        for (; c < set->ranges[i].low; c++)
            if (vocabulary_is_plain(c) && !(c >= 0xD800 && c <= 0xDFFF))
                return false;
        c = set->ranges[i].high + 1;
    }
    return c > CODEPOINT_MAX;
}

/* ---- UTF-8 ---- */

/* Nodes that are alternatives to each other. */
struct alternatives {
    struct rules *rules;
    uint32_t nodes[SEQUENCES_MAX + ESCAPES_MAX];
    uint32_t count;
};

static void add_alternative(struct alternatives *alt, uint32_t node)
{
    if (alt->count == sizeof(alt->nodes) / sizeof(alt->nodes[0]))
        rules_fail(alt->rules, "a set of characters is too large");
    else
        alt->nodes[alt->count++] = node;
}

static uint32_t class_of_range(struct rules *r, unsigned low, unsigned high)
{
    struct byte_set set = {{0}};

    byte_set_add(&set, low, high);
    return rules_class(r, &set);
}

/* Adds the byte sequences of a range of characters from U+0080 up. A range is split where the
 * length changes, and then until all but its leading bytes are whole: then its sequences are a
 * product of ranges of bytes. */
static void add_utf8_range(struct alternatives *alt, uint32_t low, uint32_t high)
{
    static const uint32_t last_of_length[] = {0x7F, 0x7FF, 0xFFFF};
    uint32_t bytes[4];
    char from[4], to[4];

    for (int i = 0; i < 3; i++)
        if (low <= last_of_length[i] && high > last_of_length[i]) {
            add_utf8_range(alt, low, last_of_length[i]);
            add_utf8_range(alt, last_of_length[i] + 1, high);
            return;
        }
    for (int i = 1; i < 4; i++) {
        uint32_t rest = (1U << 6 * i) - 1; /* of i continuation bytes */
        if ((low & ~rest) == (high & ~rest))
            continue;
        if (low & rest) {
            add_utf8_range(alt, low, low | rest);
            add_utf8_range(alt, (low | rest) + 1, high);
            return;
        }
        if ((high & rest) != rest) {
            add_utf8_range(alt, low, (high & ~rest) - 1);
            add_utf8_range(alt, high & ~rest, high);
            return;
        }
    }
    int len = utf8_encode(low, from);
    utf8_encode(high, to);
    for (int i = 0; i < len; i++)
        bytes[i] = class_of_range(alt->rules, (uint8_t)from[i], (uint8_t)to[i]);
    add_alternative(alt, rules_sequence(alt->rules, bytes, (size_t)len));
}

/* Every character from U+0080 up, but U+2028 and U+2029 (and surrogates): one node for all uses. */
static uint32_t beyond_ascii(struct rules *r)
{
    struct alternatives alt = {.rules = r};

    if (r->beyond_ascii == NODE_NONE) {
        add_utf8_range(&alt, 0x80, 0x2027);
        add_utf8_range(&alt, 0x202A, 0xD7FF);
        add_utf8_range(&alt, 0xE000, CODEPOINT_MAX);
        r->beyond_ascii = rules_choice(r, alt.nodes, alt.count);
    }
    return r->beyond_ascii;
}

/* ---- JSON's escapes ---- */

/* The letter of a character's short escape, or 0. */
static char short_escape(uint32_t c)
{
    switch (c) {
    case '"':
        return '"';
    case '\\':
        return '\\';
    case '\b':
        return 'b';
    case '\f':
        return 'f';
    case '\n':
        return 'n';
    case '\r':
        return 'r';
    case '\t':
        return 't';
    default:
        return 0;
    }
}

/* Moves the characters that a JSON string escapes from the set to the alternatives. */
static void add_escapes(struct alternatives *alt, struct codepoint_set *set)
{
    struct byte_set letters = {{0}};
    char text[8];
    bool any = false;

    for (uint32_t c = 1; c < 0x80; c++) {
        char letter = short_escape(c);
        if ((c >= 0x20 && !letter) || !set_has(set, c))
            continue;
        if (letter) {
            byte_set_add(&letters, (uint8_t)letter, (uint8_t)letter);
            any = true;
            continue;
        }
        memcpy(text, "\\u0000", 7);
        text[4] = c < 0x10 ? '0' : '1';
        text[5] = "0123456789abcdef"[c & 15];
        add_alternative(alt, rules_bytes(alt->rules, text, 6));
    }
    if (any)
        add_alternative(alt, RULES_SEQUENCE(alt->rules, rules_text(alt->rules, "\\"),
                                            rules_class(alt->rules, &letters)));
    set_remove(set, 0, 0x1F);
    set_remove(set, '"', '"');
    set_remove(set, '\\', '\\');
}

/* ---- one character ---- */

uint32_t rules_codepoints(struct rules *r, struct codepoint_set set, enum text_form form)
{
    struct alternatives alt = {.rules = r};
    struct byte_set ascii = {{0}};
    bool any_ascii = false, all_plain;

    set_remove(&set, 0xD800, 0xDFFF);
    normalise(&set);
    all_plain = has_all_plain(&set);
    if (form == TEXT_IN_JSON)
        add_escapes(&alt, &set);
    for (uint32_t i = 0; i < set.count && set.ranges[i].low < 0x80; i++) {
        byte_set_add(&ascii, set.ranges[i].low,
                     set.ranges[i].high < 0x80 ? set.ranges[i].high : 0x7F);
        any_ascii = true;
    }
    if (any_ascii)
        add_alternative(&alt, rules_class(r, &ascii));
    if (all_plain) {
        add_alternative(&alt, beyond_ascii(r));
        set_remove(&set, 0x80, 0x2027);
        set_remove(&set, 0x202A, CODEPOINT_MAX);
    }
    for (uint32_t i = 0; i < set.count; i++)
        if (set.ranges[i].high >= 0x80)
            add_utf8_range(&alt, set.ranges[i].low < 0x80 ? 0x80 : set.ranges[i].low,
                           set.ranges[i].high);
    if (set.full)
        return rules_fail(r, "a set of characters has more than %d ranges", CODEPOINT_RANGES_MAX);
    if (alt.count == 0)
        return rules_fail(r, "a set of characters is empty");
    uint32_t node = rules_choice(r, alt.nodes, alt.count);
    if (!r->failed && all_plain)
        r->nodes[node].any_plain = true;
    return node;
}

uint32_t rules_codepoint(struct rules *r, uint32_t c, enum text_form form)
{
    struct codepoint_set set = {.count = 0};
    char bytes[4];

    if (form == TEXT_PLAIN && !(c >= 0xD800 && c <= 0xDFFF))
        return rules_bytes(r, bytes, (size_t)utf8_encode(c, bytes));
    codepoint_set_add(&set, c, c);
    return rules_codepoints(r, set, form);
}

/* ---- lists of strings ---- */

static int compare_strings(const void *a, const void *b)
{
    const struct rules_string *x = a, *y = b;
    int order = memcmp(x->text, y->text, x->len < y->len ? x->len : y->len);

    return order ? order : (x->len > y->len) - (x->len < y->len);
}

/* Length of what all strings, which are sorted, have in common from `at` on. */
static size_t common_length(const struct rules_string *strings, size_t count, size_t at)
{
    const struct rules_string *first = &strings[0], *last = &strings[count - 1];
    size_t len = 0;

    while (at + len < first->len && at + len < last->len &&
           first->text[at + len] == last->text[at + len])
        len++;
    return len;
}

/* End of the run of strings that have the same byte at `at` as the first. */
static size_t end_of_run(const struct rules_string *strings, size_t count, size_t at)
{
    size_t end = 1;

    while (end < count && strings[end].text[at] == strings[0].text[at])
        end++;
    return end;
}

/* What may follow the first `at` bytes of these sorted strings, which they have in common. */
static uint32_t strings_from(struct rules *r, const struct rules_string *strings, size_t count,
                             size_t at, unsigned depth)
{
    size_t shared = common_length(strings, count, at), branches_n = 0;
    uint32_t head = rules_bytes(r, strings[0].text + at, shared), branches[257];

    if (depth > STRINGS_MAX_DEPTH)
        return rules_fail(r, "the strings have too many beginnings in common");
    at += shared;
    while (count > 0 && strings[0].len == at) { /* the first ends here, and others like it */
        branches[0] = NODE_EMPTY;
        branches_n = 1;
        strings++;
        count--;
    }
    while (count > 0 && !r->failed) {
        size_t run = end_of_run(strings, count, at);
        branches[branches_n++] = strings_from(r, strings, run, at, depth + 1);
        strings += run;
        count -= run;
    }
    if (branches_n == 0 || r->failed)
        return head;
    uint32_t tail = rules_choice(r, branches, branches_n);
    return head == NODE_EMPTY ? tail : RULES_SEQUENCE(r, head, tail);
}

uint32_t rules_strings(struct rules *r, struct rules_string *strings, size_t count)
{
    if (count == 0)
        return rules_fail(r, "a list of strings is empty");
    qsort(strings, count, sizeof(*strings), compare_strings);
    return strings_from(r, strings, count, 0, 0);
}

/* What may follow the first `at` bytes, so that none of the strings comes out. */
static uint32_t others_from(struct rules *r, const struct rules_string *strings, size_t count,
                            size_t at, uint32_t any, unsigned depth)
{
    struct codepoint_set free_set = {.count = 0};
    bool ends = false;

    if (depth > STRINGS_MAX_DEPTH)
        return rules_fail(r, "a name in \"properties\" is longer than %d characters",
                          (int)STRINGS_MAX_DEPTH);
    while (count > 0 && strings[0].len == at) {
        ends = true;
        strings++;
        count--;
    }
    if (count == 0)
        return ends ? rules_repeat(r, any, 1, REPEAT_MAX) : rules_repeat(r, any, 0, REPEAT_MAX);
    uint32_t branches[300], branches_n = 0;
    branches[branches_n++] = NODE_EMPTY; /* replaced below */
    while (count > 0 && !r->failed) {
        uint32_t codepoint = 0;
        int size = utf8_decode(strings[0].text + at, strings[0].len - at, &codepoint);
        size_t run = 1;
        while (run < count && strings[run].len - at >= (size_t)size &&
               memcmp(strings[run].text + at, strings[0].text + at, (size_t)size) == 0)
            run++;
        if (size <= 0 || branches_n + 2 > sizeof(branches) / sizeof(branches[0]))
            return rules_fail(r, "the names in \"properties\" begin in too many ways");
        codepoint_set_add(&free_set, codepoint, codepoint);
        branches[branches_n++] =
            RULES_SEQUENCE(r, rules_codepoint(r, codepoint, TEXT_IN_JSON),
                           others_from(r, strings, run, at + (size_t)size, any, depth + 1));
        strings += run;
        count -= run;
    }
    codepoint_set_invert(&free_set);
    branches[0] = RULES_SEQUENCE(r, rules_codepoints(r, free_set, TEXT_IN_JSON),
                                 rules_repeat(r, any, 0, REPEAT_MAX));
    if (!ends)
        branches[branches_n++] = NODE_EMPTY;
    return rules_choice(r, branches, branches_n);
}

uint32_t rules_other_strings(struct rules *r, struct rules_string *strings, size_t count)
{
    struct codepoint_set all = {.count = 0};

    codepoint_set_add(&all, 1, CODEPOINT_MAX);
    if (count)
        qsort(strings, count, sizeof(*strings), compare_strings);
    return others_from(r, strings, count, 0, rules_codepoints(r, all, TEXT_IN_JSON), 0);
}
