/* Bodies of generation requests: JSON, parameters, prompts. */
#include "model/chat_template.h"
#include "model/output_format.h"
#include "server/api_params.h"
#include "server/api_prompt.h"
#include "tests/fuzz/fuzz.h"

/* The demo model with the built-in chat format, or with its template and those of requests. */
static const struct engine_model *demo(bool by_template)
{
    static struct engine_model models[2];
    struct engine_model *model = &models[by_template];
    struct error err;

    if (model->tokenizer)
        return model;
    ASSERT(model_config_load(&model->config, "model/demo", &err) == 0);
    model->tokenizer = (struct tokenizer *)fuzz_tokenizer();
    model->chat_templates = chat_templates_load("model/demo", model->config.model_type,
                                                by_template ? "auto" : "builtin", &err);
    ASSERT(model->chat_templates);
    model->trust_request_chat_template = by_template;
    model->output_format = output_format_find(model->tokenizer);
    model->max_model_len = 512;
    return model;
}

static void try_kind(const struct json *body, enum api_kind kind, const struct engine_model *model)
{
    struct api_params params;
    struct api_fault fault;
    struct prompt *prompts;
    int n;

    if (api_params_parse(&params, body, kind, &model->config, &fault)) {
        ASSERT(fault.status == 400 && fault.message[0]);
        return;
    }
    if (api_prompts_parse(body, &params, model, &prompts, &n, &fault) == 0)
        prompts_free(prompts, n);
    else
        ASSERT(fault.status == 400 && fault.message[0]);
    api_params_free(&params);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err;
    struct json *body = json_parse((const char *)data, size, &err);

    if (body) {
        try_kind(body, API_CHAT, demo(false));
        try_kind(body, API_CHAT, demo(true));
        try_kind(body, API_COMPLETION, demo(false));
    }
    json_free(body);
    return 0;
}
