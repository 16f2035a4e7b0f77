#include "model/output_format.h"

#include "model/markers.h"

#include <string.h>

#define FENCE_BEGIN "\n```json\n"
#define FENCE_END   "\n```"

#define OBJECT_BEGIN    "{\"name\": \""
#define OBJECT_NAME_END "\", \"arguments\": "

static const struct output_format formats[] = {
    /* DeepSeek V3.2, whose vocabulary also has the markers of V3.1. */
    {
        .name = "deepseek_v32",
        .think_begin = MARKER_THINK_BEGIN,
        .think_end = MARKER_THINK_END,
        .section_begin = "<｜DSML｜function_calls>",
        .section_end = "</｜DSML｜function_calls>",
        .calls = {{.begin = "<｜DSML｜invoke name=\"",
                   .name_end = "\">",
                   .ends = {"</｜DSML｜invoke>"},
                   .arguments = ARGUMENTS_IN_PAIRS,
                   .tags = &pair_tags_dsml,
                   .forced = "\n<｜DSML｜invoke name=\""}},
        .tokens = {"｜DSML｜", MARKER_THINK_BEGIN, MARKER_THINK_END},
        .required = 1,
    },
    /* DeepSeek V3.1: <call>NAME<sep>{…}<end>. V3 and R1: <call>function<sep>NAME and the arguments
     * in a fence. The vocabularies are the same, so the text decides call by call; the price is
     * that V3.1 can't call a function named "function". */
    {
        .name = "deepseek",
        .think_begin = MARKER_THINK_BEGIN,
        .think_end = MARKER_THINK_END,
        .section_begin = MARKER_CALLS_BEGIN,
        .section_end = MARKER_CALLS_END,
        .calls = {{.begin = MARKER_CALL_BEGIN,
                   .name_end = MARKER_CALL_SEP,
                   .ends = {MARKER_CALL_END}},
                  {.begin = MARKER_CALL_BEGIN "function" MARKER_CALL_SEP,
                   .name_end = FENCE_BEGIN,
                   .ends = {FENCE_END MARKER_CALL_END, MARKER_CALL_END}}},
        .tokens = {MARKER_CALLS_BEGIN, MARKER_CALLS_END, MARKER_CALL_BEGIN, MARKER_CALL_SEP,
                   MARKER_CALL_END, MARKER_THINK_BEGIN, MARKER_THINK_END},
        .required = 5,
    },
    /* Kimi K2: what stands for the name is the id "functions.NAME:0". Thinking models may go from
     * reasoning straight to calls. */
    {
        .name = "kimi",
        .think_begin = MARKER_THINK_BEGIN,
        .think_end = MARKER_THINK_END,
        .calls_end_reasoning = true,
        .section_begin = "<|tool_calls_section_begin|>",
        .section_end = "<|tool_calls_section_end|>",
        .calls = {{.begin = "<|tool_call_begin|>",
                   .name_end = "<|tool_call_argument_begin|>",
                   .ends = {"<|tool_call_end|>"},
                   .id_prefix = "functions.",
                   .id_separator = ":"}},
        .tokens = {"<|tool_calls_section_begin|>", "<|tool_calls_section_end|>",
                   "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>",
                   MARKER_THINK_BEGIN, MARKER_THINK_END},
        .required = 5,
    },
    /* GLM 4.5 and later. */
    {
        .name = "glm",
        .think_begin = MARKER_THINK_BEGIN,
        .think_end = MARKER_THINK_END,
        .calls = {{.begin = "<tool_call>",
                   .name_end = "<arg_key>",
                   .ends = {"</tool_call>"},
                   .arguments = ARGUMENTS_IN_PAIRS,
                   .tags = &pair_tags_glm}},
        .tokens = {"<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>",
                   "</arg_value>", MARKER_THINK_BEGIN, MARKER_THINK_END},
        .required = 6,
    },
    /* Mistral, since version 11 of its tokenizers; that one has ids, later ones have not. */
    {
        .name = "mistral",
        .think_begin = "[THINK]",
        .think_end = "[/THINK]",
        .calls = {{.begin = "[TOOL_CALLS]", .name_end = "[ARGS]", .id_begin = "[CALL_ID]"}},
        .tokens = {"[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"},
        .required = 2,
    },
    /* LongCat-Flash. */
    {
        .name = "longcat",
        .think_begin = "<longcat_think>",
        .think_end = "</longcat_think>",
        .calls = {{.begin = "<longcat_tool_call>",
                   .name_end = OBJECT_NAME_END,
                   .ends = {"</longcat_tool_call>"},
                   .arguments = ARGUMENTS_IN_OBJECT,
                   .forced = "<longcat_tool_call>\n" OBJECT_BEGIN}},
        .tokens = {"<longcat_tool_call>", "</longcat_tool_call>", "<longcat_think>",
                   "</longcat_think>"},
        .required = 2,
    },
    /* GigaChat 3: a call is a message of its own, after what the assistant says. */
    {
        .name = "gigachat3",
        .message_end = "<|message_sep|>",
        .calls = {{.begin = "function call<|role_sep|>\n",
                   .name_end = OBJECT_NAME_END,
                   .arguments = ARGUMENTS_IN_OBJECT,
                   .forced = "<|message_sep|>\n\nfunction call<|role_sep|>\n" OBJECT_BEGIN}},
        .tokens = {"<|role_sep|>", "<|message_sep|>"},
        .required = 2,
    },
    /* MiniCPM 3. */
    {
        .name = "minicpm3",
        .think_begin = "<|thought_start|>",
        .think_end = "<|thought_end|>",
        .calls = {{.begin = "<|tool_call_start|>",
                   .name_end = "(",
                   .ends = {"<|tool_call_end|>"},
                   .arguments = ARGUMENTS_IN_PYTHON,
                   .forced = "<|tool_call_start|>\n```python\n"}},
        .tokens = {"<|tool_call_start|>", "<|tool_call_end|>", "<|thought_start|>",
                   "<|thought_end|>"},
        .required = 2,
    },
    /* Vocabularies that have the tags only, and those that have nothing. */
    {
        .name = "think",
        .think_begin = MARKER_THINK_BEGIN,
        .think_end = MARKER_THINK_END,
        .tokens = {MARKER_THINK_BEGIN, MARKER_THINK_END},
        .required = 2,
    },
    {.name = "plain"},
};

