/* Page bookkeeping: sharing, eviction, and that no page is lost or counted twice. */
#include "server/kv_cache.h"
#include "tests/unit/unit.h"

#include <string.h>

enum { MAX_PAGES = 16, P = KV_PAGE_TOKENS };

/* `n` tokens of text number `text`. */
static const int32_t *text_of(int32_t text, int32_t n)
{
    static int32_t tokens[MAX_PAGES * P];

    for (int32_t i = 0; i < n; i++)
        tokens[i] = text * 1000 + i;
    return tokens;
}

/* Computes a whole text: match, grow, commit. Returns the tokens that were found. */
static int32_t compute(struct kv_cache *kv, struct kv_seq *seq, int32_t text, int32_t n,
                       uint64_t salt)
{
    const int32_t *tokens = text_of(text, n);

    kv_seq_init(seq, MAX_PAGES, salt);
    int32_t found = kv_cache_match(kv, seq, tokens, n);
    ck_assert(kv_cache_grow(kv, seq, n));
    kv_cache_commit(kv, seq, tokens, n);
    return found;
}

static void drop(struct kv_cache *kv, struct kv_seq *seq)
{
    kv_cache_release(kv, seq, 0);
    kv_seq_free(seq);
}

START_TEST(test_growth_takes_pages_and_release_returns_them)
{
    struct kv_cache *kv = kv_cache_new(4, true);
    struct kv_seq seq;

    kv_seq_init(&seq, MAX_PAGES, 0);
    ck_assert(kv_cache_grow(kv, &seq, 1));
    ck_assert_int_eq(seq.n_pages, 1);
    ck_assert(kv_cache_grow(kv, &seq, P));
    ck_assert_int_eq(seq.n_pages, 1);
    ck_assert(kv_cache_grow(kv, &seq, P + 1));
    ck_assert_int_eq(seq.n_pages, 2);
    ck_assert_int_eq(kv_cache_stats(kv).pages_used, 2);
    drop(kv, &seq);
    ck_assert_int_eq(kv_cache_stats(kv).pages_used, 0);
    kv_cache_free(kv);
}
END_TEST

START_TEST(test_growth_past_the_pool_changes_nothing)
{
    struct kv_cache *kv = kv_cache_new(2, true);
    struct kv_seq a, b;

    kv_seq_init(&a, MAX_PAGES, 0);
    kv_seq_init(&b, MAX_PAGES, 0);
    ck_assert(kv_cache_grow(kv, &a, P));
    ck_assert(!kv_cache_grow(kv, &b, 2 * P));
    ck_assert_int_eq(b.n_pages, 0);
    ck_assert_int_eq(kv_cache_available(kv), 1);
    drop(kv, &a);
    drop(kv, &b);
    kv_cache_free(kv);
}
END_TEST

START_TEST(test_a_second_prompt_finds_the_pages_of_the_first)
{
    struct kv_cache *kv = kv_cache_new(8, true);
    struct kv_seq a, b;

    ck_assert_int_eq(compute(kv, &a, 1, 3 * P + 5, 0), 0);
    ck_assert_int_eq(compute(kv, &b, 1, 3 * P + 5, 0), 3 * P);
    ck_assert_mem_eq(a.pages, b.pages, 3 * sizeof(int32_t));
    ck_assert_int_ne(a.pages[3], b.pages[3]); /* the unfinished page is each one's own */
    ck_assert_int_eq(kv_cache_stats(kv).pages_used, 5);
    drop(kv, &a);
    ck_assert_int_eq(kv_cache_stats(kv).pages_used, 4); /* b still holds the shared ones */
    drop(kv, &b);
    ck_assert_int_eq(kv_cache_stats(kv).pages_used, 0);
    kv_cache_free(kv);
}
END_TEST

START_TEST(test_one_token_is_always_left_to_compute)
{
    struct kv_cache *kv = kv_cache_new(8, true);
    struct kv_seq a, b;

    compute(kv, &a, 1, 2 * P, 0);
    ck_assert_int_eq(compute(kv, &b, 1, 2 * P, 0), P);
    drop(kv, &a);
    drop(kv, &b);
    kv_cache_free(kv);
}
END_TEST

START_TEST(test_a_page_counts_only_after_the_same_beginning)
{
    struct kv_cache *kv = kv_cache_new(8, true);
    struct kv_seq a, b;
    int32_t tokens[2 * P + 1];

    compute(kv, &a, 1, 2 * P + 1, 0);
    memcpy(tokens, text_of(1, 2 * P + 1), sizeof(tokens));
    tokens[0] = -1; /* the second page is the same, the first is not */
    kv_seq_init(&b, MAX_PAGES, 0);
    ck_assert_int_eq(kv_cache_match(kv, &b, tokens, 2 * P + 1), 0);
    drop(kv, &a);
    drop(kv, &b);
    kv_cache_free(kv);
}
END_TEST

START_TEST(test_salts_keep_tenants_apart)
{
    struct kv_cache *kv = kv_cache_new(8, true);
    struct kv_seq a, b, c;

    compute(kv, &a, 1, 2 * P + 1, 7);
    ck_assert_int_eq(compute(kv, &b, 1, 2 * P + 1, 8), 0);
    ck_assert_int_eq(compute(kv, &c, 1, 2 * P + 1, 7), 2 * P);
    drop(kv, &a);
    drop(kv, &b);
    drop(kv, &c);
    kv_cache_free(kv);
}
END_TEST

