/* Expressions, in the order of jinja2/parser.py: a function for each level of precedence. */
#include "model/template_expression.h"

#include "model/template_function.h"

#include <string.h>

/* ---- tokens -------------------------------------------------------------------------------- */

bool tpl_at_kind(const struct tpl_parser *p, enum tpl_token_kind kind)
{
    return p->token->kind == kind;
}

bool tpl_token_is(const struct tpl_token *token, enum tpl_token_kind kind, const char *text)
{
    return token->kind == kind && token->len == strlen(text) &&
           memcmp(token->text, text, token->len) == 0;
}

bool tpl_at_operator(const struct tpl_parser *p, const char *text)
{
    return tpl_token_is(p->token, TOKEN_OPERATOR, text);
}

bool tpl_at_word(const struct tpl_parser *p, const char *text)
{
    return tpl_token_is(p->token, TOKEN_NAME, text);
}

const struct tpl_token *tpl_advance(struct tpl_parser *p)
{
    const struct tpl_token *token = p->token;

    if (token->kind != TOKEN_EOF)
        p->token++;
    p->heap->line = p->token->line;
    return token;
}

_Noreturn void tpl_fail_expected(struct tpl_parser *p, const char *what)
{
    if (tpl_at_kind(p, TOKEN_EOF))
        tpl_fail(p->heap, "the template ends where %s should stand", what);
    if (tpl_at_kind(p, TOKEN_BLOCK_END) || tpl_at_kind(p, TOKEN_VARIABLE_END))
        tpl_fail(p->heap, "the tag ends where %s should stand", what);
    tpl_fail(p->heap, "'%.*s' stands where %s should",
             (int)(p->token->len < 40 ? p->token->len : 40), p->token->text, what);
}

bool tpl_skip_operator(struct tpl_parser *p, const char *text)
{
    bool there = tpl_at_operator(p, text);

    if (there)
        tpl_advance(p);
    return there;
}

bool tpl_skip_word(struct tpl_parser *p, const char *text)
{
    bool there = tpl_at_word(p, text);

    if (there)
        tpl_advance(p);
    return there;
}

void tpl_expect_operator(struct tpl_parser *p, const char *text)
{
    if (!tpl_skip_operator(p, text))
        tpl_fail_expected(p, text);
}

const struct tpl_token *tpl_expect_kind(struct tpl_parser *p, enum tpl_token_kind kind,
                                        const char *what)
{
    if (!tpl_at_kind(p, kind))
        tpl_fail_expected(p, what);
    return tpl_advance(p);
}

/* ---- parts of the tree --------------------------------------------------------------------- */

struct tpl_value tpl_word_of(struct tpl_parser *p, const struct tpl_token *token)
{
    return tpl_string(p->heap, token->text, token->len, false);
}

static struct tpl_expr *new_expr(struct tpl_parser *p, enum tpl_expr_kind kind, int line)
{
    struct tpl_expr *e = tpl_alloc(p->heap, sizeof(*e));

    *e = (struct tpl_expr){.kind = kind, .line = line};
    return e;
}

struct tpl_expr *tpl_new_pair(struct tpl_parser *p, enum tpl_expr_kind kind, int line,
                              struct tpl_expr *a, struct tpl_expr *b)
{
    struct tpl_expr *e = new_expr(p, kind, line);

    e->a = a;
    e->b = b;
    return e;
}

void *tpl_room(struct tpl_parser *p, void *array, size_t n, size_t *cap, size_t size)
{
    if (n < *cap)
        return array;
    *cap = *cap ? 2 * *cap : 4;
    void *grown = tpl_alloc(p->heap, *cap * size);
    if (n > 0)
        memcpy(grown, array, n * size);
    return grown;
}

void tpl_add_expr(struct tpl_parser *p, struct tpl_exprs *list, struct tpl_expr *e)
{
    list->items = tpl_room(p, list->items, list->n, &list->cap, sizeof(*list->items));
    list->items[list->n++] = e;
}

