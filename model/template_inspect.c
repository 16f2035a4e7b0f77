/* What a compiled template tells about itself without being rendered. */
#include "model/template_inspect.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

/* One search: which names stand for the member, and whether a loop over it was found. */
struct search {
    const struct tpl_tree *tree;
    const char *member;
    bool *stands_for; /* by symbol */
    bool found;
};

static bool is_member(const struct search *s, const struct tpl_expr *e)
{
    for (; e; e = e->a) {
        switch (e->kind) {
        case EXPR_NAME:
            return s->stands_for[e->symbol];
        case EXPR_ATTRIBUTE:
            return tpl_is_word(e->value, s->member);
        case EXPR_ITEM:
            return e->b->kind == EXPR_CONST && tpl_is_word(e->b->value, s->member);
        case EXPR_CALL: /* m.get('content') */
            return e->a->kind == EXPR_ATTRIBUTE && tpl_is_word(e->a->value, "get") &&
                   e->call->positional.n > 0 && e->call->positional.items[0]->kind == EXPR_CONST &&
                   tpl_is_word(e->call->positional.items[0]->value, s->member);
        case EXPR_FILTER:
        case EXPR_OR:
        case EXPR_CONDITION:
            continue;
        default:
            return false;
        }
    }
    return false;
}

static void search_body(struct search *s, const struct tpl_stmt *body)
{
    for (; body; body = body->next) {
        if (body->kind == STMT_SET && body->target->kind == EXPR_NAME && is_member(s, body->expr))
            s->stands_for[body->target->symbol] = true;
        if (body->kind == STMT_FOR && is_member(s, body->expr))
            s->found = true;
        search_body(s, body->body);
        search_body(s, body->otherwise);
        if (body->macro)
            search_body(s, body->macro->body);
    }
}

bool tpl_loops_over(const struct tpl_tree *tree, const char *member)
{
    struct search s = {.tree = tree, .member = member};

    s.stands_for = mem_zalloc((size_t)tree->n_symbols, sizeof(*s.stands_for));
    for (int i = 0; i < tree->n_symbols; i++)
        s.stands_for[i] = tpl_is_word(tree->symbols[i], member);
    search_body(&s, tree->body);
    free(s.stands_for);
    return s.found;
}
