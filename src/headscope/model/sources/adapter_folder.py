"""A folder, or a hub repository, that holds an adapter of PEFT: its base with the adapter put on.

The base is in the same folder where that has weights of its own, else what `base_model_name_or_path` names, a folder or
a hub id. It is opened as any model is, with the same refusals. Every tensor of the adapter has to find its place, and
every place its tensor. Without the package PEFT there is an error: the base's numbers are not the adapter's.

Misleading when: the base that is named has changed since the adapter was trained; an adapter does not say which it was.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import os
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from headscope.errors import HeadscopeError, ModelError, UnsupportedModel, brief
from headscope.model.bounds import bounded
from headscope.model.folder import ADAPTER, ADAPTER_CONFIG, PICKLED_ADAPTER, check_adapter, has_weights
from headscope.model.sources import Found, Options, peft
from headscope.model.sources.pretrained import first_line, from_pretrained, tokenizer_of

PLACE = 80
"""Sources are asked in this order: before the folder is opened as a model without its adapter."""


def found(given: Any, options: Options) -> Found | None:
    """The base with the adapter on it."""
    if not isinstance(given, (str, Path)) or given == "demo":
        return None
    name = str(given)
    if os.path.isdir(name):
        if not os.path.lexists(Path(name) / ADAPTER_CONFIG):
            return None
        folder, revision = Path(name), None
    else:
        fetched = _fetched(name, options)
        if fetched is None:
            return None
        folder, revision = fetched, fetched.name
    config, weights = check_adapter(folder, allow_pickle=options.allow_pickle)
    if find_spec("peft") is None:
        raise UnsupportedModel(
            f"{brief(name)!r} is an adapter, which needs the package peft; install it (pip install peft), or load the "
            "adapter's base by its own name."
        )
    base, base_options = _base(name, folder, config, options)
    hf, tokenizer, _ = from_pretrained(base, base_options)
    numbers = None if weights is None else weights.numbers.total() + sum(one.numel() for one in hf.parameters())
    adapted = _adapted(name, folder, hf, numbers)
    held = peft.found(adapted, options)
    assert held is not None
    own = tokenizer_of(str(folder), {"trust_remote_code": options.trust_remote_code})
    return replace(held, name=name, tokenizer=tokenizer if own is None else own, revision=revision)


def _fetched(name: str, options: Options) -> Path | None:
    """The snapshot of a hub repository that holds an adapter; None where it holds none, or is not there."""
    from transformers.utils.hub import cached_file

    def fetch(file: str) -> str | None:
        return cached_file(name, file, revision=options.revision or "main", _raise_exceptions_for_missing_entries=False)

    if os.path.exists(name) or name.startswith(("/", "./", "../", "~")):
        return None
    try:
        config = fetch(ADAPTER_CONFIG)
        if config is None:
            return None
        if fetch(ADAPTER) is None and options.allow_pickle:
            fetch(PICKLED_ADAPTER)
    except (OSError, ValueError):  # what is wrong with the name is said by the source that opens hub models
        return None
    return Path(config).parent


def _base(name: str, folder: Path, config: dict[str, Any], options: Options) -> tuple[str, Options]:
    """What the adapter is put on, and how that is opened."""
    if has_weights(folder):
        return str(folder), replace(options, revision=None)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"the adapter {brief(name)!r} does not name its base; put the base's config.json and weights into its "
            f"folder, or its path or hub id into base_model_name_or_path of {ADAPTER_CONFIG}."
        )
    if os.path.isdir(base) and os.path.lexists(Path(base) / ADAPTER_CONFIG) and not has_weights(Path(base)):
        raise ModelError(
            f"the adapter {brief(name)!r} names {brief(base)} as its base, an adapter itself; merge that into its own."
        )
    revision = config.get("revision")
    named = isinstance(revision, str) and not os.path.isdir(base)
    return base, replace(options, revision=revision if named else None)


def _adapted(name: str, folder: Path, hf: Any, numbers: int | None) -> Any:
    """A `PeftModel` with the adapter's weights."""
    from peft import PeftConfig, PeftModel

    try:
        config = PeftConfig.from_pretrained(str(folder))
        peft.refuse_prompts(config)
        config.inference_mode = True
        with warnings.catch_warnings(), bounded(name, numbers):
            warnings.simplefilter("ignore")
            adapted = PeftModel(hf, config, autocast_adapter_dtype=False)
            device = str(next(hf.parameters()).device)
            result = adapted.load_adapter(str(folder), "default", torch_device=device, autocast_adapter_dtype=False)
    except HeadscopeError:
        raise
    except Exception as error:  # what PEFT raises on a file it cannot use is not one kind
        raise ModelError(f"the adapter {brief(name)!r} could not be put on its base: {first_line(error)}") from error
    missing = _not_loaded(adapted, set(result.missing_keys))
    wrong = missing or sorted(result.unexpected_keys)
    if wrong:
        what = "lacks" if missing else "holds"
        why = "they would be random" if missing else "its base has no place for them"
        raise ModelError(
            f"the adapter {brief(name)!r} {what} {len(wrong)} weights ({brief(', '.join(wrong[:3]))}); {why}: use an "
            "adapter and a base that belong together."
        )
    return adapted.eval()


def _not_loaded(adapted: Any, missing: set[str]) -> list[str]:
    """Names that the file lacks, but for those of a tensor that it holds under another name (VB-LoRA's vectors)."""
    named = dict(adapted.named_parameters(remove_duplicate=False))
    loaded = {id(held) for name, held in named.items() if name not in missing}
    return sorted(name for name in missing if name not in named or id(named[name]) not in loaded)
