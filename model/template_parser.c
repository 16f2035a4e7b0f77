/* Recursive descent: a function for each tag. */
#include "model/template_parser.h"

#include "model/template_expression.h"

static struct tpl_stmt *new_stmt(struct tpl_parser *p, enum tpl_stmt_kind kind)
{
    struct tpl_stmt *s = tpl_alloc(p->heap, sizeof(*s));

    *s = (struct tpl_stmt){.kind = kind, .line = p->heap->line};
    return s;
}

static struct tpl_stmt *parse_body(struct tpl_parser *p, const char *const *ends);

/* The body of a tag up to one of its `ends` (NULL-terminated), which is the current word then. */
static struct tpl_stmt *parse_tag_body(struct tpl_parser *p, const char *const *ends)
{
    tpl_skip_operator(p, ":");
    tpl_expect_kind(p, TOKEN_BLOCK_END, "the end of the tag");
    return parse_body(p, ends);
}

static struct tpl_stmt *parse_body_to(struct tpl_parser *p, const char *end)
{
    const char *const ends[] = {end, NULL};
    struct tpl_stmt *body = parse_tag_body(p, ends);

    tpl_advance(p);
    return body;
}

/* A body in which nothing is conditional any more: it is a frame of its own. */
static struct tpl_stmt *parse_scope_to(struct tpl_parser *p, const char *end)
{
    bool soft = p->soft;

    p->soft = false;
    struct tpl_stmt *body = parse_body_to(p, end);
    p->soft = soft;
    return body;
}

static struct tpl_expr *parse_target_part(struct tpl_parser *p)
{
    struct tpl_expr *e;
    int line = p->token->line;

    tpl_enter(p->heap);
    if (tpl_skip_operator(p, "(")) {
        e = tpl_parse_tuple_of(p, parse_target_part, NULL, true);
        tpl_expect_operator(p, ")");
    } else {
        e = tpl_parse_name(p);
        if (e->kind != EXPR_NAME)
            tpl_fail(p->heap, "a constant can't be assigned to");
        if (tpl_skip_operator(p, ".")) {
            struct tpl_expr *member = tpl_new_pair(p, EXPR_MEMBER, line, e, NULL);
            member->symbol = e->symbol;
            member->value = tpl_word_of(p, tpl_expect_kind(p, TOKEN_NAME, "a name"));
            e = member;
        }
    }
    tpl_leave(p->heap);
    return e;
}

static struct tpl_expr *parse_plain_target(struct tpl_parser *p)
{
    if (!tpl_at_kind(p, TOKEN_NAME) && !tpl_at_operator(p, "("))
        tpl_fail_expected(p, "a name");
    return parse_target_part(p);
}

static struct tpl_expr *parse_target(struct tpl_parser *p, const char *end_word)
{
    return tpl_parse_tuple_of(p, parse_plain_target, end_word, false);
}

static struct tpl_stmt *parse_set(struct tpl_parser *p)
{
    struct tpl_stmt *s = new_stmt(p, STMT_SET);

    s->target = parse_target(p, NULL);
    if (tpl_skip_operator(p, "=")) {
        s->expr = tpl_parse_tuple_of(p, tpl_parse_expression, NULL, false);
        return s;
    }
    s->kind = STMT_SET_BLOCK;
    while (tpl_skip_operator(p, "|"))
        s->filter = tpl_parse_filter(p, s->filter);
    s->body = parse_scope_to(p, "endset");
    return s;
}

static struct tpl_stmt *parse_for(struct tpl_parser *p)
{
    static const char *const ends[] = {"else", "endfor", NULL};
    struct tpl_stmt *s = new_stmt(p, STMT_FOR);
    bool soft = p->soft;

    s->target = parse_target(p, "in");
    if (!tpl_skip_word(p, "in"))
        tpl_fail_expected(p, "in");
    s->expr = tpl_parse_tuple_of(p, tpl_parse_or, "recursive", false);
    if (tpl_skip_word(p, "if"))
        s->filter = tpl_parse_expression(p);
    s->recursive = tpl_skip_word(p, "recursive");
    p->soft = false;
    p->loops++;
    s->body = parse_tag_body(p, ends);
    p->loops--;
    if (tpl_skip_word(p, "else"))
        s->otherwise = parse_body_to(p, "endfor");
    else
        tpl_advance(p);
    p->soft = soft;
    return s;
}

static struct tpl_stmt *parse_if(struct tpl_parser *p)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    struct tpl_stmt *first = NULL, **at = &first;
    bool soft = p->soft;

    p->soft = true;
    do { /* an elif is an if in the else of the one before */
        *at = new_stmt(p, STMT_IF);
        (*at)->expr = tpl_parse_tuple_of(p, tpl_parse_or, NULL, false);
        (*at)->body = parse_tag_body(p, ends);
        at = &(*at)->otherwise;
    } while (tpl_skip_word(p, "elif"));
    if (tpl_skip_word(p, "else"))
        *at = parse_body_to(p, "endif");
    else
        tpl_advance(p);
    p->soft = soft;
    return first;
}

