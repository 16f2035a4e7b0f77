"""A client that goes away takes its work with it: steps, pages and places in the queue."""

import time

import pytest
from daemon import CHAT, COMPLETIONS, Server, wait_until
from prompts import token_ids

ENDLESS = {"max_tokens": 8000, "ignore_eos": True}
ABORTED = 'vllm:request_success_total{finished_reason="abort"}'


@pytest.fixture
def server(start) -> Server:
    return start()


def check_cancelled(server: Server, sequences: int, endless: int = 8000) -> None:
    wait_until(server.is_idle, "nothing runs or waits and no page is held")
    assert server.text(prompt="One", max_tokens=3, ignore_eos=True)
    generated, steps = server.generated(), server.steps()
    time.sleep(0.3)
    assert (server.generated(), server.steps()) == (generated, steps)
    assert generated < endless
    assert server.metric(ABORTED) == sequences


def test_a_stream_nobody_reads_any_more_is_cancelled(server: Server) -> None:
    stream = server.stream(COMPLETIONS, prompt="One", **ENDLESS)
    next(stream.events())
    stream.close()
    check_cancelled(server, 1)


def test_a_whole_answer_nobody_waits_for_is_cancelled(server: Server) -> None:
    sock = server.send(COMPLETIONS, prompt="One", **ENDLESS)
    wait_until(lambda: server.running() == 1, "the request runs")
    sock.close()
    check_cancelled(server, 1)


def test_all_choices_of_a_request_are_cancelled(server: Server) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    stream = server.stream(CHAT, messages=messages, n=8, **ENDLESS)
    next(stream.events())
    wait_until(lambda: server.running() == 8, "all choices run")
    stream.close()
    check_cancelled(server, 8, 8 * 8000)


def test_a_client_that_only_stops_sending_counts_as_gone(server: Server) -> None:
    stream = server.stream(COMPLETIONS, prompt="One", **ENDLESS)
    next(stream.events())
    stream.socket.shutdown(1)
    check_cancelled(server, 1)
    stream.close()


def test_a_prompt_in_prefill_is_cancelled(start) -> None:
    server = start("--max-num-batched-tokens", "16", "--max-num-seqs", "16")
    sock = server.send(COMPLETIONS, prompt=token_ids(8000, 1), max_tokens=5)
    wait_until(lambda: server.steps() >= 2, "the prefill is under way")
    sock.close()
    wait_until(server.is_idle, "nothing runs")
    assert server.steps() < 500  # all of it
    assert server.generated() == 0
    check_cancelled(server, 1)


def test_a_request_in_the_queue_is_cancelled(start) -> None:
    server = start("--max-num-seqs", "1")
    running = server.stream(COMPLETIONS, prompt="One", **ENDLESS)
    next(running.events())
    whole = server.send(COMPLETIONS, prompt="Two", max_tokens=3)
    streamed = server.stream(COMPLETIONS, prompt="Three", max_tokens=3)
    wait_until(lambda: server.waiting() == 2, "two requests wait")
    whole.close()
    wait_until(lambda: server.waiting() == 1, "one request waits")
    streamed.close()
    wait_until(lambda: server.waiting() == 0, "none waits")
    assert server.running() == 1
    running.close()
    check_cancelled(server, 3)


def test_others_carry_on_when_one_is_cancelled(server: Server) -> None:
    request = {"prompt": "One", "max_tokens": 100, "ignore_eos": True, "temperature": 0}
    alone = server.text(**request)
    stream = server.stream(COMPLETIONS, **request)
    events = stream.events()
    text = next(events)["choices"][0]["text"]
    for seed in range(5):
        other = server.stream(COMPLETIONS, prompt=token_ids(100, seed), **ENDLESS)
        next(other.events())
        other.close()
        text += next(events)["choices"][0]["text"]
    text += "".join(event["choices"][0]["text"] for event in events)
    assert text == alone and stream.complete
    wait_until(server.is_idle, "nothing runs")


def test_many_clients_that_come_and_go_leave_nothing_behind(start) -> None:
    server = start("--max-num-seqs", "4", "--max-queue", "60")
    taken = 0
    for first in range(0, 120, 30):
        streams = [
            server.stream(COMPLETIONS, prompt=token_ids(50, seed), **ENDLESS)
            for seed in range(first, first + 30)
        ]
        for stream in streams:
            taken += stream.status == 200
            stream.close()
    check_cancelled(server, taken, 4 * 8000)
