"""Open a language model: a hub id, a local folder, `demo`, or a model object.

Objects may be of transformers, or wrapped by TransformerLens or nnsight (`headscope.model.adapters`).

Weights load from safetensors; pickled weights and remote code each need their flag. A checkpoint that lacks some of
its weights is refused, since transformers would fill them with random numbers. Every model passes the self-check
(`headscope.model.selfcheck`), once, and again when its module has changed (`headscope.model.state`).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.errors import (
    ArgumentError,
    HeadscopeError,
    ModelError,
    ModelNotFound,
    UnsafeWeights,
    UnsupportedModel,
    brief,
)
from headscope.heads import Heads, OfHead, OneHead
from headscope.model.bounds import bounded, refuse_endless, refuse_kernels
from headscope.model.budget import refuse_too_large
from headscope.model.folder import check_folder, fetched
from headscope.model.growth import refuse_growing
from headscope.model.leftover import refuse_leftover
from headscope.model.model import Model, Opened
from headscope.model.tokenizer import is_panic

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from headscope.model.backbone import Backbone
    from headscope.model.selfcheck import Check
    from headscope.model.sources import Found

DTYPES = ("auto", "float32", "float64", "float16", "bfloat16")
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)


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
) -> Model:
    """Open a model and check that its heads can be seen.

    Args:
        source: Hub id, folder in transformers' layout, `demo`, or a model object: of transformers, TransformerLens,
            nnsight or PEFT; a wrapper around one (parallel, compiled, a pipeline, a module that holds it); or any
            `nn.Module` that gives logits for token ids. An object is left as it was: mode, device, gradients,
            attention implementation.
        device: Like `cpu` or `cuda:0`; `auto` spreads a large model over what there is. By default a GPU if there is
            one.
        dtype: `auto` (the checkpoint's own), `float32`, `float64`, `float16` or `bfloat16`.
        revision: Branch, tag or commit on the hub.
        tokenizer: A transformers tokenizer, for a model object that comes without; else the one beside the weights.
        allow_pickle: Also load weights that are not safetensors. Pickled files can run code.
        trust_remote_code: Run model code that the repository brings.
        forward: For a module that is not called as `module(ids)`: gives logits [batch position vocabulary] for ids.
        max_tokens: Longest input, where the model does not state it.

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
) -> Opened:
    """`load`, but an unsupported model is returned as `Opened`, with its check, instead of raising.

    A Model whose module has changed since it was opened is opened again.
    """
    if isinstance(source, Opened):
        if (device, dtype, revision, tokenizer) != (None, "auto", None, None):
            raise ArgumentError(
                "device, dtype, revision and tokenizer do not apply to a loaded Model; load it with them."
            )
        from headscope.model.state import state_of

        return source if state_of(source.module) == source.state else source.reopen()
    if dtype not in DTYPES:
        raise ArgumentError(f"dtype={dtype!r} is not known; use one of {', '.join(DTYPES)}.")
    from headscope.model.sources import Found, Options, find

    if isinstance(source, (str, Path)):
        from headscope.model.sources.transformers import backbone

        if forward is not None:
            raise ArgumentError("forward applies to a model object; a hub id or folder is called as transformers does.")
        hf, found, revision = _from_pretrained(str(source), device, dtype, revision, allow_pickle, trust_remote_code)
        held = Found(backbone=backbone(hf), tokenizer=found if tokenizer is None else tokenizer, name=str(source))
        return _checked(lambda: replace(held, backbone=_limited(backbone(hf), max_tokens)), revision)
    options = Options(forward=forward, max_tokens=max_tokens)

    def look() -> Found:
        held = find(source, options)
        if held is None:
            raise ArgumentError(
                f"load got a {brief(type(source).__name__)}; it needs a hub id, a folder, 'demo', or a model object: "
                "of transformers, TransformerLens, nnsight or PEFT, or any nn.Module that gives logits for token ids."
            )
        return held if tokenizer is None else replace(held, tokenizer=tokenizer)

    if device is not None or dtype != "auto" or revision is not None:
        raise ArgumentError("device, dtype and revision do not apply to a model object; move or convert it first.")
    return _checked(look, None, known=forward is None)


