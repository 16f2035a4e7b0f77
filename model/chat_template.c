#include "model/chat_template.h"

#include "base/file.h"
#include "base/memory.h"
#include "base/utf8.h"
#include "model/chat_deepseek_v32.h"
#include "model/chat_messages.h"
#include "model/output_format.h"
#include "model/template.h"

#include <stdlib.h>
#include <string.h>

enum {
    CONFIG_MAX = 64 << 20,   /* bytes of tokenizer_config.json: long lists of tokens */
    CONTEXT_MAX = 256 << 20, /* of a request's variables, and of a prompt */
    NAMED_MAX = 16,
    VARIABLES_MAX = 64,
};

struct named_template {
    char *name;
    struct template *compiled;
    bool knows_developers; /* it speaks of the role */
};

struct chat_templates {
    struct named_template named[NAMED_MAX];
    int n;
    struct json *specials; /* an object: bos_token, eos_token, ... */
    struct error problem;  /* an empty message: none */
};

/* ---- loading ------------------------------------------------------------------------------- */

/* Whether a template's text speaks of the role that OpenAI's clients now give to system messages.
 */
static bool knows_developers(const char *text, size_t len)
{
    return memmem(text, len, "developer", strlen("developer")) != NULL;
}

static void add_template(struct chat_templates *t, const char *name, const char *text, size_t len,
                         const char *where)
{
    struct error err;

    if (t->n == NAMED_MAX || t->problem.message[0])
        return;
    struct template *compiled = template_compile(text, len, &err);
    if (!compiled) {
        t->problem = err;
        error_prefix(&t->problem, "%s", where);
        return;
    }
    t->named[t->n++] =
        (struct named_template){mem_strdup(name), compiled, knows_developers(text, len)};
}

/* A file that holds one template. -1 when it can't be read. */
static int add_file(struct chat_templates *t, const char *name, const char *path, struct error *err)
{
    struct buffer text;

    buffer_init(&text, TEMPLATE_MAX_BYTES);
    if (file_read(path, &text, err))
        return -1;
    add_template(t, name, text.data ? text.data : "", text.len, path);
    buffer_free(&text);
    return 0;
}

/* The "chat_template" of a JSON file: a text, a list of {"name", "template"}, or an object of
 * texts. */
static void add_member(struct chat_templates *t, const struct json *value, const char *path)
{
    if (json_is(value, JSON_STRING))
        add_template(t, "default", json_string(value), strlen(json_string(value)), path);
    if (!json_is(value, JSON_ARRAY) && !json_is(value, JSON_OBJECT))
        return;
    for (const struct json *m = json_first(value); m; m = json_next(m)) {
        bool object = json_is(value, JSON_OBJECT);
        const struct json *name = json_get(m, "name"), *text = object ? m : json_get(m, "template");
        const char *word = object                       ? json_key(m)
                           : json_is(name, JSON_STRING) ? json_string(name)
                                                        : "default";
        if (json_is(text, JSON_STRING))
            add_template(t, word, json_string(text), strlen(json_string(text)), path);
    }
}

/* The object of a file in the folder; NULL when there is none. */
static struct json *read_object(const char *dir, const char *name, struct error *err)
{
    char *path = path_join(dir, name);
    struct json *root = NULL;

    err->message[0] = '\0';
    if (file_exists(path))
        root = json_parse_file(path, CONFIG_MAX, err);
    if (root && !json_is(root, JSON_OBJECT)) {
        error_set(err, "%s: must hold a JSON object", path);
        json_free(root);
        root = NULL;
    }
    free(path);
    return root;
}

/* The named templates beside chat_template.jinja; transformers writes no other names than this. */
static int add_tool_use(struct chat_templates *t, const char *dir, struct error *err)
{
    char *path = path_join(dir, "additional_chat_templates/tool_use.jinja");
    int rc = file_exists(path) ? add_file(t, "tool_use", path, err) : 0;

    free(path);
    return rc;
}

static int load_templates(struct chat_templates *t, const char *dir, const struct json *config,
                          struct error *err)
{
    char *path = path_join(dir, "chat_template.jinja");
    bool exists = file_exists(path);
    int rc = exists ? add_file(t, "default", path, err) : 0;

