"""Open a language model: a hub id, a local folder, `demo`, or a model object.

What can be opened, and how, is in `headscope.model.sources`, a file for each kind. Every model passes the self-check
(`headscope.model.selfcheck`), once, and again when its module has changed (`headscope.model.state`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.errors import ArgumentError, UnsupportedModel, brief
from headscope.heads import Heads, OfHead, OneHead
from headscope.model.model import Model, Opened

if TYPE_CHECKING:
    from headscope.model.selfcheck import Check
    from headscope.model.sources import Found

DTYPES = ("auto", "float32", "float64", "float16", "bfloat16")

__all__ = ["DTYPES", "Heads", "Model", "OfHead", "OneHead", "Opened", "Source", "load", "open_model"]

Source = Any
"""What `load` opens: a name, a folder, a model object of any kind that it lists, or a Model."""

_CHECKS: weakref.WeakKeyDictionary[Any, tuple[str, Check]] = weakref.WeakKeyDictionary()


def load(
    source: Source = "demo",
    *,
    device: str | None = None,
    dtype: str = "auto",
    revision: str | None = None,
    tokenizer: Any | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    forward: Callable[[Any], Any] | None = None,
    max_tokens: int | None = None,
    gguf_file: str | None = None,
) -> Model:
    """Open a model and check that its heads can be seen.

    Args:
        source: Hub id, folder in transformers' layout or of a PEFT adapter, file of GGUF, `ckpt.pt` of nanoGPT, `demo`,
            or a model object: of transformers, TransformerLens, nnsight or PEFT; a wrapper around one (parallel,
            compiled, a pipeline, a module that holds it); or any `nn.Module` that gives logits for token ids. An object
            is left as it was: mode, device, gradients, attention implementation.
        device: Like `cpu` or `cuda:0`; `auto` spreads a large model over what there is. By default a GPU if there is
            one.
        dtype: `auto` (the checkpoint's own), `float32`, `float64`, `float16` or `bfloat16`.
        revision: Branch, tag or commit on the hub.
        tokenizer: A transformers tokenizer, for a model object that comes without; else the one beside the weights.
        allow_pickle: Also load weights that are not safetensors. Pickled files can run code.
        trust_remote_code: Run model code that the repository brings.
        forward: For a module that is not called as `module(ids)`: gives logits [batch position vocabulary] for ids.
        max_tokens: Longest input, where the model does not state it.
        gguf_file: Name of a GGUF file in the folder or hub repository; one that is here may be given as the source.

    Returns:
        A `Model` whose support is `exact` or `degraded`.

    Raises:
        ModelNotFound: no such hub id or folder, or no weights in it.
        ModelTooLarge: weights that need more memory than there is.
        UnsafeWeights: only pickled weights, or code of its own, without the flag.
        UnsupportedModel: no softmax attention, an encoder, or attention that our check could not reproduce.
        NonFiniteError: NaN or infinity in the weights.
        ArgumentError: an option that does not fit.
    """
    model = open_model(
        source,
        device=device,
        dtype=dtype,
        revision=revision,
        tokenizer=tokenizer,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
        forward=forward,
        max_tokens=max_tokens,
        gguf_file=gguf_file,
    )
    if not isinstance(model, Model):
        raise UnsupportedModel(
            f"{model.id} ({model.family}) cannot be used: {model.check.reason}. "
            "Choose a decoder-only model with softmax attention."
        )
    return model


def open_model(
    source: Source,
    *,
    device: str | None = None,
    dtype: str = "auto",
    revision: str | None = None,
    tokenizer: Any | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    forward: Callable[[Any], Any] | None = None,
    max_tokens: int | None = None,
    gguf_file: str | None = None,
) -> Opened:
    """`load`, but an unsupported model is returned as `Opened`, with its check, instead of raising.

    A Model whose module has changed since it was opened is opened again.
    """
    if isinstance(source, Opened):
        if (device, dtype, revision, tokenizer, forward, max_tokens, gguf_file) != (None, "auto", *[None] * 5):
            raise ArgumentError(
                "device, dtype, revision, tokenizer, forward, max_tokens and gguf_file do not apply to a loaded Model; "
                "load it with them."
            )
        from headscope.model.state import state_of

        return source if state_of(source.module) == source.state else source.reopen()
    if dtype not in DTYPES:
        raise ArgumentError(f"dtype={dtype!r} is not known; use one of {', '.join(DTYPES)}.")
    named = isinstance(source, (str, Path))
    if named and forward is not None:
        raise ArgumentError("forward applies to a model object; a hub id or folder is called as transformers does.")
    if not named and (device is not None or dtype != "auto" or revision is not None or gguf_file is not None):
        raise ArgumentError(
            "device, dtype, revision and gguf_file do not apply to a model object; move or convert it first."
        )
    from headscope.model.sources import Options, find

    options = Options(
        forward=forward,
        max_tokens=max_tokens,
        device=device,
        dtype=dtype,
        revision=revision,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
        gguf_file=gguf_file,
    )

    def look() -> Found:
        found = find(source, options)
        if found is None:
            raise ArgumentError(
                f"load got a {brief(type(source).__name__)}; it needs a hub id, a folder, 'demo', or a model object: "
                "of transformers, TransformerLens, nnsight or PEFT, or any nn.Module that gives logits for token ids."
            )
        return found if tokenizer is None else replace(found, tokenizer=tokenizer)

    found = look()
    known = forward is None and max_tokens is None
    if not named:
        return _checked(found, look, known=known)

    def look_again() -> Found:
        held = find(found.backbone.module, Options(max_tokens=max_tokens))
        return found if held is None else replace(found, backbone=held.backbone)

    return _checked(found, look_again, known=known)


def _checked(found: Found, look: Callable[[], Found], *, known: bool) -> Opened:
    """With its check; where that is `known`, it goes by the module alone and is kept. `look` opens the model again."""
    from headscope.model.selfcheck import RoutedCheck, selfcheck
    from headscope.model.state import state_of

    key, state = found.backbone.module, state_of(found.backbone.module)
    kept, check = _CHECKS.get(key, ("", None)) if known else ("", None)
    if check is None or kept != state:
        check = selfcheck(found.backbone)
        if known:
            _CHECKS[key] = (state, check)
    common: dict[str, Any] = {
        "backbone": found.backbone,
        "tokenizer": found.tokenizer,
        "id": found.name,
        "revision": found.revision,
        "state": state,
        "reopen": lambda: _checked(look(), look, known=known),
    }
    return Model(check=check, **common) if isinstance(check, RoutedCheck) else Opened(check=check, **common)