START_TEST(test_unused_pages_are_kept_until_space_is_short)
{
    struct kv_cache *kv = kv_cache_new(4, true);
    struct kv_seq a, b;

    compute(kv, &a, 1, 2 * P + 1, 0);
    drop(kv, &a);
    ck_assert_int_eq(compute(kv, &a, 1, 2 * P + 1, 0), 2 * P); /* survived the release */
    drop(kv, &a);
    compute(kv, &b, 2, 4 * P, 0); /* needs the whole pool */
    drop(kv, &b);
    ck_assert_int_eq(compute(kv, &a, 1, 2 * P + 1, 0), 0);
    drop(kv, &a);
    kv_cache_free(kv);
}
END_TEST

START_TEST(test_the_ends_of_chains_are_evicted_before_their_beginnings)
{
    struct kv_cache *kv = kv_cache_new(4, true);
    struct kv_seq a, b;

    compute(kv, &a, 1, 3 * P, 0);
    drop(kv, &a);
    compute(kv, &b, 2, 2 * P, 0); /* one free page, one evicted: the last of text 1 */
    drop(kv, &b);
    ck_assert_int_eq(compute(kv, &a, 1, 3 * P, 0), 2 * P);
    drop(kv, &a);
    kv_cache_free(kv);
}
END_TEST

START_TEST(test_side_by_side_computation_of_one_prompt_registers_it_once)
{
    struct kv_cache *kv = kv_cache_new(8, true);
    struct kv_seq a, b, c;
    int32_t n = 2 * P + 1;

    kv_seq_init(&a, MAX_PAGES, 0);
    kv_seq_init(&b, MAX_PAGES, 0);
    ck_assert(kv_cache_grow(kv, &a, n) && kv_cache_grow(kv, &b, n));
    kv_cache_commit(kv, &a, text_of(1, n), n);
    kv_cache_commit(kv, &b, text_of(1, n), n);
    ck_assert_int_eq(compute(kv, &c, 1, n, 0), 2 * P);
    ck_assert_int_eq(c.pages[0], a.pages[0]);
    drop(kv, &b);
    ck_assert_int_eq(kv_cache_stats(kv).pages_used, 4);
    drop(kv, &a);
    drop(kv, &c);
    ck_assert_int_eq(kv_cache_stats(kv).pages_used, 0);
    kv_cache_free(kv);
}
END_TEST

START_TEST(test_without_prefix_caching_nothing_is_found)
{
    struct kv_cache *kv = kv_cache_new(8, false);
    struct kv_seq a;

    compute(kv, &a, 1, 2 * P + 1, 0);
    drop(kv, &a);
    ck_assert_int_eq(compute(kv, &a, 1, 2 * P + 1, 0), 0);
    drop(kv, &a);
    kv_cache_free(kv);
}
END_TEST

/* Thousands of random lives in a small pool: sequences never see each other's unfinished pages, and
 * in the end every page is free. */
START_TEST(test_random_lives_lose_no_page)
{
    enum { SEQS = 6, POOL = 12 };
    struct kv_cache *kv = kv_cache_new(POOL, true);
    struct kv_seq seqs[SEQS];
    int32_t length[SEQS] = {0}, text[SEQS];

    srand(7);
    for (int step = 0; step < 20000; step++) {
        int i = rand() % SEQS;
        if (length[i]) {
            kv_cache_commit(kv, &seqs[i], text_of(text[i], length[i]), length[i]);
            drop(kv, &seqs[i]);
            length[i] = 0;
            continue;
        }
        int32_t n = 1 + rand() % (4 * P);
        text[i] = rand() % 5;
        kv_seq_init(&seqs[i], MAX_PAGES, 0);
        int32_t found = kv_cache_match(kv, &seqs[i], text_of(text[i], n), n);
        ck_assert_int_lt(found, n);
        if (kv_cache_grow(kv, &seqs[i], n))
            length[i] = n;
        else
            drop(kv, &seqs[i]);
        ck_assert_int_le(kv_cache_stats(kv).pages_used, POOL);
    }
    for (int i = 0; i < SEQS; i++)
        if (length[i])
            drop(kv, &seqs[i]);
    ck_assert_int_eq(kv_cache_stats(kv).pages_used, 0);
    ck_assert_int_eq(kv_cache_available(kv), POOL);
    kv_cache_free(kv);
}
END_TEST

static void add_tests(TCase *tcase)
{
    tcase_add_test(tcase, test_growth_takes_pages_and_release_returns_them);
    tcase_add_test(tcase, test_growth_past_the_pool_changes_nothing);
    tcase_add_test(tcase, test_a_second_prompt_finds_the_pages_of_the_first);
    tcase_add_test(tcase, test_one_token_is_always_left_to_compute);
    tcase_add_test(tcase, test_a_page_counts_only_after_the_same_beginning);
    tcase_add_test(tcase, test_salts_keep_tenants_apart);
    tcase_add_test(tcase, test_unused_pages_are_kept_until_space_is_short);
    tcase_add_test(tcase, test_the_ends_of_chains_are_evicted_before_their_beginnings);
    tcase_add_test(tcase, test_side_by_side_computation_of_one_prompt_registers_it_once);
    tcase_add_test(tcase, test_without_prefix_caching_nothing_is_found);
    tcase_add_test(tcase, test_random_lives_lose_no_page);
}

UNIT_MAIN("kv_cache", add_tests)
