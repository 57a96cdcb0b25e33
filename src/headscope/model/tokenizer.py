"""What a model's tokenizer raises, as an error of ours.

The tokenizers library ends in a panic where its files contradict themselves, and a panic is a BaseException: it passes
every `except Exception`, and would end a sweep or a server for one model's sake.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from headscope.errors import HeadscopeError, TokenError, brief

if TYPE_CHECKING:
    from headscope.model.model import Model


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust ended in a panic; its class cannot be imported."""
    return type(error).__name__ == "PanicException"


@contextmanager
def tokenizing(model_id: str) -> Generator[None, None, None]:
    """Whatever a tokenizer raises in the block becomes a TokenError.

    Raises:
        TokenError: the tokenizer failed.
    """
    try:
        yield
    except (HeadscopeError, MemoryError):
        raise
    except BaseException as error:  # a tokenizer may be code of the model's own, or panic in Rust
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        raise TokenError(
            f"the tokenizer of {model_id} fails on this text ({type(error).__name__}: {brief(error)}); fix its files, "
            "or give token ids."
        ) from error


def token_text(model: Model, token: int) -> str | None:
    """A token as the tokenizer shows it; None without one."""
    if model.tokenizer is None:
        return None
    with tokenizing(model.id):
        return str(model.tokenizer.decode([token]))
