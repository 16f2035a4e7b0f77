/* Values as text: Python's str(), repr() and json.dumps(). */
#pragma once

#include "model/template_value.h"

void tpl_add_str(struct tpl_builder *b, struct tpl_value v);
void tpl_add_repr(struct tpl_builder *b, struct tpl_value v);

/* str(v); of a "safe" string a plain one. */
struct tpl_value tpl_str(struct tpl_heap *h, struct tpl_value v);
/* A string itself, also a "safe" one; of others str(v). */
struct tpl_value tpl_soft_str(struct tpl_heap *h, struct tpl_value v);

/* Appends the text with & < > ' " as HTML entities, or a "safe" string as it is. */
void tpl_add_escaped(struct tpl_builder *b, struct tpl_value v);

struct tpl_json_style {
    const struct tpl_string *indent; /* of one level; NULL: all on one line */
    const struct tpl_string *item_separator, *key_separator;
    bool ensure_ascii, sort_keys;
};

void tpl_add_json(struct tpl_builder *b, struct tpl_value v, const struct tpl_json_style *style);
