"""What a lab model attends to and how well it predicts, by the plain route: whole patterns, eager attention.

These are the figures that say whether a model came out as it was meant to. They need the full pattern of
every layer, `O(layers * heads * n_tokens^2)` memory, which a lab model can afford and a large one cannot.
"""

# pyright: reportPrivateUsage=false
# pyright: reportUnknownArgumentType=false
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from headscope.training.repeats import Repeats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RepeatScores:
    """A model on jittered repeats."""

    induction: Float[Tensor, "layer head"]
    """Mean over predictable queries of the attention to the token after the earlier copy."""
    previous_token: Float[Tensor, "layer head"]
    """Mean over queries 1 .. of the attention to the token before."""
    loss_nats: float
    """Mean loss on predictable tokens."""
    accuracy: float
    """Share of predictable tokens that are ranked first."""


def repeat_scores(model: PreTrainedModel, repeats: Repeats) -> RepeatScores:
    """Score every head's attention, and the predictions, in one forward pass.

        induction[l, h]      = mean over (b, q) with a key k of pattern[l, b, h, q, k]
        previous_token[l, h] = mean over b and q >= 1 of pattern[l, b, h, q, q - 1]

    Args:
        model: Any causal language model with eager attention, on the CPU. Its attention setting is restored.
        repeats: Prompts and keys. Not modified.
    """
    implementation = model.config._attn_implementation or "eager"
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = model(input_ids=repeats.tokens, output_attentions=True, use_cache=False)
    finally:
        model.set_attn_implementation(implementation)
    row, query = repeats.predictable.nonzero(as_tuple=True)
    key = repeats.induction_key[row, query]
    logits = out.logits[row, query]
    next_token = repeats.tokens[row, key]
    return RepeatScores(
        induction=torch.stack([p[row, :, query, key].mean(0) for p in out.attentions]),
        previous_token=torch.stack([p.diagonal(offset=-1, dim1=2, dim2=3).mean((0, 2)) for p in out.attentions]),
        loss_nats=cross_entropy(logits, next_token).item(),
        accuracy=(logits.argmax(-1) == next_token).float().mean().item(),
    )


def text_loss(model: PreTrainedModel, stream: Int[Tensor, " position"], *, bos_token_id: int, n_tokens: int) -> float:
    """Mean loss in nats over a text read in disjoint windows of `n_tokens`, BOS in front of each.

    The remainder that fills no window is left out.
    """
    body = n_tokens - 1
    windows = stream[: len(stream) // body * body].view(-1, body)
    total = 0.0
    with torch.no_grad():
        for chunk in torch.split(windows, 32):
            tokens = torch.cat([torch.full((len(chunk), 1), bos_token_id), chunk], dim=1)
            logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
            total += cross_entropy(logits.flatten(0, 1), chunk.flatten(), reduction="sum").item()
    return total / windows.numel()


def unigram_entropy(stream: Int[Tensor, " position"], *, vocab_size: int) -> float:
    """Entropy in nats of a text's own token frequencies: `-sum p log p`."""
    frequency = stream.bincount(minlength=vocab_size).double() / len(stream)
    return float(torch.special.entr(frequency).sum())
