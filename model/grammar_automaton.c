#include "model/grammar_automaton.h"

#include "base/memory.h"
#include "base/panic.h"

#include <stdlib.h>
#include <string.h>

enum {
    STATE_UNKNOWN = -1,
    MAX_EXPANSIONS = 1 << 14, /* of cells for one byte */
    MAX_MASK_WORK = 1 << 16,  /* stacks of the states that one mask goes through */
    PROBE_STEPS = 512,        /* bytes ahead, on each way */
    PROBE_WAYS = 4,
    PROBE_EXPANSIONS = 1 << 17,
};

/* A place in a node, and what comes after it. */
struct cell {
    uint64_t hash; /* of the whole stack, from its contents alone */
    uint32_t node;
    uint32_t position;  /* child of a sequence; byte of a text; rounds of a repeat that are done */
    uint32_t next;      /* the cell below; 0: the bottom */
    uint32_t remaining; /* fewest bytes to the end of the text */
    uint32_t seen;      /* the step that expanded it last */
    uint32_t rounds;    /* of a counter cell (see is_outdone): the fewest in step `seen` */
    uint32_t depth;
};

struct state {
    uint64_t hash;
    uint32_t first, count; /* of `lists`: its stacks */
    uint32_t room;         /* plain characters that may follow here for certain */
    uint32_t walk;         /* the mask walk that came here last */
    bool accepting;
    bool mask_used; /* since the hand of the clock came by */
    int32_t *next;  /* by class of bytes; NULL: nothing known yet */
    uint32_t *mask; /* NULL: not made, or dropped */
};

/* Open addressing over numbers of cells or states; at most half full. 0 is a free slot. */
struct intern_table {
    uint32_t *slots;
    uint32_t slots_n;
};

struct tables {
    struct cell *cells;   /* [0] is the bottom */
    struct state *states; /* [STATE_DEAD] */
    uint32_t *lists;
    uint32_t cells_n, cells_cap, states_n, states_cap, lists_n, lists_cap;
    struct intern_table cell_table, state_table;
    uint32_t rows;    /* states with `next` */
    uint32_t *masked; /* states with a mask: a clock */
    uint32_t masked_n, masked_hand;
};

struct automaton {
    struct rules *rules;
    const struct vocabulary_trie *trie;
    struct tables t;
    int32_t start;
    size_t bytes_max; /* AUTOMATON_MAX_BYTES, or twice what the states in use take */
    uint32_t masks_max;
    uint32_t step, walk; /* numbers of the step and the walk going on */
    uint64_t expansions; /* of all steps */
    /* Of the step going on: cells to expand, stacks found. */
    uint32_t *work, work_n, work_cap;
    uint32_t found[AUTOMATON_MAX_STACKS], found_n;
    uint32_t room;
    bool accepting, truncated;
    int32_t *way; /* states of a mask walk, by depth */
};

/* ---- tables ---- */

static uint64_t mix(uint64_t a, uint64_t b)
{
    a = (a ^ b) * 0x9E3779B97F4A7C15ULL;
    return a ^ a >> 29;
}

static void *grow(void *array, uint32_t *cap, uint32_t want, size_t size)
{
    if (want <= *cap)
        return array;
    *cap = 2 * *cap > want ? 2 * *cap : want + 64;
    return mem_resize(array, *cap, size);
}

static uint64_t cell_hash_of(const struct tables *t, uint32_t i)
{
    return t->cells[i].hash;
}

static uint64_t state_hash_of(const struct tables *t, uint32_t i)
{
    return t->states[i].hash;
}

/* Doubles a table that got half full. */
static void intern_grow(const struct tables *t, struct intern_table *table, uint32_t used,
                        uint64_t (*hash_of)(const struct tables *, uint32_t))
{
    if (2 * used < table->slots_n)
        return;
    free(table->slots);
    table->slots_n = table->slots_n ? 2 * table->slots_n : 256;
    while (2 * used >= table->slots_n)
        table->slots_n *= 2;
    table->slots = mem_zalloc(table->slots_n, sizeof(*table->slots));
    for (uint32_t i = 1; i < used; i++) {
        uint32_t slot = (uint32_t)hash_of(t, i) & (table->slots_n - 1);
        while (table->slots[slot])
            slot = (slot + 1) & (table->slots_n - 1);
        table->slots[slot] = i;
    }
}

