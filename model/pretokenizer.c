#include "model/pretokenizer.h"

#include "base/buffer.h"
#include "base/memory.h"
#include "base/panic.h"
#include "base/utf8.h"
#include "model/json_text.h"

#include <stdlib.h>
#include <string.h>

enum { STEPS_MAX = 32, REPLACEMENT_MAX = 4 };

static const size_t piece_max = (size_t)1 << 31; /* bytes */

/* What becomes of the matches of a step and of the text between them. */
enum behavior { ISOLATED, REMOVED, CONTIGUOUS, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT };

/* Which pieces get a prefix, unless they begin with it. */
enum prefix { PREFIX_NONE, PREFIX_FIRST, PREFIX_ALL };

struct step {
    enum prefix prefix;
    char space[REPLACEMENT_MAX + 1]; /* the prefix: " ", or what Metaspace writes for a space */
    bool metaspace;
    struct pattern *pattern; /* NULL: no split */
    enum behavior behavior;
    bool invert; /* matches and what is between them change roles */
};

struct pretokenizer {
    struct step steps[STEPS_MAX];
    size_t steps_n;
    bool byte_level; /* the ByteLevel step is there */
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

static int load_split(const struct json *object, struct step *step, struct error *err)
{
    static const char *const behaviors[] = {"Isolated", "Removed", "Contiguous",
                                            "MergedWithPrevious", "MergedWithNext"};
    const struct json *pattern = json_get(object, "pattern");
    const char *name = json_text(object, "behavior");
    size_t i = 0, n = sizeof(behaviors) / sizeof(behaviors[0]);

    while (name && i < n && strcmp(name, behaviors[i]) != 0)
        i++;
    if (!name || i == n)
        return error_set(err, "Split: the behavior \"%s\" is not supported", name ? name : "");
    step->behavior = (enum behavior)i;
    step->invert = flag(object, "invert", false);
    if (json_text(pattern, "Regex"))
        step->pattern = pattern_compile(json_text(pattern, "Regex"), err);
    else if (json_text(pattern, "String"))
        step->pattern = pattern_compile_literal(json_text(pattern, "String"), err);
    else
        return error_set(err, "Split: \"pattern\" must be {\"Regex\": ...} or {\"String\": ...}");
    return step->pattern ? 0 : error_prefix(err, "Split");
}

/* {"replacement": "▁", "prepend_scheme": "first", "split": false}; older files say
 * "add_prefix_space": true for the scheme "always". */
static int load_metaspace(const struct json *object, struct step *step, struct error *err)
{
    static const char *const schemes[] = {"never", "first", "always"};
    const char *space = json_text(object, "replacement");
    const char *scheme = json_text(object, "prepend_scheme");
    int i = 0;

    if (!space || utf8_decode(space, strlen(space), NULL) != (int)strlen(space) || !*space)
        return error_set(err, "Metaspace: \"replacement\" must be one character");
    if (!scheme)
        scheme = flag(object, "add_prefix_space", true) ? "always" : "never";
    while (i < 3 && strcmp(scheme, schemes[i]) != 0)
        i++;
    if (i == 3)
        return error_set(err, "Metaspace: the prepend_scheme \"%.100s\" is not supported", scheme);
    step->metaspace = true;
    step->prefix = (enum prefix)i;
    memcpy(step->space, space, strlen(space));
    step->behavior = MERGED_WITH_NEXT;
    if (flag(object, "split", true)) {
        step->pattern = pattern_compile_literal(space, err);
        return step->pattern ? 0 : -1;
    }
    return 0;
}

static int load_step(struct pretokenizer *pre, const struct json *object, struct error *err)
{
    const char *type = json_text(object, "type");
    struct step *step = &pre->steps[pre->steps_n];

    if (!type)
        return error_set(err, "a step must be an object with a \"type\"");
    if (pre->steps_n == STEPS_MAX)
        return error_set(err, "there are more than %d steps", STEPS_MAX);
    if (pre->byte_level)
        return error_set(err, "ByteLevel must be the last step, but %s follows", type);
    pre->steps_n++;
    if (strcmp(type, "Split") == 0)
        return load_split(object, step, err);
    if (strcmp(type, "Metaspace") == 0)
        return load_metaspace(object, step, err);
    if (strcmp(type, "Digits") == 0) {
        bool each = flag(object, "individual_digits", false);
        step->pattern = pattern_compile(each ? "\\p{N}" : "\\p{N}+", err);
        return step->pattern ? 0 : -1;
    }
    if (strcmp(type, "ByteLevel") == 0) {
        pre->byte_level = true;
        step->prefix = flag(object, "add_prefix_space", true) ? PREFIX_ALL : PREFIX_NONE;
        step->space[0] = ' ';
        if (flag(object, "use_regex", true))
            step->pattern = pattern_compile(gpt2_pattern, err);
        return step->pattern || !flag(object, "use_regex", true) ? 0 : -1;
    }
    return error_set(err, "the step %.100s is not supported", type);
}

static int load_steps(struct pretokenizer *pre, const struct json *object, struct error *err)
{
    const char *type = json_text(object, "type");

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

    if (object && !json_is(object, JSON_NULL) && load_steps(pre, object, err)) {
        error_prefix(err, "pre_tokenizer");
        pretokenizer_free(pre);
        return NULL;
    }
    return pre;
}

struct pretokenizer *pretokenizer_from_pattern(const char *pattern, struct error *err)
{
    struct pretokenizer *pre = mem_zalloc(1, sizeof(*pre));

