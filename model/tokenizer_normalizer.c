#include "model/tokenizer_normalizer.h"

#include "base/memory.h"
#include "base/utf8.h"
#include "model/json_text.h"

#include <stdlib.h>
#include <string.h>

enum { STEPS_MAX = 32 };

static const size_t text_max = (size_t)1 << 31;

struct step {
    struct pattern *pattern; /* what is replaced; NULL: the content is put in front */
    char *content;
};

struct normalizer {
    struct step steps[STEPS_MAX];
    size_t steps_n;
};

/* ---- loading ---- */

static int load_step(struct normalizer *normalizer, const struct json *object, struct error *err)
{
    const struct json *pattern = json_get(object, "pattern");
    const char *type = json_text(object, "type"), *content;
    struct step *step = &normalizer->steps[normalizer->steps_n];

    if (normalizer->steps_n == STEPS_MAX)
        return error_set(err, "there are more than %d steps", STEPS_MAX);
    if (type && strcmp(type, "Prepend") == 0) {
        content = json_text(object, "prepend");
    } else if (type && strcmp(type, "Replace") == 0) {
        content = json_text(object, "content");
        if (json_text(pattern, "String"))
            step->pattern = pattern_compile_literal(json_text(pattern, "String"), err);
        else if (json_text(pattern, "Regex"))
            step->pattern = pattern_compile(json_text(pattern, "Regex"), err);
        else
            error_set(err, "Replace: \"pattern\" must be {\"String\": ...} or {\"Regex\": ...}");
        if (!step->pattern)
            return -1;
    } else {
        return error_set(err, "the normalizer %.100s is not supported", type ? type : "of no type");
    }
    step->content = mem_strdup(content ? content : "");
    normalizer->steps_n++;
    return content ? 0 : error_set(err, "%s: what to put in must be a string", type);
}

static int load_steps(struct normalizer *normalizer, const struct json *object, struct error *err)
{
    const char *type = json_text(object, "type");
    const struct json *list = json_get(object, "normalizers");

    if (!type || strcmp(type, "Sequence") != 0)
        return load_step(normalizer, object, err);
    if (!json_is(list, JSON_ARRAY))
        return error_set(err, "\"normalizers\" must be an array");
    for (const struct json *o = json_first(list); o; o = json_next(o))
        if (load_step(normalizer, o, err))
            return -1;
    return 0;
}

struct normalizer *normalizer_load(const struct json *object, struct error *err)
{
    struct normalizer *normalizer = mem_zalloc(1, sizeof(*normalizer));

    if (object && !json_is(object, JSON_NULL) && load_steps(normalizer, object, err)) {
        error_prefix(err, "normalizer");
        normalizer_free(normalizer);
        return NULL;
    }
    return normalizer;
}

void normalizer_free(struct normalizer *normalizer)
{
    if (!normalizer)
        return;
    for (size_t i = 0; i < STEPS_MAX; i++) {
        pattern_free(normalizer->steps[i].pattern);
        free(normalizer->steps[i].content);
    }
    free(normalizer);
}

bool normalizer_is_empty(const struct normalizer *normalizer)
{
    return normalizer->steps_n == 0;
}

/* ---- applying ---- */

void normalized_init(struct normalized *out)
{
    for (int i = 0; i < 2; i++) {
        buffer_init(&out->text[i], text_max);
        buffer_init(&out->marks[i], text_max);
    }
}

void normalized_free(struct normalized *out)
{
    for (int i = 0; i < 2; i++) {
        buffer_free(&out->text[i]);
        buffer_free(&out->marks[i]);
    }
}

/* One step's output. */
struct writer {
    struct buffer *text, *marks;
};

static void copy(struct writer *w, const struct marked_text *from, size_t start, size_t end)
{
    buffer_append(w->text, from->text + start, end - start);
    if (from->marks)
        buffer_append(w->marks, from->marks + start, end - start);
}

/* Writes the content of a step for the bytes from `start` to `end`. */
static void put(struct writer *w, const struct marked_text *from, size_t start, size_t end,
                const char *content)
{
    bool marked = from->marks && memchr(from->marks + start, 1, end - start);

    buffer_append_str(w->text, content);
    for (size_t i = 0; from->marks && content[i]; i++)
        buffer_append(w->marks, marked ? "\1" : "\0", 1);
}

/* Replaces all matches of a step's pattern. */
static int replace(const struct step *step, struct pattern_scratch *scratch,
                   const struct marked_text *from, struct writer *w, struct error *err)
{
    size_t done = 0, at = 0, start, end;
    int found = 0;

    while (at <= from->len) {
        found = pattern_find(step->pattern, scratch, from->text, from->len, at, &start, &end, err);
        if (found <= 0)
            break;
        copy(w, from, done, start);
        put(w, from, start, end, step->content);
        done = at = end;
        if (start == end) /* go on after the next character */
            at +=
                end < from->len ? (size_t)utf8_decode(from->text + end, from->len - end, NULL) : 1;
    }
    copy(w, from, done, from->len);
    return found < 0 ? -1 : 0;
}

int normalizer_apply(const struct normalizer *normalizer, struct pattern_scratch *scratch,
                     struct marked_text *text, struct normalized *out, struct error *err)
{
    for (size_t i = 0; i < normalizer->steps_n && text->len > 0; i++) {
        const struct step *step = &normalizer->steps[i];
        struct writer w = {&out->text[i % 2], &out->marks[i % 2]};
        buffer_clear(w.text);
        buffer_clear(w.marks);
        buffer_append_str(w.text, "");
        if (!step->pattern) {
            put(&w, text, 0, 0, step->content);
            copy(&w, text, 0, text->len);
        } else if (replace(step, scratch, text, &w, err)) {
            return -1;
        }
        if (w.text->overflowed)
            return error_set(err, "the text is too long after normalization");
        *text = (struct marked_text){
            w.text->data, text->marks ? (const uint8_t *)w.marks->data : NULL, w.text->len};
    }
    return 0;
}
