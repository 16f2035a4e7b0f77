/* The grammar of tool calls in each output format: see grammar_calls.h. */
#include "model/grammar_calls.h"

#include "base/utf8.h"
#include "model/grammar_json.h"
#include "model/grammar_schema.h"
#include "model/grammar_text.h"
#include "model/output_format.h"

#include <string.h>

enum { MAX_CALLS = 128, MAX_TAG = 64, MAX_KEY = 64 };

/* A part of the syntax of calls. */
static uint32_t syntax_node(struct rules *r, const struct vocabulary_trie *trie, const char *part)
{
    struct buffer bytes;

    buffer_init(&bytes, 1 << 10);
    vocabulary_trie_syntax(trie, part, &bytes);
    uint32_t node = rules_bytes(r, bytes.data, bytes.len);
    buffer_free(&bytes);
    return node;
}

/* A character that is not one of these, nor NUL. */
static uint32_t character_but(struct rules *r, uint32_t a, uint32_t b)
{
    struct codepoint_set set = {.count = 0};

    codepoint_set_add(&set, 0, 0);
    codepoint_set_add(&set, a, a);
    codepoint_set_add(&set, b, b);
    codepoint_set_invert(&set);
    return rules_codepoints(r, set, TEXT_PLAIN);
}

/* Any text that does not hold the tag t0 t1 ... tn, of which only t0 is a '<':
 *
 *   text := N* ('<' w(1))*        N: any character but '<'
 *   w(i) := (ti w(i + 1) | [^<ti] N*)?
 *   w(n) := ([^<tn] N*)? */
static uint32_t text_without(struct rules *r, const char *tag)
{
    uint32_t letters[MAX_TAG], n = 0;
    uint32_t some = rules_repeat(r, character_but(r, '<', '<'), 0, REPEAT_MAX);
    uint32_t rest = NODE_NONE;

    for (size_t at = 0, len = strlen(tag); at < len && n < MAX_TAG; n++)
        at += (size_t)utf8_decode(tag + at, len - at, &letters[n]);
    while (n-- > 1) {
        uint32_t other = RULES_SEQUENCE(r, character_but(r, '<', letters[n]), some);
        if (rest != NODE_NONE)
            other = RULES_CHOICE(
                r, RULES_SEQUENCE(r, rules_codepoint(r, letters[n], TEXT_PLAIN), rest), other);
        rest = rules_optional(r, other);
    }
    uint32_t begun = RULES_SEQUENCE(r, rules_text(r, "<"), rest);
    return RULES_SEQUENCE(r, some, rules_repeat(r, begun, 0, REPEAT_MAX));
}

static struct pair_syntax pair_nodes(struct rules *r, const struct vocabulary_trie *trie)
{
    const struct pair_tags *tags = trie->call->tags;
    struct codepoint_set key = {.count = 0};
    uint32_t newline = rules_optional(r, rules_text(r, "\n"));

    codepoint_set_add(&key, 0, 0x1F);
    codepoint_set_add(&key, '"', '"');
    codepoint_set_add(&key, '<', '<');
    codepoint_set_invert(&key);
    return (struct pair_syntax){
        .key_begin = syntax_node(r, trie, tags->key_begin),
        .key_end = syntax_node(r, trie, tags->key_end),
        .text_begin = syntax_node(r, trie, tags->value_begin),
        .json_begin = syntax_node(r, trie, tags->json_begin ? tags->json_begin : tags->value_begin),
        .value_end = syntax_node(r, trie, tags->value_end),
        .after_key = tags->json_begin ? NODE_EMPTY : newline, /* or else inside of a tag */
        .after_value = newline,
        .key = rules_repeat(r, rules_codepoints(r, key, TEXT_PLAIN), 1, MAX_KEY),
        .text = text_without(r, tags->value_end),
        .character = character_but(r, '<', '<'),
    };
}

/* KEY=VALUE, of which values are JSON, which Python reads too but for three names, which its reader
 * takes as well. */
static struct pair_syntax python_nodes(struct rules *r)
{
    struct codepoint_set letters = {.count = 0}, others;

    codepoint_set_add(&letters, 'A', 'Z');
    codepoint_set_add(&letters, '_', '_');
    codepoint_set_add(&letters, 'a', 'z');
    others = letters;
    codepoint_set_add(&others, '0', '9');
    uint32_t first = rules_codepoints(r, letters, TEXT_PLAIN);
    uint32_t more = rules_repeat(r, rules_codepoints(r, others, TEXT_PLAIN), 0, MAX_KEY - 1);
    return (struct pair_syntax){
        .key_begin = NODE_EMPTY,
        .key_end = rules_text(r, "="),
        .text_begin = NODE_EMPTY,
        .json_begin = NODE_EMPTY,
        .value_end = RULES_SEQUENCE(r, rules_text(r, ","), rules_optional(r, rules_text(r, " "))),
        .after_key = NODE_EMPTY,
        .after_value = NODE_EMPTY,
        .key = RULES_SEQUENCE(r, first, more),
        .text = NODE_NONE,
    };
}

/* From behind the name, and what ends it, to the end of the call. */
static uint32_t arguments_node(struct rules *r, const struct json *schema,
                               const struct vocabulary_trie *trie, const struct pair_syntax *pairs)
{
    struct json_forms forms;

    if (trie->call->arguments == ARGUMENTS_IN_PYTHON)
        return RULES_SEQUENCE(r, schema_compile_pairs(r, schema, pairs), rules_text(r, ")"));
    if (trie->call->arguments == ARGUMENTS_IN_PAIRS)
        return RULES_SEQUENCE(r, pairs->after_value, schema_compile_pairs(r, schema, pairs),
                              syntax_node(r, trie, trie->call->tags->call_end));
    json_forms_init(&forms, r);
    return schema ? schema_compile(r, schema) : json_form_object(&forms);
}

uint32_t calls_compile(struct rules *rules, const struct json *list,
                       const struct vocabulary_trie *trie)
{
    uint32_t calls[MAX_CALLS], name_end = NODE_EMPTY;
    struct pair_syntax pairs = {0};
    size_t count = 0;

    if (!trie->call)
        return rules_fail(rules, "the vocabulary has no format for tool calls");
    if (!json_is(list, JSON_ARRAY) || !json_first(list) || json_count(list) > MAX_CALLS)
        return rules_fail(rules, "it must be an array of 1 to %d calls", (int)MAX_CALLS);
    if (trie->call->arguments == ARGUMENTS_IN_PAIRS)
        pairs = pair_nodes(rules, trie);
    if (trie->call->arguments == ARGUMENTS_IN_PYTHON)
        pairs = python_nodes(rules);
    if (!call_name_ends_in_pairs(trie->call))
        name_end = syntax_node(rules, trie, trie->call->name_end);
    for (const struct json *call = json_first(list); call; call = json_next(call)) {
        const struct json *name = json_get(call, "name");
        uint32_t node = arguments_node(rules, json_get(call, "arguments"), trie, &pairs);
        if (json_is(name, JSON_STRING))
            node = RULES_SEQUENCE(rules, rules_text(rules, json_string(name)), name_end, node);
        else if (name)
            return rules_fail(rules, "a name must be a string");
        calls[count++] = node;
    }
    return rules_choice(rules, calls, count);
}
