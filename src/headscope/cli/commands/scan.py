"""`headscope scan`: which head attends like what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headscope.cli import options
from headscope.cli.files import check_out, read_text, read_token_lists, save
from headscope.cli.following import suggest
from headscope.errors import ArgumentError
from headscope.render.plain import say

if TYPE_CHECKING:
    from headscope.model.load import Model
    from headscope.probes import Probe

PLACE = 1
"""Place of the command in the help."""


@options.opens()
def scan(
    opening: options.Opening,
    text: Annotated[Path | None, typer.Option(help="Read this text file instead of random tokens.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="Read these token ids: a JSON list of lists.")] = None,
    n_prompts: Annotated[int | None, typer.Option(help="Random prompts to draw.", show_default="32")] = None,
    period: Annotated[
        int | None, typer.Option(help="Length of the repeated run, at least 3; by default 50, or what fits.")
    ] = None,
    n_repeats: Annotated[int | None, typer.Option(help="Copies of the run, at least 2.", show_default="2")] = None,
    jitter: Annotated[
        bool | None,
        typer.Option(
            "--jitter/--no-jitter", help="Vary prefix, period and gap; without it [BOS, r, r].", show_default="jitter"
        ),
    ] = None,
    precision: Annotated[float | None, typer.Option(help="Draw until every interval is mean ± this.")] = None,
    detectors: Annotated[list[str] | None, typer.Option("--detector", help="Only this role; repeat it.")] = None,
    top: Annotated[int, typer.Option(help="Heads to print for each role.", min=1)] = 8,
    heatmap: Annotated[bool, typer.Option("--heatmap", help="Also print layer x head maps.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write scan.json and scan.parquet here.")] = None,
    as_json: options.JSON = False,
    seed: options.SEED = 0,
) -> None:
    """Which head attends like what: every head, every role, with intervals and controls.

    Example: `headscope scan demo --heatmap --out results/demo`
    """
    check_out(out)
    drawn: dict[str, Any] = {"n_prompts": n_prompts, "period": period, "n_repeats": n_repeats, "jitter": jitter}
    if text is not None or tokens is not None:
        _refuse({**drawn, "precision": precision, "seed": seed or None}, "--tokens" if text is None else "--text")
    loaded = opening.opened()
    from headscope.cli.progress import bar
    from headscope.evidence.scan.measure import scan as run
    from headscope.probes import repeated_tokens

    probe = _given(loaded, text, tokens)
    if probe is None:
        probe = repeated_tokens(loaded, **{name: one for name, one in drawn.items() if one is not None}, seed=seed)
    with bar("scanning") as progress:
        result = run(loaded, probe=probe, detectors=detectors, precision=precision, progress=progress)
    saved = save(result, out)
    if as_json:
        say(result.to_json(), wrap=False)
        return
    from headscope.evidence.scan.terminal import print_scan

    print_scan(result, top=top, heatmap=heatmap)
    if saved:
        say(f"Results: {saved[0]} and {saved[1]}")
    suggest(["verify", *opening.words()], "which of them matter")


def _refuse(drawn: dict[str, Any], own: str) -> None:
    """Options of random prompts change nothing where the user's own are read."""
    if given := [name.replace("_", "-") for name, one in drawn.items() if one is not None]:
        raise ArgumentError(f"--{given[0]} is for random prompts, and {own} reads yours; leave one of them out.")


def _given(model: Model, text: Path | None, tokens: Path | None) -> Probe | None:
    """The probe in the user's files, if there is one."""
    from headscope.probes import probe_text, probe_tokens

    if text is not None and tokens is not None:
        raise ArgumentError("--text and --tokens were both given; a scan reads one of them.")
    if text is not None:
        return probe_text(model, read_text(text))
    if tokens is not None:
        return probe_tokens(read_token_lists(tokens))
    return None
