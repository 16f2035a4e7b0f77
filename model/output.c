/* The parser: text that is not decided yet waits in `held`; each state looks at its beginning,
 * emits what is certain, and moves on.
 *
 *   START      -> REASONING   an opening tag, or the prompt opened it    step_start
 *              -> CONTENT     anything else
 *   REASONING  -> CONTENT     the closing tag, or where calls begin      step_reasoning
 *   CONTENT    -> BETWEEN     a section of calls begins                  step_content, take_marker
 *              -> NAME        a call begins
 *   BETWEEN    -> NAME        the next call begins                       step_between, take_marker
 *              -> CONTENT     the section ends, or text comes            take_marker, fall_back
 *   NAME       -> ARGUMENTS   the name is whole                          step_name, step_head
 *              -> CONTENT     it is none                                 fall_back
 *              -> BETWEEN     there was a call before it                 step_head
 *   ARGUMENTS  -> BETWEEN     the call ends                              end_call
 *              -> NAME        and another may follow as it is            step_python
 *
 * `pending` holds the markers since the last part, for the case that they turn out to be content.
 */
#include "model/output.h"

#include "base/memory.h"
#include "model/output_format.h"
#include "model/output_object.h"
#include "model/output_pairs.h"
#include "model/output_python.h"
#include "model/output_scan.h"

#include <stdlib.h>
#include <string.h>

enum {
    MAX_SPACE = 64,     /* bytes of white space before an opening tag, or between markers */
    MAX_NAME = 256,     /* bytes of a function's name, with what stands around it */
    MAX_HEAD = 512,     /* of all that stands before arguments that have no marker */
    MAX_DIGITS = 9,     /* of a call's number in an id */
    HELD_MAX = 1 << 28, /* far above a piece of text */
};

enum state { START, REASONING, CONTENT, BETWEEN, NAME, ARGUMENTS };

struct output_parser {
    const struct output_format *format;
    struct output_options options;
    enum state state;
    struct buffer held, pending;
    size_t at;         /* bytes of `held` that are done with */
    bool in_section;   /* after the section's beginning */
    bool section_used; /* and there was a call in it */
    const struct call_syntax *syntax;
    int32_t call; /* index of the call, the next one outside calls */
    struct pairs pairs;
    struct python_arguments python;
    struct json_extent extent; /* ARGUMENTS_IN_OBJECT */
    enum { IN_VALUE, BEFORE_BRACE, BEFORE_END } place;
    bool follows;       /* NAME: right after another call */
    struct buffer json; /* what `pairs` or `python` made */
    output_emit emit;   /* during push and finish */
    void *arg;
};

struct output_parser *output_parser_new(const struct output_format *format,
                                        struct output_options options)
{
    struct output_parser *p = mem_zalloc(1, sizeof(*p));

    p->format = format;
    p->options = options;
    p->state = options.split_reasoning && format->think_begin ? START : CONTENT;
    buffer_init(&p->held, HELD_MAX);
    buffer_init(&p->pending, HELD_MAX);
    buffer_init(&p->json, HELD_MAX);
    pairs_init(&p->pairs);
    return p;
}

void output_parser_free(struct output_parser *p)
{
    if (!p)
        return;
    buffer_free(&p->held);
    buffer_free(&p->pending);
    buffer_free(&p->json);
    pairs_free(&p->pairs);
    free(p);
}

bool output_parser_in_reasoning(const struct output_parser *p)
{
    return p->state == REASONING || (p->state == START && p->options.open_reasoning);
}

/* ---- text held and parts emitted ------------------------------------------------------------ */

static const char *rest(const struct output_parser *p)
{
    return p->held.data + p->at;
}

static size_t rest_len(const struct output_parser *p)
{
    return p->held.len - p->at;
}

static void emit(struct output_parser *p, enum output_part part, const char *text, size_t len)
{
    struct output_piece piece = {.part = part, .text = text, .len = len, .call = p->call};

    if (len > 0 || part == OUTPUT_CALL_END)
        p->emit(p->arg, &piece);
}

