/* The HTTP server towards clients that don't: malformed requests, clients that vanish, slow ones,
 * too many. */
#include "tests/unit/http_app.h"

/* ---- malformed requests ---- */

static const struct {
    const char *request;
    int status;
} malformed[] = {
    {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
     "0\r\n\r\n",
     400},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3x\r\n\r\nabc", 400},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3,3\r\n\r\nabc", 400},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length : 3\r\n\r\nabc", 400},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999999999999999\r\n\r\n", 413},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\n\r\n", 400},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
     "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
     400},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400},
    {"POST /echo HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400},
    {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n", 400},
    {"GET /plain%00x HTTP/1.1\r\nHost: x\r\n\r\n", 400},
    {"GET /plain HTTP/1.1\r\nHost: x\r\nBroken\r\n\r\n", 400},
    {"GET /plain HTTP/1.1\r\n\r\n", 400}, /* no Host */
    {"GET /plain HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400},
    {"GET /pl ain HTTP/1.1\r\nHost: x\r\n\r\n", 400},
};

START_TEST(test_malformed_request_is_refused_and_closed)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, malformed[_i].request);
    client_say(&client, GET("/plain")); /* smuggled, if it were answered */
    expect_reply(&client, malformed[_i].status, NULL);
    while (client_receive(&client)) /* until it is closed */
        continue;
    client_close(&client);
    ck_assert_int_eq(app->requests, 0);
    app_free(app);
}
END_TEST

START_TEST(test_garbage_closes_the_connection)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, "\x16\x03\x01 nonsense\r\n\r\n");
    while (client_receive(&client))
        continue;
    client_close(&client);
    ck_assert_int_eq(app->requests, 0);
    app_free(app);
}
END_TEST

START_TEST(test_too_large_headers_are_refused)
{
    struct app *app = app_new();
    struct client client = client_open(app);
    char line[1100];

    memset(line, 'h', sizeof(line));
    memcpy(line, "X-Long: ", 8);
    memcpy(line + 1024, "\r\n", 3);
    client_say(&client, "GET /plain HTTP/1.1\r\nHost: x\r\n");
    for (int i = 0; i < 200; i++)
        client_say(&client, line);
    client_say(&client, "\r\n");
    expect_reply(&client, 431, NULL);
    client_close(&client);
    app_free(app);
}
END_TEST

/* ---- clients that vanish ---- */

START_TEST(test_client_vanishes_in_its_upload)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc");
    wait_active(app, 1);
    client_close(&client);
    wait_active(app, 0);
    ck_assert_int_eq(app->requests + app->gone, 0); /* nobody has heard of it */
    app_free(app);
}
END_TEST

START_TEST(test_client_vanishes_while_it_waits)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, GET("/hold"));
    wait_held(app);
    client_close(&client);
    wait_count(app, &app->gone, 1);
    wait_active(app, 0);
    app_free(app);
}
END_TEST

START_TEST(test_client_resets_while_it_waits)
{
    struct app *app = app_new();
    struct client client = client_open(app);
    struct linger reset = {1, 0};

    client_say(&client, GET("/hold"));
    wait_held(app);
    setsockopt(client.fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    client_close(&client);
    wait_count(app, &app->gone, 1);
    app_free(app);
}
END_TEST

START_TEST(test_client_vanishes_behind_a_pipelined_request)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, GET("/hold") GET("/hold"));
    wait_held(app);
    client_close(&client);
    wait_count(app, &app->gone, 1);
    ck_assert_int_eq(app->requests, 1);
    app_free(app);
}
END_TEST

START_TEST(test_client_vanishes_in_a_stream)
{
    struct app *app = app_new();
    struct client client = client_open(app);
    struct reply reply;
    size_t len;

    client_say(&client, GET("/hold"));
    wait_held(app);
    on_loop(app, start_held);
    on_loop(app, write_a);
    ck_assert(take_head(&client, &reply));
    ck_assert(take_chunk(&client, &reply.body, &len));
    client_close(&client);
    wait_count(app, &app->gone, 1);
    buffer_free(&reply.body);
    app_free(app);
}
END_TEST

