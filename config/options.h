/* The option table: every setting of mlad, once. From it come `--flag VALUE`, MLAD_FLAG in the
 * environment, `flag = value` in a file, --help and the generated reference.
 *
 * Later sources win: default, file (--config), environment, command line. */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* Plain data, read by everyone, written only here. Strings belong to the struct. */
struct options {
    char *model;
    char *served_model_name;
    char *host;
    int64_t port;
    int64_t max_model_len;
    int64_t max_num_seqs;
    int64_t max_num_batched_tokens;
    int64_t num_kv_pages;
    int64_t kv_cache_memory_mib;
    bool enable_prefix_caching;
    int64_t threads;
    int64_t max_queue;
    int64_t max_connections;
    int64_t max_body_mib;
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
    char *cors_origin;
    bool access_log;
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
void options_free(struct options *options);

/* The table as --help shows it. */
void options_print_help(FILE *out);