int tpl_symbol_of(struct tpl_parser *p, struct tpl_value name)
{
    struct tpl_tree *tree = p->tree;
    size_t cap = (size_t)p->symbols_cap;

    for (int i = 0; i < tree->n_symbols; i++)
        if (tpl_equal(p->heap, tree->symbols[i], name))
            return i;
    tree->symbols =
        tpl_room(p, tree->symbols, (size_t)tree->n_symbols, &cap, sizeof(*tree->symbols));
    p->symbols_cap = (int)cap;
    tree->symbols[tree->n_symbols] = name;
    return tree->n_symbols++;
}

static struct tpl_expr *parse_unary(struct tpl_parser *p, bool with_filters);

/* ---- primaries ----------------------------------------------------------------------------- */

struct tpl_expr *tpl_parse_name(struct tpl_parser *p)
{
    const struct tpl_token *token = tpl_advance(p);
    static const struct {
        const char *word;
        enum tpl_type type;
        bool truth;
    } constants[] = {{"true", TPL_BOOL, true},   {"True", TPL_BOOL, true},
                     {"false", TPL_BOOL, false}, {"False", TPL_BOOL, false},
                     {"none", TPL_NONE, 0},      {"None", TPL_NONE, 0}};

    for (size_t i = 0; i < sizeof(constants) / sizeof(constants[0]); i++)
        if (tpl_token_is(token, TOKEN_NAME, constants[i].word)) {
            struct tpl_expr *e = new_expr(p, EXPR_CONST, token->line);
            e->value.type = constants[i].type;
            e->value.truth = constants[i].truth;
            return e;
        }
    struct tpl_expr *e = new_expr(p, EXPR_NAME, token->line);
    e->value = tpl_word_of(p, token);
    e->symbol = tpl_symbol_of(p, e->value);
    if (p->macro) {
        p->macro->takes_caller |= e->symbol == SYMBOL_CALLER;
        p->macro->takes_varargs |= e->symbol == SYMBOL_VARARGS;
        p->macro->takes_kwargs |= e->symbol == SYMBOL_KWARGS;
    }
    return e;
}

static struct tpl_expr *parse_strings(struct tpl_parser *p)
{
    struct tpl_expr *e = new_expr(p, EXPR_CONST, p->token->line);
    struct tpl_builder b;

    tpl_builder_init(&b, p->heap);
    while (tpl_at_kind(p, TOKEN_STRING)) {
        const struct tpl_token *token = tpl_advance(p);
        tpl_add(&b, token->text, token->len, false);
    }
    e->value = tpl_built(&b);
    return e;
}

/* Whether a tuple without brackets ends here. `end_word` is a word that ends it, or NULL. */
static bool at_tuple_end(const struct tpl_parser *p, const char *end_word)
{
    return tpl_at_kind(p, TOKEN_VARIABLE_END) || tpl_at_kind(p, TOKEN_BLOCK_END) ||
           tpl_at_operator(p, ")") || (end_word && tpl_at_word(p, end_word));
}

/* Expressions between commas: a tuple, or the one expression when there is no comma. */
struct tpl_expr *tpl_parse_tuple_of(struct tpl_parser *p,
                                    struct tpl_expr *(*parse)(struct tpl_parser *),
                                    const char *end_word, bool may_be_empty)
{
    struct tpl_expr *tuple = new_expr(p, EXPR_TUPLE, p->token->line);
    bool comma = false;

    for (;;) {
        if (tuple->items.n > 0)
            tpl_expect_operator(p, ",");
        if (at_tuple_end(p, end_word))
            break;
        tpl_add_expr(p, &tuple->items, parse(p));
        if (!tpl_at_operator(p, ","))
            break;
        comma = true;
    }
    if (comma)
        return tuple;
    if (tuple->items.n == 1)
        return tuple->items.items[0];
    if (!may_be_empty)
        tpl_fail_expected(p, "an expression");
    return tuple;
}

static struct tpl_expr *parse_list(struct tpl_parser *p)
{
    struct tpl_expr *list = new_expr(p, EXPR_LIST, tpl_advance(p)->line);

