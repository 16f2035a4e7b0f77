/* The HTTP server towards clients that behave. */
#include "tests/unit/http_app.h"

/* ---- answers ---- */

START_TEST(test_plain_answer_with_headers)
{
    struct app *app = app_new();
    struct client client = client_open(app);
    struct reply reply;

    client_say(&client, GET("/plain"));
    take_reply(&client, &reply, false);
    ck_assert_int_eq(reply.status, 200);
    ck_assert_str_eq(reply.body.data, "hello\n");
    ck_assert_ptr_nonnull(strstr(reply.headers, "X-One: 1\n"));
    ck_assert_ptr_nonnull(strstr(reply.headers, "Content-Type: text/plain\n"));
    ck_assert_ptr_nonnull(strstr(reply.headers, "Date: "));
    ck_assert_ptr_null(strstr(reply.headers, "Injected"));
    wait_count(app, &app->completed, 1);
    buffer_free(&reply.body);
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_request_parts_are_readable)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, "PUT /%66acts?a=b%20c&d HTTP/1.1\r\nHost: x\r\nX-Thing:  some \r\n\r\n");
    expect_reply(&client, 201, "PUT|some|b c|1");
    client_say(&client, GET("/facts"));
    expect_reply(&client, 201, "GET|(none)|(none)|1");
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_connection_is_kept_for_more_requests)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    for (int i = 0; i < 50; i++) {
        client_say(&client, i % 2 ? GET("/plain") : GET("/stream"));
        expect_reply(&client, 200, i % 2 ? "hello\n" : "one");
    }
    wait_count(app, &app->completed, 50);
    on_loop(app, look);
    ck_assert_int_eq(app->seen.connections, 1);
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_connection_close_is_honoured)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, "GET /plain HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    expect_reply(&client, 200, "hello\n");
    expect_end(&client);
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_late_answer)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    for (int i = 0; i < 3; i++) {
        client_say(&client, GET("/hold"));
        wait_held(app);
        expect_nothing_more(&client);
        on_loop(app, answer_held);
        expect_reply(&client, 200, "late\n");
    }
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_head_has_the_headers_and_no_body)
{
    struct app *app = app_new();
    struct client client = client_open(app);
    struct reply reply;

    client_say(&client, "HEAD /plain HTTP/1.1\r\nHost: x\r\n\r\n");
    take_reply(&client, &reply, true);
    ck_assert_int_eq(reply.status, 200);
    ck_assert_ptr_nonnull(strcasestr(reply.headers, "Content-Length: 6\n"));
    client_say(&client, "HEAD /stream HTTP/1.1\r\nHost: x\r\n\r\n");
    take_reply(&client, &reply, true);
    ck_assert_int_eq(reply.status, 200);
    expect_nothing_more(&client);
    client_say(&client, GET("/plain"));
    expect_reply(&client, 200, "hello\n");
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_pipelined_requests_are_answered_in_order)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, GET("/plain") GET("/stream") GET("/facts") GET("/plain"));
    expect_reply(&client, 200, "hello\n");
    expect_reply(&client, 200, "one");
    expect_reply(&client, 201, NULL);
    expect_reply(&client, 200, "hello\n");
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_pipelined_request_is_no_disconnect)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, GET("/hold"));
    wait_held(app);
    client_say(&client, GET("/plain"));
    expect_nothing_more(&client);
    on_loop(app, answer_held);
    expect_reply(&client, 200, "late\n");
    expect_reply(&client, 200, "hello\n");
    client_close(&client);
    app_free(app);
}
END_TEST

/* ---- streams ---- */

START_TEST(test_stream_headers_and_each_write_arrive_by_themselves)
{
    struct app *app = app_new();
    struct client client = client_open(app);
    struct reply reply;
    size_t len;

    client_say(&client, GET("/hold"));
    wait_held(app);
    on_loop(app, start_held);
    ck_assert(take_head(&client, &reply)); /* before anything was written */
    ck_assert_ptr_nonnull(strcasestr(reply.headers, "Transfer-Encoding: chunked"));
    for (int i = 0; i < 20; i++) {
        expect_nothing_more(&client);
        on_loop(app, i % 2 ? write_b : write_a);
        ck_assert(take_chunk(&client, &reply.body, &len));
        ck_assert_uint_eq(len, i % 2 ? 2 : 3);
    }
    on_loop(app, end_held);
    ck_assert(take_chunk(&client, &reply.body, &len));
    ck_assert_uint_eq(len, 0);
    wait_count(app, &app->completed, 1);
    client_say(&client, GET("/plain"));
    expect_reply(&client, 200, "hello\n");
    buffer_free(&reply.body);
    client_close(&client);
    app_free(app);
}
END_TEST

static void write_batch(struct app *app)
{
    HTTP_CALL(app, {
        http_batch_begin(app->server);
        http_stream_write(app->held, "aaa", 3);
        http_stream_write(app->held, "bb", 2);
        http_stream_end(app->held);
        http_batch_end(app->server);
    });
}

