/* Structured output: which tokens may come next, so that a text fits a grammar.
 *
 *   source --grammar_schema, _regex, _ebnf--> rules over bytes (grammar_rules.h)
 *          --grammar_automaton--> states, transitions, masks, made as they are needed
 *
 * A grammar is compiled once and shared by any number of sequences and threads; it has a lock of
 * its own. A grammar_state is where one sequence stands; one thread at a time uses it. From every
 * state some token is allowed, and the end can be reached.
 *
 * Sources come from clients. What is too large, too deep, too ambiguous or not supported is refused
 * with a sentence for them; memory and time are bounded whatever the source is. */
#pragma once

#include "base/error.h"
#include "model/vocabulary_trie.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { GRAMMAR_MAX_SOURCE = 1 << 18 }; /* bytes */

enum grammar_kind {
    GRAMMAR_JSON_OBJECT, /* any JSON object; has no source */
    GRAMMAR_JSON_SCHEMA, /* a JSON Schema: grammar_schema.h */
    GRAMMAR_REGEX,       /* an expression that all of the text matches: grammar_regex.h */
    GRAMMAR_CHOICE,      /* a JSON array of strings, one of which the text is */
    GRAMMAR_CALLS,       /* a JSON array of tools, one of which is called: grammar_calls.h */
    GRAMMAR_EBNF,        /* rules, from the one named root: grammar_ebnf.h */
};

struct grammar;
struct grammar_state;

/* Compiles a source; the trie must outlive the grammar. NULL and a sentence on error. The caller
 * has one reference. */
struct grammar *grammar_compile(enum grammar_kind kind, const char *source, size_t len,
                                const struct vocabulary_trie *trie, struct error *err);
struct grammar *grammar_ref(struct grammar *grammar);
void grammar_unref(struct grammar *grammar);

/* A new state stands at the beginning, and holds a reference to the grammar. */
struct grammar_state *grammar_state_new(struct grammar *grammar);
struct grammar_state *grammar_state_copy(const struct grammar_state *state);
void grammar_state_free(struct grammar_state *state);

/* Writes trie->mask_words words: the bit of each token that may come next is set, those of the end
 * tokens where the text may end here. Never empty; after an end token, the end tokens alone. */
void grammar_mask(struct grammar_state *state, uint32_t *mask);

/* Goes on by a token. False, and nothing is changed, when it does not fit. A token of the mask
 * fits; one that is not in it may fit too where a mask had to be cut short (see
 * grammar_automaton.h). */
bool grammar_accept(struct grammar_state *state, int32_t token);

bool grammar_may_end(const struct grammar_state *state);

/* Whether nothing but the end may follow. */
bool grammar_finished(const struct grammar_state *state);

/* The fewest bytes that complete the text from here: a server may close it before the tokens run
 * out, by always taking a token that brings the end nearer. */
uint32_t grammar_distance(const struct grammar_state *state);

/* Memory of the automaton's tables, without masks. */
size_t grammar_bytes(struct grammar *grammar);
