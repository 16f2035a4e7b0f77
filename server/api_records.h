/* Several requests in one body, as SageMaker's batch transform sends them: a JSON line each, and a
 * JSON line of the answer for each, in order. A record that fails has its error object as its line.
 * Loop thread only, but for records_read. */
#pragma once

#include "server/answer.h"
#include "server/api_generate.h"

struct records;

/* Reads the lines of `text` to drafts, on any thread. -1 and a fault when there are none, or more
 * than the engine can ever take. */
int records_read(const struct api_service *service, const char *text, size_t len,
                 struct api_draft **drafts, int *n, struct api_fault *fault);
void records_drafts_free(struct api_draft *drafts, int n);

/* Starts every record at once, and answers when the last one is done. NULL and a fault when they
 * are more than the engine can take now. The drafts stay the caller's to free. */
struct records *records_start(const struct api_service *service, struct api_draft *drafts, int n,
                              struct answer answer, struct api_fault *fault);

/* The answer is complete, or nobody wants it any more: cancels what still runs, and frees. */
void records_closed(struct records *records);
