"""The built-in template of DeepSeek V3.2 against a plain program for the same format."""

import json

import conversations
from test_templates import rendered

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
TOOLS = """## Tools
You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "<@function_calls>" block like the following as part of \
your reply to the user:
<@function_calls>
<@invoke name="$FUNCTION_NAME">
<@parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</@parameter>
...
</@invoke>
<@invoke name="$FUNCTION_NAME2">
...
</@invoke>
</@function_calls>
String and scalar parameters should be specified as is without any escaping or quotes, while \
lists and objects should use JSON format. The "string" attribute should be set to "true" for \
string type parameters and "false" for other types (numbers, booleans, arrays, objects).
If the thinking_mode is enabled, then after function results you should strongly consider \
outputting a thinking block. Here is an example:
<@function_calls>
...
</@function_calls>
<function_results>
...
</function_results>
<think>...thinking about results</think>
Here are the functions available in JSONSchema format:
<functions>
SCHEMAS
</functions>
""".replace("@", "｜DSML｜")


def dumps(value) -> str:
    return json.dumps(value, ensure_ascii=False)


def tools_text(tools: list[dict]) -> str:
    return TOOLS.replace("SCHEMAS", "\n".join(dumps(tool["function"]) for tool in tools))


def call_text(function: dict) -> str:
    lines = [f'<｜DSML｜invoke name="{function["name"]}">']
    parameters = []
    for key, value in function["arguments"].items():
        text, kind = (value, "true") if isinstance(value, str) else (dumps(value), "false")
        parameters.append(f'<｜DSML｜parameter name="{key}" string="{kind}">{text}</｜DSML｜parameter>')
    return "\n".join([*lines, "\n".join(parameters), "</｜DSML｜invoke>"])


def encode(context: dict) -> str | None:
    """The prompt; None where there is none."""
    messages, thinking = context["messages"], context["thinking"]
    asks = [i for i, m in enumerate(messages) if m["role"] in ("user", "developer")]
    last = asks[-1] if asks else -1
    tools = "\n\n" + tools_text(context["tools"]) if context["tools"] else ""
    prompt, open_calls, results = BOS, 0, 0
    if messages[0]["role"] != "system":
        prompt += tools
    for i, message in enumerate(messages):
        role, content = message["role"], message["content"]
        opening = "<think>" if thinking and i >= last else "</think>"
        if role == "system":
            prompt += content + (tools if i == 0 else "")
        elif role in ("user", "developer"):
            said = f"\n\n# The user's message is: {content}" if role == "developer" else content
            prompt += f"<｜User｜>{said}<｜Assistant｜>{opening}"
        elif role == "tool":
            results += 1
            if results > open_calls:
                return None
            prompt += "\n\n<function_results>" if results == 1 else ""
            prompt += f"\n<result>{content}</result>"
            prompt += f"\n</function_results>\n\n{opening}" if results == open_calls else ""
        elif role == "assistant":
            if thinking and i > last:
                prompt += (message.get("reasoning_content") or "") + "</think>"
            calls = [call_text(call["function"]) for call in message.get("tool_calls", [])]
            prompt += content
            if calls:
                joined = "\n".join(calls)
                prompt += f"\n\n<｜DSML｜function_calls>\n{joined}\n</｜DSML｜function_calls>"
            prompt += EOS
        else:
            return None
        if role != "tool":
            open_calls, results = len(message.get("tool_calls", [])), 0
    return prompt


def contexts(count: int) -> list[dict]:
    """Conversations as the server prepares them."""
    maker = conversations.Maker(seed=7)
    made = []
    while len(made) < count:
        context = maker.conversation()
        for message in context["messages"]:
            if not isinstance(message.get("content"), str):
                message["content"] = ""
            for call in message.get("tool_calls", []):
                call["function"].setdefault("arguments", {})
                if isinstance(call["function"]["arguments"], str):
                    call["function"]["arguments"] = {}
        if context["messages"]:
            context |= {"bos_token": BOS, "eos_token": EOS, "add_generation_prompt": True}
            context["thinking"] = maker.chance(0.5)
            made.append(context)
    return made


def test_prompts_are_those_of_the_format():
    cases = contexts(600)
    got = rendered([("", cases)], "deepseek_v32")
    texts = 0
    for context, (kind, text) in zip(cases, got, strict=True):
        want = encode(context)
        assert (text if kind == "=" else None) == want, json.dumps(context, ensure_ascii=False)
        texts += want is not None
    assert texts > 250


def test_enable_thinking_is_another_name():
    context = contexts(1)[0] | {"messages": [{"role": "user", "content": "Hi"}], "tools": None}
    del context["thinking"]
    answers = rendered(
        [("", [context, context | {"enable_thinking": True}, context | {"thinking": True}])],
        "deepseek_v32",
    )
    chat = f"{BOS}<｜User｜>Hi<｜Assistant｜>"
    assert answers == [("=", chat + "</think>"), *[("=", chat + "<think>")] * 2]
