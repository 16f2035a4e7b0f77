/* A recursive-descent parser that builds the rules as it goes:
 *
 *   expression := branch ('|' branch)*
 *   branch     := '^'? (atom quantifier?)* '$'?       the anchors only outside of groups
 *   atom       := character | escape | '.' | '[' class ']' | '(' expression ')'
 */
#include "model/grammar_regex.h"

#include "base/utf8.h"

#include <string.h>

enum {
    REGEX_MAX_DEPTH = 100,     /* of groups */
    REGEX_MAX_BRANCHES = 4096, /* of all alternatives going on */
    REGEX_MAX_ITEMS = 16384,   /* of all sequences going on */
};

/* A stack of nodes that are to become one. */
struct node_stack {
    uint32_t *nodes;
    uint32_t count, max;
};

struct parser {
    struct rules *rules;
    const char *text;
    size_t len, at;
    enum regex_scope scope;
    enum text_form form;
    unsigned depth;
    struct node_stack branches, items;
};

static struct regex_piece parse_expression(struct parser *p);

static const struct regex_piece nothing = {NODE_EMPTY, 0, 0, NODE_NONE};

static uint32_t fail(struct parser *p, const char *what)
{
    return rules_fail(p->rules, "%s (at byte %zu of the expression)", what, p->at);
}

static bool done(const struct parser *p)
{
    return p->at >= p->len || p->rules->failed;
}

static char peek(const struct parser *p)
{
    return done(p) ? '\0' : p->text[p->at];
}

static bool starts_with(const struct parser *p, const char *text)
{
    size_t len = strlen(text);

    return !done(p) && p->len - p->at >= len && memcmp(p->text + p->at, text, len) == 0;
}

static bool take(struct parser *p, const char *text)
{
    bool there = starts_with(p, text);

    if (there)
        p->at += strlen(text);
    return there;
}

static void push(struct parser *p, struct node_stack *stack, uint32_t node)
{
    if (stack->count == stack->max)
        fail(p, "the expression has too many parts");
    else
        stack->nodes[stack->count++] = node;
}

static uint32_t add_counts(uint32_t a, uint32_t b)
{
    return a == REPEAT_MAX || b == REPEAT_MAX || a + b < a ? REPEAT_MAX : a + b;
}

static uint32_t multiply_counts(uint32_t a, uint32_t b)
{
    uint64_t product = (uint64_t)a * b;

    if (a == 0 || b == 0)
        return 0;
    return a == REPEAT_MAX || b == REPEAT_MAX || product >= REPEAT_MAX ? REPEAT_MAX
                                                                       : (uint32_t)product;
}

/* ---- characters ---- */

static uint32_t take_codepoint(struct parser *p)
{
    uint32_t codepoint = 0;
    int size = utf8_decode(p->text + p->at, p->len - p->at, &codepoint);

    if (size <= 0)
        return fail(p, "the expression is not UTF-8");
    p->at += (size_t)size;
    return codepoint;
}

