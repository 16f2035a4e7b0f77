/* Chat templates as a filter, for the differential test: frames in, frames out.
 *
 *   template_cli                  templates as they come
 *   template_cli own              lists and dicts that the template made may be changed
 *   template_cli deepseek_v32     the built-in template of DeepSeek V3.2 instead of those that come
 *
 * A frame is its length in bytes (32 bits, little endian) and the bytes. In come pairs of a
 * template and a JSON array of contexts, whose members are the template's variables; out goes for
 * each context a frame of "=" and the text, or "!" and the message of an error. */
#include "base/buffer.h"
#include "base/memory.h"
#include "model/chat_deepseek_v32.h"
#include "model/template.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FRAME_MAX = 256 * 1024 * 1024, VARIABLES_MAX = 64 };

static _Noreturn void fail(const char *message)
{
    fprintf(stderr, "template_cli: %s\n", message);
    exit(1);
}

/* Reads one frame; false at the end of the input. */
static bool read_frame(struct buffer *frame)
{
    uint32_t len;
    char chunk[64 * 1024];

    buffer_clear(frame);
    if (fread(&len, sizeof(len), 1, stdin) != 1)
        return false;
    while (frame->len < len) {
        size_t want = len - frame->len < sizeof(chunk) ? len - frame->len : sizeof(chunk);
        if (fread(chunk, 1, want, stdin) != want || buffer_append(frame, chunk, want))
            fail("a frame is cut short or too long");
    }
    buffer_append(frame, "", 0);
    return true;
}

static void write_answer(char kind, const char *text, size_t len)
{
    uint32_t size = (uint32_t)len + 1;

    fwrite(&size, sizeof(size), 1, stdout);
    fputc(kind, stdout);
    if (len > 0)
        fwrite(text, 1, len, stdout);
}

static void render(const struct template *t, const struct json *context, bool own)
{
    struct template_variable variables[VARIABLES_MAX];
    struct template_options options = template_defaults;
    struct buffer out;
    struct error err;
    size_t n = 0;

    for (const struct json *m = json_first(context); m && n < VARIABLES_MAX; m = json_next(m))
        variables[n++] = (struct template_variable){json_key(m), m, true};
    options.may_change_own = own;
    buffer_init(&out, FRAME_MAX);
    if (template_render(t, variables, n, &options, &out, NULL, &err))
        write_answer('!', err.message, strlen(err.message));
    else
        write_answer('=', out.data, out.len);
    buffer_free(&out);
}

int main(int argc, char **argv)
{
    bool own = argc == 2 && strcmp(argv[1], "own") == 0;
    bool built_in = argc == 2 && strcmp(argv[1], "deepseek_v32") == 0;
    struct buffer source, contexts;
    struct error err, json_err;

    buffer_init(&source, FRAME_MAX);
    buffer_init(&contexts, FRAME_MAX);
    while (read_frame(&source) && read_frame(&contexts)) {
        if (built_in) {
            buffer_clear(&source);
            buffer_append_str(&source, chat_deepseek_v32);
        }
        struct template *t = template_compile(source.data, source.len, &err);
        struct json *list = json_parse(contexts.data, contexts.len, &json_err);
        if (!list)
            fail(json_err.message);
        for (const struct json *c = json_first(list); c; c = json_next(c))
            if (t)
                render(t, c, own);
            else
                write_answer('!', err.message, strlen(err.message));
        json_free(list);
        template_free(t);
    }
    buffer_free(&contexts);
    buffer_free(&source);
    return fflush(stdout) ? 1 : 0;
}
