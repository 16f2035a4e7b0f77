/* Walks over the tree. Scopes are found as the generated Python code of Jinja has them: bodies of
 * loops, macros and blocks have variables of their own, those of `if` have not, and what is not
 * found anywhere is undefined. */
#include "model/template_render.h"

#include "model/template_text.h"

#include <stdio.h>
#include <string.h>

enum flow { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE };

static enum flow execute(struct tpl_render *r, struct tpl_scope *scope,
                         const struct tpl_stmt *body);
static struct tpl_value evaluate(struct tpl_render *r, struct tpl_scope *scope,
                                 const struct tpl_expr *e);

/* ---- variables ----------------------------------------------------------------------------- */

static struct tpl_scope *new_scope(struct tpl_render *r, struct tpl_scope *parent)
{
    struct tpl_scope *scope = tpl_alloc(&r->heap, sizeof(*scope));

    *scope = (struct tpl_scope){.parent = parent};
    return scope;
}

void tpl_scope_set(struct tpl_render *r, struct tpl_scope *scope, int symbol,
                   struct tpl_value value)
{
    for (size_t i = 0; i < scope->n; i++)
        if (scope->variables[i].symbol == symbol) {
            scope->variables[i].value = value;
            return;
        }
    tpl_work(&r->heap, 8 * scope->n);
    if (scope->n == scope->cap) {
        size_t cap = scope->cap ? 2 * scope->cap : 4;
        struct tpl_variable *grown = tpl_alloc(&r->heap, cap * sizeof(*grown));
        if (scope->n > 0)
            memcpy(grown, scope->variables, scope->n * sizeof(*grown));
        scope->variables = grown;
        scope->cap = cap;
    }
    scope->variables[scope->n++] = (struct tpl_variable){symbol, value};
}

static struct tpl_value lookup(struct tpl_render *r, const struct tpl_scope *scope, int symbol)
{
    for (; scope; scope = scope->parent) {
        tpl_work(&r->heap, 4 * scope->n);
        for (size_t i = 0; i < scope->n; i++)
            if (scope->variables[i].symbol == symbol && tpl_given(scope->variables[i].value))
                return scope->variables[i].value;
    }
    struct tpl_value name = r->tree->symbols[symbol];
    for (size_t i = 0; i < tpl_globals_n; i++)
        if (tpl_is_word(name, tpl_globals[i].name))
            return (struct tpl_value){.type = TPL_FUNCTION, .function = &tpl_globals[i]};
    return tpl_undefined(&r->heap, TPL_NO_VALUE, name);
}

static void assign(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_expr *target,
                   struct tpl_value value)
{
    if (target->kind == EXPR_NAME) {
        tpl_scope_set(r, scope, target->symbol, value);
        return;
    }
    if (target->kind == EXPR_MEMBER) {
        struct tpl_value owner = lookup(r, scope, target->symbol);
        if (owner.type != TPL_NAMESPACE)
            tpl_fail(&r->heap, "an attribute is assigned to a %s, which is no namespace",
                     tpl_type_name(owner));
        tpl_dict_set(&r->heap, owner.dict, target->value, value);
        return;
    }
    const struct tpl_list *items = tpl_items(&r->heap, value);
    if (items->n != target->items.n)
        tpl_fail(&r->heap, "%zu values can't be assigned to %zu names", items->n, target->items.n);
    tpl_enter(&r->heap);
    for (size_t i = 0; i < items->n; i++)
        assign(r, scope, target->items.items[i], items->items[i]);
    tpl_leave(&r->heap);
}

/* ---- calls --------------------------------------------------------------------------------- */

static void add_positional(struct tpl_render *r, struct tpl_list *list, struct tpl_value more)
{
    const struct tpl_list *items = tpl_items(&r->heap, more);

    for (size_t i = 0; i < items->n; i++)
        tpl_push(&r->heap, list, items->items[i]);
}