    free(path);
    if (rc || exists)
        return rc ? rc : add_tool_use(t, dir, err);
    add_member(t, json_get(config, "chat_template"), "tokenizer_config.json: chat_template");
    if (t->n > 0 || t->problem.message[0])
        return 0;
    struct json *file = read_object(dir, "chat_template.json", err);
    if (!file)
        return err->message[0] ? -1 : 0;
    add_member(t, json_get(file, "chat_template"), "chat_template.json");
    json_free(file);
    return 0;
}

/* The text of a special token: itself, or the "content" of an object. */
static const struct json *special_text(const struct json *value)
{
    const struct json *text = json_is(value, JSON_OBJECT) ? json_get(value, "content") : value;

    return json_is(text, JSON_STRING) ? text : NULL;
}

/* {"bos_token": "<s>", ...} of tokenizer_config.json, or else of special_tokens_map.json. */
static struct json *load_specials(const struct json *config, const struct json *map)
{
    static const char *const names[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                        "pad_token", "cls_token", "mask_token"};
    struct buffer text;
    struct error err;
    bool first = true;

    buffer_init(&text, CONFIG_MAX);
    buffer_append_str(&text, "{");
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const struct json *value = special_text(json_get(config, names[i]));
        if (!value)
            value = special_text(json_get(map, names[i]));
        if (!value)
            continue;
        buffer_printf(&text, "%s\"%s\":", first ? "" : ",", names[i]);
        json_write_string(&text, json_string(value), -1);
        first = false;
    }
    buffer_append_str(&text, "}");
    struct json *specials = json_parse(text.data, text.len, &err);
    buffer_free(&text);
    return specials;
}

/* For families that ship no template. */
static void add_built_in(struct chat_templates *t, const char *model_type)
{
    if (t->n == 0 && !t->problem.message[0] && strcmp(model_type, "deepseek_v32") == 0)
        add_template(t, "default", chat_deepseek_v32, sizeof(chat_deepseek_v32) - 1, model_type);
}

struct chat_templates *chat_templates_load(const char *dir, const char *model_type,
                                           const char *choice, struct error *err)
{
    struct chat_templates *t = mem_zalloc(1, sizeof(*t));
    struct json *config, *map = NULL;
    int rc = 0;

    config = read_object(dir, "tokenizer_config.json", err);
    if (!config && err->message[0])
        goto fail;
    map = read_object(dir, "special_tokens_map.json", err);
    if (!map && err->message[0])
        goto fail;
    t->specials = load_specials(config, map);
    if (strcmp(choice, "auto") == 0)
        rc = load_templates(t, dir, config, err);
    else if (strcmp(choice, "builtin") != 0)
        rc = add_file(t, "default", choice, err);
    if (rc)
        goto fail;
    add_built_in(t, model_type);
    if (strcmp(choice, "auto") != 0 && t->problem.message[0]) { /* the user asked for it */
        *err = t->problem;
        goto fail;
    }
    json_free(config);
    json_free(map);
    return t;
fail:
    json_free(config);
    json_free(map);
    chat_templates_free(t);
    return NULL;
}

void chat_templates_free(struct chat_templates *t)
{
    if (!t)
        return;
    for (int i = 0; i < t->n; i++) {
        free(t->named[i].name);
        template_free(t->named[i].compiled);
    }
    json_free(t->specials);
    free(t);
}

bool chat_templates_any(const struct chat_templates *t)
{
    return t->n > 0;
}

const char *chat_templates_problem(const struct chat_templates *t)
{
    return t->problem.message[0] ? t->problem.message : NULL;
}

/* ---- rendering ----------------------------------------------------------------------------- */

static const struct named_template *find_template(const struct chat_templates *t, bool tools)
{
    const char *wanted = tools ? "tool_use" : "default";

    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < t->n; i++)
            if (strcmp(t->named[i].name, wanted) == 0)
                return &t->named[i];
        wanted = "default";
    }
    return &t->named[0];
}

