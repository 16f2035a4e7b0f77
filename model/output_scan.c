#include "model/output_scan.h"

#include <string.h>

enum match marker_at(const char *text, size_t len, const char *marker)
{
    size_t whole = strlen(marker);

    if (memcmp(text, marker, len < whole ? len : whole) != 0)
        return MATCH_NONE;
    return len < whole ? MATCH_PARTIAL : MATCH_FULL;
}

/* The longest marker that stands at the start of the text, or -1. `*undecided`: a longer one could
 * still turn out to. */
static int longest_at(const char *text, size_t len, const char *const *markers, int n,
                      bool *undecided)
{
    int found = -1;

    *undecided = false;
    for (int i = 0; i < n; i++) {
        if (!markers[i] || markers[i][0] != text[0])
            continue;
        enum match match = marker_at(text, len, markers[i]);
        if (match == MATCH_PARTIAL) /* longer than all that the text has in full */
            *undecided = true;
        else if (match == MATCH_FULL && (found < 0 || strlen(markers[i]) > strlen(markers[found])))
            found = i;
    }
    return found;
}

size_t marker_scan(const char *text, size_t len, const char *const *markers, int n, bool final,
                   int *found)
{
    *found = -1;
    for (size_t at = 0; at < len; at++) {
        bool undecided;
        int here = longest_at(text + at, len - at, markers, n, &undecided);
        if (undecided && !final)
            return at;
        if (here >= 0) {
            *found = here;
            return at;
        }
    }
    return len;
}

size_t space_prefix(const char *text, size_t len)
{
    size_t n = 0;

    while (n < len && memchr(" \t\r\n", text[n], 4))
        n++;
    return n;
}
