"""Requests share steps, pages and prefixes, and none of them can tell by its text."""

from collections.abc import Callable
from threading import Event, Thread

import pytest
from daemon import COMPLETIONS, GREEDY, Server, in_parallel
from prompts import some_requests, token_ids

PREEMPTIONS = "vllm:num_preemptions_total"
Start = Callable[..., Server]


def cached_tokens(done: dict) -> int:
    return done["usage"]["prompt_tokens_details"]["cached_tokens"]


def rows_above(server: Server, bound: int) -> float:
    """How many steps had more query tokens than `bound`, a bound of the histogram's."""
    now = server.metrics()
    name = "vllm:iteration_tokens_total"
    return now[f"{name}_count"] - now[f'{name}_bucket{{le="{bound}"}}']


@pytest.mark.parametrize(
    ("sampling", "flag"),
    [
        ({"temperature": 0}, "--no-enable-prefix-caching"),  # all prompts are computed together
        ({"temperature": 3, "seed": 7}, "--enable-prefix-caching"),  # most of them are found
    ],
    ids=["greedy", "sampled"],
)
def test_64_requests_at_once_say_what_each_says_alone(
    start: Start, sampling: dict, flag: str
) -> None:
    server = start(flag)
    requests = [request | sampling for request in some_requests(64, 100, 24)]
    alone = [server.text(**request) for request in requests]
    assert len(set(alone)) > 48
    before, steps = server.generated(), server.steps()
    together = in_parallel(lambda request: server.text(**request), requests)
    assert together == alone
    tokens = sum(request["max_tokens"] for request in requests)
    assert server.generated() - before == tokens
    assert server.steps() - steps < tokens / 2
    assert server.is_idle()


def test_with_pages_for_three_32_requests_finish_through_preemption(start: Start) -> None:
    # Each begins in one page and grows to three, and there are nine.
    requests = [{"prompt": token_ids(60, seed), "max_tokens": 70, **GREEDY} for seed in range(32)]
    roomy = start("--max-model-len", "192")
    expected = in_parallel(lambda request: roomy.text(**request), requests)
    assert len(set(expected)) > 24
    assert roomy.metric(PREEMPTIONS) == 0

    tight = start("--max-model-len", "192", "--num-kv-pages", "9")
    assert in_parallel(lambda request: tight.text(**request), requests) == expected
    assert tight.metric(PREEMPTIONS) > 0
    assert tight.is_idle()


def test_sampled_requests_survive_preemption_with_their_seeds(start: Start) -> None:
    requests = [
        {
            "prompt": token_ids(60, seed),
            "max_tokens": 70,
            "ignore_eos": True,
            "temperature": 3,
            "seed": seed,
            "frequency_penalty": 1,
        }
        for seed in range(8)
    ]
    server = start("--max-model-len", "192", "--num-kv-pages", "5")
    alone = [server.text(**request) for request in requests]
    assert server.metric(PREEMPTIONS) == 0
    assert in_parallel(lambda request: server.text(**request), requests) == alone
    assert server.metric(PREEMPTIONS) > 0


def test_streams_go_on_after_preemption_without_a_gap(start: Start) -> None:
    requests = [{"prompt": token_ids(60, seed), "max_tokens": 70, **GREEDY} for seed in range(6)]
    server = start("--max-model-len", "192", "--num-kv-pages", "5")
    alone = [server.text(**request) for request in requests]
    streams = in_parallel(lambda request: server.stream(COMPLETIONS, **request).text(), requests)
    assert streams == alone
    assert server.metric(PREEMPTIONS) > 0


def test_a_long_prompt_again_comes_from_the_prefix_cache(server: Server) -> None:
    request = {"prompt": token_ids(1500, 1), "max_tokens": 30, **GREEDY}
    first, second = server.complete(**request), server.complete(**request)
    assert cached_tokens(first) == 0
    assert cached_tokens(second) >= 1400
    assert first["choices"][0]["text"] == second["choices"][0]["text"]


def test_a_prompt_that_begins_alike_shares_the_beginning_only(server: Server) -> None:
    common = token_ids(640, 2)
    server.complete(prompt=common + token_ids(100, 3), max_tokens=1)
    request = {"prompt": common + token_ids(100, 4), "max_tokens": 20, **GREEDY}
    warm = server.complete(**request)
    assert cached_tokens(warm) == 640
    cold = server.complete(**request, cache_salt="nothing is shared")
    assert cached_tokens(cold) == 0
    assert warm["choices"][0]["text"] == cold["choices"][0]["text"]


