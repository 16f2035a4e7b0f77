#include "server/api_error.h"

#include "base/json.h"

#include <stdarg.h>
#include <stdio.h>

enum { FAULT_BODY_MAX = 1 << 16 };

static const struct {
    int status;
    const char *type, *code;
} kinds[] = {
    {400, "invalid_request_error", NULL},
    {401, "invalid_request_error", "invalid_api_key"},
    {404, "invalid_request_error", "not_found"},
    {405, "invalid_request_error", "method_not_allowed"},
    {408, "timeout_error", "timeout"},
    {413, "invalid_request_error", "request_too_large"},
    {415, "invalid_request_error", "unsupported_media_type"},
    {429, "rate_limit_error", "queue_full"},
    {503, "service_unavailable_error", NULL},
    {500, "server_error", NULL}, /* and every other status */
};

int api_fault_set(struct api_fault *fault, int status, const char *param, const char *format, ...)
{
    va_list args;
    size_t i = 0;

    while (kinds[i].status != status && kinds[i].status != 500)
        i++;
    *fault = (struct api_fault){.status = status, .type = kinds[i].type, .code = kinds[i].code};
    snprintf(fault->param, sizeof(fault->param), "%s", param ? param : "");
    va_start(args, format);
    vsnprintf(fault->message, sizeof(fault->message), format, args);
    va_end(args);
    return -1;
}

void api_fault_write(const struct api_fault *fault, struct buffer *out)
{
    buffer_append_str(out, "{\"error\":{\"message\":");
    json_write_string(out, fault->message, -1);
    buffer_printf(out, ",\"type\":\"%s\",\"param\":", fault->type);
    if (fault->param[0])
        json_write_string(out, fault->param, -1);
    else
        buffer_append_str(out, "null");
    if (fault->code)
        buffer_printf(out, ",\"code\":\"%s\"}}", fault->code);
    else
        buffer_append_str(out, ",\"code\":null}}");
}

void api_fault_respond(const struct api_fault *fault, const struct answer *answer)
{
    struct buffer body;
    char seconds[16];

    buffer_init(&body, FAULT_BODY_MAX);
    api_fault_write(fault, &body);
    if (fault->retry_after_s) {
        snprintf(seconds, sizeof(seconds), "%d", fault->retry_after_s);
        answer->ops->add_header(answer->to, "Retry-After", seconds);
    }
    answer->ops->respond(answer->to, fault->status, "application/json", body.data, body.len);
    buffer_free(&body);
}
