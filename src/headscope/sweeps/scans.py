"""The scans of a store as results: what a sweep kept of each model, without its prompts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from headscope.detectors.standard import DETECTORS
from headscope.errors import ArgumentError
from headscope.evidence.scan.result import HeadScore, Role, Scan, Timing
from headscope.heads import HeadId
from headscope.records.common import Estimate, ModelInfo, Provenance


def scans_of(jobs: Sequence[dict[str, Any]], scores: Sequence[dict[str, Any]], *, store: str) -> list[Scan]:
    """Every scan that a store holds, by model and revision.

    Args:
        jobs: Rows of the store's table `jobs`.
        scores: Of its table `scan`.
        store: The store's path, for messages.

    Raises:
        ArgumentError: it holds none, or a file is damaged.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in scores:
        rows.setdefault(row["job"], []).append(row)
    of = {job["job"]: job for job in jobs if job["what"] == "scan"}
    found = [_scan(of[name], own) for name, own in rows.items()]
    if not found:
        raise ArgumentError(f"the store {store!r} holds no scan; run headscope sweep with --what scan.")
    return found


def _scan(job: dict[str, Any], rows: list[dict[str, Any]]) -> Scan:
    needs = {one.name: one.needs_control for one in DETECTORS}
    settings = json.loads(job["settings"])
    return Scan(
        model=ModelInfo(
            id=job["model"],
            revision=job["revision"],
            family=job["family"],
            n_layers=job["n_layers"],
            n_heads=job["n_heads"],
            n_kv_heads=job["n_kv_heads"],
            support=job["support"],
            reason=job["support_reason"],
        ),
        probe=settings,
        roles=tuple(
            Role(name=name, needs_control=needs[name]) for name in dict.fromkeys(row["detector"] for row in rows)
        ),
        scores=tuple(_score(row) for row in rows),
        unscored={},
        provenance=Provenance(
            dtype=job["dtype"],
            device=job["device"],
            kernels=tuple(filter(None, job["kernels"].split(", "))),
            seed=settings.get("seed"),
            versions=json.loads(job["versions"]),
            command=job["command"],
        ),
        timing=Timing(wall_s=job["wall_s"], tokens=job["tokens"]),
    )


def _score(row: dict[str, Any]) -> HeadScore:
    selectivity = _number(row["selectivity"])
    return HeadScore(
        head=HeadId(row["layer"], row["head"], row["call"]),
        detector=row["detector"],
        mean=row["mean"],
        ci95=_ends(row["ci_low"], row["ci_high"]),
        chance=row["chance"],
        control=_number(row["control"]),
        selectivity=None
        if selectivity is None
        else Estimate(mean=selectivity, ci95=_ends(row["selectivity_low"], row["selectivity_high"])),
        n_prompts=row["n_prompts"],
    )


def _ends(low: float | None, high: float | None) -> tuple[float, float] | None:
    ends = _number(low), _number(high)
    return None if ends[0] is None or ends[1] is None else (ends[0], ends[1])


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
