"""Train a small attention-only model until induction appears.

The model is a stock Llama or GPT-2 whose MLP weights are zero and frozen, so any library that loads those
loads it, and attention is all it can use. Two layers learn the induction circuit on jittered repeats in
seconds; one layer stays at chance, because there the score of a query and a key depends on those two
tokens and their places alone.

    model = attention_only_llama(vocab_size=512, bos_token_id=0, seed=0)
    for progress in train(model, {"repeats": repeats_source(vocab_size=512, bos_token_id=0)}, TRAINED):
        print(progress)

`Training` is the same, one step at a time, and can be put down and taken up again. Whole recipes are in
`headscope.training.recipes`. Two sources are two losses, added. Cost of a step: three forward passes' worth per
source.

Misleading as: a picture of how induction appears in language models at large. These tokens are uniform and
every second segment repeats; real text forms the circuit later and less cleanly.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from headscope.errors import ArgumentError, NonFiniteError
from headscope.training.repeats import jittered_repeats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Token ids and which of them, read as queries, are asked for their next token."""

    tokens: Int[Tensor, "batch query"]
    """Token ids."""

    counted: Bool[Tensor, "batch query"]
    """Queries whose next-token loss counts. The last column is False: nothing follows it."""


BatchSource = Callable[[torch.Generator], Batch]
"""Draws the next batch, with the generator as its only source of randomness."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How long and how fast to train."""

    n_steps: int
    """Optimizer steps."""
    learning_rate: float
    """AdamW's, after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's."""
    weight_decay: float = 0.01
    """AdamW's."""
    warmup_steps: int = 50
    """Steps over which the learning rate rises linearly from zero."""
    decay_steps: int = 0
    """Steps at the end over which it falls linearly to zero."""
    log_every: int = 50
    """Steps between two reports of progress."""
    seed: int = 0
    """Of the batches. The model's initial weights have their own."""


TRAINED = Recipe(n_steps=800, learning_rate=1e-3)
"""Repeats only, 512 tokens, two layers of width 128: nothing until step 350; at step 500 a loss of 0.03 and layer-1
stripes of 0.84 to 0.90, at step 700 of 0.91 to 0.94."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The state of training."""

    step: int
    """Optimizer steps done."""
    loss_nats: Mapping[str, float]
    """Mean loss per counted token, by source, over the steps since the last report."""
    wall_s: float
    """Seconds since training began."""

    def __str__(self) -> str:
        losses = "  ".join(f"{name} {loss:.3f}" for name, loss in self.loss_nats.items())
        return f"step {self.step:5d}  {self.wall_s:6.0f} s  {losses}"


def attention_only_llama(
    *,
    vocab_size: int,
    bos_token_id: int,
    n_layers: int = 2,
    n_heads: int = 4,
    d_model: int = 128,
    n_positions: int = 512,
    nearby: bool = False,
    seed: int = 0,
) -> LlamaForCausalLM:
    """A Llama with random attention and with MLPs that add exactly zero and cannot learn.

    Queries and keys have biases, drawn wide: a bias turned by the rotary embedding is a head that looks a distance
    back, so a previous-token head forms in hundreds of steps rather than thousands. Where each head has a distance of
    its own, two of them that look m and m - 1 back sometimes do together what one previous-token head would; `nearby`
    leaves them no such chance.

    Args:
        vocab_size: Rows of the embedding and of the separate unembedding.
        bos_token_id: Recorded in the configuration.
        n_layers: 2 for a model that can learn induction, 1 for the control that cannot.
        n_heads: Query heads; each has its own key and value head.
        d_model: Width; `d_head = d_model / n_heads` must be even for rotary embedding.
        n_positions: Longest prompt promised by the configuration.
        nearby: Give the key the bias of its query, so that every head starts out looking mostly at what is near.
        seed: Of the initial weights. The global random state is left as it was.

    Raises:
        ArgumentError: d_model is not a multiple of twice n_heads.
    """
    if d_model % (2 * n_heads):
        raise ArgumentError(
            f"attention_only_llama: d_model={d_model} with n_heads={n_heads} gives no even head width; "
            f"it needs a multiple of {2 * n_heads}. Change either."
        )
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=d_model,
        intermediate_size=8,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads,
        max_position_embeddings=n_positions,
        attention_bias=True,
        initializer_range=0.05,
        tie_word_embeddings=False,
        bos_token_id=bos_token_id,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.bias", "k_proj.bias")):
                torch.nn.init.normal_(parameter, std=0.5)
    if nearby:
        biases = dict(model.named_parameters())
        for name, parameter in biases.items():
            if name.endswith("k_proj.bias"):
                parameter.data.copy_(biases[name.replace("k_proj", "q_proj")])
    _remove_mlps(model)
    return model


