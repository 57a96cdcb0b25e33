"""What opening a model may read, checked before any library sees it.

    kind        each file is a regular file: no pipe, no device, no socket, no dangling link
    place       it is in the model's folder; a snapshot of the hub's cache may link to the cache's blobs
    format      weights are *.safetensors, by the name that the index gives them, unless pickles are allowed
    size        text is at most `MOST_TEXT` bytes, a safetensors header at most `MOST_HEADER`
    content     at most `MOST_TENSORS` tensors, `MOST_EMPTY` of them empty; JSON at most `DEEPEST` levels deep

transformers opens what `model.safetensors.index.json` and `transformers_weights` in the config name, whatever it is: a
pickle, a file elsewhere, a pipe that never ends. So the names are followed here first.

Cost: the headers, read once for this and for the count of numbers that `headscope.model.budget` needs.

Misleading when: another program changes the folder while it is read; a file on the hub that is not in the cache yet is
checked once it is fetched.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headscope.errors import ModelError, ModelNotFound, UnsafeWeights, brief

MOST_TEXT = 64 * 2**20
"""Bytes of a config, an index or a tokenizer file. The largest tokenizers have 35 MB."""
MOST_HEADER = 32 * 2**20
"""Bytes of a safetensors header: 250,000 tensors with names of 70 characters."""
MOST_TENSORS = 250_000
MOST_EMPTY = 1_000
DEEPEST = 64
"""Levels of a JSON document."""

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLED_SINGLE, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
ADAPTER_CONFIG, ADAPTER, PICKLED_ADAPTER = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_READ = frozenset(
    ".json .safetensors .jinja .txt .model .py .tiktoken .codes .spm .vocab .tokenizer .bpe .dict".split()
)
"""Endings of what transformers may read in a folder: config, weights, template, code, and what tokenizers bring."""
_PICKLED = frozenset(".bin .pt .pth .ckpt".split())
_TEXT = (
    "config",
    "adapter_config",
    "tokenizer",
    "vocab",
    "merges",
    "special_tokens",
    "added_tokens",
    "chat_template",
    "generation",
)
"""Beginnings of the names of text that is read whole; others, like a trainer's log, are not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The tensors of a checkpoint, by its headers."""

    numbers: Counter[str]
    """How many numbers of each kind, like `F32`."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of each tensor."""


def check_folder(folder: Path, *, allow_pickle: bool) -> Weights | None:
    """Raise if opening a model could read what it must not.

    Args:
        folder: In transformers' layout; one of the hub's cache has the name of a commit, in `snapshots`.
        allow_pickle: Whether weights may be pickles.

    Returns:
        What the safetensors hold; None where the weights are pickles.

    Raises:
        ModelNotFound: it has no config or no weights.
        UnsafeWeights: weights that are pickles, without the flag.
        ModelError: a file of the wrong kind, in the wrong place or too large, or with a header that no model has.
    """
    if not os.path.lexists(folder / CONFIG):
        raise ModelNotFound(f"folder {str(folder)!r} has no config.json; give a folder that save_pretrained wrote.")
    _check_files(folder, allow_pickle)
    config = read_json(folder / CONFIG, f"the config of {str(folder)!r}")
    names = weight_files(folder, config, allow_pickle=allow_pickle)
    for name in names:
        _refuse_name(folder, name, allow_pickle)
        check_file(folder / name, folder)
    safe = [folder / name for name in names if name.endswith(".safetensors")]
    return weights_of(safe) if safe else None