def test_an_answer_is_cached_for_the_next_turn(server: Server) -> None:
    prompt = token_ids(200, 5)
    first = server.complete(prompt=prompt, max_tokens=1)
    assert cached_tokens(first) == 0
    again = server.complete(prompt=prompt + token_ids(64, 6), max_tokens=1)
    assert cached_tokens(again) == 192  # three full pages


def test_cache_salts_keep_prompts_apart(server: Server) -> None:
    request = {"prompt": token_ids(300, 7), "max_tokens": 1}
    reported = [
        cached_tokens(server.complete(**request, **salt))
        for salt in ({}, {"cache_salt": "a"}, {"cache_salt": "b"}, {"cache_salt": "a"}, {})
    ]
    assert reported == [0, 0, 0, 256, 256]


def test_without_prefix_caching_nothing_is_shared(start: Start) -> None:
    server = start("--no-enable-prefix-caching")
    request = {"prompt": token_ids(300, 8), "max_tokens": 20, **GREEDY}
    first, second = server.complete(**request), server.complete(**request)
    assert cached_tokens(first) == cached_tokens(second) == 0
    assert first["choices"] == second["choices"]
    assert server.metric("vllm:prefix_cache_hits_total") == 0


def test_a_cache_that_is_full_of_old_prompts_makes_room(start: Start) -> None:
    server = start("--max-model-len", "256", "--num-kv-pages", "8")
    for seed in range(6):
        request = {"prompt": token_ids(200, seed), "max_tokens": 5, **GREEDY}
        assert server.text(**request) == server.text(**request)
    assert server.is_idle()


def test_a_long_prompt_does_not_hold_running_streams(start: Start) -> None:
    server = start("--max-num-batched-tokens", "256")
    stream = server.stream(COMPLETIONS, prompt="One", max_tokens=7000, ignore_eos=True)
    events = stream.events()
    next(events)
    answered = Event()

    def send_long_prompt() -> None:
        server.complete(prompt=token_ids(3000, 9), max_tokens=1)
        answered.set()

    steps = server.steps()
    sender = Thread(target=send_long_prompt)
    sender.start()
    during = 0
    while not answered.is_set():
        next(events)
        during += 1
    sender.join()
    # The prompt took at least 3000/255 steps, each of which also gave the stream a token.
    assert server.steps() - steps >= 12
    assert during >= 12
    assert rows_above(server, 256) == 0
    stream.close()


def test_a_prompt_in_chunks_gives_the_text_of_a_prompt_in_one(start: Start, server: Server) -> None:
    request = {"prompt": token_ids(400, 10), "max_tokens": 20, **GREEDY}
    chunked = start("--max-num-batched-tokens", "37", "--max-num-seqs", "8")
    assert chunked.text(**request) == server.text(**request)


def test_no_more_run_than_allowed(start: Start) -> None:
    server = start("--max-num-seqs", "2")
    requests = [{"prompt": token_ids(5, seed), "max_tokens": 20, **GREEDY} for seed in range(8)]
    alone = [server.text(**request) for request in requests]
    before = server.metrics()
    assert in_parallel(lambda request: server.text(**request), requests) == alone
    after = server.metrics()
    name = "vllm:iteration_tokens_total"
    assert after[f"{name}_count"] - before[f"{name}_count"] >= 8 * 20 / 2


def test_priority_decides_who_runs_first(start: Start) -> None:
    server = start("--max-num-seqs", "1")
    first = server.stream(COMPLETIONS, prompt="One", max_tokens=3000, ignore_eos=True)
    next(first.events())
    order = []

    def ask(priority: int) -> None:
        server.complete(prompt="Two", max_tokens=10, ignore_eos=True, priority=priority)
        order.append(priority)

    askers = []
    for number, priority in enumerate((5, 0, -5), start=1):
        askers.append(Thread(target=ask, args=(priority,)))
        askers[-1].start()
        while server.waiting() < number:
            pass
    first.close()
    for asker in askers:
        asker.join()
    assert order == [-5, 0, 5]
