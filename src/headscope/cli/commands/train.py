"""`headscope train`: train a small model and watch induction appear."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headscope.cli import options
from headscope.cli.following import suggest
from headscope.render.plain import say
from headscope.stopping import keeping

PLACE = 9
"""Place of the command in the help."""


def train(
    recipe: Annotated[str | None, typer.Option(help="copy, code, mixed or bigram.", show_default="copy")] = None,
    layers: Annotated[int | None, typer.Option(help="Layers; 1 cannot learn it.", show_default="2")] = None,
    heads: Annotated[int | None, typer.Option(help="Heads of each layer.", show_default="the recipe's")] = None,
    d_model: Annotated[int | None, typer.Option(help="Width.", show_default="the recipe's")] = None,
    positions: Annotated[
        str | None, typer.Option(help="rotary (a Llama) or learned (a GPT-2).", show_default="rotary")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights and batches.", show_default="0")] = None,
    steps: Annotated[int | None, typer.Option(help="Most steps to take.", show_default="the recipe's")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the run.", show_default="runs/RECIPE-N-layers-seed-N"),
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between two checkpoints.", show_default="25 or 50")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file with these options; those given here win.")] = None,
    as_json: options.JSON = False,
    device: Annotated[str | None, typer.Option(help="cpu or cuda:0.", show_default="GPU if any")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, or bfloat16 on CUDA.", show_default="float32")] = None,
) -> None:
    """Train a small model and watch induction appear. The same command goes on after it was stopped or killed.

    Example: `headscope train --recipe copy --out runs/copy`
    """
    given = {
        "recipe": recipe,
        "layers": layers,
        "heads": heads,
        "d_model": d_model,
        "positions": positions,
        "seed": seed,
        "steps": steps,
        "out": out,
        "checkpoint_every": checkpoint_every,
        "device": device,
        "dtype": dtype,
    }
    from headscope.cli.quiet import silence

    silence()
    from headscope.cli.live import Screen
    from headscope.training.config import read_config, train_config
    from headscope.training.watch import default_folder
    from headscope.training.watch import train as run

    settings: dict[str, Any] = {} if config is None else read_config(config)
    settings |= {name: value for name, value in given.items() if value is not None}
    folder = settings.pop("out", None)
    chosen = train_config(**settings)
    folder = default_folder(chosen) if folder is None else Path(folder)
    screen = Screen(chosen)

    def kept() -> str:
        screen.__exit__()
        return f"the same command goes on from the newest checkpoint in {folder}, if there is one."

    with keeping(kept), screen:
        found = run(**settings, out=folder, on_row=screen.row, on_step=screen.step)
    if as_json:
        say(found.to_json(), wrap=False)
        return
    say(found.learned)
    say(f"Checkpoints: {len(found.checkpoints)} in {found.out}, the last is {found.checkpoints[-1]}")
    suggest(["emergence", found.out], "when induction set in, with its interval")