def check_adapter(folder: Path, *, allow_pickle: bool) -> tuple[dict[str, Any], Weights | None]:
    """Raise if opening an adapter of PEFT could read what it must not.

    Args:
        folder: With `adapter_config.json`; what it is put on may be in it too, or elsewhere.
        allow_pickle: Whether its weights may be pickles.

    Returns:
        Its config, and what its safetensors hold; None where they are pickles.

    Raises:
        ModelNotFound: it has no weights.
        UnsafeWeights: weights that are pickles, without the flag.
        ModelError: as `check_folder`.
    """
    _check_files(folder, allow_pickle)
    config = read_json(folder / ADAPTER_CONFIG, f"the adapter's config in {str(folder)!r}")
    if os.path.lexists(folder / ADAPTER):
        return config, weights_of([folder / ADAPTER])
    if not os.path.lexists(folder / PICKLED_ADAPTER):
        raise ModelNotFound(
            f"folder {str(folder)!r} has no {ADAPTER}; give a folder that PEFT's save_pretrained wrote."
        )
    if not allow_pickle:
        raise _only_pickles(folder, PICKLED_ADAPTER)
    return config, None


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a model of its own: a config, and weights under a name that transformers opens."""
    names = (SINGLE, INDEX, PICKLED_SINGLE, PICKLED_INDEX)
    return os.path.lexists(folder / CONFIG) and any(os.path.lexists(folder / name) for name in names)


def fetched(source: str, revision: str, config: Any, *, allow_pickle: bool) -> Weights | None:
    """Fetch the weights of a hub model into the hub's cache, and check its snapshot.

    An index is checked before the files that it names are fetched.

    Args:
        source: The hub id.
        revision: The commit.
        config: As transformers read it.
        allow_pickle: Whether weights may be pickles.

    Returns:
        As `check_folder`; None also where there are no weights, which transformers then says.

    Raises:
        OSError: they cannot be fetched.
        ModelError: as `check_folder`.
    """
    from transformers.utils.hub import cached_file

    def fetch(name: str) -> Path | None:
        found = cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        return None if found is None else Path(found)

    named = getattr(config, "transformers_weights", None)
    wanted = [named] if isinstance(named, str) else [SINGLE, INDEX, *([PICKLED_SINGLE, PICKLED_INDEX] * allow_pickle)]
    first = next((path for path in map(fetch, wanted) if path is not None), None)
    if first is None:
        return None
    if first.name.endswith(".index.json"):
        for name in _indexed(first.parent, first.name):
            _refuse_name(first.parent, name, allow_pickle)
            fetch(name)
    return check_folder(first.parent, allow_pickle=allow_pickle)


def check_file(path: Path, folder: Path) -> None:
    """Raise unless a path leads to a regular file inside a folder, or in the blobs that a snapshot links to.

    Raises:
        ModelError: with what it is instead.
    """
    try:
        target = path.resolve(strict=True)
        kind = target.stat().st_mode
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle, before Python 3.13
        why = getattr(error, "strerror", None) or "it is no file"
        raise ModelError(f"{brief(path)} cannot be read ({why}); the model needs a regular file there.") from error
    if not stat.S_ISREG(kind):
        raise ModelError(f"{brief(path)} is {_kind(kind)}; the model needs a regular file there.")
    if not any(target.is_relative_to(root) for root in _roots(folder)):
        raise ModelError(
            f"{brief(path)} leads out of its folder, to {brief(target)}; a model may read its own files alone: copy "
            "that one into the folder."
        )


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON table of a checked folder, no larger than `MOST_TEXT` and no deeper than `DEEPEST`.

    Args:
        path: The file.
        what: Its name in an error.

    Raises:
        ModelError: it is damaged, too large or too deep, or no table.
    """
    _refuse_large(path)
    try:
        return _table(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{what} cannot be read: {_why(error)}.") from error


def weights_of(files: Sequence[Path]) -> Weights:
    """What safetensors files hold, by their headers alone.

    Raises:
        ModelError: a header that is damaged, too large, or that describes more or emptier tensors than any model has.
    """
    numbers: Counter[str] = Counter()
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            header = _header(path)
        except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ModelError(f"the weights {brief(path)} could not be loaded: {_why(error)}.") from error
        for name, (kind, shape) in header.items():
            shapes[name] = shape
            numbers[kind] += math.prod(shape)
        empty = sum(0 in shape for shape in shapes.values())
        if len(shapes) > MOST_TENSORS or empty > MOST_EMPTY:
            raise ModelError(
                f"{brief(path.parent)} describes {len(shapes):,} tensors, {empty:,} of them empty, and no model has "
                f"more than {MOST_TENSORS:,} or {MOST_EMPTY:,}; use the checkpoint as it was saved."
            )
    return Weights(numbers=numbers, shapes=shapes)


def weight_files(folder: Path, config: Mapping[str, Any], *, allow_pickle: bool) -> list[str]:
    """The names of the files of weights that transformers will open, as the folder gives them and unchecked.

    Raises:
        ModelNotFound: there are none.
        UnsafeWeights: there are only pickles, without the flag.
        ModelError: an index that is none.
    """
    named = config.get("transformers_weights")
    if isinstance(named, str):
        return _indexed(folder, named) if named.endswith(".index.json") else [named]
    if os.path.lexists(folder / SINGLE):
        return [SINGLE]
    if os.path.lexists(folder / INDEX):
        return _indexed(folder, INDEX)
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
    if not allow_pickle and any(folder.glob("*.safetensors")):
        raise ModelError(f"the weights of {str(folder)!r} cannot be read: it has neither {SINGLE} nor {INDEX}.")
    if not pickled:
        raise ModelNotFound(f"folder {str(folder)!r} has no weights; it needs *.safetensors files beside config.json.")
    if not allow_pickle:
        raise _only_pickles(folder, pickled[0])
    if PICKLED_SINGLE in pickled or not os.path.lexists(folder / PICKLED_INDEX):
        return [name for name in pickled if name == PICKLED_SINGLE]
    return _indexed(folder, PICKLED_INDEX)


def _indexed(folder: Path, index: str) -> list[str]:
    """The names of files in an index, each once."""
    check_file(folder / index, folder)
    files = read_json(folder / index, f"the index {brief(folder / index)}").get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise ModelError(f"{brief(folder / index)} has no weight_map from tensors to files; use the index as saved.")
    return sorted(set(files.values()))


def _check_files(folder: Path, allow_pickle: bool) -> None:
    """Raise unless all that a load may read in a folder are regular files in it, text of them within its bound."""
    for path in _readable(folder, allow_pickle):
        check_file(path, folder)
        if path.name.startswith(_TEXT) and path.suffix != ".safetensors":
            _refuse_large(path)


def _readable(folder: Path, allow_pickle: bool) -> Iterator[Path]:
    """Files of a folder that a load may read."""
    endings = _READ | _PICKLED if allow_pickle else _READ
    templates = folder / "additional_chat_templates"
    try:
        if templates.is_dir() and templates.is_symlink():
            raise ModelError(f"{brief(templates)} is a link; copy what it leads to into the folder.")
        for place in (folder, templates) if templates.is_dir() else (folder,):
            for path in sorted(place.iterdir()):
                if path.suffix in endings and not path.name.startswith("."):
                    yield path
    except OSError as error:
        raise ModelError(f"folder {str(folder)!r} cannot be read: {_why(error)}.") from error


def _roots(folder: Path) -> list[Path]:
    """Where the files of a model may be: its folder; of a snapshot also the blobs of its repository and cache."""
    here = folder.resolve()
    if here.parent.name != "snapshots":
        return [here]
    repository = here.parent.parent
    blobs = [place / "blobs" for place in (repository, repository.parent)]
    return [here, *(place for place in blobs if not place.is_symlink())]


def _header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Kind and shape of each tensor of a safetensors file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= os.fstat(file.fileno()).st_size - 8:
            raise ValueError("it has no safetensors header")
        if length > MOST_HEADER:
            raise ValueError(f"its header has {length:,} bytes, and at most {MOST_HEADER:,} are read")
        text = file.read(length)
    if text.count(b"[") + text.count(b"{") > 3 * MOST_TENSORS + 2:  # a table and two lists for each tensor
        raise ValueError(f"its header describes more than {MOST_TENSORS:,} tensors")
    tensors = {name: about for name, about in _table(text).items() if name != "__metadata__"}
    shapes = {name: (str(about["dtype"]), tuple(about["shape"])) for name, about in tensors.items()}
    for name, (_, shape) in shapes.items():
        if len(shape) > 16 or not all(type(size) is int and 0 <= size < 2**48 for size in shape):
            raise ValueError(f"its header gives {brief(name)} the shape {brief(shape)}")
    return shapes


def _table(text: bytes) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}, not a table")
    level: list[Any] = [found]
    for _ in range(DEEPEST):
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
        level = [one for one in level if isinstance(one, (dict, list))]
        if not level:
            return found
    raise ValueError(f"it is nested more than {DEEPEST} levels deep")


