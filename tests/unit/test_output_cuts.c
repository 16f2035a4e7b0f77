/* Generated outputs of every format, well formed and not: wherever they are cut, what comes out of
 * a stream is what comes out of the whole, and no word is lost or doubled. */
#include "tests/unit/unit.h"

#include "base/buffer.h"
#include "base/json.h"
#include "model/output.h"
#include "model/output_format.h"

#include <stdio.h>
#include <string.h>

enum { OUTPUTS = 150, MAX_FRAGMENTS = 24, MAX_BYTES = 1 << 16 };

static const char *const formats[] = {"deepseek", "deepseek_v32", "kimi",     "glm",   "mistral",
                                      "longcat",  "gigachat3",    "minicpm3", "think", "plain"};

/* What outputs are made of besides words and the markers of their format. */
static const char *const fragments[] = {
    " ",  "\n",  "\n\n", "{\"a\": ", "}",   "[1, \"x\"]", "\"",           "\\\"",     "<",
    "</", "ü",   "漢",   "🙂",     "｜",  "```json\n",  "\n```",        "function", "functions.",
    ":0", "\">", "[",    "]",        "\"}", "true\">",    "\" string=\"",
};

struct generator {
    uint64_t random;
    int words;
    struct buffer text;
};

static uint64_t next_random(struct generator *g, uint64_t below)
{
    uint64_t z = g->random += 0x9E3779B97F4A7C15ULL;

    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ z >> 27) * 0x94D049BB133111EBULL;
    return (z ^ z >> 31) % below;
}

static void add_word(struct generator *g)
{
    buffer_printf(&g->text, "w%dw", g->words++);
}

/* The arguments of a call of Python, and sometimes another call. */
static void add_python(struct generator *g)
{
    static const char *const parts[] = {"=\"", "\"", "='", "'", "[", "]", ", ", ",", "(", ")", "="};

    do {
        for (uint64_t n = next_random(g, 8); n > 0; n--) {
            add_word(g);
            buffer_append_str(&g->text, parts[next_random(g, sizeof(parts) / sizeof(*parts))]);
        }
        buffer_append_str(&g->text, next_random(g, 2) ? ")\nf(" : ")\n");
    } while (next_random(g, 3) == 0);
    if (next_random(g, 4))
        buffer_append_str(&g->text, "```\n");
}

/* A whole call as the format has it. */
static void add_call(struct generator *g, const struct output_format *format)
{
    const struct call_syntax *call = &format->calls[next_random(g, OUTPUT_MAX_SYNTAXES)];
    const struct pair_tags *tags = call->tags;

    if (!call->begin)
        return;
    buffer_append_str(&g->text,
                      call->arguments >= ARGUMENTS_IN_OBJECT ? call->forced : call->begin);
    add_word(g);
    if (call->id_begin && next_random(g, 2)) {
        buffer_append_str(&g->text, call->id_begin);
        add_word(g);
    }
    if (!call_name_ends_in_pairs(call))
        buffer_append_str(&g->text, call->name_end);
    for (uint64_t n = next_random(g, 3); tags && n > 0; n--) {
        buffer_append_str(&g->text, tags->key_begin);
        add_word(g);
        buffer_append_str(&g->text, tags->key_end);
        buffer_append_str(&g->text,
                          tags->json_begin && n % 2 ? tags->json_begin : tags->value_begin);
        add_word(g);
        buffer_append_str(&g->text, tags->value_end);
    }
    if (call->arguments == ARGUMENTS_IN_PYTHON) {
        add_python(g);
    } else if (!tags) {
        buffer_append_str(&g->text, "{\"k\": \"");
        add_word(g);
        buffer_append_str(&g->text, "\"}");
    }
    if (call->arguments == ARGUMENTS_IN_OBJECT && next_random(g, 8))
        buffer_append_str(&g->text, "}\n");
    if (call->ends[0] && next_random(g, 8))
        buffer_append_str(&g->text, call->ends[0]);
}

/* A marker of the format, or the beginning of one. */
static void add_marker(struct generator *g, const struct output_format *format)
{
    const char *const parts[] = {
        format->think_begin,      format->think_end,      format->section_begin,
        format->section_end,      format->calls[0].begin, format->calls[0].name_end,
        format->calls[0].ends[0], format->calls[1].begin, format->calls[1].name_end,
        format->calls[1].ends[0], format->message_end,
    };
    const char *marker = parts[next_random(g, sizeof(parts) / sizeof(*parts))];

    if (marker)
        buffer_append(&g->text, marker,
                      next_random(g, 3) ? strlen(marker) : next_random(g, strlen(marker)));
}

