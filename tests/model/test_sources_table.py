"""The table of what can be opened: what the benchmark writes, and some of its rows measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import sources
from headscope.model.load import load

PAGE = Path(__file__).parents[2] / "docs/generated/sources.md"
MEASURED = {
    "weights of int8, as torchao keeps them": dict.fromkeys(sources.USES, "exact"),
    "weights of int4 in groups, as torchao keeps them": dict.fromkeys(sources.USES, "exact"),
    "nanoGPT's `ckpt.pt`": {"scan": "exact", "verify": "runs", "circuit": "runs", "composition": "runs"},
    "module: heads mixed after the softmax": dict.fromkeys(sources.USES, "refused"),
}


@pytest.fixture(scope="module")
def found():
    return sources.measure(list(MEASURED))


@pytest.mark.parametrize("name", MEASURED)
def test_kinds_are_as_exact_as_the_table_says(name, found):
    outcomes = {use: found["kinds"][name][use]["outcome"] for use in MEASURED[name]}
    assert outcomes == MEASURED[name]


def test_the_page_has_a_row_for_each_kind_and_no_defect(found):
    page = PAGE.read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")]
    assert rows[0] == ["object", *sources.USES]
    assert [row[0] for row in rows[2:]] == list(sources.kinds())
    reasons = re.findall(r"^(\d+)\. ", page, re.MULTILINE)
    for row in rows[2:]:
        for cell in row[1:]:
            assert (match := re.fullmatch(r"exact|runs|refused \((\d+)\)", cell)), (row[0], cell)
            assert match[1] is None or match[1] in reasons
    own = sources.markdown(found).splitlines()
    assert own[0].split(" with ")[0] == page.splitlines()[0].split(" with ")[0]
    for line in own:  # its rows but for the numbers of the reasons, which are those of the whole table
        if line.startswith("| ") and "refused" not in line:
            assert line in page


def test_a_difference_is_told():
    # 0.1 added to one pattern is more than the tolerance
    kind = sources.kinds()["a transformers model"](Path())
    model = load(kind.source)
    patterns = kind.reference.patterns()
    patterns[1] = patterns[1] + 0.1
    wrong = sources.Reference(patterns=lambda: patterns, without=kind.reference.without)
    outcome = sources._outcome(sources._scan, model, wrong, None)
    assert outcome["outcome"] == "differs"
    assert outcome["difference"] == pytest.approx(0.1, abs=1e-4)
