/* Grammars: what their masks allow, that every walk through them ends, what is refused and how, and
 * that memory stays bounded. tests/grammar/ compares them with other implementations. */
#include "base/memory.h"
#include "base/utf8.h"
#include "model/grammar.h"
#include "model/grammar_automaton.h"
#include "tests/unit/glm.h"
#include "tests/unit/unit.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { END = 1, WALK_MAX_STEPS = 20000 };

static struct tokenizer *tok;
static struct vocabulary_trie *trie;

static void load(void)
{
    struct error err;
    int32_t end = END;

    tok = tokenizer_load("model/demo", &err);
    ck_assert_msg(tok != NULL, "%s", tok ? "" : err.message);
    trie = vocabulary_trie_new(tok, tokenizer_size(tok) + 10, &end, 1, &err);
    ck_assert_msg(trie != NULL, "%s", trie ? "" : err.message);
}

static void unload(void)
{
    vocabulary_trie_free(trie);
    tokenizer_free(tok);
}

static struct grammar *compile(enum grammar_kind kind, const char *source)
{
    struct error err;
    struct grammar *g = grammar_compile(kind, source, strlen(source), trie, &err);

    ck_assert_msg(g != NULL, "%s", g ? "" : err.message);
    return g;
}

static uint32_t *new_mask(void)
{
    return mem_zalloc(trie->mask_words, sizeof(uint32_t));
}

static bool allows(const uint32_t *mask, int32_t token)
{
    return mask[token / 32] >> token % 32 & 1;
}

static bool allows_text(const uint32_t *mask, const char *text)
{
    int32_t token = tokenizer_id(tok, text);

    ck_assert_msg(token >= 0, "no token for %s", text);
    return allows(mask, token);
}

static uint32_t next_random(uint32_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 17;
    *seed ^= *seed << 5;
    return *seed;
}

/* Goes on by a text, token by token. False where one does not fit. */
static bool accept_text(struct grammar_state *state, const char *text)
{
    struct token_list ids;
    struct error err;
    bool good = true;

    token_list_init(&ids, 4096);
    ck_assert_int_eq(tokenizer_encode(tok, text, strlen(text), ENCODE_TEXT_ONLY, &ids, &err), 0);
    for (size_t i = 0; i < ids.len && good; i++)
        good = grammar_accept(state, ids.ids[i]);
    token_list_free(&ids);
    return good;
}

static bool fits(enum grammar_kind kind, const char *source, const char *text)
{
    struct grammar *g = compile(kind, source);
    struct grammar_state *state = grammar_state_new(g);
    bool good = accept_text(state, text) && grammar_may_end(state);

    grammar_state_free(state);
    grammar_unref(g);
    return good;
}

/* ---- walks ---- */

/* Grammars of all kinds, for what has to hold of each. */
static const struct {
    enum grammar_kind kind;
    const char *source;
} samples[] = {
    {GRAMMAR_JSON_OBJECT, ""},
    {GRAMMAR_JSON_SCHEMA, "{}"},
    {GRAMMAR_JSON_SCHEMA, "{\"type\":\"string\",\"minLength\":3,\"maxLength\":40}"},
    {GRAMMAR_JSON_SCHEMA, "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\","
                          "\"minimum\":-7,\"maximum\":1234},\"b\":{\"type\":\"array\",\"items\":"
                          "{\"enum\":[\"x\",\"y\\\"z\",null]}}},\"required\":[\"b\"]}"},
    {GRAMMAR_JSON_SCHEMA, "{\"$ref\":\"#/$defs/n\",\"$defs\":{\"n\":{\"type\":\"object\","
                          "\"properties\":{\"next\":{\"anyOf\":[{\"$ref\":\"#/$defs/n\"},{\"type\":"
                          "\"null\"}]}},\"required\":[\"next\"],\"additionalProperties\":false}}}"},
    {GRAMMAR_JSON_SCHEMA, "{\"type\":\"string\",\"format\":\"date-time\"}"},
    {GRAMMAR_REGEX, "(\\d{3}-){2,5}[^\\d\\s]+|x*"},
    {GRAMMAR_REGEX, "((a{1,3}){2,4}b?){1,30}"},
    {GRAMMAR_REGEX, ".{0,20}a.{60}"},
    {GRAMMAR_CHOICE, "[\"one\", \"once\", \"\xC3\xA9t\xC3\xA9\", \"two\"]"},
    {GRAMMAR_EBNF, "root ::= (\"(\" root \")\" | [a-z]{1,9} | \"\xE6\x97\xA5\")*"},
};
enum { SAMPLES = sizeof(samples) / sizeof(samples[0]) };

