#include "server/api_constraint.h"

#include "base/memory.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { CACHED_GRAMMARS = 64, MAX_BAD_WORDS = 256, MAX_BAD_WORD_TOKENS = 64 };

/* ---- compiled grammars -------------------------------------------------------------------- */

struct cached {
    enum grammar_kind kind;
    char *source;
    size_t len;
    struct grammar *grammar; /* NULL: an empty entry */
};

struct grammar_cache {
    pthread_mutex_t lock;                   /* not held while a grammar is compiled */
    struct cached entries[CACHED_GRAMMARS]; /* the latest used first */
};

struct grammar_cache *grammar_cache_new(void)
{
    struct grammar_cache *cache = mem_zalloc(1, sizeof(*cache));

    pthread_mutex_init(&cache->lock, NULL);
    return cache;
}

static void drop(struct cached *entry)
{
    if (entry->grammar)
        grammar_unref(entry->grammar);
    free(entry->source);
    *entry = (struct cached){0};
}

void grammar_cache_free(struct grammar_cache *cache)
{
    for (int i = 0; i < CACHED_GRAMMARS; i++)
        drop(&cache->entries[i]);
    pthread_mutex_destroy(&cache->lock);
    free(cache);
}

/* Moves the entry of the source to the front and gives a reference; NULL: there is none. */
static struct grammar *find_cached(struct grammar_cache *cache, enum grammar_kind kind,
                                   const char *source, size_t len)
{
    struct grammar *grammar = NULL;

    pthread_mutex_lock(&cache->lock);
    for (int at = 0; at < CACHED_GRAMMARS && !grammar; at++) {
        struct cached found = cache->entries[at];
        if (!found.grammar || found.kind != kind || found.len != len ||
            memcmp(found.source, source, len) != 0)
            continue;
        memmove(cache->entries + 1, cache->entries, (size_t)at * sizeof(found));
        cache->entries[0] = found;
        grammar = grammar_ref(found.grammar);
    }
    pthread_mutex_unlock(&cache->lock);
    return grammar;
}

/* Puts one in front; that which was not used for longest goes. Two threads may have compiled the
 * same: then it is there twice, and the second leaves in time. */
static void keep_cached(struct grammar_cache *cache, struct cached entry)
{
    pthread_mutex_lock(&cache->lock);
    drop(&cache->entries[CACHED_GRAMMARS - 1]);
    memmove(cache->entries + 1, cache->entries, (CACHED_GRAMMARS - 1) * sizeof(entry));
    cache->entries[0] = entry;
    pthread_mutex_unlock(&cache->lock);
}

/* A reference to the grammar of the source; NULL and a sentence when it can't be compiled. */
static struct grammar *cached_grammar(struct grammar_cache *cache, enum grammar_kind kind,
                                      const char *source, size_t len,
                                      const struct vocabulary_trie *trie, struct error *err)
{
    struct grammar *grammar = find_cached(cache, kind, source, len);

    if (grammar)
        return grammar;
    grammar = grammar_compile(kind, source, len, trie, err);
    if (grammar)
        keep_cached(cache, (struct cached){kind, mem_copy(source, len), len, grammar_ref(grammar)});
    return grammar;
}

/* ---- which grammar ------------------------------------------------------------------------ */

/* A grammar that a field asks for. */
struct wish {
    const char *param; /* the field; NULL: nothing is asked for */
    enum grammar_kind kind;
    struct buffer source;
};

static void wish_json(struct wish *wish, const char *param, enum grammar_kind kind,
                      const struct json *value)
{
    wish->param = param;
    wish->kind = kind;
    buffer_clear(&wish->source);
    if (json_is(value, JSON_STRING)) /* a schema as text, an expression, rules */
        buffer_append_str(&wish->source, json_string(value));
    else if (value)
        json_write_value(&wish->source, value);
}

/* {"type": "text" | "json_object" | "json_schema", "json_schema": {"schema": …}} */
static int wish_response_format(struct wish *wish, const struct json *format,
                                struct api_fault *fault)
{
    static const char param[] = "response_format";
    const struct json *type = json_get(format, "type");
    const char *name = json_is(type, JSON_STRING) ? json_string(type) : "";

    if (strcmp(name, "text") == 0)
        return 0;
    if (strcmp(name, "json_object") == 0) {
        wish_json(wish, param, GRAMMAR_JSON_OBJECT, NULL);
        return 0;
    }
    if (strcmp(name, "json_schema") != 0)
        return api_fault_set(fault, 400, param,
                             "'response_format' must have the type \"text\", "
                             "\"json_object\" or \"json_schema\".");
    const struct json *schema = json_get(json_get(format, "json_schema"), "schema");
    if (!schema)
        return api_fault_set(fault, 400, param,
                             "'response_format' of type \"json_schema\" needs "
                             "{\"json_schema\": {\"schema\": …}}.");
    wish_json(wish, param, GRAMMAR_JSON_SCHEMA, schema);
    return 0;
}

