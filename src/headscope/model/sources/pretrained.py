"""Folders in transformers' layout, hub ids, and `demo`.

Weights load from safetensors; pickled weights and remote code each need their flag. A checkpoint that lacks some of
its weights is refused, since transformers would fill them with random numbers.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import os
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
from headscope.model.bounds import bounded, refuse_endless, refuse_kernels
from headscope.model.budget import refuse_too_large
from headscope.model.folder import ADAPTER_CONFIG, check_folder, fetched
from headscope.model.growth import refuse_growing
from headscope.model.leftover import is_classifier, refuse_leftover
from headscope.model.sources import Found, Options
from headscope.model.sources.transformers import backbone
from headscope.model.tokenizer import is_panic

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PLACE = 100
"""Sources are asked in this order: every name that no other took is a folder or a hub id."""

_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)


def found(given: Any, options: Options) -> Found | None:
    """The model of a name."""
    if not isinstance(given, (str, Path)):
        return None
    hf, tokenizer, revision = from_pretrained(str(given), options)
    seen = backbone(hf)
    if options.max_tokens is not None:
        seen = replace(seen, max_tokens=options.max_tokens)
    return Found(backbone=seen, tokenizer=tokenizer, name=str(given), revision=revision)


def from_pretrained(source: str, options: Options) -> tuple[PreTrainedModel, Any | None, str | None]:
    """Weights; where there is one, the tokenizer; and of a hub model the commit.

    Raises:
        ModelError: as `headscope.load`.
    """
    dtype, revision = options.dtype, options.revision
    allow_pickle, trust_remote_code = options.allow_pickle, options.trust_remote_code
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
    from transformers import AutoConfig, PreTrainedConfig

    device = available(options.device)
    common: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    try:
        written = PreTrainedConfig.get_config_dict(source, **common)[0]
        refuse_endless(source, written)
        if not trust_remote_code:
            refuse_kernels(source, written)
        config = AutoConfig.from_pretrained(source, **common)
        auto = _class_for(config, trust_remote_code)
    except HeadscopeError:
        raise
    except Exception as error:  # what transformers raises on a file it cannot read is not one kind
        raise _config_error(source, error) from error
    if not os.path.isdir(folder):
        common["revision"] = revision = _commit(source, common["revision"])
    if auto is None:
        raise UnsupportedModel(
            f"{source!r} is a {brief(config.model_type)} model, which is not a decoder-only language model; "
            "choose one that is."
        )
    numbers = refuse_too_large(source, revision, device=device, dtype=dtype)
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
                # transformers puts an adapter on by itself where PEFT is there; `adapter_folder` does, or refuses.
                adapter_kwargs={"subfolder": ADAPTER_CONFIG},
                # In another implementation PaliGemma attends to later tokens where it is given no image.
                attn_implementation="eager" if "ImageText" in auto.__name__ else None,
                **common,
            )
        if device != "auto":
            hf.to(device)
    except HeadscopeError:
        raise
    except OSError as error:
        raise _weights_error(source, revision, error) from error
    except Exception as error:  # as above
        raise ModelError(f"{source!r} could not be loaded: {first_line(error)}") from error
    if getattr(hf, "_hf_peft_config_loaded", False):
        raise ModelError(f"{source!r} brings an adapter in a place where none is looked for; load the adapter itself.")
    refuse_incomplete(source, info)
    refuse_leftover(source, info["unexpected_keys"], weights.shapes if weights else {}, config.architectures or [])
    return hf.eval(), tokenizer_of(source, common), revision


def refuse_incomplete(source: str, info: dict[str, Any]) -> None:
    """Raise if weights are missing, or have other shapes: transformers fills in random numbers.

    Args:
        source: The model, for the error.
        info: What transformers says of loading it.

    Raises:
        ModelError: with the first of their names.
    """
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


def available(device: str | None) -> str:
    """The device to use.

    Raises:
        ArgumentError: it is not there.
    """
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
            f"device={device!r} is not there: {first_line(error).split('. ')[0]}; use 'cpu', or leave the choice open."
        ) from error
    return device


def _commit(source: str, revision: str) -> str:
    """The commit that a branch or tag meant when the config was fetched; weights and tokenizer come from the same."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(path).parent.name if isinstance(path, str) else revision


def _class_for(config: Any, trust_remote_code: bool) -> Any | None:
    """Which of transformers' classes opens a checkpoint; None if it holds no language model.

    With an LM head, alone or behind towers for images, or without one; of a classifier the model below its head.
    """
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    if _headless(config):
        return AutoModel
    if trust_remote_code or config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForCausalLM
    if config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and not config.is_encoder_decoder:
        return AutoModelForImageTextToText
    return None


def _headless(config: Any) -> bool:
    """Whether the checkpoint holds a model without its LM head, like GPT2Model; GPT2LMHeadModel has one."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    bases = {name for one in MODEL_MAPPING_NAMES.values() for name in ((one,) if isinstance(one, str) else one)}
    names = config.architectures or [""]
    remote = getattr(config, "auto_map", None) or {}
    return names[0] in bases or is_classifier(names) or ("AutoModel" in remote and "AutoModelForCausalLM" not in remote)


def tokenizer_of(source: str, common: dict[str, Any]) -> Any | None:
    """The tokenizer beside the weights, or in a GGUF; None where there is none, or a package that it needs is missing.

    Raises:
        ModelError: its files cannot be read.
    """
    from transformers import AutoTokenizer

    folder = Path(source)
    if (
        os.path.isdir(folder)
        and "gguf_file" not in common
        and not any((folder / name).is_file() for name in _TOKENIZERS)
    ):
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
            f"the tokenizer of {source!r} cannot be read ({first_line(error)}); fix its files, or remove them to go "
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
        return ModelError(f"the config of {source!r} cannot be read: {first_line(error)}")
    return ModelNotFound(
        f"no model {source!r}: it is neither a folder here nor a model that the hub or its local cache could give; "
        "check the name, the network, and access if it is gated."
    )


def _weights_error(source: str, revision: str | None, error: Exception) -> ModelError:
    if os.path.isdir(source):
        return ModelError(f"the weights of {source!r} cannot be read: {first_line(error)}")
    if _hub_has_pickle(source, revision):
        return UnsafeWeights(
            f"{source!r} has only pickled weights, which can run code when loaded; look for a revision with "
            "safetensors, or pass --allow-pickle (allow_pickle=True) if you trust them."
        )
    return ModelNotFound(f"{source!r} has no safetensors weights that could be fetched: {first_line(error)}")


def _hub_has_pickle(source: str, revision: str | None) -> bool:
    from huggingface_hub import HfApi, try_to_load_from_cache

    names = ("pytorch_model.bin", "pytorch_model.bin.index.json")
    try:
        if any(isinstance(try_to_load_from_cache(source, name, revision=revision), str) for name in names):
            return True
        return any(HfApi().file_exists(source, name, revision=revision) for name in names)
    except Exception:  # which kind it is depends on the HTTP library that the hub's client uses
        return False


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return brief(" ".join(lines[:2]) if lines[0].endswith(":") else lines[0])