static void tables_init(struct tables *t)
{
    *t = (struct tables){0};
    t->cells = grow(NULL, &t->cells_cap, 256, sizeof(*t->cells));
    t->states = grow(NULL, &t->states_cap, 64, sizeof(*t->states));
    t->cells[t->cells_n++] = (struct cell){0};
    t->states[t->states_n++] = (struct state){0};
    intern_grow(t, &t->cell_table, t->cells_n, cell_hash_of);
    intern_grow(t, &t->state_table, t->states_n, state_hash_of);
}

static void tables_free(struct tables *t)
{
    for (uint32_t i = 0; i < t->states_n; i++) {
        free(t->states[i].next);
        free(t->states[i].mask);
    }
    free(t->cells);
    free(t->states);
    free(t->lists);
    free(t->cell_table.slots);
    free(t->state_table.slots);
    free(t->masked);
}

/* The cell with these contents. */
static uint32_t make_cell(struct automaton *a, uint32_t node, uint32_t position, uint32_t next,
                          uint32_t remaining)
{
    struct tables *t = &a->t;
    uint64_t hash = mix(mix(t->cells[next].hash, node), position + 1ULL);
    uint32_t slot = (uint32_t)hash & (t->cell_table.slots_n - 1);

    for (; t->cell_table.slots[slot]; slot = (slot + 1) & (t->cell_table.slots_n - 1)) {
        const struct cell *c = &t->cells[t->cell_table.slots[slot]];
        if (c->hash == hash && c->node == node && c->position == position && c->next == next)
            return t->cell_table.slots[slot];
    }
    t->cells = grow(t->cells, &t->cells_cap, t->cells_n + 1, sizeof(*t->cells));
    t->cell_table.slots[slot] = t->cells_n;
    t->cells[t->cells_n++] = (struct cell){.hash = hash,
                                           .node = node,
                                           .position = position,
                                           .next = next,
                                           .remaining = remaining,
                                           .depth = t->cells[next].depth + 1};
    intern_grow(t, &t->cell_table, t->cells_n, cell_hash_of);
    return t->cells_n - 1;
}

/* The state with the stacks found, which are sorted already. */
static int32_t make_state(struct automaton *a)
{
    struct tables *t = &a->t;
    uint64_t hash = mix(a->accepting, a->room);

    if (a->found_n == 0 && !a->accepting)
        return STATE_DEAD;
    for (uint32_t i = 0; i < a->found_n; i++)
        hash = mix(hash, t->cells[a->found[i]].hash);
    uint32_t slot = (uint32_t)hash & (t->state_table.slots_n - 1);
    for (; t->state_table.slots[slot]; slot = (slot + 1) & (t->state_table.slots_n - 1)) {
        const struct state *s = &t->states[t->state_table.slots[slot]];
        if (s->hash == hash && s->count == a->found_n && s->accepting == a->accepting &&
            s->room == a->room &&
            memcmp(t->lists + s->first, a->found, a->found_n * sizeof(*a->found)) == 0)
            return (int32_t)t->state_table.slots[slot];
    }
    t->lists = grow(t->lists, &t->lists_cap, t->lists_n + a->found_n + 1, sizeof(*t->lists));
    t->states = grow(t->states, &t->states_cap, t->states_n + 1, sizeof(*t->states));
    memcpy(t->lists + t->lists_n, a->found, a->found_n * sizeof(*a->found));
    t->state_table.slots[slot] = t->states_n;
    t->states[t->states_n++] = (struct state){.hash = hash,
                                              .first = t->lists_n,
                                              .count = a->found_n,
                                              .room = a->room,
                                              .accepting = a->accepting};
    t->lists_n += a->found_n;
    intern_grow(t, &t->state_table, t->states_n, state_hash_of);
    return (int32_t)t->states_n - 1;
}

/* ---- one step: from the places after a byte to the stacks that wait for the next ---- */

static uint32_t add_remaining(uint32_t a, uint32_t b)
{
    return a > UINT32_MAX - b ? UINT32_MAX : a + b;
}

