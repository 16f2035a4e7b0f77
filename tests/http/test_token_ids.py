"""Ids beside the text, and prompts that are cut."""

import pytest
from daemon import CHAT, COMPLETIONS, Server
from prompts import token_ids

CHAT_ASK = {"messages": [{"role": "user", "content": "What is 12+34?"}], "temperature": 0}


def test_a_chats_ids_are_those_of_its_text(server: Server) -> None:
    answer = server.post(CHAT, CHAT_ASK | {"return_token_ids": True}).json()
    prompt = server.post("/tokenize", CHAT_ASK).json()["tokens"]
    assert answer["prompt_token_ids"] == prompt
    (choice,) = answer["choices"]
    assert len(choice["token_ids"]) == answer["usage"]["completion_tokens"]
    text = server.post("/detokenize", {"tokens": choice["token_ids"][:-1]}).json()["prompt"]
    message = choice["message"]
    assert text == f"<think>{message['reasoning']}</think>{message['content']}"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_streamed_ids_equal_the_whole(server: Server, path: str) -> None:
    ask = CHAT_ASK | {"prompt": "mlad is", "max_tokens": 12, "return_token_ids": True}
    whole = server.post(path, ask).json()
    events = list(server.stream(path, **ask).events())
    ids = [i for event in events for i in event["choices"][0].get("token_ids", [])]
    assert ids == whole["choices"][0]["token_ids"] and len(ids) == 12
    where = whole if path == CHAT else whole["choices"][0]
    shown = [e if path == CHAT else e["choices"][0] for e in events]
    prompts = [one["prompt_token_ids"] for one in shown if "prompt_token_ids" in one]
    assert prompts == [where["prompt_token_ids"]]


def test_ids_come_only_when_asked_for(server: Server) -> None:
    answer = server.post(COMPLETIONS, {"prompt": "One", "max_tokens": 2}).json()
    assert "token_ids" not in answer["choices"][0]
    assert "prompt_token_ids" not in answer["choices"][0]


def test_a_prompt_keeps_its_end(server: Server) -> None:
    ids = token_ids(300, 1)
    ask = {"prompt": ids, "max_tokens": 5, "temperature": 0, "return_token_ids": True}
    cut = server.post(COMPLETIONS, ask | {"truncate_prompt_tokens": 100}).json()
    assert cut["usage"]["prompt_tokens"] == 100
    assert cut["choices"][0]["prompt_token_ids"] == ids[-100:]
    assert cut["choices"][0]["text"] == server.text(
        prompt=ids[-100:], max_tokens=5, temperature=0
    )
    kept = server.post(COMPLETIONS, ask | {"truncate_prompt_tokens": 1000}).json()
    assert kept["usage"]["prompt_tokens"] == 300


def test_a_prompt_past_the_context_can_be_cut_to_fit(start) -> None:
    server: Server = start("--max-model-len", "500")
    ask = {"prompt": token_ids(900, 2), "max_tokens": 3, "ignore_eos": True}
    assert server.post(COMPLETIONS, ask).error()["code"] == "context_length_exceeded"
    cut = server.post(COMPLETIONS, ask | {"truncate_prompt_tokens": -1}).json()
    assert cut["usage"] == cut["usage"] | {"prompt_tokens": 497, "completion_tokens": 3}
    too_much = server.post(COMPLETIONS, ask | {"truncate_prompt_tokens": 501})
    assert too_much.error()["param"] == "truncate_prompt_tokens"
