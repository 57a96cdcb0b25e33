"""`headscope verify`: its document is the API's, its options reach it, its table says what was found."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import headscope as hs
from headscope.evidence.verify.result import Verification

SMALL = ("--n-prompts", 4, "--period", 12)


def run_api(heads=None, **options):
    model = hs.load("demo")
    return hs.verify(model, heads, probe=hs.repeated_tokens(model, n_prompts=4, period=12), **options)


def comparable(document):
    """Without what differs from run to run: seconds, and the command."""
    document = json.loads(json.dumps(document))
    del document["timing"]["wall_s"], document["provenance"]["command"]
    return document


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.py"
    path.write_text((Path(hs.__file__).parent / "lesson.py").read_text())
    return path


def test_json_equals_the_api(headscope):
    ran = headscope("verify", "demo", *SMALL, "--json")
    assert (ran.code, ran.err) == (0, "")
    printed = json.loads(ran.out)
    assert printed["schema"] == "headscope.verify/1"
    assert printed["provenance"]["command"] == "headscope verify demo --n-prompts 4 --period 12 --json"
    assert comparable(printed) == comparable(run_api().to_dict())


def test_options_reach_the_api(headscope, text):
    options = ("--ablation", "zero", "--top", 3, "--natural", text, "--json")
    printed = json.loads(headscope("verify", "demo", *SMALL, *options).out)
    wanted = run_api(ablation="zero", top=3, natural=text.read_text())
    assert comparable(printed) == comparable(wanted.to_dict())
    assert printed["ablation"] == {"method": "zero", "search": "race", "corpus": None}
    assert "natural" in printed["clean"]


def test_named_heads_are_judged_alone(headscope):
    options = ("--head", "L1H5", "--head", "0.4", "--json")
    printed = json.loads(headscope("verify", "demo", *SMALL, *options).out)
    assert comparable(printed) == comparable(run_api(["L1H5", "0.4"]).to_dict())
    assert [(one["layer"], one["head"], one["verdict"]) for one in printed["heads"]] == [
        (0, 4, "previous_token"),
        (1, 5, "induction"),
    ]
    assert printed["ablation"]["search"] is None


def test_exhaustive_measures_every_head_in_every_prompt(headscope):
    printed = json.loads(headscope("verify", "demo", *SMALL, "--exhaustive", "--top", 12, "--json").out)
    assert printed["ablation"]["search"] == "exhaustive"
    assert all(one["exact"] for one in printed["heads"])


def test_the_table_shows_verdicts_the_set_and_the_reasons(headscope):
    ran = headscope("verify", *SMALL)  # demo by default
    assert (ran.code, ran.err) == (0, "")
    found = run_api()
    for one in found.heads:
        if one.verdict not in ("none", "first_token"):
            row = next(line for line in ran.out.splitlines() if line.startswith(f"{one.head} "))
            assert re.match(rf"{one.head} +{one.verdict} +{re.escape(f'{one.delta_loss_nats.mean:+.3f}')} ", row)
            says = found.meaning(one.verdict).sentence
            assert f"{one.head} {one.verdict}: {says}\n  {one.reasons[0]}\n" in ran.out
    (head_set,) = found.sets
    assert f"{', '.join(map(str, head_set.heads))}  {head_set.relation}" in ran.out
    assert f"all gone: second copy {head_set.delta_loss_nats.mean:+.3f}" in ran.out
    assert "control, 1 of them against as many random heads matched by layer and size, 5 draws" in ran.out
    assert "Results:" not in ran.out


def test_the_table_shows_the_top_and_says_how_many_more_there_are(headscope):
    found = run_api(top=1)
    with_role = [one for one in found.heads if one.verdict not in ("none", "first_token")]
    out = headscope("verify", *SMALL, "--top", 1).out
    rows = [line for line in out.splitlines() if re.match(r"L\dH\d +\w+ +[+-]\d", line)]
    # Heads with a role are shown all, however many are asked for.
    assert len(rows) == len(with_role)
    assert f"{len(found.heads) - len(with_role)} more heads" in out


def test_text_is_a_column(headscope, text):
    options = (*SMALL, "--head", "L1H5")
    assert "Δ text" not in headscope("verify", *options).out
    out = headscope("verify", *options, "--natural", text).out
    assert "Δ text" in out
    assert re.search(r"all gone: .*, natural text [+-]\d", out)


def test_nothing_found_is_said_and_succeeds(headscope):
    ran = headscope("verify", *SMALL, "--head", "L0H0")
    assert ran.code == 0
    assert "No head is called induction." in ran.out


def test_what_is_saved_is_what_was_printed(headscope, tmp_path):
    folder = tmp_path / "new" / "folder"
    ran = headscope("verify", *SMALL, "--head", "L1H5", "--out", folder)
    assert f"Results: {folder / 'verify.json'} and {folder / 'verify.parquet'}" in ran.out.replace("\n", "")
    saved = Verification.load(folder)
    assert f"{saved['L1H5'].delta_loss_nats.mean:+.3f}" in ran.out
    assert comparable(saved.to_dict()) == comparable(run_api(["L1H5"]).to_dict())
    # Both at once: the document on stdout is the file's, and nothing else is there.
    ran = headscope("verify", *SMALL, "--head", "L1H5", "--json", "-o", folder)
    assert ran.out == (folder / "verify.json").read_text()


def test_help_shows_an_example(headscope):
    ran = headscope("verify", "--help")
    assert ran.code == 0
    assert "headscope verify demo --out results/demo" in ran.out
