/* The tokenizer: what is loaded and what is refused, how texts become ids and ids text. The
 * byte-for-byte comparison with the reference implementation is tests/tokenizer. */
#include "tests/unit/folder.h"
#include "tests/unit/unit.h"

#include "base/buffer.h"
#include "base/memory.h"
#include "model/pattern.h"
#include "model/tokenizer.h"

#include <stdio.h>
#include <string.h>

/* A small tokenizer.json in parts, so that a test can replace one. */
struct parts {
    const char *added, *normalizer, *pre, *post, *decoder, *model, *config;
};

#define BYTE_LEVEL                                                                                 \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":"      \
    "false}"
#define SPLIT(pattern)                                                                             \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" pattern "\"},\"behavior\":\"Isolated\","       \
    "\"invert\":false}"
#define SEQUENCE(steps) "{\"type\":\"Sequence\",\"pretokenizers\":[" steps "]}"
#define BPE(vocab, merges)                                                                         \
    "{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"byte_fallback\":false,"               \
    "\"ignore_merges\":false,\"vocab\":" vocab ",\"merges\":" merges "}"

/* The bytes of U+FFFD and of the face U+1F600 are spelled as a byte-level vocabulary does. */
#define VOCAB                                                                                      \
    "{\"a\":0,\"b\":1,\"c\":2,\"\u0120\":3,\"ab\":4,\"bc\":5,\"abc\":6,\"\u0120a\":7,"             \
    "\"\u00f0\":8,\"\u0141\":9,\"\u013a\":10,\"\u0122\":11,\"<\":12,\">\":13,\"x\":14,"            \
    "\"\u00ef\":15,\"\u00bf\":16,\"\u00bd\":17,\"\u010a\":18,\"\u0100\":19,\"\u00c3\":20,"         \
    "\"\u00b8\":21}"
#define MERGES "[\"b c\",\"a b\",\"ab c\",\"a bc\",\"\u0120 a\"]"

#define TOKEN(id, content, flags)                                                                  \
    "{\"id\":" #id ",\"content\":\"" content "\",\"single_word\":false,\"lstrip\":false,"          \
    "\"rstrip\":false," flags "}"
#define MARKER(id, content) TOKEN(id, content, "\"normalized\":false,\"special\":true")

static const struct parts good = {
    .added = "[" MARKER(30, "<x>") "," MARKER(31, "<xx>") "," TOKEN(
        32, "\u00f8", "\"normalized\":true,\"special\":false") "]",
    .normalizer = "null",
    .pre = SEQUENCE(BYTE_LEVEL),
    .post = "null",
    .decoder = "{\"type\":\"ByteLevel\"}",
    .model = BPE(VOCAB, MERGES),
};

/* Loads a tokenizer.json with this text, and a tokenizer_config.json when there is one. */
static struct tokenizer *load_text(const char *text, const char *config, struct error *err)
{
    char dir[FOLDER_PATH_BYTES];

    folder_make(dir);
    folder_write_text(dir, "tokenizer.json", text);
    if (config)
        folder_write_text(dir, "tokenizer_config.json", config);
    struct tokenizer *tok = tokenizer_load(dir, err);
    folder_remove(dir);
    return tok;
}

static struct tokenizer *load(struct parts p, struct error *err)
{
    struct buffer text;

    buffer_init(&text, 1 << 20);
    buffer_printf(&text,
                  "{\"version\":\"1.0\",\"added_tokens\":%s,\"normalizer\":%s,"
                  "\"pre_tokenizer\":%s,\"post_processor\":%s,\"decoder\":%s,\"model\":%s}",
                  p.added, p.normalizer, p.pre, p.post, p.decoder, p.model);
    struct tokenizer *tok = load_text(text.data, p.config, err);
    buffer_free(&text);
    return tok;
}

static struct tokenizer *must_load(struct parts p)
{
    struct error err = {""};
    struct tokenizer *tok = load(p, &err);

    ck_assert_msg(tok != NULL, "%s", err.message);
    return tok;
}

/* The ids of a text, written as "0 4 30". */
static const char *ids_of(const struct tokenizer *tok, const char *text, size_t len,
                          enum encode_mode mode)
{
    static char written[1024];
    struct token_list ids;
    struct error err;
    size_t at = 0;

    token_list_init(&ids, 100);
    ck_assert_int_eq(tokenizer_encode(tok, text, len, mode, &ids, &err), 0);
    written[0] = '\0';
    for (size_t i = 0; i < ids.len; i++)
        at += (size_t)snprintf(written + at, sizeof(written) - at, i ? " %d" : "%d", ids.ids[i]);
    token_list_free(&ids);
    return written;
}

static const char *encode(const struct tokenizer *tok, const char *text)
{
    return ids_of(tok, text, strlen(text), ENCODE_WITH_SPECIALS);
}

