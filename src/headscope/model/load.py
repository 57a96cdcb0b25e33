"""Open a language model: a hub id, a local folder, `demo`, or a model object.

Objects may be of transformers, or wrapped by TransformerLens or nnsight (`headscope.model.adapters`).

Weights load from safetensors; pickled weights and remote code each need their flag. A checkpoint that lacks some of
its weights is refused, since transformers would fill them with random numbers. Every model passes the self-check
(`headscope.model.selfcheck`), once per model object.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from headscope.errors import (
    ArgumentError,
    HeadscopeError,
    ModelError,
    ModelNotFound,
    UnsafeWeights,
    UnsupportedModel,
    brief,
)
from headscope.heads import HeadId
from headscope.model.bounds import bounded, refuse_endless, refuse_kernels
from headscope.model.budget import refuse_too_large
from headscope.model.folder import check_folder, fetched
from headscope.model.leftover import refuse_leftover
from headscope.model.tokenizer import is_panic

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from headscope.model.selfcheck import Check

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


@runtime_checkable
class OfHead(Protocol):
    """A result of one head: a `HeadScore`, a verdict, an entry of `find_induction_heads`."""

    @property
    def head(self) -> HeadId | int:
        """The head, or its number beside a `layer`."""
        ...


OneHead = HeadId | str | tuple[int, int] | OfHead
Heads = OneHead | Iterable[OneHead]
"""A head, or several: `HeadId`, `"L5H1"`, (layer, head), or a result of one head."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Model:
    """A language model seen head by head. Made by `headscope.load`."""

    hf: PreTrainedModel
    """The transformers model, as it was given or loaded; of a TransformerLens bridge a copy of its tree, with the same
    weights."""
    tokenizer: Any | None
    """Its transformers tokenizer; None leaves everything that needs only token ids."""
    id: str
    """Hub id, folder, `demo`, or the class of a model object."""
    revision: str | None
    """Commit of the hub repository, where it is known."""
    check: Check
    """What the self-check found, and how attention is reached."""

    @property
    def family(self) -> str:
        """Transformers' name of the architecture, like `gpt2`."""
        return str(self._config.model_type or self.hf.config.model_type)

    @property
    def n_layers(self) -> int:
        """Decoder layers, with or without attention."""
        last = max(self.check.heads, default=-1) + 1
        return max(last, int(getattr(self._config, "num_hidden_layers", None) or 0))

    @property
    def n_heads(self) -> int:
        """Query heads of a layer; the largest number, where layers differ."""
        return max(self.check.heads.values(), default=0)

    @property
    def n_kv_heads(self) -> int | None:
        """Key-value heads of a layer; None where the model's own code hides them."""
        return self.check.kv_heads

    def named(self, heads: Heads) -> tuple[HeadId, ...]:
        """Heads of this model, each once, in the order given.

        Args:
            heads: One or several of: `HeadId`, a name like `L5H1`, (layer, head), or a result of one head, like
                what `scan.heads` and `find_induction_heads` give.

        Raises:
            ArgumentError: no head at all, something that names none, or heads that the model does not have.
        """
        found = tuple(dict.fromkeys(_heads(heads)))
        if not found:
            raise ArgumentError("there is no head; name at least one, like L5H1.")
        missing = [one for one in found if one.call < 0 or not 0 <= one.head < self.check.heads.get(one.layer, 0)]
        if missing:
            raise ArgumentError(
                f"{self.id} has no head {brief(', '.join(map(str, missing)))}; it has {self.n_layers} layers of up to "
                f"{self.n_heads} heads, counted from 0."
            )
        return found

    @property
    def n_embeddings(self) -> int:
        """Rows of the embedding: token ids are below this."""
        return int(self._embedding.weight.shape[0])

    @property
    def n_predicted(self) -> int:
        """Token ids below this have a logit: fewer than there are embeddings where some tokens are only read."""
        width = getattr(self.hf.get_output_embeddings(), "out_features", None)
        return self.n_embeddings if width is None else min(self.n_embeddings, int(width))

    @property
    def max_tokens(self) -> int | None:
        """Longest input in tokens, as the config states it; None where it states none."""
        limit = getattr(self._config, "max_position_embeddings", None)
        return int(limit) if limit and limit > 0 else None

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        from headscope.model.parallel import input_device

        return input_device(self._embedding)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the embedding."""
        return self._embedding.weight.dtype

    @property
    def bos_token_id(self) -> int | None:
        """Start token: the tokenizer's, without a tokenizer the config's, or none."""
        source = self.tokenizer if self.tokenizer is not None else self._config
        start = getattr(source, "bos_token_id", None)
        return int(start) if isinstance(start, int) and 0 <= start < self.n_embeddings else None

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Ids that are not text: the tokenizer's special tokens, or the start, end and padding ids of the config."""
        if self.tokenizer is not None:
            ids = list(self.tokenizer.all_special_ids)
        else:
            ids = [getattr(self._config, f"{name}_token_id", None) for name in ("bos", "eos", "pad")]
        flat = [one for item in ids for one in (item if isinstance(item, list) else [item])]
        return frozenset(one for one in flat if isinstance(one, int))

    @property
    def _embedding(self) -> Any:
        return self.hf.get_input_embeddings()

    @property
    def _config(self) -> Any:
        return self.hf.config.get_text_config()


