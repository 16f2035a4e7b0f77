#include "model/grammar.h"

#include "base/json.h"
#include "base/memory.h"
#include "base/panic.h"
#include "base/utf8.h"
#include "model/grammar_automaton.h"
#include "model/grammar_calls.h"
#include "model/grammar_ebnf.h"
#include "model/grammar_json.h"
#include "model/grammar_regex.h"
#include "model/grammar_schema.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CHOICES = 16384 };

struct grammar {
    pthread_mutex_t lock; /* of all below */
    struct automaton *automaton;
    struct grammar_state *states; /* all that stand in it */
    size_t references;
};

struct grammar_state {
    struct grammar *grammar;
    struct grammar_state *previous, *next;
    int32_t state;
    bool ended; /* by an end token */
};

/* ---- compiling ---- */

static uint32_t compile_choices(struct rules *rules, const struct json *list)
{
    struct rules_string *strings;
    size_t count = 0;

    if (!json_is(list, JSON_ARRAY) || !json_first(list) || json_count(list) > MAX_CHOICES)
        return rules_fail(rules, "it must be an array of 1 to %d strings", (int)MAX_CHOICES);
    strings = mem_zalloc(json_count(list), sizeof(*strings));
    for (const struct json *s = json_first(list); s; s = json_next(s)) {
        if (!json_is(s, JSON_STRING)) {
            rules_fail(rules, "it must be an array of strings, and one is of the type %s",
                       json_type_name(s));
            break;
        }
        strings[count++] = (struct rules_string){json_string(s), strlen(json_string(s))};
    }
    uint32_t node = rules->failed ? NODE_EMPTY : rules_strings(rules, strings, count);
    free(strings);
    return node;
}

/* The node of a source in JSON. */
static uint32_t compile_json(struct rules *rules, enum grammar_kind kind, const char *source,
                             size_t len, const struct vocabulary_trie *trie)
{
    struct error err;
    struct json *json = json_parse(source, len, &err);
    uint32_t node;

    if (!json)
        return rules_fail(rules, "%s", err.message);
    if (kind == GRAMMAR_CHOICE)
        node = compile_choices(rules, json);
    else if (kind == GRAMMAR_CALLS)
        node = calls_compile(rules, json, trie);
    else
        node = schema_compile(rules, json);
    json_free(json);
    return node;
}

static uint32_t compile_source(struct rules *rules, enum grammar_kind kind, const char *source,
                               size_t len, const struct vocabulary_trie *trie)
{
    struct json_forms forms;

    if (kind == GRAMMAR_JSON_OBJECT) {
        json_forms_init(&forms, rules);
        return json_form_object(&forms);
    }
    if (len > GRAMMAR_MAX_SOURCE)
        return rules_fail(rules, "it is longer than %d bytes", (int)GRAMMAR_MAX_SOURCE);
    if (kind == GRAMMAR_JSON_SCHEMA || kind == GRAMMAR_CHOICE || kind == GRAMMAR_CALLS)
        return compile_json(rules, kind, source, len, trie);
    if (!utf8_valid(source, len))
        return rules_fail(rules, "it is not valid UTF-8");
    if (kind == GRAMMAR_REGEX)
        return regex_compile(rules, source, len, REGEX_WHOLE, TEXT_PLAIN).node;
    return ebnf_compile(rules, source, len);
}

static const char *kind_name(enum grammar_kind kind)
{
    switch (kind) {
    case GRAMMAR_JSON_OBJECT:
        return "the JSON object";
    case GRAMMAR_JSON_SCHEMA:
        return "the JSON schema";
    case GRAMMAR_REGEX:
        return "the regular expression";
    case GRAMMAR_CHOICE:
        return "the list of choices";
    case GRAMMAR_CALLS:
        return "the parameters of a tool";
    case GRAMMAR_EBNF:
        return "the grammar";
    }
    PANIC("no kind of grammar: %d", (int)kind);
}

struct grammar *grammar_compile(enum grammar_kind kind, const char *source, size_t len,
                                const struct vocabulary_trie *trie, struct error *err)
{
    struct rules *rules = rules_new();
    struct automaton *automaton = NULL;
    uint32_t root = compile_source(rules, kind, source, len, trie);
    int rc = rules_finish(rules, root, err);

    if (rc) {
        rules_free(rules);
    } else {
        automaton = automaton_new(rules, trie);
        rc = automaton_probe(automaton, err);
    }
    if (rc) {
        automaton_free(automaton);
        error_prefix(err, "%s", kind_name(kind));
        return NULL;
    }
    struct grammar *g = mem_zalloc(1, sizeof(*g));
    *g = (struct grammar){.automaton = automaton, .references = 1};
    pthread_mutex_init(&g->lock, NULL);
    return g;
}

struct grammar *grammar_ref(struct grammar *g)
{
    pthread_mutex_lock(&g->lock);
    g->references++;
    pthread_mutex_unlock(&g->lock);
    return g;
}