START_TEST(test_lowest_rank_merges_first)
{
    struct tokenizer *tok = must_load(good);

    ck_assert_str_eq(encode(tok, "abc"), "6"); /* b c, then a bc */
    ck_assert_str_eq(encode(tok, "ab"), "4");
    ck_assert_str_eq(encode(tok, "abab"), "4 4");
    ck_assert_str_eq(encode(tok, " abc a"), "3 6 7");
    ck_assert_str_eq(encode(tok, ""), "");
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_merges_may_be_pairs)
{
    struct parts p = good;
    p.model = BPE(VOCAB, "[[\"b\",\"c\"],[\"a\",\"bc\"]]");
    struct tokenizer *tok = must_load(p);

    ck_assert_str_eq(encode(tok, "abcab"), "6 0 1");
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_ignore_merges_takes_whole_words)
{
    struct parts p = good;
    p.model = "{\"type\":\"BPE\",\"ignore_merges\":true,\"vocab\":" VOCAB ",\"merges\":[]}";
    p.pre = SEQUENCE(SPLIT("[a-c]+") "," BYTE_LEVEL);
    struct tokenizer *tok = must_load(p);

    ck_assert_str_eq(encode(tok, "abc"), "6");
    ck_assert_str_eq(encode(tok, "abcab"), "0 1 2 0 1"); /* no such token */
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_added_tokens_longest_first)
{
    struct tokenizer *tok = must_load(good);

    ck_assert_str_eq(encode(tok, "a<x>b"), "0 30 1");
    ck_assert_str_eq(encode(tok, "<xx><x"), "31 12 14");
    ck_assert_str_eq(encode(tok, "<<x>>"), "12 30 13");
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_user_text_never_becomes_a_marker)
{
    struct parts p = good;
    /* Bracketed, but with the flags of an ordinary character. */
    p.added = "[" MARKER(30, "<x>") "," TOKEN(
        31, "<a>", "\"normalized\":true,\"special\":false") "," TOKEN(32, "\u00f8",
                                                                      "\"normalized\":true,"
                                                                      "\"special\":false") "]";
    struct tokenizer *tok = must_load(p);

    ck_assert_str_eq(ids_of(tok, "<x><a>", 6, ENCODE_WITH_SPECIALS), "30 31");
    ck_assert_str_eq(ids_of(tok, "<x><a>", 6, ENCODE_TEXT_ONLY), "12 14 13 12 0 13");
    ck_assert_str_eq(ids_of(tok, "a\u00f8", 3, ENCODE_TEXT_ONLY), "0 32"); /* a character */
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_flags_of_added_tokens)
{
    struct parts p = good;
    p.added = "[{\"id\":30,\"content\":\"<x>\",\"lstrip\":true,\"rstrip\":true},"
              "{\"id\":14,\"content\":\"x\",\"single_word\":true}]";
    struct tokenizer *tok = must_load(p);

    ck_assert_str_eq(encode(tok, "a \n <x> \u3000b"), "0 30 1");
    ck_assert_str_eq(encode(tok, "<x> <x>"), "30 30");
    ck_assert_str_eq(encode(tok, "x <axa"), "14 3 12 0 14 0");
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_dollar_matches_before_newlines)
{
    struct parts p = good;
    p.pre = SEQUENCE(SPLIT("a$") "," BYTE_LEVEL);
    struct tokenizer *tok = must_load(p);

    ck_assert_str_eq(encode(tok, " a\nab"), "3 0 18 4"); /* "Ga" would be 7 */
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_later_splits_see_only_their_piece)
{
    struct parts p = good;
    p.pre = SEQUENCE(SPLIT("c") "," SPLIT("a(?!b)|b$") "," BYTE_LEVEL);
    struct tokenizer *tok = must_load(p);

    ck_assert_str_eq(encode(tok, "abc"), "0 1 2"); /* b is at the end of its piece */
    ck_assert_str_eq(encode(tok, "aba"), "4 0");
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_nul_and_broken_utf8)
{
    struct tokenizer *tok = must_load(good);

    ck_assert_str_eq(ids_of(tok, "a\0b", 3, ENCODE_WITH_SPECIALS), "0 19 1");
    /* One U+FFFD for the begun character, one for the stray byte. */
    ck_assert_str_eq(ids_of(tok,
                            "\xF0\x9F\x98"
                            "a\xFF",
                            5, ENCODE_WITH_SPECIALS),
                     "15 16 17 0 15 16 17");
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_bound_of_the_list)
{
    struct tokenizer *tok = must_load(good);
    struct token_list ids;
    struct error err;

    token_list_init(&ids, 3);
    ck_assert_int_eq(tokenizer_encode(tok, "xxx", 3, ENCODE_TEXT_ONLY, &ids, &err), 0);
    ck_assert_int_eq(tokenizer_encode(tok, "x", 1, ENCODE_TEXT_ONLY, &ids, &err), -1);
    ck_assert_str_eq(err.message, "the text has more than 3 tokens");
    ck_assert_int_eq(ids.len, 3);
    token_list_free(&ids);
    tokenizer_free(tok);
}
END_TEST