/* Evaluates the arguments of a call, which may be NULL. */
static struct tpl_args evaluate_args(struct tpl_render *r, struct tpl_scope *scope,
                                     const struct tpl_call *call)
{
    struct tpl_args args = {NULL, 0, NULL, 0};
    struct tpl_dict *more = NULL;

    if (!call)
        return args;
    struct tpl_list *list = tpl_list(&r->heap, call->positional.n).list;
    for (size_t i = 0; i < call->positional.n; i++)
        tpl_push(&r->heap, list, evaluate(r, scope, call->positional.items[i]));
    if (call->more_positional)
        add_positional(r, list, evaluate(r, scope, call->more_positional));
    if (call->more_named) {
        struct tpl_value dict = evaluate(r, scope, call->more_named);
        if (dict.type != TPL_DICT)
            tpl_fail(&r->heap, "'**' needs a dict, not %s", tpl_type_name(dict));
        more = dict.dict;
    }
    size_t n = call->n_named + (more ? more->n : 0);
    struct tpl_named *named = tpl_alloc(&r->heap, n * sizeof(*named));
    for (size_t i = 0; i < call->n_named; i++)
        named[i] =
            (struct tpl_named){call->named[i].name, evaluate(r, scope, call->named[i].value)};
    for (size_t i = 0; more && i < more->n; i++) {
        if (more->entries[i].key.type != TPL_STRING)
            tpl_fail(&r->heap, "the names of arguments must be strings");
        named[call->n_named + i] = (struct tpl_named){more->entries[i].key, more->entries[i].value};
    }
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++)
            if (tpl_equal(&r->heap, named[i].name, named[j].name))
                tpl_fail(&r->heap, "an argument is given twice");
    return (struct tpl_args){list->items, list->n, named, n};
}

/* Puts the arguments of a macro into its scope; what is over is varargs, kwargs and caller. */
static void bind_macro(struct tpl_render *r, const struct tpl_macro *macro,
                       const struct tpl_args *args, struct tpl_scope *scope)
{
    const struct tpl_macro_def *def = macro->def;
    struct tpl_heap *h = &r->heap;
    bool *used = tpl_alloc(h, args->n_named + 1);
    struct tpl_value varargs = tpl_tuple(h, args->n > def->n_params ? args->n - def->n_params : 0);
    struct tpl_value kwargs = tpl_dict(h), caller = TPL_NO_VALUE;

    memset(used, 0, args->n_named + 1);
    for (size_t i = 0; i < def->n_params; i++) {
        struct tpl_value value = i < args->n ? args->positional[i] : TPL_NO_VALUE;
        for (size_t j = 0; i >= args->n && j < args->n_named; j++)
            if (tpl_equal(h, args->named[j].name, def->params[i])) {
                value = args->named[j].value;
                used[j] = true;
            }
        if (tpl_given(value))
            tpl_scope_set(r, scope, def->param_symbols[i], value);
        else if (!def->defaults[i])
            tpl_scope_set(r, scope, def->param_symbols[i],
                          tpl_undefined_hint(h, "a parameter of a macro was not given"));
        else
            tpl_scope_set(r, scope, def->param_symbols[i], evaluate(r, scope, def->defaults[i]));
    }
    for (size_t j = 0; j < args->n_named; j++) {
        if (used[j])
            continue;
        if (def->takes_caller && tpl_is_word(args->named[j].name, "caller"))
            caller = args->named[j].value;
        else if (def->takes_kwargs)
            tpl_dict_set(h, kwargs.dict, args->named[j].name, args->named[j].value);
        else
            tpl_fail(h, "the macro takes no argument '%.*s'", (int)args->named[j].name.string->len,
                     args->named[j].name.string->data);
    }
    if (args->n > def->n_params && !def->takes_varargs)
        tpl_fail(h, "the macro takes at most %zu arguments", def->n_params);
    for (size_t i = 0; i < varargs.list->n; i++)
        varargs.list->items[i] = args->positional[def->n_params + i];
    if (def->takes_caller)
        tpl_scope_set(r, scope, SYMBOL_CALLER,
                      tpl_given(caller) ? caller : tpl_undefined_hint(h, "there is no caller"));
    if (def->takes_varargs)
        tpl_scope_set(r, scope, SYMBOL_VARARGS, varargs);
    if (def->takes_kwargs)
        tpl_scope_set(r, scope, SYMBOL_KWARGS, kwargs);
}