/* Fields that hold a source of one kind. */
static const struct {
    const char *name; /* in "structured_outputs"; as a field of its own "guided_…" */
    const char *guided;
    enum grammar_kind kind;
} sources[] = {
    {"json", "guided_json", GRAMMAR_JSON_SCHEMA},
    {"regex", "guided_regex", GRAMMAR_REGEX},
    {"choice", "guided_choice", GRAMMAR_CHOICE},
    {"grammar", "guided_grammar", GRAMMAR_EBNF},
};

static bool is_there(const struct json *value)
{
    return value && json_type(value) != JSON_NULL;
}

/* Adds the wish of one field; two wishes are a fault. */
static int add_source(struct wish *wish, const char *param, enum grammar_kind kind,
                      const struct json *value, struct api_fault *fault)
{
    if (!is_there(value))
        return 0;
    if (wish->param)
        return api_fault_set(fault, 400, param, "'%s' and '%s' ask for different outputs.",
                             wish->param, param);
    bool fits = kind == GRAMMAR_JSON_SCHEMA
                    ? json_is(value, JSON_OBJECT) || json_is(value, JSON_STRING)
                : kind == GRAMMAR_CHOICE ? json_is(value, JSON_ARRAY)
                                         : json_is(value, JSON_STRING);
    if (!fits)
        return api_fault_set(fault, 400, param, "'%s' holds %s where %s belongs.", param,
                             json_type_name(value),
                             kind == GRAMMAR_JSON_SCHEMA ? "a JSON schema"
                             : kind == GRAMMAR_CHOICE    ? "a list of strings"
                                                         : "a string");
    wish_json(wish, param, kind, value);
    return 0;
}

static int find_wish(struct wish *wish, const struct json *body, struct api_fault *fault)
{
    const struct json *format = json_get(body, "response_format");
    const struct json *outputs = json_get(body, "structured_outputs");
    const struct json *object = json_get(outputs, "json_object");

    if (is_there(format) && wish_response_format(wish, format, fault))
        return -1;
    if (is_there(outputs) && !json_is(outputs, JSON_OBJECT))
        return api_fault_set(fault, 400, "structured_outputs",
                             "'structured_outputs' must be an object, not %s.",
                             json_type_name(outputs));
    if (is_there(json_get(outputs, "structural_tag")))
        return api_fault_set(fault, 400, "structured_outputs",
                             "'structural_tag' in 'structured_outputs' is not supported by this "
                             "server.");
    for (size_t i = 0; i < sizeof(sources) / sizeof(sources[0]); i++)
        if (add_source(wish, "structured_outputs", sources[i].kind,
                       json_get(outputs, sources[i].name), fault) ||
            add_source(wish, sources[i].guided, sources[i].kind, json_get(body, sources[i].guided),
                       fault))
            return -1;
    if (is_there(object) && !json_is(object, JSON_BOOL))
        return api_fault_set(fault, 400, "structured_outputs",
                             "'json_object' in 'structured_outputs' must be true or false.");
    if (is_there(object) && json_bool(object) && wish->param)
        return api_fault_set(fault, 400, "structured_outputs",
                             "'%s' and 'json_object' ask for different outputs.", wish->param);
    if (is_there(object) && json_bool(object))
        wish_json(wish, "structured_outputs", GRAMMAR_JSON_OBJECT, NULL);
    return 0;
}

/* A call of any of the tools, or the rest of one of the named tool: GRAMMAR_CALLS. */
static void wish_call(struct wish *wish, const struct api_params *params,
                      const struct output_format *format)
{
    struct buffer name;

    buffer_init(&name, 1 << 16);
    wish_json(wish, "tools", GRAMMAR_CALLS, NULL);
    for (const struct json *t = json_first(params->tools); t; t = json_next(t)) {
        const struct json *function = json_get(t, "function");
        const struct json *schema = json_get(function, "parameters");
        bool is_named = params->tool_choice == TOOL_NAMED;
        if (is_named && strcmp(json_string(json_get(function, "name")), params->tool_name) != 0)
            continue;
        buffer_append_str(&wish->source, wish->source.len ? ",{" : "[{");
        if (!is_named) {
            buffer_clear(&name);
            output_call_name(format, json_string(json_get(function, "name")), &name);
            buffer_append_str(&wish->source, "\"name\":");
            json_write_string(&wish->source, name.data, -1);
        }
        if (is_there(schema)) {
            buffer_append_str(&wish->source, is_named ? "\"arguments\":" : ",\"arguments\":");
            json_write_value(&wish->source, schema);
        }
        buffer_append_str(&wish->source, "}");
    }
    buffer_append_str(&wish->source, "]");
    buffer_free(&name);
}

/* A call that must come has arguments that fit its tool's parameters. */
static int find_call_wish(struct wish *wish, const struct api_params *params,
                          const struct engine_model *model, struct api_fault *fault)
{
    if (!params->tools || params->tool_choice == TOOL_AUTO)
        return 0;
    if (wish->param)
        return api_fault_set(fault, 400, wish->param,
                             "'%s' is for the text of an answer, and this 'tool_choice' asks for "
                             "a call.",
                             wish->param);
    if (model->trie && model->trie->call)
        wish_call(wish, params, model->output_format);
    return 0;
}

