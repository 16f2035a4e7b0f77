/* A checkpoint's tensors are found and read as they were written; a file that lies about itself is
 * refused by name, whatever it says. */
#include "tests/unit/unit.h"

#include "base/memory.h"
#include "model/safetensors.h"
#include "tests/unit/folder.h"

#include <stdint.h>

static char dir[FOLDER_PATH_BYTES];

static void make_dir(void)
{
    folder_make(dir);
}

static void remove_dir(void)
{
    folder_remove(dir);
}

/* Writes a file whose data are `data_len` bytes 0, 1, 2, ...; returns its size, and the file itself
 * in `*copy` when that isn't NULL. */
static size_t write_shard(const char *name, const char *header, size_t data_len, char **copy)
{
    size_t header_len = strlen(header), len = 8 + header_len + data_len;
    char *file = mem_zalloc(len, 1);

    for (int i = 0; i < 8; i++)
        file[i] = (char)((uint64_t)header_len >> 8 * i);
    memcpy(file + 8, header, header_len);
    for (size_t i = 0; i < data_len; i++)
        file[8 + header_len + i] = (char)i;
    folder_write(dir, name, file, len);
    if (copy)
        *copy = file;
    else
        free(file);
    return len;
}

static struct safetensors *open_good(void)
{
    struct error err = {""};
    struct safetensors *st = safetensors_open(dir, &err);

    ck_assert_msg(st != NULL, "%s", err.message);
    return st;
}

static void assert_refused(const char *words)
{
    struct error err = {""};
    struct safetensors *st = safetensors_open(dir, &err);

    ck_assert_msg(st == NULL, "accepted what should be refused for: %s", words);
    ck_assert_msg(strstr(err.message, words) != NULL, "\"%s\" says nothing of %s", err.message,
                  words);
    ck_assert_msg(strstr(err.message, dir) != NULL, "\"%s\" names no file", err.message);
}

static const char GOOD[] =
    "{\"__metadata__\":{\"format\":\"pt\"},"
    "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[16,28]},"
    "\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]},"
    "\"none\":{\"dtype\":\"F32\",\"shape\":[0,5],\"data_offsets\":[28,28]},"
    "\"scalar\":{\"dtype\":\"F8_E4M3\",\"shape\":[],\"data_offsets\":[28,29]},"
    "\"odd\":{\"dtype\":\"F4\",\"shape\":[6],\"data_offsets\":[29,32]}}   ";
enum { GOOD_DATA = 32 };

START_TEST(test_tensors_are_found_and_read)
{
    struct error err;
    struct tensor info;
    unsigned char bytes[12];

    write_shard("model.safetensors", GOOD, GOOD_DATA, NULL);
    struct safetensors *st = open_good();
    ck_assert(safetensors_has(st, "a"));
    ck_assert(!safetensors_has(st, "c"));
    ck_assert(!safetensors_has(st, "__metadata__"));
    ck_assert_int_eq(safetensors_info(st, "b", &info, &err), 0);
    ck_assert_int_eq(info.dtype, DTYPE_BF16);
    ck_assert_int_eq(info.rank, 2);
    ck_assert_int_eq(info.shape[0], 2);
    ck_assert_int_eq(info.shape[1], 3);
    ck_assert_ptr_null(info.data);
    ck_assert_int_eq(safetensors_read(st, "b", bytes, &err), 0);
    for (int i = 0; i < 12; i++)
        ck_assert_int_eq(bytes[i], 16 + i);
    ck_assert_int_eq(safetensors_info(st, "scalar", &info, &err), 0);
    ck_assert_int_eq(info.rank, 0);
    ck_assert_int_eq(safetensors_read(st, "scalar", bytes, &err), 0);
    ck_assert_int_eq(bytes[0], 28);
    ck_assert_int_eq(safetensors_read(st, "none", bytes, &err), 0);
    ck_assert_ptr_nonnull(strstr(safetensors_file(st, "b"), "/model.safetensors"));
    safetensors_close(st);
}
END_TEST

START_TEST(test_missing_tensor_and_unknown_dtype_are_errors_when_asked_for)
{
    struct error err;
    struct tensor info;
    char bytes[4];

    write_shard("model.safetensors", GOOD, GOOD_DATA, NULL);
    struct safetensors *st = open_good();
    ck_assert_int_eq(safetensors_info(st, "c", &info, &err), -1);
    ck_assert_ptr_nonnull(strstr(err.message, "/model.safetensors: tensor \"c\" is missing"));
    ck_assert_ptr_null(safetensors_file(st, "c"));
    ck_assert(safetensors_has(st, "odd"));
    ck_assert_int_eq(safetensors_read(st, "odd", bytes, &err), -1);
    ck_assert_ptr_nonnull(strstr(err.message, "tensor \"odd\" has dtype F4"));
    safetensors_close(st);
}
END_TEST