static void push_work(struct automaton *a, uint32_t cell)
{
    a->work = grow(a->work, &a->work_cap, a->work_n + 1, sizeof(*a->work));
    a->work[a->work_n++] = cell;
}

/* Adds the beginning of a node, above `next`, to the work, unless it does not fit. True if it did.
 */
static bool enter(struct automaton *a, uint32_t node, uint32_t next)
{
    const struct rules_node *n = &a->rules->nodes[node];
    const struct cell *below = &a->t.cells[next];

    if (n->height > GRAMMAR_MAX_DEPTH || below->depth + n->height > GRAMMAR_MAX_DEPTH)
        return false;
    if (n->only_empty)
        push_work(a, next);
    else
        push_work(a, make_cell(a, node, 0, next, add_remaining(n->shortest, below->remaining)));
    return true;
}

/* Whether this repeat, over the same stack, was gone through in this step with fewer rounds done.
 * Past its minimum, whatever may follow after more rounds may follow after fewer. The cell with the
 * position UINT32_MAX keeps the fewest. */
static bool is_outdone(struct automaton *a, const struct cell *c)
{
    uint32_t rounds = c->position, id = make_cell(a, c->node, UINT32_MAX, c->next, 0);
    struct cell *counter = &a->t.cells[id];

    if (counter->seen == a->step && counter->rounds <= rounds)
        return true;
    counter->seen = a->step;
    counter->rounds = rounds;
    return false;
}

static void expand_repeat(struct automaton *a, struct cell c)
{
    const struct rules_node *n = &a->rules->nodes[c.node];
    const struct rules_node *item = &a->rules->nodes[n->first];
    uint32_t rounds = c.position + 1, over = c.next, saved = 0;

    if (c.position >= n->min) {
        if (n->max != REPEAT_MAX && is_outdone(a, &c))
            return;
        push_work(a, c.next);
    }
    if (n->max == REPEAT_MAX && rounds > n->min)
        rounds = n->min;     /* no use in counting on */
    if (c.position < n->min) /* one round less to come */
        saved = item->shortest;
    if (rounds != n->max)
        over = make_cell(a, c.node, rounds, c.next,
                         c.remaining == UINT32_MAX ? UINT32_MAX : c.remaining - saved);
    if (enter(a, n->first, over) && item->any_plain) {
        uint32_t left = n->max == REPEAT_MAX ? REPEAT_MAX : n->max - c.position;
        a->room = left > a->room ? left : a->room;
    }
}

static void expand_sequence(struct automaton *a, struct cell c)
{
    const struct rules_node *n = &a->rules->nodes[c.node];
    uint32_t child = a->rules->children[n->first + c.position], over = c.next;
    uint32_t shortest = a->rules->nodes[child].shortest;

    if (c.position + 1 < n->count)
        over = make_cell(a, c.node, c.position + 1, c.next,
                         c.remaining == UINT32_MAX ? UINT32_MAX : c.remaining - shortest);
    enter(a, child, over);
}

/* Finds what a cell waits for, going through all that takes no byte. */
static void expand(struct automaton *a, uint32_t id)
{
    struct cell c = a->t.cells[id];
    const struct rules_node *n = &a->rules->nodes[c.node];

    if (id == 0) {
        a->accepting = true;
        return;
    }
    if (c.seen == a->step)
        return;
    a->t.cells[id].seen = a->step;
    a->expansions++;
    switch ((enum node_kind)n->kind) {
    case NODE_BYTES:
    case NODE_CLASS:
        a->found[a->found_n++] = id;
        break;
    case NODE_SEQUENCE:
        expand_sequence(a, c);
        break;
    case NODE_CHOICE:
        for (uint32_t i = n->count; i-- > 0;) /* the first ends up on top of the work */
            enter(a, a->rules->children[n->first + i], c.next);
        break;
    case NODE_REPEAT:
        expand_repeat(a, c);
        break;
    case NODE_REFERENCE:
        enter(a, a->rules->roots[n->first], c.next);
        break;
    }
}

static void step_begin(struct automaton *a)
{
    a->step++;
    a->work_n = a->found_n = a->room = 0;
    a->accepting = false;
}

