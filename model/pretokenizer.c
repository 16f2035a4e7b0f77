#include "model/pretokenizer.h"

#include "base/memory.h"
#include "base/panic.h"
#include "base/utf8.h"

#include <stdlib.h>
#include <string.h>

enum { STEPS_MAX = 32 };

/* What becomes of the matches of a step and of the text between them. */
enum behavior { ISOLATED, REMOVED, CONTIGUOUS, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT };

struct step {
    bool prefix_space;       /* a piece that doesn't begin with a space gets one */
    struct pattern *pattern; /* NULL: no split */
    enum behavior behavior;
    bool invert; /* matches and what is between them change roles */
};

struct pretokenizer {
    struct step steps[STEPS_MAX];
    size_t steps_n;
    bool complete; /* the ByteLevel step is there */
};

/* What ByteLevel splits by: the pattern of GPT-2. */
static const char gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* ---- loading ---- */

static bool flag(const struct json *object, const char *name, bool when_missing)
{
    const struct json *value = json_get(object, name);

    return json_is(value, JSON_BOOL) ? json_bool(value) : when_missing;
}

static const char *text_of(const struct json *object, const char *name)
{
    const struct json *value = json_get(object, name);

    return json_is(value, JSON_STRING) ? json_string(value) : NULL;
}

static int load_split(const struct json *object, struct step *step, struct error *err)
{
    static const char *const behaviors[] = {"Isolated", "Removed", "Contiguous",
                                            "MergedWithPrevious", "MergedWithNext"};
    const struct json *pattern = json_get(object, "pattern");
    const char *name = text_of(object, "behavior");
    size_t i = 0, n = sizeof(behaviors) / sizeof(behaviors[0]);

    while (name && i < n && strcmp(name, behaviors[i]) != 0)
        i++;
    if (!name || i == n)
        return error_set(err, "Split: the behavior \"%s\" is not supported", name ? name : "");
    step->behavior = (enum behavior)i;
    step->invert = flag(object, "invert", false);
    if (text_of(pattern, "Regex"))
        step->pattern = pattern_compile(text_of(pattern, "Regex"), err);
    else if (text_of(pattern, "String"))
        step->pattern = pattern_compile_literal(text_of(pattern, "String"), err);
    else
        return error_set(err, "Split: \"pattern\" must be {\"Regex\": ...} or {\"String\": ...}");
    return step->pattern ? 0 : error_prefix(err, "Split");
}

static int load_step(struct pretokenizer *pre, const struct json *object, struct error *err)
{
    const char *type = text_of(object, "type");
    struct step *step = &pre->steps[pre->steps_n];

    if (!type)
        return error_set(err, "a step must be an object with a \"type\"");
    if (pre->steps_n == STEPS_MAX)
        return error_set(err, "there are more than %d steps", STEPS_MAX);
    if (pre->complete)
        return error_set(err, "ByteLevel must be the last step, but %s follows", type);
    pre->steps_n++;
    if (strcmp(type, "Split") == 0)
        return load_split(object, step, err);
    if (strcmp(type, "Digits") == 0) {
        bool each = flag(object, "individual_digits", false);
        step->pattern = pattern_compile(each ? "\\p{N}" : "\\p{N}+", err);
        return step->pattern ? 0 : -1;
    }
    if (strcmp(type, "ByteLevel") == 0) {
        pre->complete = true;
        step->prefix_space = flag(object, "add_prefix_space", true);
        if (flag(object, "use_regex", true))
            step->pattern = pattern_compile(gpt2_pattern, err);
        return step->pattern || !flag(object, "use_regex", true) ? 0 : -1;
    }
    return error_set(err, "the step %.100s is not supported", type);
}

static int load_steps(struct pretokenizer *pre, const struct json *object, struct error *err)
{
    const char *type = text_of(object, "type");

    if (!type || strcmp(type, "Sequence") != 0)
        return load_step(pre, object, err);
    const struct json *list = json_get(object, "pretokenizers");
    if (!json_is(list, JSON_ARRAY))
        return error_set(err, "\"pretokenizers\" must be an array");
    for (const struct json *o = json_first(list); o; o = json_next(o))
        if (load_step(pre, o, err))
            return -1;
    return 0;
}

struct pretokenizer *pretokenizer_load(const struct json *object, struct error *err)
{
    struct pretokenizer *pre = mem_zalloc(1, sizeof(*pre));
    int rc = load_steps(pre, object, err);