/* The parameters of a macro or call block. */
static void parse_signature(struct tpl_parser *p, struct tpl_macro_def *def)
{
    size_t caps[3] = {0, 0, 0};

    tpl_expect_operator(p, "(");
    while (!tpl_at_operator(p, ")")) {
        size_t n = def->n_params;
        if (n > 0)
            tpl_expect_operator(p, ",");
        struct tpl_value name = tpl_word_of(p, tpl_expect_kind(p, TOKEN_NAME, "a name"));
        def->params = tpl_room(p, def->params, n, &caps[0], sizeof(*def->params));
        def->param_symbols = tpl_room(p, def->param_symbols, n, &caps[1], sizeof(int));
        def->defaults = tpl_room(p, def->defaults, n, &caps[2], sizeof(*def->defaults));
        def->params[n] = name;
        def->param_symbols[n] = tpl_symbol_of(p, name);
        def->defaults[n] = tpl_skip_operator(p, "=") ? tpl_parse_expression(p) : NULL;
        if (n > 0 && def->defaults[n - 1] && !def->defaults[n])
            tpl_fail(p->heap, "a parameter without a default follows one with a default");
        def->n_params++;
    }
    tpl_advance(p);
}

/* The body is a function of its own: loops around it are not its loops. */
static void parse_macro_body(struct tpl_parser *p, struct tpl_macro_def *def, const char *end)
{
    struct tpl_macro_def *around = p->macro;
    int loops = p->loops;

    p->macro = def;
    p->loops = 0;
    def->body = parse_scope_to(p, end);
    p->loops = loops;
    p->macro = around;
    if (around) {
        around->takes_caller |= def->takes_caller;
        around->takes_varargs |= def->takes_varargs;
        around->takes_kwargs |= def->takes_kwargs;
    }
}

static struct tpl_stmt *parse_macro(struct tpl_parser *p)
{
    struct tpl_stmt *s = new_stmt(p, STMT_MACRO);
    struct tpl_macro_def *def = tpl_alloc(p->heap, sizeof(*def));

    *def = (struct tpl_macro_def){.name = tpl_word_of(p, tpl_expect_kind(p, TOKEN_NAME, "a name"))};
    def->symbol = tpl_symbol_of(p, def->name);
    parse_signature(p, def);
    parse_macro_body(p, def, "endmacro");
    s->macro = def;
    return s;
}

static struct tpl_stmt *parse_call_block(struct tpl_parser *p)
{
    struct tpl_stmt *s = new_stmt(p, STMT_CALL);
    struct tpl_macro_def *def = tpl_alloc(p->heap, sizeof(*def));

    *def = (struct tpl_macro_def){.name = TPL_NO_VALUE};
    if (tpl_at_operator(p, "("))
        parse_signature(p, def);
    s->expr = tpl_parse_expression(p);
    if (s->expr->kind != EXPR_CALL)
        tpl_fail(p->heap, "a call block needs a call");
    parse_macro_body(p, def, "endcall");
    s->macro = def;
    return s;
}

static struct tpl_stmt *parse_filter_block(struct tpl_parser *p)
{
    struct tpl_stmt *s = new_stmt(p, STMT_FILTER);

    s->filter = tpl_parse_filter(p, NULL);
    while (tpl_skip_operator(p, "|"))
        s->filter = tpl_parse_filter(p, s->filter);
    s->body = parse_scope_to(p, "endfilter");
    return s;
}

static struct tpl_stmt *parse_with(struct tpl_parser *p)
{
    struct tpl_stmt *s = new_stmt(p, STMT_WITH);

    while (!tpl_at_kind(p, TOKEN_BLOCK_END)) {
        if (s->with_targets.n > 0)
            tpl_expect_operator(p, ",");
        tpl_add_expr(p, &s->with_targets, parse_plain_target(p));
        tpl_expect_operator(p, "=");
        tpl_add_expr(p, &s->with_values, tpl_parse_expression(p));
    }
    s->body = parse_scope_to(p, "endwith");
    return s;
}

static struct tpl_stmt *parse_generation(struct tpl_parser *p)
{
    struct tpl_stmt *s = new_stmt(p, STMT_SCOPE);
    int loops = p->loops;

    p->loops = 0;
    s->body = parse_scope_to(p, "endgeneration");
    p->loops = loops;
    return s;
}

static struct tpl_stmt *parse_autoescape(struct tpl_parser *p)
{
    struct tpl_stmt *s = new_stmt(p, STMT_SCOPE);
    const struct tpl_expr *on = tpl_parse_expression(p);

    if (on->kind != EXPR_CONST || tpl_truth(on->value))
        tpl_fail(p->heap, "autoescape is not supported");
    s->body = parse_scope_to(p, "endautoescape");
    return s;
}

static struct tpl_stmt *parse_block(struct tpl_parser *p)
{
    struct tpl_stmt *s = new_stmt(p, STMT_BLOCK);
    struct tpl_value name = tpl_word_of(p, tpl_expect_kind(p, TOKEN_NAME, "a name"));
    int loops = p->loops;

