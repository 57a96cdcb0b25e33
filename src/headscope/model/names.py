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
