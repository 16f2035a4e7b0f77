#include "model/template.h"

#include "base/clock.h"
#include "base/memory.h"
#include "base/utf8.h"
#include "model/template_inspect.h"
#include "model/template_parser.h"
#include "model/template_render.h"

#include <stdlib.h>
#include <string.h>

enum { COMPILE_STEPS = 20000000, COMPILE_BYTES = 256 << 20, COMPILE_DEPTH = 400 };

struct template
{
    struct tpl_heap heap; /* of the tree */
    const struct tpl_tree *tree;
};

const struct template_options template_defaults = {
    .max_steps = 20000000,
    .max_memory_bytes = (size_t)256 << 20,
    .max_output_bytes = (size_t)64 << 20,
    .max_depth = 1500,
    .now_unix_s = -1,
};

/* The one setjmp of compiling; -1 when it failed. */
static int parse(struct template *t, const char *text, size_t len)
{
    if (setjmp(t->heap.fail))
        return -1;
    t->tree = tpl_parse(&t->heap, text, len);
    return 0;
}

struct template *template_compile(const char *text, size_t len, struct error *err)
{
    if (len > TEMPLATE_MAX_BYTES) {
        error_set(err, "the chat template has more than %d bytes", TEMPLATE_MAX_BYTES);
        return NULL;
    }
    if (!utf8_valid(text, len) || memchr(text, '\0', len)) {
        error_set(err, "the chat template is not valid UTF-8, or holds the NUL character");
        return NULL;
    }
    struct template *t = mem_zalloc(1, sizeof(*t));
    tpl_heap_init(&t->heap, COMPILE_BYTES, COMPILE_STEPS, COMPILE_DEPTH, err);
    if (parse(t, text, len)) {
        template_free(t);
        return NULL;
    }
    t->heap.err = NULL;
    return t;
}

void template_free(struct template *t)
{
    if (!t)
        return;
    tpl_heap_free(&t->heap);
    free(t);
}

bool template_uses(const struct template *t, const char *variable)
{
    for (int i = 0; i < t->tree->n_symbols; i++)
        if (i >= SYMBOLS_FIXED && tpl_is_word(t->tree->symbols[i], variable))
            return true;
    return false;
}

bool template_loops_over(const struct template *t, const char *member)
{
    return tpl_loops_over(t->tree, member);
}

static int symbol_of(const struct tpl_tree *tree, const char *name)
{
    for (int i = 0; i < tree->n_symbols; i++)
        if (tpl_is_word(tree->symbols[i], name))
            return i;
    return -1;
}

/* The one setjmp of rendering; -1 when it failed. */
static int render(struct tpl_render *r, const struct template_variable *variables, size_t n,
                  const struct template_options *options)
{
    if (setjmp(r->heap.fail))
        return -1;
    r->root = tpl_alloc(&r->heap, sizeof(*r->root));
    *r->root = (struct tpl_scope){.parent = NULL};
    for (size_t i = 0; i < n; i++) {
        int symbol = symbol_of(r->tree, variables[i].name);
        if (symbol >= 0 && variables[i].value) /* others can't be seen */
            tpl_scope_set(r, r->root, symbol,
                          tpl_from_json(&r->heap, variables[i].value, variables[i].foreign,
                                        options->assistant_marks));
    }
    tpl_run(r);
    return 0;
}

static int give_out(const struct tpl_builder *text, struct buffer *out, struct buffer *foreign,
                    struct error *err)
{
    size_t len = out->len;

    if (buffer_append(out, text->len ? text->data : "", text->len))
        return error_set(err, "the rendered chat template has too many bytes");
    for (size_t i = 0; foreign && i < text->len; i++) {
        uint8_t byte = text->mask ? text->mask[i] : text->foreign;
        if (buffer_append(foreign, &byte, 1)) {
            out->len = len;
            return error_set(err, "the rendered chat template has too many bytes");
        }
    }
    return 0;
}

int template_render(const struct template *t, const struct template_variable *variables, size_t n,
                    const struct template_options *options, struct buffer *out,
                    struct buffer *foreign, struct error *err)
{
    struct tpl_render *r = mem_zalloc(1, sizeof(*r));
    struct tpl_builder text;

    tpl_heap_init(&r->heap, options->max_memory_bytes, options->max_steps, options->max_depth, err);
    tpl_builder_init(&text, &r->heap);
    text.max = options->max_output_bytes;
    r->tree = t->tree;
    r->out = &text;
    r->may_change = options->may_change_own;
    r->now_unix_s = options->now_unix_s < 0 ? clock_unix_s() : options->now_unix_s;
    int rc = render(r, variables, n, options);
    if (rc == 0)
        rc = give_out(&text, out, foreign, err);
    for (size_t i = 0; i < r->n_parsed; i++)
        json_free(r->parsed[i]);
    free(r->parsed);
    tpl_heap_free(&r->heap);
    free(r);
    return rc;
}