def _checked(look: Callable[[], Found], revision: str | None, *, known: bool = True) -> Opened:
    """What `look` finds, with its check: the one before where its module is as it was, if a check may be `known`."""
    from headscope.model.selfcheck import RoutedCheck, selfcheck
    from headscope.model.state import state_of

    found = look()
    key, state = found.backbone.module, state_of(found.backbone.module)
    if not known or _CHECKS.get(key, ("",))[0] != state:
        _CHECKS[key] = (state, selfcheck(found.backbone))
    check = _CHECKS[key][1]
    common: dict[str, Any] = {
        "backbone": found.backbone,
        "tokenizer": found.tokenizer,
        "id": found.name,
        "revision": revision,
        "state": state,
        "reopen": lambda: _checked(look, revision, known=known),
    }
    return Model(check=check, **common) if isinstance(check, RoutedCheck) else Opened(check=check, **common)


def _limited(found: Backbone, max_tokens: int | None) -> Backbone:
    return found if max_tokens is None else replace(found, max_tokens=max_tokens)


def _from_pretrained(
    source: str, device: str | None, dtype: str, revision: str | None, allow_pickle: bool, trust_remote_code: bool
) -> tuple[PreTrainedModel, Any | None, str | None]:
    """Weights; where there is one, the tokenizer; and of a hub model the commit."""
    if source == "demo":
        from headscope.training.demo import demo_path

        source = str(demo_path())
    folder, weights = Path(source), None
    if os.path.isdir(folder):  # Path.is_dir raises where the system refuses the name
        if revision is not None:
            raise ArgumentError(f"revision={revision!r} does not apply to a folder; it names a commit on the hub.")
        weights = check_folder(folder, allow_pickle=allow_pickle)
    elif os.path.exists(folder) or source.startswith(("/", "./", "../", "~")):
        raise ModelNotFound(f"{source!r} is not a folder; give a folder with config.json and weights, or a hub id.")
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    device = _available(device)
    common: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    try:
        written = PreTrainedConfig.get_config_dict(source, **common)[0]
        refuse_endless(source, written)
        if not trust_remote_code:
            refuse_kernels(source, written)
        config = AutoConfig.from_pretrained(source, **common)
        headless = _headless(config)
    except HeadscopeError:
        raise
    except Exception as error:  # what transformers raises on a file it cannot read is not one kind
        raise _config_error(source, error) from error
    if not os.path.isdir(folder):
        common["revision"] = revision = _commit(source, common["revision"])
    if not headless and not trust_remote_code and config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedModel(
            f"{source!r} is a {brief(config.model_type)} model, which is not a decoder-only language model; "
            "choose one that is."
        )
    numbers = refuse_too_large(source, revision, device=device, dtype=dtype)
    auto: Any = AutoModel if headless else AutoModelForCausalLM
    try:
        if not os.path.isdir(folder):
            weights = fetched(source, common["revision"], config, allow_pickle=allow_pickle)
            numbers = weights.numbers.total() if weights is not None else numbers
        with bounded(source, numbers):
            hf, info = auto.from_pretrained(
                source,
                config=config,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                use_safetensors=None if allow_pickle else True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with their names
                device_map="auto" if device == "auto" else None,
                **common,
            )
        if device != "auto":
            hf.to(device)
    except HeadscopeError:
        raise
    except OSError as error:
        raise _weights_error(source, revision, error) from error
    except Exception as error:  # as above
        raise ModelError(f"{source!r} could not be loaded: {_first_line(error)}") from error
    if info["mismatched_keys"]:
        wrong = sorted(str(key[0]) for key in info["mismatched_keys"])
        raise ModelError(
            f"{source!r} has {len(wrong)} weights of other shapes than its config says ({', '.join(wrong[:3])}...); "
            "use a config and weights that belong together."
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelError(
            f"{source!r} lacks {len(missing)} of its weights ({', '.join(missing[:3])}...); they would be random: "
            "use a complete checkpoint."
        )
    refuse_leftover(source, info["unexpected_keys"], weights.shapes if weights else {}, config.architectures or [])
    return hf.eval(), _tokenizer(source, common), revision


def _available(device: str | None) -> str:
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "auto":
        if find_spec("accelerate") is None:
            raise ArgumentError("device='auto' needs the package accelerate; install it, or name a device like 'cpu'.")
        return device
    try:
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise ArgumentError(
            f"device={device!r} is not there: {_first_line(error).split('. ')[0]}; use 'cpu', or leave the choice open."
        ) from error
    return device


def _commit(source: str, revision: str) -> str:
    """The commit that a branch or tag meant when the config was fetched; weights and tokenizer come from the same."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(path).parent.name if isinstance(path, str) else revision


def _headless(config: Any) -> bool:
    """Whether the checkpoint holds a model without its LM head, like GPT2Model; GPT2LMHeadModel has one."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    bases = {name for one in MODEL_MAPPING_NAMES.values() for name in ((one,) if isinstance(one, str) else one)}
    names = config.architectures or [""]
    remote = getattr(config, "auto_map", None) or {}
    return names[0] in bases or ("AutoModel" in remote and "AutoModelForCausalLM" not in remote)


def _tokenizer(source: str, common: dict[str, Any]) -> Any | None:
    """The tokenizer beside the weights; None where there is none, or where a package that it needs is missing."""
    from transformers import AutoTokenizer

    folder = Path(source)
    if os.path.isdir(folder) and not any((folder / name).is_file() for name in _TOKENIZERS):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **common)
        refuse_growing(source, tokenizer)
    except ImportError:
        return None
    except HeadscopeError:
        raise
    except BaseException as error:  # the tokenizers library raises nothing narrower
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        if not os.path.isdir(folder) and isinstance(error, (OSError, ValueError, TypeError, KeyError)):
            return None  # a hub model without one
        raise ModelError(
            f"the tokenizer of {source!r} cannot be read ({_first_line(error)}); mend its files, or remove them to go "
            "on with token ids alone."
        ) from error
    # Where a folder has no tokenizer files, some classes come back with special tokens only.
    return tokenizer if len(tokenizer) > len(set(tokenizer.all_special_ids)) else None


