/* Which ids were seen: a set that keeps 16 bytes of hash for each instead of the id, so that tens
 * of millions fit in memory. Two ids are taken for one with a probability of n^2 / 2^127. */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct id_set;

enum id_state { ID_UNKNOWN, ID_DONE, ID_TAKEN };

struct id_set *id_set_new(void);
void id_set_free(struct id_set *set);

/* Gives the id a state and returns the one it had. */
enum id_state id_set_put(struct id_set *set, const void *id, size_t len, enum id_state state);

int64_t id_set_count(const struct id_set *set);