void grammar_unref(struct grammar *g)
{
    if (!g)
        return;
    pthread_mutex_lock(&g->lock);
    ASSERT(g->references > 0);
    bool last = --g->references == 0;
    pthread_mutex_unlock(&g->lock);
    if (!last)
        return;
    pthread_mutex_destroy(&g->lock);
    automaton_free(g->automaton);
    free(g);
}

/* ---- states ---- */

/* A state in the list of its grammar, which is locked. */
static struct grammar_state *add_state(struct grammar *g, int32_t at, bool ended)
{
    struct grammar_state *s = mem_zalloc(1, sizeof(*s));

    *s = (struct grammar_state){.grammar = g, .next = g->states, .state = at, .ended = ended};
    if (g->states)
        g->states->previous = s;
    g->states = s;
    g->references++;
    return s;
}

struct grammar_state *grammar_state_new(struct grammar *g)
{
    pthread_mutex_lock(&g->lock);
    struct grammar_state *s = add_state(g, automaton_start(g->automaton), false);
    pthread_mutex_unlock(&g->lock);
    return s;
}

struct grammar_state *grammar_state_copy(const struct grammar_state *state)
{
    pthread_mutex_lock(&state->grammar->lock);
    struct grammar_state *s = add_state(state->grammar, state->state, state->ended);
    pthread_mutex_unlock(&state->grammar->lock);
    return s;
}

void grammar_state_free(struct grammar_state *s)
{
    if (!s)
        return;
    struct grammar *g = s->grammar;
    pthread_mutex_lock(&g->lock);
    if (s->previous)
        s->previous->next = s->next;
    else
        g->states = s->next;
    if (s->next)
        s->next->previous = s->previous;
    pthread_mutex_unlock(&g->lock);
    free(s);
    grammar_unref(g);
}

/* Makes the tables anew when they are full; all states move along. */
static void collect_if_full(struct grammar *g)
{
    size_t count = 0;

    if (!automaton_is_full(g->automaton))
        return;
    for (struct grammar_state *s = g->states; s; s = s->next)
        count++;
    int32_t **states = mem_zalloc(count + 1, sizeof(*states));
    count = 0;
    for (struct grammar_state *s = g->states; s; s = s->next)
        states[count++] = &s->state;
    automaton_collect(g->automaton, states, count);
    free(states);
}

void grammar_mask(struct grammar_state *s, uint32_t *mask)
{
    struct grammar *g = s->grammar;
    const struct vocabulary_trie *trie = automaton_trie(g->automaton);

    if (s->ended) {
        memset(mask, 0, trie->mask_words * sizeof(*mask));
        for (size_t i = 0; i < trie->end_tokens_n; i++)
            mask[trie->end_tokens[i] / 32] |= 1U << trie->end_tokens[i] % 32;
        return;
    }
    pthread_mutex_lock(&g->lock);
    collect_if_full(g);
    memcpy(mask, automaton_mask(g->automaton, s->state), trie->mask_words * sizeof(*mask));
    pthread_mutex_unlock(&g->lock);
}

bool grammar_accept(struct grammar_state *s, int32_t token)
{
    struct grammar *g = s->grammar;
    const struct vocabulary_trie *trie = automaton_trie(g->automaton);
    size_t len = 0;

    if (vocabulary_trie_is_end(trie, token)) {
        s->ended = s->ended || grammar_may_end(s);
        return s->ended;
    }
    if (s->ended || token < 0 || token >= trie->size || !trie->ordinary[token])
        return false;
    const char *bytes = vocabulary_trie_bytes(trie, token, &len);
    pthread_mutex_lock(&g->lock);
    collect_if_full(g);
    int32_t at = s->state;
    for (size_t i = 0; i < len && at != STATE_DEAD; i++)
        at = automaton_next(g->automaton, at, (uint8_t)bytes[i]);
    if (at != STATE_DEAD)
        s->state = at;
    pthread_mutex_unlock(&g->lock);
    return at != STATE_DEAD;
}

bool grammar_may_end(const struct grammar_state *s)
{
    pthread_mutex_lock(&s->grammar->lock);
    bool may = s->ended || automaton_may_end(s->grammar->automaton, s->state);
    pthread_mutex_unlock(&s->grammar->lock);
    return may;
}

bool grammar_finished(const struct grammar_state *s)
{
    pthread_mutex_lock(&s->grammar->lock);
    bool finished = s->ended || !automaton_may_go_on(s->grammar->automaton, s->state);
    pthread_mutex_unlock(&s->grammar->lock);
    return finished;
}

uint32_t grammar_distance(const struct grammar_state *s)
{
    pthread_mutex_lock(&s->grammar->lock);
    uint32_t distance = s->ended ? 0 : automaton_distance(s->grammar->automaton, s->state);
    pthread_mutex_unlock(&s->grammar->lock);
    return distance;
}

size_t grammar_bytes(struct grammar *g)
{
    pthread_mutex_lock(&g->lock);
    size_t bytes = automaton_bytes(g->automaton);
    pthread_mutex_unlock(&g->lock);
    return bytes;
}
