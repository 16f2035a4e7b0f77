"""litellm against the daemon, through its two providers for such a server."""

import asyncio
import json
import os
from typing import Any

# litellm reads it on import: prices come with the package, not from the network.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
import pytest
from daemon import TIMEOUT_S, Server
from test_structured import PERSON, schema_format
from test_tools import SUM, TOOLS, WEATHER

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:litellm")  # its own affair

WHAT = [{"role": "user", "content": "What is mlad?"}]


@pytest.fixture(params=["hosted_vllm", "openai"])
def to_server(server: Server, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The arguments that lead litellm to the daemon, by either of two providers."""
    return to(server, f"{request.param}/demo")


def to(server: Server, model: str) -> dict[str, Any]:
    where = {"model": model, "api_base": f"{server.url}/v1", "api_key": "none"}
    return where | {"max_retries": 0, "timeout": TIMEOUT_S, "temperature": 0, "max_tokens": 400}


def whole_of(stream: litellm.CustomStreamWrapper, messages: list) -> litellm.ModelResponse:
    """A stream's chunks as litellm itself puts them together."""
    chunks = list(stream)
    assert len(chunks) > 2
    return litellm.stream_chunk_builder(chunks, messages=messages)


def check_weather(message: litellm.Message) -> None:
    (call,) = message.tool_calls
    assert call.id.startswith("call_") and call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}


def test_a_chat_is_answered(to_server: dict) -> None:
    answer = litellm.completion(messages=WHAT, **to_server)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    usage = answer.usage
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_reasoning_is_set_apart(to_server: dict) -> None:
    answer = litellm.completion(messages=SUM, **to_server)
    message = answer.choices[0].message
    assert message.content == "123 + 456 = 579"
    assert "3+6=9" in message.reasoning_content
    thought = answer.usage.completion_tokens_details.reasoning_tokens
    assert 0 < thought < answer.usage.completion_tokens


@pytest.mark.parametrize("messages", [WHAT, SUM])
def test_a_stream_adds_up_to_the_whole(to_server: dict, messages: list) -> None:
    whole = litellm.completion(messages=messages, **to_server)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    streamed = whole_of(litellm.completion(messages=messages, **to_server, **options), messages)
    one, other = whole.choices[0], streamed.choices[0]
    assert other.message.content == one.message.content
    reasoning = [getattr(choice.message, "reasoning_content", None) for choice in (one, other)]
    assert reasoning[0] == reasoning[1]
    assert other.finish_reason == one.finish_reason
    for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert getattr(streamed.usage, count) == getattr(whole.usage, count)


def test_async_calls_run_side_by_side(to_server: dict) -> None:
    async def stream() -> str:
        chunks = await litellm.acompletion(messages=SUM, stream=True, **to_server)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    async def ask() -> list:
        whole = litellm.acompletion(messages=SUM, **to_server)
        return await asyncio.gather(whole, stream(), stream())

    whole, *streamed = asyncio.run(ask())
    assert whole.choices[0].message.content == "123 + 456 = 579"
    assert streamed == ["123 + 456 = 579"] * 2


def test_a_tool_is_called_and_answered(to_server: dict) -> None:
    choice = litellm.completion(messages=WEATHER, tools=TOOLS, **to_server).choices[0]
    assert choice.finish_reason == "tool_calls"
    check_weather(choice.message)
    call = choice.message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 21 C"}
    messages = [*WEATHER, choice.message, result]
    final = litellm.completion(messages=messages, tools=TOOLS, **to_server).choices[0].message
    assert final.content or final.tool_calls


def test_a_streamed_tool_call_adds_up(to_server: dict) -> None:
    stream = litellm.completion(messages=WEATHER, tools=TOOLS, stream=True, **to_server)
    choice = whole_of(stream, WEATHER).choices[0]
    assert choice.finish_reason == "tool_calls"
    check_weather(choice.message)


def test_a_named_tool_is_called(to_server: dict) -> None:
    named = {"type": "function", "function": {"name": "send_email"}}
    answer = litellm.completion(messages=WHAT, tools=TOOLS, tool_choice=named, **to_server)
    assert answer.choices[0].message.tool_calls[0].function.name == "send_email"


def test_a_schema_holds(to_server: dict) -> None:
    format = schema_format(PERSON)
    answer = litellm.completion(messages=WHAT, response_format=format, **to_server)
    person = json.loads(answer.choices[0].message.content)
    assert set(person) == set(PERSON["required"])


def test_fields_of_the_server_go_through(to_server: dict) -> None:
    settings = to_server | {"max_tokens": 7}
    answer = litellm.completion(messages=WHAT, extra_body={"ignore_eos": True}, **settings)
    assert answer.usage.completion_tokens == 7
    assert answer.choices[0].finish_reason == "length"


def test_a_prompt_is_completed(server: Server) -> None:
    settings = to(server, "text-completion-openai/demo") | {"max_tokens": 12}
    answer = litellm.text_completion(prompt="mlad is", **settings)
    assert answer.choices[0].text == server.text(prompt="mlad is", max_tokens=12, temperature=0)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"model": "hosted_vllm/another"}, litellm.NotFoundError),
        ({"model": "openai/another"}, litellm.NotFoundError),
        ({"temperature": -1}, litellm.BadRequestError),
        (
            {"messages": [{"role": "user", "content": "mlad " * 20000}]},
            litellm.ContextWindowExceededError,
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_litellms_own(server: Server, fields: dict, error: type, stream: bool) -> None:
    ask = to(server, "hosted_vllm/demo") | {"messages": WHAT} | fields
    with pytest.raises(error):
        litellm.completion(stream=stream, **ask)


def test_keys_are_sent_and_checked(start) -> None:
    server = start(env={"MLAD_API_KEY": "secret"})
    settings = to(server, "openai/demo")
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(messages=WHAT, **settings)
    assert litellm.completion(messages=WHAT, **settings | {"api_key": "secret"}).choices
