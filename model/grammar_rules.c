#include "model/grammar_rules.h"

#include "base/memory.h"
#include "base/panic.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PASSES = 128 }; /* over the nodes, until what is known of them settles */

/* ---- building ---- */

struct rules *rules_new(void)
{
    struct rules *r = mem_zalloc(1, sizeof(*r));

    memset(r->recent_sets, 0xFF, sizeof(r->recent_sets));
    r->beyond_ascii = NODE_NONE;
    uint32_t empty = rules_sequence(r, NULL, 0);
    ASSERT(empty == NODE_EMPTY);
    return r;
}

void rules_free(struct rules *r)
{
    if (!r)
        return;
    for (uint32_t i = 0; i < r->roots_n; i++)
        free(r->names[i]);
    free(r->names);
    free(r->roots);
    free(r->nodes);
    free(r->children);
    free(r->bytes);
    free(r->sets);
    free(r);
}

uint32_t rules_fail(struct rules *r, const char *format, ...)
{
    va_list args;

    if (!r->failed) {
        va_start(args, format);
        vsnprintf(r->error.message, sizeof(r->error.message), format, args);
        va_end(args);
    }
    r->failed = true;
    return NODE_EMPTY;
}

/* Makes room for `more` elements in an array of at most `max`. False, and a failure, when there is
 * none. */
static bool reserve(struct rules *r, void *array, uint32_t *cap, uint32_t used, size_t more,
                    size_t max, size_t size)
{
    void *block;

    if (r->failed)
        return false;
    if (more > max || used > max - more) {
        rules_fail(r, "it is too large: it takes more than %zu parts", max);
        return false;
    }
    if (used + more <= *cap)
        return true;
    size_t want = 2 * (size_t)*cap > used + more ? 2 * (size_t)*cap : used + more + 32;
    memcpy(&block, array, sizeof(block));
    block = mem_resize(block, want, size);
    memcpy(array, &block, sizeof(block));
    *cap = (uint32_t)want;
    return true;
}

static uint32_t add_node(struct rules *r, struct rules_node node)
{
    if (!reserve(r, &r->nodes, &r->nodes_cap, r->nodes_n, 1, RULES_MAX_NODES, sizeof(node)))
        return NODE_EMPTY;
    r->nodes[r->nodes_n] = node;
    return r->nodes_n++;
}

uint32_t rules_bytes(struct rules *r, const void *bytes, size_t len)
{
    uint32_t first = r->bytes_n;

    if (len == 0 || !reserve(r, &r->bytes, &r->bytes_cap, first, len, RULES_MAX_BYTES, 1))
        return NODE_EMPTY;
    memcpy(r->bytes + first, bytes, len);
    r->bytes_n += (uint32_t)len;
    return add_node(
        r, (struct rules_node){.kind = NODE_BYTES, .first = first, .count = (uint32_t)len});
}

uint32_t rules_class(struct rules *r, const struct byte_set *set)
{
    uint64_t mixed = 0;

    for (int i = 0; i < 4; i++)
        mixed = (mixed ^ set->bits[i]) * 0x9E3779B97F4A7C15ULL;
    uint32_t *recent = &r->recent_sets[mixed >> 58];
    if (*recent == UINT32_MAX || memcmp(&r->sets[*recent], set, sizeof(*set)) != 0) {
        if (!reserve(r, &r->sets, &r->sets_cap, r->sets_n, 1, RULES_MAX_NODES, sizeof(*set)))
            return NODE_EMPTY;
        *recent = r->sets_n++;
        r->sets[*recent] = *set;
    }
    return add_node(r, (struct rules_node){.kind = NODE_CLASS, .first = *recent});
}

static uint32_t add_parent(struct rules *r, struct rules_node node, const uint32_t *nodes,
                           size_t count)
{
    node.first = r->children_n;
    node.count = (uint32_t)count;
    if (!reserve(r, &r->children, &r->children_cap, r->children_n, count, RULES_MAX_NODES,
                 sizeof(*nodes)))
        return NODE_EMPTY;
    if (count)
        memcpy(r->children + r->children_n, nodes, count * sizeof(*nodes));
    r->children_n += node.count;
    return add_node(r, node);
}

