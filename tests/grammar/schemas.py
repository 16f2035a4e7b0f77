"""Random JSON Schemas of the keywords that are supported, by a seed."""

import random

NAMES = ["a", "b", "name", "naïve", 'qu"ote', "back\\slash", "né", "n", "tab\t", "x-y", "id", "Ω"]
PATTERNS = [
    "^[a-z]+$",
    "^[A-Z]{2,4}-\\d{3}$",
    "^(foo|ba[rz])?$",
    "abc",
    "^a.c",
    'x"?$',
    "^[^\\\\a-z]{1,5}$",
    "^\\w+@\\w+\\.(com|org)$",
    "^\\s*$",
    "^(\\$\\d{1,3}(,\\d{3})*)$",
    "^é+|Ω{2}$",
]
FORMATS = [
    "date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid",
]  # fmt: skip
VALUES = [None, True, False, 0, -3, 1.5, 1e30, "", "x", 'a "b"\n', "né", [], [1, "a"], {"k": [0]}]


class Generator:
    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.defs: list[str] = []

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def document(self) -> dict:
        """A whole schema, with definitions that may refer to each other and to themselves."""
        names = [f"d{i}" for i in range(self.random.choice([0, 0, 1, 2]))]
        self.defs = []  # no references within definitions, but for those of recursive()
        definitions = {name: self.recursive(name) for name in names}
        self.defs = names
        schema = self.schema(self.random.choice([1, 2, 3]))
        while not isinstance(schema, dict):
            schema = self.schema(2)
        if names:
            schema["$defs"] = definitions
        schema.setdefault("title", "a title")
        return schema

    def recursive(self, name: str) -> dict:
        """A definition that holds itself where that may end."""
        again = {"anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "null"}]}
        return self.random.choice(
            [
                {
                    "type": "object",
                    "properties": {"v": self.schema(1), "next": again},
                    "required": ["v", "next"],
                    "additionalProperties": False,
                },
                {"type": "array", "items": {"$ref": f"#/$defs/{name}"}, "maxItems": 3},
                {
                    "type": "object",
                    "properties": {"v": self.schema(1), "child": {"$ref": f"#/$defs/{name}"}},
                    "additionalProperties": False,
                },
            ]
        )

    def schema(self, depth: int):
        kinds = [self.string, self.integer, self.number, self.enum, self.simple]
        if depth > 0:
            kinds += [self.object, self.object, self.array, self.any_of, self.one_of, self.all_of]
        if self.defs and self.chance(0.2):
            return {"$ref": f"#/$defs/{self.random.choice(self.defs)}"}
        kind = self.random.choice(kinds)
        return kind(depth - 1)

    def simple(self, _depth: int):
        return self.random.choice(
            [
                {"type": "boolean"},
                {"type": "null"},
                {},
                True,
                {"type": ["string", "null"]},
                {"type": ["integer", "boolean", "array"]},
                {"type": "object"},
                {"type": "array", "maxItems": 2},
                {"description": "anything", "examples": [1]},
            ]
        )

    def string(self, _depth: int) -> dict:
        schema: dict = {"type": "string"}
        kind = self.random.randrange(5)
        if kind == 0:
            schema["pattern"] = self.random.choice(PATTERNS)
        elif kind == 1:
            schema["format"] = self.random.choice(FORMATS)
        elif kind == 2:
            low = self.random.randrange(0, 50)
            schema |= {"minLength": low, "maxLength": low + self.random.randrange(0, 60)}
        elif kind == 3:
            schema |= {"pattern": "^[a-zé\"]*$", "maxLength": self.random.randrange(0, 9)}
        return schema

    def integer(self, _depth: int) -> dict:
        schema: dict = {"type": "integer"}

        def bound():
            size = 10 ** self.random.randrange(1, 8)
            return self.random.randrange(-size, size)

        self.bounds(schema, bound)
        if self.chance(0.2):
            divisor = self.random.choice([1, 2, 3, 7, 10, 64, 100])
            schema = {"type": "integer", "multipleOf": divisor}
            if self.chance(0.5):
                schema |= {"minimum": -self.random.randrange(500), "maximum": 700}
        return schema

    def number(self, _depth: int) -> dict:
        schema: dict = {"type": "number"}

        def bound():
            places = self.random.randrange(0, 4)
            return round(self.random.uniform(-1, 1) * 10 ** self.random.randrange(-1, 5), places)

        self.bounds(schema, bound)
        return schema

    def bounds(self, schema: dict, bound) -> None:
        """Adds some bounds that leave room between them."""
        low = bound()
        if self.chance(0.5):
            schema[self.random.choice(["minimum", "exclusiveMinimum"])] = low
        if self.chance(0.5):
            high = max(low, bound()) + self.random.choice([2, 2, 1000])
            schema[self.random.choice(["maximum", "exclusiveMaximum"])] = high

    def enum(self, _depth: int) -> dict:
        if self.chance(0.4):
            return {"const": self.random.choice(VALUES)}
        return {"enum": self.random.sample(VALUES, self.random.randrange(1, 6))}

    def object(self, depth: int) -> dict:
        names = self.random.sample(NAMES, self.random.randrange(0, 6))
        schema: dict = {"type": "object", "properties": {n: self.schema(depth) for n in names}}
        schema["required"] = [n for n in names if self.chance(0.5)]
        closed = self.random.choice([False, False, None, True, {"type": "integer"}])
        if closed is not None:
            schema["additionalProperties"] = closed
        if closed is not False and self.chance(0.2):
            schema["required"].append("extra")
        return schema

    def array(self, depth: int) -> dict:
        schema: dict = {"type": "array"}
        low = self.random.randrange(0, 4)
        if self.chance(0.6):
            schema["items"] = self.schema(depth)
        if self.chance(0.3):
            schema["prefixItems"] = [self.schema(depth) for _ in range(self.random.randrange(1, 4))]
            if self.chance(0.4):
                schema["items"] = False
                low = min(low, len(schema["prefixItems"]))
        if self.chance(0.5):
            schema["minItems"] = low
        if self.chance(0.5):
            schema["maxItems"] = low + self.random.randrange(0, 4)
        return schema

    def any_of(self, depth: int) -> dict:
        schema: dict = {"anyOf": [self.schema(depth) for _ in range(self.random.randrange(1, 4))]}
        if self.chance(0.3):  # beside other keywords: both hold
            names = ["p", "q"]
            schema = {
                "type": "object",
                "properties": {n: self.schema(depth) for n in names},
                "anyOf": [{"required": ["p"]}, {"required": ["q"]}],
            }
        return schema

    def one_of(self, depth: int) -> dict:
        if self.chance(0.5):
            return {"oneOf": [{"type": "string"}, self.integer(depth), {"type": "null"}]}
        branches = [
            {
                "type": "object",
                "properties": {"kind": {"const": kind}, "value": self.schema(depth)},
                "required": ["kind", "value"],
            }
            for kind in ("one", "two")
        ]
        return {"oneOf": branches}

    def all_of(self, depth: int) -> dict:
        return {
            "allOf": [
                {"type": "object", "properties": {"a": self.schema(depth)}, "required": ["a"]},
                {"properties": {"b": self.schema(depth)}},
            ]
        }
