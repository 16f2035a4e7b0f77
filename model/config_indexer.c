/* Keys and defaults are those of transformers 5.17 (models/deepseek_v32, glm_moe_dsa), and
 * indexer_rope_interleave, which GLM-5's files have and transformers takes for granted. */
#include "model/config_indexer.h"

#include <string.h>

enum { MAX_TOP_K = 1 << 16, MAX_INDEX_HEADS = 128, MAX_INDEX_DIM = 256, MAX_EVERY = 1 << 16 };

static const char *const WANTED_TYPES = "\"full\" or \"shared\" for each layer, the first \"full\"";
static const char *const WANTED_PATTERN = "an F or S for each layer, the first F";

/* "indexer_types": "full" has an indexer, "shared" takes the choice of the last that has one. */
static int read_types(const struct keys *k, const char *key, struct model_config *c)
{
    const struct json *list = json_get(k->object, key);
    const struct json *type = json_is(list, JSON_ARRAY) ? json_first(list) : NULL;

    if (!json_is(list, JSON_ARRAY) || json_count(list) != (size_t)c->layers)
        return keys_refuse(k, key, WANTED_TYPES);
    for (int i = 0; i < c->layers; i++, type = json_next(type)) {
        const char *text = json_is(type, JSON_STRING) ? json_string(type) : "";
        c->has_indexer[i] = strcmp(text, "full") == 0;
        if (!c->has_indexer[i] && (strcmp(text, "shared") != 0 || i == 0))
            return keys_refuse(k, key, WANTED_TYPES);
    }
    return 0;
}

/* "index_topk_pattern": the same as a string, "FSSF". */
static int read_pattern(const struct keys *k, const char *key, struct model_config *c)
{
    const char *text = json_string(json_get(k->object, key));

    if (strlen(text) != (size_t)c->layers || strspn(text, "FS") != (size_t)c->layers ||
        text[0] != 'F')
        return keys_refuse(k, key, WANTED_PATTERN);
    for (int i = 0; i < c->layers; i++)
        c->has_indexer[i] = text[i] == 'F';
    return 0;
}

/* One layer in `every`, counted from layer `offset` - 1; all layers before it. */
static int read_schedule(const struct keys *k, struct model_config *c)
{
    int32_t every, offset;

    if (keys_int_or(k, "index_topk_freq", 1, 0, MAX_EVERY, &every) ||
        keys_int_or(k, "index_skip_topk_offset", 2, 1, MAX_EVERY, &offset))
        return -1;
    for (int i = 0; i < c->layers; i++)
        c->has_indexer[i] = i < offset || (i - offset + 1) % (every > 0 ? every : 1) == 0;
    return 0;
}

static int read_layers(const struct keys *k, struct model_config *c)
{
    static const char *const pattern = "index_topk_pattern";

    if (keys_present(k, "indexer_types"))
        return read_types(k, "indexer_types", c);
    if (!keys_present(k, pattern))
        return read_schedule(k, c);
    if (json_is(json_get(k->object, pattern), JSON_STRING))
        return read_pattern(k, pattern, c);
    return read_types(k, pattern, c);
}

int config_indexer_read(const struct keys *k, bool interleave, struct model_config *c)
{
    struct index_shape *index = &c->index;

    if (c->q_lora_rank == 0)
        return keys_refuse(k, "q_lora_rank", "a whole number: the indexer reads that vector");
    if (keys_int(k, "index_topk", 1, MAX_TOP_K, &index->top_k) ||
        keys_int(k, "index_n_heads", 1, MAX_INDEX_HEADS, &index->heads) ||
        keys_int(k, "index_head_dim", c->mla.rope_dim, MAX_INDEX_DIM, &index->dim) ||
        keys_bool_or(k, "indexer_rope_interleave", interleave, &interleave))
        return -1;
    index->max_positions = c->max_positions;
    c->index_rope = c->rope;
    c->index_rope.half_split = !interleave;
    return read_layers(k, c);
}