/* Expands `id` and all that it leads to. Some way is always found before the bound on work counts:
 * a node that is entered has a text, and one that only has the empty text is never entered. */
static void step_add(struct automaton *a, uint32_t id, uint64_t first_expansion)
{
    push_work(a, id);
    while (a->work_n > 0) {
        bool enough =
            a->found_n == AUTOMATON_MAX_STACKS || a->expansions - first_expansion > MAX_EXPANSIONS;
        if (enough && (a->found_n > 0 || a->accepting)) {
            a->truncated = true;
            a->work_n = 0;
            return;
        }
        expand(a, a->work[--a->work_n]);
    }
}

static int compare_cells(const void *x, const void *y, void *context)
{
    const struct cell *cells = context;
    const struct cell *a = &cells[*(const uint32_t *)x], *b = &cells[*(const uint32_t *)y];

    return (a->hash > b->hash) - (a->hash < b->hash);
}

static int32_t step_end(struct automaton *a)
{
    if (a->found_n > 1)
        qsort_r(a->found, a->found_n, sizeof(*a->found), compare_cells, a->t.cells);
    return make_state(a);
}

static int32_t compute_next(struct automaton *a, int32_t state, uint8_t byte)
{
    uint64_t first_expansion = a->expansions;
    struct state s = a->t.states[state];

    step_begin(a);
    for (uint32_t i = 0; i < s.count; i++) {
        struct cell c = a->t.cells[a->t.lists[s.first + i]];
        const struct rules_node *n = &a->rules->nodes[c.node];
        uint32_t after = c.next;
        if (n->kind == NODE_CLASS) {
            if (!byte_set_has(&a->rules->sets[n->first], byte))
                continue;
        } else {
            if ((uint8_t)a->rules->bytes[n->first + c.position] != byte)
                continue;
            if (c.position + 1 < n->count)
                after = make_cell(a, c.node, c.position + 1, c.next,
                                  c.remaining == UINT32_MAX ? UINT32_MAX : c.remaining - 1);
        }
        step_add(a, after, first_expansion);
    }
    return step_end(a);
}

static int32_t next_by_class(struct automaton *a, int32_t state, uint8_t class)
{
    struct state *s = &a->t.states[state];

    if (!s->next) {
        s->next = mem_alloc(a->rules->classes_n * sizeof(*s->next));
        memset(s->next, 0xFF, a->rules->classes_n * sizeof(*s->next));
        a->t.rows++;
    }
    if (s->next[class] == STATE_UNKNOWN) {
        int32_t next = compute_next(a, state, a->rules->class_sample[class]);
        a->t.states[state].next[class] = next; /* the states may have moved */
        return next;
    }
    return s->next[class];
}

/* ---- masks ---- */

static void allow(uint32_t *mask, int32_t token)
{
    mask[token / 32] |= 1U << token % 32;
}

static void allow_same(const struct vocabulary_trie *trie, uint32_t *mask, int32_t token)
{
    for (; token >= 0; token = trie->same[token])
        allow(mask, token);
}

/* Walks over the nodes of the trie, but not into subtrees of plain tokens of up to `room`
 * characters; with `single_bytes`, only over those at the first level. Ways that would take the
 * walk past MAX_MASK_WORK are left out; returns whether that was so. */
static bool walk_nodes(struct automaton *a, int32_t state, uint32_t room, bool single_bytes,
                       uint32_t *mask)
{
    const struct vocabulary_trie *trie = a->trie;
    const uint8_t *class_of = a->rules->class_of;
    uint32_t work = 0;
    bool cut = false;

    a->walk++;
    a->way[0] = state;
    for (uint32_t i = 0; i < trie->count;) {
        const struct trie_node *node = &trie->nodes[i];
        if (node->plain <= room) {
            i = node->skip;
            continue;
        }
        int32_t to = next_by_class(a, a->way[node->depth - 1], class_of[node->byte]);
        struct state *s = &a->t.states[to];
        if (to != STATE_DEAD && s->walk != a->walk) {
            s->walk = a->walk;
            work += 8 + s->count;
        }
        if (to == STATE_DEAD || (work > MAX_MASK_WORK && !single_bytes)) {
            cut |= to != STATE_DEAD;
            i = node->skip;
            continue;
        }
        a->way[node->depth] = to;
        if (node->token >= 0)
            allow_same(trie, mask, node->token);
        i = single_bytes ? node->skip : i + 1;
    }
    return cut;
}

