"""`headscope`: one file per command, and what happens to errors.

Exit codes: 0 it ran, or its reader had enough; 1 a defect of ours; 2 the user must change something (one line on
stderr).
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from headscope import __version__
from headscope.cli.commands import commands
from headscope.errors import HeadscopeError

app: typer.Typer = typer.Typer(
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
        print(f"headscope {__version__}")
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
        print(f"headscope: {error}", file=sys.stderr)
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
