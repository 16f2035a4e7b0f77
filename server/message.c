#include "server/message.h"

#include "base/clock.h"
#include "base/json.h"
#include "model/output_scan.h"

enum { PART_MAX = 1 << 28 }; /* bytes */

void message_init(struct message *message, const struct output_format *format,
                  struct output_options options, bool stream)
{
    *message = (struct message){.stream = stream, .short_ids = output_format_has_short_ids(format)};
    message->parser = output_parser_new(format, options);
    buffer_init(&message->content, PART_MAX);
    buffer_init(&message->reasoning, PART_MAX);
    buffer_init(&message->calls, PART_MAX);
    buffer_init(&message->arguments, PART_MAX);
}

void message_free(struct message *message)
{
    output_parser_free(message->parser);
    buffer_free(&message->content);
    buffer_free(&message->reasoning);
    buffer_free(&message->calls);
    buffer_free(&message->arguments);
}

/* {"index":…,"id":…,"type":"function","function":{"name":…,"arguments": — what follows differs. */
static void begin_call(struct message *m, const struct output_piece *piece)
{
    struct buffer *out = &m->calls;

    buffer_append_str(out, out->len ? ",{" : "{");
    if (m->stream)
        buffer_printf(out, "\"index\":%d,", piece->call);
    buffer_append_str(out, "\"id\":");
    if (piece->id)
        json_write_string(out, piece->id, (long)piece->id_len);
    else if (m->short_ids)
        buffer_printf(out, "\"%09llx\"", (unsigned long long)clock_entropy() >> 28);
    else
        buffer_printf(out, "\"call_%016llx\"", (unsigned long long)clock_entropy());
    buffer_append_str(out, ",\"type\":\"function\",\"function\":{\"name\":");
    json_write_string(out, piece->text, (long)piece->len);
    buffer_append_str(out, m->stream ? ",\"arguments\":\"\"}}" : ",\"arguments\":");
    m->n_calls++;
    m->call_open = true;
    m->extent = (struct json_extent){.depth = 0};
}

/* Notes where the arguments' JSON ends. */
static void follow_arguments(struct message *m, const char *text, size_t len)
{
    size_t space = m->extent.begun ? 0 : space_prefix(text, len);
    bool ended;

    json_extent_read(&m->extent, text + space, len - space, &ended);
    m->call_open = !ended;
}

static void add_arguments(struct message *m, const struct output_piece *piece)
{
    struct buffer *out = &m->calls;

    if (m->call_open)
        follow_arguments(m, piece->text, piece->len);
    if (!m->stream) {
        buffer_append(&m->arguments, piece->text, piece->len);
        return;
    }
    buffer_printf(out, "%s{\"index\":%d,\"function\":{\"arguments\":", out->len ? "," : "",
                  piece->call);
    json_write_string(out, piece->text, (long)piece->len);
    buffer_append_str(out, "}}");
}

static void end_call(struct message *m)
{
    m->n_ended++;
    m->call_open = false;
    if (m->stream)
        return;
    json_write_string(&m->calls, m->arguments.data ? m->arguments.data : "",
                      (long)m->arguments.len);
    buffer_append_str(&m->calls, "}}");
    buffer_clear(&m->arguments);
}

static void take_piece(void *arg, const struct output_piece *piece)
{
    struct message *m = arg;

    switch (piece->part) {
    case OUTPUT_REASONING:
        buffer_append(&m->reasoning, piece->text, piece->len);
        break;
    case OUTPUT_CONTENT:
        buffer_append(&m->content, piece->text, piece->len);
        break;
    case OUTPUT_CALL_NAME:
        begin_call(m, piece);
        break;
    case OUTPUT_CALL_ARGUMENTS:
        add_arguments(m, piece);
        break;
    case OUTPUT_CALL_END:
        end_call(m);
        break;
    }
}

void message_push(struct message *message, const char *text, size_t len, int32_t tokens)
{
    output_parser_push(message->parser, text, len, take_piece, message);
    if (output_parser_in_reasoning(message->parser))
        message->reasoning_tokens += tokens;
}

void message_finish(struct message *message)
{
    output_parser_finish(message->parser, take_piece, message);
}

bool message_has_delta(const struct message *message)
{
    return message->content.len || message->reasoning.len || message->calls.len;
}

void message_clear_delta(struct message *message)
{
    buffer_clear(&message->content);
    buffer_clear(&message->reasoning);
    buffer_clear(&message->calls);
}