static void generate(struct generator *g, const struct output_format *format, uint64_t seed)
{
    *g = (struct generator){.random = seed};
    buffer_init(&g->text, MAX_BYTES);
    for (uint64_t n = next_random(g, MAX_FRAGMENTS) + 1; n > 0; n--) {
        uint64_t kind = next_random(g, 10);
        if (kind < 3)
            add_word(g);
        else if (kind < 5)
            add_call(g, format);
        else if (kind < 7)
            add_marker(g, format);
        else
            buffer_append_str(&g->text,
                              fragments[next_random(g, sizeof(fragments) / sizeof(*fragments))]);
    }
    buffer_append_str(&g->text, "");
}

/* The parts as text, pieces of one part joined. */
struct record {
    struct buffer text;
    int part;
};

static void note(void *arg, const struct output_piece *piece)
{
    struct record *r = arg;
    bool joins = r->part == (int)piece->part && piece->part != OUTPUT_CALL_END &&
                 piece->part != OUTPUT_CALL_NAME;

    if (!joins)
        buffer_printf(&r->text, "\x01%d.%d:", (int)piece->part, piece->call);
    r->part = (int)piece->part;
    bool whole = piece->id && piece->text >= piece->id && piece->text < piece->id + piece->id_len;
    if (piece->id)
        buffer_append(&r->text, piece->id, piece->id_len);
    if (piece->len > 0 && !whole)
        buffer_append(&r->text, piece->text, piece->len);
}

/* The text in pieces of `every` bytes (0: no such), and cut at `cut`. */
static void parse(struct record *r, const struct output_format *format,
                  struct output_options options, const struct buffer *text, size_t cut,
                  size_t every)
{
    struct output_parser *p = output_parser_new(format, options);
    size_t begin = 0;

    *r = (struct record){.part = -1};
    buffer_init(&r->text, MAX_BYTES);
    buffer_append_str(&r->text, "");
    for (size_t end = 1; end <= text->len; end++) {
        if (end != cut && end != text->len && !(every && end % every == 0))
            continue;
        output_parser_push(p, text->data + begin, end - begin, note, r);
        begin = end;
    }
    output_parser_finish(p, note, r);
    output_parser_free(p);
}

/* Every word is there once. */
static void check_words(const struct generator *g, const struct buffer *parts)
{
    char word[32];

    for (int i = 0; i < g->words; i++) {
        snprintf(word, sizeof(word), "w%dw", i);
        const char *found = strstr(parts->data, word);
        ck_assert_msg(found && !strstr(found + 1, word), "%s of %s is not once in %s", word,
                      g->text.data, parts->data);
    }
}

static void check_output(const struct output_format *format, uint64_t seed)
{
    struct output_options options = {.split_reasoning = seed % 4 != 0,
                                     .open_reasoning = seed % 3 == 0,
                                     .parse_calls = seed % 7 != 0};
    struct generator g;
    struct record whole, cut;

    generate(&g, format, seed);
    parse(&whole, format, options, &g.text, 0, 0);
    check_words(&g, &whole.text);
    for (size_t at = 0; at < g.text.len + 3; at++) {
        size_t every = at < g.text.len ? 0 : at - g.text.len + 1;
        parse(&cut, format, options, &g.text, every ? 0 : at, every);
        ck_assert_msg(strcmp(whole.text.data, cut.text.data) == 0,
                      "%s, cut at %zu (%zu): %s\ninstead of %s", g.text.data, at, every,
                      cut.text.data, whole.text.data);
        buffer_free(&cut.text);
    }
    buffer_free(&whole.text);
    buffer_free(&g.text);
}

START_TEST(test_outputs_are_the_same_wherever_they_are_cut)
{
    const struct output_format *format = output_format_by_name(formats[_i]);

    ck_assert_ptr_nonnull(format);
    for (uint64_t seed = 0; seed < OUTPUTS; seed++)
        check_output(format, seed);
}
END_TEST

static void add_tests(TCase *tcase)
{
    tcase_add_loop_test(tcase, test_outputs_are_the_same_wherever_they_are_cut, 0,
                        sizeof(formats) / sizeof(*formats));
}

UNIT_MAIN("output cuts", add_tests)
