/* Characters and strings as rules over bytes: sets of codepoints become the byte sequences of their
 * UTF-8, lists of strings become a tree of their common beginnings.
 *
 * A text has one of two forms: plain, or that which it has between the quotes of a JSON string,
 * where some characters are escaped. A pattern for a JSON string is compiled in the second form. Of
 * the ways to write a character only the usual one is in it: "a" and never \u0061. */
#pragma once

#include "model/grammar_rules.h"

enum text_form { TEXT_PLAIN, TEXT_IN_JSON };

enum { CODEPOINT_MAX = 0x10FFFF, CODEPOINT_RANGES_MAX = 256 };

struct codepoint_range {
    uint32_t low, high;
};

/* A set of characters. Ranges may be added in any order, and overlap. */
struct codepoint_set {
    struct codepoint_range ranges[CODEPOINT_RANGES_MAX];
    uint32_t count;
    bool full; /* more ranges than there is room for: compiling it fails */
};

void codepoint_set_add(struct codepoint_set *set, uint32_t low, uint32_t high);
void codepoint_set_add_all(struct codepoint_set *set, const struct codepoint_set *other);

/* The set becomes that of all other characters. */
void codepoint_set_invert(struct codepoint_set *set);

/* One character of the set; surrogates are left out, and NUL in JSON (which base/json.h can't
 * read). Fails when nothing is left. */
uint32_t rules_codepoints(struct rules *rules, struct codepoint_set set, enum text_form form);
uint32_t rules_codepoint(struct rules *rules, uint32_t codepoint, enum text_form form);

/* One of some strings. Sorts `strings`; equal ones count once. */
struct rules_string {
    const char *text;
    size_t len;
};

uint32_t rules_strings(struct rules *rules, struct rules_string *strings, size_t count);

/* Any JSON string's contents, in its usual form, but for these. Sorts `strings`, which are in the
 * plain form. */
uint32_t rules_other_strings(struct rules *rules, struct rules_string *strings, size_t count);