enum { N_FORMATS = sizeof(formats) / sizeof(*formats) };

static bool is_of(const struct output_format *format, const struct tokenizer *tok)
{
    for (int i = 0; i < format->required; i++)
        if (tokenizer_id(tok, format->tokens[i]) < 0)
            return false;
    return true;
}

const struct output_format *output_format_find(const struct tokenizer *tok)
{
    const struct output_format *format = formats;

    while (!is_of(format, tok)) /* the last one fits all */
        format++;
    return format;
}

const struct output_format *output_format_by_name(const char *name)
{
    for (int i = 0; i < N_FORMATS; i++)
        if (strcmp(formats[i].name, name) == 0)
            return &formats[i];
    return NULL;
}

const char *output_format_name(const struct output_format *format)
{
    return format->name;
}

bool output_format_has_calls(const struct output_format *format)
{
    return format->calls[0].begin != NULL;
}

bool output_format_has_reasoning(const struct output_format *format)
{
    return format->think_begin != NULL;
}

bool output_format_has_short_ids(const struct output_format *format)
{
    return format->calls[0].id_begin != NULL;
}

int output_format_marker_ids(const struct output_format *format, const struct tokenizer *tok,
                             int32_t ids[OUTPUT_MAX_MARKERS])
{
    int n = 0;

    for (int i = 0; i < OUTPUT_MAX_MARKERS && format->tokens[i]; i++) {
        int32_t id = tokenizer_id(tok, format->tokens[i]);
        if (id >= 0)
            ids[n++] = id;
    }
    return n;
}

bool call_name_ends_in_pairs(const struct call_syntax *syntax)
{
    return syntax->tags && strcmp(syntax->name_end, syntax->tags->key_begin) == 0;
}

/* Adds a part of a forced beginning to the tokens and to the text. */
static int add_part(const struct tokenizer *tok, const char *part, enum encode_mode mode,
                    struct token_list *tokens, struct buffer *text, struct error *err)
{
    buffer_append_str(text, part);
    return tokenizer_encode(tok, part, strlen(part), mode, tokens, err);
}

void output_call_name(const struct output_format *format, const char *name, struct buffer *out)
{
    const struct call_syntax *syntax = &format->calls[0];

    if (syntax->id_prefix)
        buffer_printf(out, "%s%s%s0", syntax->id_prefix, name, syntax->id_separator);
    else
        buffer_append_str(out, name);
}

/* The name is text only: no name that a client invents becomes a marker. */
static int add_name(const struct output_format *format, const struct tokenizer *tok,
                    const char *name, struct token_list *tokens, struct buffer *text,
                    struct error *err)
{
    struct buffer id;

    buffer_init(&id, 1 << 20);
    output_call_name(format, name, &id);
    int rc = id.overflowed ? error_set(err, "the function's name is too long")
                           : add_part(tok, id.data, ENCODE_TEXT_ONLY, tokens, text, err);
    buffer_free(&id);
    return rc;
}

int output_force_call(const struct output_format *format, const struct tokenizer *tok,
                      const char *name, struct token_list *tokens, struct buffer *text,
                      struct error *err)
{
    const struct call_syntax *syntax = &format->calls[0];

    if (!output_format_has_calls(format))
        return error_set(err, "the model has no format for tool calls");
    if (format->section_begin &&
        add_part(tok, format->section_begin, ENCODE_WITH_SPECIALS, tokens, text, err))
        return -1;
    if (add_part(tok, syntax->forced ? syntax->forced : syntax->begin, ENCODE_WITH_SPECIALS, tokens,
                 text, err))
        return -1;
    if (!name)
        return 0;
    if (add_name(format, tok, name, tokens, text, err))
        return -1;
    if (call_name_ends_in_pairs(syntax)) /* a call without arguments goes on otherwise */
        return 0;
    return add_part(tok, syntax->name_end, ENCODE_WITH_SPECIALS, tokens, text, err);
}
