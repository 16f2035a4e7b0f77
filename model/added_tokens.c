/* A set of tokens is an array sorted by content, with the range of each first byte. At a place in
 * the text the range is narrowed byte by byte; the last entry that ended on the way is the longest
 * match. */
#include "model/added_tokens.h"

#include "base/memory.h"
#include "base/utf8.h"

#include <stdlib.h>
#include <string.h>

enum { ADDED_MAX = 1 << 20, CONTENT_MAX = 4096 };

struct token_set {
    const struct added_token **tokens; /* ascending */
    size_t count;
    size_t first[257]; /* tokens that begin with byte b: first[b] .. first[b + 1] - 1 */
};

struct added_tokens {
    struct added_token *tokens; /* ascending, contents unique */
    size_t count;
    struct token_set sets[ADDED_KINDS];
    struct pattern *word; /* a character of a word; NULL when no token is single_word */
};

/* ---- loading ---- */

static int read_flag(const struct json *object, const char *name, bool *flag, struct error *err)
{
    const struct json *value = json_get(object, name);

    *flag = json_is(value, JSON_BOOL) && json_bool(value);
    if (value && !json_is(value, JSON_BOOL))
        return error_set(err, "\"%s\" must be true or false", name);
    return 0;
}

int added_token_read(const struct json *object, struct added_token *token, struct error *err)
{
    const struct json *content = json_get(object, "content");

    if (!json_is(content, JSON_STRING) || strlen(json_string(content)) > CONTENT_MAX)
        return error_set(err, "\"content\" must be a string of at most %d bytes", CONTENT_MAX);
    if (read_flag(object, "special", &token->special, err) ||
        read_flag(object, "normalized", &token->normalized, err) ||
        read_flag(object, "lstrip", &token->lstrip, err) ||
        read_flag(object, "rstrip", &token->rstrip, err) ||
        read_flag(object, "single_word", &token->single_word, err))
        return -1;
    token->content = mem_strdup(json_string(content));
    token->len = strlen(token->content);
    return 0;
}

static int read_with_id(const struct json *object, struct added_token *token, struct error *err)
{
    int64_t id;

    if (!json_integer(json_get(object, "id"), &id) || id < 0 || id >= 1 << 24)
        return error_set(err, "\"id\" must be an integer from 0 to %d", (1 << 24) - 1);
    token->id = (int32_t)id;
    return added_token_read(object, token, err);
}

/* Fills `match`. */
static int normalize(struct added_token *token, const struct normalizer *normalizer,
                     struct pattern_scratch *scratch, struct error *err)
{
    struct marked_text text = {.text = token->content, .len = token->len};
    struct normalized memory;
    int rc = 0;

    normalized_init(&memory);
    if (token->normalized)
        rc = normalizer_apply(normalizer, scratch, &text, &memory, err);
    if (rc == 0) {
        token->match = mem_alloc(text.len + 1);
        memcpy(token->match, text.text, text.len);
        token->match[text.len] = '\0';
        token->match_len = text.len;
    }
    normalized_free(&memory);
    return rc;
}

static int compare_contents(const struct added_token *a, const char *content, size_t len)
{
    int order = memcmp(a->content, content, a->len < len ? a->len : len);

    return order ? order : a->len < len ? -1 : a->len > len;
}

static int compare_tokens(const void *a, const void *b)
{
    const struct added_token *right = b;

    return compare_contents(a, right->content, right->len);
}

static void free_texts(struct added_token *token)
{
    free(token->content);
    free(token->match);
}

/* Sorts; refuses a content that stands for two ids, drops other repetitions. */
static int sort_tokens(struct added_tokens *added, struct error *err)
{
    size_t kept = 0;

    qsort(added->tokens, added->count, sizeof(*added->tokens), compare_tokens);
    for (size_t i = 0; i < added->count; i++) {
        struct added_token *token = &added->tokens[i];
        struct added_token *last = kept > 0 ? &added->tokens[kept - 1] : NULL;
        if (!last || compare_tokens(last, token) != 0) {
            added->tokens[kept++] = *token;
            continue;
        }
        int32_t id = token->id;
        free_texts(token);
        *token = (struct added_token){0};
        if (last->id != id) {
            error_set(err, "\"%.100s\" has two ids, %d and %d", last->content, last->id, id);
            /* What is not looked at yet still owns its contents. */
            for (i++; i < added->count; i++)
                free_texts(&added->tokens[i]);
            added->count = kept;
            return -1;
        }
    }
    added->count = kept;
    return 0;
}