static int hex_value(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* `digits` hexadecimal digits; with 0, those up to a closing brace. */
static uint32_t take_hex(struct parser *p, int digits)
{
    uint32_t value = 0;
    int taken = 0;

    for (; (digits == 0 || taken < digits) && hex_value(peek(p)) >= 0 && value <= CODEPOINT_MAX;
         taken++)
        value = value << 4 | (uint32_t)hex_value(p->text[p->at++]);
    if (taken == 0 || taken < digits || value > CODEPOINT_MAX || (digits == 0 && !take(p, "}")))
        return fail(p, "\\x takes two hexadecimal digits, \\u four, or some in braces");
    return value;
}

/* After "\u": a character, or two halves of one. */
static uint32_t take_unicode_escape(struct parser *p)
{
    if (take(p, "{"))
        return take_hex(p, 0);
    uint32_t high = take_hex(p, 4);
    if (high < 0xD800 || high > 0xDFFF)
        return high;
    uint32_t low = take(p, "\\u") ? take_hex(p, 4) : 0;
    if (high > 0xDBFF || low < 0xDC00 || low > 0xDFFF)
        return fail(p, "half of a surrogate pair is no character");
    return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
}

static void add_word_set(struct codepoint_set *set)
{
    codepoint_set_add(set, '0', '9');
    codepoint_set_add(set, 'A', 'Z');
    codepoint_set_add(set, '_', '_');
    codepoint_set_add(set, 'a', 'z');
}

/* What any dialect takes for white space; \S is what none does, and \s only that of ASCII. */
static void add_wide_space_set(struct codepoint_set *set)
{
    static const struct codepoint_range space[] = {
        {0x09, 0x0D},     {0x1C, 0x20},     {0x85, 0x85},     {0xA0, 0xA0},
        {0x1680, 0x1680}, {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F},
        {0x205F, 0x205F}, {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};

    for (size_t i = 0; i < sizeof(space) / sizeof(space[0]); i++)
        codepoint_set_add(set, space[i].low, space[i].high);
}

/* Takes \d and the like, if one is there. */
static bool take_class_escape(struct parser *p, struct codepoint_set *out)
{
    struct codepoint_set set = {.count = 0};

    if (peek(p) != '\\' || p->at + 1 >= p->len || !strchr("dDwWsS", p->text[p->at + 1]) ||
        p->text[p->at + 1] == '\0')
        return false;
    char letter = p->text[p->at + 1];
    p->at += 2;
    if (letter == 'd' || letter == 'D') {
        codepoint_set_add(&set, '0', '9');
    } else if (letter == 'w' || letter == 'W') {
        add_word_set(&set);
    } else if (letter == 's') {
        codepoint_set_add(&set, 0x09, 0x0D);
        codepoint_set_add(&set, ' ', ' ');
    } else {
        add_wide_space_set(&set);
    }
    if (letter >= 'A' && letter <= 'Z')
        codepoint_set_invert(&set);
    codepoint_set_add_all(out, &set);
    return true;
}

/* One character, which may be written as an escape. */
static uint32_t take_character(struct parser *p, bool in_class)
{
    static const char letters[] = "nrtfv0", values[] = "\n\r\t\f\v";

    if (!take(p, "\\"))
        return take_codepoint(p);
    char c = peek(p);
    const char *known = c ? strchr(letters, c) : NULL;
    if (take(p, "x"))
        return take_hex(p, 2);
    if (take(p, "u"))
        return take_unicode_escape(p);
    if (c == 'b' && in_class) {
        p->at++;
        return '\b';
    }
    if (known && !(c == '0' && p->at + 1 < p->len && p->text[p->at + 1] >= '0' &&
                   p->text[p->at + 1] <= '9')) {
        p->at++;
        return (uint32_t)values[known - letters]; /* "0" is at the end of the values: NUL */
    }
    if (c >= '0' && c <= '9')
        return fail(p, "back-references and octal escapes are not supported");
    if (c == 'k')
        return fail(p, "back-references (\\k) are not supported");
    if (c == 'b' || c == 'B' || c == 'A' || c == 'Z' || c == 'z')
        return fail(p, "the assertions \\b, \\B, \\A, \\Z and \\z are not supported");
    if (c == 'p' || c == 'P')
        return fail(p, "character properties (\\p) are not supported");
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || done(p))
        return fail(p, "a backslash stands before what it has no meaning for");
    return take_codepoint(p);
}

/* A class, after its opening bracket. */
static struct codepoint_set take_class(struct parser *p)
{
    struct codepoint_set set = {.count = 0};
    bool inverted = take(p, "^");

    while (!done(p) && peek(p) != ']') {
        if (starts_with(p, "[:") || starts_with(p, "[.") || starts_with(p, "[=")) {
            fail(p, "POSIX classes ([:alpha:]) are not supported");
            break;
        }
        if (take_class_escape(p, &set))
            continue;
        uint32_t low = take_character(p, true), high = low;
        bool range = peek(p) == '-' && p->at + 1 < p->len && p->text[p->at + 1] != ']';
        if (range) {
            p->at++;
            struct codepoint_set unused = {.count = 0};
            if (take_class_escape(p, &unused))
                fail(p, "a range of characters can't end with a class like \\d");
            high = take_character(p, true);
        }
        if (high < low)
            fail(p, "a range of characters ends before it begins");
        codepoint_set_add(&set, low, high);
    }
    if (!take(p, "]"))
        fail(p, "a class has no closing bracket");
    if (inverted)
        codepoint_set_invert(&set);
    return set;
}

static struct regex_piece one_character(struct parser *p, struct codepoint_set set)
{
    uint32_t node = rules_codepoints(p->rules, set, p->form);

    return (struct regex_piece){node, 1, 1, node};
}

/* ---- atoms ---- */

/* What stands behind "(?"; true when it is a group that only groups. */
static bool take_group_kind(struct parser *p)
{
    if (take(p, ":"))
        return true;
    if (starts_with(p, "=") || starts_with(p, "!") || starts_with(p, "<=") ||
        starts_with(p, "<!")) {
        fail(p, "look-around ((?=, (?!, (?<=, (?<!) is not supported");
        return false;
    }
    if (take(p, "<") || take(p, "P<")) {
        while (!done(p) && peek(p) != '>')
            p->at++;
        if (take(p, ">"))
            return true;
    }
    fail(p, "of groups that begin with (?, only (?: and (?<name> are supported");
    return false;
}

static struct regex_piece parse_group(struct parser *p)
{
    if (take(p, "?") && !take_group_kind(p))
        return nothing;
    if (++p->depth > REGEX_MAX_DEPTH)
        fail(p, "groups are nested too deeply");
    struct regex_piece piece = parse_expression(p);
    p->depth--;
    if (!take(p, ")"))
        fail(p, "a group has no closing parenthesis");
    return piece;
}

static struct regex_piece parse_atom(struct parser *p)
{
    struct codepoint_set set = {.count = 0};

    if (take(p, "("))
        return parse_group(p);
    if (take(p, "["))
        return one_character(p, take_class(p));
    if (take(p, ".")) {
        codepoint_set_add(&set, '\n', '\n');
        codepoint_set_add(&set, '\r', '\r');
        codepoint_set_add(&set, 0x2028, 0x2029);
        codepoint_set_invert(&set);
        return one_character(p, set);
    }
    if (take_class_escape(p, &set))
        return one_character(p, set);
    if (peek(p) == '^' || peek(p) == '$') {
        fail(p, "^ and $ are supported only at the ends of the expression and of the alternatives "
                "that are not in a group");
        return nothing;
    }
    if (peek(p) == '*' || peek(p) == '+' || peek(p) == '?') {
        fail(p, "a quantifier has nothing to repeat");
        return nothing;
    }
    uint32_t node = rules_codepoint(p->rules, take_character(p, false), p->form);
    return (struct regex_piece){node, 1, 1, node};
}

/* ---- quantifiers ---- */

/* A number; false when none is there. */
static bool take_count(struct parser *p, uint32_t *out)
{
    uint64_t value = 0;
    size_t start = p->at;

    for (; peek(p) >= '0' && peek(p) <= '9'; p->at++)
        value = value * 10 + (uint64_t)(peek(p) - '0') > COUNT_LIMIT
                    ? COUNT_LIMIT + 1ULL
                    : value * 10 + (uint64_t)(peek(p) - '0');
    if (value > COUNT_LIMIT)
        fail(p, "a count is too large");
    *out = (uint32_t)value;
    return p->at > start;
}

/* Takes {m}, {m,} or {m,n}; anything else in braces is text. */
static bool take_braces(struct parser *p, uint32_t *min, uint32_t *max)
{
    size_t start = p->at;
    bool closed = false;

    if (take(p, "{") && take_count(p, min)) {
        *max = *min;
        if (take(p, ",") && !take_count(p, max))
            *max = REPEAT_MAX;
        closed = take(p, "}");
    }
    if (!closed)
        p->at = start;
    return closed;
}

static bool take_quantifier(struct parser *p, uint32_t *min, uint32_t *max)
{
    *min = 0;
    *max = REPEAT_MAX;
    if (take(p, "?"))
        *max = 1;
    else if (take(p, "+"))
        *min = 1;
    else if (!take(p, "*") && !take_braces(p, min, max))
        return false;
    if (*max < *min)
        fail(p, "a quantifier's maximum is below its minimum");
    uint32_t unused[2];
    if (!take(p, "?") &&
        (peek(p) == '+' || peek(p) == '*' || take_braces(p, &unused[0], &unused[1])))
        fail(p, "possessive and doubled quantifiers are not supported");
    return true;
}

static struct regex_piece quantify(struct parser *p, struct regex_piece piece, uint32_t min,
                                   uint32_t max)
{
    struct regex_piece out = {.node = rules_repeat(p->rules, piece.node, min, max),
                              .least = multiply_counts(piece.least, min),
                              .most = multiply_counts(piece.most, max),
                              .unit = NODE_NONE};

    if (piece.unit != NODE_NONE && piece.least == 1 && piece.most == 1)
        out.unit = piece.unit;
    return out;
}

/* ---- sequences and alternatives ---- */

/* Any text, which stands where a search is not anchored. */
static struct regex_piece any_text(struct parser *p)
{
    struct codepoint_set all = {.count = 0};

    codepoint_set_add(&all, 0, CODEPOINT_MAX);
    uint32_t node = rules_codepoints(p->rules, all, p->form);
    return (struct regex_piece){rules_repeat(p->rules, node, 0, REPEAT_MAX), 0, REPEAT_MAX, node};
}

/* Appends a piece to the sequence whose nodes begin at `base`. */
static void append(struct parser *p, uint32_t base, struct regex_piece *all,
                   struct regex_piece piece)
{
    bool alone = p->items.count == base;

    push(p, &p->items, piece.node);
    all->least = add_counts(all->least, piece.least);
    all->most = add_counts(all->most, piece.most);
    all->unit = alone ? piece.unit : NODE_NONE;
}

static struct regex_piece parse_branch(struct parser *p)
{
    struct regex_piece all = nothing;
    uint32_t base = p->items.count, min, max;
    bool outside = p->depth == 0, open_end = outside && p->scope == REGEX_SEARCH;

    if (!(outside && take(p, "^")) && open_end)
        append(p, base, &all, any_text(p));
    while (!done(p) && peek(p) != '|' && peek(p) != ')') {
        if (outside && peek(p) == '$' && (p->at + 1 == p->len || p->text[p->at + 1] == '|')) {
            p->at++;
            open_end = false;
            break;
        }
        struct regex_piece piece = parse_atom(p);
        if (take_quantifier(p, &min, &max))
            piece = quantify(p, piece, min, max);
        append(p, base, &all, piece);
    }
    if (open_end)
        append(p, base, &all, any_text(p));
    all.node = rules_sequence(p->rules, p->items.nodes + base, p->items.count - base);
    p->items.count = base;
    return all;
}

static struct regex_piece parse_expression(struct parser *p)
{
    uint32_t base = p->branches.count;
    struct regex_piece all = parse_branch(p);

    push(p, &p->branches, all.node);
    while (take(p, "|")) {
        struct regex_piece branch = parse_branch(p);
        push(p, &p->branches, branch.node);
        all.least = branch.least < all.least ? branch.least : all.least;
        all.most = branch.most > all.most ? branch.most : all.most;
        all.unit = NODE_NONE;
    }
    if (!p->rules->failed)
        all.node = rules_choice(p->rules, p->branches.nodes + base, p->branches.count - base);
    p->branches.count = base;
    if (all.unit == NODE_NONE && all.least == 1 && all.most == 1)
        all.unit = all.node; /* (a|b): one character as well */
    return all;
}

struct regex_piece regex_compile(struct rules *rules, const char *text, size_t len,
                                 enum regex_scope scope, enum text_form form)
{
    uint32_t branches[REGEX_MAX_BRANCHES], items[REGEX_MAX_ITEMS];
    struct parser p = {.rules = rules,
                       .text = text,
                       .len = len,
                       .scope = scope,
                       .form = form,
                       .branches = {branches, 0, REGEX_MAX_BRANCHES},
                       .items = {items, 0, REGEX_MAX_ITEMS}};

    struct regex_piece piece = parse_expression(&p);
    if (!rules->failed && p.at < p.len)
        fail(&p, "a closing parenthesis has no group");
    return rules->failed ? nothing : piece;
}
