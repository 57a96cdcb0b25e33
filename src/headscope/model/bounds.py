"""A config that describes far more than its checkpoint holds is refused while it is being built, not after.

Transformers builds what a config names before it looks at the weights, and fills with random numbers what the weights
lack. A damaged or hostile config so costs hours (two million layers) or all memory (a vocabulary of 2^31) before any
error. Such a model is refused anyway, since its weights are missing; here it is refused early.

    layers      at most `MOST_LAYERS`, by the config's file, before transformers lists them
    parameters  at most `MOST_PARAMETERS` tensors, counted as they are registered
    numbers     at most `SLACK` times those of the checkpoint, and `SPARE` more

`SLACK` leaves room for packed weights, eight numbers of 4 bits in one of 32, and for a tensor that is registered twice:
when it is built and when it is filled.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from headscope.errors import ModelError, brief

MOST_LAYERS = 10_000
MOST_PARAMETERS = 250_000
SLACK = 16
SPARE = 2**20
_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")


def refuse_endless(source: str, config: Mapping[str, Any]) -> None:
    """Raise if a config's file names more layers than any model has.

    Args:
        source: The model, for the error.
        config: The file as it is, parts of it nested.

    Raises:
        ModelError: with the key and its value.
    """
    for key, value in config.items():
        if key in _LAYERS and isinstance(value, (int, float)) and value > MOST_LAYERS:
            raise ModelError(
                f"the config of {source!r} says {key}={brief(value)}, and no model has more than {MOST_LAYERS:,} "
                "layers; use the config that belongs to the weights."
            )
        if isinstance(value, dict):
            refuse_endless(source, value)


@contextmanager
def bounded(source: str, numbers: int | None) -> Iterator[None]:
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
