/* A hash map from 64-bit keys to 64-bit values: filled once at load, then only read (which any
 * number of threads may do). Open addressing with linear probing, at most half full. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct hash_map_slot;

struct hash_map {
    struct hash_map_slot *slots;
    size_t slots_n; /* a power of two */
    size_t count;
};

/* An empty map with room for `expected` keys; it grows when there are more. */
void hash_map_init(struct hash_map *map, size_t expected);
void hash_map_free(struct hash_map *map);

/* Sets the value of `key`, whether it was there or not. The value UINT64_MAX can't be held. */
void hash_map_set(struct hash_map *map, uint64_t key, uint64_t value);

/* True and the value when the key is there. */
bool hash_map_get(const struct hash_map *map, uint64_t key, uint64_t *value);

/* A 64-bit hash of a string; different seeds give unrelated hashes. */
uint64_t hash_bytes(const char *data, size_t len, uint64_t seed);
