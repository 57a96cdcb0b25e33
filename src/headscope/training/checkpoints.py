"""The folder of a training run: what survives when the program is killed, and how it goes on from there.

    train.json           the configuration; the folder belongs to it
    log.jsonl            one line for each look at the model
    step-000400/         a checkpoint, as transformers' save_pretrained writes it
    state.safetensors    what else the newest checkpoint needs to go on: optimizer moments, random generator, step

They are written in this order: log line, checkpoint, state. A line is added to the end of the log; all else appears
under its final name by one rename. So whenever the program dies, the state on disk names a whole checkpoint and a log
that reaches it; what comes after it, perhaps a torn last line, is done again.
The state holds checksums of the weights, of the log and of itself, so that a run never goes on from a bit that flipped.
Every checkpoint is kept; of states only the newest. Two programs must not write to one folder at a time.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from headscope.errors import ArgumentError, HeadscopeError, brief
from headscope.records.codec import Record, decode, encode
from headscope.records.files import read_document, write_whole
from headscope.stopping import uninterrupted
from headscope.training.config import TrainConfig

SCHEMA = "headscope.train_run/1"
CONFIG, LOG, STATE = "train.json", "log.jsonl", "state.safetensors"
WEIGHTS = "model.safetensors"
_STEP = re.compile(r"step-[0-9]{6,}")
_SCRATCH = tuple(f".{name}" for name in ("step-", f"{CONFIG}.", f"{LOG}.", f"{STATE}."))
"""How the names of files and folders begin that are not whole yet."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """The state of a run, besides its weights."""

    step: int
    """Optimizer steps done."""
    wall_s: float
    """Seconds of training so far, over all restarts."""
    tensors: Mapping[str, Tensor]
    """Of `Training.state`."""


class RunFolder:
    """One run's files.

    Args:
        root: The folder; it is made if need be.
        config: Of the run. A folder that holds another one's is refused.

    Raises:
        ArgumentError: the folder holds another run, or other files.
        HeadscopeError: it cannot be written.
    """

    def __init__(self, root: Path, config: TrainConfig) -> None:
        self.root = root
        self._sums: Mapping[str, str] = {}  # of the newest state: `weights` and `log`; none in one of before 0.2
        if (root / CONFIG).exists():
            _refuse_other(root, decode(TrainConfig, read_document(root, CONFIG), schema=SCHEMA), config)
            return
        # A program killed just then may have left the temporary file of its configuration.
        if root.exists() and (not root.is_dir() or any(not path.name.startswith(_SCRATCH) for path in root.iterdir())):
            raise ArgumentError(f"{str(root)!r} exists and holds no run of headscope train; name another folder.")
        with self._writing():
            root.mkdir(parents=True, exist_ok=True)
            document = {"schema": SCHEMA, **encode(config)}
            write_whole(root / CONFIG, (json.dumps(document, indent=1) + "\n").encode())

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.root / f"step-{step:06d}"

    def checkpoints(self) -> list[Path]:
        """Those on disk, by step."""
        return sorted(path for path in self.root.iterdir() if _STEP.fullmatch(path.name))

    def resume(self) -> State | None:
        """The newest state, or None for a run that has none yet. Removes what a killed program left half written."""
        state = self._state()
        with self._writing():
            for path in self.root.iterdir():
                if path.name.startswith(_SCRATCH):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        return state

    def load_weights(self, model: PreTrainedModel, step: int) -> None:
        """Put the weights of a checkpoint into the model.

        Raises:
            ArgumentError: they are missing, damaged, or another model's.
        """
        path = self.checkpoint(step) / WEIGHTS
        try:
            _refuse_irregular(path)
            self._refuse_changed("weights", path.read_bytes())
            model.load_state_dict(load_file(path))
        except (OSError, RuntimeError, SafetensorError, ValueError) as error:
            raise self._damaged(path, error) from error

    def save(self, model: PreTrainedModel, tokenizer: Any | None, state: State) -> None:
        """Write a checkpoint, then the state that goes on from it.

        Raises:
            HeadscopeError: a file cannot be written; earlier checkpoints are as they were.
        """
        with self._writing(), tempfile.TemporaryDirectory(dir=self.root, prefix=".step-") as scratch:
            made = Path(scratch) / "model"
            made.mkdir()
            with _quiet():
                model.save_pretrained(made)
            if tokenizer is not None:
                tokenizer.save_pretrained(made)
            for path in made.iterdir():
                path.chmod(0o644)  # safetensors lets nobody else read its files
            final = self.checkpoint(state.step)
            if final.exists():
                # Of a program that died before it could write the state: the same weights.
                shutil.rmtree(final)
            os.replace(made, final)
            tensors = {name: value.contiguous() for name, value in state.tensors.items()}
            about = {
                "step": str(state.step),
                "wall_s": str(state.wall_s),
                "weights": _sha256((final / WEIGHTS).read_bytes()),
                "log": _sha256((self.root / LOG).read_bytes()),
            }
            whole = about | {"checksum": _sum_of(about, tensors)}
            write_whole(self.root / STATE, save(tensors, metadata=whole))

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a line to the log.

        Raises:
            HeadscopeError: it cannot be written.
        """
        with self._writing(), (self.root / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def rewind_log(self, kind: type[Record], step: int | None) -> list[Record]:
        """Cut the log off after the step of the newest state, and give its rows; None empties it.

        Raises:
            ArgumentError: it is damaged, or does not reach the step.
            HeadscopeError: it cannot be written.
        """
        path = self.root / LOG
        kept: list[dict[str, Any]] = []
        rows: list[Record] = []
        if step is not None:
            try:
                _refuse_irregular(path)
                lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
                # A line is whole when it ends; only the last can be torn, by a kill in the middle of its writing.
                whole = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
                kept = [json.loads(line) for line in whole]
                rows = [decode(kind, row) for row in kept]
                if not kept or kept[-1]["step"] != step:
                    raise ValueError(f"it does not reach step {step}")
                self._refuse_changed("log", "".join(whole).encode())
            except (OSError, KeyError, RecursionError, TypeError, ValueError) as error:
                raise self._damaged(path, error) from error
        with self._writing():
            write_whole(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        return rows

    def _state(self) -> State | None:
        path = self.root / STATE
        if not path.exists():
            return None
        try:
            _refuse_irregular(path)
            with safe_open(path, framework="pt") as file:
                about = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if about.keys() != {"step", "wall_s"}:  # as it was before 0.2, without checksums
                sums = {name: about[name] for name in ("step", "wall_s", "weights", "log")}
                if about["checksum"] != _sum_of(sums, tensors):
                    raise ValueError("it does not fit its checksum")
                self._sums = sums
            state = State(step=int(about["step"]), wall_s=float(about["wall_s"]), tensors=tensors)
        except (AttributeError, OSError, RuntimeError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(path, error) from error
        if not self.checkpoint(state.step).is_dir():
            raise ArgumentError(
                f"{str(path)!r} goes on from {self.checkpoint(state.step).name}, which is missing; restore it, or name "
                "another folder."
            )
        return state

    def _refuse_changed(self, what: str, content: bytes) -> None:
        if self._sums.get(what, "") not in ("", _sha256(content)):
            raise ValueError("it does not fit the checksum that the state has of it")

    def _damaged(self, path: Path, error: Exception) -> ArgumentError:
        why = brief(error.__cause__ or error)
        return ArgumentError(
            f"{str(path)!r} is damaged ({why}); put it back, or remove {STATE} to train from the start."
        )

    @contextmanager
    def _writing(self) -> Generator[None, None, None]:
        try:
            with uninterrupted():
                yield
        except (OSError, SafetensorError) as error:
            whole = self.checkpoints() if self.root.is_dir() else []
            kept = f"the newest checkpoint is {whole[-1]}" if whole else "there is no checkpoint yet"
            reason = getattr(error, "strerror", None) or str(error)
            raise HeadscopeError(
                f"{str(self.root)!r} cannot be written: {reason}; {kept}. Fix that and run the same command to go on."
            ) from error


def _refuse_other(root: Path, there: TrainConfig, given: TrainConfig) -> None:
    was, now = encode(there), encode(given)
    differing = [f"{name} {was[name]}, not {now[name]}" for name in was if was[name] != now[name]]
    if differing:
        raise ArgumentError(
            f"{str(root)!r} holds a run with {'; '.join(differing)}. Give the same settings to go on with it, or name "
            "another folder with --out."
        )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sum_of(about: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Checksum of a state: what it says, and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Without a progress bar for each file of a checkpoint."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def all_finite(model: PreTrainedModel) -> bool:
    """Whether every weight is a number."""
    return all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


def _refuse_irregular(path: Path) -> None:
    """A pipe or a device would be waited for, or read without an end."""
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")
