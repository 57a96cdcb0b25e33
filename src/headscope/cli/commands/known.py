"""`headscope known`: heads that others have published, and whether an atlas agrees."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from headscope.cli import options
from headscope.cli.following import suggest
from headscope.render.plain import say

PLACE = 4
"""Place of the command in the help."""


def known(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A hub id, a model's folder, or what `headscope atlas --out` wrote, which is compared.",
            show_default="all lists",
        ),
    ] = None,
    as_json: options.JSON = False,
) -> None:
    """Heads that others have published, with their sources; for an atlas, whether it agrees.

    Example: `headscope known gpt2`
    """
    from headscope.evidence.known.agreement import known as published
    from headscope.records.codec import encode

    found = published(model)
    if as_json:
        say(json.dumps([encode(one) for one in found], indent=1), wrap=False)
        return
    from headscope.evidence.known.terminal import print_known

    print_known(found)
    if all(one.agreement == "not_tested" for one in found):
        suggest(["atlas", model or "demo", "--out", "results"], "whether the model's own heads agree")
