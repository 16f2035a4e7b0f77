/* Open addressing with linear probing, at most two thirds full. The state lies in the two lowest
 * bits of the second half of the hash. */
#include "server/id_set.h"

#include "base/clock.h"
#include "base/memory.h"
#include "base/panic.h"
#include "base/siphash.h"

#include <stdlib.h>

enum { FIRST_CAPACITY = 1 << 12, STATE_BITS = 3 };

struct entry {
    uint64_t hash, rest; /* the state in `rest` is ID_UNKNOWN where there is no entry */
};

struct id_set {
    uint64_t keys[2][2];
    struct entry *entries;
    size_t capacity; /* a power of two */
    size_t count;
};

struct id_set *id_set_new(void)
{
    struct id_set *set = mem_zalloc(1, sizeof(*set));

    for (int i = 0; i < 4; i++)
        set->keys[i / 2][i % 2] = clock_entropy();
    set->capacity = FIRST_CAPACITY;
    set->entries = mem_zalloc(set->capacity, sizeof(*set->entries));
    return set;
}

void id_set_free(struct id_set *set)
{
    if (!set)
        return;
    free(set->entries);
    free(set);
}

/* The id's entry, or the free one where it belongs. */
static struct entry *find(const struct id_set *set, uint64_t hash, uint64_t rest)
{
    size_t at = hash & (set->capacity - 1);

    while (set->entries[at].rest & STATE_BITS) {
        const struct entry *e = &set->entries[at];
        if (e->hash == hash && (e->rest | STATE_BITS) == (rest | STATE_BITS))
            break;
        at = (at + 1) & (set->capacity - 1);
    }
    return &set->entries[at];
}

static void grow(struct id_set *set)
{
    struct entry *old = set->entries;
    size_t old_capacity = set->capacity;

    set->capacity *= 2;
    set->entries = mem_zalloc(set->capacity, sizeof(*set->entries));
    for (size_t i = 0; i < old_capacity; i++)
        if (old[i].rest & STATE_BITS)
            *find(set, old[i].hash, old[i].rest) = old[i];
    free(old);
}

enum id_state id_set_put(struct id_set *set, const void *id, size_t len, enum id_state state)
{
    uint64_t hash = siphash_keyed(id, len, set->keys[0]);
    uint64_t rest = siphash_keyed(id, len, set->keys[1]) & ~(uint64_t)STATE_BITS;
    struct entry *e = find(set, hash, rest);
    enum id_state before = (enum id_state)(e->rest & STATE_BITS);

    ASSERT(state != ID_UNKNOWN);
    *e = (struct entry){.hash = hash, .rest = rest | state};
    if (before == ID_UNKNOWN && ++set->count * 3 > set->capacity * 2)
        grow(set);
    return before;
}

int64_t id_set_count(const struct id_set *set)
{
    return (int64_t)set->count;
}
