"""The Jinja environment in which Hugging Face transformers renders chat templates."""

import json
from datetime import datetime

import jinja2
import jinja2.ext
import jinja2.sandbox


class Generation(jinja2.ext.Extension):
    """`{% generation %}`: marks what the assistant says; the text is that of its body."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("said"), [], [], body).set_lineno(line)

    def said(self, caller: jinja2.runtime.Macro) -> str:
        return caller()


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def strftime_now(form):
    return datetime.now().strftime(form)


def make(immutable: bool = True) -> jinja2.Environment:
    """`immutable` is how transformers has it; otherwise lists may be changed."""
    kind = (
        jinja2.sandbox.ImmutableSandboxedEnvironment
        if immutable
        else jinja2.sandbox.SandboxedEnvironment
    )
    env = kind(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = strftime_now
    return env
