"""Opening a model from the command line: other libraries' chatter stays off the terminal."""

from __future__ import annotations

import warnings
from logging import ERROR, getLogger


def silence() -> None:
    """Silence transformers' log and bars and Python's warnings; errors still come through."""
    warnings.simplefilter("ignore")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    getLogger("huggingface_hub").setLevel(ERROR)
