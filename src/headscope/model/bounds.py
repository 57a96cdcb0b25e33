"""A config that describes far more than its checkpoint holds is refused while it is being built, not after.

Transformers builds what a config names before it looks at the weights, and fills with random numbers what the weights
lack. A damaged or hostile config so costs hours (two million layers) or all memory (a vocabulary of 2^31) before any
error. Such a model is refused anyway, since its weights are missing; here it is refused early.

    layers      at most `MOST_LAYERS`, by the config's file, before transformers lists them
    labels      at most `MOST_LABELS`, likewise: transformers names each of `num_labels`
    parameters  at most `MOST_PARAMETERS` tensors, counted as they are registered
    numbers     at most `SLACK` times those of the checkpoint, and `SPARE` more

`SLACK` leaves room for packed weights, eight numbers of 4 bits in one of 32, and for a tensor that is registered twice:
when it is built and when it is filled.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from headscope.errors import ModelError, UnsafeWeights, brief

MOST_LAYERS = 10_000
MOST_LABELS = 1_000_000
MOST_PARAMETERS = 250_000
SLACK = 16
SPARE = 2**20
_MOST = dict.fromkeys(("num_hidden_layers", "num_layers", "n_layers", "n_layer"), MOST_LAYERS) | {
    "num_labels": MOST_LABELS
}
_IMPLEMENTATIONS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


def refuse_endless(source: str, config: Mapping[str, Any]) -> None:
    """Raise if a config's file names more layers or labels than any model has.

    Args:
        source: The model, for the error.
        config: The file as it is, parts of it nested.

    Raises:
        ModelError: with the key and its value.
    """
    for key, value in _entries(config):
        if key in _MOST and isinstance(value, (int, float)) and value > _MOST[key]:
            raise ModelError(
                f"the config of {source!r} says {key}={_number(value)}, and no model has more than {_MOST[key]:,} "
                f"{key.split('_')[-1]}; use the config that belongs to the weights."
            )


def refuse_kernels(source: str, config: Mapping[str, Any]) -> None:
    """Raise if a config's file names a repository whose kernels transformers would fetch and run.

    Args:
        source: The model, for the error.
        config: The file as it is.

    Raises:
        UnsafeWeights: with the key and its value.
    """
    for key, value in _entries(config):
        names = list(cast("dict[str, Any]", value).values()) if isinstance(value, dict) else [value]
        named = next((name for name in names if isinstance(name, str) and "/" in name), None)
        if key in _IMPLEMENTATIONS and named is not None:
            raise UnsafeWeights(
                f"the config of {source!r} asks for code from the hub ({key}={brief(named)!r}); remove that entry, or "
                "pass --trust-remote-code (trust_remote_code=True) if you trust it."
            )


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        yield key, value
        if isinstance(value, dict):
            yield from _entries(cast("dict[str, Any]", value))


def _number(value: int | float) -> str:
    return str(value) if value < 1e15 else "10^15 or more"  # Python refuses to write out some thousand digits


@contextmanager
def bounded(source: str, numbers: int | None) -> Generator[None, None, None]:
    """Raise in the block when the model built there, by this thread, outgrows its checkpoint.

    Args:
        source: The model, for the error.
        numbers: How many the checkpoint holds; None where that cannot be told.

    Raises:
        ModelError: in the block, with what was counted.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook as on_registration

    most = None if numbers is None else SLACK * numbers + SPARE
    here, tensors, seen = threading.get_ident(), 0, 0

    def count(module: Any, name: str, parameter: Any) -> None:
        nonlocal tensors, seen
        if parameter is None or threading.get_ident() != here:
            return
        tensors += 1
        seen += parameter.numel()
        if tensors > MOST_PARAMETERS or (most is not None and seen > most):
            held = "an unknown number" if numbers is None else f"{numbers:,} numbers"
            raise ModelError(
                f"the config of {source!r} describes a model of more than {seen:,} numbers in {tensors:,} tensors, but "
                f"its checkpoint holds {held}; use a config and weights that belong together."
            )

    handle = on_registration(count)
    try:
        yield
    finally:
        handle.remove()
