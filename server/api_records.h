/* Several requests in one body, as SageMaker's batch transform sends them: a JSON line each, and a
 * JSON line of the answer for each, in order. A record that fails has its error object as its line.
 * Loop thread only. */
#pragma once

#include "server/answer.h"
#include "server/api_generate.h"

struct records;

/* Starts every record of `text` at once and answers when the last one is done. NULL and a fault
 * when there are none, or more than the engine can take now. */
struct records *records_start(const struct api_service *service, const char *text, size_t len,
                              struct answer answer, struct api_fault *fault);

/* The answer is complete, or nobody wants it any more: cancels what still runs, and frees. */
void records_closed(struct records *records);
