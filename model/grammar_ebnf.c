#include "model/grammar_ebnf.h"

#include "base/utf8.h"
#include "model/hash_map.h"

#include <stdio.h>
#include <string.h>

enum {
    EBNF_MAX_DEPTH = 100,   /* of parentheses */
    EBNF_MAX_NODES = 16384, /* of all sequences and alternatives going on */
    NAME_MAX = 100,
    NAME_SLOTS = 4 * RULES_MAX,
};

struct parser {
    struct rules *rules;
    const char *text;
    size_t len, at;
    unsigned depth;
    uint32_t nodes[EBNF_MAX_NODES]; /* a stack: those that are to become one */
    uint32_t nodes_n;
    uint32_t slots[NAME_SLOTS]; /* by hash of a name: the rule, plus one; 0: free */
};

static uint32_t fail(struct parser *p, const char *what)
{
    unsigned line = 1;

    for (size_t i = 0; i < p->at && i < p->len; i++)
        line += p->text[i] == '\n';
    return rules_fail(p->rules, "line %u: %s", line, what);
}

static char peek(const struct parser *p)
{
    return p->at < p->len && !p->rules->failed ? p->text[p->at] : '\0';
}

static bool take(struct parser *p, const char *text)
{
    size_t len = strlen(text);

    if (p->rules->failed || p->len - p->at < len || memcmp(p->text + p->at, text, len) != 0)
        return false;
    p->at += len;
    return true;
}

/* Skips white space and comments. */
static void skip_space(struct parser *p)
{
    for (; p->at < p->len; p->at++) {
        if (p->text[p->at] == '#')
            while (p->at < p->len && p->text[p->at] != '\n')
                p->at++;
        if (p->at == p->len || !strchr(" \t\r\n", p->text[p->at]) || !p->text[p->at])
            return;
    }
}

static void push(struct parser *p, uint32_t node)
{
    if (p->nodes_n == EBNF_MAX_NODES)
        fail(p, "a rule has too many parts");
    else
        p->nodes[p->nodes_n++] = node;
}

/* ---- names ---- */

static bool is_name_byte(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
}

/* Takes a name, which may hold dots; an empty one when none is there. */
static void take_name(struct parser *p, char out[NAME_MAX + 1])
{
    size_t n = 0;

    while (is_name_byte(peek(p)) || (n > 0 && peek(p) == '.')) {
        if (n == NAME_MAX) {
            fail(p, "a name is too long");
            break;
        }
        out[n++] = p->text[p->at++];
    }
    out[n] = '\0';
}

/* Whether a rule begins here. */
static bool at_rule(struct parser *p)
{
    size_t start = p->at;
    char name[NAME_MAX + 1];

    take_name(p, name);
    skip_space(p);
    bool found = name[0] && take(p, "::=");
    p->at = start;
    return found;
}

/* The rule of that name, which is declared at its first use. */
static uint32_t find_rule(struct parser *p, const char *name)
{
    uint32_t slot = (uint32_t)hash_bytes(name, strlen(name), 0) % NAME_SLOTS;

    for (; p->slots[slot]; slot = (slot + 1) % NAME_SLOTS)
        if (strcmp(p->rules->names[p->slots[slot] - 1], name) == 0)
            return p->slots[slot] - 1;
    uint32_t rule = rules_declare(p->rules, name);
    if (!p->rules->failed)
        p->slots[slot] = rule + 1;
    return rule;
}

/* ---- characters ---- */

static uint32_t take_hex(struct parser *p, int digits)
{
    uint32_t value = 0;

    for (int i = 0; i < digits; i++) {
        char c = peek(p);
        const char *all = "0123456789abcdefABCDEF", *found = c ? strchr(all, c) : NULL;
        if (!found)
            return fail(p, "\\x takes two hexadecimal digits, \\u four, \\U eight");
        value = value << 4 | (uint32_t)(found - all >= 16 ? found - all - 6 : found - all);
        p->at++;
    }
    if (value > CODEPOINT_MAX || (value >= 0xD800 && value <= 0xDFFF))
        return fail(p, "an escape is no character");
    return value;
}

