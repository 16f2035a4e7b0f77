#!/usr/bin/env python3
"""Writes kernels/cuda/wgmma.cuh: the warpgroup matrix products for each width N.

    scripts/make_wgmma.py > kernels/cuda/wgmma.cuh

The layout is clang-format's: `make format` afterwards.
"""

WIDTHS = (8, 16, 32, 64, 96, 128, 192, 256)

HEAD = """/* The matrix products of ptx.cuh for each width N. Written by scripts/make_wgmma.py,
 * since each names its N / 2 accumulators one by one. */
#pragma once

#include "kernels/cuda/ptx.cuh"
"""


def wrapped(parts: list[str], width: int) -> list[str]:
    """The parts, joined by commas, in lines of at most that width."""
    lines, line = [], ""
    for i, part in enumerate(parts):
        part += ", " if i < len(parts) - 1 else ""
        if len(line) + len(part) > width:
            lines.append(line)
            line = ""
        line += part
    return [*lines, line]


def product(width: int) -> str:
    n = width // 2  # accumulators of a thread
    names = "\n".join(f'"{line}"' for line in wrapped([f"%{i}" for i in range(n)], 60))
    outputs = "\n".join(
        line.rstrip() for line in wrapped([f'"+f"(d[{i}])' for i in range(n)], 72)
    )
    instruction = f"wgmma.mma_async.sync.aligned.m64n{width}k16.f32.bf16.bf16"
    return f"""
template <> struct wgmma<{width}> {{
    template <int TA, int TB>
    static __device__ __forceinline__ void ss(float (&d)[{n}], uint64_t a, uint64_t b,
                                              int accumulate)
    {{
        asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{n + 2}, 0;\\n"
                     "{instruction} {{"
                     {names}
                     "}}, %{n}, %{n + 1}, p, 1, 1, %{n + 3}, %{n + 4};\\n}}"
                     : {outputs}
                     : "l"(a), "l"(b), "r"(accumulate), "n"(TA), "n"(TB));
    }}

    template <int TB>
    static __device__ __forceinline__ void rs(float (&d)[{n}], const uint32_t (&a)[4], uint64_t b,
                                              int accumulate)
    {{
        asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{n + 5}, 0;\\n"
                     "{instruction} {{"
                     {names}
                     "}}, {{%{n}, %{n + 1}, %{n + 2}, %{n + 3}}}, %{n + 4}, p, 1, 1, %{n + 6};\\n}}"
                     : {outputs}
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate),
                       "n"(TB));
    }}
}};
"""


if __name__ == "__main__":
    print(HEAD + "".join(product(width) for width in WIDTHS), end="")
