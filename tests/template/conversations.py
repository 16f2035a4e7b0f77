"""Generated conversations: what a chat template is given, of every kind, sensible or not."""

import random

TEXTS = [
    "", " ", "\n", "Hello", "What is 2 + 2?", "  leading and trailing  ", "two\n\nparagraphs\n",
    "tab\there", "quotes \" and ' and \\ backslash", "<b>&amp;</b>", "{{ not a template }}",
    "{% if x %}", "日本語のテキスト", "naïve café ß İ ǆ Σίσυφος", "emoji 👩‍👩‍👧 🇩🇪 \u200b\u00a0",
    "<think>reasoning</think>answer", "no begin</think>answer", "<think>open",
    "</think>", "a</think>b</think>c", "<|user|>", "line1\r\nline2", "x" * 300,
    "\u2028 separator", "JSON {\"a\": [1, 2.5, null]}", "0", "None", "false", "/nothink",
]  # fmt: skip

VALUES = [
    None, True, False, 0, 1, -7, 1.0, 2.5, 1e-7, 1e22, -0.0, 12345678901234567890, "", "text",
    "ünï", [], [1, 2, 3], ["a", "b"], {}, {"x": 1}, {"deep": {"er": [{"y": None}]}},
]  # fmt: skip

SCHEMAS = [
    {"type": "object", "properties": {}},
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "The city.\nWith a country."},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
        },
        "required": ["city"],
    },
    {
        "type": "object",
        "properties": {
            "n": {"type": "integer", "minimum": 0, "maximum": 10.5, "default": 3},
            "ratio": {"type": "number", "enum": [0.5, 1.0, 2]},
            "on": {"type": "boolean"},
            "items": {"type": "array", "items": {"type": "string", "format": "date"}},
            "any": {"description": "no type", "pattern": "^a\\d+$"},
            "object": {
                "type": "object",
                "properties": {"inner": {"type": "array"}},
                "additionalProperties": {"type": "integer"},
            },
        },
        "additionalProperties": True,
    },
]


class Maker:
    def __init__(self, seed: int):
        self.rng = random.Random(seed)

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def text(self) -> str:
        if self.chance(0.2):
            return self.rng.choice(TEXTS) + self.rng.choice(TEXTS)
        return self.rng.choice(TEXTS)

    def arguments(self):
        names = ("city", "n", "a b", "ключ", "nested")
        made = {name: self.rng.choice(VALUES) for name in names if self.chance(0.5)}
        return '{"city": "Rome"}' if self.chance(0.1) else made

    def call(self) -> dict:
        function = {"name": self.rng.choice(["get_weather", "f", "größe"])}
        if not self.chance(0.05):
            function["arguments"] = self.arguments()
        call = {"type": "function", "function": function}
        if self.chance(0.8):
            call["id"] = self.rng.choice(["abcdef123", "functions.f:0", "call_1"])
        return call

    def content(self):
        if self.chance(0.8):
            return self.text()
        kind = self.rng.randrange(4)
        if kind == 0:
            return None
        parts = [{"type": "text", "text": self.text()} for _ in range(self.rng.randrange(3))]
        if kind == 1 and parts:
            parts.insert(0, {"type": "image_url", "image_url": {"url": "http://x"}})
        return parts

    def message(self, role: str) -> dict:
        message = {"role": role}
        if not self.chance(0.03):
            message["content"] = self.content()
        if role == "assistant" and self.chance(0.4):
            message["tool_calls"] = [self.call() for _ in range(self.rng.randrange(4))]
            if self.chance(0.6):
                message["content"] = self.rng.choice([None, ""])
        if role == "assistant" and self.chance(0.3):
            message["reasoning_content"] = self.text()
        if role == "tool":
            message["tool_call_id"] = self.rng.choice(["abcdef123", "functions.f:0"])
        if self.chance(0.1):
            message["name"] = self.rng.choice(["Ann", "f"])
        if self.chance(0.05):
            message["prefix"] = True
        return message

    def tool(self) -> dict:
        function = {"name": self.rng.choice(["get_weather", "f"])}
        if not self.chance(0.2):
            function["description"] = self.text()
        if not self.chance(0.1):
            function["parameters"] = self.rng.choice(SCHEMAS)
        if self.chance(0.2):
            function["strict"] = True
        return {"type": "function", "function": function}

    def roles(self) -> list[str]:
        if self.chance(0.25):
            kinds = ["system", "user", "assistant", "tool", "developer", "odd"]
            return [self.rng.choice(kinds) for _ in range(self.rng.randrange(8))]
        roles = ["system"] if self.chance(0.6) else []
        for _ in range(self.rng.randrange(1, 5)):
            roles.append("user")
            if self.chance(0.8):
                roles.append("assistant")
                while self.chance(0.4):
                    roles += ["tool"] * self.rng.randrange(1, 3) + ["assistant"]
        return roles

    def conversation(self) -> dict:
        """The variables of a template."""
        context = {
            "messages": [self.message(role) for role in self.roles()],
            "bos_token": "<｜begin▁of▁sentence｜>",
            "eos_token": "</s>",
            "add_generation_prompt": self.chance(0.5),
            "tools": [self.tool() for _ in range(self.rng.randrange(1, 4))]
            if self.chance(0.5)
            else None,
            "documents": None,
        }
        if self.chance(0.3):
            context[self.rng.choice(["enable_thinking", "thinking"])] = self.chance(0.5)
        if self.chance(0.2):
            context["clear_thinking"] = self.chance(0.5)
        if self.chance(0.2):
            context["reasoning_effort"] = self.rng.choice(["high", "low", "max"])
        if self.chance(0.2):
            context["documents"] = [{"title": self.text(), "text": self.text()}]
        return context


def conversations(count: int, seed: int = 1) -> list[dict]:
    maker = Maker(seed)
    return [maker.conversation() for _ in range(count)]