static int add_grammar(struct constraint *constraint, const struct json *body,
                       const struct api_params *params, const struct engine_model *model,
                       struct grammar_cache *cache, struct api_fault *fault)
{
    struct wish wish = {0};
    struct error err;

    buffer_init(&wish.source, GRAMMAR_MAX_SOURCE);
    buffer_append_str(&wish.source, "");
    int rc = find_wish(&wish, body, fault);
    if (rc == 0)
        rc = find_call_wish(&wish, params, model, fault);
    if (rc == 0 && wish.param && wish.source.overflowed)
        rc = api_fault_set(fault, 400, wish.param, "'%s' is longer than %d bytes.", wish.param,
                           GRAMMAR_MAX_SOURCE);
    if (rc == 0 && wish.param && !model->trie)
        rc = api_fault_set(fault, 400, wish.param,
                           "'%s' is not supported with this model's vocabulary.", wish.param);
    if (rc == 0 && wish.param) {
        constraint->grammar =
            cached_grammar(cache, wish.kind, wish.source.data, wish.source.len, model->trie, &err);
        if (!constraint->grammar)
            rc = api_fault_set(fault, 400, wish.param, "%s", err.message);
    }
    buffer_free(&wish.source);
    return rc;
}

/* ---- lists of tokens ---------------------------------------------------------------------- */

static int add_allowed(struct constraint *constraint, const struct json *ids, int32_t vocab_size,
                       struct api_fault *fault)
{
    static const char param[] = "allowed_token_ids";

    if (!json_is(ids, JSON_ARRAY) || json_count(ids) == 0)
        return api_fault_set(fault, 400, param, "'%s' must be a list of token ids.", param);
    constraint->allowed = mem_zalloc(SAMPLING_MASK_WORDS(vocab_size), sizeof(uint32_t));
    for (const struct json *v = json_first(ids); v; v = json_next(v)) {
        int64_t id;
        if (!json_integer(v, &id) || id < 0 || id >= vocab_size)
            return api_fault_set(fault, 400, param,
                                 "'%s' holds something that is not a token id "
                                 "(0 to %d).",
                                 param, vocab_size - 1);
        constraint->allowed[id / 32] |= 1u << id % 32;
    }
    return 0;
}

/* One spelling of a word: "word" as it stands, or as it stands after a space. */
static int add_bad_word(struct constraint *constraint, const char *prefix, const char *word,
                        const struct tokenizer *tok, struct api_fault *fault)
{
    struct token_list tokens;
    struct buffer text;
    struct error err;

    token_list_init(&tokens, MAX_BAD_WORD_TOKENS);
    buffer_init(&text, 1 << 16);
    buffer_printf(&text, "%s%s", prefix, word);
    int rc = tokenizer_encode(tok, text.data ? text.data : "", text.len, ENCODE_TEXT_ONLY, &tokens,
                              &err);
    buffer_free(&text);
    if (rc || tokens.len == 0 || constraint->n_bad_words == 2 * MAX_BAD_WORDS) {
        token_list_free(&tokens);
        return api_fault_set(fault, 400, "bad_words",
                             "'bad_words' may hold at most %d words of at "
                             "most %d tokens, none of them empty.",
                             MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS);
    }
    constraint->bad_words[constraint->n_bad_words++] =
        (struct bad_word){.tokens = tokens.ids, .n = (int32_t)tokens.len};
    return 0;
}

static int add_bad_words(struct constraint *constraint, const struct json *words,
                         const struct tokenizer *tok, struct api_fault *fault)
{
    if (!json_is(words, JSON_ARRAY))
        return api_fault_set(fault, 400, "bad_words", "'bad_words' must be a list of strings.");
    constraint->bad_words = mem_zalloc(2 * MAX_BAD_WORDS, sizeof(struct bad_word));
    for (const struct json *v = json_first(words); v; v = json_next(v)) {
        if (!json_is(v, JSON_STRING))
            return api_fault_set(fault, 400, "bad_words", "'bad_words' must be a list of strings.");
        if (add_bad_word(constraint, "", json_string(v), tok, fault) ||
            add_bad_word(constraint, " ", json_string(v), tok, fault))
            return -1;
    }
    return 0;
}

int api_constraint_parse(const struct json *body, const struct api_params *params,
                         const struct engine_model *model, struct grammar_cache *cache,
                         struct constraint **constraint, struct api_fault *fault)
{
    const struct json *allowed = json_get(body, "allowed_token_ids");
    const struct json *bad_words = json_get(body, "bad_words");
    struct constraint *made = mem_zalloc(1, sizeof(*made));
    int rc = add_grammar(made, body, params, model, cache, fault);

    if (rc == 0 && is_there(allowed))
        rc = add_allowed(made, allowed, model->config.vocab_size, fault);
    if (rc == 0 && is_there(bad_words))
        rc = add_bad_words(made, bad_words, model->tokenizer, fault);
    bool empty = !made->grammar && !made->allowed && made->n_bad_words == 0;
    if (rc || empty) {
        constraint_free(made);
        made = NULL;
    }
    *constraint = made;
    return rc;
}