static void fill_mask(struct automaton *a, int32_t state, uint32_t *mask)
{
    const struct vocabulary_trie *trie = a->trie;
    uint32_t room = a->truncated ? 0 : a->t.states[state].room;

    room = room < PLAIN_MAX_CHARACTERS ? room : PLAIN_MAX_CHARACTERS;
    memcpy(mask, trie->plain + room * trie->mask_words, trie->mask_words * sizeof(*mask));
    if (walk_nodes(a, state, room, false, mask))
        walk_nodes(a, state, room, true, mask); /* the bytes at least: never a dead end */
    for (size_t i = 0; a->t.states[state].accepting && i < trie->end_tokens_n; i++)
        allow(mask, trie->end_tokens[i]);
}

/* A place for the mask of `state`: a new one, or that of a state which was not asked for lately. */
static uint32_t *claim_mask(struct automaton *a, int32_t state)
{
    struct tables *t = &a->t;

    if (!t->masked)
        t->masked = mem_alloc(a->masks_max * sizeof(*t->masked));
    if (t->masked_n < a->masks_max) {
        t->masked[t->masked_n++] = (uint32_t)state;
        return mem_alloc(a->trie->mask_words * sizeof(uint32_t));
    }
    for (;; t->masked_hand = (t->masked_hand + 1) % t->masked_n) {
        struct state *s = &t->states[t->masked[t->masked_hand]];
        if (!s->mask_used) {
            uint32_t *mask = s->mask;
            s->mask = NULL;
            t->masked[t->masked_hand] = (uint32_t)state;
            t->masked_hand = (t->masked_hand + 1) % t->masked_n;
            return mask;
        }
        s->mask_used = false;
    }
}

const uint32_t *automaton_mask(struct automaton *a, int32_t state)
{
    ASSERT(state != STATE_DEAD);
    if (!a->t.states[state].mask) {
        uint32_t *mask = claim_mask(a, state);
        fill_mask(a, state, mask);
        a->t.states[state].mask = mask;
    }
    a->t.states[state].mask_used = true;
    return a->t.states[state].mask;
}

/* ---- the automaton ---- */

struct automaton *automaton_new(struct rules *rules, const struct vocabulary_trie *trie)
{
    struct automaton *a = mem_zalloc(1, sizeof(*a));
    size_t mask_bytes = trie->mask_words * sizeof(uint32_t);

    a->rules = rules;
    a->trie = trie;
    a->bytes_max = AUTOMATON_MAX_BYTES;
    a->way = mem_zalloc(trie->depth + 1, sizeof(*a->way));
    a->masks_max = (uint32_t)(AUTOMATON_MASK_BYTES / (mask_bytes + 1));
    a->masks_max = a->masks_max < 16 ? 16 : a->masks_max > 1 << 14 ? 1 << 14 : a->masks_max;
    tables_init(&a->t);
    step_begin(a);
    if (enter(a, rules->root, 0))
        step_add(a, a->work[--a->work_n], 0);
    a->start = step_end(a);
    ASSERT(a->start != STATE_DEAD); /* rules_finish saw to it */
    return a;
}

void automaton_free(struct automaton *a)
{
    if (!a)
        return;
    tables_free(&a->t);
    rules_free(a->rules);
    free(a->work);
    free(a->way);
    free(a);
}

const struct vocabulary_trie *automaton_trie(const struct automaton *a)
{
    return a->trie;
}

int32_t automaton_start(struct automaton *a)
{
    return a->start;
}

int32_t automaton_next(struct automaton *a, int32_t state, uint8_t byte)
{
    return next_by_class(a, state, a->rules->class_of[byte]);
}

bool automaton_may_end(const struct automaton *a, int32_t state)
{
    return a->t.states[state].accepting;
}

bool automaton_may_go_on(const struct automaton *a, int32_t state)
{
    return a->t.states[state].count > 0;
}

