"""Options that every command shares."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MODEL = Annotated[str, typer.Argument(metavar="[MODEL]", help="`demo`, a hub id, or a folder.", show_default=False)]
JSON = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
SEED = Annotated[int, typer.Option(help="Seed of the random tokens.")]
DEVICE = Annotated[
    str | None, typer.Option(help="cpu, cuda:0, or auto to spread a large model.", show_default="GPU if any")
]
DTYPE = Annotated[str, typer.Option(help="auto, float32, float64, float16 or bfloat16.")]
REVISION = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]
ALLOW_PICKLE = Annotated[bool, typer.Option("--allow-pickle", help="Also load pickled weights, which can run code.")]
TRUST_REMOTE_CODE = Annotated[bool, typer.Option("--trust-remote-code", help="Run model code the repository brings.")]
BEHAVIOR = Annotated[
    list[Path] | None,
    typer.Option("--behavior", help="Show a behaviour too: what `headscope behavior --out` wrote; repeat it."),
]
