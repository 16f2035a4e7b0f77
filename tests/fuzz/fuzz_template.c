/* Chat templates from any bytes: what compiles is rendered over a conversation, within the bounds.
 * The text has a mark for each byte, and is the same each time. */
#include "tests/fuzz/fuzz.h"

#include "base/json.h"
#include "model/template.h"

#include <string.h>

enum { SOURCE_MAX = 8192, OUTPUT_MAX = 1 << 20 };

static const struct json *conversation(void)
{
    static const char text[] =
        "{\"messages\":[{\"role\":\"system\",\"content\":\"S \\u00e9\"},{\"role\":\"user\","
        "\"content\":\"<think>a</think> b\\n\"},{\"role\":\"assistant\",\"content\":null,"
        "\"reasoning_content\":\"r\",\"tool_calls\":[{\"id\":\"abcdef123\",\"type\":\"function\","
        "\"function\":{\"name\":\"f\",\"arguments\":{\"x\":1.0,\"y\":[null,true,\"\\u65e5\"],"
        "\"z\":123456789012345678901}}}]},{\"role\":\"tool\",\"content\":\"ok\","
        "\"tool_call_id\":\"abcdef123\"},{\"role\":\"assistant\",\"content\":\"<think>t</"
        "think>x\"},"
        "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"hi\"}]}],"
        "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"description\":\"d\\ne\","
        "\"parameters\":{\"type\":\"object\",\"properties\":{\"x\":{\"type\":\"number\"}}}}}],"
        "\"bos_token\":\"<s>\",\"eos_token\":\"</s>\",\"add_generation_prompt\":true,\"n\":-3,"
        "\"f\":0.5,\"documents\":[]}";
    static struct json *root;
    struct error err;

    if (!root)
        root = json_parse(text, strlen(text), &err);
    ASSERT(root);
    return root;
}

static int render(const struct template *t, bool own, struct buffer *out, struct buffer *foreign)
{
    static const char *const marks[] = {"<think>", "</think>", NULL};
    struct template_variable variables[16];
    struct template_options options = {
        .max_steps = 200000,
        .max_memory_bytes = 16 << 20,
        .max_output_bytes = OUTPUT_MAX,
        .max_depth = 600,
        .may_change_own = own,
        .assistant_marks = marks,
        .now_unix_s = 1700000000,
    };
    struct error err;
    size_t n = 0;

    for (const struct json *m = json_first(conversation()); m; m = json_next(m))
        variables[n++] = (struct template_variable){json_key(m), m, json_key(m)[0] != 'b'};
    buffer_init(out, OUTPUT_MAX);
    buffer_init(foreign, OUTPUT_MAX);
    int rc = template_render(t, variables, n, &options, out, foreign, &err);
    ASSERT(rc == 0 ? foreign->len == out->len : out->len == 0 && err.message[0]);
    return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct buffer out, foreign, again, foreign_again;
    struct error err;

    if (size < 1 || size > SOURCE_MAX)
        return 0;
    bool own = data[0] % 2;
    struct template *t = template_compile((const char *)data + 1, size - 1, &err);
    if (!t)
        return 0;
    int rc = render(t, own, &out, &foreign);
    ASSERT(render(t, own, &again, &foreign_again) == rc && again.len == out.len);
    if (out.len > 0) {
        ASSERT(memcmp(out.data, again.data, out.len) == 0);
        ASSERT(memcmp(foreign.data, foreign_again.data, out.len) == 0);
    }
    buffer_free(&out);
    buffer_free(&foreign);
    buffer_free(&again);
    buffer_free(&foreign_again);
    template_free(t);
    return 0;
}
