#!/usr/bin/env python3
"""Writes model/template_unicode_data.h: what Python's str methods know of characters.

    make_template_unicode.py >model/template_unicode_data.h
"""

import sys
import unicodedata
from collections.abc import Callable

LAST = 0x110000


def toggles(holds: Callable[[str], bool]) -> list[int]:
    """The code points at which a property begins or ends to hold."""
    points, before = [], False
    for code in range(LAST):
        now = not 0xD800 <= code < 0xE000 and holds(chr(code))
        if now != before:
            points.append(code)
            before = now
    return points


def mapping(change: Callable[[str], str]) -> tuple[list[tuple[int, ...]], list[tuple[int, str]]]:
    """Runs (first, last, step, delta) of one-to-one changes, and the others one by one."""
    runs: list[list[int]] = []
    special = []
    for code in range(LAST):
        if 0xD800 <= code < 0xE000:
            continue
        to = change(chr(code))
        if len(to) > 1:
            special.append((code, to))
        elif ord(to) != code:
            delta = ord(to) - code
            run = runs[-1] if runs else None
            step = code - run[1] if run else 0
            if run and run[3] == delta and run[2] in (0, step) and step <= 2:
                run[1], run[2] = code, step
            else:
                runs.append([code, code, 0, delta])
    return [(first, last, step or 1, delta) for first, last, step, delta in runs], special


def wrapped(items: list[str]) -> str:
    lines, line = [], "   "
    for item in items:
        if len(line) + len(item) + 2 > 100:
            lines.append(line)
            line = "   "
        line += f" {item},"
    return "\n".join([*lines, line])


def main() -> None:
    version = unicodedata.unidata_version
    print(f"""/* What Python's str methods know of characters, by Unicode {version}:
 * made by scripts/make_template_unicode.py. */
#pragma once

#include <stdint.h>

/* clang-format off */
/* Where a property begins to hold, ends, begins again, ... */""")
    properties = {
        "printable": str.isprintable,
        "alpha": str.isalpha,
        "decimal": str.isdecimal,
        "digit": str.isdigit,
        "numeric": str.isnumeric,
    }
    for name, holds in properties.items():
        items = [f"0x{point:x}" for point in toggles(holds)]
        print(f"static const uint32_t {name}_points[] = {{\n{wrapped(items)}\n}};")
    print("""
/* Every `step`-th character from `first` to `last` changes by `delta`. */
struct case_run {
    uint32_t first, last, step;
    int32_t delta;
};
/* Characters that change to several. */
struct case_special {
    uint32_t code;
    const char *text;
};""")
    changes = {"upper": str.upper, "lower": str.lower, "title": str.title}
    for name, change in changes.items():
        runs, special = mapping(change)
        items = [f"{{0x{a:x}, 0x{b:x}, {step}, {delta}}}" for a, b, step, delta in runs]
        print(f"static const struct case_run {name}_runs[] = {{\n{wrapped(items)}\n}};")
        items = [f'{{0x{code:x}, "{to}"}}' for code, to in special]
        print(f"static const struct case_special {name}_specials[] = {{\n{wrapped(items)}\n}};")
    print("/* clang-format on */")


if __name__ == "__main__":
    sys.exit(main())