START_TEST(test_file_that_shrinks_after_open_is_an_error)
{
    struct error err;
    char bytes[16];

    write_shard("model.safetensors", GOOD, GOOD_DATA, NULL);
    struct safetensors *st = open_good();
    write_shard("model.safetensors", GOOD, 4, NULL);
    ck_assert_int_eq(safetensors_read(st, "a", bytes, &err), -1);
    ck_assert_ptr_nonnull(strstr(err.message, "model.safetensors: ends at"));
    safetensors_close(st);
}
END_TEST

START_TEST(test_many_tensors_are_found_quickly)
{
    enum { N = 100000 };
    char *header = mem_alloc(N * 96), name[32];
    size_t used = 0;

    for (int i = 0; i < N; i++)
        used += (size_t)sprintf(header + used,
                                "%c\"t.%d\":{\"dtype\":\"F8_E4M3\",\"shape\":[1],"
                                "\"data_offsets\":[%d,%d]}",
                                i ? ',' : '{', i, i, i + 1);
    sprintf(header + used, "}");
    write_shard("model.safetensors", header, N, NULL);
    struct safetensors *st = open_good();
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof(name), "t.%d", i);
        ck_assert(safetensors_has(st, name));
    }
    safetensors_close(st);
    free(header);
}
END_TEST

/* ---- headers that lie ------------------------------------------------------------------------ */

#define T(dtype, shape, offsets)                                                                   \
    "{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static const struct {
    const char *header;
    size_t data_len;
    const char *words;
} bad[] = {
    {"", 0, "the header: the JSON text has a syntax error"},
    {"{", 0, "syntax error"},
    {"{} x", 0, "goes on after its end"},
    {"[]", 0, "must be a JSON object"},
    {"null", 0, "must be a JSON object"},
    {"{\"\\u0000\":1}", 0, "NUL"},
    {"{\"\xff\":1}", 0, "UTF-8"},
    {"{}", 1, "1 bytes at the end of the file belong to no tensor"},
    {"{\"a\":[]}", 0, "\"a\" must be described by an object"},
    {"{\"a\":{}}", 0, "\"a\" has no dtype"},
    {"{\"a\":" T("7", "[1]", "[0,4]") "}", 4, "\"a\" has no dtype"},
    {"{\"a\":" T("\"\"", "[1]", "[0,4]") "}", 4, "\"a\" has no dtype"},
    {"{\"a\":" T("\"F32\"", "1", "[0,4]") "}", 4, "shape"},
    {"{\"a\":" T("\"F32\"", "null", "[0,4]") "}", 4, "shape"},
    {"{\"a\":" T("\"F32\"", "[\"1\"]", "[0,4]") "}", 4, "shape"},
    {"{\"a\":" T("\"F32\"", "[-1]", "[0,4]") "}", 4, "shape"},
    {"{\"a\":" T("\"F32\"", "[-1,-1]", "[0,4]") "}", 4, "shape"},
    {"{\"a\":" T("\"F32\"", "[0.5]", "[0,2]") "}", 2, "shape"},
    {"{\"a\":" T("\"F32\"", "[1,1,1,1,1]", "[0,4]") "}", 4, "shape of at most 4"},
    {"{\"a\":" T("\"F32\"", "[4294967296,4294967296]", "[0,0]") "}", 0, "shape"},
    {"{\"a\":" T("\"F32\"", "[2147483648,2147483648]", "[0,0]") "}", 0, "not the size"},
    {"{\"a\":" T("\"F32\"", "[1e300]", "[0,4]") "}", 4, "shape"},
    {"{\"a\":" T("\"F32\"", "[1]", "4") "}", 4, "data_offsets"},
    {"{\"a\":" T("\"F32\"", "[1]", "[0]") "}", 4, "data_offsets"},
    {"{\"a\":" T("\"F32\"", "[1]", "[0,4,8]") "}", 4, "data_offsets"},
    {"{\"a\":" T("\"F32\"", "[1]", "[4,0]") "}", 4, "data_offsets"},
    {"{\"a\":" T("\"F32\"", "[1]", "[-4,0]") "}", 4, "data_offsets"},
    {"{\"a\":" T("\"F32\"", "[1]", "[0,4.5]") "}", 4, "data_offsets"},
    {"{\"a\":" T("\"F32\"", "[1]", "[0,1e18]") "}", 4, "data_offsets"},
    {"{\"a\":" T("\"F32\"", "[2]", "[0,4]") "}", 4, "not the size of its shape"},
    {"{\"a\":" T("\"BF16\"", "[2]", "[0,8]") "}", 8, "not the size of its shape"},
    {"{\"a\":" T("\"F32\"", "[2]", "[0,8]") "}", 4, "cut short: 4 bytes of tensor data"},
    {"{\"a\":" T("\"F4\"", "[2]", "[0,9007199254740992]") "}", 4, "cut short"},
    {"{\"a\":" T("\"F32\"", "[1]", "[4,8]") "}", 8, "follows a hole"},
    {"{\"a\":" T("\"F32\"", "[1]", "[0,4]") ",\"b\":" T("\"F32\"", "[1]", "[8,12]") "}", 12,
     "\"b\" follows a hole"},
    {"{\"a\":" T("\"F32\"", "[1]", "[0,4]") ",\"b\":" T("\"F32\"", "[1]", "[2,6]") "}", 6,
     "\"b\" overlaps another"},
    {"{\"a\":" T("\"F32\"", "[1]", "[0,4]") ",\"b\":" T("\"F32\"", "[1]", "[0,4]") "}", 4,
     "overlaps another"},
    {"{\"a\":" T("\"F32\"", "[1]", "[0,4]") ",\"a\":" T("\"F32\"", "[1]", "[4,8]") "}", 8,
     "\"a\" is there twice"},
};

