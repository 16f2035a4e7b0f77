/* Meaning and defaults are those of transformers 5.17 (modeling_rope_utils.py), and for Mistral's
 * params.json those of Mistral's own code. */
#include "model/config_rope.h"

#include "model/rope.h"

#include <math.h>
#include <string.h>

static const char *const ORIGINAL = "original_max_position_embeddings";

/* Where the rope's keys stand: "rope_scaling" of released configs, "rope_parameters" as
 * transformers 5 writes it, "yarn" in params.json. The first that isn't empty wins. */
static int find_rope(const struct keys *k, struct keys *rope)
{
    static const char *const names[][2] = {{"rope_scaling", "rope_scaling."},
                                           {"rope_parameters", "rope_parameters."},
                                           {"yarn", "yarn."}};

    *rope = *k;
    rope->object = NULL;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]) && !rope->object; i++) {
        const struct json *value = json_get(k->object, names[i][0]);
        if (!keys_present(k, names[i][0]))
            continue;
        if (!json_is(value, JSON_OBJECT))
            return keys_refuse(k, names[i][0], "null or an object");
        if (json_count(value) > 0) {
            rope->object = value;
            rope->within = names[i][1];
        }
    }
    return 0;
}

/* transformers lets a key of the top level override, and falls back on the full context. */
static int read_original(const struct keys *k, const struct keys *rope, int32_t max_positions,
                         double *original)
{
    const struct keys *holder = keys_present(k, ORIGINAL) ? k : rope;

    return keys_number_or(holder, ORIGINAL, max_positions, 1, CONFIG_MAX_POSITIONS, original);
}

static int read_yarn(const struct keys *k, const struct keys *rope, int32_t max_positions,
                     struct yarn *yarn)
{
    bool apply_scale;

    if (keys_number(rope, "factor", 1, 65536, &yarn->factor) ||
        read_original(k, rope, max_positions, &yarn->original_positions) ||
        keys_number_or(rope, "beta_fast", 32, 1e-3, 1e6, &yarn->beta_fast) ||
        keys_number_or(rope, "beta_slow", 1, 1e-3, 1e6, &yarn->beta_slow) ||
        keys_number_or(rope, "mscale", 0, 0, 100, &yarn->mscale) ||
        keys_number_or(rope, "mscale_all_dim", 0, 0, 100, &yarn->mscale_all_dim) ||
        keys_number_or(rope, "attention_factor", 0, 1e-3, 100, &yarn->attention_factor) ||
        keys_bool_or(rope, "truncate", true, &yarn->truncate))
        return -1;
    if (yarn->beta_fast < yarn->beta_slow)
        return keys_refuse(rope, "beta_fast", "at least beta_slow");
    if (strcmp(rope->within, "yarn.") != 0)
        return 0;
    if (keys_bool_or(rope, "apply_scale", true, &apply_scale))
        return -1;
    yarn->attention_factor = 1;
    yarn->mscale_all_dim = apply_scale ? 1 : 0;
    return 0;
}

/* A list of rope_dim / 2 factors on the periods. */
static int read_factors(const struct keys *rope, const char *key, int32_t n,
                        float out[ROPE_MAX_DIM / 2])
{
    const struct json *list = json_get(rope->object, key);
    const struct json *value = json_is(list, JSON_ARRAY) ? json_first(list) : NULL;

    for (int32_t i = 0; i < n; i++, value = json_next(value)) {
        if (!json_is(value, JSON_NUMBER) || json_count(list) != (size_t)n ||
            !(json_number(value) >= 1e-3 && json_number(value) <= 1e6))
            return keys_refuse(rope, key, "a list of qk_rope_head_dim / 2 positive numbers");
        out[i] = (float)json_number(value);
    }
    return 0;
}

/* LongRoPE: transformers takes short_factor for a sequence of at most the original length, and
 * long_factor, for all its tokens, once it is longer. */
static int read_longrope(const struct keys *k, const struct keys *rope, double theta,
                         struct model_config *c)
{
    float shorter[ROPE_MAX_DIM / 2], longer[ROPE_MAX_DIM / 2];
    double original, factor, attention;
    int32_t n = c->rope.dim / 2;

