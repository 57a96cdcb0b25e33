"""`headscope`: one file per command, and what happens to errors.

Exit codes: 0 it ran, or its reader had enough; 1 a defect of ours; 2 the user must change something (one line on
stderr).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from headscope import __version__
from headscope.cli.commands import commands
from headscope.errors import HeadscopeError
from headscope.render.plain import say, shown


class _Commands(TyperGroup):
    """Commands whose errors about arguments repeat them as text."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _plain_errors():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _plain_errors():
            return super().invoke(ctx)


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(message := getattr(error, "message", None), str):
            error.message = shown(message)  # type: ignore[attr-defined]
        raise


app: typer.Typer = typer.Typer(
    cls=_Commands,
    name="headscope",
    help="Find, verify and explain attention heads in any decoder-only language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in commands():
    app.command()(_command)


def _print_version(asked: bool) -> bool:
    if asked:
        say(f"headscope {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Find, verify and explain attention heads in any decoder-only language model."""


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        try:
            app()
        except SystemExit:
            sys.stdout.flush()  # the last that is written may find its reader gone, too
            raise
    except HeadscopeError as error:
        say(f"headscope: {error}", err=True)
        sys.exit(2)
    except BrokenPipeError:
        _reader_left()
    except SystemExit as end:
        # Typer and rich answer a reader that left, like `head -1`, with exit code 1, which here means a defect.
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        _reader_left()


def _reader_left() -> NoReturn:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
    sys.exit(0)
