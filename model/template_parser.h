/* Tokens of a chat template to its tree: Jinja's grammar, with the tags of its loopcontrols
 * extension and transformers' `generation`. Templates that need other templates (extends, include,
 * import) are refused. */
#pragma once

#include "model/template_ast.h"

/* The tree, in the heap. `source` must be UTF-8 and stay. */
struct tpl_tree *tpl_parse(struct tpl_heap *h, const char *source, size_t len);
