"""Files of GGUF, llama.cpp's format: dequantised by transformers into the model that they describe.

transformers skips tensors of the file that it has no name for, and does not read how rotary frequencies are scaled.
Both give another model and no error, so the file's numbers are counted against the model's, and scaling is refused. A
GGUF can run no code.

Cost: the weights in 32 bits, or in `dtype`, whatever the file holds.

Misleading when: a value of the file's metadata that transformers does not read, and that has no weights.
"""

# pyright: reportUnknownVariableType=false
from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from headscope.errors import ArgumentError, HeadscopeError, ModelError, ModelNotFound, UnsupportedModel, brief
from headscope.model.bounds import bounded, refuse_endless
from headscope.model.folder import check_file
from headscope.model.sources import Found, Options
from headscope.model.sources.pretrained import available, first_line, refuse_incomplete, tokenizer_of
from headscope.model.sources.transformers import backbone

PLACE = 70
"""Sources are asked in this order."""

_SCALED = ".rope.scaling."
_READ = ("gpt-oss",)
"""Architectures whose scaling transformers reads."""


def found(given: Any, options: Options) -> Found | None:
    """The model in a file, named by its path or by `gguf_file` in a folder or hub repository."""
    if not isinstance(given, (str, Path)):
        return None
    path = _file(str(given), options)
    if path is None:
        return None
    needed = [package for package in ("gguf", "accelerate") if find_spec(package) is None]
    if needed:
        raise UnsupportedModel(
            f"{brief(path)} is a GGUF, which needs the packages {' and '.join(needed)}; install them (pip install "
            f"{' '.join(needed)})."
        )
    hf = _opened(path, options)
    seen = backbone(hf)
    tokenizer = tokenizer_of(str(path.parent), {"gguf_file": path.name}) if _has_tokens(path) else None
    name = str(given) if options.gguf_file is None else f"{given}/{options.gguf_file}"
    return Found(backbone=seen, tokenizer=tokenizer, name=name, revision=None)


def _file(name: str, options: Options) -> Path | None:
    """The file, once it is a regular one; None where no GGUF is meant."""
    if options.gguf_file is None:
        if not (os.path.isfile(name) and name.endswith(".gguf")):
            return None
        path = Path(name).resolve()
        check_file(path, path.parent)
        return path
    if os.path.isdir(name):
        path = Path(name) / options.gguf_file
        if not os.path.lexists(path):
            raise ModelNotFound(f"folder {brief(name)!r} has no file {brief(options.gguf_file)}; give the name of one.")
        check_file(path, Path(name))
        return path
    if os.path.exists(name):
        raise ArgumentError(f"gguf_file names a file in a folder or hub repository, and {brief(name)} is neither.")
    from transformers.utils.hub import cached_file

    try:
        fetched = cached_file(name, options.gguf_file, revision=options.revision or "main")
    except (OSError, ValueError) as error:
        raise ModelNotFound(f"{brief(name)!r} has no file {brief(options.gguf_file)} that could be fetched.") from error
    return Path(str(fetched))


def _opened(path: Path, options: Options) -> Any:
    import torch
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModelForCausalLM

    device = available(options.device)
    common: dict[str, Any] = {"gguf_file": path.name}
    try:
        reader = GGUFReader(str(path))
        numbers = sum(int(tensor.n_elements) for tensor in reader.tensors)
        scaled = sorted(name for name in reader.fields if _SCALED in name and not name.startswith(_READ))
        if scaled:
            raise UnsupportedModel(
                f"{brief(path)} scales its rotary frequencies ({brief(scaled[0])}), which transformers does not read "
                "from a GGUF; open the checkpoint that it was made from."
            )
        config = AutoConfig.from_pretrained(str(path.parent), **common)
        refuse_endless(str(path), {name: value for name, value in vars(config).items() if isinstance(value, int)})
        with bounded(str(path), numbers):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(path.parent),
                dtype=None if options.dtype == "auto" else getattr(torch, options.dtype),
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                device_map="auto" if device == "auto" else None,
                **common,
            )
            hf, info = loaded
    except HeadscopeError:
        raise
    except Exception as error:  # what the reader and transformers raise on a file they cannot use is not one kind
        raise ModelError(f"{brief(path)} could not be loaded: {first_line(error)}") from error
    refuse_incomplete(str(path), info)
    placed = sum(weight.numel() for weight in hf.parameters())
    if placed != numbers:
        raise UnsupportedModel(
            f"{brief(path)} holds {numbers:,} numbers, and transformers finds a place for {placed:,}; without the "
            "others it is another model: open the checkpoint that it was made from."
        )
    if device != "auto":
        hf.to(device)
    return hf.eval()


def _has_tokens(path: Path) -> bool:
    from gguf import GGUFReader

    return "tokenizer.ggml.tokens" in GGUFReader(str(path)).fields
