"""Weights of a checkpoint that the model has no place for.

transformers leaves them out and goes on. A config that drops attention biases, names 1 of 2 layers, or reads a sequence
classifier as a language model so gives another model than the one that was trained, and no error. Here every weight
that was left out is refused, but for

    what transformers declares    `_keys_to_ignore_on_load_unexpected` of the model's class, like heads that predict
                                  several tokens at once; it has taken them out before we look
    `HARMLESS`                    constants that are recomputed, and towers for images and sound
    a classifier's head           the model below it is opened, which has no head

Misleading when: a checkpoint's config differs in what has no weights, like `rope_theta`; no key tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from headscope.errors import ModelError, brief

HARMLESS: Mapping[str, re.Pattern[str]] = {
    "rotary frequencies": re.compile(r"(^|\.)(rotary_emb|rotary_pos_emb)\.inv_freq$"),
    "position numbers": re.compile(r"(^|\.)position_ids$"),
    "causal masks": re.compile(r"\.(attn|attn\.attention|attention|self_attn)\.(bias|masked_bias|causal_mask)$"),
    "towers": re.compile(r"^(model\.)?(vision_tower|vision_model|visual|audio_tower|multi_modal_projector)\."),
}
"""Names that change no number of the decoder; a causal mask also has to have the shape of one."""


_CLASSIFIER = re.compile(r"For(Sequence|Token)Classification$")
_CLASSIFIER_HEAD = re.compile(r"^(score|classifier)\.")


def is_classifier(architectures: Sequence[str]) -> bool:
    """Whether a checkpoint is of a classifier: a model without LM head, and a head for its classes."""
    return bool(architectures) and _CLASSIFIER.search(architectures[0]) is not None


def refuse_leftover(
    source: str, names: Iterable[str], shapes: Mapping[str, tuple[int, ...]], architectures: Sequence[str]
) -> None:
    """Raise if the model has no place for weights of its checkpoint.

    Args:
        source: The model, for the error.
        names: The weights that were left out, as transformers lists them.
        shapes: Of the checkpoint's tensors; empty where no header tells.
        architectures: What the config says was trained.

    Raises:
        ModelError: with the first of their names.
    """
    heads = _CLASSIFIER_HEAD if is_classifier(architectures) else None
    left = sorted(name for name in names if not _harmless(name, shapes) and not (heads and heads.match(name)))
    if not left:
        return
    more = ", ..." if len(left) > 3 else ""
    other = [name for name in architectures if "For" in name and not name.endswith("ForCausalLM")]
    trained = f" It was trained as {brief(other[0])}." if other else ""
    raise ModelError(
        f"{source!r} holds {len(left)} weights that its config has no place for ({brief(', '.join(left[:3]))}{more}); "
        f"without them it is another model: use a config and weights that belong together.{trained}"
    )


def _harmless(name: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    kind = next((kind for kind, pattern in HARMLESS.items() if pattern.search(name)), None)
    if kind != "causal masks":
        return kind is not None
    # transformers may have added or removed the prefix of the model's body.
    shape = next((shape for key, shape in shapes.items() if key.endswith(name) or name.endswith(key)), None)
    return shape is None or shape in ((), (1,)) or (len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3])