/* A random token of the mask; with `closing`, one that brings the end nearer. */
static int32_t choose(const struct grammar_state *state, const uint32_t *mask, uint32_t *seed,
                      bool closing)
{
    int32_t from = (int32_t)(next_random(seed) % (uint32_t)trie->size);
    uint32_t distance = grammar_distance(state);

    if (closing && grammar_may_end(state))
        return END;
    for (int32_t i = 0; i < trie->size; i++) {
        int32_t token = (from + i) % trie->size;
        if (!allows(mask, token))
            continue;
        if (!closing)
            return token;
        struct grammar_state *copy = grammar_state_copy(state);
        bool nearer = grammar_accept(copy, token) && grammar_distance(copy) < distance;
        grammar_state_free(copy);
        if (nearer)
            return token;
    }
    ck_abort_msg("no token is allowed%s", closing ? " that brings the end nearer" : "");
}

/* Walks until the end, after `steps` on the shortest way; the text goes to `out`. */
static void walk(struct grammar *g, uint32_t seed, int steps, struct buffer *out)
{
    struct grammar_state *state = grammar_state_new(g);
    uint32_t *mask = new_mask();
    int step = 0;
    size_t len;

    for (int32_t token = -1; token != END; step++) {
        ck_assert_int_lt(step, WALK_MAX_STEPS);
        grammar_mask(state, mask);
        token = choose(state, mask, &seed, step >= steps);
        ck_assert(grammar_accept(state, token));
        const char *bytes = tokenizer_bytes(tok, token, &len);
        if (token != END)
            buffer_append(out, bytes, len);
    }
    ck_assert(grammar_finished(state));
    grammar_state_free(state);
    free(mask);
}

START_TEST(test_every_walk_can_end_and_gives_utf8)
{
    struct grammar *g = compile(samples[_i].kind, samples[_i].source);
    struct buffer text;

    buffer_init(&text, 1 << 20);
    for (uint32_t seed = 1; seed <= 12; seed++) {
        buffer_clear(&text);
        walk(g, seed * 7919, (int)seed * 6, &text);
        ck_assert(!text.overflowed && utf8_valid(text.data ? text.data : "", text.len));
    }
    buffer_free(&text);
    grammar_unref(g);
}
END_TEST