/* What the body writes, as a string. */
static struct tpl_value capture(struct tpl_render *r, struct tpl_scope *scope,
                                const struct tpl_stmt *body, enum flow *flow)
{
    struct tpl_builder text, *out = r->out;

    tpl_builder_init(&text, &r->heap);
    r->out = &text;
    *flow = execute(r, scope, body);
    r->out = out;
    return tpl_built(&text);
}

static struct tpl_value call_macro(struct tpl_render *r, const struct tpl_macro *macro,
                                   const struct tpl_args *args)
{
    struct tpl_scope *scope = new_scope(r, macro->scope);
    enum flow flow;
    int line = r->heap.line;

    bind_macro(r, macro, args, scope);
    struct tpl_value text = capture(r, scope, macro->def->body, &flow);
    r->heap.line = line;
    return text;
}

static enum flow run_loop(struct tpl_render *r, struct tpl_scope *scope,
                          const struct tpl_stmt *stmt, struct tpl_value over, int64_t depth);

/* loop(items), in a recursive loop. */
static struct tpl_value call_loop(struct tpl_render *r, const struct tpl_loop *loop,
                                  const struct tpl_args *args)
{
    struct tpl_builder text, *out = r->out;

    if (!loop->recursive)
        tpl_fail(&r->heap, "only a loop marked 'recursive' can be called");
    if (args->n != 1 || args->n_named > 0)
        tpl_fail(&r->heap, "loop() takes what to go through");
    tpl_builder_init(&text, &r->heap);
    r->out = &text;
    run_loop(r, loop->scope, loop->recursive, args->positional[0], loop->depth + 1);
    r->out = out;
    return tpl_built(&text);
}

/* A joiner gives nothing the first time. */
static struct tpl_value call_joiner(struct tpl_render *r, struct tpl_cycler *joiner)
{
    return joiner->at++ == 0 ? tpl_word(&r->heap, "") : joiner->items->items[0];
}

struct tpl_value tpl_call(struct tpl_render *r, struct tpl_value callee,
                          const struct tpl_args *args)
{
    struct tpl_value result = TPL_NONE_VALUE;

    tpl_enter(&r->heap);
    switch (callee.type) {
    case TPL_MACRO:
        result = call_macro(r, callee.macro, args);
        break;
    case TPL_FUNCTION:
        result = tpl_call_function(r, callee.function, TPL_NONE_VALUE, args);
        break;
    case TPL_METHOD:
        result = tpl_call_function(r, callee.method->function, callee.method->self, args);
        break;
    case TPL_LOOP:
        result = call_loop(r, callee.loop, args);
        break;
    case TPL_JOINER:
        result = call_joiner(r, callee.cycler);
        break;
    case TPL_UNDEFINED:
        tpl_fail_undefined(&r->heap, callee);
    default:
        tpl_fail(&r->heap, "a %s can't be called", tpl_type_name(callee));
    }
    tpl_leave(&r->heap);
    return result;
}

/* ---- expressions --------------------------------------------------------------------------- */

static struct tpl_value evaluate_items(struct tpl_render *r, struct tpl_scope *scope,
                                       const struct tpl_expr *e)
{
    struct tpl_value list = tpl_list(&r->heap, e->items.n);

    for (size_t i = 0; i < e->items.n; i++)
        tpl_push(&r->heap, list.list, evaluate(r, scope, e->items.items[i]));
    list.type = e->kind == EXPR_TUPLE ? TPL_TUPLE : TPL_LIST;
    return list;
}

static struct tpl_value evaluate_dict(struct tpl_render *r, struct tpl_scope *scope,
                                      const struct tpl_expr *e)
{
    struct tpl_value dict = tpl_dict(&r->heap);

    for (size_t i = 0; i < e->items.n; i += 2) {
        struct tpl_value key = evaluate(r, scope, e->items.items[i]);
        tpl_dict_set(&r->heap, dict.dict, key, evaluate(r, scope, e->items.items[i + 1]));
    }
    return dict;
}

static bool holds(struct tpl_heap *h, enum tpl_comparison comparison, struct tpl_value a,
                  struct tpl_value b)
{
    static const char *const names[] = {"==", "!=", "<", "<=", ">", ">="};
    int order;