def _heads(given: Any) -> list[HeadId]:
    one = _head(given)
    if one is not None:
        return [one]
    each = list(given) if isinstance(given, Iterable) else [given]
    heads = {index: head for index, one in enumerate(each) if (head := _head(one)) is not None}
    wrong = [one for index, one in enumerate(each) if index not in heads]
    if wrong:
        raise ArgumentError(
            f"{brief(repr(wrong[0]))} is not a head; give names like 'L5H1', (layer, head), or results of a head."
        )
    return list(heads.values())


def _head(given: Any) -> HeadId | None:
    """What one value names; None where it is not of a kind that names a head."""
    if isinstance(given, str):
        return HeadId.parse(given)
    if isinstance(given, HeadId):
        return given
    if isinstance(inner := getattr(given, "head", None), HeadId):
        return inner
    place: Any = (getattr(given, "layer", None), inner) if isinstance(given, OfHead) else given
    if not (isinstance(place, tuple) and len(place) == 2):
        return None
    if not all(isinstance(one, Integral) and not isinstance(one, bool) for one in place):
        return None
    return HeadId(int(place[0]), int(place[1]))


_CHECKS: weakref.WeakKeyDictionary[Any, Check] = weakref.WeakKeyDictionary()


def load(
    source: str | Path | PreTrainedModel | Model = "demo",
    *,
    device: str | None = None,
    dtype: str = "auto",
    revision: str | None = None,
    tokenizer: Any | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Model:
    """Open a model and check that its heads can be seen.

    Args:
        source: Hub id, folder in transformers' layout, `demo`, or a model object: of transformers, of nnsight, or a
            `TransformerBridge` of TransformerLens 4. An object is left as it was: mode, device, gradients, attention
            implementation.
        device: Like `cpu` or `cuda:0`; `auto` spreads a large model over what there is. By default a GPU if there is
            one.
        dtype: `auto` (the checkpoint's own), `float32`, `float64`, `float16` or `bfloat16`.
        revision: Branch, tag or commit on the hub.
        tokenizer: A transformers tokenizer, for a model object that comes without; else the one beside the weights.
        allow_pickle: Also load weights that are not safetensors. Pickled files can run code.
        trust_remote_code: Run model code that the repository brings.

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
    )
    if model.check.support == "unsupported":
        raise UnsupportedModel(
            f"{model.id} ({model.family}) cannot be used: {model.check.reason}. "
            "Choose a decoder-only model with softmax attention."
        )
    return model


def open_model(
    source: str | Path | PreTrainedModel | Model,
    *,
    device: str | None = None,
    dtype: str = "auto",
    revision: str | None = None,
    tokenizer: Any | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Model:
    """`load`, but an unsupported model is returned with its verdict instead of raising `UnsupportedModel`."""
    if isinstance(source, Model):
        if (device, dtype, revision, tokenizer) != (None, "auto", None, None):
            raise ArgumentError(
                "device, dtype, revision and tokenizer do not apply to a loaded Model; load it with them."
            )
        return source
    if dtype not in DTYPES:
        raise ArgumentError(f"dtype={dtype!r} is not known; use one of {', '.join(DTYPES)}.")
    if isinstance(source, (str, Path)):
        hf, found, revision = _from_pretrained(str(source), device, dtype, revision, allow_pickle, trust_remote_code)
        tokenizer = tokenizer if tokenizer is not None else found
        name = str(source)
    else:
        from transformers import PreTrainedModel

        from headscope.model.adapters import unwrapped

        if (inner := unwrapped(source)) is not None:
            source, tokenizer = inner.hf, tokenizer if tokenizer is not None else inner.tokenizer
        if not isinstance(source, PreTrainedModel):
            raise ArgumentError(
                f"load got a {type(source).__name__}; it needs a hub id, a folder, 'demo', or a model object of "
                "transformers, TransformerLens 4 or nnsight."
            )
        if device is not None or dtype != "auto" or revision is not None:
            raise ArgumentError("device, dtype and revision do not apply to a model object; move or convert it first.")
        hf, name = source, source.config.name_or_path or type(source).__name__
    if hf not in _CHECKS:
        from headscope.model.selfcheck import selfcheck

        _CHECKS[hf] = selfcheck(hf)
    return Model(hf=hf, tokenizer=tokenizer, id=name, revision=revision, check=_CHECKS[hf])


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
    except ImportError:
        return None
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
