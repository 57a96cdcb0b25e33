"""Running out of memory halves the batch and goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from headscope.errors import MemoryRanOut, ShapeError

Item = TypeVar("Item")
Result = TypeVar("Result")

_MESSAGES = ("can't allocate memory", "not enough memory", "out of memory", "failed to allocate", "alloc_failed")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, (MemoryError, MemoryRanOut, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _MESSAGES)


def in_batches(
    items: Sequence[Item], size: int, run: Callable[[Sequence[Item]], Result]
) -> Iterator[tuple[Sequence[Item], Result]]:
    """Run `items` in batches of `size`, halving it as often as memory runs out. Yields each batch and its result.

    Batches may be nested: where a single inner item is too much, the outer batch is halved.

    Raises:
        MemoryRanOut: memory runs out with a single item.
        ShapeError: `size` is below 1.
    """
    if size < 1:
        raise ShapeError(f"batch size {size}; it needs at least 1.")
    start = 0
    while start < len(items):
        batch = items[start : start + size]
        results: list[Result] = []
        try:
            results.append(run(batch))
        except (RuntimeError, MemoryError, MemoryRanOut) as error:
            if not out_of_memory(error):
                raise
        if not results:  # only here is the failed attempt, held by the error, let go
            if len(batch) == 1:
                raise MemoryRanOut(
                    "memory ran out with a single prompt in the batch; use shorter prompts or a smaller dtype."
                )
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            size = len(batch) // 2
            continue
        yield batch, results[0]
        start += len(batch)