/* Emits and leaves behind the next `len` bytes. */
static void emit_next(struct output_parser *p, enum output_part part, size_t len)
{
    emit(p, part, rest(p), len);
    p->at += len;
}

/* The next `len` bytes wait in `pending`. */
static void pend_next(struct output_parser *p, size_t len)
{
    buffer_append(&p->pending, rest(p), len);
    p->at += len;
}

/* What was pending is content after all. */
static void fall_back(struct output_parser *p)
{
    emit(p, OUTPUT_CONTENT, p->pending.data, p->pending.len);
    buffer_clear(&p->pending);
    p->state = CONTENT;
}

/* ---- markers -------------------------------------------------------------------------------- */

enum {
    M_SECTION_BEGIN,
    M_SECTION_END,
    M_CALL,
    M_LAST_CALL,
    M_NAME_END,
    M_END,
    M_LAST_END,
    M_MESSAGE_END,
    N_M
};

/* The markers that matter where calls may begin or end. Inside a call, `syntax` is its own. */
static void list_markers(const struct output_parser *p, const struct call_syntax *syntax,
                         const char *markers[N_M])
{
    memset(markers, 0, N_M * sizeof(*markers));
    markers[M_MESSAGE_END] = p->format->message_end;
    if (!p->options.parse_calls)
        return;
    markers[M_SECTION_BEGIN] = p->format->section_begin;
    markers[M_SECTION_END] = p->in_section || syntax ? p->format->section_end : NULL;
    for (int i = 0; i < OUTPUT_MAX_SYNTAXES; i++)
        markers[M_CALL + i] = p->format->calls[i].begin;
    if (syntax) {
        markers[M_NAME_END] = syntax->name_end;
        markers[M_END] = syntax->ends[0];
        markers[M_LAST_END] = syntax->ends[1];
    }
}

/* A marker of calls comes next: opens or closes a section, or begins a call. */
static void take_marker(struct output_parser *p, int marker, size_t len)
{
    if (marker == M_SECTION_BEGIN) {
        fall_back(p);
        pend_next(p, len);
        p->in_section = true;
        p->section_used = false;
        p->state = BETWEEN;
    } else if (marker == M_SECTION_END) {
        fall_back(p);
        if (p->section_used)
            p->at += len;
        else
            emit_next(p, OUTPUT_CONTENT, len);
        p->in_section = false;
    } else if (marker == M_MESSAGE_END) {
        fall_back(p);
        p->at += len;
        p->state = BETWEEN;
    } else {
        if (!p->in_section) { /* the call opens one without saying so */
            p->in_section = true;
            p->section_used = false;
        }
        pend_next(p, len);
        p->syntax = &p->format->calls[marker - M_CALL];
        p->follows = false;
        p->state = NAME;
    }
}

/* ---- states: each returns false to wait for more text --------------------------------------- */

static bool step_start(struct output_parser *p, bool final)
{
    const char *tag = p->format->think_begin, *end = p->format->think_end;
    size_t len = rest_len(p), space = space_prefix(rest(p), len);
    enum match match = MATCH_NONE, dangling = MATCH_NONE;

    if (space <= MAX_SPACE) {
        match = marker_at(rest(p) + space, len - space, tag);
        if (!p->options.open_reasoning)
            dangling = marker_at(rest(p) + space, len - space, end);
    }
    if ((match == MATCH_PARTIAL || dangling == MATCH_PARTIAL) && !final)
        return false;
    if (dangling == MATCH_FULL) /* closes what nobody opened */
        p->at += space + strlen(end);
    p->state = p->options.open_reasoning ? REASONING : CONTENT;
    if (match == MATCH_FULL) {
        emit_next(p, OUTPUT_REASONING, space);
        p->at += strlen(tag);
        p->state = REASONING;
    }
    return true;
}

