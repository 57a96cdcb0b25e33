"""The atlas on a report's page: its map, a head with all its roles, filters, two measures, and what was published."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import expect

from headscope.evidence.atlas.finding import Effect, RoleFinding
from headscope.evidence.atlas.outcome import RULE
from headscope.evidence.atlas.result import Atlas, HeadSummary, RoleMeaning
from headscope.evidence.known.lists import KnownHead
from headscope.evidence.scan.result import Timing
from headscope.heads import HeadId
from headscope.records.common import Estimate, ModelInfo, Provenance

EVIL = "<img src=x onerror='window.hurt = 1'>"
HELD, MATTERS = HeadId(1, 1), HeadId(0, 2)
ROLES = {"induction": "#0072b2", "name_mover": "#999933"}


def about(mean: float) -> Estimate:
    return Estimate(mean=mean, ci95=(mean - 0.02, mean + 0.02))


def finding(head: HeadId, role: str) -> RoleFinding:
    held = head == HELD and role == "induction"
    return RoleFinding(
        head=head,
        role=role,
        score=about(0.875 if held else 0.125),
        chance=0.02,
        control=0.03,
        selectivity=None,
        p_score=0.0,
        q_score=0.001,
        measures={},
        has_score=held,
        tests={"zero": Effect(estimate=about(1.625), p_value=0.0, q_value=0.001)} if held else {},
        outcome="primary" if held else "null",
    )


def atlas_of(info: ModelInfo, *, quick: bool = False) -> Atlas:
    """One head holds induction, one matters without a role, the others are idle."""
    heads = [HeadId(layer, head) for layer in range(info.n_layers) for head in range(info.n_heads)]
    loss = Effect(estimate=about(0.375), p_value=0.0, q_value=0.0)
    summaries = [
        HeadSummary(
            head=head,
            status="unexplained" if head == MATTERS else "held" if head == HELD else "idle",
            strongest="induction" if head == HELD else None,
            roles=("induction",) if head == HELD else (),
            correlates=(),
            removed=loss,
            unexplained=0.25 if head == HELD else None,
        )
        for head in sorted(heads, key=lambda one: (one != MATTERS, one != HELD, one))
    ]
    meanings = [
        RoleMeaning(
            name=name,
            label=name.replace("_", " "),
            letter=name[0].upper(),
            colour=colour,
            order=10,
            sentence="does that",
            look_alike="another",
            least=0.4,
            probe={},
        )
        for name, colour in ROLES.items()
    ]
    published = KnownHead(
        head=HELD, model="toy", role="induction", called="induction", source=EVIL, matched="shape", agreement="agrees"
    )
    return Atlas(
        model=info,
        fingerprint="0",
        quick=quick,
        roles=tuple(meanings),
        not_asked={"delimiter": EVIL},
        heads=tuple(summaries),
        findings=tuple(finding(head, role) for head in heads for role in ROLES),
        rule=RULE,
        settings={"n_prompts": 4, "seed": 0},
        provenance=Provenance(dtype="float32", device="cpu", kernels=(), seed=0, versions={}, command=""),
        timing=Timing(wall_s=1.0, tokens=1),
        known=(published,),
    )


@pytest.fixture
def page(document, results, show) -> Any:
    found = atlas_of(results.scan.model)
    document["results"] = [{"kind": "atlas", **found.to_dict()}]

    def run(width: int = 1280):
        opened = show(document, width=width)
        opened.page.locator("#atlas-map").scroll_into_view_if_needed()
        return opened

    return run


def test_a_map_a_card_a_table_and_a_scatter_of_every_head(page, results):
    opened = page()
    rects = opened.page.locator("#atlas-map rect[data-head]")
    expect(rects).to_have_count(results.scan.model.n_layers * results.scan.model.n_heads)
    assert opened.page.locator(f"#atlas-map rect[data-head='{HELD}']").get_attribute("fill") == ROLES["induction"]
    fills = {one.get_attribute("fill") for one in rects.all()}
    # Induction, unexplained, and no role.
    assert len(fills) == 3
    assert ROLES["name_mover"] not in fills
    shows_all_roles_of_a_head(opened.page)
    filters_by_role_and_status(opened.page, results)
    draws_any_two_measures(opened.page, results)
    opened.assert_quiet()
    assert opened.page.evaluate("window.hurt") is None


def shows_all_roles_of_a_head(body):
    section = body.locator("#atlas")
    # The first is the one that matters without a role.
    expect(section.get_by_role("heading", name=f"{MATTERS}: unexplained")).to_be_visible()
    body.locator(f"#atlas-map rect[data-head='{HELD}']").click()
    card = section.locator(f"section[aria-label='Roles of {HELD}']")
    expect(card.get_by_role("heading", name=f"{HELD}: holds a role")).to_be_visible()
    rows = card.locator("tbody tr")
    expect(rows).to_have_count(len(ROLES))
    expect(rows.first).to_contain_text("induction")
    for text in ("primary", "0.88", "[0.85, 0.90]", "zero +1.625", "q 0.001"):
        expect(rows.first).to_contain_text(text)
    expect(card).to_contain_text("25% of its effect is by no role")
    expect(card).to_contain_text("Known as induction")


def filters_by_role_and_status(body, results):
    section = body.locator("#atlas")
    rows = section.get_by_role("region", name="Heads of the atlas").locator("tbody tr")
    expect(rows).to_have_count(results.scan.model.n_layers * results.scan.model.n_heads)
    section.get_by_label("With the score of").select_option("induction")
    expect(rows).to_have_count(1)
    expect(rows.first).to_contain_text(str(HELD))
    section.get_by_label("Status").select_option("unexplained")
    expect(rows).to_have_count(0)


def draws_any_two_measures(body, results):
    figure = body.locator("#atlas-scatter")
    dots = figure.locator("circle")
    expect(dots).to_have_count(results.scan.model.n_layers * results.scan.model.n_heads)
    figure.get_by_label("Across").select_option("zero: induction")
    # Only one head was tested.
    expect(dots).to_have_count(1)
    expect(figure).to_contain_text("1 of")


def test_what_was_published_is_compared_and_a_phone_scrolls_no_page(page):
    opened = page(390)
    section = opened.page.locator("#atlas")
    expect(section).to_contain_text("Agrees: 1; differs: 0; not tested: 0.")
    expect(section).to_contain_text("another model of this shape")
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert opened.page.evaluate("window.hurt") is None