def _config_error(source: str, error: Exception) -> ModelError:
    text = str(error)
    if "trust_remote_code" in text:
        return UnsafeWeights(
            f"{source!r} brings model code of its own; "
            "pass --trust-remote-code (trust_remote_code=True) if you trust it."
        )
    if os.path.isdir(source) or not isinstance(error, OSError):
        return ModelError(f"the config of {source!r} cannot be read: {_first_line(error)}")
    return ModelNotFound(
        f"no model {source!r}: it is neither a folder here nor a model that the hub or its local cache could give; "
        "check the name, the network, and access if it is gated."
    )


def _weights_error(source: str, revision: str | None, error: Exception) -> ModelError:
    if os.path.isdir(source):
        return ModelError(f"the weights of {source!r} cannot be read: {_first_line(error)}")
    if _hub_has_pickle(source, revision):
        return UnsafeWeights(
            f"{source!r} has only pickled weights, which can run code when loaded; look for a revision with "
            "safetensors, or pass --allow-pickle (allow_pickle=True) if you trust them."
        )
    return ModelNotFound(f"{source!r} has no safetensors weights that could be fetched: {_first_line(error)}")


def _hub_has_pickle(source: str, revision: str | None) -> bool:
    from huggingface_hub import HfApi, try_to_load_from_cache

    names = ("pytorch_model.bin", "pytorch_model.bin.index.json")
    try:
        if any(isinstance(try_to_load_from_cache(source, name, revision=revision), str) for name in names):
            return True
        return any(HfApi().file_exists(source, name, revision=revision) for name in names)
    except Exception:  # which kind it is depends on the HTTP library that the hub's client uses
        return False


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return brief(" ".join(lines[:2]) if lines[0].endswith(":") else lines[0])