START_TEST(test_malformed_headers_are_refused)
{
    write_shard("model.safetensors", bad[_i].header, bad[_i].data_len, NULL);
    assert_refused(bad[_i].words);
}
END_TEST

START_TEST(test_header_length_is_checked_against_the_file)
{
    folder_write(dir, "model.safetensors", "\x03\0\0\0\0\0\0\0{}", 10);
    assert_refused("the header would be 3 bytes of the file's 10");
    folder_write(dir, "model.safetensors", "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10);
    assert_refused("the header would be");
    folder_write(dir, "model.safetensors", "", 0);
    assert_refused("0 bytes are too few");
    folder_write(dir, "model.safetensors", "\x02\0\0\0\0\0\0", 7);
    assert_refused("7 bytes are too few");
}
END_TEST

START_TEST(test_git_lfs_pointer_is_recognised)
{
    folder_write_text(dir, "model.safetensors",
                      "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n");
    assert_refused("git lfs pull");
}
END_TEST

START_TEST(test_folder_without_a_checkpoint_is_refused)
{
    assert_refused("holds neither model.safetensors nor model.safetensors.index.json");
}
END_TEST

START_TEST(test_every_truncation_is_refused)
{
    char *file;
    size_t len = write_shard("model.safetensors", GOOD, GOOD_DATA, &file);

    for (size_t cut = 0; cut < len; cut++) {
        folder_write(dir, "model.safetensors", file, cut);
        assert_refused("model.safetensors: ");
    }
    free(file);
}
END_TEST

static uint32_t next_random(uint32_t *state) /* xorshift32 */
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

/* Changes the file in one to four places, mostly in its header, now and then its length. */
static size_t mutate(char *file, size_t len, uint32_t *random)
{
    static const char alphabet[] = "{}[]\",:0123456789-.eE\\u \xff";
    uint32_t changes = 1 + next_random(random) % 4;

    for (uint32_t i = 0; i < changes; i++) {
        uint32_t at = next_random(random) % (uint32_t)len;
        if (next_random(random) % 2)
            file[at] = alphabet[next_random(random) % (sizeof(alphabet) - 1)];
        else
            file[at] = (char)next_random(random);
    }
    return next_random(random) % 8 ? len : next_random(random) % (uint32_t)len;
}

/* What opens must be readable within the bounds it states. */
START_TEST(test_mutated_files_never_crash)
{
    static const char *const names[] = {"a", "b", "none", "scalar", "odd"};
    uint32_t random = 2463534242u;
    int opened = 0;
    char *file;
    size_t len = write_shard("model.safetensors", GOOD, GOOD_DATA, &file);

    for (int round = 0; round < 5000; round++) {
        struct error err;
        struct tensor info;
        char *copy = mem_copy(file, len);
        folder_write(dir, "model.safetensors", copy, mutate(copy, len, &random));
        struct safetensors *st = safetensors_open(dir, &err);
        opened += st != NULL;
        for (int i = 0; st && i < 5; i++) {
            if (safetensors_info(st, names[i], &info, &err))
                continue;
            char *out = mem_alloc(tensor_bytes(&info));
            ck_assert_int_eq(safetensors_read(st, names[i], out, &err), 0);
            free(out);
        }
        safetensors_close(st);
        free(copy);
    }
    ck_assert_int_gt(opened, 0); /* or else reading was never tried */
    free(file);
}
END_TEST

/* ---- shards ---------------------------------------------------------------------------------- */

static void write_two_shards(void)
{
    write_shard("one.safetensors", "{\"a\":" T("\"F32\"", "[1]", "[0,4]") "}", 4, NULL);
    write_shard("two.safetensors",
                "{\"b\":" T("\"F32\"", "[1]", "[4,8]") ",\"c\":" T("\"F32\"", "[1]", "[0,4]") "}",
                8, NULL);
}

static void write_index(const char *text)
{
    folder_write_text(dir, "model.safetensors.index.json", text);
}

START_TEST(test_index_joins_shards)
{
    struct error err;
    unsigned char bytes[4];

    write_two_shards();
    write_index("{\"metadata\":{\"total_size\":12},\"weight_map\":{\"c\":\"two.safetensors\","
                "\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}");
    struct safetensors *st = open_good();
    ck_assert_int_eq(safetensors_read(st, "b", bytes, &err), 0);
    ck_assert_int_eq(bytes[0], 4);
    ck_assert_int_eq(safetensors_read(st, "a", bytes, &err), 0);
    ck_assert_int_eq(bytes[0], 0);
    ck_assert_ptr_nonnull(strstr(safetensors_file(st, "c"), "two.safetensors"));
    ck_assert_int_eq(safetensors_read(st, "d", bytes, &err), -1);
    ck_assert_ptr_nonnull(strstr(err.message, "tensor \"d\" is missing"));
    safetensors_close(st);
}
END_TEST

START_TEST(test_single_file_wins_over_index)
{
    write_shard("model.safetensors", GOOD, GOOD_DATA, NULL);
    write_index("nonsense");
    safetensors_close(open_good());
}
END_TEST

static const struct {
    const char *index;
    const char *words;
} bad_index[] = {
    {"", "syntax error"},
    {"[]", "weight_map"},
    {"{}", "weight_map"},
    {"{\"weight_map\":[]}", "weight_map"},
    {"{\"weight_map\":{}}", "weight_map"},
    {"{\"weight_map\":{\"a\":1}}", "\"a\" must be mapped to a plain file name"},
    {"{\"weight_map\":{\"a\":\"\"}}", "plain file name"},
    {"{\"weight_map\":{\"a\":\"..\"}}", "plain file name"},
    {"{\"weight_map\":{\"a\":\"../one.safetensors\"}}", "plain file name"},
    {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "plain file name"},
    {"{\"weight_map\":{\"a\":\"sub/one.safetensors\"}}", "plain file name"},
    {"{\"weight_map\":{\"a\":\"gone.safetensors\"}}", "gone.safetensors: No such file"},
    {"{\"weight_map\":{\"z\":\"one.safetensors\"}}", "\"z\" is not in one.safetensors"},
    {"{\"weight_map\":{\"a\":\"two.safetensors\"}}", "\"a\" is not in two.safetensors"},
    {"{\"weight_map\":{\"b\":\"one.safetensors\",\"a\":\"two.safetensors\"}}", "is not in"},
};

START_TEST(test_bad_index_is_refused)
{
    write_two_shards();
    write_index(bad_index[_i].index);
    assert_refused(bad_index[_i].words);
}
END_TEST

START_TEST(test_tensor_in_two_shards_is_refused)
{
    write_two_shards();
    write_shard("three.safetensors", "{\"a\":" T("\"F32\"", "[1]", "[0,4]") "}", 4, NULL);
    write_index("{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"three.safetensors\"}}");
    assert_refused("tensor \"a\" is there twice");
}
END_TEST

START_TEST(test_broken_shard_is_named)
{
    write_two_shards();
    write_shard("two.safetensors", "{\"b\":" T("\"F32\"", "[2]", "[0,8]") "}", 6, NULL);
    write_index("{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}");
    assert_refused("/two.safetensors: the file is cut short: 2 bytes");
}
END_TEST

static void add_tests(TCase *t)
{
    tcase_add_checked_fixture(t, make_dir, remove_dir);
    tcase_add_test(t, test_tensors_are_found_and_read);
    tcase_add_test(t, test_missing_tensor_and_unknown_dtype_are_errors_when_asked_for);
    tcase_add_test(t, test_file_that_shrinks_after_open_is_an_error);
    tcase_add_test(t, test_many_tensors_are_found_quickly);
    tcase_add_loop_test(t, test_malformed_headers_are_refused, 0, sizeof(bad) / sizeof(*bad));
    tcase_add_test(t, test_header_length_is_checked_against_the_file);
    tcase_add_test(t, test_git_lfs_pointer_is_recognised);
    tcase_add_test(t, test_folder_without_a_checkpoint_is_refused);
    tcase_add_test(t, test_every_truncation_is_refused);
    tcase_add_test(t, test_mutated_files_never_crash);
    tcase_add_test(t, test_index_joins_shards);
    tcase_add_test(t, test_single_file_wins_over_index);
    tcase_add_loop_test(t, test_bad_index_is_refused, 0, sizeof(bad_index) / sizeof(*bad_index));
    tcase_add_test(t, test_tensor_in_two_shards_is_refused);
    tcase_add_test(t, test_broken_shard_is_named);
}

UNIT_MAIN("safetensors", add_tests)
