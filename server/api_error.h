/* The OpenAI API's error objects: what a client is told, in one struct, so that every layer that
 * finds a client's mistake can say it precisely. */
#pragma once

#include "base/buffer.h"
#include "server/answer.h"

/* One refusal. `type` and `code` point to constants; `param` may be empty. */
struct api_fault {
    int status;
    const char *type;
    const char *code; /* NULL: null in the answer */
    char param[64];   /* the field that is wrong, or "" for null */
    char message[1024];
    int retry_after_s; /* 0: no Retry-After header */
};

/* Fills the fault; returns -1. The `type` follows from the status. */
int api_fault_set(struct api_fault *fault, int status, const char *param, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* {"error":{"message":…,"type":…,"param":…,"code":…}} */
void api_fault_write(const struct api_fault *fault, struct buffer *out);

/* Answers with the fault. */
void api_fault_respond(const struct api_fault *fault, const struct answer *answer);
