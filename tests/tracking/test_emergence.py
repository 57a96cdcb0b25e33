"""A run's checkpoints measured alike: the numbers of a scan, on a run whose induction head was switched on by hand."""

from __future__ import annotations

import io
import json
import shutil
import weakref
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from pytest import approx

import headscope as hs
from headscope.errors import ArgumentError, HeadscopeError, ModelError
from headscope.evidence.emergence import measure as module
from headscope.evidence.emergence.curves import Curve, CurvePanel, curves_svg
from headscope.evidence.emergence.terminal import print_emergence


@pytest.fixture(scope="module")
def found(run):
    return hs.emergence(run)


def test_every_checkpoint_has_the_scores_of_a_scan_on_one_probe(run, found):
    assert found.steps == (0, 100, 200, 300, 400, 500, 600, 700)
    assert [point.name for point in found.points] == sorted(path.name for path in run.iterdir())
    for point in (found.points[0], found.points[4]):
        model = hs.load(run / point.name)
        scan = hs.scan(model, probe=hs.repeated_tokens(model, n_prompts=8, period=24))
        assert point.snapshot.heads == tuple(
            score for score in scan.scores if score.detector in ("induction", "previous_token")
        )
        assert point.snapshot.full is not None


def test_the_change_is_where_the_head_was_switched_on(found):
    curve = dict(found.curve("induction"))
    values = np.asarray([one.mean for one in curve.values()])
    middle = (values.min() + values.max()) / 2
    above = int(np.flatnonzero(values > middle)[0])
    crossing = np.interp(middle, values[above - 1 : above + 1], found.steps[above - 1 : above + 1])
    change = found.changes["induction"].found
    assert change.step.mean == approx(crossing, rel=0.1)
    assert change.step.ci95[0] <= crossing <= change.step.ci95[1]
    assert change.high > 0.9


def test_a_head_that_never_changed_has_no_phase_change(found):
    change = found.changes["previous_token"]
    assert change.found is None
    assert "no score is 0.2 above an earlier one" in change.reason


def test_the_terminal_says_where_the_change_is_and_who_is_strongest_at_each_step(found, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    unread = {"step-000150": "the disk was full"}
    print_emergence(replace(found, unread=unread))
    shown = capsys.readouterr().out
    step, width = found.changes["induction"].found.step, found.changes["induction"].found.width
    low, high = step.ci95
    said = f"induction: phase change at step {step.mean:.0f} [{low:.0f}, {high:.0f}], {width.mean:.0f}"
    assert said in shown
    assert f"previous token: no phase change found: {found.changes['previous_token'].reason}" in shown
    assert "step-000150 could not be measured: the disk was full" in shown
    last = next(line.split() for line in shown.splitlines() if line.split()[:1] == ["700"])
    best = found.points[-1].snapshot.strongest("induction")
    assert last[1:3] == [f"{best.mean:.3f}", str(best.head)]


def test_losses_fall_as_the_head_comes(found):
    loss = dict(found.curve("second_copy_loss_nats"))
    assert loss[0].mean > 3
    assert loss[700].mean < 1
    assert found.curve("in_context_nats") == ()
    assert "no tokenizer" in found.points[0].snapshot.missing["in_context"]
    with pytest.raises(ArgumentError, match="measure='loss'"):
        found.curve("loss")


def test_the_frame_is_tidy_and_the_files_hold_the_same(found, tmp_path):
    frame = found.to_frame()
    assert list(frame.columns) == [
        "step", "layer", "head", "call", "measure", "mean", "ci_low", "ci_high", "period", "model",
    ]  # fmt: skip
    assert set(frame["period"]) == {24}, "one head has another score on longer runs"
    strongest = frame[frame.measure == "induction"].groupby("step")["mean"].max()
    assert strongest.to_dict() == {step: value.mean for step, value in found.curve("induction")}
    losses = frame[frame.measure == "second_copy_loss_nats"]
    assert losses["layer"].isna().all()
    assert list(losses["step"]) == list(found.steps)
    assert {"copying", "copying_eigenvalue", "k_composition"} <= set(frame.measure)
    document, table, picture = found.save(tmp_path / "out")
    assert hs.Emergence.load(tmp_path / "out") == found == hs.Emergence.load(document)
    pd.testing.assert_frame_equal(pd.read_parquet(table).astype(frame.dtypes.to_dict()), frame)
    assert picture.read_text() == found._repr_html_()
    assert json.loads(document.read_text())["schema"] == "headscope.emergence/1"
    with pytest.raises(ArgumentError, match="emergence/1"):
        hs.Emergence.from_dict({"schema": "headscope.scan/1"})


SVG = "{http://www.w3.org/2000/svg}"


def test_the_picture_draws_each_curve_and_marks_the_change(found):
    root = ElementTree.parse(io.StringIO(found.to_svg())).getroot()
    words = [one.text for one in root.iter(f"{SVG}text")]
    assert {"Induction", "Previous token", "Copying", "K-composition", "Loss on random tokens"} <= set(words)
    step = found.changes["induction"].found.step
    marked = [one for one in words if one.startswith("step ")]
    assert marked == [f"step {step.mean:.0f} [{step.ci95[0]:.0f}, {step.ci95[1]:.0f}]"]
    titles = [one.text for one in root.iter(f"{SVG}title")]
    assert titles.count("strongest head") == 4
    assert {"first copy", "second copy"} <= set(titles)


def test_a_curve_stands_where_its_numbers_say():
    # Steps 0 to 100 span x = 48 to 384, scores 0 to 1 y = 206 to 40: the middle of both is (216, 123).
    curve = Curve(label="<a>", steps=(0, 50, 100), values=(0.0, 0.5, 1.0), ci95=(None, None, None))
    root = ElementTree.fromstring(curves_svg([CurvePanel(title="<b>", unit="u", curves=(curve,))]))
    (line,) = root.iter(f"{SVG}polyline")
    assert line.get("points") == "48.0,206.0 216.0,123.0 384.0,40.0"
    # Where most checkpoints lie in the first tenth, equal factors are equal distances, and 0 is at the left end.
    steps = (0, 1, 2, 4, 8, 16, 1024)
    curve = Curve(label="a", steps=steps, values=(0.0,) * 7, ci95=(None,) * 7)
    root = ElementTree.fromstring(curves_svg([CurvePanel(title="b", unit="u", curves=(curve,))]))
    (line,) = root.iter(f"{SVG}polyline")
    places = [float(point.split(",")[0]) for point in line.get("points").split()]
    assert places[0] == 48.0
    assert np.diff(places[1:6]) == approx(np.diff(places)[0], abs=0.11)
    assert places[-1] - places[-2] == approx(6 * (places[2] - places[1]), abs=0.7)


def test_checkpoints_that_cannot_be_read_are_told_and_the_rest_goes_on(run, saved, tmp_path):
    for step in (0, 100):
        shutil.copytree(run / f"step-{step:06d}", tmp_path / f"step-{step}")
    shutil.copytree(run / "step-000000", tmp_path / "step-200")
    weights = tmp_path / "step-200" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    saved(tmp_path / "step-300", float("nan"))
    shutil.copytree(run / "step-000000", tmp_path / "last")
    other = {"n_layer": 1, "n_head": 2, "n_embd": 8, "vocab_size": 80, "n_positions": 96}
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(**other, bos_token_id=0, eos_token_id=0)).save_pretrained(tmp_path / "step-400")
    found = hs.emergence(tmp_path)
    assert found.steps == (0, 100)
    assert set(found.unread) == {"step-200", "step-300", "step-400", "last"}
    assert "could not be loaded" in found.unread["step-200"]
    assert "NaN" in found.unread["step-300"]
    assert "a gpt2 of 1 layers of 2 heads" in found.unread["step-400"]
    assert "2 of the 6 checkpoints" in found.changes["induction"].reason
    with pytest.raises(ModelError, match="none of the 1 checkpoints .* step-200: "):
        hs.emergence(tmp_path, revisions="step-200")