/* Quadratic work on any of these would run into the time limit of the test. */
START_TEST(test_hostile_texts_take_linear_time)
{
    static const char *const units[] = {"a", " ", "ab", "\n", " \n", "\u3000", "<", "\xFF"};
    enum { SIZE = 4 << 20 };
    struct parts p = good;
    p.pre = SEQUENCE(
        SPLIT("\\\\s+$") "," SPLIT("\\\\s*[\\r\\n]+|\\\\s+(?!\\\\S)|\\\\s+") "," BYTE_LEVEL);
    p.model = BPE("{\"a\":0,\"b\":1,\"aa\":2,\"aaaa\":3,\"\u0120\":4,\"\u0120\u0120\":5,\"c\":6}",
                  "[\"a a\",\"aa aa\",\"\u0120 \u0120\"]");
    struct tokenizer *tok = must_load(p);
    char *text = mem_alloc(SIZE + 8);

    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        struct token_list ids;
        struct error err;
        size_t len = strlen(units[i]), at = 0;
        for (; at < SIZE; at += len)
            memcpy(text + at, units[i], len);
        text[at] = 'c'; /* what spoils `\s+$` at the end */
        token_list_init(&ids, 2 * SIZE);
        ck_assert_int_eq(tokenizer_encode(tok, text, at + 1, ENCODE_WITH_SPECIALS, &ids, &err), 0);
        ck_assert_int_eq(ids.ids[ids.len - 1], 6);
        token_list_free(&ids);
    }
    free(text);
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_ids_and_bytes)
{
    struct tokenizer *tok = must_load(good);
    size_t len = 9;

    ck_assert_int_eq(tokenizer_size(tok), 33);
    ck_assert_int_eq(tokenizer_id(tok, "<xx>"), 31);
    ck_assert_int_eq(tokenizer_id(tok, "abc"), 6);
    ck_assert_int_eq(tokenizer_id(tok, "nothing"), -1);
    ck_assert(tokenizer_is_special(tok, 30));
    ck_assert(!tokenizer_is_special(tok, 32));
    ck_assert(!tokenizer_is_special(tok, -1));
    ck_assert(!tokenizer_is_special(tok, 1 << 30));
    ck_assert_mem_eq(tokenizer_bytes(tok, 7, &len), " a", 2);
    ck_assert_int_eq(len, 2);
    ck_assert_mem_eq(tokenizer_bytes(tok, 8, &len), "\xF0", 1);
    ck_assert_mem_eq(tokenizer_bytes(tok, 32, &len), "\u00f8", 2); /* its content, not a byte */
    ck_assert_ptr_null(tokenizer_bytes(tok, 25, &len));            /* a gap */
    ck_assert_int_eq(len, 0);
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_characters_come_out_whole)
{
    struct tokenizer *tok = must_load(good);
    struct detokenizer detok;
    struct buffer out;

    buffer_init(&out, 100);
    detokenizer_init(&detok);
    for (int32_t id = 8; id < 11; id++) { /* the first three bytes of the face */
        detokenizer_push(&detok, tok, id, false, &out);
        ck_assert_int_eq(out.len, 0);
    }
    detokenizer_push(&detok, tok, 30, true, &out); /* a special token in between is not there */
    detokenizer_push(&detok, tok, 11, false, &out);
    ck_assert_str_eq(out.data, "\U0001F600");
    detokenizer_finish(&detok, &out);
    ck_assert_int_eq(out.len, 4);
    buffer_free(&out);
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_characters_that_break_off_are_replaced)
{
    static const int32_t ids[] = {8, 9, 8, 0, 11, 30, 8, 9};
    struct tokenizer *tok = must_load(good);
    struct detokenizer detok;
    struct buffer out;

    buffer_init(&out, 100);
    detokenizer_init(&detok);
    for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++)
        detokenizer_push(&detok, tok, ids[i], false, &out);
    ck_assert_str_eq(out.data, "\uFFFD\uFFFDa\uFFFD<x>");
    detokenizer_finish(&detok, &out);
    ck_assert_str_eq(out.data, "\uFFFD\uFFFDa\uFFFD<x>\uFFFD");
    detokenizer_finish(&detok, &out); /* nothing is left */
    ck_assert_str_eq(out.data, "\uFFFD\uFFFDa\uFFFD<x>\uFFFD");
    buffer_free(&out);
    tokenizer_free(tok);
}
END_TEST

/* ---- vocabularies of characters ---- */

#define PREPEND "{\"type\":\"Prepend\",\"prepend\":\"\u2581\"}"
#define SPACES  "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\u2581\"}"
#define LLAMA_DECODER                                                                              \
    "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":"          \
    "\"\u2581\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},"              \
    "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]}"
#define METASPACE(scheme, split)                                                                   \
    "{\"type\":\"Metaspace\",\"replacement\":\"\u2581\",\"prepend_scheme\":\"" scheme              \
    "\",\"split\":" split "}"

static const struct parts characters = {
    .added = "[" MARKER(30, "<x>") "," TOKEN(31, "ab", "\"normalized\":true,\"special\":false") "]",
    .normalizer = "{\"type\":\"Sequence\",\"normalizers\":[" PREPEND "," SPACES "]}",
    .pre = "null",
    .post = "null",
    .decoder = LLAMA_DECODER,
    .model = "{\"type\":\"BPE\",\"unk_token\":\"?\",\"fuse_unk\":true,\"byte_fallback\":true,"
             "\"vocab\":{\"?\":0,\"\u2581\":1,\"a\":2,\"b\":3,\"\u2581a\":4,\"<0xC3>\":5,"
             "\"<0xB8>\":6,\"aa\":7,\"\u00e9\":8,\"<0x0A>\":9},"
             "\"merges\":[\"\u2581 a\",\"a a\"]}",
};