    while (!tpl_at_operator(p, "]")) {
        if (list->items.n > 0)
            tpl_expect_operator(p, ",");
        if (tpl_at_operator(p, "]"))
            break;
        tpl_add_expr(p, &list->items, tpl_parse_expression(p));
    }
    tpl_advance(p);
    return list;
}

static struct tpl_expr *parse_dict(struct tpl_parser *p)
{
    struct tpl_expr *dict = new_expr(p, EXPR_DICT, tpl_advance(p)->line);

    while (!tpl_at_operator(p, "}")) {
        if (dict->items.n > 0)
            tpl_expect_operator(p, ",");
        if (tpl_at_operator(p, "}"))
            break;
        tpl_add_expr(p, &dict->items, tpl_parse_expression(p));
        tpl_expect_operator(p, ":");
        tpl_add_expr(p, &dict->items, tpl_parse_expression(p));
    }
    tpl_advance(p);
    return dict;
}

static struct tpl_expr *parse_primary(struct tpl_parser *p)
{
    struct tpl_expr *e;

    switch (p->token->kind) {
    case TOKEN_NAME:
        return tpl_parse_name(p);
    case TOKEN_STRING:
        return parse_strings(p);
    case TOKEN_INTEGER:
    case TOKEN_FLOAT:
        e = new_expr(p, EXPR_CONST, p->token->line);
        e->value = tpl_advance(p)->value;
        return e;
    default:
        break;
    }
    if (tpl_at_operator(p, "["))
        return parse_list(p);
    if (tpl_at_operator(p, "{"))
        return parse_dict(p);
    if (!tpl_skip_operator(p, "("))
        tpl_fail_expected(p, "an expression");
    e = tpl_parse_tuple_of(p, tpl_parse_expression, NULL, true);
    tpl_expect_operator(p, ")");
    return e;
}

/* ---- what follows a primary ---------------------------------------------------------------- */

static struct tpl_call *parse_call(struct tpl_parser *p)
{
    struct tpl_call *call = tpl_alloc(p->heap, sizeof(*call));

    *call = (struct tpl_call){.named = NULL};
    tpl_expect_operator(p, "(");
    for (bool first = true; !tpl_at_operator(p, ")"); first = false) {
        if (!first)
            tpl_expect_operator(p, ",");
        if (tpl_at_operator(p, ")"))
            break;
        bool starred = call->more_positional || call->more_named;
        if (tpl_at_operator(p, "*") && !starred) {
            tpl_advance(p);
            call->more_positional = tpl_parse_expression(p);
        } else if (tpl_at_operator(p, "**") && !call->more_named) {
            tpl_advance(p);
            call->more_named = tpl_parse_expression(p);
        } else if (tpl_at_kind(p, TOKEN_NAME) && tpl_token_is(p->token + 1, TOKEN_OPERATOR, "=") &&
                   !call->more_named) {
            struct tpl_value name = tpl_word_of(p, tpl_advance(p));
            tpl_advance(p);
            call->named =
                tpl_room(p, call->named, call->n_named, &call->named_cap, sizeof(*call->named));
            call->named[call->n_named++] = (struct tpl_named_expr){name, tpl_parse_expression(p)};
        } else if (!starred && call->n_named == 0) {
            tpl_add_expr(p, &call->positional, tpl_parse_expression(p));
        } else {
            tpl_fail(p->heap, "the arguments of a call are in a wrong order");
        }
    }
    tpl_advance(p);
    return call;
}

/* One index or slice between square brackets. */
static struct tpl_expr *parse_subscript(struct tpl_parser *p)
{
    struct tpl_expr *slice = new_expr(p, EXPR_SLICE, p->token->line), *e = NULL;