    switch (comparison) {
    case CMP_EQ:
        return tpl_equal(h, a, b);
    case CMP_NE:
        return !tpl_equal(h, a, b);
    case CMP_IN:
        return tpl_contains(h, b, a);
    case CMP_NOT_IN:
        return !tpl_contains(h, b, a);
    default:
        order = tpl_compare(h, a, b, names[comparison]);
        break;
    }
    return comparison == CMP_LT   ? order < 0
           : comparison == CMP_LE ? order < 0 || order == 0
           : comparison == CMP_GT ? order == 1
                                  : order == 1 || order == 0;
}

static struct tpl_value evaluate_compare(struct tpl_render *r, struct tpl_scope *scope,
                                         const struct tpl_expr *e)
{
    struct tpl_value left = evaluate(r, scope, e->a);

    for (size_t i = 0; i < e->items.n; i++) {
        struct tpl_value right = evaluate(r, scope, e->items.items[i]);
        if (!holds(&r->heap, e->comparisons[i], left, right))
            return tpl_bool(false);
        left = right;
    }
    return tpl_bool(true);
}

static struct tpl_value evaluate_concat(struct tpl_render *r, struct tpl_scope *scope,
                                        const struct tpl_expr *e)
{
    struct tpl_builder b;

    tpl_builder_init(&b, &r->heap);
    for (size_t i = 0; i < e->items.n; i++)
        tpl_add_str(&b, evaluate(r, scope, e->items.items[i]));
    return tpl_built(&b);
}

static struct tpl_value evaluate_item(struct tpl_render *r, struct tpl_scope *scope,
                                      const struct tpl_expr *e)
{
    struct tpl_value of = evaluate(r, scope, e->a), part[3];

    if (e->b->kind != EXPR_SLICE)
        return tpl_item(r, of, evaluate(r, scope, e->b));
    for (int i = 0; i < 3; i++)
        part[i] = e->b->items.items[i] ? evaluate(r, scope, e->b->items.items[i]) : TPL_NONE_VALUE;
    return tpl_slice(r, of, part[0], part[1], part[2]);
}

static struct tpl_value evaluate_condition(struct tpl_render *r, struct tpl_scope *scope,
                                           const struct tpl_expr *e)
{
    if (tpl_truth(evaluate(r, scope, e->test)))
        return evaluate(r, scope, e->a);
    if (e->b)
        return evaluate(r, scope, e->b);
    return tpl_undefined_hint(&r->heap, "an inline 'if' without 'else' was false");
}

/* A filter of `of`, or a test. */
static struct tpl_value apply(struct tpl_render *r, struct tpl_scope *scope,
                              const struct tpl_expr *e, struct tpl_value of)
{
    if (!e->function)
        tpl_fail(&r->heap, "there is no %s '%.*s'", e->kind == EXPR_TEST ? "test" : "filter",
                 (int)e->value.string->len, e->value.string->data);
    struct tpl_args args = evaluate_args(r, scope, e->call);
    r->heap.line = e->line;
    return tpl_call_function(r, e->function, of, &args);
}

/* The filters of a block, the innermost first. */
static struct tpl_value apply_chain(struct tpl_render *r, struct tpl_scope *scope,
                                    const struct tpl_expr *filter, struct tpl_value text)
{
    if (!filter)
        return text;
    tpl_enter(&r->heap);
    text = apply(r, scope, filter, apply_chain(r, scope, filter->a, text));
    tpl_leave(&r->heap);
    return text;
}

static struct tpl_value evaluate_call(struct tpl_render *r, struct tpl_scope *scope,
                                      const struct tpl_expr *e)
{
    struct tpl_value callee = evaluate(r, scope, e->a);
    struct tpl_args args = evaluate_args(r, scope, e->call);

    r->heap.line = e->line;
    return tpl_call(r, callee, &args);
}

static struct tpl_value evaluate_plus(struct tpl_render *r, struct tpl_value v)
{
    int64_t integer;

