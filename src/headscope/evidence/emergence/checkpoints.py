"""The checkpoints of one run, by step: folders on disk, or revisions of a repository on the hub or in its local cache.

A step is the number after the last `step` in a name, or else the number that the name ends with (`step_of`):
`step-000400`, `checkpoint-500`, `step1000`, `stage1-step1000-tokens4B`. Three layouts are read:

    a folder of checkpoints         each subfolder that holds a config.json
    a folder of the hub's cache     models--org--name, with refs/step1000 and snapshots/
    a hub id                        its branches and tags; without network those that the cache knows

Of revisions only those are taken whose name says that it is a step or checkpoint, unless they are named.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

from headscope.errors import ArgumentError, ModelNotFound

_COMMIT = re.compile(r"[0-9a-f]{40}")
_STEP = re.compile(r"step[-_]?(\d+)|(\d+)$", re.IGNORECASE)
_NAMED = re.compile(r"step|checkpoint|ckpt", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One of them, not opened yet."""

    step: int
    """From its name."""
    name: str
    """Of the folder or revision."""
    source: str
    """What `headscope.load` takes."""
    revision: str | None
    """And with which revision."""
    mark: str
    """Changes when the checkpoint does: its commit, or sizes and times of its files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a source holds."""

    checkpoints: tuple[Checkpoint, ...]
    """By step."""
    passed_over: dict[str, str]
    """Names of what looks like a checkpoint and has no step, and why."""


def find_checkpoints(source: str | Path, *, revisions: str | Sequence[str] | None = None, every: int = 1) -> Found:
    """List the checkpoints of a run.

    Args:
        source: A folder of either layout, or a hub id.
        revisions: Only these, by name or by pattern like `step*000`.
        every: Only steps that are multiples of it.

    Raises:
        ArgumentError: every < 1, a name that is not there, no checkpoint left, or two of one step.
        ModelNotFound: no such folder, and no such model on the hub or in its cache.
    """
    if every < 1:
        raise ArgumentError(f"every={every}; it needs a number of steps from 1 up.")
    wanted = [revisions] if isinstance(revisions, str) else None if revisions is None else list(revisions)
    folder = Path(source)
    if not os.path.exists(folder) and not str(source).startswith(("/", "./", "../", "~")):
        refs, kind = _refs(str(source)), "revision"
        found = [(name, str(source), name, commit) for name, commit in refs.items()]
    elif (folder / "snapshots").is_dir():
        found = [_snapshot(folder, name, commit) for name, commit in _cached_refs(folder).items()]
        kind = "revision"
    elif folder.is_dir():
        found, kind = [_subfolder(path) for path in _subfolders(folder)], "folder"
    else:
        raise ModelNotFound(f"{str(source)!r} is not a folder; give a folder of checkpoints, or a hub id.")
    names = [name for name, *_ in found]
    chosen = set(_chosen(names, wanted)) if wanted is not None else _by_default(names, kind)
    steps = {name: step_of(name) for name in names if name in chosen}
    made = [
        Checkpoint(step=step, name=name, source=where, revision=revision, mark=mark)
        for name, where, revision, mark in found
        if (step := steps.get(name)) is not None and step % every == 0
    ]
    made.sort(key=lambda one: one.step)
    if not made:
        raise ArgumentError(
            f"{str(source)!r} has no checkpoint to follow: of {len(names)} {kind}s none has a step in its name, like "
            "step-000400, that is asked for; give another folder or hub id, or other revisions."
        )
    for first, second in pairwise(made):
        if first.step == second.step:
            raise ArgumentError(
                f"{first.name!r} and {second.name!r} are both checkpoints of step {first.step}; name one of them "
                "with --revision."
            )
    without = {name: "its name holds no step" for name, step in steps.items() if step is None}
    return Found(checkpoints=tuple(made), passed_over=without)


def step_of(name: str) -> int | None:
    """The step in the name of a checkpoint's folder or revision: the number after its last `step`, or at its end.

    `step-000400` is 400, `checkpoint-500` is 500, `stage1-step1000-tokens4B` is 1000. `main` and commits hold none.
    """
    if _COMMIT.fullmatch(name):
        return None
    after = [match[1] for match in _STEP.finditer(name) if match[1]]
    match = _STEP.search(name)
    return int(after[-1]) if after else int(match[2]) if match else None


def _by_default(names: Sequence[str], kind: str) -> set[str]:
    return set(names) if kind == "folder" else {name for name in names if _NAMED.search(name)}


def _chosen(names: Sequence[str], wanted: Sequence[str]) -> Iterator[str]:
    for pattern in wanted:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "none"
            raise ArgumentError(f"no checkpoint is called {pattern!r}; there are {len(names)}: {shown}.")
        yield from matching


_Listed = tuple[str, str, str | None, str]
"""Name, source, revision, mark."""


def _subfolders(folder: Path) -> list[Path]:
    if (folder / "config.json").is_file() and not any((path / "config.json").is_file() for path in folder.iterdir()):
        raise ArgumentError(
            f"{str(folder)!r} is one model; to follow its training give the folder that holds its checkpoints."
        )
    return sorted(path for path in folder.iterdir() if (path / "config.json").is_file())


def _subfolder(path: Path) -> _Listed:
    return path.name, str(path), None, _fingerprint(path)


def _fingerprint(folder: Path) -> str:
    """Of the names, sizes and times of a folder's files; weights are too large to be read for it."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file():
            digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _snapshot(folder: Path, name: str, commit: str) -> _Listed:
    return name, str(folder / "snapshots" / commit), None, commit


def _cached_refs(folder: Path) -> Mapping[str, str]:
    """Commit of each revision that a folder of the hub's cache knows."""
    refs = folder / "refs"
    return {
        path.relative_to(refs).as_posix(): path.read_text(encoding="utf-8").strip()
        for path in sorted(refs.rglob("*"))
        if path.is_file()
    }


def _refs(repository: str) -> Mapping[str, str]:
    """Commit of each branch and tag; without network those of the local cache."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError

    cached = Path(constants.HF_HUB_CACHE) / "--".join(["models", *repository.split("/")])
    try:
        refs = HfApi().list_repo_refs(repository)
    except HFValidationError as error:
        raise ModelNotFound(f"{repository!r} is neither a folder here nor a name that the hub could have.") from error
    except Exception as error:  # which kind it is depends on the HTTP library that the hub's client uses
        if not (cached / "refs").is_dir():
            raise ModelNotFound(
                f"no model {repository!r}: it is neither a folder here nor a model that the hub or its local cache "
                "could give; check the name, the network, and access if it is gated."
            ) from error
        return _cached_refs(cached)
    return {ref.name: ref.target_commit for ref in [*refs.branches, *refs.tags]}
