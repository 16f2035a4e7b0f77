/* Chat templates: the Jinja that checkpoints ship, rendered as Hugging Face transformers does (an
 * immutable sandbox with trim_blocks, lstrip_blocks, loop controls and the `generation` tag; its
 * own tojson, strftime_now, raise_exception).
 *
 * A compiled template is immutable and may be rendered by several threads at once. Rendering is
 * bounded in steps, memory, depth and output; it never changes its input. What a template needs of
 * other templates (extends, include, import) is refused when it is compiled.
 *
 * Every byte of the output is known to be the template's own or the request's, so that only the
 * former can become a marker of the chat format. */
#pragma once

#include "base/buffer.h"
#include "base/error.h"
#include "base/json.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TEMPLATE_MAX_BYTES = 1 << 20 };

struct template;

/* Compiles `len` bytes of UTF-8. NULL and "line N: what is wrong" on error. */
struct template *template_compile(const char *text, size_t len, struct error *err);
void template_free(struct template *t);

/* Whether the template speaks of a variable: what it doesn't name, it can't use. */
bool template_uses(const struct template *t, const char *variable);

/* Whether the template goes through the members of that name in a loop, as those do that take the
 * content of a message as a list of parts. */
bool template_loops_over(const struct template *t, const char *member);

struct template_variable {
    const char *name;
    const struct json *value; /* borrowed; NULL: the variable is not defined */
    bool foreign;             /* its text is the request's */
};

struct template_options {
    int64_t max_steps;       /* about 30 million a second */
    size_t max_memory_bytes; /* while rendering */
    size_t max_output_bytes;
    int max_depth; /* of nested evaluation */

    /* Lists and dicts that the template itself made have append(), pop(), update() and the like.
     * The sandbox of transformers forbids them, but some checkpoints' templates need them. */
    bool may_change_own;

    /* What is not foreign where an assistant's message has it in its content, such as the tags of
     * its reasoning; NULL-terminated. NULL: nothing. */
    const char *const *assistant_marks;

    int64_t now_unix_s; /* for strftime_now; -1: the clock's */
};

extern const struct template_options template_defaults;

/* Appends the rendered text to `out` and, unless it is NULL, a byte for each of its bytes to
 * `foreign`: whether it is the request's. -1 and "line N: what is wrong" on error, with nothing
 * appended. Of variables with one name the last counts. */
int template_render(const struct template *t, const struct template_variable *variables, size_t n,
                    const struct template_options *options, struct buffer *out,
                    struct buffer *foreign, struct error *err);