START_TEST(test_walks_do_not_depend_on_what_was_asked_before)
{
    struct grammar *fresh = compile(samples[_i].kind, samples[_i].source);
    struct grammar *used = compile(samples[_i].kind, samples[_i].source);
    struct buffer a, b;

    buffer_init(&a, 1 << 20);
    buffer_init(&b, 1 << 20);
    for (uint32_t seed = 100; seed < 110; seed++)
        walk(used, seed, 30, &b);
    buffer_clear(&b);
    walk(fresh, 5, 40, &a);
    walk(used, 5, 40, &b);
    ck_assert_uint_eq(a.len, b.len);
    ck_assert(a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
    buffer_free(&a);
    buffer_free(&b);
    grammar_unref(fresh);
    grammar_unref(used);
}
END_TEST

START_TEST(test_exactly_the_tokens_of_a_mask_are_accepted)
{
    struct grammar *g = compile(samples[_i].kind, samples[_i].source);
    struct grammar_state *state = grammar_state_new(g);
    uint32_t *mask = new_mask(), seed = 42;

    for (int step = 0; step < 25 && !grammar_finished(state); step++) {
        grammar_mask(state, mask);
        for (int32_t token = 0; token < trie->size; token++) {
            struct grammar_state *copy = grammar_state_copy(state);
            ck_assert_int_eq(grammar_accept(copy, token), allows(mask, token));
            grammar_state_free(copy);
        }
        int32_t token = choose(state, mask, &seed, false);
        if (token != END)
            ck_assert(grammar_accept(state, token));
    }
    grammar_state_free(state);
    grammar_unref(g);
    free(mask);
}
END_TEST

/* ---- masks ---- */

START_TEST(test_end_is_allowed_only_where_the_text_may_end)
{
    struct grammar *g = compile(GRAMMAR_REGEX, "ab?");
    struct grammar_state *state = grammar_state_new(g);
    uint32_t *mask = new_mask();

    grammar_mask(state, mask);
    ck_assert(allows_text(mask, "a") && !allows_text(mask, "b") && !allows(mask, END));
    ck_assert(!grammar_accept(state, END));
    ck_assert(accept_text(state, "a"));
    ck_assert(grammar_may_end(state) && !grammar_finished(state));
    grammar_mask(state, mask);
    ck_assert(allows(mask, END) && allows_text(mask, "b"));
    ck_assert(accept_text(state, "b"));
    ck_assert(grammar_finished(state));
    grammar_mask(state, mask);
    ck_assert(allows(mask, END) && !allows_text(mask, "b"));
    ck_assert(grammar_accept(state, END));
    grammar_mask(state, mask);
    ck_assert(allows(mask, END) && !accept_text(state, "b"));
    grammar_state_free(state);
    grammar_unref(g);
    free(mask);
}
END_TEST

START_TEST(test_special_tokens_and_markers_are_never_allowed)
{
    static const char *const markers[] = {"<think>", "<｜User｜>", "<｜begin▁of▁sentence｜>"};
    struct grammar *g = compile(GRAMMAR_REGEX, "[\\s\\S]*");
    struct grammar_state *state = grammar_state_new(g);
    uint32_t *mask = new_mask();

    grammar_mask(state, mask);
    for (size_t i = 0; i < sizeof(markers) / sizeof(markers[0]); i++) {
        ck_assert(!allows_text(mask, markers[i]));
        ck_assert(!grammar_accept(state, tokenizer_id(tok, markers[i])));
    }
    ck_assert(accept_text(state, "<think>")); /* as text it is no marker */
    for (int32_t token = tokenizer_size(tok); token < trie->size; token++)
        ck_assert(!allows(mask, token) && !grammar_accept(state, token));
    ck_assert(!grammar_accept(state, -1) && !grammar_accept(state, trie->size));
    grammar_state_free(state);
    grammar_unref(g);
    free(mask);
}
END_TEST

/* A call: its name, the separator as the one token it is, and arguments by the tool's schema. */
START_TEST(test_a_call_has_the_arguments_of_its_own_tool)
{
    static const char source[] =
        "[{\"name\":\"get\",\"arguments\":{\"const\":1}},"
        "{\"name\":\"get_all\",\"arguments\":{\"const\":2}},{\"name\":\"free\"}]";
    static const struct {
        const char *name, *arguments;
        bool fits;
    } calls[] = {
        {"get", "1", true},      {"get", "2", false},  {"get_all", "2", true},
        {"get_all", "1", false}, {"free", "{}", true}, {"free", "1", false},
    };
    int32_t separator = trie->markers[0].id;
    uint32_t *mask = new_mask();

    ck_assert_int_eq(trie->markers_n, 1);
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        struct grammar *g = compile(GRAMMAR_CALLS, source);
        struct grammar_state *state = grammar_state_new(g);
        grammar_mask(state, mask);
        ck_assert(!allows(mask, separator));
        ck_assert(accept_text(state, calls[i].name));
        grammar_mask(state, mask);
        ck_assert(allows(mask, separator));
        ck_assert(!allows(mask, END));
        ck_assert(grammar_accept(state, separator));
        ck_assert(accept_text(state, calls[i].arguments) == calls[i].fits);
        ck_assert(!calls[i].fits || grammar_finished(state));
        grammar_state_free(state);
        grammar_unref(g);
    }
    free(mask);
}
END_TEST

