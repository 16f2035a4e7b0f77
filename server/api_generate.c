#include "server/api_generate.h"

#include "server/api_constraint.h"
#include "server/api_prompt.h"

#include <string.h>

enum api_kind api_always_chat(const struct json *body)
{
    (void)body;
    return API_CHAT;
}

enum api_kind api_always_completion(const struct json *body)
{
    (void)body;
    return API_COMPLETION;
}

enum api_kind api_by_fields(const struct json *body)
{
    return json_get(body, "messages") ? API_CHAT : API_COMPLETION;
}

int api_check_model(const struct api_service *service, const struct json *body,
                    struct api_fault *fault)
{
    const struct json *model = json_get(body, "model");

    if (!model || json_type(model) == JSON_NULL)
        return 0;
    if (!json_is(model, JSON_STRING))
        return api_fault_set(fault, 400, "model", "'model' must be a string, not %s.",
                             json_type_name(model));
    if (!*json_string(model) || strcmp(json_string(model), service->model_name) == 0)
        return 0;
    api_fault_set(fault, 404, "model", "The model '%.200s' does not exist; this server has '%s'.",
                  json_string(model), service->model_name);
    fault->code = "model_not_found";
    return -1;
}

struct generation *api_generate(const struct api_service *service, const struct json *body,
                                api_kind_of kind_of, struct answer answer, struct api_fault *fault)
{
    const struct engine_model *model = engine_model(service->engine);
    struct generation *gen = NULL;
    struct constraint *constraint = NULL;
    struct prompt *prompts = NULL;
    struct api_params params;
    int n_prompts = 0;

    if (!json_is(body, JSON_OBJECT)) {
        api_fault_set(fault, 400, NULL, "The body must be a JSON object, not %s.",
                      json_type_name(body));
        return NULL;
    }
    if (api_check_model(service, body, fault) ||
        api_params_parse(&params, body, kind_of(body), &model->config, fault))
        return NULL;
    if (api_constraint_parse(body, &params, model, service->grammars, &constraint, fault) == 0 &&
        api_prompts_parse(body, &params, model, &prompts, &n_prompts, fault) == 0)
        gen = generations_start(service->generations, answer, &params, prompts, n_prompts,
                                constraint, fault);
    constraint_free(constraint);
    if (!gen) {
        if (prompts)
            prompts_free(prompts, n_prompts);
        api_params_free(&params);
    }
    return gen;
}

struct generation *api_generate_text(const struct api_service *service, const char *text,
                                     size_t len, api_kind_of kind_of, struct answer answer,
                                     struct api_fault *fault)
{
    struct error err;
    struct json *body = json_parse(text, len, &err);

    if (!body) {
        api_fault_set(fault, 400, NULL, "The body is not valid JSON: %s.", err.message);
        return NULL;
    }
    struct generation *gen = api_generate(service, body, kind_of, answer, fault);
    json_free(body);
    return gen;
}