    if (!tpl_at_operator(p, ":")) {
        e = tpl_parse_expression(p);
        if (!tpl_at_operator(p, ":"))
            return e;
    }
    tpl_add_expr(p, &slice->items, e);
    for (int i = 0; i < 2; i++) { /* the stop, the step */
        bool there = tpl_skip_operator(p, ":") && !tpl_at_operator(p, ":") &&
                     !tpl_at_operator(p, "]") && !tpl_at_operator(p, ",");
        tpl_add_expr(p, &slice->items, there ? tpl_parse_expression(p) : NULL);
    }
    return slice;
}

static struct tpl_expr *parse_item(struct tpl_parser *p, struct tpl_expr *of)
{
    int line = tpl_advance(p)->line;
    struct tpl_expr *index = new_expr(p, EXPR_TUPLE, line);

    while (!tpl_at_operator(p, "]")) {
        if (index->items.n > 0)
            tpl_expect_operator(p, ",");
        tpl_add_expr(p, &index->items, parse_subscript(p));
    }
    tpl_advance(p);
    if (index->items.n == 1)
        return tpl_new_pair(p, EXPR_ITEM, line, of, index->items.items[0]);
    for (size_t i = 0; i < index->items.n; i++)
        if (index->items.items[i]->kind == EXPR_SLICE)
            tpl_fail(p->heap, "a slice can't be one of several indices");
    return tpl_new_pair(p, EXPR_ITEM, line, of, index);
}

static struct tpl_expr *parse_attribute(struct tpl_parser *p, struct tpl_expr *of)
{
    int line = tpl_advance(p)->line;

    if (tpl_at_kind(p, TOKEN_INTEGER)) {
        struct tpl_expr *index = new_expr(p, EXPR_CONST, line);
        index->value = tpl_advance(p)->value;
        return tpl_new_pair(p, EXPR_ITEM, line, of, index);
    }
    struct tpl_expr *e = tpl_new_pair(p, EXPR_ATTRIBUTE, line, of, NULL);
    e->value = tpl_word_of(p, tpl_expect_kind(p, TOKEN_NAME, "a name or number"));
    return e;
}

static struct tpl_expr *parse_called(struct tpl_parser *p, struct tpl_expr *of)
{
    struct tpl_expr *e = tpl_new_pair(p, EXPR_CALL, p->token->line, of, NULL);

    e->call = parse_call(p);
    return e;
}

static struct tpl_expr *parse_postfix(struct tpl_parser *p, struct tpl_expr *e)
{
    for (;;) {
        tpl_work(p->heap, 0);
        if (tpl_at_operator(p, "."))
            e = parse_attribute(p, e);
        else if (tpl_at_operator(p, "["))
            e = parse_item(p, e);
        else if (tpl_at_operator(p, "("))
            e = parse_called(p, e);
        else
            return e;
    }
}

/* The name of a filter or test, which may have dots. */
static struct tpl_value parse_dotted(struct tpl_parser *p, const char *what)
{
    const struct tpl_token *first = tpl_expect_kind(p, TOKEN_NAME, what);
    struct tpl_builder b;

    if (!tpl_at_operator(p, "."))
        return tpl_word_of(p, first);
    tpl_builder_init(&b, p->heap);
    tpl_add(&b, first->text, first->len, false);
    while (tpl_skip_operator(p, ".")) {
        const struct tpl_token *next = tpl_expect_kind(p, TOKEN_NAME, what);
        tpl_add_word(&b, ".");
        tpl_add(&b, next->text, next->len, false);
    }
    return tpl_built(&b);
}

static void note_unknown(struct tpl_parser *p, const struct tpl_expr *e)
{
    if (!e->function && !p->soft && !p->unknown)
        p->unknown = e;
}

/* A filter of `of`, which is NULL in filter blocks; the bar is past. */
struct tpl_expr *tpl_parse_filter(struct tpl_parser *p, struct tpl_expr *of)
{
    struct tpl_expr *e = tpl_new_pair(p, EXPR_FILTER, p->token->line, of, NULL);

    e->value = parse_dotted(p, "the name of a filter");
    e->function = tpl_find_filter(e->value.string);
    note_unknown(p, e);
    if (tpl_at_operator(p, "("))
        e->call = parse_call(p);
    return e;
}

