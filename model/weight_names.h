/* What a checkpoint's files call the weights, and how they lay out experts. Recognised by the names
 * that are there: the same model comes under several. */
#pragma once

#include "model/safetensors.h"
#include "model/weight_list.h"

struct weight_naming;

struct weight_names {
    const struct weight_naming *naming;
    const char *scale;  /* what takes the place of "weight" in the names of scales */
    int32_t layers;     /* of the model: those from here on are of multi-token prediction */
    bool fused_experts; /* all of a layer in one tensor, gate and up as one (transformers 5) */
};

/* Of the files of a checkpoint. */
struct weight_names weight_names_find(const struct model_config *config,
                                      const struct safetensors *st);

/* Where an item, or one of its experts, is: rows from `first_row` on of a tensor whose shape must
 * be that of `want`. All dimensions but the last count as rows. */
struct weight_place {
    char name[WEIGHT_NAME_BYTES];
    struct tensor want; /* rank and shape alone */
    int64_t first_row;
};

struct weight_place weight_place(const struct weight_names *names, const struct weight_item *item,
                                 int32_t expert);

/* The name of the scales of the tensor `name`. */
void weight_scale_name(const struct weight_names *names, const char *name,
                       char out[WEIGHT_NAME_BYTES + 16]);

/* Whether there is such an item, or its first expert. */
bool weight_is_stored(const struct weight_names *names, const struct safetensors *st,
                      const struct weight_item *item);
