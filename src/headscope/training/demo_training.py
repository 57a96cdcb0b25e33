"""How the `demo` model is made: tokenizer, batches, recipe, and the record of what came out.

Text alone forms no induction head in the time there is, repeats alone teach nothing to read; one batch of
each a step, the two losses added, gives a model with both.
"""

import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from jaxtyping import Float, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from headscope.probes.corpus import stdlib_sources
from headscope.training.loop import Progress, Recipe, attention_only_llama, repeats_source, text_source, train
from headscope.training.measure import repeat_scores, text_loss, unigram_entropy
from headscope.training.repeats import jittered_repeats

BOS_TOKEN, BOS_TOKEN_ID = "<|bos|>", 0
VOCAB_SIZE = 1024
SHAPE: dict[str, Any] = {"n_layers": 2, "n_heads": 6, "d_model": 192, "n_positions": 512}
PHASES: tuple[Mapping[str, Any], ...] = (
    {
        "recipe": Recipe(n_steps=900, learning_rate=1.5e-3),
        "text": {"n_prompts": 12, "n_tokens": 128},
        "repeats": {"n_prompts": 32, "n_tokens": 64, "period": (6, 24), "gap": (0, 8), "n_copies": 3},
    },
    {
        "recipe": Recipe(n_steps=500, learning_rate=4e-3, warmup_steps=20, decay_steps=250),
        "text": {"n_prompts": 16, "n_tokens": 192},
        "repeats": {"n_prompts": 16, "n_tokens": 192, "period": (8, 80), "gap": (0, 40), "n_copies": 3},
    },
    {
        "recipe": Recipe(n_steps=400, learning_rate=1.5e-3, warmup_steps=20, decay_steps=200),
        "text": {"n_prompts": 16, "n_tokens": 192},
        "repeats": {
            "n_prompts": 16,
            "n_tokens": 192,
            "period": (8, 80),
            "gap": (0, 40),
            "n_copies": 3,
            "count_all": True,
        },
    },
)
"""Short windows first: among 64 keys the right one is found by chance often enough for the circuit to form, within
about 700 steps. Then long ones at a higher rate, which make its heads sharp enough for 200 tokens. Last, every token of
the repeats counts: until then nothing says what to expect of fresh random tokens, and the induction heads guess there,
at a loss of 12 nats where log 1024 = 6.9 is to be had; afterwards they are quiet where nothing repeats."""
MEASURED_ON: dict[str, Any] = {"n_prompts": 64, "n_tokens": 200, "period": (8, 80), "gap": (0, 40)}
MEASURED_SEED = 1_000_003
"""Of the repeats measured on; training never uses it."""


def build_demo(
    out: Path,
    *,
    seed: int = 0,
    phases: Sequence[Mapping[str, Any]] = PHASES,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train tokenizer and model, measure them, and write all of it to a folder.

    Args:
        out: Folder to write to; files of the same names are replaced, once everything is ready.
        seed: Of the initial weights and the batches.
        phases: What is trained in turn: a `recipe`, whose own seed gives way, and the shapes of its batches.
        report: Receives one line of progress at a time.

    Returns:
        What `training.json` holds.
    """
    train_texts, held_out_texts = stdlib_sources(held_out=False), stdlib_sources(held_out=True)
    tokenizer = train_tokenizer(train_texts)
    train_stream, held_out_stream = token_stream(tokenizer, train_texts), token_stream(tokenizer, held_out_texts)
    report(f"{len(train_stream):,} tokens to train on, {len(held_out_stream):,} held out")

    model = attention_only_llama(vocab_size=VOCAB_SIZE, bos_token_id=BOS_TOKEN_ID, seed=seed, **SHAPE)
    # Every phase draws batches of its own.
    phases = [
        {**phase, "recipe": replace(phase["recipe"], seed=len(phases) * seed + number)}
        for number, phase in enumerate(phases)
    ]
    reports: list[list[Progress]] = []
    for number, phase in enumerate(phases):
        sources = {
            "text": text_source(train_stream, bos_token_id=BOS_TOKEN_ID, **phase["text"]),
            "repeats": repeats_source(vocab_size=VOCAB_SIZE, bos_token_id=BOS_TOKEN_ID, **phase["repeats"]),
        }
        reports.append([])
        for progress in train(model, sources, phase["recipe"]):
            report(f"phase {number + 1}  {progress}")
            reports[-1].append(progress)

    repeats = jittered_repeats(
        vocab_size=VOCAB_SIZE,
        bos_token_id=BOS_TOKEN_ID,
        generator=torch.Generator().manual_seed(MEASURED_SEED),
        **MEASURED_ON,
    )
    scores = repeat_scores(model, repeats)
    held_out_loss = text_loss(model, held_out_stream, bos_token_id=BOS_TOKEN_ID, n_tokens=192)
    record = {
        "schema": "headscope.demo/1",
        "command": f"python -m headscope.training.demo --out DIR --seed {seed}",
        "seed": seed,
        "phases": [{**phase, "recipe": asdict(phase["recipe"])} for phase in phases],
        "corpus": {
            "train_modules": len(train_texts),
            "train_tokens": len(train_stream),
            "held_out_modules": len(held_out_texts),
            "held_out_tokens": len(held_out_stream),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "threads": torch.get_num_threads(),
        "train_loss_nats": dict(reports[-1][-1].loss_nats),
        "train_wall_s": round(sum(phase[-1].wall_s for phase in reports)),
        "measured": {
            "repeats": MEASURED_ON | {"seed": MEASURED_SEED},
            "induction": _rounded(scores.induction),
            "previous_token": _rounded(scores.previous_token),
            "second_copy_loss_nats": round(scores.loss_nats, 4),
            "second_copy_accuracy": round(scores.accuracy, 4),
            "held_out_loss_nats": round(held_out_loss, 4),
            "held_out_unigram_entropy_nats": round(unigram_entropy(held_out_stream, vocab_size=VOCAB_SIZE), 4),
        },
    }
    _write(out, model, tokenizer, record)
    return record


def train_tokenizer(texts: list[str], *, vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """Byte-level BPE with so many tokens; id 0 is the start token, which it puts before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[BOS_TOKEN],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A",
        pair=f"{BOS_TOKEN} $A {BOS_TOKEN}:1 $B:1",
        special_tokens=[(BOS_TOKEN, BOS_TOKEN_ID)],
    )
    return tokenizer


def token_stream(tokenizer: Tokenizer, texts: list[str]) -> Int[Tensor, " position"]:
    """The ids of all texts in a row, without start tokens."""
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    return torch.cat([torch.tensor(encoding.ids) for encoding in encodings])


def _rounded(scores: Float[Tensor, "layer head"]) -> list[list[float]]:
    return [[round(float(score), 3) for score in layer] for layer in scores]


def _write(out: Path, model: LlamaForCausalLM, tokenizer: Tokenizer, record: dict[str, Any]) -> None:
    """Write to a folder beside `out`, then move file by file: no half-written file has a final name."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        model.save_pretrained(scratch)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token=BOS_TOKEN, model_max_length=SHAPE["n_positions"]
        ).save_pretrained(scratch)
        (Path(scratch) / "training.json").write_text(json.dumps(record, indent=2) + "\n")
        for path in sorted(Path(scratch).iterdir()):
            path.chmod(0o644)
            os.replace(path, out / path.name)
