"""How to train a lab model, as the command line, a TOML file and the run's own folder name it."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from headscope.errors import ArgumentError, brief
from headscope.model.budget import free_memory, gigabytes
from headscope.training.demo_training import BOS_TOKEN_ID
from headscope.training.loop import attention_only_gpt2, attention_only_llama
from headscope.training.recipes import RECIPES, Preset

POSITIONS = ("rotary", "learned")
DTYPES = ("float32", "bfloat16")
SEEDS = 2**32
"""How many there are."""
N_POSITIONS = 512
"""Longest prompt that a trained model promises to read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Everything that the weights of a run depend on, and where its checkpoints lie. Made by `train_config`."""

    recipe: str
    """`copy`, `code`, `mixed` or `bigram`."""
    layers: int
    """Layers; 2 can learn induction, 1 cannot."""
    heads: int
    """Heads of each layer."""
    d_model: int
    """Width."""
    positions: str
    """`rotary`: a Llama. `learned`: a GPT-2."""
    seed: int
    """Of the initial weights and the batches, from 0 to 2^32 - 1."""
    steps: int
    """Most steps to take."""
    checkpoint_every: int
    """Steps between two checkpoints; there is always one at the start and one at the end."""
    device: str
    """`cpu`, or a CUDA device."""
    dtype: str
    """`float32`; `bfloat16` runs the model in that, its weights stay float32."""

    @property
    def preset(self) -> Preset:
        """The recipe itself."""
        return RECIPES[self.recipe]


NAMES = tuple(field.name for field in fields(TrainConfig))


def train_config(**given: Any) -> TrainConfig:
    """A configuration that can be trained: what is not given, or None, is the recipe's own.

    Raises:
        ArgumentError: an unknown name, a value that does not fit, or a shape that cannot be; all of them in one line.
    """
    _refuse_unknown(given, NAMES)
    chosen = {name: value for name, value in given.items() if value is not None}
    name = chosen.get("recipe", "copy")
    if not isinstance(name, str) or name not in RECIPES:
        raise ArgumentError(f"recipe={name!r} is not known; use one of {', '.join(RECIPES)}.")
    preset = RECIPES[name]
    config: dict[str, Any] = {
        "recipe": name,
        "layers": preset.layers,
        "heads": preset.heads,
        "d_model": preset.d_model,
        "positions": POSITIONS[0],
        "seed": 0,
        "steps": preset.steps,
        "checkpoint_every": preset.measure_every,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "dtype": DTYPES[0],
    } | chosen
    if problems := _problems(config):
        raise ArgumentError("train: " + "; ".join(problems) + ".")
    return TrainConfig(**config)


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, whose keys are the options of `headscope train`, like `d-model`.

    Raises:
        ArgumentError: the file cannot be read, or holds a key that is no option.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{str(path)!r} cannot be read as TOML: {error}") from error
    _refuse_unknown(found, tuple(name.replace("_", "-") for name in (*NAMES, "out")), where=f" of {str(path)!r}")
    if not isinstance(found.get("out", ""), str):
        raise ArgumentError(f"out={found['out']!r} of {str(path)!r} must be the name of a folder.")
    return {name.replace("-", "_"): value for name, value in found.items()}


def build_model(config: TrainConfig) -> PreTrainedModel:
    """The model before its first step, on its device."""
    make = attention_only_gpt2
    if config.positions == "rotary":
        make = partial(attention_only_llama, nearby=config.preset.nearby)
    model = make(
        vocab_size=config.preset.vocab_size,
        bos_token_id=BOS_TOKEN_ID,
        n_layers=config.layers,
        n_heads=config.heads,
        d_model=config.d_model,
        n_positions=N_POSITIONS,
        seed=config.seed,
    )
    return model.to(config.device)  # pyright: ignore[reportArgumentType]


def _refuse_unknown(given: Mapping[str, Any], known: tuple[str, ...], where: str = "") -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"use {', '.join(known)}."
        raise ArgumentError(f"{', '.join(map(repr, unknown))}{where} is no setting of a training; {hint}")


def _problems(config: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    whole = {"layers": 1, "heads": 1, "d_model": 1, "seed": 0, "steps": 1, "checkpoint_every": 1}
    for name, least in whole.items():
        if not isinstance(config[name], int) or isinstance(config[name], bool) or config[name] < least:
            found.append(f"{name}={config[name]!r} must be a whole number from {least} up")
        elif name == "seed" and config[name] >= SEEDS:
            found.append(f"seed={config[name]} must be below 2^32 = {SEEDS}")
    if config["positions"] not in POSITIONS:
        found.append(f"positions={config['positions']!r} must be {' or '.join(POSITIONS)}")
    if config["dtype"] not in DTYPES:
        found.append(f"dtype={config['dtype']!r} must be {' or '.join(DTYPES)}")
    found += _device_problems(config["device"], config["dtype"])
    if found:
        return found
    d_model, heads = config["d_model"], config["heads"]
    if d_model % heads:
        found.append(f"d_model={d_model} does not divide among heads={heads}; use a multiple of {heads}")
    elif config["positions"] == "rotary" and (d_model // heads) % 2:
        found.append(
            f"d_model={d_model} with heads={heads} makes heads of odd width {d_model // heads}, which rotary positions "
            f"cannot turn; use a multiple of {2 * heads}"
        )
    # q, k, v and o of each layer, their gradients, and Adam's two means
    needed, free = config["layers"] * 4 * d_model**2 * 4 * torch.float32.itemsize, free_memory()
    if free is not None and needed > free:
        found.append(
            f"layers={brief(config['layers'])} of d_model={brief(d_model)} need {brief(gigabytes(needed))} to train, "
            f"but {gigabytes(free)} are free; use fewer"
        )
    return found


def _device_problems(device: Any, dtype: Any) -> list[str]:
    try:
        kind = torch.device(device)
    except (RuntimeError, TypeError):
        return [f"device={device!r} must be cpu or cuda, like cuda:0"]
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        return [f"device={device!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices"]
    if kind.type not in ("cpu", "cuda"):
        return [f"device={device!r} must be cpu or cuda, like cuda:0"]
    if dtype == "bfloat16" and kind.type == "cpu":
        return ["dtype='bfloat16' needs device='cuda'; on the CPU use float32"]
    return []