static bool step_reasoning(struct output_parser *p, bool final)
{
    bool calls_end = p->format->calls_end_reasoning && p->options.parse_calls;
    const char *const markers[] = {
        p->format->think_end,
        calls_end ? p->format->section_begin : NULL,
        calls_end ? p->format->calls[0].begin : NULL,
    };
    int found;
    size_t plain = marker_scan(rest(p), rest_len(p), markers, 3, final, &found);

    emit_next(p, OUTPUT_REASONING, plain);
    if (found < 0)
        return false;
    if (found == 0)
        p->at += strlen(markers[0]);
    p->state = CONTENT;
    return true;
}

static bool step_content(struct output_parser *p, bool final)
{
    const char *markers[N_M];
    int found;

    list_markers(p, NULL, markers);
    size_t plain = marker_scan(rest(p), rest_len(p), markers, N_M, final, &found);
    emit_next(p, OUTPUT_CONTENT, plain);
    if (found < 0)
        return false;
    take_marker(p, found, strlen(markers[found]));
    return true;
}

static bool step_between(struct output_parser *p, bool final)
{
    const char *markers[N_M];
    size_t len = rest_len(p), space = space_prefix(rest(p), len);
    int found = -1;

    list_markers(p, NULL, markers);
    size_t plain = marker_scan(rest(p) + space, len - space, markers, N_M, final, &found);
    if (space > MAX_SPACE || plain > 0) {
        fall_back(p);
        return true;
    }
    if (found < 0 && !final)
        return false;
    if (p->pending.len > 0)
        pend_next(p, space);
    else
        p->at += space;
    if (found >= 0)
        take_marker(p, found, strlen(markers[found]));
    return found >= 0;
}

/* The schema of the function's parameters; NULL when the request has none. */
static const struct json *find_parameters(const struct output_parser *p, const char *name,
                                          size_t len)
{
    const struct json *tools = p->options.tools;

    if (!json_is(tools, JSON_ARRAY))
        return NULL;
    for (const struct json *tool = json_first(tools); tool; tool = json_next(tool)) {
        const struct json *function = json_get(tool, "function");
        const struct json *other = json_get(function, "name");
        if (json_is(other, JSON_STRING) && strlen(json_string(other)) == len &&
            memcmp(json_string(other), name, len) == 0)
            return json_get(function, "parameters");
    }
    return NULL;
}

/* Takes the name out of an id such as "functions.NAME:0"; one that is not of that kind is the name
 * itself. */
static void name_of_id(const struct call_syntax *syntax, struct output_piece *piece)
{
    size_t prefix = strlen(syntax->id_prefix), digits = 0;

    piece->id = piece->text;
    piece->id_len = piece->len;
    if (marker_at(piece->text, piece->len, syntax->id_prefix) == MATCH_FULL) {
        piece->text += prefix;
        piece->len -= prefix;
    }
    while (digits < piece->len && digits < MAX_DIGITS &&
           memchr("0123456789", piece->text[piece->len - digits - 1], 10))
        digits++;
    if (digits > 0 && piece->len > digits + 1 &&
        piece->text[piece->len - digits - 1] == syntax->id_separator[0])
        piece->len -= digits + 1;
}

/* The same where the id follows the name after a marker. */
static void id_behind_name(const struct call_syntax *syntax, struct output_piece *piece)
{
    size_t marker = strlen(syntax->id_begin);
    const char *found = memmem(piece->text, piece->len, syntax->id_begin, marker);

    if (!found)
        return;
    piece->id = found + marker;
    piece->id_len = (size_t)(piece->text + piece->len - piece->id);
    piece->len = (size_t)(found - piece->text);
    if (piece->id_len == 0)
        piece->id = NULL;
}