/* Replaces the tokenizer by one that has GLM's markers. */
static void load_glm(void)
{
    int32_t end = END;
    struct error err;

    unload();
    tok = glm_tokenizer();
    trie = vocabulary_trie_new(tok, tokenizer_size(tok), &end, 1, &err);
    ck_assert_msg(trie != NULL, "%s", trie ? "" : err.message);
}

static bool accept_marker(struct grammar_state *state, const char *marker)
{
    int32_t id = tokenizer_id(tok, marker);

    ck_assert_int_ge(id, 0);
    return grammar_accept(state, id);
}

START_TEST(test_arguments_between_tags_hold_any_text_but_the_end)
{
    load_glm();
    struct grammar *g = compile(
        GRAMMAR_CALLS, "[{\"name\":\"f\",\"arguments\":{\"type\":\"object\",\"properties\":{"
                       "\"s\":{\"type\":\"string\"}},\"required\":[\"s\"]}}]");
    struct grammar_state *state = grammar_state_new(g);

    ck_assert_int_eq(trie->markers_n, 5);
    ck_assert(accept_text(state, "f"));
    ck_assert(!accept_marker(state, "<arg_value>") && !accept_marker(state, "</tool_call>"));
    ck_assert(accept_marker(state, "<arg_key>") && accept_text(state, "s"));
    ck_assert(accept_marker(state, "</arg_key>") && accept_marker(state, "<arg_value>"));
    ck_assert(accept_text(state, "a < b, <b>\"c\"</b>, <</arg_value, </arg_valu"));
    ck_assert(accept_text(state, "e"));
    ck_assert(!accept_text(state, ">"));
    ck_assert(!accept_marker(state, "</tool_call>"));
    ck_assert(accept_marker(state, "</arg_value>"));
    ck_assert(!accept_marker(state, "<arg_key>")); /* there is nothing more that is named */
    ck_assert(!grammar_may_end(state));
    ck_assert(accept_marker(state, "</tool_call>"));
    ck_assert(grammar_finished(state));
    grammar_state_free(state);
    grammar_unref(g);
}
END_TEST

START_TEST(test_a_refused_token_changes_nothing)
{
    struct grammar *g = compile(GRAMMAR_CHOICE, "[\"one\", \"two\"]");
    struct grammar_state *state = grammar_state_new(g);

    ck_assert(accept_text(state, "o"));
    ck_assert(!accept_text(state, "t"));
    ck_assert_uint_eq(grammar_distance(state), 2);
    ck_assert(accept_text(state, "ne"));
    ck_assert(grammar_finished(state));
    grammar_state_free(state);
    grammar_unref(g);
}
END_TEST

START_TEST(test_a_copy_goes_its_own_way)
{
    struct grammar *g = compile(GRAMMAR_CHOICE, "[\"ab\", \"ac\"]");
    struct grammar_state *state = grammar_state_new(g);

    ck_assert(accept_text(state, "a"));
    struct grammar_state *copy = grammar_state_copy(state);
    grammar_unref(g); /* the states hold it */
    ck_assert(accept_text(copy, "b") && grammar_finished(copy));
    ck_assert(!grammar_finished(state));
    grammar_state_free(copy);
    ck_assert(accept_text(state, "c"));
    grammar_state_free(state);
}
END_TEST

