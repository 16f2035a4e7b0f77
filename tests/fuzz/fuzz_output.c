/* Generated text taken apart in any format: the parts are the same however the text is cut, calls
 * are whole and in order, and between the parts there are only markers, white space and what
 * formats write around names. The first byte chooses the format and the options. */
#include "model/output_format.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>

enum { N_FORMATS = 10, MAX_BYTES = 4096, MAX_TRACED = 300 };

static const char *const format_names[N_FORMATS] = {
    "deepseek", "kimi",         "glm",     "mistral",   "think",
    "plain",    "deepseek_v32", "longcat", "gigachat3", "minicpm3",
};
static const char *const around_names[] = {"function", "```json", "```"};

/* All parts of a text: their texts, one after the other, and where each part begins. */
struct record {
    struct buffer text, parts;
    int part;
    int32_t call; /* of the last piece */
    bool in_call;
};

static void note(void *arg, const struct output_piece *piece)
{
    struct record *r = arg;

    ASSERT(piece->len > 0 || piece->part == OUTPUT_CALL_END);
    if (piece->part == OUTPUT_CALL_NAME) {
        ASSERT(!r->in_call && piece->call == r->call + 1);
        r->in_call = true;
        r->call = piece->call;
    } else if (piece->part == OUTPUT_CALL_ARGUMENTS || piece->part == OUTPUT_CALL_END) {
        ASSERT(r->in_call && piece->call == r->call);
        r->in_call = piece->part != OUTPUT_CALL_END;
    } else {
        ASSERT(!r->in_call);
        ASSERT(piece->part != OUTPUT_REASONING || r->part <= (int)OUTPUT_REASONING);
    }
    if (r->part != (int)piece->part)
        buffer_printf(&r->parts, "%d at %zu ", (int)piece->part, r->text.len);
    r->part = (int)piece->part;
    bool in_id = piece->id && piece->text >= piece->id && piece->text < piece->id + piece->id_len;
    if (piece->len > 0 && !in_id)
        buffer_append(&r->text, piece->text, piece->len);
    if (piece->id)
        buffer_append(&r->text, piece->id, piece->id_len);
}

/* Parses the text in pieces whose lengths go through `lengths` (0: all that is left). */
static void parse(struct record *r, const struct output_format *format,
                  struct output_options options, const char *text, size_t len,
                  const uint8_t lengths[4])
{
    struct output_parser *p = output_parser_new(format, options);

    *r = (struct record){.part = -1, .call = -1};
    buffer_init(&r->text, 1 << 20);
    buffer_init(&r->parts, 1 << 20);
    for (size_t i = 0; len > 0; i++) {
        size_t size = lengths[i % 4] && lengths[i % 4] < len ? lengths[i % 4] : len;
        output_parser_push(p, text, size, note, r);
        text += size;
        len -= size;
    }
    output_parser_finish(p, note, r);
    ASSERT(!r->in_call && !r->text.overflowed && !r->parts.overflowed);
    output_parser_free(p);
}

static void record_free(struct record *r)
{
    buffer_free(&r->text);
    buffer_free(&r->parts);
}

static bool equal(const struct buffer *a, const struct buffer *b)
{
    return a->len == b->len && (a->len == 0 || memcmp(a->data, b->data, a->len) == 0);
}

/* Adds the places that can be reached from those in `at` by leaving out what may be left out. */
static void leave_out(const struct output_format *format, const char *text, size_t len, bool *at)
{
    for (size_t i = 0; i < len; i++) {
        if (!at[i])
            continue;
        if (memchr(" \t\r\n", text[i], 4))
            at[i + 1] = true;
        for (size_t k = 0; k < OUTPUT_MAX_MARKERS && format->tokens[k]; k++) {
            size_t size = strlen(format->tokens[k]);
            if (size <= len - i && memcmp(text + i, format->tokens[k], size) == 0)
                at[i + size] = true;
        }
        for (size_t k = 0; k < sizeof(around_names) / sizeof(*around_names); k++) {
            size_t size = strlen(around_names[k]);
            if (size <= len - i && memcmp(text + i, around_names[k], size) == 0)
                at[i + size] = true;
        }
    }
}

/* The parts are the text, less what may be left out. */
static void check_nothing_is_lost(const struct output_format *format, const char *text, size_t len,
                                  const struct buffer *parts)
{
    bool at[MAX_TRACED + 1] = {true}, next[MAX_TRACED + 1];

    for (size_t k = 0; k < parts->len; k++) {
        leave_out(format, text, len, at);
        memset(next, 0, sizeof(next));
        for (size_t i = 0; i < len; i++)
            next[i + 1] = at[i] && text[i] == parts->data[k];
        memcpy(at, next, sizeof(at));
    }
    leave_out(format, text, len, at);
    ASSERT(at[len]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t whole[4] = {0}, single[4] = {1, 1, 1, 1};
    struct record first, other;

    if (size < 5 || size > MAX_BYTES)
        return 0;
    const struct output_format *format = output_format_by_name(format_names[data[0] % N_FORMATS]);
    struct output_options options = {.split_reasoning = data[0] & 32,
                                     .open_reasoning = data[0] & 64,
                                     .parse_calls = data[0] & 128};
    const uint8_t *const cuts[] = {single, data + 1};
    const char *text = (const char *)data + 5;
    size_t len = size - 5;

    parse(&first, format, options, text, len, whole);
    for (int i = 0; i < 2; i++) {
        parse(&other, format, options, text, len, cuts[i]);
        ASSERT(equal(&first.text, &other.text) && equal(&first.parts, &other.parts));
        record_free(&other);
    }
    if (len <= MAX_TRACED && format->calls[0].arguments == ARGUMENTS_AS_THEY_ARE)
        check_nothing_is_lost(format, text, len, &first.text);
    if (!options.split_reasoning && !options.parse_calls && !format->message_end)
        ASSERT(first.text.len == len && (len == 0 || memcmp(first.text.data, text, len) == 0));
    record_free(&first);
    return 0;
}
