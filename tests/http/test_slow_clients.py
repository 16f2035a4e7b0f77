"""Clients that read or send slowly, or wait long: bounded, and nobody else's trouble."""

import time

import pytest
from daemon import CHAT, COMPLETIONS, Server, Stream, request_bytes, wait_until
from prompts import token_ids

# Log-probabilities make some kilobytes of each token.
LOUD = {"max_tokens": 8000, "ignore_eos": True, "logprobs": 20, "stream": True}


def test_a_client_that_does_not_read_is_dropped(start) -> None:
    server = start("--max-stream-buffer-kib", "64")
    request = {"prompt": "One", "max_tokens": 100, "ignore_eos": True, "temperature": 0}
    alone = server.text(**request)
    deaf = server.connect(receive_buffer=4096)
    deaf.sendall(request_bytes(COMPLETIONS, LOUD | {"prompt": "One"}))
    other = server.stream(COMPLETIONS, **request)
    assert other.text() == alone and other.complete
    most = 0.0
    deadline = time.monotonic() + 120
    while server.running() > 0:
        most = max(most, server.metric("mlad_buffered_bytes"))
        assert time.monotonic() < deadline
    assert most < 200_000
    assert server.metric('vllm:request_success_total{finished_reason="abort"}') == 1
    assert server.metric("mlad_slow_clients_dropped_total") == 1
    assert server.generated() < 8000
    wait_until(server.is_idle, "nothing runs")
    with pytest.raises(ConnectionResetError):  # not an end that looks like a good one
        while deaf.recv(1 << 20):
            pass
    deaf.close()


def test_a_client_that_pauses_gets_all_of_its_stream(server: Server) -> None:
    request = {"prompt": "One", "max_tokens": 150, "ignore_eos": True, "temperature": 0}
    stream = Stream(server.connect(), COMPLETIONS, request | {"logprobs": 20, "stream": True})
    events = stream.events()
    text = next(events)["choices"][0]["text"]
    wait_until(server.is_idle, "the answer is made")
    text += "".join(event["choices"][0]["text"] for event in events)
    assert stream.complete
    assert text == server.text(**request)


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /v1/comp",
        b"POST /v1/completions HTTP/1.1\r\nHost: mlad\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: mlad\r\nContent-Length: 100\r\n\r\n{",
    ],
    ids=["request line", "fields", "body"],
)
def test_a_request_that_does_not_arrive_ends_with_408(start, sent: bytes) -> None:
    server = start("--read-timeout-s", "1")
    sock = server.connect()
    sock.sendall(sent)
    answer = b""
    while piece := sock.recv(4096):
        answer += piece
    assert answer.startswith(b"HTTP/1.1 408 ") and b'"timeout_error"' in answer
    assert server.metric('mlad_limit_hits_total{limit="read_time"}') == 1
    sock.close()


def test_sending_byte_by_byte_does_not_buy_time(start) -> None:
    server = start("--read-timeout-s", "1")
    sock = server.connect()
    answer = b""
    for byte in b"POST /v1/completions HTTP/1.1\r\nX-Long: " + b"x" * 1000:
        try:
            sock.sendall(bytes([byte]))
            sock.settimeout(0.1)
            answer = sock.recv(4096)
            break
        except TimeoutError:
            continue
    assert answer.startswith(b"HTTP/1.1 408 ")
    sock.close()


def test_a_request_in_pieces_is_answered_in_time(server: Server) -> None:
    request = request_bytes(COMPLETIONS, {"prompt": "One", "max_tokens": 2})
    sock = server.connect()
    for at in range(0, len(request), 7):
        sock.sendall(request[at : at + 7])
        time.sleep(0.002)
    assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
    sock.close()


def test_an_idle_connection_is_closed(start) -> None:
    server = start("--idle-timeout-s", "1")
    fresh, used = server.connect(), server.connect()
    used.sendall(b"GET /version HTTP/1.1\r\nHost: mlad\r\n\r\n")
    assert used.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert (fresh.recv(100), used.recv(100)) == (b"", b"")
    fresh.close()
    used.close()


def test_a_silent_stream_sends_comments(start) -> None:
    server = start("--max-num-seqs", "1", "--keep-alive-interval-s", "1")
    endless = {"prompt": token_ids(20, 1), "max_tokens": 8000, "ignore_eos": True}
    running = server.stream(COMPLETIONS, **endless)
    next(running.events())
    messages = [{"role": "user", "content": "Hi"}]
    queued = server.stream(CHAT, messages=messages, max_tokens=3, ignore_eos=True)
    blocks = queued.blocks()
    assert next(blocks) == ": keep-alive"
    running.close()
    events = [block for block in blocks if not block.startswith(":")]
    assert events[-1] == "data: [DONE]" and len(events) > 2
    assert queued.complete


def test_a_stream_whose_tokens_show_nothing_gets_comments(start) -> None:
    server = start("--keep-alive-interval-s", "1")
    hidden = {"allowed_token_ids": [1], "ignore_eos": True, "max_tokens": 8000}
    stream = server.stream(COMPLETIONS, prompt="One", **hidden)
    assert next(stream.blocks()) == ": keep-alive"
    stream.close()
