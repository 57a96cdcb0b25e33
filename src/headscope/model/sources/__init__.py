"""Where models come from: one file for each kind of object, folder or file that can be opened.

A source has a function `found(given, options)`, which returns `Found`, or None for what is not its own, and `PLACE`:
sources are asked in that order. `module` comes last of those for objects, since every module is one of its own, and
`pretrained` last of those for names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headscope.model.backbone import Backbone


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a user says of a model that cannot be read off it."""

    forward: Callable[[Any], Any] | None = None
    """Logits [batch position vocabulary] of ids [batch position]."""
    max_tokens: int | None = None
    """Longest input."""
    device: str | None = None
    """Of a name: where its weights go, as `headscope.load` says."""
    dtype: str = "auto"
    """Of a name: the precision of its weights."""
    revision: str | None = None
    """Of a hub id: branch, tag or commit."""
    allow_pickle: bool = False
    """Of a name: whether weights may be pickles."""
    trust_remote_code: bool = False
    """Of a name: whether code that comes with it may run."""
    gguf_file: str | None = None
    """Of a folder or hub id: the file of GGUF in it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """A model that a source knows how to use."""

    backbone: Backbone
    """The module that runs, and how."""
    tokenizer: Any | None
    """The tokenizer that came with it."""
    name: str
    """What results call it."""
    revision: str | None = None
    """Commit of the hub repository, where it is known."""


def find(given: Any, options: Options) -> Found | None:
    """How to use an object, or what a name leads to; None if it is neither a model nor a name.

    Raises:
        ModelError: what a name leads to cannot be opened.
        ArgumentError: an object that holds no model, or more than one.
        UnsupportedModel: a module that does not give logits for token ids.
    """
    for source in _sources():
        found = source.found(given, options)
        if found is not None:
            return found
    return None


@cache
def _sources() -> list[Any]:
    """Every file of this folder, in the order in which they are asked."""
    modules = [import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__)]
    return sorted(modules, key=lambda source: (source.PLACE, source.__name__))
