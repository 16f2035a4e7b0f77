#include "model/hash_map.h"

#include "base/memory.h"
#include "base/panic.h"

#include <stdlib.h>
#include <string.h>

struct hash_map_slot {
    uint64_t key;
    uint64_t value_plus_1; /* 0: the slot is free */
};

/* Spreads the bits of a key over the whole word (the finaliser of MurmurHash3). */
static uint64_t mix(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdULL;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ULL;
    return x ^ x >> 33;
}

/* The slot of `key`, or the free one where it belongs. */
static struct hash_map_slot *find_slot(const struct hash_map *map, uint64_t key)
{
    size_t at = mix(key) & (map->slots_n - 1);

    while (map->slots[at].value_plus_1 && map->slots[at].key != key)
        at = (at + 1) & (map->slots_n - 1);
    return &map->slots[at];
}

void hash_map_init(struct hash_map *map, size_t expected)
{
    *map = (struct hash_map){.slots_n = 16};
    while (map->slots_n < 2 * expected)
        map->slots_n *= 2;
    map->slots = mem_zalloc(map->slots_n, sizeof(*map->slots));
}

void hash_map_free(struct hash_map *map)
{
    free(map->slots);
    *map = (struct hash_map){0};
}

static void grow(struct hash_map *map)
{
    struct hash_map old = *map;

    hash_map_init(map, old.slots_n);
    for (size_t i = 0; i < old.slots_n; i++)
        if (old.slots[i].value_plus_1)
            *find_slot(map, old.slots[i].key) = old.slots[i];
    map->count = old.count;
    hash_map_free(&old);
}

void hash_map_set(struct hash_map *map, uint64_t key, uint64_t value)
{
    struct hash_map_slot *slot = find_slot(map, key);

    ASSERT(value != UINT64_MAX);
    if (!slot->value_plus_1) {
        if (2 * (map->count + 1) > map->slots_n) {
            grow(map);
            slot = find_slot(map, key);
        }
        map->count++;
    }
    *slot = (struct hash_map_slot){key, value + 1};
}

bool hash_map_get(const struct hash_map *map, uint64_t key, uint64_t *value)
{
    const struct hash_map_slot *slot = find_slot(map, key);

    if (!slot->value_plus_1)
        return false;
    *value = slot->value_plus_1 - 1;
    return true;
}

uint64_t hash_bytes(const char *data, size_t len, uint64_t seed)
{
    uint64_t hash = mix(seed ^ len), word;

    for (; len >= sizeof(word); data += sizeof(word), len -= sizeof(word)) {
        memcpy(&word, data, sizeof(word));
        hash = mix(hash ^ word);
    }
    word = 0;
    memcpy(&word, data, len);
    return mix(hash + word);
}