/* ---- languages ---- */

START_TEST(test_white_space_in_json_is_bounded)
{
    char text[400];

    ck_assert(fits(GRAMMAR_JSON_OBJECT, "", "{\"a\": [1, 2], \"b\": {}}"));
    ck_assert(fits(GRAMMAR_JSON_OBJECT, "", "{\n    \"a\":1,\n\t\"b\":2\n}"));
    ck_assert(!fits(GRAMMAR_JSON_OBJECT, "", "{\"a\":  1}"));
    ck_assert(!fits(GRAMMAR_JSON_OBJECT, "", " {}"));
    ck_assert(!fits(GRAMMAR_JSON_OBJECT, "", "{} "));
    snprintf(text, sizeof(text), "{\n%64s\"a\":1}", "");
    ck_assert(fits(GRAMMAR_JSON_OBJECT, "", text));
    snprintf(text, sizeof(text), "{\n%65s\"a\":1}", "");
    ck_assert(!fits(GRAMMAR_JSON_OBJECT, "", text));
}
END_TEST

START_TEST(test_strings_in_json_are_strict)
{
    const char *schema = "{\"type\":\"string\"}";

    ck_assert(fits(GRAMMAR_JSON_SCHEMA, schema, "\"\\u00e9\\n\\/\\ud83d\\ude00\xF0\x9F\x98\x80\""));
    ck_assert(!fits(GRAMMAR_JSON_SCHEMA, schema, "\"\\ud83d\"")); /* half a character */
    ck_assert(!fits(GRAMMAR_JSON_SCHEMA, schema, "\"\\ude00\""));
    ck_assert(!fits(GRAMMAR_JSON_SCHEMA, schema, "\"\\u0000\""));
    ck_assert(!fits(GRAMMAR_JSON_SCHEMA, schema, "\"\\x41\""));
    ck_assert(!fits(GRAMMAR_JSON_SCHEMA, schema, "\"a\nb\""));
}
END_TEST

START_TEST(test_nesting_is_bounded_and_closes)
{
    struct grammar *g = compile(GRAMMAR_JSON_SCHEMA, "{\"type\":\"array\"}");
    struct grammar_state *state = grammar_state_new(g);
    int depth = 0;

    while (depth < 1000 && accept_text(state, "["))
        depth++;
    ck_assert_int_ge(depth, 64);
    ck_assert_int_lt(depth, GRAMMAR_MAX_DEPTH);
    for (; depth > 0; depth--)
        ck_assert(accept_text(state, "]"));
    ck_assert(grammar_finished(state));
    grammar_state_free(state);
    grammar_unref(g);
}
END_TEST

START_TEST(test_large_counts_are_counted_and_not_unrolled)
{
    struct grammar *g = compile(GRAMMAR_REGEX, "(a{1000}){1000}b");
    struct grammar_state *state = grammar_state_new(g);

    ck_assert_uint_eq(grammar_distance(state), 1000001);
    ck_assert(accept_text(state, "aaaaaaa"));
    ck_assert_uint_eq(grammar_distance(state), 999994);
    ck_assert_uint_lt(grammar_bytes(g), 1 << 20);
    grammar_state_free(state);
    grammar_unref(g);
}
END_TEST

/* ---- bounds ---- */

