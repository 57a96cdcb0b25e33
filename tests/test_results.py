"""A scan as data: what counts as found, and that objects, JSON, frames and Parquet hold the same numbers."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pandas as pd
import pyarrow.parquet as pq
import pytest

from headscope import HeadId, HeadScore, Scan
from headscope.errors import ArgumentError
from headscope.evidence.scan import result as results
from headscope.evidence.scan.result import COLUMNS, Role, Timing
from headscope.records.common import Estimate, ModelInfo, Provenance
from headscope.records.files import write_whole


def score(head: str, detector: str = "induction", *, mean: float = 0.5, gain: float | None = None, **more: Any):
    """A score whose control is what its selectivity, `gain`, leaves; intervals of +-0.01."""
    given: dict[str, Any] = {
        "ci95": (mean - 0.01, mean + 0.01),
        "chance": 0.02,
        "control": None if gain is None else mean - gain,
        "selectivity": None if gain is None else Estimate(mean=gain, ci95=(gain - 0.01, gain + 0.01)),
        "n_prompts": 16,
    }
    return HeadScore(head=HeadId.parse(head), detector=detector, mean=mean, **given | more)


def scan_of(*scores: HeadScore, unscored: dict[str, str] | None = None) -> Scan:
    return Scan(
        model=ModelInfo(
            id="my/model",
            revision="abc123",
            family="llama",
            n_layers=2,
            n_heads=2,
            n_kv_heads=1,
            support="exact",
            reason="through our attention function its output differs from its own by 1e-06",
        ),
        probe={"kind": "repeated_tokens", "n_prompts": 16, "period": 50, "jitter": True, "seed": 3},
        roles=(Role(name="induction", needs_control=True), Role(name="previous_token", needs_control=False)),
        scores=scores,
        unscored=unscored or {},
        provenance=Provenance(
            dtype="float32",
            device="cpu",
            kernels=("flash", "tiled"),
            seed=3,
            versions={"headscope": "0.1.0", "torch": "2.13.0"},
            command="headscope scan my/model",
        ),
        timing=Timing(wall_s=1.5, tokens=4768),
    )


@pytest.fixture
def scan() -> Scan:
    return scan_of(
        score("L0H0", mean=0.03, gain=0.01),
        score("L0H0", "previous_token", mean=0.95, gain=0.0),
        score("L1H0", mean=0.91, gain=0.88),
        # From a single prompt: no interval.
        score("L1H0", "previous_token", mean=0.02, ci95=None, control=0.01, selectivity=Estimate(mean=0.01, ci95=None)),
        score("L1H1", mean=0.97, gain=0.95),
        # No control at all, in the second call of a looped model.
        score("L1H1#1", "previous_token", mean=0.4),
    )


# ---- what counts as found


def test_heads_come_best_first_and_ranked_holds_all_of_them(scan):
    assert [str(one.head) for one in scan.heads("induction")] == ["L1H1", "L1H0"]
    assert [str(one.head) for one in scan.ranked("induction")] == ["L1H1", "L1H0", "L0H0"]
    assert [str(one.head) for one in scan.heads("previous_token")] == ["L0H0", "L1H1#1"]
    assert scan.heads() == scan.heads("induction", threshold=0.4)


def test_heads_of_equal_score_come_in_the_order_of_the_model():
    equal = scan_of(*(score(head, gain=0.5) for head in ("L1H1", "L0H1", "L1H0", "L0H1#1")))
    assert [str(one.head) for one in equal.heads()] == ["L0H1", "L0H1#1", "L1H0", "L1H1"]


def test_the_threshold_is_met_when_it_is_reached():
    near = scan_of(score("L0H0", mean=0.4, gain=0.4), score("L0H1", mean=0.3999, gain=0.3999))
    assert [str(one.head) for one in near.heads()] == ["L0H0"]
    assert len(near.heads(threshold=0.3)) == 2
    assert near.heads(threshold=1.1) == []


def test_a_head_must_lose_half_of_its_score_on_the_control_for_a_role_about_content():
    # Of a mean of 0.8: half is 0.4. Below it the head looks at the place and not at the token.
    kept = scan_of(
        score("L0H0", mean=0.8, gain=0.4),
        score("L0H1", mean=0.8, gain=0.39),
        score("L1H0", mean=0.8, gain=-0.1),
        score("L1H1", mean=0.8, gain=None),
    )
    assert [str(one.head) for one in kept.heads("induction")] == ["L0H0", "L1H1"]
    # Whether the token before is looked at has nothing to do with content.
    place = scan_of(score("L0H0", "previous_token", mean=0.8, gain=0.0))
    assert [str(one.head) for one in place.heads("previous_token")] == ["L0H0"]


def test_an_unknown_role_and_one_without_scores_are_told_apart(scan):
    with pytest.raises(ArgumentError, match="this scan has no detector 'inductoin'; it has induction, previous_token"):
        scan.heads("inductoin")
    reason = "no prompt has a target for it: no token repeats"
    without = scan_of(unscored={"duplicate_token": reason})
    for ask in (without.heads, without.ranked):
        with pytest.raises(ArgumentError, match=f"no score for duplicate_token: {reason}"):
            ask("duplicate_token")


# ---- how they print


def test_a_score_prints_its_head_mean_and_interval():
    # From the design: HeadScore(L5H1, 0.91 [0.90, 0.92]).
    assert repr(score("L5H1", mean=0.91)) == "HeadScore(L5H1, 0.91 [0.90, 0.92])"
    assert repr(score("5.1", mean=0.914, ci95=(0.8951, 0.9249))) == "HeadScore(L5H1, 0.91 [0.90, 0.92])"
    assert repr(score("L5H1#2", mean=0.5, ci95=None)) == "HeadScore(L5H1#2, 0.50)"


def test_a_scan_prints_what_was_found(scan):
    assert repr(scan) == "Scan(my/model: 2 induction, 2 previous_token, support exact)"
    assert repr(scan_of(score("L0H0", mean=0.1))) == "Scan(my/model: no head found, support exact)"


def test_results_are_frozen(scan):
    first = scan.scores[0]
    for record in (scan, first, first.selectivity, scan.model, scan.provenance, scan.timing, scan.roles[0]):
        name = dataclasses.fields(record)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, name, getattr(record, name))
        assert not hasattr(record, "__dict__"), "slotted: a misspelt name raises"


# ---- the document


def test_the_document_has_the_keys_that_other_programs_rely_on(scan):
    document = scan.to_dict()
    assert document["schema"] == "headscope.scan/1"
    assert set(document) == {
        "schema", "model", "probe", "detectors", "heads", "found", "unscored", "provenance", "timing",
    }  # fmt: skip
    assert set(document["model"]) >= {"id", "revision", "family", "n_layers", "n_heads", "n_kv_heads", "support"}
    assert set(document["timing"]) == {"wall_s", "tokens"}
    assert set(document["provenance"]) == {"dtype", "device", "kernels", "seed", "versions", "command"}
    first = document["heads"][0]
    assert (first["layer"], first["head"]) == (0, 0)
    assert set(first["scores"]) == {"induction", "previous_token"}
    assert first["scores"]["induction"] == {
        "mean": 0.03,
        "ci95": [pytest.approx(0.02), pytest.approx(0.04)],
        "chance": 0.02,
        "control": pytest.approx(0.02),
        "selectivity": {"mean": 0.01, "ci95": [0.0, 0.02]},
        "n_prompts": 16,
    }
    assert document["found"] == {
        "induction": [{"layer": 1, "head": 1, "score": 0.97}, {"layer": 1, "head": 0, "score": 0.91}],
        "previous_token": [{"layer": 0, "head": 0, "score": 0.95}, {"layer": 1, "head": 1, "call": 1, "score": 0.4}],
    }
    # A head's place names its call only where there is more than one.
    assert [entry.get("call") for entry in document["heads"]] == [None, None, None, 1]


def test_the_document_survives_json_and_comes_back_as_the_same_scan(scan):
    assert json.loads(scan.to_json()) == scan.to_dict()
    assert Scan.from_dict(scan.to_dict()) == scan
    assert Scan.from_dict(json.loads(scan.to_json())) == scan
    empty = scan_of(unscored={"induction": "no prompt has a target for it"})
    assert Scan.from_dict(json.loads(empty.to_json())) == empty


def test_a_scan_does_not_share_its_document(scan):
    document = scan.to_dict()
    read = Scan.from_dict(document)
    document["probe"]["period"] = 99
    document["unscored"]["induction"] = "edited"
    document["heads"][0]["scores"]["induction"]["mean"] = 1.0
    assert read == scan
    assert scan.probe["period"] == 50


def test_not_a_number_is_never_written_nor_read(scan, tmp_path):
    bad = scan_of(score("L0H0", mean=float("nan")))
    with pytest.raises(ValueError, match="not JSON compliant"):
        bad.to_json()
    scan.save(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        bad.save(tmp_path)
    assert Scan.load(tmp_path) == scan, "what was there stays"
    for constant in ("NaN", "Infinity", "-Infinity"):
        (tmp_path / "scan.json").write_text(scan.to_json().replace("0.97", constant))
        with pytest.raises(ArgumentError, match=f"cannot be read as a scan: {constant} is not a number"):
            Scan.load(tmp_path)


# ---- files


def test_save_and_load(scan, tmp_path):
    document, table = scan.save(tmp_path / "not" / "there" / "yet")
    assert (document.name, table.name) == ("scan.json", "scan.parquet")
    assert Scan.load(document) == Scan.load(document.parent) == Scan.load(str(document.parent)) == scan
    assert document.read_text() == scan.to_json() + "\n"
    assert sorted(path.name for path in document.parent.iterdir()) == ["scan.json", "scan.parquet"]
    # Again, over what is there.
    scan_of().save(document.parent)
    assert Scan.load(document.parent) == scan_of()


def test_a_frame_has_one_row_for_each_head_and_role(scan):
    frame = scan.to_frame()
    assert list(frame.columns) == [
        "layer", "head", "call", "detector", "mean", "ci_low", "ci_high", "chance", "control",
        "selectivity", "selectivity_low", "selectivity_high", "n_prompts", "model",
    ]  # fmt: skip
    assert set(frame["model"]) == {scan.model.id}
    assert len(frame) == 6
    row = frame.iloc[2]
    assert (row.layer, row["head"], row.call, row.detector, row.n_prompts) == (1, 0, 0, "induction", 16)
    assert (row["mean"], row.ci_low, row.ci_high) == (0.91, pytest.approx(0.90), pytest.approx(0.92))
    assert (row.control, row.selectivity, row.selectivity_low) == (pytest.approx(0.03), 0.88, pytest.approx(0.87))
    # What is not there is missing, not zero.
    assert frame.iloc[3][["ci_low", "ci_high", "selectivity_low", "selectivity_high"]].isna().all()
    assert frame.iloc[5][["control", "selectivity", "selectivity_low"]].isna().all()
    assert frame.call.tolist() == [0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("scores", [(), (score("L0H0"),), (score("L0H0", ci95=None),)], ids=["all", "control", "ci"])
def test_columns_keep_their_types_whatever_is_missing(scores):
    types = scan_of(*scores).to_frame().dtypes
    for name in COLUMNS:
        if name != "detector":
            assert types[name] == ("int64" if name in ("layer", "head", "call", "n_prompts") else "float64"), name


def test_parquet_holds_the_frame_and_says_where_it_comes_from(scan, tmp_path):
    for made in (scan, scan_of()):
        _, table = made.save(tmp_path)
        read = pd.read_parquet(table)
        pd.testing.assert_frame_equal(read, made.to_frame(), check_dtype=False)
        metadata = json.loads(pq.read_schema(table).metadata[b"headscope"])
        document = made.to_dict()
        assert metadata == {key: document[key] for key in document if key not in ("heads", "found")}


# ---- a write that fails


def test_a_failed_rename_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "scan.json"
    path.write_text("old")

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            write_whole(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "scan.json"
    path.write_text("old")
    opened = os.fdopen

    class Full:
        def __init__(self, handle: int, mode: str) -> None:
            self.file = opened(handle, mode)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def write(self, content: bytes) -> None:
            self.file.write(content[:1])
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fdopen", Full)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_never_sees_half_a_file(tmp_path, monkeypatch):
    path = tmp_path / "scan.json"
    write_whole(path, b"old")
    renamed = os.replace

    def look(source: str, target: Path) -> None:
        assert path.read_bytes() == b"old"
        assert Path(source).parent == tmp_path, "a rename is one step only within one file system"
        assert Path(source).read_bytes() == b"new"
        renamed(source, target)

    monkeypatch.setattr(os, "replace", look)
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"


def test_files_get_the_rights_that_new_files_get(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "scan.json", b"x")
        assert os.umask(0o027) == 0o027, "the umask is put back"
    finally:
        os.umask(before)
    assert (tmp_path / "scan.json").stat().st_mode & 0o777 == 0o640


# ---- damaged documents


def test_a_file_that_is_no_scan_is_refused(tmp_path):
    with pytest.raises(
        ArgumentError, match=r"x\.\.\. cannot be read as a scan|xx' cannot be read as a scan: .*name too"
    ):
        Scan.load("x" * 300)
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ArgumentError, match="deep.json' cannot be read as a scan: maximum recursion depth"):
        Scan.load(tmp_path / "deep.json")
    with pytest.raises(ArgumentError, match="missing.json' cannot be read as a scan"):
        Scan.load(tmp_path / "missing.json")
    with pytest.raises(ArgumentError, match="scan.json' cannot be read as a scan"):
        Scan.load(tmp_path)
    for content in (b"", b"{", b"\xff\xfe", b"PAR1"):
        (tmp_path / "scan.json").write_bytes(content)
        with pytest.raises(ArgumentError, match="cannot be read as a scan"):
            Scan.load(tmp_path)
    for content in ("[]", "null", "3", "{}", '{"schema": "headscope.verify/1"}', '{"schema": "headscope.scan/2"}'):
        (tmp_path / "scan.json").write_text(content)
        with pytest.raises(ArgumentError, match=r"schema .* is not 'headscope.scan/1'; give a file"):
            Scan.load(tmp_path)


@pytest.mark.parametrize("key", ["model", "probe", "detectors", "heads", "unscored", "provenance", "timing"])
def test_a_document_without_one_of_its_parts_is_refused(scan, key):
    document = scan.to_dict()
    del document[key]
    with pytest.raises(ArgumentError, match=f"the scan document is damaged .'{key}'.; write it again"):
        Scan.from_dict(document)


def paths(part: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of everything in a document."""
    for key, value in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
        yield (*here, key)
        yield from paths(value, (*here, key))


