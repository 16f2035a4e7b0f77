/* quantization_config comes in two dialects: DeepSeek's "fp8", and "compressed-tensors", whose
 * groups say what is quantized and how (compressed_tensors/quantization/quant_config.py). Of the
 * latter are read: whole numbers of four bits as Kimi-K2-Thinking has them, and FP8. Activations
 * are as precise as without: where a backend quantises them (gemm_fp8.h says when), it is by their
 * own sizes, whatever a file says of them. */
#include "model/config_quant.h"

#include "model/pattern.h"

#include <stdio.h>
#include <string.h>

enum { MAX_QUANT_BLOCK = 4096, MAX_GROUP = 1 << 20, NAME_BYTES = 96 };

/* ---- "fp8" ---------------------------------------------------------------------------------- */

/* Two numbers, rows and columns that share a scale. */
static int read_block(const struct keys *k, const char *key, struct model_config *c)
{
    const struct json *block = json_get(k->object, key);
    const struct json *size = json_is(block, JSON_ARRAY) ? json_first(block) : NULL;
    int64_t values[2] = {0, 0};
    int n = 0;

    for (; size && n < 2 && json_integer(size, &values[n]); size = json_next(size))
        n++;
    for (int i = 0; i < 2; i++) {
        if (n != 2 || size || values[i] < 1 || values[i] > MAX_QUANT_BLOCK)
            return keys_refuse(k, key, "two whole numbers from 1 to 4096, such as [128, 128]");
        c->quant_block[i] = (int32_t)values[i];
    }
    return 0;
}

static int read_fp8(const struct keys *quant, struct model_config *c)
{
    static const char *const formats[] = {"e4m3", NULL};
    static const char *const scale_formats[] = {"float", "ue8m0", NULL};
    const char *format, *scale_format;

    if (keys_choice_or(quant, "fmt", "e4m3", formats, &format) ||
        keys_choice_or(quant, "scale_fmt", "float", scale_formats, &scale_format))
        return -1;
    c->quant_ue8m0 = strcmp(scale_format, "ue8m0") == 0;
    c->quantized.attention = c->quantized.dense = true;
    c->quantized.experts = c->quantized.shared = true;
    c->quantization = QUANT_FP8_BLOCK;
    if (!json_get(quant->object, "weight_block_size") || keys_present(quant, "weight_block_size"))
        return read_block(quant, "weight_block_size", c);
    c->quantization = QUANT_FP8_TENSOR; /* null: one scale a tensor */
    return 0;
}

/* ---- "compressed-tensors" ------------------------------------------------------------------- */

/* Whether one of a list's entries names the module: itself, the class of all linear layers, or
 * "re:" and a regular expression for the beginning of its name. -1 and a message: it can't be told.
 */
static int names_module(const struct keys *k, const char *key, const char *module)
{
    const struct json *list = json_get(k->object, key);
    int found = 0;

    if (json_is(list, JSON_ARRAY))
        list = json_first(list);
    else if (list && json_type(list) != JSON_NULL)
        return keys_refuse(k, key, "a list of names");
    else
        return 0;
    for (; list && found == 0; list = json_next(list)) {
        const char *text = json_is(list, JSON_STRING) ? json_string(list) : NULL;
        size_t start, end;
        if (!text)
            return keys_refuse(k, key, "a list of names");
        if (strncmp(text, "re:", 3) != 0) {
            found = strcmp(text, "Linear") == 0 || strcmp(text, module) == 0;
            continue;
        }
        struct pattern *pattern = pattern_compile(text + 3, k->err);
        if (!pattern)
            return error_prefix(k->err, "%s: \"%s%s\"", k->file, k->within, key);
        struct pattern_scratch *scratch = pattern_scratch_new();
        found =
            pattern_find(pattern, scratch, module, strlen(module), 0, &start, &end, k->err) == 1 &&
            start == 0;
        pattern_scratch_free(scratch);
        pattern_free(pattern);
    }
    return found;
}

