"""`headscope explore`: the report's page, live on your own prompt."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from typing import Annotated

import typer

from headscope.cli import options
from headscope.errors import ArgumentError
from headscope.render.plain import say

PLACE = 5
"""Place of the command in the help."""


@options.opens()
def explore(
    opening: options.Opening,
    port: Annotated[
        int, typer.Option(help="Port of 127.0.0.1 to listen on.", min=0, max=65535, show_default="a free one")
    ] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page, where stdout is a terminal.")
    ] = True,
    against: Annotated[
        str | None, typer.Option(help="A second model of the same vocabulary, opened alike: it reads every prompt too.")
    ] = None,
    behavior: options.BEHAVIOR = None,
    as_json: Annotated[bool, typer.Option("--json", help="The address as one JSON document on stdout.")] = False,
    seed: options.SEED = 0,
) -> None:
    """The report's page, live on your own prompt: switch heads off and watch the prediction.

    Serves this machine alone until Ctrl-C. The address that it prints holds a secret: who has it can use the page.

    Example: `headscope explore demo --no-browser`
    """
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ArgumentError(
            f"headscope explore needs {' and '.join(missing)}; install the extra: pip install 'headscope[explore]'."
        )
    loaded = opening.opened()
    second = None if against is None else replace(opening, model=against, revision=None, gguf_file=None).opened()
    from headscope.evidence.behavior.result import BehaviorResult
    from headscope.explore.server import SCHEMA, serve

    behaviors = [BehaviorResult.load(one) for one in behavior or ()]

    def announce(address: str) -> None:
        if as_json:
            text = json.dumps({"schema": SCHEMA, "model": loaded.id, "address": address})
        else:
            text = f"{loaded.id}: {address}\nCtrl-C stops it."
        say(text, flush=True, wrap=not as_json)
        if browser and sys.stdout.isatty():
            import webbrowser

            webbrowser.open(address)

    serve(loaded, port=port, seed=seed, behavior=behaviors, against=second, announce=announce)
