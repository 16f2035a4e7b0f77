"""Conversations and the prompts that a chat template makes of them, rendered as transformers does.

    python make_chat.py [--count 220] [--seed 1] > chat.json

chat.json is a list of {"messages", "tools"?, "add_generation_prompt", "rendered"}, one a line. No
text in it holds a marker of the template.
"""

import argparse
import json
import random
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATE = Path(__file__).resolve().parents[2] / "model" / "demo" / "chat_template.jinja"
BOS = "<｜begin▁of▁sentence｜>"

TEXTS = [
    "",
    " ",
    "\n",
    "\n\n",
    "  two  spaces  ",
    "What is 12+30?",
    "Don't stop\tnow.\r\n",
    "Привет, мир! naïve café",
    "你好，世界。12345",
    "😀 \U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301",
    "def f(x):\n    return x ** 2\n",
    'quotes " and \\ and / and &amp; <b>',
    "{{ messages }} {% raw %}",
    "<think no marker </thin",
    "trailing space ",
    "a\n\n\nb",
    "x" * 40,
    "ends with <",
    "1234567890" * 3,
    "\u00a0\u2003odd\u2028white\u0085space",
    "control \x01\x1f\x7f\b\f",
]
NAMES = ["get_weather", "search", "a", "add-numbers", "файл", "ns.tool", "x_1"]
KEYS = ["city", "n", "q", "größe", "with space", "", 'a"b', "enum", "type"]
NUMBERS = [0, 1, -1, 42, 123456789012, 0.5, -0.25, 1e-05, 1.5e-07, 3.14159, 0.1, 1e22, 2.5e300,
           1 / 3, 1234.5678, 100000.5, 5e-324, 0.0001, 2**53]  # fmt: skip


def value(rng: random.Random, depth: int = 0):
    """Any JSON value."""
    kind = rng.randrange(7 if depth < 3 else 5)
    if kind == 5:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 6:
        return {rng.choice(KEYS): value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return [None, rng.random() < 0.5, rng.choice(NUMBERS), rng.choice(TEXTS), "word"][kind]


def tool(rng: random.Random) -> dict:
    function = {"name": rng.choice(NAMES), "description": rng.choice([None, *TEXTS])}
    schema = {
        "type": "object",
        "properties": {
            rng.choice(KEYS): {"type": rng.choice(["string", "number"]), "description": "It."}
            for _ in range(rng.randrange(3))
        },
    }
    function["parameters"] = schema if rng.random() < 0.6 else value(rng)
    if rng.random() < 0.2:
        function["strict"] = True
    return {"type": "function", "function": function}


def call(rng: random.Random) -> dict:
    whole = {rng.choice(KEYS): value(rng) for _ in range(rng.randrange(3))}
    arguments = rng.choice([whole, json.dumps(whole), "", "not JSON"])
    function = {"name": rng.choice(NAMES), "arguments": arguments}
    return {"id": f"call_{rng.randrange(99)}", "type": "function", "function": function}


def assistant(rng: random.Random) -> dict:
    message = {"role": "assistant", "content": rng.choice([None, *TEXTS])}
    if message["content"] is not None and rng.random() < 0.3:
        message["content"] = f"<think>{rng.choice(TEXTS)}</think>{message['content']}"
    if rng.random() < 0.4:
        message["tool_calls"] = [call(rng) for _ in range(rng.randrange(4))]
    return message


def conversation(rng: random.Random) -> dict:
    messages = []
    for _ in range(rng.randrange(1, 7)):
        role = rng.choice(["system", "user", "user", "assistant", "assistant", "tool"])
        if role == "assistant":
            messages.append(assistant(rng))
        else:
            messages.append({"role": role, "content": rng.choice(TEXTS)})
    case = {"messages": messages, "add_generation_prompt": rng.random() < 0.5}
    if rng.random() < 0.5:
        case["tools"] = [tool(rng) for _ in range(rng.randrange(4))]
    return case


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja set up as transformers sets it up for chat templates."""
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    env.filters["tojson"] = lambda v: json.dumps(v, ensure_ascii=False)
    return env


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=220)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    rng = random.Random(args.seed)
    template = environment().from_string(TEMPLATE.read_text(encoding="utf-8"))
    lines = []
    for _ in range(args.count):
        case = conversation(rng)
        # What travels is JSON, so that is what both sides see.
        case = json.loads(json.dumps(case))
        case["rendered"] = template.render(**case, bos_token=BOS)
        lines.append(json.dumps(case, ensure_ascii=False))
    print("[\n" + ",\n".join(lines) + "\n]")


if __name__ == "__main__":
    main()