uint32_t rules_sequence(struct rules *r, const uint32_t *nodes, size_t count)
{
    if (count == 1)
        return nodes[0];
    if (count == 0 && r->nodes_n > 0)
        return NODE_EMPTY;
    return add_parent(r, (struct rules_node){.kind = NODE_SEQUENCE}, nodes, count);
}

uint32_t rules_choice(struct rules *r, const uint32_t *nodes, size_t count)
{
    struct rules_node node = {.kind = NODE_CHOICE};

    if (r->failed)
        return NODE_EMPTY;
    ASSERT(count > 0);
    if (count == 1)
        return nodes[0];
    for (size_t i = 0; i < count; i++)
        node.any_plain |= r->nodes[nodes[i]].any_plain;
    return add_parent(r, node, nodes, count);
}

uint32_t rules_repeat(struct rules *r, uint32_t node, uint32_t min, uint32_t max)
{
    if (node == NODE_EMPTY || max == 0)
        return NODE_EMPTY;
    if (min == 1 && max == 1)
        return node;
    return add_node(
        r, (struct rules_node){.kind = NODE_REPEAT, .first = node, .min = min, .max = max});
}

uint32_t rules_declare(struct rules *r, const char *name)
{
    uint32_t rule = r->roots_n;

    if (r->failed)
        return 0;
    if (rule == RULES_MAX) {
        rules_fail(r, "it has more than %d rules", (int)RULES_MAX);
        return 0;
    }
    if (rule == r->roots_cap) {
        r->roots_cap = r->roots_cap ? 2 * r->roots_cap : 16;
        r->roots = mem_resize(r->roots, r->roots_cap, sizeof(*r->roots));
        r->names = mem_resize(r->names, r->roots_cap, sizeof(*r->names));
    }
    r->roots[rule] = NODE_NONE;
    r->names[rule] = mem_strdup(name);
    r->roots_n++;
    return rule;
}

void rules_define(struct rules *r, uint32_t rule, uint32_t node)
{
    if (!r->failed)
        r->roots[rule] = node;
}

uint32_t rules_reference(struct rules *r, uint32_t rule)
{
    return add_node(r, (struct rules_node){.kind = NODE_REFERENCE, .first = rule});
}

/* ---- what holds of each node ---- */

uint32_t rules_children(const struct rules *r, uint32_t node)
{
    const struct rules_node *n = &r->nodes[node];
    bool many = n->kind == NODE_SEQUENCE || n->kind == NODE_CHOICE;

    return many ? n->count : n->kind == NODE_REPEAT || n->kind == NODE_REFERENCE;
}

uint32_t rules_child(const struct rules *r, uint32_t node, uint32_t index)
{
    const struct rules_node *n = &r->nodes[node];

    return n->kind == NODE_REFERENCE ? r->roots[n->first]
           : n->kind == NODE_REPEAT  ? n->first
                                     : r->children[n->first + index];
}

/* A depth-first search with its own stack: how far each node on the way down is done. */
struct search {
    uint32_t *path, *index;
    uint32_t depth;
    uint8_t *seen; /* by node: 0 not yet, 1 on the path, 2 done */
};

static void search_new(struct search *s, const struct rules *r)
{
    s->path = mem_zalloc(r->nodes_n, sizeof(*s->path));
    s->index = mem_zalloc(r->nodes_n, sizeof(*s->index));
    s->seen = mem_zalloc(r->nodes_n, sizeof(*s->seen));
    s->depth = 0;
}

static void search_free(struct search *s)
{
    free(s->path);
    free(s->index);
    free(s->seen);
}

static void search_enter(struct search *s, uint32_t node)
{
    s->seen[node] = 1;
    s->path[s->depth] = node;
    s->index[s->depth++] = 0;
}

/* The nodes under the root, each after those it consists of (but for recursion). */
static uint32_t *order_nodes(struct rules *r, uint32_t *count)
{
    uint32_t *order = mem_zalloc(r->nodes_n, sizeof(*order));
    struct search s;

    *count = 0;
    search_new(&s, r);
    search_enter(&s, r->root);
    while (s.depth > 0 && !r->failed) {
        uint32_t node = s.path[s.depth - 1];
        if (s.index[s.depth - 1] == rules_children(r, node)) {
            order[(*count)++] = node;
            s.depth--;
            continue;
        }
        uint32_t child = rules_child(r, node, s.index[s.depth - 1]++);
        if (child == NODE_NONE)
            rules_fail(r, "the rule %.100s is not defined", r->names[r->nodes[node].first]);
        else if (!s.seen[child])
            search_enter(&s, child);
    }
    search_free(&s);
    return order;
}

