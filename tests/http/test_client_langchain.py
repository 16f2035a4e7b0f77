"""langchain-openai's ChatOpenAI against the daemon."""

import asyncio
from typing import Any, Literal

import openai
import pytest
from daemon import TIMEOUT_S, Server
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

WHAT = "What is mlad?"
SUM = "What is 123+456?"
WEATHER = "What is the weather in Paris?"


@tool
def get_weather(city: str) -> str:
    """Use get_weather."""
    return f"Sunny in {city}"


@tool
def send_email(to: str, subject: str) -> str:
    """Use send_email."""
    return f"{subject} sent to {to}"


TOOLS = [get_weather, send_email]


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)
    mood: Literal["glad", "sad"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2"):
        monkeypatch.setenv(name, "false")


def model_of(server: Server, **settings: Any) -> ChatOpenAI:
    fields = {"model": "demo", "temperature": 0, "max_tokens": 400} | settings
    url = f"{server.url}/v1"
    return ChatOpenAI(base_url=url, api_key="none", max_retries=0, timeout=TIMEOUT_S, **fields)


@pytest.fixture
def model(server: Server) -> ChatOpenAI:
    return model_of(server)


def added(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    """The message that the chunks of a stream add up to."""
    assert len(chunks) > 2
    return sum(chunks[1:], chunks[0])


def test_a_message_is_answered(model: ChatOpenAI) -> None:
    answer = model.invoke([SystemMessage("Be brief."), HumanMessage(WHAT)])
    assert answer.content
    assert answer.response_metadata["finish_reason"] == "stop"
    usage = answer.usage_metadata
    assert usage["input_tokens"] > 0 and usage["output_tokens"] > 0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_reasoning_is_counted_and_kept_out_of_the_content(model: ChatOpenAI) -> None:
    answer = model.invoke(SUM)
    assert answer.content == "123 + 456 = 579"
    thought = answer.usage_metadata["output_token_details"]["reasoning"]
    assert 0 < thought < answer.usage_metadata["output_tokens"]


@pytest.mark.parametrize("question", [WHAT, SUM])
def test_a_stream_adds_up_to_the_whole(server: Server, question: str) -> None:
    model = model_of(server, stream_usage=True)
    whole, streamed = model.invoke(question), added(list(model.stream(question)))
    assert streamed.content == whole.content
    assert streamed.response_metadata["finish_reason"] == "stop"
    for count in ("input_tokens", "output_tokens", "total_tokens"):
        assert streamed.usage_metadata[count] == whole.usage_metadata[count]


def test_async_calls_and_streams_run_side_by_side(model: ChatOpenAI) -> None:
    async def stream() -> list[AIMessageChunk]:
        return [chunk async for chunk in model.astream(SUM)]

    async def ask() -> tuple:
        return await asyncio.gather(model.abatch([WHAT, SUM, WHAT]), stream(), stream())

    (first, addition, again), *streams = asyncio.run(ask())
    for answer in (addition, *map(added, streams)):
        assert answer.content == "123 + 456 = 579"
    assert first.content == again.content == model.invoke(WHAT).content


def test_bound_tools_are_called_and_answered(model: ChatOpenAI) -> None:
    bound = model.bind_tools(TOOLS)
    answer = bound.invoke(WEATHER)
    assert answer.response_metadata["finish_reason"] == "tool_calls"
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage) and result.tool_call_id == call["id"]
    final = bound.invoke([HumanMessage(WEATHER), answer, result])
    assert final.content or final.tool_calls


def test_streamed_tool_calls_add_up(model: ChatOpenAI) -> None:
    message = added(list(model.bind_tools(TOOLS).stream(WEATHER)))
    (call,) = message.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    assert call["id"].startswith("call_")
    assert not message.invalid_tool_calls


def test_a_choice_of_tool_is_kept_to(model: ChatOpenAI) -> None:
    (named,) = model.bind_tools(TOOLS, tool_choice="send_email").invoke(WEATHER).tool_calls
    assert named["name"] == "send_email"
    for choice in ("any", True):  # langchain's words for "required"
        assert model.bind_tools(TOOLS, tool_choice=choice).invoke("Hello").tool_calls
    assert not model.bind_tools(TOOLS, tool_choice="none").invoke(WEATHER).tool_calls


@pytest.mark.parametrize("strict", [None, True])
def test_structured_output_is_what_the_schema_says(model: ChatOpenAI, strict: bool | None) -> None:
    structured = model.with_structured_output(Person, method="json_schema", strict=strict)
    person = structured.invoke("Tell me about a person.")
    assert isinstance(person, Person)


def test_structured_output_streams(model: ChatOpenAI) -> None:
    schema = Person.model_json_schema()
    structured = model.with_structured_output(schema, method="json_schema")
    *_, last = structured.stream("Tell me about a person.")
    Person.model_validate(last)


def test_structured_output_shows_the_raw_message_too(model: ChatOpenAI) -> None:
    structured = model.with_structured_output(Person, method="json_schema", include_raw=True)
    both = structured.invoke("Tell me about a person.")
    assert both["parsing_error"] is None
    assert Person.model_validate_json(both["raw"].content) == both["parsed"]


def test_structured_output_may_be_a_tool_call(model: ChatOpenAI) -> None:
    structured = model.with_structured_output(Person, method="function_calling")
    assert isinstance(structured.invoke("Tell me about a person."), Person)


def test_logprobs_are_handed_on(model: ChatOpenAI) -> None:
    answer = model.bind(logprobs=True, top_logprobs=2).invoke(WHAT)
    tokens = answer.response_metadata["logprobs"]["content"]
    assert all(len(token["top_logprobs"]) == 2 and token["logprob"] <= 0 for token in tokens)
    assert "".join(token["token"] for token in tokens).startswith(answer.content)


def test_a_stop_string_ends_the_answer(model: ChatOpenAI) -> None:
    assert model.invoke(SUM, stop=[" ="]).content == "123 + 456"


def test_a_prompt_too_long_is_named_as_that(model: ChatOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        model.invoke("mlad " * 20000)
    assert caught.value.code == "context_length_exceeded"


def test_an_unknown_model_is_not_found(server: Server) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        model_of(server, model="another").invoke(WHAT)
    assert caught.value.code == "model_not_found"