def _refuse_large(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ModelError(f"{brief(path)} cannot be read: {_why(error)}.") from error
    if size > MOST_TEXT:
        raise ModelError(f"{brief(path)} has {size:,} bytes, and at most {MOST_TEXT:,} are read; fix the file.")


def _refuse_name(folder: Path, name: str, allow_pickle: bool) -> None:
    """Raise unless a file of weights has the name of one: inside the folder, and safetensors if pickles are not let."""
    if os.path.isabs(name) or ".." in Path(name).parts or "\0" in name:
        raise ModelError(f"the weights of {str(folder)!r} are to be read from {brief(name)}, outside; fix its index.")
    if not (allow_pickle or name.endswith(".safetensors")):
        raise _only_pickles(folder, name)


def _only_pickles(folder: Path, name: str) -> UnsafeWeights:
    return UnsafeWeights(
        f"folder {str(folder)!r} has only pickled weights ({brief(name)}), which can run code when loaded; "
        "convert them to safetensors, or pass --allow-pickle (allow_pickle=True) if you trust them."
    )


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((words for is_kind, words in kinds.items() if is_kind(mode)), "a device")


def _why(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return f"it is nested more than {DEEPEST} levels deep"
    return brief(getattr(error, "strerror", None) or error or type(error).__name__)