static uint32_t add_lengths(uint32_t a, uint32_t b)
{
    return a > UINT32_MAX - b ? UINT32_MAX : a + b;
}

/* The shortest text and the lowest height of a node, from those of its children. */
static void measure(const struct rules *r, uint32_t node, uint32_t *shortest, uint32_t *height)
{
    const struct rules_node *n = &r->nodes[node];
    uint32_t children = rules_children(r, node);

    *shortest = n->kind == NODE_BYTES ? n->count : n->kind == NODE_CLASS;
    *height = n->kind == NODE_BYTES || n->kind == NODE_CLASS;
    if (n->kind == NODE_CHOICE)
        *shortest = *height = UINT32_MAX;
    for (uint32_t i = 0; i < children; i++) {
        const struct rules_node *c = &r->nodes[rules_child(r, node, i)];
        if (n->kind == NODE_CHOICE) {
            *shortest = c->shortest < *shortest ? c->shortest : *shortest;
            *height = c->height < *height ? c->height : *height;
        } else if (n->kind != NODE_REPEAT) { /* all but the last stand on a cell for what follows */
            uint32_t need = c->height + (i + 1U < children);
            *shortest = add_lengths(*shortest, c->shortest);
            *height = need > *height ? need : *height;
        } else if (n->min > 0) {
            uint64_t total = (uint64_t)n->min * c->shortest;
            *shortest = total > UINT32_MAX ? UINT32_MAX : (uint32_t)total;
            *height = c->height + (n->max > 1U);
        }
    }
    if (*height > HEIGHT_INFINITE)
        *height = HEIGHT_INFINITE;
}

/* Brings what is known of a node up to date; true when that changed. */
static bool update_empty(struct rules *r, uint32_t node)
{
    struct rules_node *n = &r->nodes[node], before = *n;
    uint32_t children = rules_children(r, node), nullable = 0;

    n->only_empty = n->kind != NODE_BYTES && n->kind != NODE_CLASS;
    for (uint32_t i = 0; i < children; i++) {
        const struct rules_node *c = &r->nodes[rules_child(r, node, i)];
        nullable += c->nullable;
        n->only_empty &= c->only_empty;
    }
    if (n->kind == NODE_SEQUENCE)
        n->nullable = nullable == children;
    else if (n->kind == NODE_REPEAT)
        n->nullable = n->min == 0 || nullable;
    else
        n->nullable = nullable > 0;
    if (n->kind == NODE_REPEAT && nullable)
        n->min = 0; /* the same texts, and no empty rounds to count */
    return n->nullable != before.nullable || n->only_empty != before.only_empty;
}

static bool update_measures(struct rules *r, uint32_t node)
{
    struct rules_node *n = &r->nodes[node];
    uint32_t shortest, height;

    measure(r, node, &shortest, &height);
    if (shortest == n->shortest && height == n->height)
        return false;
    n->shortest = shortest;
    n->height = (uint16_t)height;
    return true;
}

/* Passes over the nodes until nothing changes. */
static void settle(struct rules *r, const uint32_t *order, uint32_t count,
                   bool (*update)(struct rules *, uint32_t))
{
    bool changed = true;

    for (int pass = 0; changed; pass++) {
        changed = false;
        for (uint32_t i = 0; i < count; i++)
            changed |= update(r, order[i]);
        if (pass == MAX_PASSES && changed) {
            rules_fail(r, "its rules refer to each other in too complicated a way");
            return;
        }
    }
}

/* The name of a rule on the path from `node` down to its end. */
static const char *name_on_path(const struct rules *r, const struct search *s, uint32_t node)
{
    const char *name = "?";

    for (uint32_t i = s->depth; i-- > 0;) {
        const struct rules_node *n = &r->nodes[s->path[i]];
        if (n->kind == NODE_REFERENCE)
            name = r->names[n->first];
        if (s->path[i] == node)
            break;
    }
    return name;
}

