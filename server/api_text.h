/* What a prompt becomes, without generating: /tokenize and /detokenize as vLLM has them, and
 * /v1/…/render, which answers with the token ids a request would run with. */
#pragma once

#include "server/api_generate.h"

/* Each parses the request's body and writes the answer's JSON into `out`. */
int api_tokenize(const struct api_service *service, const struct json *body, struct buffer *out,
                 struct api_fault *fault);
int api_detokenize(const struct api_service *service, const struct json *body, struct buffer *out,
                   struct api_fault *fault);
int api_render_chat(const struct api_service *service, const struct json *body, struct buffer *out,
                    struct api_fault *fault);
int api_render_completion(const struct api_service *service, const struct json *body,
                          struct buffer *out, struct api_fault *fault);
