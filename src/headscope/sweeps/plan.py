"""What a sweep will do: one job for each model, revision and kind of measurement.

    identity = sha256(code schema, model, content, what, settings, dtype)      names the job's file in the store
    request  = sha256(the same without content)                                names its failure

`content` is the hub's commit, or a fingerprint of a folder's files. So a job is the same job in every later sweep as
long as nothing that could change its rows has changed, and a branch that moved, or a checkpoint that was written again,
is a new job. The device is no part of it: it changes rounding alone.

Cost: one question to the hub for each model with branches or tags among its revisions, none for full commits; of a
folder, its file names and sizes and at most 2 MiB of each large file, here and again once its model is loaded.

Misleading when: a large file of a folder is edited in its middle and its time of modification set back.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from headscope.errors import ArgumentError, HeadscopeError, ModelError, ModelNotFound
from headscope.evidence.kinds import sweepable

KINDS: tuple[str, ...] = tuple(sweepable())
"""The kinds of evidence that a sweep measures."""

CODE_SCHEMA = 1
"""Raised by one when the same job would give other rows or columns: what was done before is then done again."""

WHOLE_FILE = 16 * 2**20
"""Files up to this size are read whole for a folder's fingerprint; of larger ones the first and the last MiB."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One measurement of one model."""

    model: str
    """Hub id, `demo`, or the absolute path of a folder."""
    revision: str | None
    """Branch, tag or commit, as it was asked for; None for a folder, and for the hub's main branch."""
    content: str | None
    """Commit of the hub, or fingerprint of the folder; None where the model or revision was not found."""
    what: str
    """What is measured."""
    settings: dict[str, Any]
    """With which settings, all of them."""
    dtype: str
    """In which precision."""

    @property
    def request(self) -> str:
        """Names what was asked for, whatever the model holds today."""
        return _sha256([CODE_SCHEMA, self.model, self.revision, self.what, self.settings, self.dtype])[:16]

    @property
    def identity(self) -> str:
        """Names the result."""
        return _sha256([CODE_SCHEMA, self.model, self.content, self.what, self.settings, self.dtype])

    @property
    def commit(self) -> str | None:
        """The hub's commit; None for a folder."""
        return self.content if self.content is not None and _COMMIT.fullmatch(self.content) else None

    def __str__(self) -> str:
        return f"{self.what} of {self.model}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A job whose model or revision was not found."""

    job: Job
    """Which."""
    error: HeadscopeError
    """Why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All jobs of a sweep, each once."""

    jobs: tuple[Job, ...]
    """Those that can run."""
    refused: tuple[Refused, ...]
    """Those that cannot."""

    def groups(self) -> list[list[Job]]:
        """The jobs, those of one model together."""
        grouped: dict[tuple[str, str | None, str], list[Job]] = {}
        for job in self.jobs:
            grouped.setdefault((job.model, job.content, job.dtype), []).append(job)
        return list(grouped.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a sweep was asked for, as arguments or in a file."""

    models: tuple[str, ...] = ()
    """Hub ids, folders or `demo`; a hub id may end in `@revision`."""
    what: tuple[str, ...] = ()
    """Kinds of measurement."""
    settings: Mapping[str, Mapping[str, Any]]
    """Settings by kind."""


def make_plan(
    models: Sequence[str | Path],
    *,
    revisions: Sequence[str] = (),
    what: Sequence[str] = ("scan",),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    dtype: str = "auto",
) -> Plan:
    """Every model and revision with every kind of measurement.

    Args:
        models: Hub ids, folders or `demo`. `ID@REVISION` names a revision of a hub model.
        revisions: Of each hub model that names none itself; by default its main branch.
        what: Kinds of evidence: `scan`, `verify`, `circuit`, `icl`, ...
        settings: By kind, what differs from the defaults.
        dtype: As `headscope.load` takes it.

    Raises:
        ArgumentError: no model, a string where a list belongs, or an unknown kind, setting or dtype.
    """
    from headscope.model.load import DTYPES

    for name, given in (("models", models), ("revisions", revisions), ("what", what)):
        if isinstance(given, (str, Path)):
            raise ArgumentError(f"{name}={str(given)!r}; it needs a list, like [{str(given)!r}].")
    if not models:
        raise ArgumentError("a sweep needs at least one model; name models, or give a file of them with --from.")
    if dtype not in DTYPES:
        raise ArgumentError(f"dtype={dtype!r} is not known; use one of {', '.join(DTYPES)}.")
    full: dict[str, dict[str, Any]] = {
        kind: _settings(kind, dict(settings or {}).get(kind, {})) for kind in _kinds(what, settings or {})
    }
    asked = dict.fromkeys(pair for model in models for pair in _revisions(str(model), revisions))
    jobs: dict[str, Job] = {}
    refused: dict[str, Refused] = {}
    refs: dict[str, dict[str, str]] = {}
    for model, revision in asked:
        content, error = None, None
        try:
            content = content_of(model, revision, refs)
        except HeadscopeError as found:
            error = found
        except OSError as found:
            error = ModelError(f"{model!r} cannot be read: {found.strerror or found}; fix that, and sweep again.")
        for kind, values in full.items():
            job = Job(model=model, revision=revision, content=content, what=kind, settings=values, dtype=dtype)
            if error is None:
                jobs.setdefault(job.identity, job)
            else:
                refused[job.request] = Refused(job=job, error=error)
    return Plan(jobs=tuple(jobs.values()), refused=tuple(refused.values()))


def read_wanted(path: str | Path) -> Wanted:
    """A file of models: text with one `MODEL` or `MODEL@REVISION` on each line, or TOML.

    Text may hold empty lines and comments after `#`. TOML may hold `models` (strings, or tables with `id` and
    `revisions`), `what`, and a table of settings for each kind.

    Raises:
        ArgumentError: the file cannot be read, or holds something else.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".toml":
            lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
            return Wanted(models=tuple(line for line in lines if line), settings={})
        document = tomllib.loads(text)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ArgumentError(f"{str(path)!r} cannot be read as a list of models: {why}.") from error
    unknown = sorted(set(document) - {"models", "what", *KINDS})
    if unknown:
        raise ArgumentError(f"{str(path)!r} has unknown {', '.join(unknown)}; it may hold models, what, and settings.")
    try:
        what = _list(document.get("what", []))
        models = tuple(name for entry in _list(document.get("models", [])) for name in _entry(entry))
        if not all(isinstance(document.get(kind, {}), dict) for kind in KINDS):
            raise TypeError
    except (AttributeError, KeyError, TypeError) as error:
        raise ArgumentError(
            f'{str(path)!r} is not a plan; write models = ["gpt2", {{ id = "gpt2", revisions = ["main"] }}], '
            'what = ["scan"], and settings like [scan] with n_prompts = 16.'
        ) from error
    return Wanted(
        models=models, what=tuple(what), settings={kind: document[kind] for kind in KINDS if kind in document}
    )


def _entry(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    if set(entry) - {"id", "revisions"}:
        raise KeyError
    if "revisions" not in entry:
        return [entry["id"]]
    return [f"{entry['id']}@{revision}" for revision in _list(entry["revisions"])]


def _list(given: Any) -> list[Any]:
    if not isinstance(given, list):
        raise TypeError
    return cast("list[Any]", given)


def _kinds(what: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    unknown = [kind for kind in [*what, *settings] if kind not in KINDS]
    if unknown or not what:
        raise ArgumentError(f"what={unknown[0] if unknown else ''!r} is not known; use {', '.join(KINDS)}.")
    return [kind for kind in KINDS if kind in what]


def _settings(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    known = sweepable()[kind].settings
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ArgumentError(f"{kind} has no setting {unknown[0]!r}; it has {', '.join(known)}.")
    for name, value in given.items():
        usual = known[name]
        fits = type(value) is (int if usual is None else type(usual)) or (usual is None and value is None)
        if not fits:
            kind_of = "a whole number" if usual is None or type(usual) is int else f"like {usual!r}"
            raise ArgumentError(f"{kind}.{name}={value!r}; it needs to be {kind_of}.")
    return {**known, **given}


def _revisions(model: str, revisions: Sequence[str]) -> list[tuple[str, str | None]]:
    """(hub id, `demo` or absolute path; revision) for each revision of a model."""
    folder = os.path.expanduser(model)
    if model != "demo" and (os.path.exists(folder) or model.startswith(("/", "./", "../", "~"))):
        return [(os.path.realpath(folder), None)]
    name, at, revision = model.partition("@")
    if at and not (name and revision):
        raise ArgumentError(f"{model!r} is no model; write MODEL or MODEL@REVISION.")
    if name == "demo":
        return [("demo", None)]
    return [(name, one) for one in ([revision] if at else revisions or [None])]


def content_of(model: str, revision: str | None, refs: dict[str, dict[str, str]] | None = None) -> str:
    """The commit that a revision of a hub model means today, or the fingerprint of a folder.

    Args:
        model: Hub id, `demo`, or a folder.
        revision: Branch, tag or commit; None for the main branch.
        refs: What the hub said of branches and tags before, which is kept there.

    Raises:
        ModelNotFound: no such model or revision.
    """
    if model == "demo":
        from headscope.training.demo import demo_path

        return fingerprint(demo_path())
    if Path(model).is_absolute():
        if not Path(model).is_dir():
            raise ModelNotFound(f"{model!r} is not a folder; give a folder with config.json and weights, or a hub id.")
        return fingerprint(Path(model))
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    return _commit(model, revision or "main", {} if refs is None else refs)


def fingerprint(folder: Path) -> str:
    """What tells a folder's content from another: names, sizes, and bytes of the files in it, not below it.

    Of files above `WHOLE_FILE` only the ends are read, and their time of modification counts too.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
        about = path.stat()
        digest.update(json.dumps([path.name, about.st_size]).encode())
        with path.open("rb") as file:
            if about.st_size <= WHOLE_FILE:
                digest.update(file.read())
                continue
            digest.update(file.read(2**20))
            file.seek(-(2**20), 2)
            digest.update(file.read())
            digest.update(str(about.st_mtime_ns).encode())
    return f"folder:{digest.hexdigest()}"


def _commit(model: str, revision: str, refs: dict[str, dict[str, str]]) -> str:
    """Ask the hub; where it cannot be reached, its local cache."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        if model not in refs:
            found = HfApi().list_repo_refs(model)
            refs[model] = {one.name: one.target_commit for one in [*found.tags, *found.branches]}
        if revision in refs[model]:
            return refs[model][revision]
        commit = HfApi().model_info(model, revision=revision).sha  # a short commit, or a pull request's
        if commit is not None:
            return commit
    except (RevisionNotFoundError, GatedRepoError, RepositoryNotFoundError, HFValidationError) as error:
        raise _not_found(model, revision, refs.get(model, {}), error) from error
    except Exception:  # which kind it is depends on the HTTP library that the hub's client uses
        pass  # the cache may know it
    cached = try_to_load_from_cache(model, "config.json", revision=revision)
    if isinstance(cached, str):
        return Path(cached).parent.name
    raise ModelNotFound(
        f"no model {model!r} at revision {revision!r}: the hub could not be reached, and its local cache does not "
        "hold it; check the names and the network."
    )


def _not_found(model: str, revision: str, refs: Iterable[str], error: Exception) -> ModelNotFound:
    names = list(refs)
    if names:
        some = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        return ModelNotFound(
            f"{model!r} has no revision {revision!r}; it has {len(names)} branches and tags ({some}): name one of "
            "them, or a commit."
        )
    return ModelNotFound(
        f"no model {model!r}: the hub has no such id, or gives you no access to it "
        f"({type(error).__name__}); check the name, and log in if it is gated."
    )


def _sha256(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()