static bool is_reserved(const char *name)
{
    static const char *const names[] = {
        "messages",      "tools",   "documents", "add_generation_prompt", "continue_final_message",
        "chat_template", "tokenize"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return false;
}

static enum chat_template_fault check_kwargs(const struct json *kwargs, struct error *err)
{
    if (kwargs && json_count(kwargs) > VARIABLES_MAX / 2) {
        error_set(err, "there may be at most %d variables", VARIABLES_MAX / 2);
        return CHAT_FAULT_KWARGS;
    }
    for (const struct json *m = kwargs ? json_first(kwargs) : NULL; m; m = json_next(m))
        if (is_reserved(json_key(m))) {
            error_set(err, "'%.60s' is a field of the request, not a variable of its own",
                      json_key(m));
            return CHAT_FAULT_KWARGS;
        }
    return CHAT_FAULT_NONE;
}

/* How much a model should think, for templates that know only whether: "none" is not at all. */
static enum chat_template_fault add_effort(const struct template *t,
                                           const struct chat_template_request *request,
                                           struct buffer *context, struct error *err)
{
    static const char *const switches[] = {"enable_thinking", "thinking"};
    const char *effort = request->reasoning_effort;
    bool think = effort && strcmp(effort, "none") != 0;
    bool takes_words = template_uses(t, "reasoning_effort"), known = !effort || takes_words;

    context->len--; /* the object goes on */
    for (size_t i = 0; effort && i < 2; i++) {
        if (!template_uses(t, switches[i]) || (takes_words && think))
            continue;
        known = true;
        if (!json_get(request->kwargs, switches[i]))
            buffer_printf(context, ",\"%s\":%s", switches[i], think ? "true" : "false");
    }
    buffer_append_str(context, "}");
    if (known || !think)
        return CHAT_FAULT_NONE;
    error_set(err, "the chat template of this model takes no reasoning effort");
    return CHAT_FAULT_EFFORT;
}

/* Renders over the variables of `context` and the special tokens. */
static int render(const struct chat_templates *t, const struct template *template,
                  const struct json *context, const struct output_format *format,
                  struct buffer *text, struct buffer *foreign, struct error *err)
{
    const char *marks[] = {format->think_begin, format->think_end, NULL};
    struct template_variable variables[VARIABLES_MAX];
    struct template_options options = template_defaults;
    size_t n = 0;

    for (const struct json *m = json_first(t->specials); m; m = json_next(m))
        variables[n++] = (struct template_variable){json_key(m), m, false};
    for (const struct json *m = json_first(context); m && n < VARIABLES_MAX; m = json_next(m))
        variables[n++] = (struct template_variable){json_key(m), m, true};
    options.may_change_own = true; /* Kimi K2's template appends to its own lists */
    options.max_output_bytes = CONTEXT_MAX;
    options.assistant_marks = format->think_begin ? marks : NULL;
    return template_render(template, variables, n, &options, text, foreign, err);
}

/* ---- the end of the prompt ----------------------------------------------------------------- */

/* Where `mark` stands last in the text, without foreign bytes unless they may be; -1: nowhere. */
static long find_last(const struct buffer *text, const struct buffer *foreign, const char *mark)
{
    size_t len = strlen(mark);

    for (size_t at = text->len >= len ? text->len - len + 1 : 0; at-- > 0;)
        if (text->data[at] == *mark && memcmp(text->data + at, mark, len) == 0 &&
            (!foreign || !memchr(foreign->data + at, 1, len)))
            return (long)at;
    return -1;
}

static size_t trimmed(const struct buffer *text, size_t len)
{
    while (len > 0 && strchr(" \t\r\n", text->data[len - 1]) && text->data[len - 1])
        len--;
    return len;
}

/* Cuts the text where the final message ends, as transformers does: with the white space that the
 * template left. */
static enum chat_template_fault cut_at_tag(struct buffer *text, struct error *err)
{
    const size_t tag_len = strlen(CHAT_CONTINUE_TAG);
    struct buffer tag = {.data = (char *)CHAT_CONTINUE_TAG, .len = tag_len};
    char bare[sizeof(CHAT_CONTINUE_TAG)] = "";

    memcpy(bare, CHAT_CONTINUE_TAG, trimmed(&tag, tag_len));
    long at = find_last(text, NULL, bare);
    if (at < 0) {
        error_set(err, "continue_final_message: the chat template leaves the content of the last "
                       "message out");
        return CHAT_FAULT_MESSAGES;
    }
    bool whole = text->len - (size_t)at >= tag_len &&
                 memcmp(text->data + at, CHAT_CONTINUE_TAG, tag_len) == 0;
    text->len = whole ? (size_t)at : trimmed(text, (size_t)at);
    return CHAT_FAULT_NONE;
}

/* Whether the prompt ends inside reasoning: the template, or an assistant's text that is continued,
 * opened it. */
static bool ends_in_reasoning(const struct output_format *format, const struct buffer *text,
                              const struct buffer *foreign, bool continued)
{
    if (!format->think_begin)
        return false;
    long begin = find_last(text, foreign, format->think_begin);
    if (continued)
        return begin > find_last(text, foreign, format->think_end);
    return begin >= 0 && (size_t)begin + strlen(format->think_begin) == trimmed(text, text->len);
}

/* ---- prompts ------------------------------------------------------------------------------- */

static enum chat_template_fault check_request(const struct chat_template_request *request,
                                              struct error *err)
{
    const struct json *last = NULL, *calls;

    for (const struct json *m = json_first(request->messages); m; m = json_next(m))
        last = m;
    if (!request->continue_final_message)
        return check_kwargs(request->kwargs, err);
    calls = json_get(last, "tool_calls");
    const struct json *role = json_get(last, "role");
    if (!json_is(role, JSON_STRING) || strcmp(json_string(role), "assistant") != 0) {
        error_set(err, "continue_final_message needs a last message with the role \"assistant\"");
        return CHAT_FAULT_MESSAGES;
    }
    if (json_is(calls, JSON_ARRAY) && json_first(calls)) {
        error_set(err, "continue_final_message needs a last message without tool_calls");
        return CHAT_FAULT_MESSAGES;
    }
    return check_kwargs(request->kwargs, err);
}

/* The rendered text of a request. */
static enum chat_template_fault
render_request(const struct chat_templates *t, const struct named_template *named,
               const struct output_format *format, const struct chat_template_request *request,
               struct buffer *text, struct buffer *foreign, struct error *err)
{
    const struct template *template = named->compiled;
    struct chat_shape shape = {template_loops_over(template, "content"), named->knows_developers};
    struct buffer context;
    enum chat_template_fault fault = check_request(request, err);

    if (fault)
        return fault;
    if (request->tools && !template_uses(template, "tools")) {
        error_set(err, "the chat template of this model takes none; another one can be given with "
                       "--chat-template");
        return CHAT_FAULT_TOOLS;
    }
    buffer_init(&context, CONTEXT_MAX);
    chat_write_context(&context, request, shape);
    fault = add_effort(template, request, &context, err);
    if (!fault && context.overflowed) {
        error_set(err, "the messages have more than %d bytes", CONTEXT_MAX);
        fault = CHAT_FAULT_LENGTH;
    }
    struct json *parsed = fault ? NULL : json_parse(context.data, context.len, err);
    buffer_free(&context);
    if (!fault && (!parsed || render(t, template, parsed, format, text, foreign, err))) {
        error_prefix(err, "chat template");
        fault = CHAT_FAULT_MESSAGES;
    }
    json_free(parsed);
    if (!fault && request->continue_final_message)
        fault = cut_at_tag(text, err);
    return fault;
}

enum chat_template_fault chat_templates_encode(const struct chat_templates *t,
                                               const struct tokenizer *tok,
                                               const struct output_format *format,
                                               const struct chat_template_request *request,
                                               struct token_list *out, bool *open_reasoning,
                                               struct error *err)
{
    const char *source = request->own_template;
    struct named_template own = {.name = NULL};
    struct buffer text, foreign;

    if (source && !(own.compiled = template_compile(source, strlen(source), err)))
        return CHAT_FAULT_TEMPLATE;
    own.knows_developers = source && knows_developers(source, strlen(source));
    buffer_init(&text, CONTEXT_MAX);
    buffer_init(&foreign, CONTEXT_MAX);
    enum chat_template_fault fault =
        render_request(t, source ? &own : find_template(t, request->tools != NULL), format, request,
                       &text, &foreign, err);
    if (!fault && text.len > 0) {
        *open_reasoning =
            ends_in_reasoning(format, &text, &foreign, request->continue_final_message);
        if (tokenizer_encode_marked(tok, text.data, text.len, (const uint8_t *)foreign.data, out,
                                    err))
            fault = CHAT_FAULT_LENGTH;
    }
    if (!fault && text.len == 0) {
        error_set(err, "the chat template makes an empty prompt of the messages");
        fault = CHAT_FAULT_MESSAGES;
    }
    buffer_free(&text);
    buffer_free(&foreign);
    template_free(own.compiled);
    return fault;
}

int chat_close_reasoning(const struct output_format *format, const struct tokenizer *tok,
                         struct token_list *tokens, struct buffer *text, struct error *err)
{
    buffer_append_str(text, format->think_end);
    return tokenizer_encode(tok, format->think_end, strlen(format->think_end), ENCODE_WITH_SPECIALS,
                            tokens, err);
}
