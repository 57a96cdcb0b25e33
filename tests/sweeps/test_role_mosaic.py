"""The mosaic by role: every head of every atlas once, in the colour and with the letter of its role."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from xml.etree import ElementTree

import pytest

import headscope as hs
from headscope.errors import ArgumentError
from headscope.evidence.atlas.roles import roles
from headscope.planted.known_roles import known_roles
from headscope.render.theme import LIGHT

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def planted():
    built = known_roles(["induction"])
    return hs.atlas(built.model, ["induction", "previous_token"], n_prompts=4), built.heads


def as_named(atlas, name, **changes):
    return replace(atlas, model=replace(atlas.model, id=name), **changes)


def cells(svg):
    """(fill, note) of every box that has a note."""
    boxes = ElementTree.fromstring(svg).iter(f"{SVG}rect")
    return [(box.get("fill"), box.findtext(f"{SVG}title")) for box in boxes if box.find(f"{SVG}title") is not None]


def test_every_head_stands_once_in_the_colour_of_its_strongest_role(planted):
    atlas, heads = planted
    made = hs.role_mosaic([atlas])
    shown = dict(cells(made.to_svg())[at][::-1] for at in range(len(atlas.heads)))
    assert len(cells(made.to_svg())) == len(shown) == len(atlas.heads) == 12
    assert shown[f"{heads['induction']} induction"] == roles()["induction"].colour
    assert shown[f"{heads['previous_token']} previous token"] == roles()["previous_token"].colour
    assert Counter(shown.values())[LIGHT.empty] == 10
    words = [one.text for one in ElementTree.fromstring(made.to_svg()).iter(f"{SVG}text")]
    assert {"induction 1", "previous token 1", "no role 10"} <= set(words)
    assert Counter(words)["I"] == Counter(words)["P"] == 2, "one in the key, one on the map"


def test_a_head_that_matters_without_a_role_stands_out(planted):
    atlas, heads = planted
    unexplained = tuple(
        replace(one, strongest=None, status="unexplained") if one.head == heads["induction"] else one
        for one in atlas.heads
    )
    svg = hs.role_mosaic([replace(atlas, heads=unexplained)]).to_svg()
    assert (LIGHT.mark, f"{heads['induction']} unexplained") in cells(svg)
    assert ">unexplained 1<" in svg


def test_a_quick_atlas_shows_the_role_with_the_best_score_and_says_so(planted):
    atlas, heads = planted
    untested = tuple(replace(one, strongest=None) for one in atlas.heads)
    made = hs.role_mosaic([replace(atlas, quick=True, heads=untested), as_named(atlas, "another")])
    of = {cell.head: cell.role for cell in made.tiles[1].cells}
    assert of[heads["induction"]] == "induction"
    assert of[heads["previous_token"]] == "previous_token"
    assert "by score alone" in made.to_svg()
    assert "Maps by score alone show what heads look at" in made.to_svg()


def test_what_sets_atlases_apart_is_said(planted):
    atlas, _ = planted
    assert "These atlases" not in hs.role_mosaic([atlas, as_named(atlas, "b")]).to_svg()
    fewer = as_named(atlas, "b", roles=atlas.roles[:1], settings={"n_prompts": 8, "seed": 1})
    svg = hs.role_mosaic([atlas, fewer]).to_svg()
    assert "These atlases were not asked for the same roles" in svg
    assert "These atlases read different prompts." in svg


def test_a_folder_of_atlases_is_read_and_written_by_the_ending(planted, tmp_path):
    atlas, _ = planted
    for name in ("b", "a"):
        as_named(atlas, name).save(tmp_path / "results" / name)
    made = hs.role_mosaic(tmp_path / "results", by_depth=True)
    assert [tile.name for tile in made.tiles] == ["a", "b"]
    assert made.tiles == hs.role_mosaic([as_named(atlas, name) for name in ("a", "b")]).tiles
    document = json.loads(made.save(tmp_path / "m.json").read_text())
    assert (document["schema"], document["by_depth"]) == ("headscope.role_mosaic/1", True)
    assert made.save(tmp_path / "m.svg").read_text().startswith("<svg")
    assert made.save(tmp_path / "m.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ArgumentError, match=r"end it in .svg, .png or .json"):
        made.save(tmp_path / "m.html")
    with pytest.raises(ArgumentError, match="holds no atlas; give a folder with results of `headscope atlas --out`"):
        hs.role_mosaic(tmp_path / "nothing")


def test_names_are_text(planted):
    atlas, _ = planted
    svg = hs.role_mosaic([as_named(atlas, "<script>&")]).to_svg()
    assert "<script" not in svg
    ElementTree.fromstring(svg)
