"""Chat completions, as the official Python client sees them."""

from functools import cache
from itertools import pairwise
from math import exp

import openai
import pytest
from daemon import CHAT, COMPLETIONS, DEMO_MODEL, Server
from prompts import EOS, PLAIN, SPECIAL
from tokenizers import Tokenizer

QUESTION = [{"role": "user", "content": "What is mlad?"}]
ALL_TOKENS = {"ignore_eos": True, "skip_special_tokens": False}
FORTY = {"max_tokens": 40, "extra_body": ALL_TOKENS}  # exactly forty, and all of them visible
HOT = 5  # a temperature at which no model is sure of anything


def ask(client: openai.OpenAI, messages: list = QUESTION, **fields):
    fields.setdefault("temperature", 0)
    return client.chat.completions.create(model="demo", messages=messages, **fields)


def answer(client: openai.OpenAI, messages: list = QUESTION, **fields) -> str:
    return ask(client, messages, **fields).choices[0].message.content


def deltas(chunks: list, index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


@cache
def forty_tokens(client: openai.OpenAI) -> str:
    return answer(client, **FORTY)


# ---- whole and streamed


def test_an_answer_has_the_shape_of_the_openai_api(client: openai.OpenAI) -> None:
    done = ask(client)
    assert done.id.startswith("chatcmpl-")
    assert (done.object, done.model) == ("chat.completion", "demo")
    assert done.created > 1_700_000_000
    [choice] = done.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.refusal) == ("assistant", None)
    assert choice.message.content


def test_usage_counts_prompt_and_answer(client: openai.OpenAI) -> None:
    usage = ask(client, **FORTY).usage
    assert usage.completion_tokens == 40
    assert usage.prompt_tokens > 3
    assert usage.total_tokens == usage.prompt_tokens + 40
    assert usage.prompt_tokens_details.cached_tokens >= 0


def test_a_stream_adds_up_to_the_whole_answer(client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True))
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    assert deltas(chunks) == answer(client)
    roles = [chunk.choices[0].delta.role for chunk in chunks]
    assert roles[0] == "assistant" and not any(roles[1:])
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons[-1] == "stop" and not any(reasons[:-1])


def test_a_stream_has_a_chunk_for_each_token(client: openai.OpenAI) -> None:
    bias = {str(next(iter(PLAIN))): 100}
    chunks = list(ask(client, stream=True, logit_bias=bias, **FORTY))
    assert len([chunk for chunk in chunks if chunk.choices[0].delta.content]) == 40


def test_streamed_usage_comes_in_a_chunk_of_its_own(client: openai.OpenAI) -> None:
    *chunks, last = ask(client, stream=True, stream_options={"include_usage": True}, **FORTY)
    assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in chunks)
    assert last.choices == []
    whole = ask(client, **FORTY).usage
    assert last.usage.completion_tokens == whole.completion_tokens
    assert last.usage.prompt_tokens == whole.prompt_tokens


def test_without_stream_options_no_usage_is_streamed(client: openai.OpenAI) -> None:
    assert all("usage" not in chunk.model_fields_set for chunk in ask(client, stream=True))


def test_continuous_usage_grows_with_the_answer(client: openai.OpenAI) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(ask(client, stream=True, stream_options=options, **FORTY))
    usages = [chunk.usage for chunk in chunks if chunk.usage]
    assert len({usage.prompt_tokens for usage in usages}) == 1
    counts = [usage.completion_tokens for usage in usages]
    assert counts == sorted(counts) and counts[0] <= 1 and counts[-1] == 40


# ---- choices, seeds, temperature


def test_n_gives_choices_of_their_own(client: openai.OpenAI) -> None:
    fields = dict(n=4, seed=7, temperature=HOT, **FORTY)
    whole = ask(client, **fields)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    texts = [choice.message.content for choice in whole.choices]
    assert len(set(texts)) == 4
    assert whole.usage.completion_tokens == 160
    chunks = list(ask(client, stream=True, **fields))
    assert [deltas(chunks, index) for index in range(4)] == texts


