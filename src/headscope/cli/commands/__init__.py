"""One file for each command: a function of the file's name, and `PLACE`, its place in the help."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules


def commands() -> list[Callable[..., None]]:
    """Every command of this folder, in the order of the help."""
    modules = [import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__)]
    modules.sort(key=lambda module: (module.PLACE, module.__name__))
    return [getattr(module, module.__name__.rpartition(".")[2]) for module in modules]