/* Emits the name if these bytes are one: not empty, no control characters. */
static bool begin_call(struct output_parser *p, const char *text, size_t len)
{
    struct output_piece piece = {.part = OUTPUT_CALL_NAME, .call = p->call};
    size_t space = space_prefix(text, len);

    text += space;
    len -= space;
    while (len > 0 && space_prefix(text + len - 1, 1))
        len--;
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)text[i] < 0x20)
            return false;
    piece.text = text;
    piece.len = len;
    if (p->syntax->id_prefix)
        name_of_id(p->syntax, &piece);
    if (p->syntax->id_begin)
        id_behind_name(p->syntax, &piece);
    if (piece.len == 0)
        return false;
    p->emit(p->arg, &piece);
    const struct json *parameters = find_parameters(p, piece.text, piece.len);
    pairs_begin(&p->pairs, p->syntax->tags, parameters);
    p->python = (struct python_arguments){.parameters = parameters, .end = p->syntax->ends[0]};
    p->extent = (struct json_extent){.depth = 0};
    p->place = IN_VALUE;
    buffer_clear(&p->pending);
    p->section_used = true;
    p->state = ARGUMENTS;
    return true;
}

static bool step_name(struct output_parser *p, bool final)
{
    bool in_pairs = call_name_ends_in_pairs(p->syntax);
    const char *markers[N_M];
    int found;

    list_markers(p, p->syntax, markers);
    size_t plain = marker_scan(rest(p), rest_len(p), markers, N_M, final, &found);
    if (found < 0 && plain <= MAX_NAME && !final)
        return false;
    bool named = found == M_NAME_END || (found == M_END && in_pairs);
    if (!named || plain > MAX_NAME || !begin_call(p, rest(p), plain)) {
        fall_back(p);
        return true;
    }
    p->at += plain + (in_pairs ? 0 : strlen(markers[found])); /* tags are for pairs_read */
    return true;
}

/* What a head that is none means: content, or after a call its end. */
static bool no_head(struct output_parser *p)
{
    if (p->follows)
        p->state = BETWEEN;
    else
        fall_back(p);
    return true;
}

/* NAME, where name and arguments are written together. */
static bool step_head(struct output_parser *p, bool final)
{
    bool python = p->syntax->arguments == ARGUMENTS_IN_PYTHON;
    size_t len = rest_len(p), used;
    struct call_head head;
    enum call_reading reading = CALL_IS_OTHER;

    if (p->follows)
        reading = python_calls_end(rest(p), len, p->syntax->ends[0], &used);
    if (reading == CALL_NEEDS && !final)
        return false;
    if (reading != CALL_IS_OTHER) {
        p->at += reading == CALL_READ ? used : len;
        return no_head(p);
    }
    reading =
        python ? python_call_head(rest(p), len, &head) : object_call_head(rest(p), len, &head);
    if (reading == CALL_NEEDS && !final && len <= MAX_HEAD)
        return false;
    if (reading != CALL_READ || head.used > MAX_HEAD || !begin_call(p, head.name, head.name_len))
        return no_head(p);
    p->at += head.used;
    if (head.no_arguments) {
        emit(p, OUTPUT_CALL_ARGUMENTS, "{}", 2);
        p->place = BEFORE_END;
    }
    return true;
}

static void end_call(struct output_parser *p)
{
    emit(p, OUTPUT_CALL_END, NULL, 0);
    p->call++;
    p->state = BETWEEN;
}

static bool step_pairs(struct output_parser *p, bool final)
{
    bool ended;

    buffer_clear(&p->json);
    p->at += pairs_read(&p->pairs, rest(p), rest_len(p), final, &p->json, &ended);
    emit(p, OUTPUT_CALL_ARGUMENTS, p->json.data, p->json.len);
    if (ended)
        end_call(p);
    return ended;
}

static bool step_python(struct output_parser *p, bool final)
{
    bool ended;

    buffer_clear(&p->json);
    p->at += python_arguments_read(&p->python, rest(p), rest_len(p), final, &p->json, &ended);
    emit(p, OUTPUT_CALL_ARGUMENTS, p->json.data, p->json.len);
    if (ended) {
        end_call(p);
        p->follows = true;
        p->state = NAME;
    }
    return ended;
}

