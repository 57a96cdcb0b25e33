"""`headscope compare`: what changed between models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headscope.cli import options
from headscope.cli.files import check_out, save
from headscope.cli.following import suggest
from headscope.errors import ArgumentError
from headscope.render.plain import say

if TYPE_CHECKING:
    from headscope.evidence.compare.result import Comparison

PLACE = 5
"""Place of the command in the help."""


@options.opens("device", "allow_pickle", "trust_remote_code")
def compare(
    opening: options.Opening,
    models: Annotated[
        list[str], typer.Argument(metavar="A B [C ...]", help="`demo`, hub ids, folders; or one store of a sweep.")
    ],
    dtype: Annotated[
        list[str] | None, typer.Option("--dtype", help="auto, float32, ...: one for all models, or one for each.")
    ] = None,
    revision: Annotated[
        list[str] | None, typer.Option("--revision", help="On the hub: one for all models, or one for each.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Verify every model, and compare verdicts.")] = False,
    circuit: Annotated[bool, typer.Option("--circuit", help="Trace every model's circuit, and compare paths.")] = False,
    atlas: Annotated[
        bool, typer.Option("--atlas", help="Ask for every role of every model, and compare what heads hold: minutes.")
    ] = False,
    swap: Annotated[
        bool, typer.Option("--swap", help="Put heads of one into the other: which carry the difference in loss?")
    ] = False,
    n_prompts: Annotated[int | None, typer.Option(help="Random prompts that all models read; 32 by default.")] = None,
    period: Annotated[
        int | None, typer.Option(help="Length of the repeated run, at least 3; 50, or what fits all.")
    ] = None,
    top: Annotated[int, typer.Option(help="Changed heads to print.", min=1)] = 10,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write compare.json and compare.parquet here.")
    ] = None,
    as_json: options.JSON = False,
    seed: options.SEED = 0,
) -> None:
    """What changed between models: heads, roles, and which head is which.

    Example: `headscope compare demo demo --dtype float32 --dtype bfloat16`
    """
    from headscope.sweeps.store import is_store, open_store

    if len(models) == 1 and is_store(models[0]):
        wanted = {"verify": verify or None, "circuit": circuit or None, "atlas": atlas or None, "swap": swap or None}
        wanted |= {"dtype": dtype, "revision": revision, "n-prompts": n_prompts, "period": period, "seed": seed or None}
        if asked := [name for name, given in wanted.items() if given is not None]:
            raise ArgumentError(f"--{asked[0]} needs the models; a store holds scans: compare the models themselves.")
        check_out(out)
        _show(open_store(models[0]).compare(), top=top, out=out, as_json=as_json)
        return
    if len(models) < 2:
        raise ArgumentError(f"{len(models)} model was given; compare needs at least two, like: headscope compare A B.")
    if n_prompts is not None and n_prompts < 2:
        raise ArgumentError(f"--n-prompts {n_prompts}; differences need intervals, and an interval at least 2 prompts.")
    dtypes = _each("--dtype", dtype or ["auto"], models)
    revisions = _each("--revision", revision or [None], models)
    check_out(out)
    loaded = [
        replace(opening, model=model, dtype=number, revision=at).opened()
        for model, number, at in zip(models, dtypes, revisions, strict=True)
    ]
    from headscope.cli.progress import bars
    from headscope.evidence.compare.measure import compare as run
    from headscope.probes.repeated import N_PROMPTS

    with bars() as progress:
        found = run(
            *loaded,
            verify=verify,
            circuit=circuit,
            atlas=atlas,
            swap=swap,
            n_prompts=N_PROMPTS if n_prompts is None else n_prompts,
            period=period,
            seed=seed,
            progress=progress,
        )
    _show(found, top=top, out=out, as_json=as_json)
    if not as_json:
        first, second, *_ = models
        given = replace(opening, model=first, dtype=dtypes[0], revision=revisions[0]).words()
        swapped = ["compare", *models, "--swap"]
        live = ["explore", *given, "--against", second]
        suggest(
            *((live, "both on a prompt of yours") if swap else (swapped, "which heads carry the difference in loss"))
        )


def _show(found: Comparison, *, top: int, out: Path | None, as_json: bool) -> None:
    from headscope.evidence.compare.terminal import print_comparison

    saved = save(found, out)
    if as_json:
        say(found.to_json(), wrap=False)
        return
    print_comparison(found, top=top)
    if saved:
        say(f"Results: {saved[0]} and {saved[1]}")


def _each(option: str, given: list[Any], models: list[str]) -> list[Any]:
    if len(given) not in (1, len(models)):
        raise ArgumentError(f"{len(given)} of {option} for {len(models)} models; give one for all, or one for each.")
    return given * len(models) if len(given) == 1 else given