    if (v.type == TPL_FLOAT)
        return v;
    if (v.type == TPL_UNDEFINED)
        tpl_fail_undefined(&r->heap, v);
    return tpl_int(tpl_as_integer(v, &integer) ? integer
                                               : tpl_want_integer(r, v, "what '+' takes"));
}

static struct tpl_value evaluate_negated(struct tpl_render *r, struct tpl_value v)
{
    if (v.type == TPL_UNDEFINED)
        tpl_fail_undefined(&r->heap, v);
    return tpl_negated(&r->heap, v);
}

static struct tpl_value evaluate_kind(struct tpl_render *r, struct tpl_scope *scope,
                                      const struct tpl_expr *e)
{
    struct tpl_value v;

    switch (e->kind) {
    case EXPR_CONST:
        return e->value;
    case EXPR_NAME:
        return lookup(r, scope, e->symbol);
    case EXPR_TUPLE:
    case EXPR_LIST:
        return evaluate_items(r, scope, e);
    case EXPR_DICT:
        return evaluate_dict(r, scope, e);
    case EXPR_CONDITION:
        return evaluate_condition(r, scope, e);
    case EXPR_OR:
        v = evaluate(r, scope, e->a);
        return tpl_truth(v) ? v : evaluate(r, scope, e->b);
    case EXPR_AND:
        v = evaluate(r, scope, e->a);
        return tpl_truth(v) ? evaluate(r, scope, e->b) : v;
    case EXPR_NOT:
        return tpl_bool(!tpl_truth(evaluate(r, scope, e->a)));
    case EXPR_COMPARE:
        return evaluate_compare(r, scope, e);
    case EXPR_BINARY:
        v = evaluate(r, scope, e->a);
        return tpl_binary(r, e->op, v, evaluate(r, scope, e->b));
    case EXPR_CONCAT:
        return evaluate_concat(r, scope, e);
    case EXPR_NEGATE:
        return evaluate_negated(r, evaluate(r, scope, e->a));
    case EXPR_PLUS:
        return evaluate_plus(r, evaluate(r, scope, e->a));
    case EXPR_ATTRIBUTE:
        return tpl_attribute(r, evaluate(r, scope, e->a), e->value);
    case EXPR_ITEM:
        return evaluate_item(r, scope, e);
    case EXPR_CALL:
        return evaluate_call(r, scope, e);
    case EXPR_FILTER:
    case EXPR_TEST:
        return apply(r, scope, e, evaluate(r, scope, e->a));
    case EXPR_SLICE:
    case EXPR_MEMBER:
        break;
    }
    tpl_fail(&r->heap, "an expression stands where none can");
}

static struct tpl_value evaluate(struct tpl_render *r, struct tpl_scope *scope,
                                 const struct tpl_expr *e)
{
    tpl_work(&r->heap, 0);
    tpl_enter(&r->heap);
    r->heap.line = e->line;
    struct tpl_value v = evaluate_kind(r, scope, e);
    tpl_leave(&r->heap);
    return v;
}

/* ---- statements ---------------------------------------------------------------------------- */

/* The items that pass a loop's condition. */
static struct tpl_list *filtered(struct tpl_render *r, struct tpl_scope *scope,
                                 const struct tpl_stmt *stmt, const struct tpl_list *items)
{
    struct tpl_list *kept = tpl_list(&r->heap, 0).list;

    for (size_t i = 0; i < items->n; i++) {
        struct tpl_scope *inner = new_scope(r, scope);
        assign(r, inner, stmt->target, items->items[i]);
        if (tpl_truth(evaluate(r, inner, stmt->filter)))
            tpl_push(&r->heap, kept, items->items[i]);
    }
    return kept;
}

