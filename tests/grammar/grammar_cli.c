/* Random texts from grammars, for the tests that compare them with other implementations.
 *
 *   grammar_cli DIR < cases
 *
 * DIR has a tokenizer.json. A case is a line of JSON,
 *
 *   {"kind": "schema" | "regex" | "choice" | "calls" | "ebnf" | "object", "source": ...,
 *    "seeds": [1, 2, ...], "steps": 200, "tries": ["text", ...],
 *    "tools": [...], "named": "f"}
 *
 * where `source` is a string, or for schemas and choices any JSON. The answer is a line as well:
 * {"error":
 * "..."}, or {"texts": [...], "fits": [...]}: a random walk through the masks for each seed, which
 * after `steps` tokens goes the shortest way to its end; and whether each of `tries` fits. With
 * `tools`, each text is what it is parsed to after the beginning of a call (of `named`): one call
 * is NAME, a newline and ARGUMENTS. */
#include "base/json.h"
#include "base/memory.h"
#include "base/panic.h"
#include "model/grammar.h"
#include "model/output.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE_MAX_BYTES = 1 << 22, TEXT_MAX_BYTES = 1 << 20, STEPS_MAX = 100000 };

struct session {
    struct tokenizer *tok;
    struct vocabulary_trie *trie;
    uint32_t *mask;
    uint64_t random;
};

static _Noreturn void fail(const char *message)
{
    fprintf(stderr, "grammar_cli: %s\n", message);
    exit(1);
}

/* splitmix64 */
static uint64_t next_random(struct session *s)
{
    uint64_t z = s->random += 0x9E3779B97F4A7C15ULL;

    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ z >> 27) * 0x94D049BB133111EBULL;
    return z ^ z >> 31;
}

static bool is_allowed(const struct session *s, int32_t token)
{
    return s->mask[token / 32] >> token % 32 & 1;
}

/* Any allowed token: by turns each as likely as the others, and the first after a random one, which
 * favours those that stand alone among the ids. */
static int32_t random_token(struct session *s)
{
    int32_t from = (int32_t)(next_random(s) % (uint64_t)s->trie->size), wanted = 0;

    if (next_random(s) % 2) {
        int32_t count = 0;
        for (size_t i = 0; i < s->trie->mask_words; i++)
            count += __builtin_popcount(s->mask[i]);
        if (count == 0)
            fail("an empty mask");
        wanted = (int32_t)(next_random(s) % (uint64_t)count);
        from = 0;
    }
    for (int32_t i = 0; i < s->trie->size; i++) {
        int32_t token = (from + i) % s->trie->size;
        if (is_allowed(s, token) && wanted-- == 0)
            return token;
    }
    fail("an empty mask");
}

/* A token that brings the end nearer. */
static int32_t closing_token(struct session *s, const struct grammar_state *state)
{
    uint32_t before = grammar_distance(state);

    if (grammar_may_end(state))
        return s->trie->end_tokens[0];
    for (int32_t token = 0; token < s->trie->size; token++) {
        if (!is_allowed(s, token))
            continue;
        struct grammar_state *copy = grammar_state_copy(state);
        bool nearer = grammar_accept(copy, token) && grammar_distance(copy) < before;
        grammar_state_free(copy);
        if (nearer)
            return token;
    }
    fail("no token brings the end nearer");
}

/* One walk; its text goes to `out`. */
static void walk(struct session *s, struct grammar *g, uint64_t seed, int64_t steps,
                 struct buffer *out)
{
    struct grammar_state *state = grammar_state_new(g);
    size_t len;

    s->random = seed;
    for (int64_t step = 0;; step++) {
        if (step > STEPS_MAX)
            fail("a walk without end");
        grammar_mask(state, s->mask);
        int32_t token = step < steps ? random_token(s) : closing_token(s, state);
        if (!grammar_accept(state, token))
            fail("an allowed token is refused");
        if (vocabulary_trie_is_end(s->trie, token))
            break;
        const char *bytes = tokenizer_bytes(s->tok, token, &len);
        buffer_append(out, bytes, len);
    }
    grammar_state_free(state);
}

static void show(void *arg, const struct output_piece *piece)
{
    struct buffer *out = arg;

    if (piece->part == OUTPUT_CONTENT || piece->part == OUTPUT_REASONING)
        buffer_append_str(out, "no call: ");
    if (piece->len > 0)
        buffer_append(out, piece->text, piece->len);
    if (piece->part == OUTPUT_CALL_NAME)
        buffer_append_str(out, "\n");
}

/* Replaces a text by what a server would make of it. */
static void parse(struct session *s, const struct json *request, struct buffer *text)
{
    const struct output_format *format = output_format_find(s->tok);
    const struct json *named = json_get(request, "named");
    struct output_options options = {.parse_calls = true, .tools = json_get(request, "tools")};
    struct output_parser *parser = output_parser_new(format, options);
    struct token_list tokens;
    struct buffer begun, out;
    struct error err;

    token_list_init(&tokens, TEXT_MAX_BYTES);
    buffer_init(&begun, TEXT_MAX_BYTES);
    buffer_init(&out, TEXT_MAX_BYTES);
    if (output_force_call(format, s->tok, named ? json_string(named) : NULL, &tokens, &begun, &err))
        fail(err.message);
    output_parser_push(parser, begun.data, begun.len, show, &out);
    output_parser_push(parser, text->data, text->len, show, &out);
    output_parser_finish(parser, show, &out);
    output_parser_free(parser);
    buffer_free(&begun);
    token_list_free(&tokens);
    buffer_free(text);
    *text = out;
}