/* After the value of the arguments: the brace, then the end of the call. */
static bool step_behind_value(struct output_parser *p, bool final)
{
    const char *end = p->syntax->ends[0];
    size_t used = 0;

    if (p->place == BEFORE_BRACE) {
        if (object_call_tail(rest(p), rest_len(p), &used) == CALL_NEEDS && !final)
            return false;
        p->at += used;
        p->place = BEFORE_END;
    }
    size_t space = space_prefix(rest(p), rest_len(p));
    enum match match = end ? marker_at(rest(p) + space, rest_len(p) - space, end) : MATCH_NONE;
    if (match == MATCH_PARTIAL && !final)
        return false;
    if (match == MATCH_FULL)
        p->at += space + strlen(end);
    end_call(p);
    return true;
}

/* A marker in the middle of the value ends the call, too. */
static bool step_object(struct output_parser *p, bool final)
{
    const char *markers[N_M];
    bool ended;
    int found;

    if (p->place != IN_VALUE)
        return step_behind_value(p, final);
    list_markers(p, p->syntax, markers);
    markers[M_NAME_END] = NULL;
    size_t plain = marker_scan(rest(p), rest_len(p), markers, N_M, final, &found);
    size_t space = p->extent.begun ? 0 : space_prefix(rest(p), plain);
    p->at += space;
    plain -= space;
    size_t len = json_extent_read(&p->extent, rest(p), plain, &ended);
    emit_next(p, OUTPUT_CALL_ARGUMENTS, len);
    if (ended) {
        p->place = BEFORE_BRACE;
        return true;
    }
    if (found < 0)
        return false;
    if (found == M_END)
        p->at += strlen(markers[found]);
    end_call(p);
    return true;
}

static bool step_arguments(struct output_parser *p, bool final)
{
    const char *markers[N_M];
    int found;

    if (p->syntax->arguments == ARGUMENTS_IN_PAIRS)
        return step_pairs(p, final);
    if (p->syntax->arguments == ARGUMENTS_IN_OBJECT)
        return step_object(p, final);
    if (p->syntax->arguments == ARGUMENTS_IN_PYTHON)
        return step_python(p, final);
    list_markers(p, p->syntax, markers);
    markers[M_NAME_END] = NULL;
    size_t plain = marker_scan(rest(p), rest_len(p), markers, N_M, final, &found);
    emit_next(p, OUTPUT_CALL_ARGUMENTS, plain);
    if (found < 0)
        return false;
    if (found == M_END || found == M_LAST_END)
        p->at += strlen(markers[found]);
    end_call(p); /* another marker is for the next step */
    return true;
}

static bool step(struct output_parser *p, bool final)
{
    switch (p->state) {
    case START:
        return step_start(p, final);
    case REASONING:
        return step_reasoning(p, final);
    case CONTENT:
        return step_content(p, final);
    case BETWEEN:
        return step_between(p, final);
    case NAME:
        return p->syntax->arguments >= ARGUMENTS_IN_OBJECT ? step_head(p, final)
                                                           : step_name(p, final);
    case ARGUMENTS:
        break;
    }
    return step_arguments(p, final);
}

static void run(struct output_parser *p, bool final, output_emit emit_piece, void *arg)
{
    p->emit = emit_piece;
    p->arg = arg;
    while (rest_len(p) > 0 && step(p, final))
        ;
    buffer_consume(&p->held, p->at);
    p->at = 0;
}

void output_parser_push(struct output_parser *p, const char *text, size_t len,
                        output_emit emit_piece, void *arg)
{
    buffer_append(&p->held, text, len);
    run(p, false, emit_piece, arg);
}

void output_parser_finish(struct output_parser *p, output_emit emit_piece, void *arg)
{
    run(p, true, emit_piece, arg);
    if (p->state == ARGUMENTS) {
        if (p->syntax->arguments == ARGUMENTS_IN_PAIRS) {
            buffer_clear(&p->json);
            pairs_cut(&p->pairs, &p->json);
            emit(p, OUTPUT_CALL_ARGUMENTS, p->json.data, p->json.len);
        }
        end_call(p);
    }
    fall_back(p);
}