    if (tpl_skip_word(p, "scoped"))
        s->kind = STMT_SCOPE;
    if (tpl_at_word(p, "required"))
        tpl_fail(p->heap, "required blocks are not supported");
    p->loops = 0;
    s->body = parse_scope_to(p, "endblock");
    p->loops = loops;
    if (tpl_at_kind(p, TOKEN_NAME) && tpl_equal(p->heap, tpl_word_of(p, p->token), name))
        tpl_advance(p);
    return s;
}

static struct tpl_stmt *parse_print(struct tpl_parser *p)
{
    struct tpl_stmt *first = NULL, **at = &first;

    while (!tpl_at_kind(p, TOKEN_BLOCK_END)) {
        if (first)
            tpl_expect_operator(p, ",");
        *at = new_stmt(p, STMT_OUTPUT);
        (*at)->expr = tpl_parse_expression(p);
        at = &(*at)->next;
    }
    return first;
}

static struct tpl_stmt *parse_jump(struct tpl_parser *p, enum tpl_stmt_kind kind)
{
    if (p->loops == 0)
        tpl_fail(p->heap, "'break' and 'continue' stand in loops only");
    return new_stmt(p, kind);
}

/* The statement of a tag, up to the end of (its last) tag. `print` may give several or none. */
static struct tpl_stmt *parse_statement(struct tpl_parser *p)
{
    static const struct {
        const char *word;
        struct tpl_stmt *(*parse)(struct tpl_parser *p);
    } tags[] = {{"for", parse_for},
                {"if", parse_if},
                {"set", parse_set},
                {"macro", parse_macro},
                {"call", parse_call_block},
                {"filter", parse_filter_block},
                {"with", parse_with},
                {"generation", parse_generation},
                {"autoescape", parse_autoescape},
                {"block", parse_block},
                {"print", parse_print}};
    const struct tpl_token *word = tpl_expect_kind(p, TOKEN_NAME, "the name of a tag");

    for (size_t i = 0; i < sizeof(tags) / sizeof(tags[0]); i++)
        if (tpl_token_is(word, TOKEN_NAME, tags[i].word))
            return tags[i].parse(p);
    if (tpl_token_is(word, TOKEN_NAME, "break"))
        return parse_jump(p, STMT_BREAK);
    if (tpl_token_is(word, TOKEN_NAME, "continue"))
        return parse_jump(p, STMT_CONTINUE);
    tpl_fail(p->heap, "the tag '%.*s' is unknown or not supported here",
             (int)(word->len < 40 ? word->len : 40), word->text);
}

static struct tpl_stmt *parse_piece(struct tpl_parser *p)
{
    struct tpl_stmt *s;

    if (tpl_at_kind(p, TOKEN_DATA)) {
        s = new_stmt(p, STMT_DATA);
        s->data = tpl_word_of(p, tpl_advance(p));
        return s;
    }
    tpl_advance(p); /* the beginning of a tag: nothing else stands here */
    s = new_stmt(p, STMT_OUTPUT);
    s->expr = tpl_parse_tuple_of(p, tpl_parse_expression, NULL, false);
    tpl_expect_kind(p, TOKEN_VARIABLE_END, "the end of the tag");
    return s;
}

/* Statements up to one of the words `ends` in a tag of its own, or (NULL) the end of the text. */
static struct tpl_stmt *parse_body(struct tpl_parser *p, const char *const *ends)
{
    struct tpl_stmt *first = NULL, **at = &first;

    tpl_enter(p->heap);
    while (!tpl_at_kind(p, TOKEN_EOF)) {
        if (!tpl_at_kind(p, TOKEN_BLOCK_BEGIN)) {
            *at = parse_piece(p);
        } else {
            tpl_advance(p);
            for (const char *const *end = ends; end && *end; end++)
                if (tpl_at_word(p, *end)) {
                    tpl_leave(p->heap);
                    return first;
                }
            *at = parse_statement(p);
            tpl_expect_kind(p, TOKEN_BLOCK_END, "the end of the tag");
        }
        while (*at)
            at = &(*at)->next;
    }
    tpl_leave(p->heap);
    if (ends)
        tpl_fail(p->heap, "the template ends where the tag '%s' should stand", *ends);
    return first;
}

struct tpl_tree *tpl_parse(struct tpl_heap *h, const char *source, size_t len)
{
    static const char *const fixed[SYMBOLS_FIXED] = {"loop", "caller", "varargs", "kwargs"};
    struct tpl_parser p = {.heap = h, .tree = tpl_alloc(h, sizeof(*p.tree))};

    *p.tree = (struct tpl_tree){.body = NULL};
    for (int i = 0; i < SYMBOLS_FIXED; i++)
        tpl_symbol_of(&p, tpl_word(h, fixed[i]));
    p.token = tpl_tokenize(h, source, len);
    h->line = p.token->line;
    p.tree->body = parse_body(&p, NULL);
    if (p.unknown) {
        h->line = p.unknown->line;
        tpl_fail(h, "there is no %s '%.*s'", p.unknown->kind == EXPR_TEST ? "test" : "filter",
                 (int)p.unknown->value.string->len, p.unknown->value.string->data);
    }
    return p.tree;
}