/* Whether the content looks like a marker of a chat format, whatever its flags say. */
static bool is_bracketed(const struct added_token *token)
{
    char first = token->content[0], last = token->content[token->len - 1];

    return token->len > 1 && ((first == '<' && last == '>') || (first == '[' && last == ']'));
}

static bool is_of_kind(const struct added_token *token, enum added_kind kind)
{
    if (token->match_len == 0)
        return false;
    if (kind == ADDED_RAW)
        return !token->normalized;
    return token->normalized &&
           (kind == ADDED_NORMALIZED || (!token->special && !is_bracketed(token)));
}

bool added_token_is_marker(const struct added_token *token)
{
    return !is_of_kind(token, ADDED_PLAIN);
}

static int compare_matches(const void *a, const void *b)
{
    const struct added_token *left = *(const struct added_token *const *)a;
    const struct added_token *right = *(const struct added_token *const *)b;
    size_t len = left->match_len < right->match_len ? left->match_len : right->match_len;
    int order = memcmp(left->match, right->match, len);

    if (order || left->match_len != right->match_len)
        return order ? order : left->match_len < right->match_len ? -1 : 1;
    return left->id < right->id ? -1 : left->id > right->id;
}

static void make_set(const struct added_tokens *added, enum added_kind kind, struct token_set *set)
{
    size_t count = 0;

    set->tokens = mem_zalloc(added->count + 1, sizeof(const struct added_token *));
    for (size_t i = 0; i < added->count; i++)
        if (is_of_kind(&added->tokens[i], kind))
            set->tokens[count++] = &added->tokens[i];
    qsort(set->tokens, count, sizeof(const struct added_token *), compare_matches);
    for (size_t i = 0; i < count; i++) /* of those that normalization made equal, the first stays */
        if (set->count == 0 ||
            set->tokens[set->count - 1]->match_len != set->tokens[i]->match_len ||
            memcmp(set->tokens[set->count - 1]->match, set->tokens[i]->match,
                   set->tokens[i]->match_len) != 0)
            set->tokens[set->count++] = set->tokens[i];
    for (size_t byte = 0, i = 0; byte < 256; byte++) {
        set->first[byte] = i;
        while (i < set->count && (unsigned char)set->tokens[i]->match[0] == byte)
            i++;
    }
    set->first[256] = set->count;
}

/* What the Rust crate regex calls \w: letters, marks, digits, connectors, joiners, and the circled
 * letters that count as alphabetic. */
static const char word_character[] =
    "[\\p{L}\\p{Nl}\\p{M}\\p{Nd}\\p{Pc}\\u200c\\u200d\\u24b6-\\u24e9\\x{1f130}-\\x{1f149}"
    "\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}]";

struct added_tokens *added_tokens_from(struct added_token *tokens, size_t count,
                                       const struct normalizer *normalizer, struct error *err)
{
    struct added_tokens *added = mem_zalloc(1, sizeof(*added));
    struct pattern_scratch *scratch = pattern_scratch_new();
    bool single_word = false;
    int rc = 0;

    added->tokens = tokens;
    added->count = count;
    for (size_t i = 0; i < count && !rc; i++) {
        rc = normalize(&tokens[i], normalizer, scratch, err);
        single_word |= tokens[i].single_word;
    }
    pattern_scratch_free(scratch);
    if (rc || sort_tokens(added, err))
        goto fail;
    for (int kind = 0; kind < ADDED_KINDS; kind++)
        make_set(added, (enum added_kind)kind, &added->sets[kind]);
    if (single_word) {
        added->word = pattern_compile(word_character, err);
        if (!added->word)
            goto fail;
    }
    return added;
fail:
    added_tokens_free(added);
    return NULL;
}

struct added_tokens *added_tokens_load(const struct json *array,
                                       const struct normalizer *normalizer, struct error *err)
{
    struct added_tokens *added = NULL;
    struct added_token *tokens = NULL;
    size_t count = array ? json_count(array) : 0, n = 0;
    int rc = 0;

    if (array && !json_is(array, JSON_ARRAY)) {
        error_set(err, "it must be an array");
    } else if (count > ADDED_MAX) {
        error_set(err, "there are more than %d", ADDED_MAX);
    } else {
        tokens = mem_zalloc(count + 1, sizeof(*tokens));
        for (const struct json *o = array ? json_first(array) : NULL; o && !rc; o = json_next(o))
            rc = read_with_id(o, &tokens[n++], err) ? error_prefix(err, "number %zu", n) : 0;
        if (rc == 0)
            added = added_tokens_from(tokens, n, normalizer, err);
    }
    for (size_t i = 0; rc && i < n; i++)
        free(tokens[i].content);
    if (rc)
        free(tokens);
    if (!added)
        error_prefix(err, "added_tokens");
    return added;
}

