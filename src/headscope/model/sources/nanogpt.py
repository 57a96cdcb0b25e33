"""`ckpt.pt` of nanoGPT: its GPT-2, in transformers' class.

The file is a pickle, so it opens with the flag alone, and then as tensors and plain values, which can run no code.
Sizes are those of the tensors; the file says only how many heads there are. nanoGPT's layers compute `x @ W.T`, GPT-2's
`x @ W`; where it was trained without biases they are zero.

Misleading when: it was trained by an older nanoGPT, whose MLP used GELU's approximation by tanh; nothing in the file
tells, and here GELU itself is computed. The two differ by less than 0.0005 for each of the MLP's hidden units.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.errors import ArgumentError, ModelError, UnsafeWeights, brief
from headscope.model.folder import CONFIG, check_file
from headscope.model.sources import Found, Options
from headscope.model.sources.pretrained import available, first_line
from headscope.model.sources.transformers import backbone

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GPT2LMHeadModel

PLACE = 75
"""Sources are asked in this order."""

FILE = "ckpt.pt"
_PICKLES = (".pt", ".pth", ".ckpt")
_LINEAR = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
_MASK = re.compile(r"\.attn\.bias$")
_LAYER = re.compile(r"^transformer\.h\.(\d+)\.")


def found(given: Any, options: Options) -> Found | None:
    """The model in the file, or in a folder that holds it and no config of transformers."""
    if not isinstance(given, (str, Path)):
        return None
    path = Path(given)
    if os.path.isdir(path) and os.path.lexists(path / FILE) and not os.path.lexists(path / CONFIG):
        path = path / FILE
    elif not (os.path.isfile(path) and path.suffix in _PICKLES):
        return None
    check_file(path.resolve(), path.resolve().parent)
    if options.revision is not None:
        raise ArgumentError(f"revision={options.revision!r} does not apply to a file; it names a commit on the hub.")
    if not options.allow_pickle:
        raise UnsafeWeights(
            f"{brief(path)} is a pickle, which can run code when loaded; pass --allow-pickle (allow_pickle=True) if "
            "you trust it."
        )
    return Found(backbone=backbone(_opened(path, options)), tokenizer=None, name=str(given))


def _opened(path: Path, options: Options) -> GPT2LMHeadModel:
    import torch

    device = available(options.device)
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its readers raise
        raise ModelError(
            f"{brief(path)} could not be loaded as tensors and plain values: {first_line(error)}"
        ) from error
    hf: Any = _gpt2(path, held)
    hf.to(device="cpu" if device == "auto" else device)
    return hf if options.dtype == "auto" else hf.to(getattr(torch, options.dtype))


def _gpt2(path: Path, held: Any) -> GPT2LMHeadModel:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    weights, n_heads = _parts(path, held)
    layers = {int(match[1]) for name in weights if (match := _LAYER.match(name))}
    n_context, d_model = weights["transformer.wpe.weight"].shape
    config = GPT2Config(
        vocab_size=weights["transformer.wte.weight"].shape[0],
        n_positions=n_context,
        n_embd=d_model,
        n_layer=len(layers),
        n_head=n_heads,
        n_inner=weights.get("transformer.h.0.mlp.c_fc.weight", weights["transformer.wpe.weight"]).shape[-1],
        activation_function="gelu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    if layers != set(range(len(layers))) or not layers or d_model % n_heads:
        raise _not_nanogpt(path, f"{len(layers)} layers, {n_heads} heads in a width of {d_model}")
    hf: Any = GPT2LMHeadModel(config).eval()
    own = hf.state_dict()
    if not any(name.endswith(".bias") for name in weights):
        weights |= {name: torch.zeros_like(empty) for name, empty in own.items() if name.endswith(".bias")}
    wrong = sorted(
        {name for name, empty in own.items() if name not in weights or weights[name].shape != empty.shape}
        | (set(weights) - set(own))
    )
    if wrong:
        raise _not_nanogpt(path, f"{len(wrong)} tensors that are missing, new or of another shape: {wrong[0]}")
    if not weights["lm_head.weight"].equal(weights["transformer.wte.weight"]):
        raise _not_nanogpt(path, "an unembedding that is not its embedding")
    hf.load_state_dict(weights)
    return hf.to(dtype=weights["transformer.wte.weight"].dtype)


def _parts(path: Path, held: Any) -> tuple[dict[str, Tensor], int]:
    """Tensors under GPT-2's names, in its layout, and the number of heads."""
    from torch import Tensor

    named = held.get("model") if isinstance(held, Mapping) else None
    about = held.get("model_args") if isinstance(held, Mapping) else None
    n_heads = about.get("n_head") if isinstance(about, Mapping) else None
    if not isinstance(named, Mapping) or type(n_heads) is not int or n_heads < 1:
        raise _not_nanogpt(path, "no `model` with weights, or no `model_args` with n_head")
    weights: dict[str, Tensor] = {}
    for key, tensor in named.items():
        name = str(key).removeprefix("_orig_mod.")  # of a model that was compiled
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.dim() == 0:
            raise _not_nanogpt(path, f"{brief(name)}, which is no tensor of numbers")
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise _not_nanogpt(path, f"{brief(name)}, a tensor larger than its storage")
        if not _MASK.search(name):
            weights[name] = tensor.T if _LINEAR.search(name) else tensor
    for name in ("transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"):
        if name not in weights or weights[name].dim() != 2:
            raise _not_nanogpt(path, f"no table {name}")
    return weights, n_heads


def _not_nanogpt(path: Path, what: str) -> ModelError:
    return ModelError(
        f"{brief(path)} is no checkpoint of nanoGPT: it has {what}; build the model it belongs to and give that object."
    )
