/* The form that every grammar is compiled to: rules over bytes.
 *
 *   node := bytes            exactly these
 *         | class            one byte of a set
 *         | sequence         all of the nodes, in order (none: the empty text)
 *         | choice           one of the nodes
 *         | repeat           the node, from `min` to `max` times
 *         | reference        to a rule, which is a node; the only way to recursion
 *
 * Nodes are numbers, and may be used in several places. Node 0 is the empty text. Characters are
 * there as the bytes of their UTF-8 (grammar_text.h).
 *
 * Building is bounded, and an error sticks: the first one is kept, and from then on every builder
 * gives node 0. A compiler builds freely, stops early where `failed` is set, and ends with
 * rules_finish. */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    RULES_MAX = 4096,             /* rules that can be referred to */
    RULES_MAX_NODES = 1 << 17,    /* nodes, and children of nodes */
    RULES_MAX_BYTES = 1 << 20,    /* of literal text */
    GRAMMAR_MAX_DEPTH = 256,      /* of a stack; a JSON value inside of another takes three */
    RULES_MAX_SHORTEST = 1 << 23, /* bytes that a node may need at least */
    NODE_EMPTY = 0,               /* the empty text */
    HEIGHT_INFINITE = UINT16_MAX, /* of a node that no finite text matches */
};

#define NODE_NONE   UINT32_MAX  /* no node */
#define REPEAT_MAX  UINT32_MAX  /* as `max`: without end */
#define COUNT_LIMIT 0x7FFFFFFFU /* the largest count that a repeat may name */

struct byte_set {
    uint64_t bits[4];
};

static inline bool byte_set_has(const struct byte_set *set, uint8_t byte)
{
    return set->bits[byte / 64] >> byte % 64 & 1;
}

/* Adds the bytes from `low` to `high`. */
static inline void byte_set_add(struct byte_set *set, unsigned low, unsigned high)
{
    for (unsigned b = low; b <= high; b++)
        set->bits[b / 64] |= 1ULL << b % 64;
}

enum node_kind { NODE_BYTES, NODE_CLASS, NODE_SEQUENCE, NODE_CHOICE, NODE_REPEAT, NODE_REFERENCE };

struct rules_node {
    uint8_t kind;      /* enum node_kind */
    bool any_plain;    /* matches each plain character (vocabulary_is_plain), among others */
    bool nullable;     /* matches the empty text; this and the rest are set by rules_finish */
    bool only_empty;   /* and nothing else */
    uint16_t height;   /* cells of a stack that its simplest text needs; HEIGHT_INFINITE */
    uint32_t shortest; /* bytes of its shortest text; UINT32_MAX: as many or more */
    uint32_t first;    /* of `children`, `bytes`; or the set, the repeated node, the rule */
    uint32_t count;    /* of children, bytes */
    uint32_t min, max; /* of a repeat */
};

struct rules {
    struct rules_node *nodes;
    uint32_t *children;
    char *bytes;
    struct byte_set *sets;
    uint32_t *roots; /* node of each rule; NODE_NONE: not defined yet */
    char **names;    /* of the rules, for messages */
    uint32_t nodes_n, children_n, bytes_n, sets_n, roots_n;
    uint32_t nodes_cap, children_cap, bytes_cap, sets_cap, roots_cap;
    uint32_t recent_sets[64]; /* by hash: the set last made, to use it again */
    uint32_t beyond_ascii;    /* node for every character from U+0080 up; NODE_NONE: not made */
    bool failed;
    struct error error;
    /* Set by rules_finish. */
    uint32_t root;
    uint8_t class_of[256];     /* bytes that no set and no literal tells apart are in one class */
    uint8_t class_sample[256]; /* a byte of each class */
    uint32_t classes_n;
};

struct rules *rules_new(void);
void rules_free(struct rules *rules);

/* Records the first error, without the position that callers add. Returns NODE_EMPTY. */
uint32_t rules_fail(struct rules *rules, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

uint32_t rules_bytes(struct rules *rules, const void *bytes, size_t len);
uint32_t rules_class(struct rules *rules, const struct byte_set *set); /* not empty */
uint32_t rules_sequence(struct rules *rules, const uint32_t *nodes, size_t count);
uint32_t rules_choice(struct rules *rules, const uint32_t *nodes, size_t count); /* at least one */
uint32_t rules_repeat(struct rules *rules, uint32_t node, uint32_t min, uint32_t max);

/* A new rule, to be defined later; its number. `name` is for messages. */
uint32_t rules_declare(struct rules *rules, const char *name);
void rules_define(struct rules *rules, uint32_t rule, uint32_t node);
uint32_t rules_reference(struct rules *rules, uint32_t rule);

/* Shorthands for two, three and four nodes. */
#define RULES_SEQUENCE(rules, ...)                                                                 \
    rules_sequence(rules, (const uint32_t[]){__VA_ARGS__},                                         \
                   sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))
#define RULES_CHOICE(rules, ...)                                                                   \
    rules_choice(rules, (const uint32_t[]){__VA_ARGS__},                                           \
                 sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))

static inline uint32_t rules_text(struct rules *rules, const char *text)
{
    return rules_bytes(rules, text, __builtin_strlen(text));
}

static inline uint32_t rules_optional(struct rules *rules, uint32_t node)
{
    return rules_repeat(rules, node, 0, 1);
}

/* Makes `root` the start and works out what holds of each node. -1 with a sentence when building
 * failed, a rule is left recursive, or no finite text matches, or only ones that are too long. The
 * rules are immutable after. */
int rules_finish(struct rules *rules, uint32_t root, struct error *err);

/* The number of nodes that `node` begins with, contains or refers to, and each of them. */
uint32_t rules_children(const struct rules *rules, uint32_t node);
uint32_t rules_child(const struct rules *rules, uint32_t node, uint32_t index);
