/* Sends spans to an OpenTelemetry collector: OTLP over HTTP, as JSON.
 *
 * A bounded queue and a thread of its own, so that a collector that is slow or gone costs requests
 * nothing: what does not fit, or could not be delivered after a few tries, is dropped and counted.
 * Off unless an endpoint is set. */
#pragma once

#include "base/buffer.h"
#include "base/error.h"
#include "config/options.h"

#include <stdint.h>

struct otlp;

enum { OTLP_STOP_MS = 2000 };

/* Starts the thread. `model_name` tells this service's spans from those of others. NULL and a
 * message when a setting makes no sense or libcurl is not installed. */
struct otlp *otlp_new(const struct options *options, const char *model_name, struct error *err);

/* Sends what is queued, for at most OTLP_STOP_MS, and ends the thread. */
void otlp_free(struct otlp *otlp);

/* Queues a span (see trace.h); the text is copied. Never waits. */
void otlp_submit(struct otlp *otlp, const struct buffer *span);

/* For metrics: spans that the collector took, and that it will never see. */
uint64_t otlp_sent(const struct otlp *otlp);
uint64_t otlp_dropped(const struct otlp *otlp);