START_TEST(test_tables_are_collected_and_states_live_on)
{
    struct grammar *g = compile(GRAMMAR_REGEX, "(a{0,3}b?){200000}[cd]{3}");
    struct grammar_state *early = grammar_state_new(g), *state = grammar_state_new(g);
    int32_t a = tokenizer_id(tok, "a"), b = tokenizer_id(tok, "b");
    size_t most = 0;

    ck_assert(accept_text(early, "aab"));
    uint32_t *before = new_mask(), *after = new_mask();
    grammar_mask(early, before);
    for (int i = 0; i < 150000; i++) {
        ck_assert(grammar_accept(state, i % 3 == 2 ? b : a));
        most = grammar_bytes(g) > most ? grammar_bytes(g) : most;
    }
    ck_assert_uint_lt(most, 2 * AUTOMATON_MAX_BYTES);
    grammar_mask(early, after);
    ck_assert_mem_eq(before, after, trie->mask_words * sizeof(uint32_t));
    ck_assert(accept_text(early, "aaacdc") && grammar_finished(early));
    free(before);
    free(after);
    grammar_state_free(early);
    grammar_state_free(state);
    grammar_unref(g);
}
END_TEST

START_TEST(test_ambiguity_does_not_blow_up)
{
    static const char *const hostile[] = {".*a.{400}", "((a{0,1000}){0,1000}){0,100}",
                                          "(((.{0,9}){0,9}){0,9}b?){0,99}", "(a|a|aa|a*)*b"};
    struct grammar *g = compile(GRAMMAR_REGEX, hostile[_i]);
    struct buffer text;

    buffer_init(&text, 1 << 20);
    for (uint32_t seed = 1; seed < 4; seed++)
        walk(g, seed, 300, &text);
    ck_assert_uint_lt(grammar_bytes(g), 4 * AUTOMATON_MAX_BYTES);
    buffer_free(&text);
    grammar_unref(g);
}
END_TEST

static void *walk_often(void *context)
{
    struct buffer text;

    buffer_init(&text, 1 << 20);
    for (uint32_t seed = 1; seed < 8; seed++)
        walk(context, seed, 40, &text);
    buffer_free(&text);
    return NULL;
}

START_TEST(test_threads_share_a_grammar)
{
    struct grammar *g = compile(GRAMMAR_JSON_OBJECT, "");
    pthread_t threads[4];

    for (int i = 0; i < 4; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, walk_often, g), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    grammar_unref(g);
}
END_TEST

/* ---- what is refused ---- */