/* Whether a text fits, byte by byte. */
static bool fits(struct session *s, struct grammar *g, const char *text)
{
    struct grammar_state *state = grammar_state_new(g);
    struct token_list ids;
    struct error err;
    bool good = true;

    token_list_init(&ids, TEXT_MAX_BYTES);
    if (tokenizer_encode(s->tok, text, strlen(text), ENCODE_TEXT_ONLY, &ids, &err))
        fail(err.message);
    for (size_t i = 0; i < ids.len && good; i++) {
        grammar_mask(state, s->mask);
        good = grammar_accept(state, ids.ids[i]);
        if (good != is_allowed(s, ids.ids[i]))
            fail("the mask and the automaton do not agree");
    }
    good = good && grammar_may_end(state);
    token_list_free(&ids);
    grammar_state_free(state);
    return good;
}

static struct grammar *compile(struct session *s, const struct json *request, struct error *err)
{
    static const char *const kinds[] = {
        [GRAMMAR_JSON_OBJECT] = "object", [GRAMMAR_JSON_SCHEMA] = "schema",
        [GRAMMAR_REGEX] = "regex",        [GRAMMAR_CHOICE] = "choice",
        [GRAMMAR_CALLS] = "calls",        [GRAMMAR_EBNF] = "ebnf",
    };
    const struct json *source = json_get(request, "source");
    const char *name = json_string(json_get(request, "kind"));
    enum grammar_kind kind = GRAMMAR_JSON_OBJECT;
    struct buffer text;

    while (kind < GRAMMAR_EBNF && strcmp(kinds[kind], name) != 0)
        kind++;
    buffer_init(&text, LINE_MAX_BYTES);
    if (kind == GRAMMAR_REGEX || kind == GRAMMAR_EBNF)
        buffer_append_str(&text, json_string(source));
    else if (source)
        json_write_value(&text, source);
    struct grammar *g = grammar_compile(kind, text.data ? text.data : "", text.len, s->trie, err);
    buffer_free(&text);
    return g;
}

static void answer(struct session *s, const struct json *request)
{
    struct buffer out, text;
    struct error err;
    int64_t steps = 200, seed;
    struct grammar *g = compile(s, request, &err);
    const struct json *seeds = json_get(request, "seeds"), *tries = json_get(request, "tries");

    buffer_init(&out, 64UL * TEXT_MAX_BYTES);
    buffer_init(&text, TEXT_MAX_BYTES);
    json_integer(json_get(request, "steps"), &steps);
    buffer_append_str(&out, g ? "{\"texts\": [" : "{\"error\": ");
    if (!g)
        json_write_string(&out, err.message, -1);
    for (const struct json *i = g && seeds ? json_first(seeds) : NULL; i; i = json_next(i)) {
        buffer_clear(&text);
        if (!json_integer(i, &seed))
            fail("a seed is an integer");
        walk(s, g, (uint64_t)seed, steps, &text);
        if (json_get(request, "tools"))
            parse(s, request, &text);
        json_write_string(&out, text.data, (long)text.len);
        buffer_append_str(&out, json_next(i) ? ", " : "");
    }
    buffer_append_str(&out, g ? "], \"fits\": [" : "");
    for (const struct json *t = g && tries ? json_first(tries) : NULL; t; t = json_next(t))
        buffer_printf(&out, "%s%s", fits(s, g, json_string(t)) ? "true" : "false",
                      json_next(t) ? ", " : "");
    buffer_append_str(&out, g ? "]}" : "}");
    puts(out.data);
    buffer_free(&out);
    buffer_free(&text);
    grammar_unref(g);
}

int main(int argc, char **argv)
{
    char *line = NULL;
    size_t cap = 0;
    ssize_t len;
    struct error err;
    struct session s = {.random = 0};

    if (argc != 2)
        fail("usage: grammar_cli DIR < cases");
    s.tok = tokenizer_load(argv[1], &err);
    if (!s.tok)
        fail(err.message);
    int32_t end = tokenizer_id(s.tok, "<｜end▁of▁sentence｜>");
    s.trie = vocabulary_trie_new(s.tok, tokenizer_size(s.tok), &end, 1, &err);
    if (!s.trie)
        fail(err.message);
    s.mask = mem_zalloc(s.trie->mask_words, sizeof(*s.mask));
    while ((len = getline(&line, &cap, stdin)) > 0) {
        struct json *request = json_parse(line, (size_t)len, &err);
        if (!request)
            fail(err.message);
        answer(&s, request);
        json_free(request);
    }
    free(line);
    free(s.mask);
    vocabulary_trie_free(s.trie);
    tokenizer_free(s.tok);
    return fflush(stdout) ? 1 : 0;
}
