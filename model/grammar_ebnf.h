/* Grammars in the EBNF that GBNF, XGrammar and their users write:
 *
 *   root ::= item ("," item)*           # the text is what root matches
 *   item ::= "literal" | [a-z0-9_]{1,8} | [^\n] | . | name | ( ... )   each with * + ? {m} {m,n}
 *
 * A rule goes on until the next `name ::=`. Escapes in literals and classes: \n \r \t \\ \" \' \[
 * \]
 * \- \^ \xHH \uHHHH \UHHHHHHHH. A name that is not defined is an error, and so is left recursion.
 */
#pragma once

#include "model/grammar_text.h"

/* The node of the rule root; an error goes to `rules`, with its line. `text` has to be UTF-8. */
uint32_t ebnf_compile(struct rules *rules, const char *text, size_t len);
