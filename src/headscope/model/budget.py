"""Does a model fit into memory? Asked before its weights are read, or fetched.

    needed = sum over the checkpoint's tensors of numel * bytes of the dtype it is loaded in

The tensors are those of the safetensors headers: of a folder or of files in the hub's cache, else as the hub counts
them. Memory is what the operating system, the control group of a container, and the GPU say is free. What a pass needs
beyond the weights is not counted: where that runs out, the batch is halved.

Cost: the headers, a few kB for each file; for a model that is not in the cache, one question to the hub.

Misleading when: a checkpoint holds tensors that the model leaves out; and for several processes that load at once,
since each counts the same memory as free. Pickled checkpoints are not counted.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from headscope.errors import ModelError, ModelTooLarge
from headscope.model.folder import check_file, weight_files, weights_of

_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
"""Of a number in a safetensors file; others are 8 bits."""

_CASTS = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 16}

_GROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Control groups of version 2 and 1: folder, limit, use, and the part of the use that the kernel gives up."""


def refuse_too_large(source: str, revision: str | None, *, device: str, dtype: str) -> int | None:
    """Raise if a model's weights need more memory than there is.

    Args:
        source: A folder or a hub id.
        revision: Of a hub model.
        device: Where it will be: a device, or `auto` for all GPUs and the machine's memory together.
        dtype: `auto`, or the precision it is loaded in.

    Returns:
        How many numbers the checkpoint holds; None where that cannot be told.

    Raises:
        ModelTooLarge: with both numbers.
    """
    numbers = _numbers(source, revision)
    if numbers is None:
        return None
    needed = sum(count * _bits(kind, dtype) // 8 for kind, count in numbers.items())
    for place, free in _free(device).items():
        if needed > free:
            raise ModelTooLarge(
                f"{source!r} needs {gigabytes(needed)} for its weights, but {place} has {gigabytes(free)} free; use "
                "a smaller --dtype, --device auto to spread it over GPUs, or a larger machine."
            )
    return numbers.total()


def header_numbers(path: Path) -> Counter[str]:
    """How many numbers of each kind a safetensors file holds, by its header alone.

    Raises:
        ModelError: a header that is damaged.
    """
    return weights_of([path]).numbers


def _numbers(source: str, revision: str | None) -> Counter[str] | None:
    """Of the whole checkpoint; None where that cannot be told."""
    folder = Path(source)
    if not os.path.isdir(folder):
        from huggingface_hub import try_to_load_from_cache

        for name in ("model.safetensors.index.json", "model.safetensors"):
            cached = try_to_load_from_cache(source, name, revision=revision)
            if isinstance(cached, str):
                folder = Path(cached).parent
                break
        else:
            return _as_the_hub_counts(source, revision)
    try:
        names = weight_files(folder, {}, allow_pickle=False)
        for name in names:
            check_file(folder / name, folder)
        return weights_of([folder / name for name in names]).numbers
    except (ModelError, OSError):
        return None  # a damaged or missing file, or only pickles: loading says so


def _as_the_hub_counts(source: str, revision: str | None) -> Counter[str] | None:
    from huggingface_hub import HfApi

    try:
        found = HfApi().model_info(source, revision=revision, expand=["safetensors"]).safetensors
    except Exception:  # which kind it is depends on the HTTP library that the hub's client uses
        return None  # as above
    return None if found is None else Counter(found.parameters)


def _bits(kind: str, dtype: str) -> int:
    floating = kind.startswith(("F", "BF")) and _BITS.get(kind, 8) > 8
    return _CASTS[dtype] if floating and dtype != "auto" else _BITS.get(kind, 8)


def _free(device: str) -> dict[str, int]:
    """Bytes free in each place that has to hold all the weights; empty where nobody knows."""
    machine = free_memory()
    if device == "cpu" or machine is None:
        return {} if machine is None else {"this machine": machine}
    import torch

    if device == "auto":
        gpus = sum(torch.cuda.mem_get_info(one)[0] for one in range(torch.cuda.device_count()))
        return {"this machine with its GPUs": machine + gpus}
    place = torch.device(device)
    # Weights are read into the machine's memory and move from there.
    return {"this machine": machine} | ({device: torch.cuda.mem_get_info(place)[0]} if place.type == "cuda" else {})


def free_memory() -> int | None:
    """Bytes that this process could still take; the whole memory where only that is known, None where nothing is."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        try:
            free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, OSError, ValueError):
            return None
    for group, limit, use, given_up in _GROUPS:
        try:
            most, used = int((group / limit).read_text()), int((group / use).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such group, or no limit: "max"
            continue
        free = min(free, most - used + int(stat.get(given_up, 0)))
    return free


def gigabytes(count: int) -> str:
    """Bytes as they are printed."""
    return f"{count / 1e9:,.1f} GB"