uint32_t automaton_distance(const struct automaton *a, int32_t state)
{
    const struct state *s = &a->t.states[state];
    uint32_t distance = s->accepting ? 0 : UINT32_MAX;

    for (uint32_t i = 0; i < s->count; i++) {
        uint32_t remaining = a->t.cells[a->t.lists[s->first + i]].remaining;
        distance = remaining < distance ? remaining : distance;
    }
    return distance;
}

/* ---- looking ahead ---- */

/* The next state of a probe: by turns the one with most stacks, and any. */
static int32_t probe_step(struct automaton *a, int32_t state, bool greedy, uint64_t *random)
{
    int32_t best = STATE_DEAD;
    uint64_t best_rank = 0;

    for (uint32_t class = 0; class < a->rules->classes_n; class ++) {
        int32_t next = next_by_class(a, state, (uint8_t) class);
        *random = mix(*random, class + 1);
        uint64_t rank = *random >> 33;
        if (greedy)
            rank |= (uint64_t)a->t.states[next].count << 32;
        if (next != STATE_DEAD && a->t.states[next].count > 0 &&
            (best == STATE_DEAD || rank > best_rank)) {
            best = next;
            best_rank = rank;
        }
    }
    return best;
}

int automaton_probe(struct automaton *a, struct error *err)
{
    uint64_t random = 1;

    for (int way = 0; way < PROBE_WAYS; way++) {
        int32_t state = a->start;
        for (int i = 0; i < PROBE_STEPS && state != STATE_DEAD; i++) {
            if (automaton_is_full(a) || a->expansions > PROBE_EXPANSIONS)
                break;
            state = probe_step(a, state, way % 2 == 0, &random);
            if (a->truncated)
                return error_set(err,
                                 "it is too ambiguous: after %d bytes there are more than %d ways "
                                 "to read a text",
                                 i, (int)AUTOMATON_MAX_STACKS);
        }
    }
    return 0;
}

/* ---- collecting ---- */

size_t automaton_bytes(const struct automaton *a)
{
    const struct tables *t = &a->t;

    return t->cells_cap * sizeof(*t->cells) + t->states_cap * sizeof(*t->states) +
           t->lists_cap * sizeof(*t->lists) + t->cell_table.slots_n * sizeof(uint32_t) +
           t->state_table.slots_n * sizeof(uint32_t) +
           (size_t)t->rows * a->rules->classes_n * sizeof(int32_t);
}

bool automaton_is_full(const struct automaton *a)
{
    return automaton_bytes(a) > a->bytes_max || a->step > UINT32_MAX / 2;
}

/* The cell of the new tables with the contents of an old one. `moved`: by old cell, its new one. */
static uint32_t move_cell(struct automaton *a, const struct tables *old, uint32_t *moved,
                          uint32_t id)
{
    uint32_t path[GRAMMAR_MAX_DEPTH + 1], depth = 0, below = 0;

    for (; id != 0 && !moved[id]; id = old->cells[id].next)
        path[depth++] = id;
    below = moved[id];
    while (depth-- > 0) {
        const struct cell *c = &old->cells[path[depth]];
        below = make_cell(a, c->node, c->position, below, c->remaining);
        moved[path[depth]] = below;
    }
    return below;
}

static int32_t move_state(struct automaton *a, const struct tables *old, uint32_t *moved,
                          int32_t state)
{
    const struct state *s = &old->states[state];

    step_begin(a);
    for (uint32_t i = 0; i < s->count; i++)
        a->found[a->found_n++] = move_cell(a, old, moved, old->lists[s->first + i]);
    a->accepting = s->accepting;
    a->room = s->room;
    return step_end(a);
}

void automaton_collect(struct automaton *a, int32_t **states, size_t count)
{
    struct tables old = a->t;
    uint32_t *moved = mem_zalloc(old.cells_n, sizeof(*moved));

    tables_init(&a->t);
    a->step = a->walk = 0;
    a->start = move_state(a, &old, moved, a->start);
    for (size_t i = 0; i < count; i++)
        *states[i] = move_state(a, &old, moved, *states[i]);
    free(moved);
    tables_free(&old);
    a->bytes_max =
        2 * automaton_bytes(a) > AUTOMATON_MAX_BYTES ? 2 * automaton_bytes(a) : AUTOMATON_MAX_BYTES;
}
