"""Text completions: prompts in all their forms, echo, log-probabilities."""

from math import exp

import openai
import pytest
from daemon import DEMO_MODEL, Server
from prompts import PLAIN, token_ids
from tokenizers import Tokenizer

PROMPT = "mlad is a"
ALL_TOKENS = {"ignore_eos": True, "skip_special_tokens": False}
TWENTY = {"max_tokens": 20, "temperature": 0, "extra_body": ALL_TOKENS}  # exactly twenty


def ask(client: openai.OpenAI, prompt=PROMPT, **fields):
    return client.completions.create(model="demo", prompt=prompt, **(TWENTY | fields))


def text(client: openai.OpenAI, prompt=PROMPT, **fields) -> str:
    return ask(client, prompt, **fields).choices[0].text


def encode(string: str) -> list[int]:
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    return tokenizer.encode(string, add_special_tokens=False).ids


def test_a_completion_has_the_shape_of_the_openai_api(client: openai.OpenAI) -> None:
    done = ask(client)
    assert done.id.startswith("cmpl-")
    assert (done.object, done.model) == ("text_completion", "demo")
    [choice] = done.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert choice.text
    assert done.usage.completion_tokens == 20
    assert done.usage.total_tokens == done.usage.prompt_tokens + 20


def test_a_completion_is_16_tokens_when_nothing_is_said(server: Server) -> None:
    done = server.complete(prompt=PROMPT, ignore_eos=True)
    assert done["usage"]["completion_tokens"] == 16


def test_a_stream_adds_up_to_the_whole_text(client: openai.OpenAI) -> None:
    *chunks, last = ask(client, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].text for chunk in chunks) == text(client)
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
    assert (last.choices, last.usage.completion_tokens) == ([], 20)


def test_a_prompt_may_be_its_token_ids(client: openai.OpenAI) -> None:
    bos, *ids = [0, *encode(PROMPT)]
    assert text(client, [bos, *ids]) == text(client)
    assert text(client, ids) == text(client, extra_body={"add_special_tokens": False} | ALL_TOKENS)


def test_the_begin_token_is_added_unless_told_otherwise(client: openai.OpenAI) -> None:
    with_bos = ask(client).usage.prompt_tokens
    without = ask(client, extra_body={"add_special_tokens": False}).usage.prompt_tokens
    assert with_bos == without + 1 == len(encode(PROMPT)) + 1


@pytest.mark.parametrize(
    "prompts",
    [["One", "Two, and", "Three, and then some"], [token_ids(9, 1), token_ids(2, 2)]],
    ids=["strings", "lists of ids"],
)
def test_many_prompts_are_answered_in_their_order(client: openai.OpenAI, prompts: list) -> None:
    alone = [text(client, prompt) for prompt in prompts]
    done = ask(client, prompts)
    assert [choice.index for choice in done.choices] == list(range(len(prompts)))
    assert [choice.text for choice in done.choices] == alone
    assert done.usage.completion_tokens == 20 * len(prompts)
    streamed = [""] * len(prompts)
    for chunk in ask(client, prompts, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == alone


def test_n_choices_of_each_prompt_come_together(client: openai.OpenAI) -> None:
    sampled = {"temperature": 5, "seed": 3}
    pairs = ask(client, ["One", "Two"], n=2, **sampled).choices
    assert [choice.index for choice in pairs] == [0, 1, 2, 3]
    ones, twos = (ask(client, prompt, n=2, **sampled).choices for prompt in ("One", "Two"))
    assert [c.text for c in pairs] == [c.text for c in (*ones, *twos)]


def test_one_of_many_choices_is_not_another(client: openai.OpenAI) -> None:
    choices = ask(client, n=16, temperature=5, seed=1).choices
    assert len({choice.text for choice in choices}) == 16


@pytest.mark.parametrize("stream", [False, True])
def test_echo_repeats_the_prompt(client: openai.OpenAI, stream: bool) -> None:
    prompts = [PROMPT, "Grüße 👋"]
    alone = [text(client, prompt) for prompt in prompts]
    answer = ask(client, prompts, echo=True, stream=stream)
    texts = ["", ""]
    for part in answer if stream else [answer]:
        for choice in part.choices:
            texts[choice.index] += choice.text
    assert texts == [prompt + text for prompt, text in zip(prompts, alone)]


def test_echo_decodes_a_prompt_of_ids(client: openai.OpenAI) -> None:
    ids = token_ids(5, seed=1)
    assert text(client, ids, echo=True) == "".join(PLAIN[id] for id in ids) + text(client, ids)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_logprobs_are_four_parallel_lists(client: openai.OpenAI, count: int) -> None:
    choice = ask(client, logprobs=count).choices[0]
    found = choice.logprobs
    lengths = {len(found.tokens), len(found.token_logprobs), len(found.top_logprobs)}
    assert lengths == {20} == {len(found.text_offset)}
    assert "".join(found.tokens) == choice.text
    for token, offset in zip(found.tokens, found.text_offset):
        assert choice.text[offset : offset + len(token)] == token
    for token, logprob, tops in zip(found.tokens, found.token_logprobs, found.top_logprobs):
        assert tops[token] == logprob == max(tops.values())
        assert len(tops) == max(count, 1)
        assert 0 < sum(exp(top) for top in tops.values()) <= 1 + 1e-4


def test_streamed_logprobs_are_those_of_the_whole(client: openai.OpenAI) -> None:
    whole = ask(client, logprobs=2).choices[0].logprobs
    parts = [c.choices[0].logprobs for c in ask(client, logprobs=2, stream=True)]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        streamed = [entry for part in parts if part for entry in getattr(part, name)]
        assert streamed == getattr(whole, name)


@pytest.mark.parametrize("at", [2, 9, 20])
def test_a_stop_string_cuts_the_text(client: openai.OpenAI, at: int) -> None:
    whole = text(client)
    stop = whole[at : at + 5]
    done = ask(client, stop=stop)
    assert done.choices[0].text == whole[: whole.find(stop)]
    assert done.choices[0].finish_reason == "stop"
    assert done.usage.completion_tokens < 20


def test_best_of_n_is_n(client: openai.OpenAI) -> None:
    assert len(ask(client, n=2, best_of=2).choices) == 2


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"messages": [{"role": "user", "content": "Hi"}]}, "chat.completion"),
        ({"prompt": PROMPT}, "text_completion"),
        ({"inputs": PROMPT}, "text_completion"),
    ],
)
def test_invocations_takes_either_kind_of_request(server: Server, body: dict, kind: str) -> None:
    reply = server.post("/invocations", body | {"max_tokens": 2})
    assert (reply.status, reply.json()["object"]) == (200, kind)
    assert reply.headers["openai-processing-ms"].isdigit()