def attention_only_gpt2(
    *,
    vocab_size: int,
    bos_token_id: int,
    n_layers: int = 2,
    n_heads: int = 4,
    d_model: int = 128,
    n_positions: int = 512,
    seed: int = 0,
) -> GPT2LMHeadModel:
    """The same with learned positions: a GPT-2 without dropout, whose MLPs add exactly zero and cannot learn.

    Args:
        vocab_size: Rows of the embedding and of the separate unembedding.
        bos_token_id: Recorded in the configuration.
        n_layers: 2 for a model that can learn induction, 1 for the control that cannot.
        n_heads: Heads of each layer.
        d_model: Width, a multiple of n_heads.
        n_positions: Longest prompt; each position learns a vector of its own, as far as it is trained on.
        seed: Of the initial weights. The global random state is left as it was.

    Raises:
        ArgumentError: d_model is not a multiple of n_heads.
    """
    if d_model % n_heads:
        raise ArgumentError(
            f"attention_only_gpt2: d_model={d_model} does not divide among n_heads={n_heads}; "
            f"it needs a multiple of {n_heads}. Change either."
        )
    config = GPT2Config(
        vocab_size=vocab_size,
        n_embd=d_model,
        n_inner=8,
        n_layer=n_layers,
        n_head=n_heads,
        n_positions=n_positions,
        initializer_range=0.05,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=bos_token_id,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    _remove_mlps(model)
    return model


def _remove_mlps(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if ".mlp." in name:
            parameter.requires_grad_(False).zero_()


def repeats_source(
    *,
    vocab_size: int,
    bos_token_id: int,
    n_prompts: int = 64,
    n_tokens: int = 96,
    period: tuple[int, int] = (8, 45),
    gap: tuple[int, int] = (0, 4),
    n_copies: int = 2,
    count_all: bool = False,
) -> BatchSource:
    """Batches of jittered repeats, counting only the tokens that an induction head can predict.

    With `count_all` every token counts: a model learns to expect nothing where nothing can be known.
    The other args and the errors are those of `jittered_repeats`; errors appear when the first batch is drawn.
    """

    def draw(generator: torch.Generator) -> Batch:
        repeats = jittered_repeats(
            n_prompts=n_prompts,
            n_tokens=n_tokens,
            vocab_size=vocab_size,
            bos_token_id=bos_token_id,
            generator=generator,
            period=period,
            gap=gap,
            n_copies=n_copies,
        )
        counted = torch.ones_like(repeats.predictable) if count_all else repeats.predictable
        counted[:, -1] = False
        return Batch(tokens=repeats.tokens, counted=counted)

    return draw


def text_source(stream: Int[Tensor, " position"], *, bos_token_id: int, n_prompts: int, n_tokens: int) -> BatchSource:
    """Batches of windows cut anywhere from one long text, BOS in front, every next token counted.

    Args:
        stream: Token ids of the whole text.
        bos_token_id: The id put at position 0 of each window.
        n_prompts: Windows in a batch.
        n_tokens: Tokens in a window, BOS included.

    Raises:
        ArgumentError: The text is shorter than a window.
    """
    n_starts = len(stream) - (n_tokens - 1) + 1
    if n_tokens < 2 or n_starts < 1:
        raise ArgumentError(
            f"text_source: a text of {len(stream)} tokens holds no window of n_tokens={n_tokens}; "
            f"it needs 2 <= n_tokens <= {len(stream) + 1}. Use a longer text or a shorter window."
        )
    offsets = torch.arange(n_tokens - 1)

    def draw(generator: torch.Generator) -> Batch:
        starts = torch.randint(n_starts, (n_prompts, 1), generator=generator)
        tokens = torch.full((n_prompts, n_tokens), bos_token_id)
        tokens[:, 1:] = stream[starts + offsets]
        counted = torch.ones(n_prompts, n_tokens, dtype=torch.bool)
        counted[:, -1] = False
        return Batch(tokens=tokens, counted=counted)

    return draw


def either(*sources: BatchSource) -> BatchSource:
    """Each batch from one of these, drawn with equal chances."""

    def draw(generator: torch.Generator) -> Batch:
        return sources[int(torch.randint(len(sources), (), generator=generator))](generator)

    return draw


def next_token_loss(model: PreTrainedModel, batch: Batch) -> Float[Tensor, ""]:
    """Mean of -log p(next token) over the counted queries, in nats."""
    tokens, counted = batch.tokens.to(model.device), batch.counted.to(model.device)[:, :-1]
    # position_ids are left to the model: no padding, every prompt starts at position 0.
    logits = model(input_ids=tokens, use_cache=False).logits
    return cross_entropy(logits[:, :-1][counted], tokens[:, 1:][counted])


class Training:
    """A model, its optimizer and its batches, between two steps.

    Batches are drawn on the CPU, so that they are the same on any device. The same seed, torch build and number of
    threads give the same weights, whether or not the training was put down in between by `state` and taken up by
    `restore`.

    Args:
        model: Changed in place. Parameters that require no gradient stay as they are.
        sources: Named batch sources; the losses are added.
        recipe: Learning rate and its schedule.
        autocast: Run the model in bfloat16, on CUDA; weights and optimizer keep their own precision.

    Raises:
        ArgumentError: There is no source.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sources: Mapping[str, BatchSource],
        recipe: Recipe,
        *,
        autocast: bool = False,
    ) -> None:
        if not sources:
            raise ArgumentError(
                "train: sources={} gives nothing to learn; at least one batch source is needed. "
                "Pass repeats_source(...) or text_source(...)."
            )
        self.model: PreTrainedModel = model
        self.sources: Mapping[str, BatchSource] = sources
        self.recipe: Recipe = recipe
        self.autocast: bool = autocast
        self.step: int = 0
        self._learned = {name: one for name, one in model.named_parameters() if one.requires_grad}
        self._optimizer = torch.optim.AdamW(
            list(self._learned.values()),
            lr=recipe.learning_rate,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
        )
        self._generator = torch.Generator().manual_seed(recipe.seed)

    def advance(self) -> dict[str, float]:
        """Take one optimizer step, the model in training mode; gives the loss of each source before it.

        Raises:
            NonFiniteError: A loss is NaN or infinite. The weights are those from before the step.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * _rate_factor(self.step + 1, self.recipe)
        self._optimizer.zero_grad(set_to_none=True)
        losses: dict[str, float] = {}
        for name, draw in self.sources.items():
            batch = draw(self._generator)
            with torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=self.autocast):
                loss = next_token_loss(self.model, batch)
            loss.backward()
            losses[name] = loss.item()
            if not math.isfinite(losses[name]):
                raise NonFiniteError(f"the {name} loss is {losses[name]}")
        self._optimizer.step()
        self.step += 1
        return losses

    def state(self) -> dict[str, Tensor]:
        """The optimizer's moments and the generator, by name; with the weights and `step` all that a training is."""
        moments = self._optimizer.state_dict()["state"]
        found = {
            f"{kind}:{name}": value
            for index, name in enumerate(self._learned)
            for kind, value in moments.get(index, {}).items()
        }
        return found | {"generator": self._generator.get_state()}

    def restore(self, state: Mapping[str, Tensor], *, step: int) -> None:
        """Go on from what `state` gave after `step` steps. The caller restores the weights."""
        state = dict(state)
        self._generator.set_state(state.pop("generator"))
        moments: dict[int, dict[str, Tensor]] = {index: {} for index in range(len(self._learned))}
        places = {name: index for index, name in enumerate(self._learned)}
        for key, value in state.items():
            kind, name = key.split(":")
            moments[places[name]][kind] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.step = step


def train(model: PreTrainedModel, sources: Mapping[str, BatchSource], recipe: Recipe) -> Iterator[Progress]:
    """Train in place, one batch of every source a step, reporting as it goes.

    Nothing happens until the iterator is advanced; stop early by leaving the loop. The same seed, torch
    build and number of threads give the same weights.

    Args:
        model: Changed in place. Parameters that require no gradient stay as they are.
        sources: Named batch sources; the losses are added.
        recipe: Length and learning rate.

    Yields:
        Progress every `recipe.log_every` steps and after the last.

    Raises:
        ArgumentError: There is no source.
        NonFiniteError: A loss is no longer finite.
    """
    training = Training(model, sources, recipe)
    totals = dict.fromkeys(sources, 0.0)
    n_since = 0
    began = time.perf_counter()
    model.train()
    while training.step < recipe.n_steps:
        for name, loss in training.advance().items():
            totals[name] += loss
        n_since += 1
        if training.step % recipe.log_every == 0 or training.step == recipe.n_steps:
            means = {name: total / n_since for name, total in totals.items()}
            yield Progress(step=training.step, loss_nats=means, wall_s=time.perf_counter() - began)
            totals, n_since = dict.fromkeys(sources, 0.0), 0
    model.eval()


def _rate_factor(step: int, recipe: Recipe) -> float:
    """min(1, step / warm-up, steps left / decay): 1 where neither applies."""
    up = step / recipe.warmup_steps if recipe.warmup_steps else 1.0
    left = recipe.n_steps - step + 1
    down = left / recipe.decay_steps if recipe.decay_steps else 1.0
    return min(1.0, up, down)
