/* What a compiled template tells about itself without being rendered. */
#pragma once

#include "model/template_ast.h"

#include <stdbool.h>

/* Whether some loop goes through what is, as far as one can see, a member of that name: x.content,
 * x['content'], x.get('content'), or a name that is called so or was set to one of these. */
bool tpl_loops_over(const struct tpl_tree *tree, const char *member);
