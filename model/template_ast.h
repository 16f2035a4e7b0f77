/* A chat template as a tree: what the parser makes and the renderer walks over. It lies in the heap
 * of the compiled template and never changes. */
#pragma once

#include "model/template_number.h"
#include "model/template_value.h"

enum tpl_expr_kind {
    EXPR_CONST,
    EXPR_NAME,
    EXPR_TUPLE,
    EXPR_LIST,
    EXPR_DICT,      /* items: key, value, key, value, ... */
    EXPR_CONDITION, /* a if test else b */
    EXPR_OR,
    EXPR_AND,
    EXPR_NOT,
    EXPR_COMPARE, /* a, then items by comparisons */
    EXPR_BINARY,
    EXPR_CONCAT, /* ~ */
    EXPR_NEGATE,
    EXPR_PLUS,
    EXPR_ATTRIBUTE, /* a.name */
    EXPR_ITEM,      /* a[b] */
    EXPR_SLICE,     /* of items: start, stop, step; NULL where not given */
    EXPR_CALL,
    EXPR_FILTER, /* a | name(call); a is NULL in filter blocks */
    EXPR_TEST,   /* a is name(call) */
    EXPR_MEMBER, /* only assigned to: name.attribute of a namespace */
};

enum tpl_comparison { CMP_EQ, CMP_NE, CMP_LT, CMP_LE, CMP_GT, CMP_GE, CMP_IN, CMP_NOT_IN };

struct tpl_exprs {
    struct tpl_expr **items;
    size_t n, cap;
};

struct tpl_named_expr {
    struct tpl_value name;
    struct tpl_expr *value;
};

/* The arguments of a call. */
struct tpl_call {
    struct tpl_exprs positional;
    struct tpl_named_expr *named;
    size_t n_named, named_cap;
    struct tpl_expr *more_positional, *more_named; /* *list, **dict; or NULL */
};

struct tpl_expr {
    enum tpl_expr_kind kind;
    int line;
    int symbol;             /* of a name, or of the namespace of a member */
    struct tpl_value value; /* of a constant; or the name of what has one, as a string */
    enum tpl_operator op;
    struct tpl_expr *a, *b, *test;
    struct tpl_exprs items;
    enum tpl_comparison *comparisons;
    struct tpl_call *call;
    const struct tpl_function *function; /* of a filter or test; NULL: there is none */
};

enum tpl_stmt_kind {
    STMT_DATA,
    STMT_OUTPUT,
    STMT_IF,
    STMT_FOR,
    STMT_SET,
    STMT_SET_BLOCK,
    STMT_MACRO,
    STMT_CALL,   /* a call block: its body is the caller */
    STMT_FILTER, /* a filter block */
    STMT_WITH,
    STMT_SCOPE, /* a body with variables of its own */
    STMT_BLOCK, /* the same, with only the template's outermost variables around it */
    STMT_BREAK,
    STMT_CONTINUE,
};

/* A macro, or the body of a call block. */
struct tpl_macro_def {
    struct tpl_value name; /* TPL_ABSENT: of a call block */
    int symbol;
    struct tpl_value *params; /* names */
    int *param_symbols;
    struct tpl_expr **defaults; /* of each parameter, or NULL */
    size_t n_params;
    struct tpl_stmt *body;
    bool takes_varargs, takes_kwargs, takes_caller; /* the body speaks of them */
};

struct tpl_stmt {
    enum tpl_stmt_kind kind;
    int line;
    struct tpl_stmt *next;
    struct tpl_value data;
    struct tpl_expr *expr;   /* what is written, tested, gone through, assigned, called */
    struct tpl_expr *target; /* of a loop or an assignment */
    struct tpl_expr *filter; /* of a loop: its condition; of a block: its filter, or NULL */
    struct tpl_exprs with_targets, with_values;
    struct tpl_stmt *body, *otherwise;
    bool recursive;
    struct tpl_macro_def *macro;
};

/* Names that the renderer knows. */
enum { SYMBOL_LOOP, SYMBOL_CALLER, SYMBOL_VARARGS, SYMBOL_KWARGS, SYMBOLS_FIXED };

struct tpl_tree {
    struct tpl_stmt *body;
    struct tpl_value *symbols; /* their names */
    int n_symbols;
};