/* Whether an argument without parentheses follows a test: `is divisibleby 3`. */
static bool at_test_argument(const struct tpl_parser *p)
{
    switch (p->token->kind) {
    case TOKEN_STRING:
    case TOKEN_INTEGER:
    case TOKEN_FLOAT:
        return true;
    case TOKEN_NAME:
        return !tpl_at_word(p, "else") && !tpl_at_word(p, "or") && !tpl_at_word(p, "and");
    default:
        return tpl_at_operator(p, "[") || tpl_at_operator(p, "{");
    }
}

static struct tpl_expr *parse_test(struct tpl_parser *p, struct tpl_expr *of)
{
    int line = tpl_advance(p)->line;
    bool negated = tpl_skip_word(p, "not");
    struct tpl_expr *e = tpl_new_pair(p, EXPR_TEST, line, of, NULL);

    e->value = parse_dotted(p, "the name of a test");
    e->function = tpl_find_test(e->value.string);
    note_unknown(p, e);
    if (tpl_at_operator(p, "(")) {
        e->call = parse_call(p);
    } else if (at_test_argument(p)) {
        if (tpl_at_word(p, "is"))
            tpl_fail(p->heap, "tests with 'is' can't be chained");
        e->call = tpl_alloc(p->heap, sizeof(*e->call));
        *e->call = (struct tpl_call){.named = NULL};
        tpl_add_expr(p, &e->call->positional, parse_postfix(p, parse_primary(p)));
    }
    return negated ? tpl_new_pair(p, EXPR_NOT, line, e, NULL) : e;
}

static struct tpl_expr *parse_filters(struct tpl_parser *p, struct tpl_expr *e)
{
    for (;;) {
        tpl_work(p->heap, 0);
        if (tpl_skip_operator(p, "|"))
            e = tpl_parse_filter(p, e);
        else if (tpl_at_word(p, "is"))
            e = parse_test(p, e);
        else if (tpl_at_operator(p, "("))
            e = parse_called(p, e);
        else
            return e;
    }
}

/* ---- operators ----------------------------------------------------------------------------- */

static struct tpl_expr *parse_unary(struct tpl_parser *p, bool with_filters)
{
    struct tpl_expr *e;
    int line = p->token->line;

    tpl_enter(p->heap);
    if (tpl_skip_operator(p, "-"))
        e = tpl_new_pair(p, EXPR_NEGATE, line, parse_unary(p, false), NULL);
    else if (tpl_skip_operator(p, "+"))
        e = tpl_new_pair(p, EXPR_PLUS, line, parse_unary(p, false), NULL);
    else
        e = parse_primary(p);
    e = parse_postfix(p, e);
    if (with_filters)
        e = parse_filters(p, e);
    tpl_leave(p->heap);
    return e;
}

static struct tpl_expr *binary(struct tpl_parser *p, enum tpl_operator op, struct tpl_expr *left,
                               struct tpl_expr *right)
{
    struct tpl_expr *e = tpl_new_pair(p, EXPR_BINARY, left->line, left, right);

    e->op = op;
    return e;
}

static struct tpl_expr *parse_power(struct tpl_parser *p)
{
    struct tpl_expr *e = parse_unary(p, true);

    while (tpl_skip_operator(p, "**")) /* from the left, unlike Python */
        e = binary(p, TPL_POW, e, parse_unary(p, true));
    return e;
}

static struct tpl_expr *parse_product(struct tpl_parser *p)
{
    struct tpl_expr *e = parse_power(p);

    for (;;) {
        if (tpl_skip_operator(p, "*"))
            e = binary(p, TPL_MUL, e, parse_power(p));
        else if (tpl_skip_operator(p, "/"))
            e = binary(p, TPL_DIV, e, parse_power(p));
        else if (tpl_skip_operator(p, "//"))
            e = binary(p, TPL_FLOOR_DIV, e, parse_power(p));
        else if (tpl_skip_operator(p, "%"))
            e = binary(p, TPL_MOD, e, parse_power(p));
        else
            return e;
    }
}

