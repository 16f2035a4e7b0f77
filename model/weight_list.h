/* Every weight that a configuration asks for: its name in a checkpoint, its shape, its use, and
 * where it belongs in struct model_weights. What reads, fills or counts weights walks this list. */
#pragma once

#include "model/weights.h"

#include <stdbool.h>

enum { WEIGHT_NAME_BYTES = 96 };

struct weight_item {
    struct tensor *dst;
    enum weight_use use;
    const char *part;   /* the name; in a layer what follows "model.layers.N.", and of a block of
                           experts what follows "model.layers.N.mlp.experts.E." */
    int32_t layer;      /* -1: of no layer */
    int32_t experts;    /* a block of so many equal matrices, one after the other; 0: one tensor */
    int64_t rows, cols; /* of one; cols 0: a vector */
    int32_t together;   /* not 0: those of one number are operands of one call of gated or moe */
    float scale;        /* to multiply a vector with */
    /* Not NULL: what it is where a checkpoint has none, or the same again. */
    const struct tensor *stand_in;
};

struct weight_list {
    struct weight_item *items;
    int n;
    int n_left_out; /* which follow the n */
};

/* In the order of the graph, layers of multi-token prediction last. The items point into `weights`,
 * whose layers must be there. */
struct weight_list weight_list_new(struct model_weights *weights,
                                   const struct model_config *config);

/* Takes item `i` out of the list, because of its stand-in. */
void weight_list_leave_out(struct weight_list *list, int i);

/* Those that were left out become what stands in for them, which must have its memory. */
void weight_list_bind(const struct weight_list *list);
void weight_list_free(struct weight_list *list);

/* The name of the item, or of its expert, as released DeepSeek checkpoints have it. */
void weight_name(const struct weight_item *item, int32_t expert, char out[WEIGHT_NAME_BYTES]);

/* The shape of the item on the backend; returns the rank. */
int weight_shape(const struct weight_item *item, int64_t shape[TENSOR_MAX_RANK]);

/* Elements of one row, and of the item or one of its experts. */
static inline int64_t weight_row_elements(const struct weight_item *item)
{
    return item->cols ? item->cols : 1;
}

static inline int64_t weight_elements(const struct weight_item *item)
{
    return item->rows * weight_row_elements(item);
}