    pre->steps_n = 1;
    pre->byte_level = true;
    pre->steps[0] = (struct step){
        .pattern = pattern_compile(pattern, err), .behavior = REMOVED, .invert = true};
    if (!pre->steps[0].pattern) {
        pretokenizer_free(pre);
        return NULL;
    }
    return pre;
}

bool pretokenizer_is_byte_level(const struct pretokenizer *pre)
{
    return pre->byte_level;
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
    bool is_first;     /* the text is the beginning of the whole */
    size_t start, end; /* the span held back; empty: none */
    bool matched;      /* whether its last part is a match */
};

static int run_step(struct split *split, size_t step, const char *text, size_t len, bool is_first);

/* Passes the span that is held back to the next step. */
static int pass_on(struct pieces *p)
{
    size_t len = p->end - p->start;

    if (len == 0)
        return 0;
    return run_step(p->split, p->step + 1, p->text + p->start, len, p->is_first && p->start == 0);
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
static int split_piece(struct split *split, size_t step, const char *text, size_t len,
                       bool is_first)
{
    const struct pattern *pattern = split->pre->steps[step].pattern;
    struct pieces pieces = {.split = split, .step = step, .text = text, .is_first = is_first};
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

/* Writes what a step makes of a piece before it splits it: Metaspace replaces all spaces, and a
 * prefix is put where it is missing. */
static void rewrite_piece(const struct step *s, const char *text, size_t len, bool is_first,
                          struct buffer *out)
{
    bool prefix = s->prefix == PREFIX_ALL || (s->prefix == PREFIX_FIRST && is_first);
    size_t size = strlen(s->space);

    if (prefix && !(s->metaspace && text[0] == ' ') &&
        !(len >= size && memcmp(text, s->space, size) == 0))
        buffer_append(out, s->space, size);
    while (s->metaspace && len > 0) {
        const char *space = memchr(text, ' ', len);
        size_t before = space ? (size_t)(space - text) : len;
        buffer_append(out, text, before);
        if (space)
            buffer_append(out, s->space, size);
        before += space ? 1 : 0;
        text += before;
        len -= before;
    }
    buffer_append(out, text, len);
}

/* Applies step number `step` and all that follow to a piece, which is not empty. */
static int run_step(struct split *split, size_t step, const char *text, size_t len, bool is_first)
{
    if (step == split->pre->steps_n)
        return split->take(split->context, text, len);

    const struct step *s = &split->pre->steps[step];
    struct buffer rewritten;
    buffer_init(&rewritten, piece_max);
    if (s->prefix != PREFIX_NONE || s->metaspace) {
        rewrite_piece(s, text, len, is_first, &rewritten);
        if (rewritten.overflowed) {
            buffer_free(&rewritten);
            return error_set(split->err, "the text is too long for the tokenizer");
        }
        text = rewritten.data;
        len = rewritten.len;
    }
    int rc = s->pattern ? split_piece(split, step, text, len, is_first)
                        : run_step(split, step + 1, text, len, is_first);
    buffer_free(&rewritten);
    return rc;
}

int pretokenizer_split(const struct pretokenizer *pre, struct pattern_scratch *scratch,
                       const char *text, size_t len, bool is_first, word_function take,
                       void *context, struct error *err)
{
    struct split split = {pre, scratch, take, context, err};

    return len ? run_step(&split, 0, text, len, is_first) : 0;
}