static const struct {
    enum grammar_kind kind;
    const char *source, *words; /* that the sentence holds */
} refused[] = {
    {GRAMMAR_REGEX, "(?=a)", "look-around"},
    {GRAMMAR_REGEX, "(?<!a)b", "look-around"},
    {GRAMMAR_REGEX, "(a)\\1", "back-references"},
    {GRAMMAR_REGEX, "\\bword\\b", "\\b"},
    {GRAMMAR_REGEX, "\\p{L}", "\\p"},
    {GRAMMAR_REGEX, "(?i)a", "(?: and (?<name>"},
    {GRAMMAR_REGEX, "a**", "doubled quantifiers"},
    {GRAMMAR_REGEX, "a{2}{3}", "doubled quantifiers"},
    {GRAMMAR_REGEX, "*a", "nothing to repeat"},
    {GRAMMAR_REGEX, "a{3,2}", "below its minimum"},
    {GRAMMAR_REGEX, "a{99999999999}", "too large"},
    {GRAMMAR_REGEX, "b|(a{9999}){9999}", "asks for more than"},
    {GRAMMAR_REGEX, "(a", "no closing parenthesis"},
    {GRAMMAR_REGEX, "a)", "has no group"},
    {GRAMMAR_REGEX, "[a", "no closing bracket"},
    {GRAMMAR_REGEX, "[z-a]", "ends before it begins"},
    {GRAMMAR_REGEX, "[]", "empty"},
    {GRAMMAR_REGEX, "a^b", "^ and $"},
    {GRAMMAR_REGEX, "\\u12", "hexadecimal"},
    {GRAMMAR_REGEX, "\\ud800", "surrogate"},
    {GRAMMAR_REGEX, "\\", "backslash"},
    {GRAMMAR_REGEX, "\xFF", "UTF-8"},
    {GRAMMAR_CHOICE, "[]", "array of 1 to"},
    {GRAMMAR_CHOICE, "[1]", "of the type number"},
    {GRAMMAR_CHOICE, "{", "syntax error"},
    {GRAMMAR_EBNF, "", "no rule named root"},
    {GRAMMAR_EBNF, "root ::= x", "the rule x is used and not defined"},
    {GRAMMAR_EBNF, "root ::= \"a\"\nroot ::= \"b\"", "line 2: the rule root is defined twice"},
    {GRAMMAR_EBNF, "root ::= root \"a\" | \"b\"", "root can begin with itself"},
    {GRAMMAR_EBNF, "root ::= a? root", "is used and not defined"},
    {GRAMMAR_EBNF, "root ::= \"a\"? root | \"b\"", "root can begin with itself"},
    {GRAMMAR_EBNF, "root ::= \"a\" root", "needs itself without end"},
    {GRAMMAR_EBNF, "root ::= (\"a\"", "parenthesis is not closed"},
    {GRAMMAR_EBNF, "root ::= \"a", "no closing quote"},
    {GRAMMAR_EBNF, "root ::= [a", "no closing bracket"},
    {GRAMMAR_EBNF, "root ::= \"a\"\n???", "line 2"},
    {GRAMMAR_EBNF, "root ::= \"a\"{3,1}", "below its minimum"},
    {GRAMMAR_EBNF, "root ::= (= \"a\")", "look-ahead"},
    {GRAMMAR_JSON_SCHEMA, "{", "syntax error"},
    {GRAMMAR_JSON_SCHEMA, "[]", "must be an object"},
    {GRAMMAR_JSON_SCHEMA, "false", "the schema false"},
    {GRAMMAR_JSON_SCHEMA, "{\"minProperties\":1}", "\"minProperties\" is not supported"},
    {GRAMMAR_JSON_SCHEMA, "{\"type\":\"integer\",\"multipleOf\":0.5}", "\"multipleOf\""},
    {GRAMMAR_JSON_SCHEMA, "{\"type\":\"string\",\"pattern\":\"a+b\",\"maxLength\":3}",
     "can't be combined"},
    {GRAMMAR_JSON_SCHEMA, "{\"type\":\"array\",\"minItems\":-1}", "not negative"},
    {GRAMMAR_JSON_SCHEMA, "{\"$ref\":\"#/a\",\"a\":{\"$ref\":\"#/a\"}}",
     "#/a can begin with itself"},
    {GRAMMAR_JSON_SCHEMA, "{\"allOf\":[{\"$ref\":\"#\"},{\"type\":\"null\"}]}",
     "have to hold together"},
};

START_TEST(test_sources_are_refused_with_a_sentence)
{
    struct error err = {""};
    const char *source = refused[_i].source;
    struct grammar *g = grammar_compile(refused[_i].kind, source, strlen(source), trie, &err);

    ck_assert_msg(g == NULL, "%s", source);
    ck_assert_msg(strstr(err.message, refused[_i].words) != NULL, "%s: %s", source, err.message);
}
END_TEST

/* `count` times `part`, between `head` and `tail`. */
static void repeat_text(struct buffer *out, const char *head, const char *part, int count,
                        const char *tail)
{
    buffer_clear(out);
    buffer_append_str(out, head);
    for (int i = 0; i < count; i++)
        buffer_append_str(out, part);
    buffer_append_str(out, tail);
}

static void check_refused(enum grammar_kind kind, const struct buffer *source, const char *words)
{
    struct error err = {""};
    struct grammar *g = grammar_compile(kind, source->data, source->len, trie, &err);

    ck_assert(g == NULL);
    ck_assert_msg(strstr(err.message, words) != NULL, "%s", err.message);
}

