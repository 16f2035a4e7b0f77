/* Markers in text that is still growing. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

enum match {
    MATCH_NONE,
    MATCH_PARTIAL, /* the text ends inside what could be the marker */
    MATCH_FULL,
};

/* Whether the text begins with the marker. */
enum match marker_at(const char *text, size_t len, const char *marker);

/* Finds the marker that begins first (of those beginning together the longest). Returns how many
 * bytes are certainly before any marker; `*found` is the index of the marker that follows them, or
 * -1 when none does yet. `final` means that no more text will come. Markers may be NULL. */
size_t marker_scan(const char *text, size_t len, const char *const *markers, int n, bool final,
                   int *found);

/* Bytes of white space (of ASCII) that the text begins with. */
size_t space_prefix(const char *text, size_t len);