def test_a_head_that_stands_twice_is_refused(scan):
    document = scan.to_dict()
    first = copy.deepcopy(document["heads"][0])
    document["heads"].append(first)
    with pytest.raises(ArgumentError, match=rf"damaged \(L{first['layer']}H{first['head']} is in it twice\)"):
        Scan.from_dict(document)


@pytest.mark.parametrize("junk", [None, "x", [], {}, [1], [None, None], 7, "missing"], ids=repr)
def test_junk_anywhere_in_a_document_is_an_error_of_ours_or_harmless(scan, junk, monkeypatch):
    # Without the type checks of these tests, as users run it.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    document = scan.to_dict()
    harmless = []
    for path in paths(document):
        damaged = copy.deepcopy(document)
        parent = damaged
        for key in path[:-1]:
            parent = parent[key]
        if junk == "missing":
            del parent[path[-1]]
        else:
            parent[path[-1]] = junk
        try:
            read = Scan.from_dict(damaged)
        except ArgumentError:
            continue
        harmless.append(path)
        assert all(isinstance(one.mean, float) and isinstance(one.chance, float) for one in read.scores)
    assert ("heads", 0, "layer") not in harmless or junk == 7
    assert ("timing",) not in harmless


def test_the_columns_of_whole_numbers_are_columns():
    assert set(results.WHOLE) < set(COLUMNS)