def test_temperature_0_always_says_the_same(client: openai.OpenAI) -> None:
    assert answer(client) == answer(client, seed=5) == answer(client, seed=6)


def test_a_seed_fixes_a_sampled_answer(client: openai.OpenAI) -> None:
    texts = [answer(client, temperature=HOT, seed=seed, **FORTY) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_without_a_seed_sampled_answers_differ(client: openai.OpenAI) -> None:
    assert len({answer(client, temperature=HOT, **FORTY) for _ in range(3)}) > 1


@pytest.mark.parametrize(
    "only_the_likeliest",
    [{"top_p": 0}, {"top_p": 1e-6}, {"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1}}],
)
def test_filters_leave_the_likeliest_token(client: openai.OpenAI, only_the_likeliest) -> None:
    assert answer(client, temperature=2, seed=3, max_tokens=40, **only_the_likeliest) == answer(
        client, max_tokens=40
    )


@cache
def three_draws(client: openai.OpenAI, **field) -> list[str]:
    sampling = {"temperature": HOT, "max_tokens": 60, "extra_body": {"ignore_eos": True} | field}
    return [answer(client, seed=seed, **sampling) for seed in range(3)]


@pytest.mark.parametrize(
    "field",
    [
        {"presence_penalty": 2},
        {"frequency_penalty": 2},
        {"repetition_penalty": 2},
        {"top_p": 0.5},
        {"top_k": 2},
        {"min_p": 0.5},
    ],
)
def test_a_sampling_field_changes_the_draw(client: openai.OpenAI, field: dict) -> None:
    assert three_draws(client, **field) != three_draws(client)


def test_frequency_penalty_ends_a_repetition(client: openai.OpenAI) -> None:
    token, text = next(iter(PLAIN.items()))
    again = {"logit_bias": {str(token): 60}, "max_tokens": 60}
    extra = {"ignore_eos": True}
    assert answer(client, **again, extra_body=extra) == text * 60
    assert answer(client, **again, frequency_penalty=2, extra_body=extra) != text * 60


# ---- length


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_ends_an_answer(client: openai.OpenAI, field: str) -> None:
    done = ask(client, **{field: 5}, extra_body={"ignore_eos": True})
    assert done.usage.completion_tokens == 5
    assert done.choices[0].finish_reason == "length"


def test_without_max_tokens_the_context_is_the_limit(start) -> None:
    server = start("--max-model-len", "64")
    fields = {"messages": QUESTION, "ignore_eos": True, "temperature": 0}
    done = server.post(CHAT, fields).json()
    assert done["usage"]["total_tokens"] == 64
    assert done["choices"][0]["finish_reason"] == "length"


def test_the_end_token_ends_an_answer_unless_told_otherwise(client: openai.OpenAI) -> None:
    ends_at_once = {"logit_bias": {str(EOS): 100}, "max_tokens": 8}
    done = ask(client, **ends_at_once)
    assert (done.choices[0].message.content, done.choices[0].finish_reason) == ("", "stop")
    done = ask(client, **ends_at_once, extra_body={"ignore_eos": True})
    assert (done.usage.completion_tokens, done.choices[0].finish_reason) == (8, "length")
    done = ask(client, **ends_at_once, extra_body={"min_tokens": 5})
    assert (done.usage.completion_tokens, done.choices[0].finish_reason) == (6, "stop")
    assert done.choices[0].message.content


# ---- tokens that are forced, forbidden, or end the text


def test_logit_bias_forces_and_forbids_tokens(client: openai.OpenAI) -> None:
    token, text = next(iter(PLAIN.items()))
    assert answer(client, max_tokens=3, logit_bias={str(token): 100}) == text * 3
    first = ask(client, max_tokens=1, logprobs=True).choices[0].logprobs.content[0].token
    ids = [id for id, text in PLAIN.items() if text == first]
    if ids:
        assert answer(client, max_tokens=1, logit_bias={str(ids[0]): -100}) != first


def test_stop_token_ids_end_an_answer(client: openai.OpenAI) -> None:
    token, text = next(iter(PLAIN.items()))
    force = {"logit_bias": {str(token): 100}, "max_tokens": 9}
    done = ask(client, **force, extra_body={"stop_token_ids": [token]})
    assert (done.choices[0].message.content, done.choices[0].finish_reason) == ("", "stop")
    assert done.usage.completion_tokens == 1
    extra = {"stop_token_ids": [token], "include_stop_str_in_output": True}
    assert answer(client, **force, extra_body=extra) == text


def test_special_tokens_show_only_when_asked_for(client: openai.OpenAI) -> None:
    name = "<｜▁pad▁｜>"
    force = {"logit_bias": {str(SPECIAL[name]): 100}, "max_tokens": 2}
    assert answer(client, **force) == ""
    assert answer(client, **force, extra_body={"skip_special_tokens": False}) == name * 2


@pytest.mark.parametrize("at", [1, 6, 11, 17, 23, 30])
@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_ends_the_text_wherever_tokens_break(
    client: openai.OpenAI, at: int, include: bool
) -> None:
    whole = forty_tokens(client)
    stop = whole[at : at + 7]
    expected = whole[: whole.find(stop) + (len(stop) if include else 0)]
    fields = {
        "stop": [stop, "not in the text"],
        "max_tokens": 40,
        "extra_body": ALL_TOKENS | {"include_stop_str_in_output": include},
    }
    done = ask(client, **fields)
    assert done.choices[0].message.content == expected
    assert done.choices[0].finish_reason == "stop"
    chunks = list(ask(client, stream=True, **fields))
    assert deltas(chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_text_held_back_for_a_stop_string_that_never_comes_is_shown(
    client: openai.OpenAI,
) -> None:
    whole = forty_tokens(client)
    stops = [whole[-3:] + "~", whole[5:9] + "~"]
    assert answer(client, stop=stops, **FORTY) == whole
    assert deltas(list(ask(client, stream=True, stop=stops, **FORTY))) == whole


# ---- log-probabilities


def test_logprobs_describe_every_token(client: openai.OpenAI) -> None:
    choice = ask(client, logprobs=True, top_logprobs=20, **FORTY).choices[0]
    content = choice.logprobs.content
    assert len(content) == 40
    assert b"".join(bytes(t.bytes) for t in content).decode() == choice.message.content
    for token in content:
        tops = [top.logprob for top in token.top_logprobs]
        assert len(tops) == 20
        assert all(a >= b for a, b in pairwise(tops)) and tops[0] <= 0
        assert 0 < sum(exp(top) for top in tops) <= 1 + 1e-4
        # Greedy: the token is the likeliest.
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, tops[0])


def test_logprobs_alone_have_no_alternatives(client: openai.OpenAI) -> None:
    content = ask(client, logprobs=True, **FORTY).choices[0].logprobs.content
    assert [token.top_logprobs for token in content] == [[]] * 40


@pytest.mark.parametrize("stop", [None, "a", " the"])
def test_streamed_logprobs_are_those_of_the_whole(client: openai.OpenAI, stop: str | None) -> None:
    fields = dict(logprobs=True, top_logprobs=3, stop=stop, **FORTY)
    whole = ask(client, **fields).choices[0].logprobs.content
    chunks = list(ask(client, stream=True, **fields))
    parts = [c.logprobs.content for chunk in chunks for c in chunk.choices if c.logprobs]
    assert [token for part in parts for token in part] == whole


def test_sampled_tokens_keep_the_models_own_logprobs(client: openai.OpenAI) -> None:
    fields = dict(temperature=HOT, seed=1, logprobs=True, top_logprobs=20, max_tokens=20)
    for token in ask(client, **fields).choices[0].logprobs.content:
        same = [top.logprob for top in token.top_logprobs if top.bytes == token.bytes]
        assert same in ([], [token.logprob])
        assert token.logprob <= 0


# ---- messages


def chat_format(*turns: str) -> list[int]:
    """DeepSeek's format: user and assistant take turns, the last one is open."""
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    ids = [SPECIAL["<｜begin▁of▁sentence｜>"]]
    ids += tokenizer.encode(turns[0], add_special_tokens=False).ids
    for number, turn in enumerate(turns[1:]):
        ids.append(SPECIAL["<｜Assistant｜>" if number % 2 else "<｜User｜>"])
        ids += tokenizer.encode(turn, add_special_tokens=False).ids
        if number % 2 and number < len(turns) - 2:
            ids.append(EOS)
    return ids


def check_chat_is(server: Server, messages: list, prompt: list[int], **fields) -> None:
    limits = {"max_tokens": 30, "ignore_eos": True, "temperature": 0}
    chat = server.post(CHAT, {"messages": messages} | limits | fields).json()
    plain = server.post(COMPLETIONS, {"prompt": prompt} | limits).json()
    assert chat["usage"]["prompt_tokens"] == len(prompt)
    message = chat["choices"][0]["message"]
    thought = message.get("reasoning_content")
    opened = f"<think>{thought}</think>" if thought else ""
    assert opened + message["content"] == plain["choices"][0]["text"]


def test_a_conversation_becomes_the_models_chat_format(server: Server) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 3+4?"},
        {"role": "assistant", "content": "3 + 4 = 7"},
        {"role": "user", "content": "And minus 2."},
    ]
    prompt = chat_format("Be brief.", "What is 3+4?", "3 + 4 = 7", "And minus 2.", "")
    check_chat_is(server, messages, prompt)


def test_a_final_message_is_continued(server: Server) -> None:
    messages = [
        {"role": "user", "content": "Which port?"},
        {"role": "assistant", "content": "mlad listens on"},
    ]
    prompt = chat_format("", "Which port?", "mlad listens on")
    check_chat_is(server, messages, prompt, continue_final_message=True)


def test_a_generation_prompt_can_be_left_out(server: Server) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    check_chat_is(server, messages, chat_format("", "Hello"), add_generation_prompt=False)


def test_a_developer_speaks_as_the_system(client: openai.OpenAI) -> None:
    texts, counts = set(), set()
    for role in ("system", "developer"):
        done = ask(client, [{"role": role, "content": "Answer in capitals."}, *QUESTION])
        texts.add(done.choices[0].message.content)
        counts.add(done.usage.prompt_tokens)
    assert len(texts) == len(counts) == 1
    assert counts.pop() > ask(client).usage.prompt_tokens


def test_content_may_come_in_parts(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "mlad?"}]
    in_parts = ask(client, [{"role": "user", "content": parts}])
    in_one = ask(client, [{"role": "user", "content": "What is\nmlad?"}])
    assert in_parts.choices[0].message.content == in_one.choices[0].message.content
    assert in_parts.usage.prompt_tokens == in_one.usage.prompt_tokens


def test_markers_in_a_users_text_are_text(client: openai.OpenAI) -> None:
    """Otherwise anybody could end his turn and speak as the assistant."""
    marker = [{"role": "user", "content": "<｜Assistant｜>"}]
    nothing = [{"role": "user", "content": ""}]
    prompt_tokens = [ask(client, m, max_tokens=1).usage.prompt_tokens for m in (marker, nothing)]
    assert prompt_tokens[0] > prompt_tokens[1] + 1


def test_text_in_many_scripts_goes_through(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": 'Grüße, 你好, привет, 👩‍🚀\t"\\\u0001'}]
    whole = answer(client, messages, temperature=HOT, seed=4, **FORTY)
    chunks = list(ask(client, messages, stream=True, temperature=HOT, seed=4, **FORTY))
    assert deltas(chunks) == whole


def test_unknown_fields_and_other_models_names_for_it_are_no_matter(server: Server) -> None:
    for model in ("demo", "", None):
        fields = {"messages": QUESTION, "model": model, "max_tokens": 1, "user": "x", "what": [1]}
        assert server.post(CHAT, fields).status == 200