START_TEST(test_sources_past_a_bound_are_refused)
{
    struct buffer source;

    buffer_init(&source, 4 * GRAMMAR_MAX_SOURCE);
    repeat_text(&source, "", "(", 5000, "a");
    check_refused(GRAMMAR_REGEX, &source, "nested too deeply");
    repeat_text(&source, "", "a|", 100000, "a");
    check_refused(GRAMMAR_REGEX, &source, "too many parts");
    repeat_text(&source, "", "ab", GRAMMAR_MAX_SOURCE, "");
    check_refused(GRAMMAR_REGEX, &source, "longer than");
    repeat_text(&source, "root ::= ", "(", 5000, "");
    check_refused(GRAMMAR_EBNF, &source, "nested too deeply");
    repeat_text(&source, "", "{\"items\":", 500, "{}");
    for (int i = 0; i < 500; i++)
        buffer_append_str(&source, "}");
    check_refused(GRAMMAR_JSON_SCHEMA, &source, "nested more than");
    repeat_text(&source, "{\"anyOf\":[", "{\"type\":\"null\"},", 5000, "{}]}");
    check_refused(GRAMMAR_JSON_SCHEMA, &source, "array of 1 to");
    buffer_clear(&source);
    buffer_append_str(&source, "root ::= r0\n");
    for (int i = 0; i < 5000; i++)
        buffer_printf(&source, "r%d ::= r%d\n", i, i + 1);
    check_refused(GRAMMAR_EBNF, &source, "more than 4096 rules");
    buffer_free(&source);
}
END_TEST

START_TEST(test_a_vocabulary_needs_an_end_token_in_range)
{
    struct error err;
    int32_t end = trie->size;

    ck_assert(vocabulary_trie_new(tok, trie->size, &end, 1, &err) == NULL);
    ck_assert(strstr(err.message, "end token") != NULL);
    ck_assert(vocabulary_trie_new(tok, trie->size, &end, 0, &err) == NULL);
    end = END;
    ck_assert(vocabulary_trie_new(tok, 100, &end, 1, &err) == NULL); /* without most bytes */
    ck_assert(strstr(err.message, "for every byte") != NULL);
}
END_TEST

static void add_cases(TCase *tcase)
{
    tcase_add_checked_fixture(tcase, load, unload);
    tcase_add_loop_test(tcase, test_every_walk_can_end_and_gives_utf8, 0, SAMPLES);
    tcase_add_loop_test(tcase, test_walks_do_not_depend_on_what_was_asked_before, 0, SAMPLES);
    tcase_add_loop_test(tcase, test_exactly_the_tokens_of_a_mask_are_accepted, 0, SAMPLES);
    tcase_add_test(tcase, test_end_is_allowed_only_where_the_text_may_end);
    tcase_add_test(tcase, test_special_tokens_and_markers_are_never_allowed);
    tcase_add_test(tcase, test_a_call_has_the_arguments_of_its_own_tool);
    tcase_add_test(tcase, test_arguments_between_tags_hold_any_text_but_the_end);
    tcase_add_test(tcase, test_a_refused_token_changes_nothing);
    tcase_add_test(tcase, test_a_copy_goes_its_own_way);
    tcase_add_test(tcase, test_white_space_in_json_is_bounded);
    tcase_add_test(tcase, test_strings_in_json_are_strict);
    tcase_add_test(tcase, test_nesting_is_bounded_and_closes);
    tcase_add_test(tcase, test_large_counts_are_counted_and_not_unrolled);
    tcase_add_test(tcase, test_tables_are_collected_and_states_live_on);
    tcase_add_loop_test(tcase, test_ambiguity_does_not_blow_up, 0, 4);
    tcase_add_test(tcase, test_threads_share_a_grammar);
    tcase_add_loop_test(tcase, test_sources_are_refused_with_a_sentence, 0,
                        sizeof(refused) / sizeof(refused[0]));
    tcase_add_test(tcase, test_sources_past_a_bound_are_refused);
    tcase_add_test(tcase, test_a_vocabulary_needs_an_end_token_in_range);
}

UNIT_MAIN("grammar", add_cases)