static uint32_t take_character(struct parser *p)
{
    static const char letters[] = "nrt\\\"'[]-^/.", values[] = "\n\r\t\\\"'[]-^/.";
    uint32_t codepoint = 0;

    if (take(p, "\\")) {
        char c = peek(p);
        const char *known = c ? strchr(letters, c) : NULL;
        if (!known && !strchr("xuU", c))
            return fail(p, "a backslash stands before what it has no meaning for");
        p->at++;
        return known ? (uint32_t)values[known - letters]
                     : take_hex(p, c == 'x'   ? 2
                                   : c == 'u' ? 4
                                              : 8);
    }
    int size = utf8_decode(p->text + p->at, p->len - p->at, &codepoint);
    if (size <= 0)
        return fail(p, "the grammar is not UTF-8, or ends too early");
    p->at += (size_t)size;
    return codepoint;
}

/* A literal, after its opening quote. */
static uint32_t parse_literal(struct parser *p)
{
    uint32_t base = p->nodes_n;
    char bytes[256];
    size_t n = 0;

    while (peek(p) != '"' && !p->rules->failed) {
        if (p->at == p->len || peek(p) == '\n')
            return fail(p, "a literal has no closing quote");
        if (n + 4 > sizeof(bytes)) {
            push(p, rules_bytes(p->rules, bytes, n));
            n = 0;
        }
        n += (size_t)utf8_encode(take_character(p), bytes + n);
    }
    take(p, "\"");
    push(p, rules_bytes(p->rules, bytes, n));
    uint32_t node = rules_sequence(p->rules, p->nodes + base, p->nodes_n - base);
    p->nodes_n = base;
    return node;
}

/* A class, after its opening bracket. */
static uint32_t parse_class(struct parser *p)
{
    struct codepoint_set set = {.count = 0};
    bool inverted = take(p, "^");

    while (peek(p) != ']' && !p->rules->failed) {
        if (p->at == p->len)
            return fail(p, "a class has no closing bracket");
        uint32_t low = take_character(p), high = low;
        if (peek(p) == '-' && p->at + 1 < p->len && p->text[p->at + 1] != ']') {
            p->at++;
            high = take_character(p);
        }
        if (high < low)
            return fail(p, "a range of characters ends before it begins");
        codepoint_set_add(&set, low, high);
    }
    take(p, "]");
    if (inverted)
        codepoint_set_invert(&set);
    else if (set.count == 0)
        return fail(p, "a class is empty");
    return rules_codepoints(p->rules, set, TEXT_PLAIN);
}

/* ---- expressions ---- */

static uint32_t parse_choice(struct parser *p);

/* One item without its quantifier; NODE_NONE where a sequence ends. */
static uint32_t parse_item(struct parser *p)
{
    struct codepoint_set all = {.count = 0};
    char name[NAME_MAX + 1];

    if (take(p, "\""))
        return parse_literal(p);
    if (take(p, "["))
        return parse_class(p);
    if (take(p, ".")) {
        codepoint_set_add(&all, 0, CODEPOINT_MAX);
        return rules_codepoints(p->rules, all, TEXT_PLAIN);
    }
    if (take(p, "(")) {
        if (peek(p) == '=' || peek(p) == '!')
            return fail(p, "look-ahead, (= and (!, is not supported");
        if (++p->depth > EBNF_MAX_DEPTH)
            return fail(p, "parentheses are nested too deeply");
        uint32_t node = parse_choice(p);
        p->depth--;
        return take(p, ")") ? node : fail(p, "a parenthesis is not closed");
    }
    if (!is_name_byte(peek(p)) || at_rule(p))
        return NODE_NONE;
    take_name(p, name);
    return rules_reference(p->rules, find_rule(p, name));
}

