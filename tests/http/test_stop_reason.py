"""Which of the request's stops ended a choice: vLLM's stop_reason."""

import pytest
from daemon import CHAT, COMPLETIONS, Server

GREEDY = {"prompt": "One", "temperature": 0, "max_tokens": 30, "ignore_eos": True}


def choice_of(server: Server, stream: bool, **fields) -> dict:
    """The choice that tells how it ended."""
    path = CHAT if "messages" in fields else COMPLETIONS
    if not stream:
        return server.post(path, fields).json()["choices"][0]
    *before, last = [event["choices"][0] for event in server.stream(path, **fields).events()]
    assert all("stop_reason" not in choice for choice in before)
    return last


@pytest.mark.parametrize("stream", [False, True])
def test_the_stop_string_is_named(server: Server, stream: bool) -> None:
    text = server.text(**GREEDY)
    stop = text[5:8]
    choice = choice_of(server, stream, **GREEDY, stop=["@@never@@", stop])
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)


@pytest.mark.parametrize("stream", [False, True])
def test_the_stop_token_is_named(server: Server, stream: bool) -> None:
    ids = server.complete(**GREEDY, return_token_ids=True)["choices"][0]["token_ids"]
    choice = choice_of(server, stream, **GREEDY, stop_token_ids=[ids[7]])
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", ids[7])


@pytest.mark.parametrize("stream", [False, True])
def test_the_models_own_end_and_the_limit_are_no_reason(server: Server, stream: bool) -> None:
    choice = choice_of(server, stream, **GREEDY)
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", None)
    messages = [{"role": "user", "content": "What is 1+1?"}]
    choice = choice_of(server, stream, messages=messages, temperature=0, max_tokens=500)
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)


@pytest.mark.parametrize("stream", [False, True])
def test_no_stop_string_ends_an_answer_before_min_tokens(server: Server, stream: bool) -> None:
    ids = server.complete(**GREEDY, return_token_ids=True)["choices"][0]["token_ids"]
    reply = server.post("/detokenize", {"tokens": ids[:3]}).json()["prompt"]
    early = choice_of(server, stream, **GREEDY, stop=[reply[-1]], return_token_ids=True)
    late = server.complete(**GREEDY, stop=[reply[-1]], min_tokens=10)
    assert early["stop_reason"] == reply[-1]
    assert late["usage"]["completion_tokens"] > 10
    assert late["choices"][0]["text"].startswith(reply)
