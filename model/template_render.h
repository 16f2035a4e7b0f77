/* The state of one rendering, for the parts of the interpreter. */
#pragma once

#include "model/template_ast.h"
#include "model/template_function.h"

#include <stdbool.h>
#include <stdint.h>

struct tpl_variable {
    int symbol;
    struct tpl_value value;
};

/* Variables; those of the scopes around are seen too. */
struct tpl_scope {
    struct tpl_scope *parent;
    struct tpl_variable *variables;
    size_t n, cap;
};

struct tpl_render {
    struct tpl_heap heap;
    const struct tpl_tree *tree;
    struct tpl_scope *root;
    struct tpl_builder *out; /* where output goes: to the text, or to a macro's value */
    bool may_change;         /* lists and dicts that the template made have append, update, ... */
    int64_t now_unix_s;
    struct json **parsed; /* documents that the template parsed, to be freed after it */
    size_t n_parsed;
};

struct tpl_macro {
    const struct tpl_macro_def *def;
    struct tpl_scope *scope; /* where it was defined */
};

/* The variable `loop`. */
struct tpl_loop {
    const struct tpl_list *items;
    size_t index; /* of the current item, from 0 */
    int64_t depth;
    struct tpl_value changed;         /* what loop.changed() was last called with */
    const struct tpl_stmt *recursive; /* the loop that loop() runs again; NULL: none */
    struct tpl_scope *scope;          /* around it */
};

/* Runs a template into `r->out`. */
void tpl_run(struct tpl_render *r);

void tpl_scope_set(struct tpl_render *r, struct tpl_scope *scope, int symbol,
                   struct tpl_value value);

/* The value of an attribute of the variable `loop`; TPL_ABSENT when it has none of that name. */
struct tpl_value tpl_loop_attribute(struct tpl_render *r, struct tpl_value loop,
                                    const struct tpl_string *name);
