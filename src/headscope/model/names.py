"""Which decoder layer a module is in, from the numbers in its name."""

from __future__ import annotations

import re

_NUMBERED = re.compile(r"(.*?)\.(\d+)(?:\.|$)")


def stack_of(name: str) -> str | None:
    """The module that holds the decoder layers, from the name of a module inside them; None without a number."""
    match = _NUMBERED.match(name)
    return match[1] if match else None


def block_of(name: str) -> str:
    """The decoder layer that a module is in, from its name; its parent where no module is numbered."""
    match = _NUMBERED.match(name)
    return f"{match[1]}.{match[2]}" if match else name.rpartition(".")[0]


def layer_numbers(names: list[str]) -> dict[str, int]:
    """Decoder layer of each module, from names like `model.layers.3.self_attn` in the order they were called.

    A model of several stacks counts on: the second stack starts after the highest layer of the first. Modules
    without a number in their name are layers in the order of their first call.
    """
    stacks: dict[str, dict[str, int]] = {}
    for name in dict.fromkeys(names):
        match = _NUMBERED.match(name)
        stack = stacks.setdefault(match[1] if match else "", {})
        stack[name] = int(match[2]) if match else len(stack)
    numbers: dict[str, int] = {}
    start = 0
    for stack in stacks.values():
        numbers |= {name: start + index for name, index in stack.items()}
        start += max(stack.values()) + 1
    return numbers


def layer_of(name: str, layers: dict[str, int]) -> int | None:
    """Decoder layer that a module is in, by those of others; None where no number in its name tells.

    Args:
        name: A module's name.
        layers: Modules with their layers, as `layer_numbers` counts them.
    """
    starts = {m[1]: number - int(m[2]) for other, number in layers.items() if (m := _NUMBERED.match(other))}
    match = _NUMBERED.match(name)
    if match is None or match[1] not in starts:
        return None
    start, number = starts[match[1]], starts[match[1]] + int(match[2])
    return None if any(start < other <= number for other in starts.values()) else number
