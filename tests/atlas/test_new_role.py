"""A further role is one file: the atlas, its document, the terminal and the mosaic take it without a change."""

from __future__ import annotations

import sys

import pytest

import headscope as hs
from headscope.errors import ArgumentError
from headscope.evidence.atlas import roles as folder
from headscope.evidence.atlas.terminal import print_atlas
from headscope.planted.known_roles import known_roles
from headscope.planted.role_heads import NTH_VALUE

FILE = f'''
"""Tenth token: attends to the token at position {NTH_VALUE}, and what it reads there matters."""

import numpy as np

from headscope.evidence.atlas.looking import on_repeats
from headscope.evidence.atlas.role import Role, Scored

AT = {NTH_VALUE}


def places(tokens):
    return np.asarray([[query, AT] for query in range(AT + 1, len(tokens))])


def score(runner):
    prompts = runner.probe.prompts
    found = runner.attention(prompts, {{"at": [places(one) for one in prompts]}})["at"]
    chance = np.mean([1 / (query + 1) for query, _ in places(prompts[0])])
    return Scored(heads=runner.heads, score=found, chance=np.full(len(runner.heads), chance))


def test(runner, scored, heads):
    return on_repeats(runner, dict.fromkeys(heads, places))


ROLE = Role(
    name="tenth_token",
    order=65,
    letter="#",
    colour="#225588",
    sentence="attends to the token at one position",
    look_alike="a head that looks there and reads nothing: only what it reads there is dropped",
    score=score,
    test=test,
)
'''


@pytest.fixture
def added(tmp_path, monkeypatch):
    (tmp_path / "tenth_token.py").write_text(FILE)
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
    folder.roles.cache_clear()
    yield
    sys.modules.pop(f"{folder.__name__}.tenth_token", None)
    folder.roles.cache_clear()


def test_a_role_is_added_by_one_file(added, capsys):
    built = known_roles(["nth_value", "induction"])
    atlas = hs.atlas(built.model, ["tenth_token", "induction"], n_prompts=6)
    assert [role.name for role in atlas.roles] == ["induction", "tenth_token"], "in the order of legends"
    scored = {one.head: one.outcome for one in atlas.findings if one.role == "tenth_token" and one.has_score}
    # It copies that token everywhere, which makes the second copy harder: needed with the other sign.
    assert scored == {built.heads["nth_value"]: "interferer"}
    assert hs.Atlas.from_dict(atlas.to_dict()) == atlas
    print_atlas(atlas)
    assert "tenth_token" in capsys.readouterr().out
    assert ">tenth token 1<" in hs.role_mosaic([atlas]).to_svg()


def test_without_the_file_it_is_unknown():
    with pytest.raises(ArgumentError, match="no role 'tenth_token'"):
        folder.named("tenth_token")