    if (read_original(k, rope, c->max_positions, &original) ||
        keys_number_or(rope, "factor", c->max_positions / original, 1e-3, 65536, &factor) ||
        read_factors(rope, "short_factor", n, shorter) ||
        read_factors(rope, "long_factor", n, longer))
        return -1;
    if (c->max_positions > original && memcmp(shorter, longer, (size_t)n * sizeof(float)) != 0)
        return error_set(k->err,
                         "%s: a long_factor other than short_factor is not supported, since it "
                         "changes the cached keys of a sequence that outgrows %s; with "
                         "\"max_position_embeddings\": %.0f the model is served up to there",
                         k->file, ORIGINAL, original);
    attention = factor <= 1 ? 1 : sqrt(1 + log(factor) / log(original));
    if (keys_number_or(rope, "attention_factor", attention, 1e-3, 100, &attention))
        return -1;
    rope_scaled_frequencies(&c->rope, theta, shorter, attention);
    return 0;
}

/* Mistral's (and Llama 4's) scale on queries: 1 + beta ln(1 + floor(position / original)). */
static int read_query_scale(const struct keys *k, const struct keys *rope, struct model_config *c)
{
    struct keys scaling = *k;
    double beta;

    if (keys_number_or(rope, "llama_4_scaling_beta", 0, 0, 100, &beta) ||
        (beta > 0 && keys_int(rope, ORIGINAL, 1, CONFIG_MAX_POSITIONS, &c->query_scale.every)))
        return -1;
    scaling.object = json_get(k->object, "llama_4_scaling");
    scaling.within = "llama_4_scaling.";
    if (keys_present(k, "llama_4_scaling") &&
        (keys_number(&scaling, "beta", 0, 100, &beta) ||
         keys_int(&scaling, ORIGINAL, 1, CONFIG_MAX_POSITIONS, &c->query_scale.every)))
        return -1;
    c->query_scale.beta = (float)beta;
    return 0;
}

static int read_partial(const struct keys *k, const struct keys *rope, const struct graph *graph,
                        const struct model_config *c)
{
    double part = 1, partial;

    if (graph->rope_is_part_of_head)
        part = (double)c->mla.rope_dim / (c->mla.nope_dim + c->mla.rope_dim);
    if (keys_number_or(k, "partial_rotary_factor", part, part, part, &partial))
        return -1;
    return keys_number_or(rope, "partial_rotary_factor", part, part, part, &partial);
}

int config_rope_read(const struct keys *k, const struct graph *graph, struct model_config *c)
{
    static const char *const usual[] = {"default", "yarn", NULL};
    const char *const *types = graph->rope_types ? graph->rope_types : usual;
    const char *type = "default";
    struct keys rope;
    struct yarn yarn;
    double theta, factor = 1;
    bool interleave = !graph->rope_half_split;

    if (find_rope(k, &rope))
        return -1;
    if (!rope.object && graph->needs_rope_scaling)
        return keys_refuse(k, "rope_scaling", "an object");
    if (strcmp(rope.within, "yarn.") == 0)
        type = "yarn";
    if (keys_choice_or(&rope, "type", type, types, &type) ||
        keys_choice_or(&rope, "rope_type", type, types, &type) ||
        keys_number_or(k, "rope_theta", 1e4, 2, 1e12, &theta) ||
        keys_number_or(&rope, "rope_theta", theta, 2, 1e12, &theta) ||
        read_partial(k, &rope, graph, c) || read_query_scale(k, &rope, c))
        return -1;
    if (graph->reads_rope_interleave && keys_bool_or(k, "rope_interleave", true, &interleave))
        return -1;
    c->rope.dim = c->mla.rope_dim;
    c->rope.half_split = !interleave;
    if (strstr(type, "yarn")) {
        if (read_yarn(k, &rope, c->max_positions, &yarn))
            return -1;
        rope_frequencies(&c->rope, theta, &yarn);
        factor = graph->yarn_keeps_softmax_scale ? 1 : rope_softmax_factor(&yarn);
    } else if (strcmp(type, "longrope") == 0) {
        if (read_longrope(k, &rope, theta, c))
            return -1;
    } else {
        rope_frequencies(&c->rope, theta, NULL);
    }
    c->mla.softmax_scale = (float)(pow(c->mla.nope_dim + c->mla.rope_dim, -0.5) * factor);
    return 0;
}
