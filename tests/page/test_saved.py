"""A report of results that are there already: what is taken, what is measured, what is refused."""

from __future__ import annotations

import pytest

import headscope as hs
from headscope.page import report as module
from headscope.page.report import refuse_unused, report_document
from headscope.page.saved import ready


@pytest.fixture
def folder(results, tmp_path):
    for one in (results.scan, results.verification, results.circuit):
        one.save(tmp_path)
    return tmp_path


def test_a_report_of_saved_results_is_that_of_the_results_and_measures_nothing(results, made, folder, monkeypatch):
    for name in ("read_attention", "verified", "trace_circuit"):
        monkeypatch.setattr(module, name, lambda *args, **options: pytest.fail("it was measured again"))
    again = report_document(results.model, **ready(folder))
    assert {name: again[name] for name in ("scan", "verify", "circuit", "finding")} == {
        name: made[name] for name in ("scan", "verify", "circuit", "finding")
    }


def test_what_is_missing_is_measured_with_the_settings_that_were_given(results, folder):
    (folder / "circuit.json").unlink()
    steps = []
    made = report_document(
        results.model, **ready(folder), n_prompts=3, period=6, progress=lambda what, done, total: steps.append(what)
    )
    assert (made["circuit"]["probe"]["n_prompts"], made["circuit"]["probe"]["period"]) == (3, 6)
    assert made["verify"]["probe"]["n_prompts"] == 8
    assert all(one == "writing" or one.startswith("1 of 1 circuit: ") for one in steps), set(steps)
    assert len(set(steps)) > 1


def test_stages_are_counted_and_heads_and_top_reach_the_verification_which_gives_the_scan(results, monkeypatch):
    asked, steps = {}, []

    def verified(model, heads, *, probe, top, natural, seed, progress):
        asked.update(heads=heads, n_prompts=len(probe.prompts), top=top)
        progress("searching", 12, 144)
        return results.verification, results.scan, None

    monkeypatch.setattr(module, "verified", verified)
    made = report_document(
        results.model, circuit=results.circuit, heads=["L1H1"], top=2, n_prompts=2, period=5,
        progress=lambda *step: steps.append(step),
    )  # fmt: skip
    assert asked == {"heads": ["L1H1"], "n_prompts": 2, "top": 2}
    assert steps[0] == ("1 of 1 verify: searching", 12, 144)
    assert made["scan"] == results.scan.to_dict()


@pytest.mark.parametrize(
    ("setting", "there", "refused"),
    [
        ("natural", {"verification"}, True),
        ("top", {"verification"}, True),
        ("heads", {"scan", "circuit"}, False),
        ("n_prompts", {"scan", "verification"}, False),
        ("period", {"scan", "verification", "circuit"}, True),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(setting, there, refused):
    given = {name: name in there for name in ("scan", "verification", "circuit")}
    refuse_unused({setting: None}, **given)
    if not refused:
        refuse_unused({setting: 5}, **given)
        return
    with pytest.raises(hs.HeadscopeError, match=f"{setting}= and a ready .* were both given"):
        refuse_unused({setting: 5}, **given)


def test_a_folder_without_results_or_with_two_of_a_kind_is_refused(results, tmp_path):
    with pytest.raises(hs.HeadscopeError, match="is not a folder"):
        ready(tmp_path / "none")
    with pytest.raises(hs.HeadscopeError, match="holds no result that a report shows"):
        ready(tmp_path)
    results.scan.save(tmp_path)
    (tmp_path / "again.json").write_text((tmp_path / "scan.json").read_text())
    with pytest.raises(hs.HeadscopeError, match="holds two documents of scan"):
        ready(tmp_path)
