"""Opening a model from the command line: other libraries' chatter stays off the terminal."""

from __future__ import annotations

import warnings
from logging import ERROR, getLogger
from typing import Any


def hush() -> None:
    """Silence transformers' log and bars and Python's warnings; errors still come through."""
    warnings.simplefilter("ignore")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    getLogger("huggingface_hub").setLevel(ERROR)


def opened(model: str, **options: Any) -> Any:
    """`headscope.load` in a quiet process."""
    hush()
    from headscope.model.load import load

    return load(model, **options)