START_TEST(test_missing_characters_become_bytes_or_unknown)
{
    struct tokenizer *tok = must_load(characters);

    ck_assert_str_eq(encode(tok, "a\u00f8\u00e9"), "4 5 6 8");
    ck_assert_str_eq(encode(tok, "\n"), "1 9");
    ck_assert_str_eq(encode(tok, "xyzb"), "1 0 3"); /* no bytes for these: one for all */
    ck_assert_str_eq(encode(tok, "xb"), "1 0 3");
    tokenizer_free(tok);

    struct parts p = characters;
    p.model = "{\"type\":\"BPE\",\"vocab\":{\"\u2581\":1,\"b\":3},\"merges\":[]}";
    p.added = "[]";
    tok = must_load(p);
    ck_assert_str_eq(encode(tok, "xb"), "1 3"); /* nothing stands in */
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_prepend_comes_after_each_marker)
{
    struct tokenizer *tok = must_load(characters);

    ck_assert_str_eq(encode(tok, "b<x>b b"), "1 3 30 1 3 1 3");
    ck_assert_str_eq(encode(tok, "b ab"), "1 3 31"); /* its content is normalized too */
    ck_assert_str_eq(encode(tok, "bab"), "1 3 2 3");
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_metaspace_prefixes_by_its_scheme)
{
    static const struct {
        const char *pre, *ids;
    } cases[] = {
        {METASPACE("first", "false"), "4 30 2 4"},
        {METASPACE("always", "true"), "4 30 4 4"},
        {METASPACE("never", "false"), "2 30 2 4"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct parts p = characters;
        p.normalizer = "null";
        p.pre = cases[i].pre;
        struct tokenizer *tok = must_load(p);
        ck_assert_str_eq(encode(tok, "a<x>a a"), cases[i].ids);
        ck_assert_str_eq(encode(tok, " a"), "4"); /* never a second one */
        tokenizer_free(tok);
    }
}
END_TEST

/* The text of some tokens, of a whole text or of what follows another. */
static const char *decode(const struct tokenizer *tok, const int32_t *ids, size_t n, bool whole)
{
    static char written[100];
    struct detokenizer detok;
    struct buffer out;

    buffer_init(&out, sizeof(written) - 1);
    buffer_append_str(&out, "");
    (whole ? detokenizer_init_whole : detokenizer_init)(&detok);
    for (size_t i = 0; i < n; i++)
        detokenizer_push(&detok, tok, ids[i], true, &out);
    detokenizer_finish(&detok, &out);
    memcpy(written, out.data, out.len + 1);
    buffer_free(&out);
    return written;
}

START_TEST(test_the_space_in_front_of_a_whole_text_is_left_out)
{
    static const int32_t ids[] = {30, 4, 4, 5, 6, 5, 2};
    struct tokenizer *tok = must_load(characters);
    size_t len;

    ck_assert_str_eq(decode(tok, ids, 7, true), "a a\u00f8\uFFFDa");
    ck_assert_str_eq(decode(tok, ids, 7, false), " a a\u00f8\uFFFDa");
    ck_assert_mem_eq(tokenizer_bytes(tok, 9, &len), "\n", 1);
    ck_assert_int_eq(len, 1);
    tokenizer_free(tok);
}
END_TEST

/* A marker in text that a user wrote is text, also where a normalizer makes another text of it. */
START_TEST(test_foreign_markers_stay_text_after_normalization)
{
    static const char text[] = "ab ab<x>";
    static const uint8_t foreign[] = {0, 0, 0, 1, 1, 1, 1, 1};
    struct parts p = characters;
    p.added = "[" MARKER(30, "<x>") "," TOKEN(31, "ab", "\"normalized\":true,\"special\":true") "]";
    struct tokenizer *tok = must_load(p);
    struct token_list ids;
    struct error err;

    token_list_init(&ids, 100);
    ck_assert_int_eq(tokenizer_encode_marked(tok, text, sizeof(text) - 1, foreign, &ids, &err), 0);
    static const int32_t expected[] = {31, 4, 3, 0};
    ck_assert_int_eq(ids.len, 4);
    ck_assert_mem_eq(ids.ids, expected, sizeof(expected));
    token_list_free(&ids);
    tokenizer_free(tok);
}
END_TEST

/* ---- tiktoken.model and tekken.json ---- */

/* The tokens of all bytes in base64, and "ab" with the rank 256 and "abc" with 257. */
static void write_ranks(struct buffer *out, const char *format)
{
    static const char alphabet[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    for (int byte = 0; byte < 256; byte++) {
        char text[] = {alphabet[byte >> 2], alphabet[(byte & 3) << 4], '=', '=', '\0'};
        buffer_printf(out, format, text, byte);
    }
    buffer_printf(out, format, "YWI=", 256);
    buffer_printf(out, format, "YWJj", 257);
}

/* Loads a folder with this file, and a tokenizer_config.json when there is one. */
static struct tokenizer *load_named(const char *name, const char *text, const char *config,
                                    struct error *err)
{
    char dir[FOLDER_PATH_BYTES];

    folder_make(dir);
    folder_write_text(dir, name, text);
    if (config)
        folder_write_text(dir, "tokenizer_config.json", config);
    struct tokenizer *tok = tokenizer_load(dir, err);
    folder_remove(dir);
    return tok;
}

/* The tokens in front of a text: -1 for none, a second one in the thousands. */
static int32_t front_of(const struct tokenizer *tok)
{
    int n;
    const int32_t *front = tokenizer_front(tok, &n);

    ck_assert_int_le(n, 2);
    return n == 0 ? -1 : n == 1 ? front[0] : 1000 * front[1] + front[0];
}

START_TEST(test_tiktoken_model)
{
    struct buffer text;
    struct error err = {""};

    buffer_init(&text, 1 << 16);
    write_ranks(&text, "%s %d\n");
    struct tokenizer *tok =
        load_named("tiktoken.model", text.data,
                   "{\"tokenizer_class\":\"TikTokenTokenizer\",\"added_tokens_decoder\":{"
                   "\"258\":{\"content\":\"[BOS]\",\"special\":true},"
                   "\"259\":{\"content\":\"<|tool|>\",\"special\":false}}}",
                   &err);
    buffer_free(&text);
    ck_assert_msg(tok != NULL, "%s", err.message);
    ck_assert_str_eq(encode(tok, "abcab aB"), "257 256 32 97 66");
    ck_assert_str_eq(encode(tok, "[BOS]<|tool|><|reserved_token_260|>"), "258 259 260");
    ck_assert_str_eq(ids_of(tok, "[BOS]", 5, ENCODE_TEXT_ONLY), "91 66 79 83 93");
    ck_assert_int_eq(tokenizer_size(tok), 258 + 256);
    ck_assert(tokenizer_is_special(tok, 258) && !tokenizer_is_special(tok, 259));
    ck_assert_int_eq(front_of(tok), -1);
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_tiktoken_cuts_long_runs)
{
    enum { RUN = 25000 };
    struct buffer text;
    struct token_list ids;
    struct error err = {""};
    char *run = mem_alloc(RUN + 1);

    buffer_init(&text, 1 << 16);
    write_ranks(&text, "%s %d\n");
    struct tokenizer *tok = load_named("tiktoken.model", text.data, NULL, &err);
    buffer_free(&text);
    ck_assert_msg(tok != NULL, "%s", err.message);
    memset(run, 'x', RUN + 1);
    memcpy(run + RUN - 1, "ab", 2); /* the cut goes through it */
    token_list_init(&ids, 2 * RUN);
    ck_assert_int_eq(tokenizer_encode(tok, run, RUN + 1, ENCODE_TEXT_ONLY, &ids, &err), 0);
    ck_assert_int_eq(ids.len, RUN + 1);
    run[0] = ' '; /* another run */
    ids.len = 0;
    ck_assert_int_eq(tokenizer_encode(tok, run, RUN + 1, ENCODE_TEXT_ONLY, &ids, &err), 0);
    ck_assert_int_eq(ids.ids[ids.len - 1], 256);
    token_list_free(&ids);
    free(run);
    tokenizer_free(tok);
}
END_TEST

#define TEKKEN_CONFIG(size)                                                                        \
    "\"config\":{\"pattern\":\"[a-z]+|[^a-z]+\",\"default_vocab_size\":" size                      \
    ",\"default_num_special_tokens\":3,\"version\":\"v13\"},"

static struct tokenizer *load_tekken(const char *head, const char *tail, struct error *err)
{
    struct buffer text;

    buffer_init(&text, 1 << 16);
    buffer_printf(&text, "{%s\"vocab\":[", head);
    write_ranks(&text, "{\"token_bytes\":\"%s\",\"rank\":%d,\"token_str\":\"\\u0000\\\\u0000\"},");
    buffer_printf(&text, "{\"token_bytes\":\"QUI=\",\"rank\":258,\"token_str\":null}]%s}", tail);
    struct tokenizer *tok = load_named("tekken.json", text.data, NULL, err);
    buffer_free(&text);
    return tok;
}

START_TEST(test_tekken)
{
    struct error err = {""};
    struct tokenizer *tok =
        load_tekken(TEKKEN_CONFIG("261"),
                    ",\"special_tokens\":[{\"rank\":0,\"token_str\":\"<unk>\",\"is_control\":true},"
                    "{\"rank\":1,\"token_str\":\"<s>\",\"is_control\":true}]",
                    &err);

    ck_assert_msg(tok != NULL, "%s", err.message);
    ck_assert_str_eq(encode(tok, "abcAB"), "260 68 69"); /* "AB" is past the size */
    ck_assert_str_eq(encode(tok, "<s><SPECIAL_2>ab"), "1 2 259");
    ck_assert_str_eq(ids_of(tok, "<s>", 3, ENCODE_TEXT_ONLY), "63 118 65");
    ck_assert_int_eq(front_of(tok), 1);
    ck_assert_int_eq(tokenizer_size(tok), 261);
    tokenizer_free(tok);
    tok = load_tekken(TEKKEN_CONFIG("262"), "", &err);
    ck_assert_msg(tok != NULL, "%s", err.message);
    ck_assert_str_eq(encode(tok, "AB</s>"), "261 2"); /* an old file's special tokens */
    tokenizer_free(tok);
}
END_TEST

START_TEST(test_broken_ranks_are_refused)
{
    static const struct {
        const char *name, *text, *config, *reason;
    } cases[] = {
        {"tiktoken.model", "YQ== 0\n", NULL, "no token for the byte 0x00"},
        {"tiktoken.model", "YQ==\n", NULL, "line 1 is not"},
        {"tiktoken.model", "YQ== 0\nYg==  1\nY 2\n", NULL, "line 3 is not"},
        {"tiktoken.model", "YQ== 0 1\n", NULL, "line 1 is not"},
        {"tiktoken.model", "YQ== 0\nYQ== 1\n", NULL, "twice"},
        {"tiktoken.model", "= 0\n", NULL, "line 1 is not"},
        {"tiktoken.model", " 0\n", NULL, "must have 1 to"},
        {"tiktoken.model", "", NULL, "no token for the byte"},
        {"tiktoken.model", "YQ== 0\n", "{\"tokenizer_class\":\"Qwen\"}", "tokenizer_class Qwen"},
        {"tekken.json", "{}", NULL, "it must have a \"vocab\""},
        {"tekken.json", "[", NULL, "tekken.json"},
        {"tekken.json", "{" TEKKEN_CONFIG("3") "\"vocab\":[]}", NULL, "\"default_vocab_size\""},
    };
    struct error err = {""};

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        ck_assert_ptr_null(load_named(cases[i].name, cases[i].text, cases[i].config, &err));
        ck_assert_msg(strstr(err.message, cases[i].name) != NULL, "%s", err.message);
        ck_assert_msg(strstr(err.message, cases[i].reason) != NULL, "%s", err.message);
    }
    ck_assert_ptr_null(load_tekken(TEKKEN_CONFIG("300"), "", &err));
    ck_assert_ptr_null(
        load_tekken(TEKKEN_CONFIG("261"), ",\"special_tokens\":[{\"rank\":1}]", &err));
    ck_assert_msg(strstr(err.message, "special_tokens: number 0") != NULL, "%s", err.message);
}
END_TEST

static int32_t bos_with(const char *config, const char *post)
{
    struct parts p = good;
    p.config = config;
    p.post = post;
    struct tokenizer *tok = must_load(p);
    int32_t bos = front_of(tok);

    tokenizer_free(tok);
    return bos;
}

START_TEST(test_bos)
{
    static const char template[] =
        "{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},"
        "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<xx>\"}},"
        "{\"Sequence\":{\"id\":\"A\"}}]}]}";
    static const char two[] = "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{"
                              "\"id\":\"<x>\"}},{\"SpecialToken\":{\"id\":\"<xx>\"}},{\"Sequence\":"
                              "{\"id\":\"A\"}},{\"SpecialToken\":{\"id\":\"<x>\"}}]}";

    ck_assert_int_eq(bos_with(NULL, "null"), -1);
    ck_assert_int_eq(bos_with("{}", "null"), -1);
    ck_assert_int_eq(bos_with("{\"add_bos_token\":true,\"bos_token\":\"<x>\"}", "null"), 30);
    ck_assert_int_eq(
        bos_with("{\"add_bos_token\":true,\"bos_token\":{\"content\":\"<x>\"}}", template), 30);
    ck_assert_int_eq(bos_with("{\"add_bos_token\":false,\"bos_token\":\"<x>\"}", template), -1);
    ck_assert_int_eq(bos_with("{\"bos_token\":\"<x>\"}", template), 31);
    ck_assert_int_eq(bos_with(NULL, two), 31030);
    ck_assert_int_eq(bos_with("{\"add_bos_token\":true,\"bos_token\":\"<x>\"}", two), 30);
}
END_TEST

START_TEST(test_eos_is_what_the_config_names)
{
    static const char *const configs[] = {"{\"eos_token\":\"<x>\"}",
                                          "{\"eos_token\":{\"content\":\"<x>\"}}",
                                          "{\"eos_token\":\"not there\"}", "{}"};
    static const int32_t ids[] = {30, 30, -1, -1};

    for (int i = 0; i < 4; i++) {
        struct parts p = good;
        p.config = configs[i];
        struct tokenizer *tok = must_load(p);
        ck_assert_int_eq(tokenizer_eos(tok), ids[i]);
        tokenizer_free(tok);
    }
}
END_TEST

/* Loading must fail with a message that names the file and holds `reason`. */
static void assert_refused(struct parts p, const char *reason)
{
    struct error err = {""};

    ck_assert_ptr_null(load(p, &err));
    ck_assert_msg(strstr(err.message, "tokenizer") != NULL, "%s", err.message);
    ck_assert_msg(strstr(err.message, reason) != NULL, "\"%s\" lacks \"%s\"", err.message, reason);
}

START_TEST(test_unsupported_parts_are_named)
{
    static const struct {
        struct parts parts;
        const char *reason;
    } cases[] = {
        {{.normalizer = "{\"type\":\"NFC\"}"}, "the normalizer NFC"},
        {{.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\"}]}"},
         "Prepend: what to put in"},
        {{.normalizer = "{\"type\":\"Replace\",\"content\":\"\"}"}, "Replace: \"pattern\" must be"},
        {{.normalizer = "{\"type\":\"Sequence\"}"}, "\"normalizers\" must be an array"},
        {{.decoder = "null"}, "decoder: a step must be"},
        {{.decoder = "{\"type\":\"WordPiece\"}"}, "the step WordPiece"},
        {{.decoder = "{\"type\":\"Fuse\"}"}, "the pre_tokenizer has a ByteLevel step"},
        {{.decoder = "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}"}, "Strip"},
        {{.pre = "null"}, "the decoder has a ByteLevel step"},
        {{.pre = SEQUENCE(SPLIT("a"))}, "the decoder has a ByteLevel step"},
        {{.pre = SEQUENCE(BYTE_LEVEL "," SPLIT("a"))}, "ByteLevel must be the last step"},
        {{.pre = "{\"type\":\"Whitespace\"}"}, "the step Whitespace"},
        {{.pre = "{\"type\":\"Metaspace\",\"replacement\":\"ab\"}"}, "one character"},
        {{.pre = "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"odd\"}"},
         "prepend_scheme \"odd\""},
        {{.pre = "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Odd\"}"},
         "the behavior \"Odd\""},
        {{.pre = SEQUENCE(SPLIT("a(") "," BYTE_LEVEL)}, "malformed"},
        {{.pre = SEQUENCE(SPLIT("\\\\w+") "," BYTE_LEVEL)}, "\\w, which is not supported"},
        {{.model = "{\"type\":\"Unigram\",\"vocab\":{\"a\":0},\"merges\":[]}"}, "Unigram"},
        {{.model = "{\"type\":\"BPE\",\"byte_fallback\":true,\"vocab\":{\"a\":0},\"merges\":[]}"},
         "byte_fallback"},
        {{.model = "{\"type\":\"BPE\",\"unk_token\":\"u\",\"vocab\":{\"a\":0},\"merges\":[]}"},
         "unk_token"},
        {{.model = "[]"}, "must be an object"},
        {{.model = BPE("[]", "[]")}, "\"vocab\" must be an object"},
        {{.model = BPE("{\"a\":-1}", "[]")}, "the id of \"a\""},
        {{.model = BPE("{\"a\":1e9}", "[]")}, "the id of \"a\""},
        {{.model = BPE("{\"a\":\"0\"}", "[]")}, "the id of \"a\""},
        {{.model = BPE("{\"a\":0,\"a\":1}", "[]")}, "twice"},
        {{.model = BPE("{\"a\":0}", "{}")}, "\"merges\" must be an array"},
        {{.model = BPE("{\"a\":0}", "[\"a a\"]")}, "number 1 (\"a a\") needs a token"},
        {{.model = BPE("{\"a\":0}", "[\"a\"]")}, "must be \"a b\""},
        {{.model = BPE("{\"a\":0}", "[\"a a a\"]")}, "must be \"a b\""},
        {{.model = BPE("{\"a\":0}", "[[\"a\"]]")}, "must be \"a b\""},
        {{.model = BPE("{\"a\":0}", "[[\"a\",1]]")}, "must be \"a b\""},
        {{.added = "{}"}, "added_tokens: it must be an array"},
        {{.added = "[{\"id\":3}]"}, "\"content\" must be a string"},
        {{.added = "[{\"id\":-3,\"content\":\"x\"}]"}, "\"id\" must be an integer"},
        {{.added = "[{\"id\":3,\"content\":\"x\",\"special\":1}]"}, "\"special\" must be true"},
        {{.added = "[" MARKER(40, "y") "," MARKER(41, "y") "," MARKER(42, "z") "]"}, "two ids"},
        {{.added = "[" MARKER(40, "abc") "]"}, "has the id 40, but 6"},
        {{.config = "{\"add_bos_token\":true,\"bos_token\":\"?\"}"}, "bos_token \"?\""},
        {{.config = "{"}, "tokenizer_config.json"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct parts p = cases[i].parts;
        p.added = p.added ? p.added : good.added;
        p.normalizer = p.normalizer ? p.normalizer : good.normalizer;
        p.pre = p.pre ? p.pre : good.pre;
        p.post = good.post;
        p.decoder = p.decoder ? p.decoder : good.decoder;
        p.model = p.model ? p.model : good.model;
        assert_refused(p, cases[i].reason);
    }
}
END_TEST

START_TEST(test_broken_files_are_refused)
{
    static const char *const texts[] = {"", "{", "[]", "null", "{}", "{\"model\":{}}", "\xFF"};
    struct error err;

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        err.message[0] = '\0';
        ck_assert_ptr_null(load_text(texts[i], NULL, &err));
        ck_assert_msg(strstr(err.message, "tokenizer.json") != NULL, "%s", err.message);
    }
    ck_assert_ptr_null(tokenizer_load("/nonexistent", &err));
    ck_assert_msg(strstr(err.message, "/nonexistent: holds no tokenizer.json") != NULL, "%s",
                  err.message);
}
END_TEST

/* The first match of a pattern as "start-end", or "none". */
static const char *match_of(const char *source, const char *text)
{
    static char written[32];
    struct error err = {""};
    struct pattern *pattern = pattern_compile(source, &err);
    size_t start = 0, end = 0;

    ck_assert_msg(pattern != NULL, "%s: %s", source, err.message);
    struct pattern_scratch *scratch = pattern_scratch_new();
    int found = pattern_find(pattern, scratch, text, strlen(text), 0, &start, &end, &err);
    ck_assert_int_ge(found, 0);
    snprintf(written, sizeof(written), found ? "%zu-%zu" : "none", start, end);
    pattern_scratch_free(scratch);
    pattern_free(pattern);
    return written;
}

START_TEST(test_patterns_mean_what_they_mean_in_oniguruma)
{
    ck_assert_str_eq(match_of("\\s+", "a\u180e\u2003\xC2\x85!"), "4-9"); /* U+180E is no space */
    ck_assert_str_eq(match_of("[\\S]+", " \u180e\u3000"), "1-4");
    ck_assert_str_eq(match_of("\\v", "\n\x0b"), "1-2");
    ck_assert_str_eq(match_of("b$", "ab\nc"), "1-2");
    ck_assert_str_eq(match_of("^c", "ab\nc"), "3-4");
    ck_assert_str_eq(match_of("b$", "ab\r"), "none");
    ck_assert_str_eq(match_of("[a-z&&[^b]]+", "bab"), "1-2");
    ck_assert_str_eq(match_of("\\p{S}", "a\U0001FAE8"), "1-5");   /* an emoji of Unicode 15 */
    ck_assert_str_eq(match_of("\\P{L}", "a\U0001E4D0b1"), "6-7"); /* a letter of Unicode 15 */
    ck_assert_str_eq(match_of("\\p{Han}+", "\u30fc\u6f22\u3005"), "3-9"); /* not by extension */
    ck_assert_str_eq(match_of("(?i:'S)", "'\u017f"), "0-3");
    ck_assert_str_eq(match_of("\\u6F22|\\x{5b57}", "\u5b57"), "0-3");
    ck_assert_str_eq(match_of("a++b|a{2,3}", "aaaa"), "0-3");
}
END_TEST

START_TEST(test_patterns_that_would_mean_something_else_are_refused)
{
    static const char *const sources[] = {
        "\\h",      "\\R",       "\\w",           "\\bx",    "\\1",    "\\x85",     "\\p{Greek}",
        "\\pL",     "\\p{L",     "[[:alpha:]]",   "[a[b]]",  "[a&&b]", "[^a&&[b]]", "[a",
        "[]a]",     "(?m:.)",    "(?<name>a)",    "(*UTF)a", "a{,3}",  "a{2}+",     "a{2}?",
        "[\\P{L}]", "[\\b]",     "a\\",           "\\u12",   "\\x{",   "(a",        "a{3,2}",
        "\\Qa\\E",  "[a&&[b]c]", "[a&&[b&&[c]]]",
    };

    for (size_t i = 0; i < sizeof(sources) / sizeof(sources[0]); i++) {
        struct error err = {""};
        ck_assert_msg(pattern_compile(sources[i], &err) == NULL, "%s was accepted", sources[i]);
        ck_assert_msg(strstr(err.message, "the pattern ") != NULL, "%s", err.message);
    }
}
END_TEST

static void add_tests(TCase *tcase)
{
    tcase_add_test(tcase, test_lowest_rank_merges_first);
    tcase_add_test(tcase, test_merges_may_be_pairs);
    tcase_add_test(tcase, test_ignore_merges_takes_whole_words);
    tcase_add_test(tcase, test_added_tokens_longest_first);
    tcase_add_test(tcase, test_user_text_never_becomes_a_marker);
    tcase_add_test(tcase, test_flags_of_added_tokens);
    tcase_add_test(tcase, test_dollar_matches_before_newlines);
    tcase_add_test(tcase, test_later_splits_see_only_their_piece);
    tcase_add_test(tcase, test_nul_and_broken_utf8);
    tcase_add_test(tcase, test_bound_of_the_list);
    tcase_add_test(tcase, test_hostile_texts_take_linear_time);
    tcase_add_test(tcase, test_ids_and_bytes);
    tcase_add_test(tcase, test_characters_come_out_whole);
    tcase_add_test(tcase, test_characters_that_break_off_are_replaced);
    tcase_add_test(tcase, test_missing_characters_become_bytes_or_unknown);
    tcase_add_test(tcase, test_prepend_comes_after_each_marker);
    tcase_add_test(tcase, test_metaspace_prefixes_by_its_scheme);
    tcase_add_test(tcase, test_the_space_in_front_of_a_whole_text_is_left_out);
    tcase_add_test(tcase, test_foreign_markers_stay_text_after_normalization);
    tcase_add_test(tcase, test_tiktoken_model);
    tcase_add_test(tcase, test_tiktoken_cuts_long_runs);
    tcase_add_test(tcase, test_tekken);
    tcase_add_test(tcase, test_broken_ranks_are_refused);
    tcase_add_test(tcase, test_bos);
    tcase_add_test(tcase, test_eos_is_what_the_config_names);
    tcase_add_test(tcase, test_unsupported_parts_are_named);
    tcase_add_test(tcase, test_broken_files_are_refused);
    tcase_add_test(tcase, test_patterns_mean_what_they_mean_in_oniguruma);
    tcase_add_test(tcase, test_patterns_that_would_mean_something_else_are_refused);
}

UNIT_MAIN("tokenizer", add_tests)