static bool take_number(struct parser *p, uint32_t *out)
{
    uint64_t value = 0;
    size_t start = p->at;

    for (; peek(p) >= '0' && peek(p) <= '9'; p->at++) {
        value = value * 10 + (uint64_t)(peek(p) - '0');
        if (value > COUNT_LIMIT)
            fail(p, "a count is too large");
    }
    *out = (uint32_t)value;
    return p->at > start;
}

/* {m}, {m,}, {m,n} and {,n}, after the opening brace. */
static uint32_t parse_braces(struct parser *p, uint32_t node)
{
    uint32_t min, max;

    skip_space(p);
    bool lower = take_number(p, &min), upper = false;
    skip_space(p);
    max = min;
    if (take(p, ",")) {
        skip_space(p);
        upper = take_number(p, &max);
        max = upper ? max : REPEAT_MAX;
        skip_space(p);
    }
    if (!take(p, "}") || (!lower && !upper))
        return fail(p, "a count in braces is {m}, {m,}, {m,n} or {,n}");
    if (max < min)
        return fail(p, "a count's maximum is below its minimum");
    return rules_repeat(p->rules, node, min, max);
}

static uint32_t parse_quantifiers(struct parser *p, uint32_t node)
{
    for (;;) {
        if (take(p, "*"))
            node = rules_repeat(p->rules, node, 0, REPEAT_MAX);
        else if (take(p, "+"))
            node = rules_repeat(p->rules, node, 1, REPEAT_MAX);
        else if (take(p, "?"))
            node = rules_repeat(p->rules, node, 0, 1);
        else if (take(p, "{"))
            node = parse_braces(p, node);
        else
            return node;
    }
}

static uint32_t parse_sequence(struct parser *p)
{
    uint32_t base = p->nodes_n, node;

    for (skip_space(p); !p->rules->failed && (node = parse_item(p)) != NODE_NONE; skip_space(p))
        push(p, parse_quantifiers(p, node));
    node = rules_sequence(p->rules, p->nodes + base, p->nodes_n - base);
    p->nodes_n = base;
    return node;
}

static uint32_t parse_choice(struct parser *p)
{
    uint32_t base = p->nodes_n;

    do
        push(p, parse_sequence(p));
    while (take(p, "|"));
    uint32_t node =
        p->rules->failed ? NODE_EMPTY : rules_choice(p->rules, p->nodes + base, p->nodes_n - base);
    p->nodes_n = base;
    return node;
}

static void parse_rule(struct parser *p)
{
    char name[NAME_MAX + 1];

    if (!at_rule(p)) {
        fail(p, "a rule is expected here: name ::= ...");
        return;
    }
    take_name(p, name);
    skip_space(p);
    take(p, "::=");
    uint32_t rule = find_rule(p, name);
    if (p->rules->failed)
        return;
    if (p->rules->roots[rule] != NODE_NONE) {
        char text[NAME_MAX + 64];
        snprintf(text, sizeof(text), "the rule %s is defined twice", name);
        fail(p, text);
        return;
    }
    rules_define(p->rules, rule, NODE_EMPTY); /* so that a second definition is seen */
    rules_define(p->rules, rule, parse_choice(p));
}

uint32_t ebnf_compile(struct rules *rules, const char *text, size_t len)
{
    struct parser p = {.rules = rules, .text = text, .len = len};

    for (skip_space(&p); p.at < len && !rules->failed; skip_space(&p))
        parse_rule(&p);
    for (uint32_t i = 0; i < rules->roots_n && !rules->failed; i++)
        if (rules->roots[i] == NODE_NONE)
            rules_fail(rules, "the rule %.100s is used and not defined", rules->names[i]);
    for (uint32_t i = 0; i < rules->roots_n && !rules->failed; i++)
        if (strcmp(rules->names[i], "root") == 0)
            return rules_reference(rules, i);
    return rules_fail(rules, "there is no rule named root");
}