static enum flow run_loop(struct tpl_render *r, struct tpl_scope *scope,
                          const struct tpl_stmt *stmt, struct tpl_value over, int64_t depth)
{
    struct tpl_list *items = tpl_items(&r->heap, over);
    struct tpl_loop *loop = tpl_alloc(&r->heap, sizeof(*loop));
    enum flow flow = FLOW_ON;

    if (stmt->filter)
        items = filtered(r, scope, stmt, items);
    *loop = (struct tpl_loop){
        .items = items, .depth = depth, .recursive = stmt->recursive ? stmt : NULL, .scope = scope};
    for (; loop->index < items->n && flow != FLOW_BREAK; loop->index++) {
        struct tpl_scope *inner = new_scope(r, scope);
        tpl_scope_set(r, inner, SYMBOL_LOOP, (struct tpl_value){.type = TPL_LOOP, .loop = loop});
        assign(r, inner, stmt->target, items->items[loop->index]);
        flow = execute(r, inner, stmt->body);
    }
    /* As in Jinja, the `else` is for loops that never ran. */
    if (items->n == 0)
        return execute(r, new_scope(r, scope), stmt->otherwise);
    return FLOW_ON;
}

static void run_call_block(struct tpl_render *r, struct tpl_scope *scope,
                           const struct tpl_stmt *stmt)
{
    struct tpl_macro *caller = tpl_alloc(&r->heap, sizeof(*caller));
    struct tpl_value callee = evaluate(r, scope, stmt->expr->a);
    struct tpl_args args = evaluate_args(r, scope, stmt->expr->call);
    struct tpl_named *named = tpl_alloc(&r->heap, (args.n_named + 1) * sizeof(*named));

    *caller = (struct tpl_macro){.def = stmt->macro, .scope = scope};
    if (args.n_named > 0)
        memcpy(named, args.named, args.n_named * sizeof(*named));
    named[args.n_named++] = (struct tpl_named){
        r->tree->symbols[SYMBOL_CALLER], (struct tpl_value){.type = TPL_MACRO, .macro = caller}};
    args.named = named;
    tpl_add_str(r->out, tpl_call(r, callee, &args));
}

static void define_macro(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_stmt *stmt)
{
    struct tpl_macro *macro = tpl_alloc(&r->heap, sizeof(*macro));

    *macro = (struct tpl_macro){.def = stmt->macro, .scope = scope};
    tpl_scope_set(r, scope, stmt->macro->symbol,
                  (struct tpl_value){.type = TPL_MACRO, .macro = macro});
}

static enum flow run_with(struct tpl_render *r, struct tpl_scope *scope,
                          const struct tpl_stmt *stmt)
{
    struct tpl_scope *inner = new_scope(r, scope);

    for (size_t i = 0; i < stmt->with_targets.n; i++)
        assign(r, inner, stmt->with_targets.items[i],
               evaluate(r, scope, stmt->with_values.items[i]));
    return execute(r, inner, stmt->body);
}

static enum flow run_filter_block(struct tpl_render *r, struct tpl_scope *scope,
                                  const struct tpl_stmt *stmt)
{
    enum flow flow;
    struct tpl_value text = capture(r, new_scope(r, scope), stmt->body, &flow);

    if (flow != FLOW_ON)
        return flow;
    text = apply_chain(r, scope, stmt->filter, text);
    if (stmt->kind == STMT_SET_BLOCK)
        assign(r, scope, stmt->target, text);
    else
        tpl_add_str(r->out, text);
    return FLOW_ON;
}

static enum flow execute_one(struct tpl_render *r, struct tpl_scope *scope,
                             const struct tpl_stmt *s)
{
    switch (s->kind) {
    case STMT_DATA:
        tpl_add_string(r->out, s->data.string);
        return FLOW_ON;
    case STMT_OUTPUT:
        tpl_add_str(r->out, evaluate(r, scope, s->expr));
        return FLOW_ON;
    case STMT_IF:
        return execute(r, scope, tpl_truth(evaluate(r, scope, s->expr)) ? s->body : s->otherwise);
    case STMT_FOR:
        return run_loop(r, scope, s, evaluate(r, scope, s->expr), 1);
    case STMT_SET:
        assign(r, scope, s->target, evaluate(r, scope, s->expr));
        return FLOW_ON;
    case STMT_SET_BLOCK:
    case STMT_FILTER:
        return run_filter_block(r, scope, s);
    case STMT_MACRO:
        define_macro(r, scope, s);
        return FLOW_ON;
    case STMT_CALL:
        run_call_block(r, scope, s);
        return FLOW_ON;
    case STMT_WITH:
        return run_with(r, scope, s);
    case STMT_SCOPE:
        return execute(r, new_scope(r, scope), s->body);
    case STMT_BLOCK:
        return execute(r, new_scope(r, r->root), s->body);
    case STMT_BREAK:
        return FLOW_BREAK;
    case STMT_CONTINUE:
        return FLOW_CONTINUE;
    }
    return FLOW_ON;
}

