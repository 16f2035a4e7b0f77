/* Bodies of generation requests: JSON, parameters, prompts. */
#include "server/api_params.h"
#include "server/api_prompt.h"
#include "tests/fuzz/fuzz.h"

static const struct engine_model *demo(void)
{
    static struct engine_model model;
    struct error err;

    if (!model.tokenizer) {
        ASSERT(model_config_load(&model.config, "model/demo", &err) == 0);
        model.tokenizer = (struct tokenizer *)fuzz_tokenizer();
        model.max_model_len = 512;
    }
    return &model;
}

static void try_kind(const struct json *body, enum api_kind kind)
{
    struct api_params params;
    struct api_fault fault;
    struct prompt *prompts;
    int n;

    if (api_params_parse(&params, body, kind, &demo()->config, &fault)) {
        ASSERT(fault.status == 400 && fault.message[0]);
        return;
    }
    if (api_prompts_parse(body, &params, demo(), &prompts, &n, &fault) == 0)
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
        try_kind(body, API_CHAT);
        try_kind(body, API_COMPLETION);
    }
    json_free(body);
    return 0;
}
