#include "server/constraint.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

struct constraint *constraint_copy(const struct constraint *constraint, int32_t vocab_size)
{
    if (!constraint)
        return NULL;
    struct constraint *copy = mem_copy(constraint, sizeof(*constraint));
    if (copy->grammar)
        grammar_ref(copy->grammar);
    if (copy->allowed)
        copy->allowed = mem_copy(copy->allowed, SAMPLING_MASK_WORDS(vocab_size) * sizeof(uint32_t));
    size_t words = (size_t)copy->n_bad_words;
    copy->bad_words = mem_copy(constraint->bad_words, words * sizeof(*copy->bad_words));
    for (size_t i = 0; i < words; i++)
        copy->bad_words[i].tokens =
            mem_copy(constraint->bad_words[i].tokens,
                     (size_t)constraint->bad_words[i].n * sizeof(*copy->bad_words[i].tokens));
    return copy;
}

void constraint_free(struct constraint *constraint)
{
    if (!constraint)
        return;
    if (constraint->grammar)
        grammar_unref(constraint->grammar);
    free(constraint->allowed);
    for (int i = 0; i < constraint->n_bad_words; i++)
        free(constraint->bad_words[i].tokens);
    free(constraint->bad_words);
    free(constraint);
}

void constraint_begin(struct constraint_state *state, const struct constraint *constraint)
{
    *state = (struct constraint_state){.constraint = constraint};
    if (constraint && constraint->grammar)
        state->grammar = grammar_state_new(constraint->grammar);
}

void constraint_end(struct constraint_state *state)
{
    if (state->grammar)
        grammar_state_free(state->grammar);
    *state = (struct constraint_state){0};
}

/* Takes away the last token of each word whose beginning stands at the end of the text. A token
 * that only the tokenizer has comes in no text. */
static void mask_bad_words(const struct constraint *constraint, const int32_t *generated,
                           int32_t n_generated, int32_t vocab_size, uint32_t *mask)
{
    for (int i = 0; i < constraint->n_bad_words; i++) {
        const struct bad_word *word = &constraint->bad_words[i];
        int32_t before = word->n - 1, last = word->tokens[before];
        if (last < vocab_size && before <= n_generated &&
            memcmp(generated + n_generated - before, word->tokens,
                   (size_t)before * sizeof(*generated)) == 0)
            mask[last / 32] &= ~(1u << last % 32);
    }
}

void constraint_mask(struct constraint_state *state, const int32_t *generated, int32_t n_generated,
                     int32_t vocab_size, uint32_t *mask)
{
    size_t words = SAMPLING_MASK_WORDS(vocab_size);

    memset(mask, 0xff, words * sizeof(*mask));
    if (!state->constraint)
        return;
    if (state->grammar)
        grammar_mask(state->grammar, mask);
    for (size_t i = 0; state->constraint->allowed && i < words; i++)
        mask[i] &= state->constraint->allowed[i];
    mask_bad_words(state->constraint, generated, n_generated, vocab_size, mask);
}

bool constraint_accept(struct constraint_state *state, int32_t token)
{
    if (!state->grammar)
        return false;
    /* A token that does not fit comes only where masks left nothing to draw: then it is the end. */
    return !grammar_accept(state->grammar, token) || grammar_finished(state->grammar);
}
