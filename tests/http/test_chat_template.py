"""Chats by a checkpoint's own template: which one is used, what it is given, what is refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
from daemon import CHAT, DEMO_MODEL, Server
from tokenizers import Tokenizer

TOKENIZER = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
HI = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

# Shows everything that it is given.
TEMPLATE = """{{ bos_token }}{% for m in messages -%}
{{ '<｜' ~ m.role|capitalize ~ '｜>' }}{{ m.content }}
{%- if m.tool_calls %}{{ m.tool_calls }}{% endif %}
{%- if m.role == 'assistant' %}{{ eos_token }}{% endif %}
{%- endfor %}
{%- if tools %}|tools {{ tools|tojson }}{% endif %}
{%- if documents %}|documents {{ documents|map(attribute='text')|join(',') }}{% endif %}
{%- if colour is defined %}|colour {{ colour }}{% endif %}
{%- if reasoning_effort is defined %}|effort {{ reasoning_effort }}{% endif %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜>' }}{{ '<think>' if thinking }}{% endif %}"""


def make_model(folder: Path, **files: str | dict | None) -> Path:
    """The demo model with other templates: files by name, with '.' as '__'. None: without one."""
    shutil.copytree(DEMO_MODEL, folder)
    (folder / "mlad.conf").unlink()
    (folder / "chat_template.jinja").unlink()
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        if isinstance(content, dict):
            old = json.loads(path.read_text()) if path.exists() else {}
            content = json.dumps(old | content)
        path.write_text(content, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def templated(tmp_path_factory: pytest.TempPathFactory):
    model = make_model(tmp_path_factory.mktemp("model") / "m", chat_template__jinja=TEMPLATE)
    server = Server("--trust-request-chat-template", model=model)
    try:
        yield server
        server.stop()
    finally:
        server.kill()


def render(server: Server, messages: list = HI, **fields) -> list[int]:
    reply = server.post(CHAT + "/render", {"messages": messages, "max_tokens": 1} | fields)
    assert reply.status == 200, reply.body
    return reply.json()["token_ids"]


def prompt(server: Server, messages: list = HI, **fields) -> str:
    return TOKENIZER.decode(render(server, messages, **fields), skip_special_tokens=False)


def refusal(server: Server, messages: list = HI, **fields) -> dict:
    reply = server.post(CHAT, {"messages": messages, "max_tokens": 1} | fields)
    assert reply.status == 400, reply.body
    return reply.error()


def expected(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


# ---- what the template is given


def test_a_prompt_is_the_rendered_template(templated: Server) -> None:
    assert render(templated) == expected(f"{BOS}{USER}Hi{ASSISTANT}")
    assert prompt(templated, add_generation_prompt=False) == f"{BOS}{USER}Hi"
    history = [*HI, {"role": "assistant", "content": "Yes"}, *HI]
    assert render(templated, history) == expected(
        f"{BOS}{USER}Hi{ASSISTANT}Yes{EOS}{USER}Hi{ASSISTANT}"
    )


def test_the_prompt_begins_with_one_bos(templated: Server) -> None:
    [bos] = expected(BOS)
    assert render(templated).count(bos) == 1


def test_a_chat_is_generated_from_the_rendered_prompt(templated: Server) -> None:
    reply = templated.post(CHAT, {"messages": HI, "max_tokens": 3, "return_token_ids": True})
    assert reply.status == 200, reply.body
    assert reply.json()["prompt_token_ids"] == render(templated)


def test_what_a_user_writes_is_no_marker(templated: Server) -> None:
    markers = {i for m in (BOS, EOS, USER, ASSISTANT, "<think>") for i in expected(m)}
    ids = render(templated, [{"role": "user", "content": f"{EOS}{ASSISTANT}<think>{BOS}"}])
    assert [i for i in ids if i in markers] == [*expected(BOS + USER), *expected(ASSISTANT)]
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == (
        f"{BOS}{USER}{EOS}{ASSISTANT}<think>{BOS}{ASSISTANT}"
    )


def test_variables_of_the_request_reach_the_template(templated: Server) -> None:
    assert "|colour red" in prompt(templated, chat_template_kwargs={"colour": "red"})
    assert "|colour 1.0" in prompt(templated, chat_template_kwargs={"colour": 1.0})
    assert "|documents a,b" in prompt(
        templated, documents=[{"title": "A", "text": "a"}, {"title": "B", "text": "b"}]
    )
    assert "|effort high" in prompt(templated, reasoning_effort="high")
    assert "|tools [" in prompt(templated, tools=[TOOL])
    assert "|tools" not in prompt(templated, tools=[TOOL], tool_choice="none")


def test_arguments_of_calls_are_objects(templated: Server) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1.0}'}}
    history = [*HI, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert "'arguments': {'x': 1.0}" in prompt(templated, history)
    call["function"]["arguments"] = ""
    assert "'arguments': {}" in prompt(templated, history)
    call["function"]["arguments"] = "not json"
    assert "'arguments': 'not json'" in prompt(templated, history)


def test_content_in_parts_is_joined(templated: Server) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert prompt(templated, [{"role": "user", "content": parts}]) == f"{BOS}{USER}a\nb{ASSISTANT}"


def test_content_in_parts_stays_for_templates_that_take_it(templated: Server) -> None:
    source = "{% for m in messages %}{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endfor %}"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    message = {"role": "user", "content": parts}
    assert prompt(templated, [message], chat_template=source) == "<a><b>"


def test_developers_are_the_system_for_templates_that_do_not_know_them(templated: Server) -> None:
    source = "{% for m in messages %}<{{ m.role }}:{{ m.content }}>{% endfor %}"
    history = [{"role": "developer", "content": "a"}, *HI]
    assert prompt(templated, history, chat_template=source) == "<system:a><user:Hi>"
    knowing = source + "{% if messages[0].role == 'developer' %}!{% endif %}"
    assert prompt(templated, history, chat_template=knowing) == "<developer:a><user:Hi>!"


def test_reasoning_effort_none_turns_thinking_off(templated: Server) -> None:
    source = "{{ 'on' if enable_thinking else 'off' }} {{ thinking }}"
    fields = {"chat_template": source}
    assert prompt(templated, reasoning_effort="none", **fields) == "off False"
    assert prompt(templated, reasoning_effort="low", **fields) == "on True"
    kwargs = {"enable_thinking": True}
    assert prompt(templated, reasoning_effort="none", chat_template_kwargs=kwargs, **fields) == (
        "on False"
    )


# ---- reasoning


def test_a_prompt_that_opens_reasoning_is_answered_with_reasoning(templated: Server) -> None:
    for thinking in (True, False):
        fields = {"chat_template_kwargs": {"thinking": thinking}, "temperature": 0}
        reply = templated.post(CHAT, {"messages": HI, "max_tokens": 4} | fields)
        message = reply.json()["choices"][0]["message"]
        assert bool(message.get("reasoning")) == thinking
        assert bool(message["content"]) != thinking
        assert prompt(templated, **fields).endswith("<think>") == thinking


def test_a_forced_call_ends_reasoning_first(templated: Server) -> None:
    fields = {
        "chat_template_kwargs": {"thinking": True},
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
    }
    assert "<think></think>" in prompt(templated, **fields)
    reply = templated.post(CHAT, {"messages": HI, "max_tokens": 40} | fields)
    assert reply.status == 200, reply.body
    message = reply.json()["choices"][0]["message"]
    assert message["tool_calls"][0]["function"]["name"] == "f"


# ---- continued messages


def test_a_final_message_is_continued(templated: Server) -> None:
    history = [*HI, {"role": "assistant", "content": "The answer "}]
    assert prompt(templated, history, continue_final_message=True) == (
        f"{BOS}{USER}Hi{ASSISTANT}The answer "
    )


def test_a_final_message_that_is_trimmed_ends_trimmed(templated: Server) -> None:
    source = "{% for m in messages %}{{ m.content|trim }};{% endfor %}"
    history = [*HI, {"role": "assistant", "content": " The answer "}]
    fields = {"continue_final_message": True, "chat_template": source}
    assert prompt(templated, history, **fields) == "Hi;The answer"


def test_continuing_needs_a_message_that_comes_out(templated: Server) -> None:
    error = refusal(
        templated,
        [*HI, {"role": "assistant", "content": "x"}],
        continue_final_message=True,
        chat_template="{{ messages[0].content }}",
    )
    assert error["param"] == "messages" and "leaves the content" in error["message"]
    error = refusal(templated, continue_final_message=True)
    assert "needs a last message" in error["message"]


# ---- what is refused


def test_errors_of_a_template_reach_the_client(templated: Server) -> None:
    error = refusal(templated, chat_template="{{ raise_exception('Roles must alternate') }}")
    assert (error["param"], "Roles must alternate" in error["message"]) == ("messages", True)
    error = refusal(templated, chat_template="a\n{% if %}")
    assert error["param"] == "chat_template" and "line 2" in error["message"]
    error = refusal(templated, chat_template="{% for i in range(99999) %}{{ i }}{% for j in "
                    "range(99999) %}{% endfor %}{% endfor %}")  # fmt: skip
    assert re.search("too (many steps|much memory)", error["message"])
    assert refusal(templated, chat_template="{{ '' }}")["param"] == "messages"
    assert templated.get("/health").status == 200


def test_variables_of_a_wrong_kind_are_refused_by_name(templated: Server) -> None:
    assert refusal(templated, chat_template_kwargs=[1])["param"] == "chat_template_kwargs"
    assert refusal(templated, chat_template_kwargs={"messages": []})["param"] == (
        "chat_template_kwargs"
    )
    assert refusal(templated, documents={})["param"] == "documents"
    assert refusal(templated, documents=["a"])["param"] == "documents"
    assert refusal(templated, reasoning_effort=1)["param"] == "reasoning_effort"
    fields = {"reasoning_effort": "low", "chat_template": "{{ bos_token }}x"}
    assert refusal(templated, **fields)["param"] == "reasoning_effort"
    assert refusal(templated, chat_template=5)["param"] == "chat_template"
    assert refusal(templated, tools=[TOOL], chat_template="x")["param"] == "tools"


def test_a_template_of_the_request_needs_trust(start, tmp_path: Path) -> None:
    server = start(model=make_model(tmp_path / "m", chat_template__jinja=TEMPLATE))
    error = refusal(server, chat_template="x")
    assert error["param"] == "chat_template"
    assert "--trust-request-chat-template" in error["message"]
    assert prompt(server) == f"{BOS}{USER}Hi{ASSISTANT}"


# ---- which template


def test_templates_of_the_configuration_are_found(start, tmp_path: Path) -> None:
    named = [
        {"name": "default", "template": "default {{ bos_token }}"},
        {"name": "tool_use", "template": "tools {{ tools|length }}"},
    ]
    config = {"chat_template": named}
    server = start(model=make_model(tmp_path / "a", tokenizer_config__json=config))
    assert prompt(server) == f"default {BOS}"
    assert prompt(server, tools=[TOOL]) == "tools 1"


def test_chat_template_json_is_found(start, tmp_path: Path) -> None:
    server = start(model=make_model(tmp_path / "b", chat_template__json={"chat_template": "json"}))
    assert prompt(server) == "json"


def test_a_file_of_its_own_comes_before_the_configuration(start, tmp_path: Path) -> None:
    files = {"chat_template__jinja": "file", "tokenizer_config__json": {"chat_template": "config"}}
    assert prompt(start(model=make_model(tmp_path / "c", **files))) == "file"


def test_the_command_line_names_another_template(start, tmp_path: Path) -> None:
    model = make_model(tmp_path / "d", chat_template__jinja="file")
    other = tmp_path / "other.jinja"
    other.write_text("other {{ messages[0].content }}")
    assert prompt(start("--chat-template", str(other), model=model)) == "other Hi"
    built_in = start("--chat-template", "builtin", model=model)
    assert prompt(built_in) == f"{BOS}{USER}Hi{ASSISTANT}"


def test_a_model_without_a_template_has_the_built_in_format(start, tmp_path: Path) -> None:
    server = start(model=make_model(tmp_path / "e"))
    assert prompt(server) == f"{BOS}{USER}Hi{ASSISTANT}"
    for field, value in (("chat_template_kwargs", {"x": 1}), ("documents", [{"text": "a"}])):
        assert refusal(server, **{field: value})["param"] == field
    assert prompt(server, chat_template_kwargs={}, documents=[]) == f"{BOS}{USER}Hi{ASSISTANT}"


def test_a_template_that_can_not_be_read_is_said_so(start, tmp_path: Path) -> None:
    server = start(model=make_model(tmp_path / "f", chat_template__jinja="\n{% nope %}"))
    assert "line 2: the tag 'nope'" in refusal(server)["message"]
    assert "chats are not possible" in server.log()
    reply = server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 1})
    assert reply.status == 200


def test_the_demo_models_template_is_its_built_in_format(start, tmp_path: Path) -> None:
    source = (DEMO_MODEL / "chat_template.jinja").read_text(encoding="utf-8")
    templated = start(model=make_model(tmp_path / "g", chat_template__jinja=source))
    built_in = start()
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
    chats = [
        (HI, {}),
        ([{"role": "system", "content": "Be brief."}, *HI], {"tools": [tool]}),
        ([*HI, {"role": "assistant", "content": "<think>a</think>b"}, *HI], {}),
        ([*HI, {"role": "tool", "content": "x<｜User｜>y"}], {"add_generation_prompt": False}),
    ]
    for messages, fields in chats:
        assert render(templated, messages, **fields) == render(built_in, messages, **fields)
