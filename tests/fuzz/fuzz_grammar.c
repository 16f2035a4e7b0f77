/* Grammars from any bytes: the first one chooses the kind, the rest is the source. What compiles is
 * walked through: some token is always allowed, and an allowed one is accepted. */
#include "tests/fuzz/fuzz.h"

#include "base/memory.h"
#include "model/grammar.h"
#include "tests/unit/glm.h"

enum { STEPS = 12, SOURCE_MAX = 4096 };

/* The demo model's vocabulary, or one whose calls have their arguments between tags. */
static struct vocabulary_trie *vocabulary(bool glm)
{
    static struct vocabulary_trie *tries[2];
    struct error err;
    int32_t end = 1;

    if (!tries[glm]) {
        const struct tokenizer *tok = glm ? glm_tokenizer() : fuzz_tokenizer();
        tries[glm] = vocabulary_trie_new(tok, tokenizer_size(tok), &end, 1, &err);
    }
    ASSERT(tries[glm]);
    return tries[glm];
}

/* The first allowed token from `start` on, around the end. */
static int32_t allowed_token(const struct vocabulary_trie *trie, const uint32_t *mask,
                             uint32_t start)
{
    for (int32_t i = 0; i < trie->size; i++) {
        int32_t token = (int32_t)((start + (uint32_t)i) % (uint32_t)trie->size);
        if (mask[token / 32] >> token % 32 & 1)
            return token;
    }
    PANIC("no token is allowed");
}

static void walk(struct grammar *g, const struct vocabulary_trie *trie, uint32_t seed)
{
    uint32_t *mask = mem_alloc(trie->mask_words * sizeof(*mask));
    struct grammar_state *state = grammar_state_new(g);

    for (int i = 0; i < STEPS && !grammar_finished(state); i++) {
        grammar_mask(state, mask);
        seed = seed * 1664525 + 1013904223;
        ASSERT(grammar_accept(state, allowed_token(trie, mask, seed >> 8)));
    }
    grammar_state_free(state);
    free(mask);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const enum grammar_kind kinds[] = {GRAMMAR_JSON_SCHEMA, GRAMMAR_REGEX, GRAMMAR_EBNF,
                                              GRAMMAR_CHOICE,      GRAMMAR_CALLS, GRAMMAR_CALLS};
    struct error err;

    if (size < 1 || size > SOURCE_MAX)
        return 0;
    const struct vocabulary_trie *trie = vocabulary(data[0] % 6 == 5);
    struct grammar *g =
        grammar_compile(kinds[data[0] % 6], (const char *)data + 1, size - 1, trie, &err);
    if (!g)
        return 0;
    walk(g, trie, 1);
    walk(g, trie, (uint32_t)size);
    grammar_unref(g);
    return 0;
}
