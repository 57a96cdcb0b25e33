"""A model in the middle of its training: find it in what wraps it, look, and leave no trace.

`untouched` holds back what a training loop may have wrapped around the model's forward, so that what is seen is what
the same weights show after they were saved: no autocast, no compiled code. On exit the random states of Python, NumPy
and torch, on the CPU and on CUDA devices, are those from before. Modes, configs, hooks and gradients are restored by
`headscope.model.taps`, which changes them.
"""

# pyright: reportPrivateUsage=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from headscope.errors import ModelError
from headscope.model.scope import around


def bare(model: Any) -> Any:
    """The model inside DistributedDataParallel, DataParallel or torch.compile; anything else as it is.

    Raises:
        ModelError: its parameters are spread over processes, or not in memory.
    """
    from transformers import PreTrainedModel

    if isinstance(model, nn.Module):
        _refuse_spread(model)
    while isinstance(model, nn.Module) and not isinstance(model, PreTrainedModel):
        inner = model._modules.get("module") or model._modules.get("_orig_mod")
        if inner is None:
            break
        model = inner
    return model


def _refuse_spread(model: nn.Module) -> None:
    why = None
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        why = "are sharded over processes (FSDP)"
    for parameter in model.parameters():
        if hasattr(parameter, "ds_id"):
            why = "are partitioned over processes (DeepSpeed ZeRO-3)"
        elif hasattr(parameter, "device_mesh"):
            why = "are distributed tensors (FSDP or tensor parallel)"
        elif parameter.device.type == "meta":
            why = "are not in memory (device meta)"
    if why is not None:
        raise ModelError(
            f"the parameters of this {type(model).__name__} {why}, and no process can run it alone; "
            "save checkpoints and follow those with headscope emergence."
        )


@contextmanager
def untouched(model: Any) -> Generator[None, None, None]:
    """Within the block the model runs as its saved weights would; on exit all is as it was.

    Of what is no torch module, like a model's name, only the random states are kept.
    """
    modules = [model] if isinstance(model, nn.Module) else []
    kinds = {parameter.device.type for module in modules for parameter in module.parameters()}
    python, arrays = random.getstate(), np.random.get_state()
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        for module in modules:
            stack.enter_context(_own_forward(module))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


@contextmanager
def _own_forward(model: nn.Module) -> Generator[None, None, None]:
    """Accelerate wraps mixed precision around a model's forward, and keeps the model's own beside it."""
    own, wrapped = model.__dict__.get("_original_forward"), model.__dict__.get("forward")
    if own is None or wrapped is None:
        yield
        return
    with around([model], lambda module, outer, given, named: own(*given, **named)):
        yield
