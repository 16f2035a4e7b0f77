/* The tokenizer as a filter, for the differential test: frames in, frames out.
 *
 *   tokenize_cli DIR encode   text -> ids, text     added tokens recognised; the text is decoded
 *   tokenize_cli DIR text     text -> ids, text     text only
 *   tokenize_cli DIR chat     chat -> ids, text     the built-in chat format
 *   tokenize_cli DIR decode   ids -> text           token by token
 *
 * A frame is its length in bytes (32 bits, little endian) and the bytes; ids are 32 bits each. A
 * chat is a byte of flags (1: add_generation_prompt, 2: continue_final_message) and "role\0text\0"
 * for each message. Times go to stderr. */
#include "base/buffer.h"
#include "base/clock.h"
#include "base/memory.h"
#include "model/chat.h"
#include "model/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FRAME_MAX = 256 * 1024 * 1024, MESSAGES_MAX = 256 };

static _Noreturn void fail(const char *message)
{
    fprintf(stderr, "tokenize_cli: %s\n", message);
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
    return true;
}

static void write_frame(const void *data, size_t len)
{
    uint32_t size = (uint32_t)len;

    fwrite(&size, sizeof(size), 1, stdout);
    if (len > 0)
        fwrite(data, 1, len, stdout);
}

static void write_text(const struct tokenizer *tok, const int32_t *ids, size_t count)
{
    struct detokenizer detok;
    struct buffer text;

    buffer_init(&text, FRAME_MAX);
    detokenizer_init_whole(&detok);
    for (size_t i = 0; i < count; i++)
        detokenizer_push(&detok, tok, ids[i], false, &text);
    detokenizer_finish(&detok, &text);
    write_frame(text.data, text.len);
    buffer_free(&text);
}

/* Encodes a frame that holds a chat. */
static int encode_chat(const struct tokenizer *tok, const struct buffer *frame,
                       struct token_list *ids, struct error *err)
{
    struct chat_message messages[MESSAGES_MAX];

    if (frame->len == 0)
        fail("a chat has at least its flags");
    const char *at = frame->data + 1, *end = frame->data + frame->len;
    size_t count = 0;
    struct chat_options options = {.add_generation_prompt = frame->data[0] & 1,
                                   .continue_final_message = frame->data[0] & 2};

    for (; at < end && count < MESSAGES_MAX; count++) {
        messages[count] = (struct chat_message){.role = at, .content = at + strlen(at) + 1};
        at = messages[count].content + strlen(messages[count].content) + 1;
    }
    return chat_encode(tok, messages, count, options, ids, err);
}

int main(int argc, char **argv)
{
    struct error err;
    struct buffer frame;
    struct token_list ids;
    size_t bytes = 0;

    if (argc != 3)
        fail("usage: tokenize_cli DIR encode|text|chat|decode");
    int64_t start_us = clock_us(), encode_us = 0;
    struct tokenizer *tok = tokenizer_load(argv[1], &err);
    if (!tok)
        fail(err.message);
    fprintf(stderr, "load_ms=%.2f", (double)(clock_us() - start_us) / 1e3);
    buffer_init(&frame, FRAME_MAX);
    token_list_init(&ids, FRAME_MAX);
    while (read_frame(&frame)) {
        bytes += frame.len;
        if (strcmp(argv[2], "decode") == 0) {
            int32_t *copy = mem_copy(frame.data ? frame.data : "", frame.len);
            write_text(tok, copy, frame.len / sizeof(*copy));
            free(copy);
            continue;
        }
        ids.len = 0;
        start_us = clock_us();
        int rc = strcmp(argv[2], "chat") == 0
                     ? encode_chat(tok, &frame, &ids, &err)
                     : tokenizer_encode(tok, frame.data, frame.len,
                                        strcmp(argv[2], "text") == 0 ? ENCODE_TEXT_ONLY
                                                                     : ENCODE_WITH_SPECIALS,
                                        &ids, &err);
        encode_us += clock_us() - start_us;
        if (rc)
            fail(err.message);
        write_frame(ids.ids, ids.len * sizeof(*ids.ids));
        write_text(tok, ids.ids, ids.len);
    }
    fprintf(stderr, " encode_ms=%.2f bytes=%zu\n", (double)encode_us / 1e3, bytes);
    token_list_free(&ids);
    buffer_free(&frame);
    tokenizer_free(tok);
    return fflush(stdout) ? 1 : 0;
}