static void flood_held(struct app *app)
{
    static char piece[16 * 1024];

    /* Called often, fills the kernel's buffers and then ours, half of it at a time. */
    for (int i = 0; i < 8; i++)
        HTTP_CALL(app, http_stream_write(app->held, piece, sizeof(piece)));
}

START_TEST(test_client_vanishes_while_bytes_wait_for_it)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, GET("/hold"));
    wait_held(app);
    on_loop(app, start_held);
    do { /* until the client's window is closed */
        on_loop(app, flood_held);
        usleep(20000);
        on_loop(app, look);
    } while (app->seen.buffered == 0);
    client_close(&client);
    wait_count(app, &app->gone, 1);
    on_loop(app, look);
    ck_assert_uint_eq(app->seen.buffered, 0);
    app_free(app);
}
END_TEST

START_TEST(test_half_closed_client_counts_as_gone)
{
    struct app *app = app_new();
    struct client client = client_open(app);

    client_say(&client, GET("/hold"));
    shutdown(client.fd, SHUT_WR);
    wait_count(app, &app->gone, 1);
    client_close(&client);
    app_free(app);
}
END_TEST

/* Clients of all kinds, which leave at any moment, politely or not, while streams go on. */
START_TEST(test_clients_come_and_go_at_random)
{
    static const char *const requests[] = {
        GET("/plain"),
        GET("/ticks?n=1"),
        GET("/hold") GET("/plain"),
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n0123456789",
        "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nx",
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\nabc",
    };
    struct app *app = app_new();
    struct linger reset = {1, 0};
    struct client open[16] = {0};

    srand(1);
    on_loop(app, start_ticker);
    for (int i = 0; i < 3000; i++) {
        struct client *client = &open[rand() % 16];
        if (client->fd) {
            if (rand() % 2)
                setsockopt(client->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
            client_close(client);
        }
        *client = client_open(app);
        const char *request = requests[rand() % 6];
        size_t len = strlen(request);
        client_send(client, request, rand() % 3 ? len : (size_t)rand() % len);
        if (rand() % 4 == 0)
            recv(client->fd, (char[99]){0}, 99, MSG_DONTWAIT);
    }
    for (int i = 0; i < 16; i++)
        if (open[i].fd)
            client_close(&open[i]);
    wait_active(app, 0);
    app_free(app);
}
END_TEST

/* ---- limits ---- */

START_TEST(test_slow_reader_is_dropped_and_others_flow)
{
    struct app *app = app_new();
    struct client fast = client_open(app);
    struct client slow = {.fd = try_connect(http_port(app->server), 4096)};

    client_say(&slow, GET("/hold"));
    wait_held(app);
    on_loop(app, start_held);
    for (int i = 0; app->seen.dropped == 0; i++) {
        ck_assert_int_lt(i, 10000);
        on_loop(app, flood_held);
        client_say(&fast, GET("/stream"));
        expect_reply(&fast, 200, "one");
        on_loop(app, look);
        ck_assert_uint_le(app->seen.buffered, MAX_BUFFERED);
    }
    wait_count(app, &app->gone, 1);
    close(slow.fd);
    client_close(&fast);
    app_free(app);
}
END_TEST

START_TEST(test_connection_past_the_limit_is_told_503)
{
    struct http_options options = default_options();
    options.max_connections = 2;
    struct app *app = app_start(&options);
    struct client one = client_open(app), two = client_open(app);

    client_say(&one, GET("/plain"));
    client_say(&two, GET("/plain"));
    expect_reply(&one, 200, "hello\n");
    expect_reply(&two, 200, "hello\n");
    struct client three = client_open(app);
    client_say(&three, GET("/plain"));
    expect_reply(&three, 503, "{\"refused\":503}");
    expect_end(&three);
    client_say(&one, GET("/plain")); /* undisturbed */
    expect_reply(&one, 200, "hello\n");
    client_close(&two);
    client_close(&three);
    for (int status = 0; status != 200;) { /* room again, once the server has seen the close */
        struct client four = client_open(app);
        struct reply reply;
        client_say(&four, GET("/plain"));
        take_reply(&four, &reply, false);
        status = reply.status;
        buffer_free(&reply.body);
        client_close(&four);
    }
    client_close(&one);
    app_free(app);
}
END_TEST

static struct app *impatient_app(void)
{
    struct http_options options = default_options();
    options.read_timeout_s = 1;
    return app_start(&options);
}

/* Sends a byte now and then, until the server has enough of it. */
static void trickle(struct app *app, const char *start, const char *byte)
{
    struct client client = client_open(app);
    struct pollfd ready = {.fd = client.fd, .events = POLLIN};
    int64_t begin_us = clock_us();

    client_say(&client, start);
    while (poll(&ready, 1, 100) == 0) {
        ck_assert(clock_us() - begin_us < PATIENCE_S * 1000000ll);
        client_say(&client, byte);
    }
    ck_assert_int_ge((int)(clock_us() - begin_us), 900000);
    expect_reply(&client, 408, "{\"refused\":408}");
    client_close(&client);
    wait_active(app, 0);
    ck_assert_int_eq(app->requests, 0);
    app_free(app);
}

START_TEST(test_trickled_request_line_times_out)
{
    trickle(impatient_app(), "GE", "T");
}
END_TEST

START_TEST(test_trickled_headers_time_out)
{
    trickle(impatient_app(), "GET /plain HTTP/1.1\r\nHost: x\r\nX-Long: ", "y");
}
END_TEST

START_TEST(test_trickled_body_times_out)
{
    trickle(impatient_app(), "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n", "z");
}
END_TEST

START_TEST(test_pending_answer_does_not_time_out)
{
    struct http_options options = default_options();
    options.read_timeout_s = options.idle_timeout_s = 1;
    struct app *app = app_start(&options);
    struct client client = client_open(app);

    client_say(&client, GET("/hold"));
    wait_held(app);
    sleep(3);
    on_loop(app, answer_held);
    expect_reply(&client, 200, "late\n");
    client_close(&client);
    app_free(app);
}
END_TEST

START_TEST(test_idle_connections_are_closed_in_time)
{
    struct http_options options = default_options();
    options.idle_timeout_s = 1;
    struct app *app = app_start(&options);
    struct client used = client_open(app), fresh = client_open(app);

    client_say(&used, GET("/plain"));
    expect_reply(&used, 200, "hello\n");
    expect_end(&used);
    expect_end(&fresh);
    client_close(&used);
    client_close(&fresh);
    app_free(app);
}
END_TEST

static void add_tests(TCase *tcase)
{
    tcase_add_loop_test(tcase, test_malformed_request_is_refused_and_closed, 0,
                        sizeof(malformed) / sizeof(malformed[0]));
    tcase_add_test(tcase, test_garbage_closes_the_connection);
    tcase_add_test(tcase, test_too_large_headers_are_refused);
    tcase_add_test(tcase, test_client_vanishes_in_its_upload);
    tcase_add_test(tcase, test_client_vanishes_while_it_waits);
    tcase_add_test(tcase, test_client_resets_while_it_waits);
    tcase_add_test(tcase, test_client_vanishes_behind_a_pipelined_request);
    tcase_add_test(tcase, test_client_vanishes_in_a_stream);
    tcase_add_test(tcase, test_client_vanishes_while_bytes_wait_for_it);
    tcase_add_test(tcase, test_half_closed_client_counts_as_gone);
    tcase_add_test(tcase, test_clients_come_and_go_at_random);
    tcase_add_test(tcase, test_slow_reader_is_dropped_and_others_flow);
    tcase_add_test(tcase, test_connection_past_the_limit_is_told_503);
    tcase_add_test(tcase, test_trickled_request_line_times_out);
    tcase_add_test(tcase, test_trickled_headers_time_out);
    tcase_add_test(tcase, test_trickled_body_times_out);
    tcase_add_test(tcase, test_pending_answer_does_not_time_out);
    tcase_add_test(tcase, test_idle_connections_are_closed_in_time);
}

UNIT_MAIN("http_hostile", add_tests)