static enum flow execute(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_stmt *body)
{
    enum flow flow = FLOW_ON;

    tpl_enter(&r->heap);
    for (const struct tpl_stmt *s = body; s && flow == FLOW_ON; s = s->next) {
        tpl_work(&r->heap, 0);
        r->heap.line = s->line;
        flow = execute_one(r, scope, s);
    }
    tpl_leave(&r->heap);
    return flow;
}

void tpl_run(struct tpl_render *r)
{
    execute(r, r->root, r->tree->body);
}

/* ---- the state of loops -------------------------------------------------------------------- */

static struct tpl_value cycle(struct tpl_render *r, struct tpl_value self,
                              const struct tpl_args *args)
{
    if (args->n == 0 || args->n_named > 0)
        tpl_fail(&r->heap, "loop.cycle() needs values");
    return args->positional[self.loop->index % args->n];
}

static struct tpl_value changed(struct tpl_render *r, struct tpl_value self,
                                const struct tpl_args *args)
{
    struct tpl_value now = tpl_tuple(&r->heap, args->n);

    for (size_t i = 0; i < args->n; i++)
        now.list->items[i] = args->positional[i];
    if (tpl_equal(&r->heap, self.loop->changed, now))
        return tpl_bool(false);
    self.loop->changed = now;
    return tpl_bool(true);
}

static struct tpl_value loop_method(struct tpl_render *r, struct tpl_value self,
                                    const struct tpl_function *function)
{
    struct tpl_method *method = tpl_alloc(&r->heap, sizeof(*method));

    *method = (struct tpl_method){.function = function, .self = self};
    return (struct tpl_value){.type = TPL_METHOD, .method = method};
}

struct tpl_value tpl_loop_attribute(struct tpl_render *r, struct tpl_value self,
                                    const struct tpl_string *name)
{
    static const struct tpl_function methods[] = {{"cycle", NULL, NULL, cycle},
                                                  {"changed", NULL, NULL, changed}};
    const struct tpl_loop *loop = self.loop;
    struct tpl_value word = {.type = TPL_STRING, .string = name};
    int64_t index = (int64_t)loop->index, length = (int64_t)loop->items->n;
    const struct {
        const char *name;
        int64_t value;
    } numbers[] = {{"index", index + 1},         {"index0", index},
                   {"revindex", length - index}, {"revindex0", length - index - 1},
                   {"length", length},           {"depth", loop->depth},
                   {"depth0", loop->depth - 1}};

    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        if (tpl_is_word(word, numbers[i].name))
            return tpl_int(numbers[i].value);
    if (tpl_is_word(word, "first"))
        return tpl_bool(index == 0);
    if (tpl_is_word(word, "last"))
        return tpl_bool(index + 1 >= length);
    if (tpl_is_word(word, "previtem"))
        return index > 0 ? loop->items->items[index - 1]
                         : tpl_undefined_hint(&r->heap, "there is no previous item");
    if (tpl_is_word(word, "nextitem"))
        return index + 1 < length ? loop->items->items[index + 1]
                                  : tpl_undefined_hint(&r->heap, "there is no next item");
    const struct tpl_function *method = tpl_find_in(methods, 2, name);
    return method ? loop_method(r, self, method) : TPL_NO_VALUE;
}

void tpl_add_object(struct tpl_builder *b, struct tpl_value v)
{
    char text[80];

    if (v.type == TPL_LOOP) {
        snprintf(text, sizeof(text), "<LoopContext %zu/%zu>", v.loop->index + 1, v.loop->items->n);
        tpl_add(b, text, strlen(text), false);
    } else if (tpl_given(v.macro->def->name)) {
        tpl_add_word(b, "<Macro ");
        tpl_add_repr(b, v.macro->def->name);
        tpl_add_word(b, ">");
    } else {
        tpl_add_word(b, "<Macro 'caller'>");
    }
}
