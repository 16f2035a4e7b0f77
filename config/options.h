/* The option table: every setting of mlad, once. From it come `--flag VALUE`, MLAD_FLAG in the
 * environment, `flag = value` in a file, --help and the generated reference.
 *
 * Later sources win: default, mlad.conf in the model's folder, file (--config), environment,
 * command line. */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* Plain data, read by everyone, written only here. Strings belong to the struct. */
struct options {
    char *model;
    char *served_model_name;
    char *chat_template;
    bool trust_request_chat_template;
    char *host;
    int64_t port;
    int64_t max_model_len;
    int64_t max_num_seqs;
    int64_t max_num_batched_tokens;
    char *device;
    bool dummy_weights;
    bool load_mtp;
    char *kv_dtype;
    double gpu_memory_utilization;
    int64_t num_kv_pages;
    int64_t kv_cache_memory_mib;
    char *look_ahead;
    bool batch_invariant;
    int64_t fail_at_step;
    char *bench_prompts;
    char *bench_batches;
    char *bench_contexts;
    int64_t bench_steps;
    bool json;
    bool enable_prefix_caching;
    int64_t threads;
    int64_t max_queue;
    int64_t queue_timeout_s;
    int64_t max_answer_tokens;
    int64_t max_connections;
    int64_t max_body_mib;
    int64_t max_uploads_mib;
    int64_t max_stream_buffer_kib;
    int64_t request_timeout_s;
    int64_t read_timeout_s;
    int64_t idle_timeout_s;
    int64_t keep_alive_interval_s;
    int64_t drain_timeout_s;
    char *api_key; /* a secret: never logged, never on the command line */
    char *api_key_file;
    char *api_key_header;
    int64_t max_requests_per_minute;
    int64_t max_concurrent_per_key;
    int64_t max_sessions;
    int64_t session_lifetime_s;
    char *cors_origin;
    char *tls_cert;
    char *tls_key;
    bool access_log;
    char *otlp_traces_endpoint;
    char *otlp_headers; /* a secret, as it may hold a key */
    char *otlp_service_name;
    int64_t watchdog_s;
    char *notify_socket;
    char *log_level;
    char *log_format;
    char *config;
    bool help;
    bool version;
};

/* Fills `options` from all sources; `args` are the command line's words after the command. An
 * unknown flag or a value out of range is an error that names it and says what is allowed. On error
 * nothing is left to free. */
int options_load(struct options *options, int n_args, char *const *args, struct error *err);

/* The same, with a file (NULL: none) that every other source overrides. */
int options_load_over(struct options *options, const char *defaults, int n_args, char *const *args,
                      struct error *err);
void options_free(struct options *options);

/* The table as --help shows it. */
void options_print_help(FILE *out);