def test_what_is_finished_survives_and_is_measured_once(run, tmp_path, monkeypatch):
    keep = tmp_path / "kept"
    measured = []
    measure = hs.Tracker.measure

    def counted(self, *, step, full=False):
        if step == 300 and len(measured) < 4:
            raise KeyboardInterrupt
        measured.append(step)
        return measure(self, step=step)

    monkeypatch.setattr(hs.Tracker, "measure", counted)
    names = [f"step-{step:06d}" for step in (0, 100, 200, 300)]
    with pytest.raises(KeyboardInterrupt):
        hs.emergence(run, revisions=names, keep=keep)
    assert sorted(path.stem for path in keep.iterdir()) == names[:3]
    measured += [-1]
    found = hs.emergence(run, revisions=names, keep=keep)
    assert measured == [0, 100, 200, -1, 300]
    again = hs.emergence(run, revisions=names, keep=keep)
    assert again == found
    assert measured[5:] == []
    hs.emergence(run, revisions=names[0], keep=keep, seed=1)  # another probe
    (keep / f"{names[0]}.json").write_text("{")  # damaged
    hs.emergence(run, revisions=names[0], keep=keep)
    assert measured[5:] == [0, 0]


@pytest.mark.parametrize("option", [{"n_prompts": 0}, {"period": 2}, {"seed": -1}, {"dtype": "float8"}])
def test_an_option_that_does_not_fit_is_told_before_any_checkpoint_is_looked_for(option, monkeypatch):
    monkeypatch.setattr(module, "find_checkpoints", None)
    ((name, value),) = option.items()
    with pytest.raises(ArgumentError, match=f"{name}={value!r}"):
        hs.emergence("nobody/nothing", **option)


def test_what_cannot_be_kept_ends_the_run_with_one_line(run, tmp_path, monkeypatch):
    measure = hs.Tracker.measure
    monkeypatch.setattr(hs.Tracker, "measure", lambda self, step, full: measure(self, step=step))
    (tmp_path / "file").write_text("")
    with pytest.raises(HeadscopeError, match="file' cannot be written: File exists; fix that, and the same call"):
        hs.emergence(run, revisions="step-000100", keep=tmp_path / "file")


def test_one_model_is_held_at_a_time(run, monkeypatch):
    alive = []
    load, measure = module.load, module.Tracker.measure

    def watched(*arguments, **options):
        alive.append(sum(one() is not None for one in models))
        model = load(*arguments, **options)
        models.append(weakref.ref(model.hf))
        return model

    models: list[weakref.ref] = []
    monkeypatch.setattr(module, "load", watched)
    monkeypatch.setattr(module.Tracker, "measure", lambda self, step, full: measure(self, step=step))
    hs.emergence(run, every=300)
    assert alive == [0, 0, 0]


def test_a_cache_folder_is_a_run(hub, found):
    _, folder = hub
    revisions = hs.emergence(folder, revisions=["step400", "step700"])
    assert [point.name for point in revisions.points] == ["step400", "step700"]
    assert revisions.points[0].snapshot.heads == found.points[4].snapshot.heads


def test_progress_counts_checkpoints(run):
    seen = []
    hs.emergence(run, revisions="step-000700", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 1)]
