/* Checked reading of a JSON object's keys: each value has the type and range its reader states, or
 * the load ends with a sentence such as
 *
 *     model/config.json: "kv_lora_rank" must be a whole number from 1 to 4096, got "x"
 *
 * All functions return 0, or -1 with the message in `err`. A fallback is what an absent key means,
 * and null too unless the function says otherwise; functions without a fallback require the key. */
#pragma once

#include "base/error.h"
#include "base/json.h"

#include <stdbool.h>
#include <stdint.h>

/* A key that a file calls something else; `there` may be a path: "moe.num_experts". */
struct key_name {
    const char *key, *there;
};

struct keys {
    const char *file;   /* for messages */
    const char *within; /* what stands before the key in messages: "", "rope_scaling." */
    const struct json *object;
    struct error *err;
    const struct key_name *names; /* up to one of key NULL; NULL: keys are called what they are */
};

/* The key's value, or NULL. */
const struct json *keys_get(const struct keys *keys, const char *key);

bool keys_present(const struct keys *keys, const char *key); /* there, and not null */

int keys_int(const struct keys *keys, const char *key, int32_t min, int32_t max, int32_t *out);
int keys_int_or(const struct keys *keys, const char *key, int32_t fallback, int32_t min,
                int32_t max, int32_t *out);

/* A whole number from 0 to `max`, where null means 0: the model has none of these. */
int keys_count_or(const struct keys *keys, const char *key, int32_t fallback, int32_t max,
                  int32_t *out);

int keys_number(const struct keys *keys, const char *key, double min, double max, double *out);
int keys_number_or(const struct keys *keys, const char *key, double fallback, double min,
                   double max, double *out);

/* null reads as false, as None does in Python's conditions. */
int keys_bool_or(const struct keys *keys, const char *key, bool fallback, bool *out);

/* One of the NULL-terminated `choices`. */
int keys_choice_or(const struct keys *keys, const char *key, const char *fallback,
                   const char *const *choices, const char **out);

/* Writes the message for a value that is not what `expected` says ("a list of token ids"). */
int keys_refuse(const struct keys *keys, const char *key, const char *expected);
