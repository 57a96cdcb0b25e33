"""Options that commands share: which model, how it is opened, the seed, JSON."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from headscope.model.load import Model

MODEL = Annotated[
    str,
    typer.Argument(
        metavar="[MODEL]", help="`demo`, a hub id, a folder, or a file of GGUF or nanoGPT.", show_default=False
    ),
]
JSON = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
SEED = Annotated[int, typer.Option(help="Seed of the random tokens.")]
NO_SEED = Annotated[int, typer.Option("--seed", hidden=True)]
"""Taken by commands that draw nothing, so that one set of options fits all commands."""
BEHAVIOR = Annotated[
    list[Path] | None,
    typer.Option("--behavior", help="Show a behaviour too: what `headscope behavior --out` wrote; repeat it."),
]
_OPENING: dict[str, tuple[Any, Any]] = {
    "model": (MODEL, "demo"),
    "device": (
        Annotated[
            str | None, typer.Option(help="cpu, cuda:0, or auto to spread a large model.", show_default="GPU if any")
        ],
        None,
    ),
    "dtype": (Annotated[str, typer.Option(help="auto, float32, float64, float16 or bfloat16.")], "auto"),
    "revision": (Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")], None),
    "allow_pickle": (
        Annotated[bool, typer.Option("--allow-pickle", help="Also load pickled weights, which can run code.")],
        False,
    ),
    "trust_remote_code": (
        Annotated[bool, typer.Option("--trust-remote-code", help="Run model code the repository brings.")],
        False,
    ),
    "gguf_file": (
        Annotated[str | None, typer.Option(help="Open this GGUF file of the folder or hub repository.")],
        None,
    ),
}
"""Each option's type and default, by the name of its field in `Opening`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """The model that a command was given, and how to open it."""

    model: str = "demo"
    """Its name."""
    device: str | None
    """As `headscope.load` takes it, like all that follow."""
    dtype: str = "auto"
    """Precision."""
    revision: str | None = None
    """Of a hub model."""
    allow_pickle: bool
    """Pickled weights too."""
    trust_remote_code: bool
    """Model code of the repository too."""
    gguf_file: str | None = None
    """Of a folder or hub repository."""

    def settings(self, *without: str) -> dict[str, Any]:
        """The options by name, but for the model's own name and those left out."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("model", *without)}

    def words(self) -> list[str]:
        """The model and the options that were given, as they are typed."""
        given = [(one.name, getattr(self, one.name)) for one in fields(self) if one.name != "model"]
        changed = [(name, value) for name, value in given if value not in (None, False) and value != _OPENING[name][1]]
        options = [[f"--{name.replace('_', '-')}", *([] if value is True else [value])] for name, value in changed]
        return [self.model, *(word for option in options for word in option)]

    def opened(self) -> Model:
        """`headscope.load` in a quiet process; meanwhile a terminal says what is being opened."""
        from headscope.cli.progress import meanwhile
        from headscope.cli.quiet import silence

        with meanwhile(f"opening {self.model} ..."):
            silence()
            from headscope.model.load import load

            return load(self.model, **self.settings())


def opens(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options that open a model, as its argument `opening`, an `Opening`.

    Args:
        names: The fields of `Opening` that are options of this command; all of them by default.
    """
    added = [name for name in _OPENING if not names or name in names]

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        own = [one for one in inspect.signature(command, eval_str=True).parameters.values() if one.name != "opening"]
        options = [
            inspect.Parameter(
                name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=_OPENING[name][0], default=_OPENING[name][1]
            )
            for name in added
        ]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            opening = Opening(**{name: given.pop(name) for name in added})
            command(opening=opening, **given)

        required = [one for one in own if one.default is inspect.Parameter.empty]
        others = [one for one in own if one.default is not inspect.Parameter.empty]
        first = [one for one in options if one.name == "model"]
        rest = [one for one in options if one.name != "model"]
        run.__signature__ = inspect.Signature([*required, *first, *others, *rest])  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in [*required, *first, *others, *rest]}
        del run.__wrapped__  # typer would read the command's own signature
        return run

    return decorated