/* Fails when a node can begin with itself. */
static void check_left_recursion(struct rules *r)
{
    struct search s;

    search_new(&s, r);
    for (uint32_t start = 0; start < r->roots_n; start++) {
        if (r->roots[start] == NODE_NONE || s.seen[r->roots[start]])
            continue;
        search_enter(&s, r->roots[start]);
        while (s.depth > 0 && !r->failed) {
            uint32_t node = s.path[s.depth - 1], i = s.index[s.depth - 1]++;
            bool reached = i == 0 || r->nodes[node].kind != NODE_SEQUENCE ||
                           r->nodes[rules_child(r, node, i - 1)].nullable;
            if (!reached || i == rules_children(r, node)) {
                s.seen[node] = 2;
                s.depth--;
                continue;
            }
            uint32_t child = rules_child(r, node, i);
            if (child == NODE_NONE)
                continue;
            if (s.seen[child] == 1)
                rules_fail(r, "%.100s can begin with itself (left recursion)",
                           name_on_path(r, &s, child));
            else if (s.seen[child] == 0)
                search_enter(&s, child);
        }
    }
    search_free(&s);
}

/* Splits the classes of bytes by a set. */
static void split_classes(struct rules *r, const struct byte_set *set)
{
    int16_t inside[256],
        outside[256]; /* by old class: the new one of its bytes in the set, or not */
    int16_t next = 0;

    memset(inside, 0xFF, sizeof(inside));
    memset(outside, 0xFF, sizeof(outside));
    for (unsigned byte = 0; byte < 256; byte++) {
        int16_t *side = byte_set_has(set, (uint8_t)byte) ? inside : outside;
        if (side[r->class_of[byte]] < 0)
            side[r->class_of[byte]] = next++;
        r->class_of[byte] = (uint8_t)side[r->class_of[byte]];
        r->class_sample[r->class_of[byte]] = (uint8_t)byte;
    }
    r->classes_n = (uint32_t)next;
}

static void find_classes(struct rules *r, const uint32_t *order, uint32_t count)
{
    uint8_t *done = mem_zalloc(r->sets_n + 1, 1);
    struct byte_set literal = {{0}};

    split_classes(r, &literal);
    for (uint32_t i = 0; i < count; i++) {
        const struct rules_node *n = &r->nodes[order[i]];
        if (n->kind == NODE_CLASS && !done[n->first]) {
            done[n->first] = 1;
            split_classes(r, &r->sets[n->first]);
        }
        for (uint32_t b = 0; n->kind == NODE_BYTES && b < n->count; b++)
            byte_set_add(&literal, (uint8_t)r->bytes[n->first + b],
                         (uint8_t)r->bytes[n->first + b]);
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        struct byte_set one = {{0}};
        byte_set_add(&one, byte, byte);
        if (byte_set_has(&literal, (uint8_t)byte))
            split_classes(r, &one);
    }
    free(done);
}

int rules_finish(struct rules *r, uint32_t root, struct error *err)
{
    uint32_t *order = NULL, count = 0;

    r->root = root;
    if (!r->failed)
        order = order_nodes(r, &count);
    for (uint32_t i = 0; i < count; i++) {
        r->nodes[order[i]].only_empty = true;
        r->nodes[order[i]].shortest = UINT32_MAX;
        r->nodes[order[i]].height = HEIGHT_INFINITE;
    }
    if (!r->failed)
        settle(r, order, count, update_empty);
    if (!r->failed)
        check_left_recursion(r);
    if (!r->failed)
        settle(r, order, count, update_measures);
    if (!r->failed && r->nodes[root].height > GRAMMAR_MAX_DEPTH)
        rules_fail(r, "no text can match it: it needs itself without end, or nests too deeply");
    for (uint32_t i = 0; i < count && !r->failed; i++)
        if (r->nodes[order[i]].height <= GRAMMAR_MAX_DEPTH &&
            r->nodes[order[i]].shortest > RULES_MAX_SHORTEST)
            rules_fail(r, "it asks for more than %d bytes at a place", (int)RULES_MAX_SHORTEST);
    if (!r->failed)
        find_classes(r, order, count);
    free(order);
    return r->failed ? error_set(err, "%s", r->error.message) : 0;
}
