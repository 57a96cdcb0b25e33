"""`headscope mosaic`: the maps of all models of a store, or of a folder of atlases by role."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli.files import check_out, saving
from headscope.cli.following import suggest
from headscope.render.plain import say

PLACE = 8
"""Place of the command in the help."""


def mosaic(
    store: Annotated[
        str, typer.Argument(help="Folder or URL that a sweep filled; with --by-role a folder of atlases.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="What to write: .svg, .png, .html or .json.", show_default="mosaic.svg"),
    ] = None,
    detector: Annotated[
        str | None, typer.Option(help="Which role to show.", show_default="induction", metavar="ROLE")
    ] = None,
    by_role: Annotated[
        bool, typer.Option("--by-role", help="Each head in the colour of its strongest role, from atlases.")
    ] = False,
    by_depth: Annotated[bool, typer.Option("--by-depth", help="Place layers by relative depth.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout; a picture only with --out.")
    ] = False,
) -> None:
    """The layer x head map of every model of a store, side by side, by family and size.

    With --by-role: of every atlas in a folder, each head in the colour of its strongest role.

    Example: `headscope mosaic results/sweep -o results/mosaic.svg --by-depth`
    """
    from headscope.errors import ArgumentError
    from headscope.sweeps.mosaic import mosaic as run
    from headscope.sweeps.mosaic import roles
    from headscope.sweeps.role_mosaic import RoleMosaic, role_mosaic

    if by_role and detector is not None:
        raise ArgumentError("--by-role shows every role; leave out --detector.")
    detector = detector or "induction"
    path = out if out is not None else Path("mosaic.svg")
    if out is not None or not as_json:
        check_out(path, file=True)
    if by_role:
        found = role_mosaic(store, by_depth=by_depth)
    else:
        found = run(store, detector=detector, by_depth=by_depth)
    if as_json:
        say(found.to_json(), wrap=False)
        if out is None:
            return
    with saving(path):
        if isinstance(found, RoleMosaic):
            found.save(path)
        else:
            others = [role for role in roles(store) if role != detector] if path.suffix == ".html" else []
            found.save(path, others=[run(store, detector=role, by_depth=by_depth) for role in others])
    if not as_json:
        say(f"Mosaic: {path} ({len(found.tiles)} shown)")
        for name in () if isinstance(found, RoleMosaic) else found.failed:
            say(f"not shown, since its scan failed: {name}")
        if not by_role:
            suggest(["compare", store], "which models are alike, and what differs")
