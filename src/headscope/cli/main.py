"""`headscope`: one file per command, and what happens to errors.

Exit codes: 0 it ran, or its reader had enough; 1 a defect of ours; 2 the user must change something (one line on
stderr), the system included: a full disk, a closed stdout, a folder that is gone; 130 Ctrl-C,
which `headscope.stopping` hears.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from headscope import __version__
from headscope.cli.commands import commands
from headscope.errors import HeadscopeError, brief, clipped
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
def _plain_errors() -> Generator[None, None, None]:
    try:
        yield
    except Exception as error:  # click's and typer's errors, whose classes typer may bring itself; it goes on
        if isinstance(message := getattr(error, "message", None), str):
            error.message = clipped(shown(message))  # type: ignore[attr-defined]
        raise


app: typer.Typer = typer.Typer(
    cls=_Commands,
    name="headscope",
    help="Find, verify and explain attention heads in any decoder-only language model.",
    no_args_is_help=True,
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
    _open_streams()
    try:
        try:
            app()
        except SystemExit:
            sys.stdout.flush()  # the last that is written may find its reader gone, too
            raise
    except HeadscopeError as error:
        say(f"headscope: {clipped(str(error))}", err=True)
        sys.exit(2)
    except BrokenPipeError:
        _silence()
        sys.exit(0)
    except OSError as error:
        _silence()
        say(f"headscope: {_refused(error)}", err=True)
        sys.exit(2)
    except SystemExit as end:
        # Typer and rich answer a reader that left, like `head -1`, with exit code 1, which here means a defect.
        if isinstance(end.__context__, BrokenPipeError):
            _silence()
            sys.exit(0)
        raise


def _open_streams() -> None:
    """Refuse a closed stdout; what a stream cannot write, like a line of boxes on an ASCII terminal, as escapes."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        say("headscope: stdout is closed, so no result could be shown; send it somewhere, like > /dev/null.", err=True)
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _refused(error: OSError) -> str:
    """What the system refused, and what to do."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return "the working folder is no longer there; go to another with cd, and run this again."
    where = "" if error.filename is None else f"{brief(repr(error.filename))}: "
    what = error.strerror or brief(error)
    return f"{where}{what}; fix that and run this again. What was saved before is kept."


def _silence() -> None:
    """What is still to be written to stdout goes nowhere, or the interpreter complains at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
