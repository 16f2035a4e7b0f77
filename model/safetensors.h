/* Tensors of a checkpoint folder: model.safetensors, or the shards that
 * model.safetensors.index.json names (or consolidated.*, as Mistral calls its own). Headers are
 * read and checked at open; data is read by pread when asked for, by any number of threads at once.
 * Nothing in a file is trusted: a lying header is an error, never a crash. */
#pragma once

#include "base/error.h"
#include "kernels/tensor.h"

#include <stdbool.h>

struct safetensors;

/* Opens all shards of `dir`. NULL and a message naming the file on error. */
struct safetensors *safetensors_open(const char *dir, struct error *err);
void safetensors_close(struct safetensors *st);

bool safetensors_has(const struct safetensors *st, const char *name);

/* Path of the file that holds the tensor, or NULL. */
const char *safetensors_file(const struct safetensors *st, const char *name);

/* Shape and dtype of a tensor; `info->data` is NULL. -1 and a message when there is none of that
 * name, or its dtype is none that `enum dtype` has. */
int safetensors_info(const struct safetensors *st, const char *name, struct tensor *info,
                     struct error *err);

/* Reads a tensor's bytes into `out` (tensor_bytes of its info). */
int safetensors_read(const struct safetensors *st, const char *name, void *out, struct error *err);

/* Reads `len` of its bytes from `first` on; they must be in it (asserted). */
int safetensors_read_part(const struct safetensors *st, const char *name, uint64_t first,
                          size_t len, void *out, struct error *err);