START_TEST(test_batch_of_writes_arrives_whole)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, GET("/hold"));
    wait_held(app);
    on_loop(app, start_held);
    on_loop(app, write_batch);
    expect_reply(&client, 200, "aaabb");
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_aborted_stream_has_its_bytes_but_no_end)
{
    struct app *app = app_new();
    struct client client = client_open(app);
    struct reply reply;

    client_say(&client, GET("/hold"));
    wait_held(app);
    on_loop(app, start_held);
    on_loop(app, write_a);
    on_loop(app, abort_held);
    take_reply(&client, &reply, false);
    ck_assert(!reply.complete);
    ck_assert_str_eq(reply.body.data, "aaa");
    wait_count(app, &app->completed, 1);
    buffer_free(&reply.body);
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_stream_to_http_1_0_ends_with_the_connection)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, "GET /stream HTTP/1.0\r\n\r\n");
    while (client_receive(&client))
        continue;
    ck_assert_ptr_null(strstr(client.in.data, "chunked"));
    ck_assert_str_eq(strstr(client.in.data, "\r\n\r\n"), "\r\n\r\none");
    client_close(&client);
    app_free(app);
}
END_TEST

enum { STREAMS = 200 };

START_TEST(test_many_streams_get_the_right_bytes)
{
    struct app *app = app_new();
    static struct client clients[STREAMS];
    char text[4096];

    for (int i = 0; i < STREAMS; i++) {
        clients[i] = client_open(app);
        snprintf(text, sizeof(text), GET("/ticks?n=%d"), i);
        client_say(&clients[i], text);
        if (i == STREAMS / 2)
            on_loop(app, start_ticker);
    }
    for (int i = 0; i < STREAMS; i++) {
        size_t len = 0;
        for (int k = 0; k < TICKS; k++)
            len += (size_t)snprintf(text + len, sizeof(text) - len, "%d:%d;", i, k);
        expect_reply(&clients[i], 200, text);
    }
    wait_count(app, &app->completed, STREAMS);
    for (int i = 0; i < STREAMS; i++)
        client_close(&clients[i]);
    app_free(app);
}
END_TEST

/* ---- bodies ---- */

START_TEST(test_big_body_in_pieces)
{
    struct app *app = app_new();
    struct client client = client_open(app);
    size_t len = MAX_BODY;
    char *body = mem_alloc(len + 1), head[128];

    for (size_t i = 0; i < len; i++)
        body[i] = (char)('a' + i % 23);
    body[len] = '\0';
    snprintf(head, sizeof(head), "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n",
             len);
    client_say(&client, head);
    for (size_t at = 0; at < len; at += 100000)
        client_send(&client, body + at, len - at < 100000 ? len - at : 100000);
    expect_reply(&client, 200, body);
    free(body);
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_chunked_body)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                        "4\r\nwiki\r\n5\r\npedia\r\n");
    client_say(&client, "0\r\n\r\n");
    expect_reply(&client, 200, "wikipedia");
    client_say(&client, GET("/plain"));
    expect_reply(&client, 200, "hello\n");
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_expect_continue)
{
    struct app *app = app_new();
    struct client client = client_open(app);
    struct reply reply;

    client_say(&client, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
                        "Expect: 100-continue\r\n\r\n");
    ck_assert(take_head(&client, &reply));
    ck_assert_int_eq(reply.status, 100);
    client_say(&client, "ok");
    expect_reply(&client, 200, "ok");
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_too_long_body_is_refused_before_it_is_sent)
{
    struct app *app = app_new();
    struct client client = client_open(app);
    struct reply reply;

    client_say(&client, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n"
                        "Expect: 100-continue\r\n\r\n");
    take_reply(&client, &reply, false);
    ck_assert_int_eq(reply.status, 413);
    ck_assert_str_eq(reply.body.data, "{\"refused\":413}");
    ck_assert_ptr_nonnull(strstr(reply.headers, "Connection: close\n"));
    ck_assert_ptr_nonnull(strstr(reply.headers, "Content-Type: application/json\n"));
    expect_end(&client);
    buffer_free(&reply.body);
    client_close(&client);
    ck_assert_int_eq(app->requests, 0);
    app_free(app);
}
END_TEST

/* A client that sends all it has before it reads still gets its answer. */
static void send_too_much(const char *head, const char *chunk_head, const char *chunk_tail)
{
    struct app *app = app_new();
    struct client client = client_open(app);
    static char piece[0x10000];

    memset(piece, 'x', sizeof(piece));
    client_say(&client, head);
    for (int i = 0; i < 256; i++) { /* 16 MB; the limit is 1 MB */
        client_say(&client, chunk_head);
        client_send(&client, piece, sizeof(piece));
        client_say(&client, chunk_tail);
    }
    expect_reply(&client, 413, "{\"refused\":413}");
    expect_end(&client);
    client_close(&client);
    ck_assert_int_eq(app->requests, 0);
    app_free(app);
}

