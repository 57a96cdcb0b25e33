"""`headscope sweep`: many models into one store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headscope.cli import options
from headscope.cli.following import suggest
from headscope.errors import ArgumentError
from headscope.render.plain import say
from headscope.stopping import keeping

if TYPE_CHECKING:
    from headscope.sweeps.sweep import Sweep

PLACE = 6
"""Place of the command in the help."""


@options.opens("device", "dtype", "allow_pickle", "trust_remote_code")
def sweep(
    opening: options.Opening,
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODELS]...", help="`demo`, hub ids, or folders; ID@REVISION too.", show_default=False),
    ] = None,
    store: Annotated[str, typer.Option(help="Folder or URL that keeps the results.")] = "sweep",
    wanted: Annotated[
        Path | None, typer.Option("--from", help="More models: text, one on each line, or a TOML plan.")
    ] = None,
    revisions: Annotated[
        list[str] | None, typer.Option("--revision", help="Of every hub model that names none; repeat it.")
    ] = None,
    what: Annotated[list[str] | None, typer.Option(help="scan (default), verify, circuit, icl; repeat it.")] = None,
    n_prompts: Annotated[int | None, typer.Option(help="Random prompts to draw, for every kind.")] = None,
    period: Annotated[int | None, typer.Option(help="Length of the repeated run, for every kind.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the random tokens, 0 by default.")] = None,
    engine: Annotated[str, typer.Option(help="inline, or ray.")] = "inline",
    address: Annotated[str | None, typer.Option(help="A running Ray cluster; else Ray is started here.")] = None,
    cpus_per_job: Annotated[
        float | None, typer.Option(help="CPUs, and threads, of each job on Ray.", show_default="1")
    ] = None,
    gpus_per_job: Annotated[float | None, typer.Option(help="GPUs of each job on Ray.", show_default="0")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try jobs again that failed before.")] = False,
    as_json: options.JSON = False,
) -> None:
    """Many models: every result into one store, which the same command goes on filling.

    Example: `headscope sweep gpt2 EleutherAI/pythia-70m@step1000 --store results/sweep --what scan --what icl`
    """
    from headscope.cli.progress import bar
    from headscope.cli.quiet import silence
    from headscope.evidence.kinds import sweepable
    from headscope.sweeps.plan import Wanted, read_wanted

    of_ray = {"--address": address, "--cpus-per-job": cpus_per_job, "--gpus-per-job": gpus_per_job}
    if engine == "inline" and (given := [name for name, one in of_ray.items() if one is not None]):
        raise ArgumentError(
            f"{given[0]} is an option of Ray, and the jobs run in this process; add --engine ray or leave it out."
        )
    asked = read_wanted(wanted) if wanted is not None else Wanted(settings={})
    kinds = what or list(asked.what) or ["scan"]
    settings: dict[str, dict[str, Any]] = {kind: dict(values) for kind, values in asked.settings.items()}
    for name, value in (("n_prompts", n_prompts), ("period", period), ("seed", seed)):
        for kind in kinds if value is not None else ():
            if kind in sweepable() and name in sweepable()[kind].settings:
                settings.setdefault(kind, {})[name] = value
    silence()
    from headscope.sweeps.sweep import sweep as run

    done = total = 0
    with bar("sweeping") as draw:

        def progress(now: int, of: int) -> None:
            nonlocal done, total
            done, total = now, of
            draw(now, of)

        def kept() -> str:
            jobs = f"{done} of {total} jobs were" if total else "no job was"
            return f"{jobs} finished in this run; what is done is in {store}, and the same command goes on from there."

        with keeping(kept):
            result = run(
                [*(models or []), *asked.models],
                store,
                what=kinds,
                revisions=revisions or (),
                settings=settings,
                engine=engine,
                address=address,
                cpus_per_job=1 if cpus_per_job is None else cpus_per_job,
                gpus_per_job=gpus_per_job or 0,
                retry_failed=retry_failed,
                **opening.settings("revision", "gguf_file"),
                progress=progress,
            )
    if as_json:
        say(result.to_json(), wrap=False)
    else:
        say(f"{result.planned} jobs: {result.done} done, {result.skipped} skipped, {result.failed} failed")
        say(f"Store: {result.store}")
        suggest(["mosaic", result.store], "every model's map, side by side")
    _list_damage(result)
    _list_failures(result)


def _list_damage(result: Sweep) -> None:
    for one in result.damaged:
        say(f"damaged: {one.name}: {one.why}", err=True)
    if result.damaged:
        noun = "file was" if len(result.damaged) == 1 else "files were"
        say(f"{len(result.damaged)} damaged {noun} set aside in {result.store}/damaged.", err=True)


def _list_failures(result: Sweep) -> None:
    for one in result.failures:
        name = f"{one.model}@{one.revision}" if one.revision else one.model
        say(f"failed: {one.what} of {name}: {one.reason} [traceback {one.traceback}]", err=True)
    if result.failures:
        say("--retry-failed tries them again.", err=True)
