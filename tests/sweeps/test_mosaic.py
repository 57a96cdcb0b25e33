"""The mosaic: every model of a store once, in order, on one scale."""

from __future__ import annotations

import json
import re
import struct
from xml.etree import ElementTree

import pytest

import headscope as hs
from headscope.errors import ArgumentError, NonFiniteError
from headscope.evidence.kinds import sweepable
from headscope.render.theme import shade
from headscope.sweeps.plan import Job
from headscope.sweeps.run import Failure, Outcome, failed
from headscope.sweeps.store import Store

SVG = "{http://www.w3.org/2000/svg}"


def put(store, model, shape, *, family="llama", size=1000, revision=None, score=0.1, content="c", finished="1", seed=0):
    """A scan in which head (l, h) scores `score`, but the last of the last layer 0.9."""
    n_layers, n_heads = shape
    settings = sweepable()["scan"].settings | {"seed": seed}
    job = Job(
        model=model,
        revision=revision,
        content=f"{content} {model} {revision}",
        what="scan",
        settings=settings,
        dtype="auto",
    )
    rows = [
        {"layer": layer, "head": head, "call": 0, "detector": role, "mean": mean}
        for layer in range(n_layers)
        for head in range(n_heads)
        for role, mean in (
            ("induction", 0.9 if (layer, head) == (n_layers - 1, n_heads - 1) else score),
            ("previous_token", 0.2),
        )
        if not (layer == 0 and head == 1)  # a place without a head
    ]
    about = {"family": family, "n_parameters": size, "n_layers": n_layers, "n_heads": n_heads}
    store.put(Outcome(job=job, about=about | {"support": "exact", "finished": finished}, rows=rows))


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "store", create=True)
    put(made, "org/big", (4, 3), size=2_000_000)
    put(made, "org/small", (2, 2), revision="step1000")
    put(made, "org/small", (2, 2), revision="step512")
    put(made, "other", (3, 2), family="gpt2", size=5_000_000_000)
    bad = Job(
        model="x/broken", revision="v1", content="c", what="scan", settings=sweepable()["scan"].settings, dtype="auto"
    )
    made.put(failed(bad, Failure.of(NonFiniteError("why"))))
    return made


def test_models_stand_by_family_size_and_revision(store):
    found = hs.mosaic(store)
    assert [tile.name for tile in found.tiles] == ["other", "small @step512", "small @step1000", "big"]
    assert found.failed == ("x/broken@v1",)


def test_a_tile_holds_every_head_and_names_the_best(store):
    big = hs.mosaic(store.path).tiles[-1]
    assert big.values == ((0.1, None, 0.1), (0.1, 0.1, 0.1), (0.1, 0.1, 0.1), (0.1, 0.1, 0.9))
    assert (str(big.best), big.n_parameters, big.probe["n_prompts"]) == ("L3H2", 2_000_000, 32)
    assert hs.mosaic(store, detector="previous_token").tiles[-1].values[1] == (0.2, 0.2, 0.2)


def test_of_several_scans_of_one_model_the_latest_is_shown(store):
    put(store, "other", (3, 2), family="gpt2", score=0.3, finished="2", content="d")
    put(store, "other", (3, 2), family="gpt2", score=0.5, finished="0", content="e")
    (tile,) = (one for one in hs.mosaic(store).tiles if one.model == "other")
    assert tile.values[1][0] == 0.3


def test_the_document(store):
    document = json.loads(hs.mosaic(store, by_depth=True).to_json())
    assert (document["schema"], document["detector"], document["by_depth"]) == ("headscope.mosaic/1", "induction", True)
    assert document["tiles"][-1].items() >= {"model": "org/big", "n_layers": 4, "best": {"layer": 3, "head": 2}}.items()


def boxes(svg):
    """(x, y, width, height, fill) of each cell, by its note."""
    return [
        (
            *(float(box.get(name)) for name in ("x", "y", "width", "height")),
            box.get("fill"),
            box.findtext(f"{SVG}title"),
        )
        for box in ElementTree.fromstring(svg).iter(f"{SVG}rect")
        if box.find(f"{SVG}title") is not None
    ]


def test_the_picture_shows_each_head_in_the_shared_colours(store):
    cells = boxes(hs.mosaic(store).to_svg())
    assert len(cells) == (4 * 3 - 1) + 2 * (2 * 2 - 1) + (3 * 2 - 1)
    assert {(fill, note.split()[-1]) for *_, fill, note in cells} == {(shade(0.1), "0.10"), (shade(0.9), "0.90")}
    # Layers downward, heads to the right: the best head of each map stands last.
    assert sum(fill == shade(0.9) for *_, fill, _ in cells) == 4


def test_by_depth_every_map_has_one_height(store):
    def heights(svg):
        high = {}
        for x, y, _, height, _, _ in boxes(svg):
            column = int(x // 182)
            low, top = high.get((column, y // 300), (1e9, 0.0))
            high[column, y // 300] = min(low, y), max(top, y + height)
        return [round(top - low) for low, top in high.values()]

    assert len(set(heights(hs.mosaic(store, by_depth=True).to_svg()))) == 1
    assert len(set(heights(hs.mosaic(store).to_svg()))) > 1


def test_heads_of_one_shade_are_drawn_as_one_where_cells_are_small(tmp_path):
    made = Store(tmp_path / "wide", create=True)
    put(made, "wide", (2, 64))
    cells = boxes(hs.mosaic(made).to_svg())
    # Layer 0: a head, a gap, 62 heads. Layer 1: 63 heads alike, then the best.
    assert [note for *_, note in cells] == ["L0H0 0.10", "L0H2 to H63 0.10", "L1H0 to H62 0.10", "L1H63 0.90"]


def test_names_are_text(tmp_path):
    made = Store(tmp_path / "odd", create=True)
    put(made, "evil/<script>alert(1)</script>&", (2, 2), revision='"><b>', family="<i>")
    svg = hs.mosaic(made).to_svg()
    ElementTree.fromstring(svg)
    assert "<script" not in svg
    assert "<b>" not in svg


def test_different_probes_are_pointed_out(store):
    assert "different probes" not in hs.mosaic(store).to_svg()
    put(store, "other2", (3, 2), seed=1)
    assert "These scans read 2 different probes; scores compare on the same probe only." in hs.mosaic(store).to_svg()


def test_saving_by_the_ending(store, tmp_path):
    found = hs.mosaic(store)
    assert found.save(tmp_path / "new" / "m.svg").read_text().startswith("<svg")
    assert json.loads(found.save(tmp_path / "m.json").read_text()) == json.loads(found.to_json())
    png = found.save(tmp_path / "m.png").read_bytes()
    width, height = struct.unpack(">II", png[16:24])
    page = float(re.search(r'viewBox="0 0 1120 (\d+)"', found.to_svg())[1])
    assert (width, height) == (2240, pytest.approx(2 * page, abs=2))
    with pytest.raises(ArgumentError, match=r"end it in .svg, .png"):
        found.save(tmp_path / "m.pdf")


def test_a_role_that_was_not_scanned_is_told(store, tmp_path):
    with pytest.raises(ArgumentError, match="no scan of 'copying'; it has induction, previous_token"):
        hs.mosaic(store, detector="copying")
    with pytest.raises(ArgumentError, match="it has no scan at all"):
        hs.mosaic(Store(tmp_path / "empty", create=True))