void added_tokens_free(struct added_tokens *added)
{
    if (!added)
        return;
    for (size_t i = 0; i < added->count; i++)
        free_texts(&added->tokens[i]);
    free(added->tokens);
    for (int kind = 0; kind < ADDED_KINDS; kind++)
        free(added->sets[kind].tokens);
    pattern_free(added->word);
    free(added);
}

const struct added_token *added_tokens_all(const struct added_tokens *added, size_t *count)
{
    *count = added->count;
    return added->tokens;
}

const struct added_token *added_tokens_get(const struct added_tokens *added, const char *content,
                                           size_t len)
{
    size_t low = 0, high = added->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = compare_contents(&added->tokens[middle], content, len);
        if (order == 0)
            return &added->tokens[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

/* ---- matching ---- */

/* First of the tokens low .. high - 1, all longer than `depth` and equal before it, whose byte at
 * `depth` is at least `byte`. */
static size_t lower_bound(const struct token_set *set, size_t low, size_t high, size_t depth,
                          unsigned byte)
{
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if ((unsigned char)set->tokens[middle]->match[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest token at the start of `text`, or NULL. */
static const struct added_token *longest_at(const struct token_set *set, const char *text,
                                            size_t len)
{
    const struct added_token *found = NULL;
    unsigned byte = (unsigned char)text[0];
    size_t low = set->first[byte], high = set->first[byte + 1];

    for (size_t depth = 1; low < high; depth++) {
        if (set->tokens[low]->match_len == depth)
            found = set->tokens[low++];
        if (depth == len)
            break;
        byte = (unsigned char)text[depth];
        low = lower_bound(set, low, high, depth, byte);
        high = lower_bound(set, low, high, depth, byte + 1);
    }
    return found;
}

/* Unicode's White_Space. */
static bool is_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
           c == 0x205F || c == 0x3000;
}

/* Start of the character that ends at `at`, which is not 0. */
static size_t character_before(const char *text, size_t at)
{
    do
        at--;
    while (at > 0 && ((unsigned char)text[at] & 0xC0) == 0x80);
    return at;
}

/* Takes in the white space that the token asks for, but none of the match before. Matches in one
 * run of white space all end with it: it is walked through once. */
static void take_space(const char *text, size_t len, size_t floor, struct added_match *match)
{
    uint32_t c = 0;

    while (match->token->lstrip && match->start > floor) {
        size_t before = character_before(text, match->start);
        utf8_decode(text + before, match->start - before, &c);
        if (!is_space(c))
            break;
        match->start = before;
    }
    if (!match->token->rstrip)
        return;
    if (match->end < match->space || match->end > match->space_end) {
        match->space = match->space_end = match->end;
        while (match->space_end < len) {
            int size = utf8_decode(text + match->space_end, len - match->space_end, &c);
            if (!is_space(c))
                break;
            match->space_end += (size_t)size;
        }
    }
    match->end = match->space_end;
}

/* Whether a match stands apart from word characters: 1, 0, or -1 with a message. */
static int stands_alone(const struct added_tokens *added, struct pattern_scratch *scratch,
                        const char *text, size_t len, size_t start, size_t end, struct error *err)
{
    size_t sides[2] = {start > 0 ? character_before(text, start) : len, end};

    for (int i = 0; i < 2; i++) {
        size_t at = sides[i], from, to;
        if (at == len)
            continue;
        size_t size = (size_t)utf8_decode(text + at, len - at, NULL);
        int found = pattern_find(added->word, scratch, text + at, size, 0, &from, &to, err);
        if (found)
            return found < 0 ? -1 : 0;
    }
    return 1;
}

int added_tokens_next(const struct added_tokens *added, enum added_kind kind,
                      struct pattern_scratch *scratch, const char *text, size_t len,
                      struct added_match *match, struct error *err)
{
    const struct token_set *set = &added->sets[kind];
    size_t at = match->search;

    while (set->count > 0 && at < len) {
        const struct added_token *token = longest_at(set, text + at, len - at);
        if (!token) {
            at++;
            continue;
        }
        size_t start = at, floor = match->end;
        at += token->match_len;
        if (token->single_word) {
            int alone = stands_alone(added, scratch, text, len, start, at, err);
            if (alone < 0)
                return -1;
            if (!alone)
                continue;
        }
        match->token = token;
        match->start = start;
        match->end = match->search = at;
        take_space(text, len, floor, match);
        return 1;
    }
    return 0;
}
