/* What a request allows its sequences to say: a grammar, a list of tokens, words it must not say.
 * A constraint is made on the loop thread, and handed to the engine with the request; where a
 * sequence stands in it (constraint_state) is the engine's. */
#pragma once

#include "kernels/sampling.h"
#include "model/grammar.h"

#include <stdbool.h>
#include <stdint.h>

/* A sequence of tokens that must not be generated. */
struct bad_word {
    int32_t *tokens;
    int32_t n;
};

struct constraint {
    struct grammar *grammar; /* a reference, or NULL */
    uint32_t *allowed;       /* mask of the tokens that are allowed at all, or NULL */
    struct bad_word *bad_words;
    int n_bad_words;
};

/* A copy for another request: cheap, the grammar itself is shared. NULL gives NULL. */
struct constraint *constraint_copy(const struct constraint *constraint, int32_t vocab_size);
void constraint_free(struct constraint *constraint); /* NULL is fine */

/* Where one sequence stands. */
struct constraint_state {
    const struct constraint *constraint; /* NULL: everything is allowed */
    struct grammar_state *grammar;       /* NULL without a grammar */
};

void constraint_begin(struct constraint_state *state, const struct constraint *constraint);
void constraint_end(struct constraint_state *state);

/* Writes the mask of the tokens that may come after `generated`. */
void constraint_mask(struct constraint_state *state, const int32_t *generated, int32_t n_generated,
                     int32_t vocab_size, uint32_t *mask);

/* The sequence goes on by `token`. True when nothing may follow: the text is complete. */
bool constraint_accept(struct constraint_state *state, int32_t token);
