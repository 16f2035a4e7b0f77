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

static void read_body(struct api_draft *draft, const struct api_service *service,
                      const struct json *body, api_kind_of kind_of)
{
    const struct engine_model *model = engine_model(service->engine);
    struct api_fault *fault = &draft->fault;

    if (!json_is(body, JSON_OBJECT)) {
        api_fault_set(fault, 400, NULL, "The body must be a JSON object, not %s.",
                      json_type_name(body));
        return;
    }
    if (api_check_model(service, body, fault) ||
        api_params_parse(&draft->params, body, kind_of(body), &model->config, fault))
        return;
    draft->ok = true;
    if (api_constraint_parse(body, &draft->params, model, service->grammars, &draft->constraint,
                             fault) ||
        api_prompts_parse(body, &draft->params, model, &draft->prompts, &draft->n_prompts, fault)) {
        api_draft_free(draft);
        draft->ok = false;
    }
}

void api_draft_read(struct api_draft *draft, const struct api_service *service, const char *text,
                    size_t len, api_kind_of kind_of)
{
    struct error err;
    struct json *body = json_parse(text, len, &err);

    *draft = (struct api_draft){.ok = false};
    if (body)
        read_body(draft, service, body, kind_of);
    else
        api_fault_set(&draft->fault, 400, NULL, "The body can't be read as JSON: %s.", err.message);
    json_free(body);
}

void api_draft_free(struct api_draft *draft)
{
    if (!draft->ok)
        return;
    constraint_free(draft->constraint);
    if (draft->prompts)
        prompts_free(draft->prompts, draft->n_prompts);
    api_params_free(&draft->params);
}

struct generation *api_draft_start(struct api_draft *draft, const struct api_service *service,
                                   struct answer answer, struct api_fault *fault)
{
    if (!draft->ok) {
        *fault = draft->fault;
        return NULL;
    }
    struct generation *gen =
        generations_start(service->generations, answer, &draft->params, draft->prompts,
                          draft->n_prompts, draft->constraint, fault);
    if (!gen) {
        api_draft_free(draft);
        return NULL;
    }
    constraint_free(draft->constraint); /* the rest is the generation's */
    return gen;
}

struct generation *api_generate(const struct api_service *service, const struct json *body,
                                api_kind_of kind_of, struct answer answer, struct api_fault *fault)
{
    struct api_draft draft = {.ok = false};

    read_body(&draft, service, body, kind_of);
    return api_draft_start(&draft, service, answer, fault);
}
