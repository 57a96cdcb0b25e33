"""Runs and behaviours on a report's page, and the mosaic's own page: their documents' numbers, and nothing else's."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
import time
from xml.etree import ElementTree

import pytest
from playwright.sync_api import expect
from starlette.testclient import TestClient
from typer.testing import CliRunner

import headscope as hs
from headscope.cli.main import app
from headscope.evidence.behavior.conclusion import RULE
from headscope.evidence.behavior.findings import (
    BehaviorControls,
    Cost,
    DrawnSet,
    HeadFinding,
    Induction,
    Item,
    Score,
    SetFinding,
)
from headscope.evidence.behavior.result import BehaviorResult
from headscope.evidence.emergence.change import phase_change
from headscope.evidence.emergence.measure import Emergence, Point
from headscope.evidence.emergence.tracker import Snapshot
from headscope.evidence.scan.result import HeadScore, Timing
from headscope.explore.reading import Reader
from headscope.explore.server import application, serve
from headscope.heads import HeadId
from headscope.page.curves import run_curves
from headscope.page.report import report_document
from headscope.records.common import Estimate, ModelInfo, Provenance
from headscope.sweeps.mosaic import Mosaic, Tile

STEPS = tuple(range(0, 500, 25))
EVIL = "</script><img src=x onerror='window.hurt = 1'>\u202etxt"
PROVENANCE = Provenance(dtype="float32", device="cpu", kernels=("own",), seed=0, versions={}, command="made by hand")


def about(mean, half=0.02):
    return Estimate(mean=mean, ci95=(mean - half, mean + half))


def run_of(info, source="runs/copy", *, rises=True):
    """A run whose second head of the last layer rises at step 210, if any does."""
    model = dataclasses.replace(info, id=source, n_layers=info.n_layers if rises else 1)
    points, best = [], []
    for step in STEPS:
        risen = 1 / (1 + math.exp(-(step - 210) / 12)) if rises else 0.0
        best.append(0.05 + 0.9 * risen)
        heads = tuple(
            HeadScore(
                head=HeadId(model.n_layers - 1, head),
                detector=role,
                mean=mean,
                ci95=(mean - 0.02, mean + 0.02),
                chance=0.02,
                control=None,
                selectivity=None,
                n_prompts=8,
            )
            for role, top in (("induction", best[-1]), ("previous_token", best[-1] * 0.9))
            for head, mean in ((0, 0.03), (1, top))
        )
        snapshot = Snapshot(
            step=step,
            model=model,
            probe={},
            heads=heads,
            first_copy_loss_nats=about(5.5),
            second_copy_loss_nats=about(5.5 - 5 * risen),
            full=None,
            missing={},
            provenance=PROVENANCE,
            timing=Timing(wall_s=1.0, tokens=1),
        )
        points.append(Point(name=f"step-{step}", snapshot=snapshot))
    change = phase_change(STEPS, best, [(one - 0.02, one + 0.02) for one in best])
    return Emergence(
        source=source,
        model=model,
        settings={"n_prompts": 8},
        points=tuple(points),
        unread={},
        changes={"induction": change},
        provenance=PROVENANCE,
    )


def behavior_of(info, name="sycophancy"):
    score = Score(
        n_pairs=40,
        n_known=30,
        claimed_minus_true=about(0.4),
        claim_minus_neutral=about(1.234),
        claim_minus_twin=about(2.345),
        flips=about(0.31),
        neutral_accuracy=about(0.77),
    )
    named, other = HeadId(1, 1), HeadId(0, 4)

    def finding(head, removed, carries):
        return HeadFinding(
            head=head,
            triage={"twin": 0.5},
            removed=about(removed),
            q_value=0.01,
            patched=about(removed * 0.9),
            patched_q_value=0.02,
            share=removed / 2.345,
            attention=about(0.6),
            direct=None,
            induction=0.88,
            carries=carries,
            named=carries,
        )

    return BehaviorResult(
        model=info,
        behavior=name,
        contrast="claims",
        score=score,
        forms={"assertion": dataclasses.replace(score, claim_minus_twin=about(1.5))},
        verbatim=score,
        paraphrase=dataclasses.replace(score, claim_minus_twin=about(1.9)),
        heads=(finding(named, 1.456, True), finding(other, 0.1, False)),
        head_set=SetFinding(
            heads=(named,),
            removed=about(1.456),
            q_value=0.01,
            patched=about(1.3),
            patched_q_value=0.02,
            share=0.62,
            neutral_share=0.6,
            paraphrase_removed=about(1.2),
            paraphrase_share=0.61,
            flips_before=about(0.31),
            flips_after=about(0.09),
            accuracy_before=about(0.77),
            accuracy_after=about(0.76),
            text_loss_nats=about(0.011, 0.002),
            carries=True,
        ),
        controls=BehaviorControls(
            draws=(
                DrawnSet(kind="random", heads=(HeadId(0, 0),), removed=about(0.2), flips=None),
                DrawnSet(kind="random", heads=(HeadId(0, 2),), removed=about(-0.1), flips=None),
                DrawnSet(kind="same size", heads=(HeadId(1, 3),), removed=about(0.3), flips=None),
            ),
            set_removed=about(1.4),
            induction=Induction(
                heads=(named, HeadId(1, 0)),
                common=(named,),
                p_value=0.25,
                patched=about(0.7),
                share=0.3,
                others_share=0.1,
            ),
            others=(),
            search_pairs=16,
            held_out_pairs=24,
            tests=8,
        ),
        conclusion="localised",
        reasons=("a claim moves the answer by +2.35 nats towards it", f"without {named} 62% of the effect is gone"),
        rule=RULE,
        items=tuple(
            Item(
                id=str(number),
                topic="rivers",
                form="assertion",
                verbatim=True,
                prompt=f"{name} says pair {number}",
                answer=" yes",
                other=" no",
                differences={"claim": 0.5, "neutral": -1.0},
            )
            for number in range(12)
        ),
        left_out={},
        problems=(),
        cost=Cost(forwards=1, exhaustive=2, wall_s=1.0),
        provenance=PROVENANCE,
    )


def tile_of(model, family, size, shape, *, top=0.9, revision=None):
    n_layers, n_heads = shape
    last = (n_layers - 1, n_heads - 1)
    at = [[top if (layer, head) == last else 0.1 for head in range(n_heads)] for layer in range(n_layers)]
    values: list[list[float | None]] = [list(row) for row in at]
    values[0][1] = None  # a place without a head
    ends = [[None if one is None else (one - 0.05, one + 0.05) for one in row] for row in values]
    return Tile(
        model=model,
        revision=revision,
        family=family,
        n_parameters=size,
        n_layers=n_layers,
        n_heads=n_heads,
        support="exact",
        probe={"seed": 0},
        values=tuple(map(tuple, values)),
        ci95=tuple(map(tuple, ends)),
        best=HeadId(*last),
    )


def mosaic_of(detector="induction", top=0.9):
    tiles = (
        tile_of("org/wide", "gpt2", 124_000_000, (12, 12), top=top),
        tile_of("org/big", "llama", 8_000_000_000, (32, 32), top=top),
        tile_of(f"evil/{EVIL}", "llama", 1_000, (2, 2), top=top, revision="step512"),
    )
    return Mosaic(detector=detector, by_depth=False, tiles=tiles, failed=("x/broken",))


def saved(opened, button):
    with opened.page.expect_download() as waiting:
        opened.page.get_by_role("button", name=button).click()
    return waiting.value.path().read_text()


@pytest.fixture
def info(results):
    return ModelInfo.of(results.model)


def test_a_report_without_them_has_no_such_sections(show, made):
    assert (made["emergence"], made["behavior"]) == ([], [])
    opened = show(made)
    assert opened.page.locator("#emergence, #behavior").count() == 0
    assert "How it emerged" not in opened.page.locator("nav").inner_text()


def test_a_run_and_its_control_are_drawn_over_each_other(show, document, info):
    own, control = run_of(info), run_of(info, f"runs/{EVIL}", rises=False)
    document["emergence"] = [run_curves(one) for one in (own, control)]
    opened = show(document)
    section = opened.page.locator("#emergence")
    change = own.changes["induction"].found
    assert change is not None
    low, high = change.step.ci95 or (math.nan, math.nan)
    wanted = f"step {change.step.mean:.0f} [{low:.0f}, {high:.0f}]"
    assert wanted in section.locator("#emergence-induction svg").text_content()
    assert wanted in section.locator(".runs").inner_text()
    assert f"no phase change; {control.changes['induction'].reason}" in section.locator(".runs").inner_text()
    # A line, a band and points for each run; loss has two lines for each.
    assert section.locator("#emergence-induction g[aria-label=line] path").count() == 2
    assert section.locator("#emergence-loss g[aria-label=line] path").count() == 4
    rows = list(csv.DictReader(io.StringIO(saved(opened, "stripe: save as CSV"))))
    got = [(int(row["step"]), float(row["mean"]), float(row["low"])) for row in rows if row["run"] == own.source]
    assert got == [(step, one.mean, one.mean - 0.02) for step, one in own.curve("induction")]
    assert "Why one layer cannot" in section.inner_text()
    ElementTree.fromstring(saved(opened, "stripe: save as SVG"))
    named = section.locator("#emergence-induction g[aria-label='x-axis tick label'] text")
    assert named.all_text_contents() == ["0", "100", "200", "300", "400"]
    opened.page.get_by_label("linear steps").focus()
    opened.page.keyboard.press("ArrowRight")
    expect(named).to_have_text(["0", "50", "100", "200"])
    assert opened.page.evaluate("window.hurt") is None
    assert section.locator("img").count() == 0
    assert "\u27e8U+202E\u27e9txt" in section.inner_text()
    opened.assert_quiet()


def test_one_run_alone_needs_no_argument(show, document, info):
    document["emergence"] = [run_curves(run_of(info))]
    opened = show(document, width=820, dark=True)
    assert "Why one layer cannot" not in opened.page.locator("#emergence").inner_text()
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 820
    opened.assert_quiet()


def test_a_behaviour_is_concluded_scored_and_held_against_controls(show, document, info):
    found = behavior_of(info, EVIL)
    document["behavior"] = [found.to_dict()]
    opened = show(document)
    section = opened.page.locator("#behavior")
    text = section.inner_text()
    order = ["localised", "How far the claim moves the answer", found.reasons[1], "How much of the effect is lost"]
    places = [text.casefold().index(one.casefold()) for one in order]
    assert places == sorted(places)
    assert "L1H1" not in text[: places[1]], "the score stands before any head is named"
    assert "+2.345 [+2.325, +2.365]" in section.locator("#behavior-1-score svg").text_content()
    heads = section.locator("#behavior-1-heads svg").text_content()
    assert "+1.456 [+1.436, +1.476]" in heads
    assert "control: random" in heads
    assert "control: same size" in heads
    # The set, two heads, and each draw.
    assert section.locator("#behavior-1-heads g[aria-label=dot] circle").count() == 6
    for said in (
        "76% [74%, 78%], with the set 77%",
        "Named too: L1H1; so many by chance with p 0.250.",
        "+0.011 [+0.009, +0.013]",
    ):
        assert said in text
    assert "8 of 12 pairs" in text
    rows = list(csv.DictReader(io.StringIO(saved(opened, "8 of 12 pairs: save as CSV"))))
    assert [row["prompt"] for row in rows] == [one.prompt for one in found.items]
    section.get_by_role("button", name="L0H4", exact=True).click()
    assert opened.page.locator("#card-title").inner_text() == "L0H4"
    assert opened.page.evaluate("window.hurt") is None
    assert section.locator("img").count() == 0
    opened.assert_quiet()


def test_what_a_behaviour_lacks_is_left_out(show, document, info):
    bare = dataclasses.replace(behavior_of(info), heads=(), head_set=None, forms={}, verbatim=None, items=())
    bare = dataclasses.replace(bare, controls=dataclasses.replace(bare.controls, draws=(), induction=None))
    document["behavior"] = [bare.to_dict(), {"behavior": "praise", "conclusion": "odd", "model": {}}]
    opened = show(document, width=820)
    assert opened.page.locator("#behavior-1 figure").count() == 1
    assert opened.page.locator("#behavior-2").inner_text().split() == ["Behaviour:", "praise", "Odd"]
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 820
    opened.assert_quiet()


def test_runs_and_behaviours_of_other_models_are_refused(results, info):
    ready = dict(scan=results.scan, verification=results.verification, circuit=results.circuit)
    other = dataclasses.replace(info, id="other")
    with pytest.raises(hs.HeadscopeError, match="a BehaviorResult of other cannot go into a report of demo"):
        report_document(results.model, **ready, behavior=[behavior_of(other)])
    with pytest.raises(hs.HeadscopeError, match="'runs/copy' is of a mamba with 6 heads a layer and cannot go into"):
        report_document(results.model, **ready, emergence=[run_of(dataclasses.replace(info, family="mamba"))])
    with pytest.raises(hs.HeadscopeError, match=r"no run is of the depth of demo, 2 layers \(given: 1\)"):
        report_document(results.model, **ready, emergence=[run_of(info, rises=False)])
    with pytest.raises(hs.HeadscopeError, match="a BehaviorResult of other cannot go into a report of demo"):
        serve(results.model, behavior=[behavior_of(other)], announce=lambda address: pytest.fail("it serves"))


def test_results_of_the_model_reach_the_document_and_the_live_page(results, info, tmp_path, monkeypatch):
    ready = dict(scan=results.scan, verification=results.verification, circuit=results.circuit)
    run, found = run_of(info), behavior_of(info)
    made = report_document(results.model, **ready, emergence=[run], behavior=[found])
    assert BehaviorResult.from_dict(made["behavior"][0]) == found
    (shown,) = made["emergence"]
    assert [(one["step"], one["mean"]) for one in shown["curves"]["second_copy_loss_nats"]] == [
        (step, value.mean) for step, value in run.curve("second_copy_loss_nats")
    ]
    monkeypatch.setattr(
        "headscope.explore.server.report_document",
        lambda model, *, behavior, **options: {"behavior": [one.to_dict() for one in behavior]},
    )
    with TestClient(application(Reader(results.model), behavior=[found])) as client:
        while (answer := client.get("/api/report")).status_code == 202:
            time.sleep(0.02)
    assert answer.json() == {"behavior": json.loads(json.dumps([found.to_dict()]))}


@pytest.mark.parametrize("option", ["emergence", "behavior"])
def test_a_file_of_another_schema_is_refused_in_one_line(option, tmp_path):
    (tmp_path / "odd.json").write_text(json.dumps({"schema": "headscope.scan/1"}))
    ran = CliRunner().invoke(app, ["report", "demo", f"--{option}", str(tmp_path / "odd.json"), "-o", "page.html"])
    assert isinstance(ran.exception, hs.HeadscopeError)
    assert f"schema 'headscope.scan/1' is not 'headscope.{option}/1'" in str(ran.exception)


def test_the_mosaic_of_a_store_holds_every_role_with_intervals(results, tmp_path):
    hs.sweep(["demo"], tmp_path / "store", settings={"scan": {"n_prompts": 4, "period": 8}})
    path = tmp_path / "new" / "mosaic.html"
    ran = CliRunner().invoke(app, ["mosaic", str(tmp_path / "store"), "-o", str(path)])
    assert (ran.exit_code, ran.exception) == (0, None)
    held = re.search(r'<script type="application/json" id="document">(.*?)</script>', path.read_text())
    assert held is not None
    document = json.loads(held[1])
    scan = hs.scan(results.model, probe=hs.repeated_tokens(results.model, n_prompts=4, period=8))
    assert {one["detector"] for one in (document, *document["others"])} == {one.detector for one in scan.scores}
    for one in (document, *document["others"]):
        (tile,) = one["tiles"]
        wanted = {score.head: score for score in scan.scores if score.detector == one["detector"]}
        for head, score in wanted.items():
            assert tile["values"][head.layer][head.head] == pytest.approx(score.mean)
            assert tile["ci95"][head.layer][head.head] == pytest.approx(score.ci95)


def test_the_mosaic_is_a_page(show, tmp_path):
    found = mosaic_of()
    path = found.save(tmp_path / "mosaic.html", others=[mosaic_of("previous_token", top=0.7)])
    opened = show(path)
    page = opened.page
    names = page.locator(".tiles .name")
    assert names.all_inner_texts()[:2] == ["wide", "big"]
    assert page.locator(".family h3 bdi").all_inner_texts() == ["gpt2", "llama"]
    note = page.locator("#mosaic-note")
    # Focus rests on the best head; the place without a head is passed over.
    page.locator(".tiles svg").first.focus()
    assert note.inner_text() == "org/wide L11H11 induction: 0.900 [0.850, 0.950]"
    page.keyboard.press("ArrowUp")
    assert note.inner_text() == "org/wide L10H11 induction: 0.100 [0.050, 0.150]"
    small = page.locator(".tiles svg").nth(2)
    small.hover(position={"x": 6, "y": 6})
    assert "L0H0 induction: 0.100" in note.inner_text()
    page.locator("label:has(input)", has_text="previous token").click()
    page.locator(".tiles svg").nth(1).focus()
    assert note.inner_text() == "org/big L31H31 previous token: 0.700 [0.650, 0.750]"
    page.locator("label:has(input)", has_text="by size").click()
    assert [one.split()[-1] for one in names.all_inner_texts()] == ["@step512", "wide", "big"]
    heights = (
        "[...document.querySelectorAll('.tiles svg')].map((one) => Math.round(one.getBoundingClientRect().height))"
    )
    assert len(set(page.evaluate(heights))) == 3
    page.locator("label:has(input)", has_text="share of depth").click()
    assert len(set(page.evaluate(heights))) == 1
    page.get_by_role("searchbox").fill("GPT2")
    assert names.all_inner_texts() == ["wide"]
    rows = list(csv.DictReader(io.StringIO(saved(opened, "save as CSV"))))
    assert len(rows) == 12 * 12 - 1
    assert {(row["model"], row["role"]) for row in rows} == {("org/wide", "previous_token")}
    page.get_by_role("searchbox").fill("")
    svg = saved(opened, "save as SVG")
    ElementTree.fromstring(svg)
    assert "<img" not in svg
    assert "x/broken" in page.locator(".warn").inner_text()
    assert page.evaluate("window.hurt") is None
    assert page.locator("img").count() == 0
    opened.assert_quiet()


@pytest.mark.parametrize("dark", [False, True])
def test_the_mosaic_fits_the_window(show, tmp_path, dark):
    opened = show(mosaic_of().save(tmp_path / "mosaic.html"), width=820, dark=dark)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 820
    assert opened.page.locator("fieldset", has_text="previous token").count() == 0
    opened.assert_quiet()
