/* Tensor names of checkpoints, known by what they call the embeddings: see weight_names.h. */
#include "model/weight_names.h"

#include "base/panic.h"

#include <stdio.h>
#include <string.h>

/* Each rule is applied once, in order: the first `ours` in the name becomes `theirs`. */
struct rename {
    const char *ours, *theirs;
};

struct weight_naming {
    const char *embedding; /* by which it is recognised */
    const char *scale;     /* see struct weight_names */
    bool halves;           /* two layers of ours are one of theirs, and '#' in a rule which */
    struct rename rules[24];
};

/* The text model of one that sees images: as released, and as transformers 5.17 saves it. */
static const struct weight_naming namings[] = {
    {"model.embed_tokens.weight", "weight_scale_inv", false, {{0}}},
    {"language_model.model.embed_tokens.weight",
     "weight_scale_inv",
     false,
     {{"model.", "language_model.model."}, {"lm_head.", "language_model.lm_head."}}},
    {"model.language_model.embed_tokens.weight",
     "weight_scale_inv",
     false,
     {{"model.", "model.language_model."}}},
    /* Mistral's own files. */
    {"tok_embeddings.weight",
     "qscale_weight",
     false,
     {
         {"model.embed_tokens.", "tok_embeddings."},
         {"model.norm.", "norm."},
         {"lm_head.", "output."},
         {"model.layers.", "layers."},
         {"input_layernorm.", "attention_norm."},
         {"post_attention_layernorm.", "ffn_norm."},
         {"self_attn.", "attention."},
         {"q_a_proj.", "wq_a."},
         {"q_a_layernorm.", "q_a_norm."},
         {"q_b_proj.", "wq_b."},
         {"q_proj.", "wq."},
         {"kv_a_proj_with_mqa.", "wkv_a_with_mqa."},
         {"kv_a_layernorm.", "kv_a_norm."},
         {"kv_b_proj.", "wkv_b."},
         {"o_proj.", "wo."},
         {"mlp.experts.", "experts."},
         {"mlp.shared_experts.", "shared_experts."},
         {"mlp.gate.", "gate."},
         {"mlp.", "feed_forward."},
         {"gate_proj.", "w1."},
         {"up_proj.", "w3."},
         {"down_proj.", "w2."},
     }},
};

static const struct weight_naming longcat_naming = {
    "model.embed_tokens.weight",
    "weight_scale_inv",
    true,
    {
        {"self_attn.", "self_attn.#."},
        {"layernorm.weight", "layernorm.#.weight"},
        {"_a_layernorm.#.", "_a_layernorm."}, /* but not those of attention */
        {"mlp.gate.weight", "mlp.router.classifier.weight"},
        {"mlp.gate.e_score", "mlp.router.e_score"},
        {"mlp.gate_proj.", "mlps.#.gate_proj."},
        {"mlp.up_proj.", "mlps.#.up_proj."},
        {"mlp.down_proj.", "mlps.#.down_proj."},
    },
};

/* Of its layer of multi-token prediction. */
static const struct rename longcat_mtp_rules[] = {
    {"model.layers.", "model.mtp.layers."},
    {"enorm.", "enorm.m."},
    {"hnorm.", "hnorm.m."},
    {"mlp.", "transformer_layer.mlp."},
    {"layers.0.shared_head.norm.", "norm."},
    {"layers.0.embed_tokens.", "embed_tokens."},
    {NULL, NULL},
};

static void replace(char name[WEIGHT_NAME_BYTES], const struct rename *rule)
{
    char *at = strstr(name, rule->ours), rest[WEIGHT_NAME_BYTES];

    if (!at)
        return;
    snprintf(rest, sizeof(rest), "%s", at + strlen(rule->ours));
    size_t room = (size_t)(name + WEIGHT_NAME_BYTES - at);
    ASSERT((size_t)snprintf(at, room, "%s%s", rule->theirs, rest) < room);
}

static const struct weight_naming *find_naming(const struct model_config *config,
                                               const struct safetensors *st)
{
    if (config->shortcut_moe)
        return &longcat_naming;
    for (size_t i = 0; i < sizeof(namings) / sizeof(namings[0]); i++)
        if (safetensors_has(st, namings[i].embedding))
            return &namings[i];
    return &namings[0];
}

/* Their name of an item, or of its expert. In files with halves a layer's number counts pairs, and
 * layers of multi-token prediction are numbered by themselves. */
static void theirs(const struct weight_names *names, const struct weight_item *item, int32_t expert,
                   char out[WEIGHT_NAME_BYTES])
{
    const struct weight_naming *naming = names->naming;
    struct weight_item numbered = *item;
    bool halves = naming->halves && item->layer >= 0, mtp = halves && item->layer >= names->layers;
    char *at;

    if (halves)
        numbered.layer = mtp ? item->layer - names->layers : item->layer / 2;
    weight_name(&numbered, expert, out);
    for (const struct rename *rule = mtp ? longcat_mtp_rules : naming->rules; rule->ours; rule++)
        replace(out, rule);
    while (halves && (at = strchr(out, '#')) != NULL)
        *at = (char)('0' + item->layer % 2);
}

static const char FUSED_GATE_UP[] = "mlp.experts.gate_up_proj",
                  FUSED_DOWN[] = "mlp.experts.down_proj";

struct weight_names weight_names_find(const struct model_config *config,
                                      const struct safetensors *st)
{
    struct weight_names names = {.naming = find_naming(config, st), .layers = config->layers};
    struct weight_item fused = {.part = FUSED_GATE_UP};
    char name[WEIGHT_NAME_BYTES];

    names.scale = config->quant_compressed ? "weight_scale" : names.naming->scale;
    while (fused.layer < config->layers && !config->is_moe[fused.layer])
        fused.layer++;
    theirs(&names, &fused, 0, name);
    names.fused_experts = safetensors_has(st, name);
    return names;
}

struct weight_place weight_place(const struct weight_names *names, const struct weight_item *item,
                                 int32_t expert)
{
    struct weight_place place = {
        .want = {.rank = item->cols ? 2 : 1, .shape = {item->rows, item->cols}}};
    bool down = item->experts && strncmp(item->part, "down", 4) == 0;
    bool up = item->experts && strncmp(item->part, "up", 2) == 0;
    struct weight_item fused = {.part = down ? FUSED_DOWN : FUSED_GATE_UP, .layer = item->layer};
    int64_t each = down ? item->rows : 2 * item->rows;

    if (!names->fused_experts || !item->experts) {
        theirs(names, item, expert, place.name);
        return place;
    }
    theirs(names, &fused, 0, place.name);
    place.want = (struct tensor){.rank = 3, .shape = {item->experts, each, item->cols}};
    place.first_row = expert * each + (up ? item->rows : 0);
    return place;
}

bool weight_is_stored(const struct weight_names *names, const struct safetensors *st,
                      const struct weight_item *item)
{
    struct weight_place place = weight_place(names, item, 0);
    char packed[WEIGHT_NAME_BYTES + 16];

    snprintf(packed, sizeof(packed), "%s_packed", place.name);
    return safetensors_has(st, place.name) || safetensors_has(st, packed);
}

void weight_scale_name(const struct weight_names *names, const char *name,
                       char out[WEIGHT_NAME_BYTES + 16])
{
    size_t len = strlen(name), weight = strlen("weight");

    if (len > weight && strcmp(name + len - weight, "weight") == 0)
        snprintf(out, WEIGHT_NAME_BYTES + 16, "%.*s%s", (int)(len - weight), name, names->scale);
    else
        snprintf(out, WEIGHT_NAME_BYTES + 16, "%s_scale_inv", name);
}
