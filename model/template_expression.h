/* The parser of chat templates, in two parts: tokens and expressions here, tags in
 * template_parser.c. */
#pragma once

#include "model/template_ast.h"
#include "model/template_lexer.h"

#include <stdbool.h>

/* One parsing. */
struct tpl_parser {
    struct tpl_heap *heap;
    const struct tpl_token *token; /* the current one */
    struct tpl_tree *tree;
    int symbols_cap;
    struct tpl_macro_def *macro; /* around; NULL: none */
    int loops;                   /* around, in the same macro */
    bool soft; /* in a branch of an `if`: an unknown filter or test fails only when it is reached */
    const struct tpl_expr *unknown; /* the first one elsewhere */
};

/* ---- tokens ---- */

bool tpl_at_kind(const struct tpl_parser *p, enum tpl_token_kind kind);
bool tpl_token_is(const struct tpl_token *token, enum tpl_token_kind kind, const char *text);
bool tpl_at_operator(const struct tpl_parser *p, const char *text);
bool tpl_at_word(const struct tpl_parser *p, const char *text);
/* To the next token; returns the one before. */
const struct tpl_token *tpl_advance(struct tpl_parser *p);
_Noreturn void tpl_fail_expected(struct tpl_parser *p, const char *what);
/* Past the token if it is this one. */
bool tpl_skip_operator(struct tpl_parser *p, const char *text);
bool tpl_skip_word(struct tpl_parser *p, const char *text);
/* Past the token, which must be this one. */
void tpl_expect_operator(struct tpl_parser *p, const char *text);
const struct tpl_token *tpl_expect_kind(struct tpl_parser *p, enum tpl_token_kind kind,
                                        const char *what);

/* ---- parts of the tree ---- */

struct tpl_value tpl_word_of(struct tpl_parser *p, const struct tpl_token *token);
struct tpl_expr *tpl_new_pair(struct tpl_parser *p, enum tpl_expr_kind kind, int line,
                              struct tpl_expr *a, struct tpl_expr *b);
/* Doubles an array of `n` elements when it is full. */
void *tpl_room(struct tpl_parser *p, void *array, size_t n, size_t *cap, size_t size);
void tpl_add_expr(struct tpl_parser *p, struct tpl_exprs *list, struct tpl_expr *e);
/* The number of a name. */
int tpl_symbol_of(struct tpl_parser *p, struct tpl_value name);

/* ---- expressions ---- */

struct tpl_expr *tpl_parse_expression(struct tpl_parser *p);
/* Without a conditional around it. */
struct tpl_expr *tpl_parse_or(struct tpl_parser *p);
/* Expressions between commas: a tuple, or the one expression when there is no comma. `end_word` is
 * a word that ends it, or NULL. */
struct tpl_expr *tpl_parse_tuple_of(struct tpl_parser *p,
                                    struct tpl_expr *(*parse)(struct tpl_parser *),
                                    const char *end_word, bool may_be_empty);
/* A name or a constant. */
struct tpl_expr *tpl_parse_name(struct tpl_parser *p);
/* A filter of `of`, which is NULL in filter blocks; the bar is past. */
struct tpl_expr *tpl_parse_filter(struct tpl_parser *p, struct tpl_expr *of);