static struct tpl_expr *parse_concat(struct tpl_parser *p)
{
    struct tpl_expr *first = parse_product(p);

    if (!tpl_at_operator(p, "~"))
        return first;
    struct tpl_expr *e = new_expr(p, EXPR_CONCAT, first->line);
    tpl_add_expr(p, &e->items, first);
    while (tpl_skip_operator(p, "~"))
        tpl_add_expr(p, &e->items, parse_product(p));
    return e;
}

static struct tpl_expr *parse_sum(struct tpl_parser *p)
{
    struct tpl_expr *e = parse_concat(p);

    for (;;) {
        if (tpl_skip_operator(p, "+"))
            e = binary(p, TPL_ADD, e, parse_concat(p));
        else if (tpl_skip_operator(p, "-"))
            e = binary(p, TPL_SUB, e, parse_concat(p));
        else
            return e;
    }
}

static bool skip_comparison(struct tpl_parser *p, enum tpl_comparison *comparison)
{
    static const char *const operators[] = {"==", "!=", "<", "<=", ">", ">="};

    for (int i = 0; i < 6; i++)
        if (tpl_skip_operator(p, operators[i])) {
            *comparison = (enum tpl_comparison)i;
            return true;
        }
    if (tpl_skip_word(p, "in")) {
        *comparison = CMP_IN;
        return true;
    }
    if (!tpl_at_word(p, "not") || !tpl_token_is(p->token + 1, TOKEN_NAME, "in"))
        return false;
    tpl_advance(p);
    tpl_advance(p);
    *comparison = CMP_NOT_IN;
    return true;
}

static struct tpl_expr *parse_comparison(struct tpl_parser *p)
{
    struct tpl_expr *first = parse_sum(p), *e = NULL;
    enum tpl_comparison comparison;
    size_t cap = 0;

    while (skip_comparison(p, &comparison)) {
        if (!e)
            e = tpl_new_pair(p, EXPR_COMPARE, first->line, first, NULL);
        e->comparisons = tpl_room(p, e->comparisons, e->items.n, &cap, sizeof(*e->comparisons));
        e->comparisons[e->items.n] = comparison;
        tpl_add_expr(p, &e->items, parse_sum(p));
    }
    return e ? e : first;
}

static struct tpl_expr *parse_not(struct tpl_parser *p)
{
    int line = p->token->line;

    if (!tpl_skip_word(p, "not"))
        return parse_comparison(p);
    tpl_enter(p->heap);
    struct tpl_expr *e = tpl_new_pair(p, EXPR_NOT, line, parse_not(p), NULL);
    tpl_leave(p->heap);
    return e;
}

static struct tpl_expr *parse_and(struct tpl_parser *p)
{
    struct tpl_expr *e = parse_not(p);

    while (tpl_skip_word(p, "and"))
        e = tpl_new_pair(p, EXPR_AND, e->line, e, parse_not(p));
    return e;
}

struct tpl_expr *tpl_parse_or(struct tpl_parser *p)
{
    tpl_enter(p->heap);
    struct tpl_expr *e = parse_and(p);
    while (tpl_skip_word(p, "or"))
        e = tpl_new_pair(p, EXPR_OR, e->line, e, parse_and(p));
    tpl_leave(p->heap);
    return e;
}

struct tpl_expr *tpl_parse_expression(struct tpl_parser *p)
{
    const struct tpl_expr *unknown = p->unknown;
    struct tpl_expr *e = tpl_parse_or(p);

    while (tpl_skip_word(p, "if")) {
        bool soft = p->soft;
        p->unknown = unknown; /* what was read is a branch */
        struct tpl_expr *condition = tpl_new_pair(p, EXPR_CONDITION, e->line, e, NULL);
        p->soft = true;
        condition->test = tpl_parse_or(p);
        tpl_enter(p->heap);
        if (tpl_skip_word(p, "else"))
            condition->b = tpl_parse_expression(p);
        tpl_leave(p->heap);
        p->soft = soft;
        e = condition;
    }
    return e;
}
