/* Generated text taken apart: reasoning, content and tool calls.
 *
 *   <think>reasoning</think>content<calls begin><call begin>NAME<sep>ARGUMENTS<call end><calls end>
 *
 * A parser gets the text of one sequence in pieces, cut anywhere, and hands out its parts as soon
 * as they are certain. The parts don't depend on how the text was cut, and where the text came in
 * whole characters they come out in whole characters. Text is held back only as long as it could
 * still become a marker of the format. Nothing is lost but markers, the white space between the
 * markers of calls, and what a format writes around names.
 *
 * Reasoning (as in vLLM: nothing is trimmed)
 * - It begins at the opening tag, if the text begins with one (white space before the tag joins the
 *   reasoning), or at once where the prompt has opened it; there an opening tag is dropped. A
 *   closing tag that begins the text, where nobody opened reasoning, is dropped.
 * - It ends at the first closing tag, or for some formats where calls begin. Without an end, all is
 *   reasoning. Tags anywhere else are content.
 *
 * Calls
 * - A call is one as soon as its name is complete. From there its arguments stream as they come,
 *   unchanged: whether they are JSON is not looked at, and a call that the end of the text cuts is
 *   a call with what there is of its arguments.
 * - Before that, what does not go on as a call turns out to be content, with its markers. So do the
 *   markers of a section in which there is no call.
 * - Text before, between and after calls is content. */
#pragma once

#include "base/buffer.h"
#include "base/error.h"
#include "base/json.h"
#include "model/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { OUTPUT_MAX_MARKERS = 12 };

/* How a family of models marks the parts of its text. There is a fixed table of them. */
struct output_format;

/* The format whose markers the vocabulary has; if none, "think" or "plain". Never NULL. */
const struct output_format *output_format_find(const struct tokenizer *tok);

/* By name: deepseek_v32, deepseek, kimi, glm, mistral, longcat, gigachat3, minicpm3, think
 * (reasoning only), plain (content only). NULL when there is none of that name. */
const struct output_format *output_format_by_name(const char *name);

const char *output_format_name(const struct output_format *format);
bool output_format_has_calls(const struct output_format *format);
bool output_format_has_reasoning(const struct output_format *format);

/* Whether an id of a call must have nine letters and digits, as Mistral's templates ask. */
bool output_format_has_short_ids(const struct output_format *format);

/* The ids of the format's markers that the vocabulary has; returns how many. Their text must reach
 * the parser even where special tokens are left out of the text. */
int output_format_marker_ids(const struct output_format *format, const struct tokenizer *tok,
                             int32_t ids[OUTPUT_MAX_MARKERS]);

/* How a call begins, for a request that must have one: up to the arguments of the function `name`
 * or, when that is NULL, up to the name. Appends tokens, to generate from, and the text of the
 * same, to push into the parser first. -1 with a message when the format has no calls or the list's
 * bound is passed. */
int output_force_call(const struct output_format *format, const struct tokenizer *tok,
                      const char *name, struct token_list *tokens, struct buffer *text,
                      struct error *err);

/* What stands in a call for the name of a function. */
void output_call_name(const struct output_format *format, const char *name, struct buffer *out);

enum output_part {
    OUTPUT_REASONING,
    OUTPUT_CONTENT,
    OUTPUT_CALL_NAME,      /* a call begins; the name is whole */
    OUTPUT_CALL_ARGUMENTS, /* to be appended */
    OUTPUT_CALL_END,       /* no text */
};

struct output_piece {
    enum output_part part;
    const char *text; /* `len` bytes, valid during the callback */
    size_t len;
    int32_t call;   /* of a call's parts: its index, from 0 */
    const char *id; /* of a name: the `id_len` bytes that the model calls the call by, or NULL */
    size_t id_len;
};

/* Receives one piece. It must not call the parser. */
typedef void (*output_emit)(void *arg, const struct output_piece *piece);

struct output_options {
    bool split_reasoning; /* or else tags are content */
    bool open_reasoning;  /* the prompt ends inside the reasoning */
    bool parse_calls;     /* or else markers of calls are content */

    /* The request's tools (see model/chat.h), for formats that write arguments without their
     * types: borrowed, may be NULL. */
    const struct json *tools;
};

struct output_parser;

struct output_parser *output_parser_new(const struct output_format *format,
                                        struct output_options options);
void output_parser_free(struct output_parser *parser);

/* Adds text; emits what it decides. */
void output_parser_push(struct output_parser *parser, const char *text, size_t len,
                        output_emit emit, void *arg);

/* The text is over: emits what was held back, and the end of an open call. */
void output_parser_finish(struct output_parser *parser, output_emit emit, void *arg);

/* Whether the text so far ends inside the reasoning. */
bool output_parser_in_reasoning(const struct output_parser *parser);