/* Whether a module, by its name in a text model or in one with images around, is quantized. */
static int is_quantized(const struct keys *quant, const struct keys *group, const char *module,
                        bool *out)
{
    char around[NAME_BYTES + 16];
    int target = names_module(group, "targets", module), ignored, also;

    snprintf(around, sizeof(around), "language_model.%s", module);
    if (target < 0 || (ignored = names_module(quant, "ignore", module)) < 0 ||
        (also = names_module(quant, "ignore", around)) < 0)
        return -1;
    *out |= target && !ignored && !also;
    return 0;
}

/* What a group quantizes, told by one module of each kind. */
static int read_modules(const struct keys *quant, const struct keys *group, struct model_config *c)
{
    const struct {
        const char *module;
        bool *out;
        bool of_moe;
    } kinds[] = {
        {"self_attn.o_proj", &c->quantized.attention, false},
        {"mlp.down_proj", &c->quantized.dense, false},
        {"mlp.experts.0.down_proj", &c->quantized.experts, true},
        {"mlp.shared_experts.down_proj", &c->quantized.shared, true},
    };
    char name[NAME_BYTES];

    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        int32_t layer = 0;
        while (layer + 1 < c->layers && c->is_moe[layer] != kinds[i].of_moe)
            layer++;
        snprintf(name, sizeof(name), "model.layers.%d.%s", layer, kinds[i].module);
        if (is_quantized(quant, group, name, kinds[i].out))
            return -1;
    }
    return is_quantized(quant, group, "lm_head", &c->quantized.head);
}

/* Whole numbers of four bits, with a scale for `group_size` columns of a row, or for all. */
static int read_int4(const struct keys *weights, struct model_config *c)
{
    static const char *const strategies[] = {"group", "channel", NULL};
    static const char *const orders[] = {"weight", "static", NULL};
    const char *strategy, *order;
    bool symmetric;
    int32_t bits;

    if (keys_int(weights, "num_bits", 4, 4, &bits) ||
        keys_choice_or(weights, "strategy", "group", strategies, &strategy) ||
        keys_choice_or(weights, "actorder", "weight", orders, &order) ||
        keys_bool_or(weights, "symmetric", true, &symmetric))
        return -1;
    if (!symmetric)
        return keys_refuse(weights, "symmetric", "true");
    c->quantization = QUANT_INT4;
    c->quant_block[0] = 1;
    c->quant_block[1] = 0;
    if (strcmp(strategy, "channel") == 0)
        return 0;
    return keys_int(weights, "group_size", 2, MAX_GROUP, &c->quant_block[1]);
}

static int read_float8(const struct keys *weights, struct model_config *c)
{
    static const char *const strategies[] = {"tensor", "channel", "block", NULL};
    static const char *const types[] = {"float", NULL};
    const char *strategy, *type;
    int32_t bits;

    if (keys_int(weights, "num_bits", 8, 8, &bits) ||
        keys_choice_or(weights, "type", "int", types, &type) ||
        keys_choice_or(weights, "strategy", "tensor", strategies, &strategy))
        return -1;
    c->quantization = QUANT_FP8_BLOCK;
    if (strcmp(strategy, "block") == 0)
        return read_block(weights, "block_structure", c);
    c->quant_block[0] = strcmp(strategy, "channel") == 0;
    c->quant_block[1] = 0;
    if (c->quant_block[0] == 0)
        c->quantization = QUANT_FP8_TENSOR;
    return 0;
}

/* All groups must be quantized alike: they may say so of different modules. */
static int read_group(const struct keys *quant, const struct keys *group, bool packed,
                      struct model_config *c)
{
    struct model_config before = *c;
    struct keys weights = *group;

    weights.object = json_get(group->object, "weights");
    weights.within = "quantization_config.config_groups.*.weights.";
    if (!json_is(weights.object, JSON_OBJECT))
        return keys_refuse(group, "weights", "an object");
    if (packed ? read_int4(&weights, c) : read_float8(&weights, c))
        return -1;
    if (before.quantization != QUANT_NONE &&
        (before.quantization != c->quantization || before.quant_block[0] != c->quant_block[0] ||
         before.quant_block[1] != c->quant_block[1]))
        return error_set(quant->err,
                         "%s: \"%sconfig_groups\" with weights of several kinds are not "
                         "supported",
                         quant->file, quant->within);
    return read_modules(quant, group, c);
}

