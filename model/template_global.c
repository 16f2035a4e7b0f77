/* The functions that a template finds: Jinja's, and those that transformers adds. */
#include "model/template_format.h"
#include "model/template_render.h"
#include "model/template_text.h"

#include <string.h>

enum { RANGE_MAX = 100000 }; /* as in Jinja's sandbox */

static struct tpl_value range(struct tpl_render *r, struct tpl_value self,
                              const struct tpl_value *args)
{
    struct tpl_range *range = tpl_alloc(&r->heap, sizeof(*range));
    int64_t first = tpl_want_integer(r, args[0], "range()");

    (void)self;
    *range = (struct tpl_range){.stop = first, .step = tpl_integer_or(r, args[2], 1, "range()")};
    if (tpl_given(args[1])) {
        range->start = first;
        range->stop = tpl_want_integer(r, args[1], "range()");
    }
    if (range->step == 0)
        tpl_fail(&r->heap, "range(): the step can't be 0");
    bool up = range->step > 0;
    uint64_t span = up ? (uint64_t)range->stop - (uint64_t)range->start
                       : (uint64_t)range->start - (uint64_t)range->stop;
    uint64_t step = up ? (uint64_t)range->step : -(uint64_t)range->step;
    bool empty = up ? range->start >= range->stop : range->start <= range->stop;
    uint64_t n = empty ? 0 : (span - 1) / step + 1;
    if (n > RANGE_MAX)
        tpl_fail(&r->heap, "range(): more than %d numbers", RANGE_MAX);
    range->n = (int64_t)n;
    return (struct tpl_value){.type = TPL_RANGE, .range = range};
}

/* Entries from a dict or a list of pairs, and from arguments by name. */
static struct tpl_value dict(struct tpl_render *r, struct tpl_value self,
                             const struct tpl_args *args)
{
    struct tpl_value made = tpl_dict(&r->heap);

    (void)self;
    if (args->n > 1)
        tpl_fail(&r->heap, "takes at most one argument by place");
    if (args->n == 1 && (args->positional[0].type == TPL_DICT)) {
        const struct tpl_dict *from = args->positional[0].dict;
        for (size_t i = 0; i < from->n; i++)
            tpl_dict_set(&r->heap, made.dict, from->entries[i].key, from->entries[i].value);
    } else if (args->n == 1) {
        const struct tpl_list *pairs = tpl_items(&r->heap, args->positional[0]);
        for (size_t i = 0; i < pairs->n; i++) {
            const struct tpl_list *pair = tpl_items(&r->heap, pairs->items[i]);
            if (pair->n != 2)
                tpl_fail(&r->heap, "a dict is made of pairs");
            tpl_dict_set(&r->heap, made.dict, pair->items[0], pair->items[1]);
        }
    }
    for (size_t i = 0; i < args->n_named; i++)
        tpl_dict_set(&r->heap, made.dict, args->named[i].name, args->named[i].value);
    return made;
}

static struct tpl_value namespace_(struct tpl_render *r, struct tpl_value self,
                                   const struct tpl_args *args)
{
    struct tpl_value made = dict(r, self, args);

    made.type = TPL_NAMESPACE;
    return made;
}

static struct tpl_value cycler(struct tpl_render *r, struct tpl_value self,
                               const struct tpl_args *args)
{
    struct tpl_cycler *c = tpl_alloc(&r->heap, sizeof(*c));

    (void)self;
    if (args->n == 0 || args->n_named > 0)
        tpl_fail(&r->heap, "cycler() needs values");
    *c = (struct tpl_cycler){.items = tpl_list(&r->heap, args->n).list};
    for (size_t i = 0; i < args->n; i++)
        tpl_push(&r->heap, c->items, args->positional[i]);
    return (struct tpl_value){.type = TPL_CYCLER, .cycler = c};
}

static struct tpl_value joiner(struct tpl_render *r, struct tpl_value self,
                               const struct tpl_value *args)
{
    struct tpl_cycler *c = tpl_alloc(&r->heap, sizeof(*c));

    (void)self;
    *c = (struct tpl_cycler){.items = tpl_list(&r->heap, 1).list};
    tpl_push(&r->heap, c->items, tpl_given(args[0]) ? args[0] : tpl_word(&r->heap, ", "));
    return (struct tpl_value){.type = TPL_JOINER, .cycler = c};
}

static struct tpl_value raise_exception(struct tpl_render *r, struct tpl_value self,
                                        const struct tpl_value *args)
{
    const struct tpl_string *message = tpl_soft_str(&r->heap, args[0]).string;

    (void)self;
    tpl_fail(&r->heap, "%.*s", (int)(message->len < 300 ? message->len : 300), message->data);
}

static struct tpl_value strftime_now(struct tpl_render *r, struct tpl_value self,
                                     const struct tpl_value *args)
{
    (void)self;
    return tpl_format_time(r, tpl_want_string(r, args[0], "strftime_now()"), r->now_unix_s);
}

const struct tpl_function tpl_globals[] = {
    {"range", "/start ?stop step", range, NULL},
    {"dict", NULL, NULL, dict},
    {"namespace", NULL, NULL, namespace_},
    {"cycler", NULL, NULL, cycler},
    {"joiner", "?sep", joiner, NULL},
    {"raise_exception", "message", raise_exception, NULL},
    {"strftime_now", "format", strftime_now, NULL},
    {"lipsum", NULL, NULL, NULL},
};
const size_t tpl_globals_n = sizeof(tpl_globals) / sizeof(tpl_globals[0]);