    if (!rc && !pre->complete)
        rc = error_set(err, "there is no ByteLevel step; only byte-level BPE is supported");
    if (rc) {
        error_prefix(err, "pre_tokenizer");
        pretokenizer_free(pre);
        return NULL;
    }
    return pre;
}

void pretokenizer_free(struct pretokenizer *pre)
{
    if (!pre)
        return;
    for (size_t i = 0; i < pre->steps_n; i++)
        pattern_free(pre->steps[i].pattern);
    free(pre);
}

/* ---- splitting ---- */

/* One call of pretokenizer_split. Pieces go through the steps depth first, so none are stored. */
struct split {
    const struct pretokenizer *pre;
    struct pattern_scratch *scratch;
    word_function take;
    void *context;
    struct error *err;
};

/* The pieces of one text at one step. Spans (matches and what lies between) come in order; the last
 * one is held back for as long as the next may be joined to it. */
struct pieces {
    struct split *split;
    size_t step;
    const char *text;
    size_t start, end; /* the span held back; empty: none */
    bool matched;      /* whether its last part is a match */
};

static int run_step(struct split *split, size_t step, const char *text, size_t len);

/* Passes the span that is held back to the next step. */
static int pass_on(struct pieces *p)
{
    size_t len = p->end - p->start;

    return len ? run_step(p->split, p->step + 1, p->text + p->start, len) : 0;
}

static bool joins(enum behavior behavior, bool last_matched, bool matched)
{
    return (behavior == CONTIGUOUS && matched == last_matched) ||
           (behavior == MERGED_WITH_PREVIOUS && matched && !last_matched) ||
           (behavior == MERGED_WITH_NEXT && !matched && last_matched);
}

static int add_span(struct pieces *p, size_t start, size_t end, bool matched)
{
    const struct step *step = &p->split->pre->steps[p->step];
    int rc = 0;

    matched ^= step->invert;
    if (step->behavior == REMOVED && matched)
        return 0;
    if (p->end == start && start > 0 && joins(step->behavior, p->matched, matched)) {
        p->end = end;
    } else {
        rc = pass_on(p);
        p->start = start;
        p->end = end;
    }
    p->matched = matched;
    return rc;
}

/* Splits one piece by a pattern. */
static int split_piece(struct split *split, size_t step, const char *text, size_t len)
{
    const struct pattern *pattern = split->pre->steps[step].pattern;
    struct pieces pieces = {.split = split, .step = step, .text = text};
    size_t done = 0, from = 0, start, end;
    int rc = 0, found = 0;

    while (!rc && from <= len) {
        found = pattern_find(pattern, split->scratch, text, len, from, &start, &end, split->err);
        if (found <= 0)
            break;
        from = end;
        if (start == end) { /* go on after the next character */
            from += end < len ? (size_t)utf8_decode(text + end, len - end, NULL) : 1;
            if (end == done && done > 0)
                continue; /* an empty match right behind another one is none */
        }
        if (start > done)
            rc = add_span(&pieces, done, start, false);
        if (!rc)
            rc = add_span(&pieces, start, end, true);
        done = end;
    }
    if (found < 0)
        return -1;
    if (!rc && done < len)
        rc = add_span(&pieces, done, len, false);
    return rc ? rc : pass_on(&pieces);
}

/* Applies step number `step` and all that follow to a piece, which is not empty. */
static int run_step(struct split *split, size_t step, const char *text, size_t len)
{
    if (step == split->pre->steps_n)
        return split->take(split->context, text, len);

    const struct step *s = &split->pre->steps[step];
    char *prefixed = NULL;
    if (s->prefix_space && text[0] != ' ') {
        prefixed = mem_alloc(len + 1);
        prefixed[0] = ' ';
        memcpy(prefixed + 1, text, len);
        text = prefixed;
        len++;
    }
    int rc =
        s->pattern ? split_piece(split, step, text, len) : run_step(split, step + 1, text, len);
    free(prefixed);
    return rc;
}

int pretokenizer_split(const struct pretokenizer *pre, struct pattern_scratch *scratch,
                       const char *text, size_t len, word_function take, void *context,
                       struct error *err)
{
    struct split split = {pre, scratch, take, context, err};

    return len ? run_step(&split, 0, text, len) : 0;
}
