/* A pushdown automaton that runs rules over the bytes of a text.
 *
 * What may still follow is a set of stacks. A stack is a chain of cells, each a place in a node:
 * the top one waits for a byte, those under it say what comes after. Cells are made once for equal
 * contents, so that stacks share their lower parts; counts of repeats are places as well, so that
 * x{1000} is one node and not a thousand. A state is the set of stacks after some text, again made
 * once for equal sets, in an order that depends on nothing but the text. From states, classes of
 * bytes and masks the automaton fills its tables while it is used: a second walk along the same way
 * is a table look-up.
 *
 * Every stack can be completed: a node whose simplest text does not fit under GRAMMAR_MAX_DEPTH is
 * not entered. So stacks may be dropped where there are too many (AUTOMATON_MAX_STACKS): what is
 * left allows less, but never leads to a dead end, and never to a text that does not fit.
 *
 * The tables are bounded: automaton_collect makes new ones with nothing but the states in use.
 * Not for several threads at a time: grammar.c has the lock. */
#pragma once

#include "model/grammar_rules.h"
#include "model/vocabulary_trie.h"

enum {
    AUTOMATON_MAX_STACKS = 1280,            /* of a state */
    AUTOMATON_MAX_BYTES = 16 * 1024 * 1024, /* of the tables, before they are collected */
    AUTOMATON_MASK_BYTES = 8 * 1024 * 1024, /* of masks that are kept */
    STATE_DEAD = 0,                         /* no text goes on from here */
};

struct automaton;

/* Takes the finished rules, and frees them with itself. The trie must outlive it. */
struct automaton *automaton_new(struct rules *rules, const struct vocabulary_trie *trie);
void automaton_free(struct automaton *a);

const struct vocabulary_trie *automaton_trie(const struct automaton *a);

int32_t automaton_start(struct automaton *a);

/* The state after one more byte; STATE_DEAD when it doesn't fit. */
int32_t automaton_next(struct automaton *a, int32_t state, uint8_t byte);

bool automaton_may_end(const struct automaton *a, int32_t state);
bool automaton_may_go_on(const struct automaton *a, int32_t state);

/* The fewest bytes that complete a text from here (UINT32_MAX: as many or more). */
uint32_t automaton_distance(const struct automaton *a, int32_t state);

/* The tokens that may come next, the end tokens among them when the text may end; never empty for a
 * state that is not dead. Valid until the next call of any function here. */
const uint32_t *automaton_mask(struct automaton *a, int32_t state);

/* Walks ahead along the ways that need most, and fails with a sentence where that is too much. */
int automaton_probe(struct automaton *a, struct error *err);

/* Whether the tables are past their bound; and making them anew. States other than those in
 * `states`, which are changed to their new numbers, are gone after it. */
bool automaton_is_full(const struct automaton *a);
void automaton_collect(struct automaton *a, int32_t **states, size_t count);

/* Memory of the tables, for reports and tests. */
size_t automaton_bytes(const struct automaton *a);
