/* mlad batch: the lines of an OpenAI batch file through the engine, without a server.
 *
 *     in   {"custom_id":…, "method":"POST", "url":"/v1/chat/completions"|"/v1/completions",
 * "body":…} out  {"id":…, "custom_id":…, "response":{"status_code":…,"request_id":…,"body":…},
 * "error":null} or   {"id":…, "custom_id":…|null, "response":null,
 * "error":{"code":…,"message":…,"line":…}}
 *
 * A request that is at fault is answered as over HTTP (status_code 400 and an error body); a line
 * that is no request gets an error. Lines come out as they finish. Each custom_id comes out once,
 * however often the run is killed and started again on the same output; one that the input has
 * twice is run once. */
#pragma once

#include "config/options.h"

/* The exit status. */
enum batch_status {
    BATCH_DONE = 0,    /* every line has its answer or error */
    BATCH_FAILED = 1,  /* a file, the model or the device: the log says which */
    BATCH_STOPPED = 3, /* by a signal; the same command goes on where it stopped */
};

/* Runs it; "-" is standard input or output. */
enum batch_status batch_run(const struct options *options, const char *model_dir,
                            const char *input_path, const char *output_path);