START_TEST(test_too_long_body_with_content_length)
{
    send_too_much("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 16777216\r\n\r\n", "", "");
}
END_TEST

START_TEST(test_too_long_chunked_body)
{
    send_too_much("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
                  "10000\r\n", "\r\n");
}
END_TEST

/* ---- the end ---- */

START_TEST(test_drain_finishes_what_is_in_flight)
{
    struct app *app = app_new();
    struct client streaming = client_open(app), waiting = client_open(app);
    struct client idle = client_open(app);
    struct reply reply;

    client_say(&idle, GET("/plain"));
    expect_reply(&idle, 200, "hello\n");
    client_say(&waiting, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n");
    client_say(&streaming, GET("/hold"));
    wait_held(app);
    on_loop(app, start_held);
    wait_active(app, 2);
    on_loop(app, drain);
    ck_assert_int_eq(try_connect(http_port(app->server), 0), -1);
    expect_end(&idle);
    on_loop(app, write_a);
    on_loop(app, end_held);
    expect_reply(&streaming, 200, "aaa");
    expect_end(&streaming);
    client_say(&waiting, "abc");
    take_reply(&waiting, &reply, false);
    ck_assert_int_eq(reply.status, 200);
    ck_assert_str_eq(reply.body.data, "abc");
    ck_assert_ptr_nonnull(strcasestr(reply.headers, "Connection: close"));
    expect_end(&waiting);
    wait_active(app, 0);
    buffer_free(&reply.body);
    client_close(&streaming);
    client_close(&waiting);
    client_close(&idle);
    app_free(app);
}
END_TEST

START_TEST(test_stop_closes_whatever_is_open)
{
    struct app *app = app_new();
    struct client waiting = client_open(app), streaming = client_open(app);
    struct client uploading = client_open(app), idle = client_open(app);

    client_say(&uploading, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n");
    client_say(&waiting, GET("/hold"));
    client_say(&streaming, GET("/ticks"));
    wait_count(app, &app->requests, 2);
    wait_active(app, 3);
    app_free(app); /* counts the closed ones */
    ck_assert(!client_receive(&waiting));
    ck_assert(!client_receive(&uploading));
    client_close(&waiting);
    client_close(&streaming);
    client_close(&uploading);
    client_close(&idle);
}
END_TEST

START_TEST(test_port_in_use_is_an_error)
{
    struct app *app = app_new();
    struct http_options options = default_options();
    struct http_callbacks callbacks = {
        .arg = app, .request = on_request, .closed = on_closed, .refusal = on_refusal};
    struct error err;
    struct loop *loop = loop_new();

    options.port = http_port(app->server);
    ck_assert_ptr_null(http_start(loop, &options, &callbacks, &err));
    ck_assert_ptr_nonnull(strstr(err.message, "in use"));
    options.host = "no.such.host.invalid";
    ck_assert_ptr_null(http_start(loop, &options, &callbacks, &err));
    ck_assert_ptr_nonnull(strstr(err.message, "no.such.host.invalid"));
    loop_free(loop);
    app_free(app);
}
END_TEST

static void add_tests(TCase *tcase)
{
    tcase_add_test(tcase, test_plain_answer_with_headers);
    tcase_add_test(tcase, test_request_parts_are_readable);
    tcase_add_test(tcase, test_connection_is_kept_for_more_requests);
    tcase_add_test(tcase, test_connection_close_is_honoured);
    tcase_add_test(tcase, test_late_answer);
    tcase_add_test(tcase, test_head_has_the_headers_and_no_body);
    tcase_add_test(tcase, test_pipelined_requests_are_answered_in_order);
    tcase_add_test(tcase, test_pipelined_request_is_no_disconnect);
    tcase_add_test(tcase, test_stream_headers_and_each_write_arrive_by_themselves);
    tcase_add_test(tcase, test_batch_of_writes_arrives_whole);
    tcase_add_test(tcase, test_aborted_stream_has_its_bytes_but_no_end);
    tcase_add_test(tcase, test_stream_to_http_1_0_ends_with_the_connection);
    tcase_add_test(tcase, test_many_streams_get_the_right_bytes);
    tcase_add_test(tcase, test_big_body_in_pieces);
    tcase_add_test(tcase, test_chunked_body);
    tcase_add_test(tcase, test_expect_continue);
    tcase_add_test(tcase, test_too_long_body_is_refused_before_it_is_sent);
    tcase_add_test(tcase, test_too_long_body_with_content_length);
    tcase_add_test(tcase, test_too_long_chunked_body);
    tcase_add_test(tcase, test_drain_finishes_what_is_in_flight);
    tcase_add_test(tcase, test_stop_closes_whatever_is_open);
    tcase_add_test(tcase, test_port_in_use_is_an_error);
}

UNIT_MAIN("http", add_tests)
