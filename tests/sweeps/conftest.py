"""Tiny random models in folders, and how two stores are compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.tiny import tiny_causal_lm

FAMILIES = ("llama", "gpt2", "qwen2")

TIMES = ["load_s", "wall_s", "finished", "host", "command"]
"""Columns of `jobs` that differ from run to run."""


@pytest.fixture
def save_models(tmp_path: Path) -> Callable[[int], list[Path]]:
    """Save this many tiny models, of three families, each with other weights."""

    def save(count: int) -> list[Path]:
        made = []
        for seed in range(count):
            family = FAMILIES[seed % len(FAMILIES)]
            folder = tmp_path / "models" / f"{family}-{seed}"
            tiny_causal_lm(family, seed=seed).save_pretrained(folder)
            made.append(folder)
        return made

    return save


@pytest.fixture
def assert_same() -> Callable[[Any, Any], None]:
    """Whether two stores hold the same, row for row in every table, but for times and places."""

    def check(given: Any, wanted: Any) -> None:
        for table in ("scan", "verify", "circuit", "icl", "jobs"):
            one, other = given.to_frame(table), wanted.to_frame(table)
            if table == "jobs":
                one, other = one.drop(columns=TIMES), other.drop(columns=TIMES)
            pd.testing.assert_frame_equal(one, other, check_exact=True)

    return check