static int read_compressed(const struct keys *quant, struct model_config *c)
{
    static const char *const formats[] = {"pack-quantized", "float-quantized", "naive-quantized",
                                          NULL};
    const struct json *groups = json_get(quant->object, "config_groups");
    const struct json *sparsity = json_get(quant->object, "sparsity_config");
    const struct json *sparse = json_get(sparsity, "format");
    const struct json *transforms =
        json_get(json_get(quant->object, "transform_config"), "config_groups");
    const char *format;

    if (json_is(sparse, JSON_STRING) && strcmp(json_string(sparse), "dense") != 0)
        return error_set(quant->err, "%s: sparse weights (\"%ssparsity_config\") are not supported",
                         quant->file, quant->within);
    if (transforms && json_count(transforms) > 0)
        return error_set(quant->err, "%s: \"%stransform_config\" is not supported", quant->file,
                         quant->within);
    if (!keys_present(quant, "format") || keys_choice_or(quant, "format", "", formats, &format))
        return keys_refuse(quant, "format",
                           "\"pack-quantized\" (INT4) or \"float-quantized\" (FP8)");
    if (!json_is(groups, JSON_OBJECT) || json_count(groups) == 0)
        return keys_refuse(quant, "config_groups", "an object of groups");
    c->quant_compressed = true;
    for (groups = json_first(groups); groups; groups = json_next(groups)) {
        struct keys group = *quant;
        group.object = groups;
        group.within = "quantization_config.config_groups.*.";
        if (read_group(quant, &group, strcmp(format, "pack-quantized") == 0, c))
            return -1;
    }
    return 0;
}

/* ---- which --------------------------------------------------------------------------------------
 */

/* The key is "compression_config" in older files of compressed-tensors. */
int config_quant_read(const struct keys *text, const struct keys *file, struct model_config *c)
{
    static const char *const names[] = {"quantization_config", "compression_config"};
    static const char *const within[] = {"quantization_config.", "compression_config."};
    const struct keys *const places[] = {text, file};

    for (int i = 0; i < 4; i++) {
        const struct keys *k = places[i / 2];
        struct keys quant = *k;
        if (!keys_present(k, names[i % 2]))
            continue;
        quant.object = json_get(k->object, names[i % 2]);
        quant.within = within[i % 2];
        quant.names = NULL;
        const struct json *method = json_get(quant.object, "quant_method");
        if (!json_is(quant.object, JSON_OBJECT))
            return keys_refuse(k, names[i % 2], "null or an object");
        if (!json_is(method, JSON_STRING))
            return keys_refuse(&quant, "quant_method", "a string");
        if (strcmp(json_string(method), "fp8") == 0)
            return read_fp8(&quant, c);
        if (strcmp(json_string(method), "compressed-tensors") == 0)
            return read_compressed(&quant, c);
        return error_set(k->err,
                         "%s: \"%squant_method\" is \"%.64s\", which is not supported; supported "
                         "are \"fp8\" and \"compressed-tensors\"",
                         k->file, quant.within, json_string(method));
    }
    return 0;
}

/* Mistral's spelling: a scale for each tensor. */
int config_quant_read_params(const struct keys *k, struct model_config *c)
{
    const struct json *format = json_get(json_get(k->object, "quantization"), "qformat_weight");

    if (!keys_present(k, "quantization"))
        return 0;
    if (!json_is(format, JSON_STRING) || strcmp(json_string(format), "fp8_e4m3") != 0)
        return error_set(k->err,
                         "%s: \"quantization\" is supported with \"qformat_weight\" \"fp8_e4m3\" "
                         "alone",
                         k->file);
    c->quantization = QUANT_FP8_TENSOR;
    return 0;
}
