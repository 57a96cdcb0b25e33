"""The `demo` model: a real, small, trained transformer that ships with the package.

Two layers of six heads, attention only, byte-level BPE of 1,024 tokens, trained half on the Python standard
library's source and half on jittered repeats. It reads Python a little, and it has one clear previous-token
head, several induction heads that listen to it, and a head that is neither: what a first look needs.
`training.json` beside the weights holds how it was made and what was measured.

Made anew, in under 15 minutes on two cores, by

    python -m headscope.lab.demo --out DIR

Misleading as: a language model. Half of its training was random tokens.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from headscope.errors import HeadscopeError

BOS_TOKEN = "<|bos|>"
VOCAB_SIZE = 1024
N_LAYERS, N_HEADS, D_MODEL, N_POSITIONS = 2, 6, 192, 512
N_PROMPTS, N_TOKENS = 16, 192
"""A batch of either source. Longer than the 128 tokens the task needs, so that stripes hold at 200."""
PERIOD, GAP = (8, 80), (0, 40)
N_STEPS, LEARNING_RATE = 1400, 1.5e-3
EVAL_PROMPTS, EVAL_TOKENS, EVAL_SEED = 64, 200, 1_000_003
"""Repeats to measure on, from a seed that training never uses."""


def demo_path() -> Path:
    """The folder with the packaged model, tokenizer and `training.json`.

    Raises:
        HeadscopeError: The package was installed without them.
    """
    folder = Path(__file__).parent / "demo_model"
    if not (folder / "model.safetensors").is_file():
        raise HeadscopeError(
            f"demo_path: {folder} holds no model.safetensors; the packaged demo model is needed. "
            f"Reinstall headscope, or run `python -m headscope.lab.demo --out {folder}`."
        )
    return folder


def build_demo(
    out: Path, *, seed: int = 0, n_steps: int = N_STEPS, report: Callable[[str], None] = print
) -> dict[str, object]:
    """Train tokenizer and model, measure them, and write all of it to a folder.

    Args:
        out: Folder to write to; files of the same names are replaced, once everything is ready.
        seed: Of the initial weights and the batches.
        n_steps: Optimizer steps.
        report: Receives one line of progress at a time.

    Returns:
        What `training.json` holds.
    """
    import tokenizers
    import torch
    import transformers

    from headscope.lab import measure, training
    from headscope.lab.corpus import stdlib_sources
    from headscope.lab.repeats import jittered_repeats

    began = time.perf_counter()
    train_texts, held_out_texts = stdlib_sources(held_out=False), stdlib_sources(held_out=True)
    tokenizer = train_tokenizer(train_texts)
    bos_token_id = tokenizer.token_to_id(BOS_TOKEN)
    train_stream, held_out_stream = (
        torch.tensor(
            [
                token
                for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)
                for token in encoding.ids
            ]
        )
        for texts in (train_texts, held_out_texts)
    )
    report(
        f"{len(train_stream):,} tokens to train on, {len(held_out_stream):,} held out, "
        f"{time.perf_counter() - began:.0f} s"
    )

    model = training.attention_only_llama(
        vocab_size=VOCAB_SIZE,
        bos_token_id=bos_token_id,
        n_layers=N_LAYERS,
        n_heads=N_HEADS,
        d_model=D_MODEL,
        n_positions=N_POSITIONS,
        seed=seed,
    )
    recipe = training.Recipe(
        n_steps=n_steps, learning_rate=LEARNING_RATE, decay_steps=n_steps // 4, seed=seed
    )
    sources = {
        "text": training.text_source(
            train_stream, bos_token_id=bos_token_id, n_prompts=N_PROMPTS, n_tokens=N_TOKENS
        ),
        "repeats": training.repeats_source(
            vocab_size=VOCAB_SIZE,
            bos_token_id=bos_token_id,
            n_prompts=N_PROMPTS,
            n_tokens=N_TOKENS,
            period=PERIOD,
            gap=GAP,
        ),
    }
    last = None
    for last in training.train(model, sources, recipe):
        report(str(last))
    assert last is not None

    repeats = jittered_repeats(
        n_prompts=EVAL_PROMPTS,
        n_tokens=EVAL_TOKENS,
        vocab_size=VOCAB_SIZE,
        bos_token_id=bos_token_id,
        generator=torch.Generator().manual_seed(EVAL_SEED),
        period=PERIOD,
        gap=GAP,
    )
    scores = measure.repeat_scores(model, repeats)
    record: dict[str, object] = {
        "schema": "headscope.demo/1",
        "command": f"python -m headscope.lab.demo --out DIR --seed {seed} --steps {n_steps}",
        "seed": seed,
        "steps": n_steps,
        "recipe": asdict(recipe),
        "batch": {
            "text_windows": N_PROMPTS,
            "repeat_windows": N_PROMPTS,
            "tokens": N_TOKENS,
            "period": PERIOD,
            "gap": GAP,
        },
        "corpus": {
            "train_modules": len(train_texts),
            "held_out_modules": len(held_out_texts),
            "train_tokens": len(train_stream),
            "held_out_tokens": len(held_out_stream),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "threads": torch.get_num_threads(),
        "train_loss_nats": dict(last.loss_nats),
        "train_wall_s": round(last.wall_s),
        "measured": {
            "prompts": EVAL_PROMPTS,
            "tokens": EVAL_TOKENS,
            "seed": EVAL_SEED,
            "induction": _rounded(scores.induction.tolist()),
            "previous_token": _rounded(scores.previous_token.tolist()),
            "second_copy_loss_nats": round(scores.loss_nats, 4),
            "second_copy_accuracy": round(scores.accuracy, 4),
            "held_out_loss_nats": round(
                measure.text_loss(
                    model, held_out_stream, bos_token_id=bos_token_id, n_tokens=N_TOKENS
                ),
                4,
            ),
            "held_out_unigram_entropy_nats": round(
                measure.unigram_entropy(held_out_stream, vocab_size=VOCAB_SIZE), 4
            ),
        },
    }
    _write(out, model, tokenizer, record)
    return record


def train_tokenizer(texts: list[str]):
    """Byte-level BPE with `VOCAB_SIZE` tokens, id 0 the start token, which it puts before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=[BOS_TOKEN],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A",
        pair=f"{BOS_TOKEN} $A {BOS_TOKEN}:1 $B:1",
        special_tokens=[(BOS_TOKEN, tokenizer.token_to_id(BOS_TOKEN))],
    )
    return tokenizer


def _rounded(scores: list[list[float]]) -> list[list[float]]:
    return [[round(score, 3) for score in layer] for layer in scores]


def _write(out: Path, model, tokenizer, record: dict[str, object]) -> None:
    """Write beside `out`, then move file by file, so that no half-written file bears a final name."""
    from transformers import PreTrainedTokenizerFast

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        model.save_pretrained(scratch)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token=BOS_TOKEN, model_max_length=N_POSITIONS
        ).save_pretrained(scratch)
        (Path(scratch) / "training.json").write_text(json.dumps(record, indent=2) + "\n")
        for path in sorted(Path(scratch).iterdir()):
            os.replace(path, out / path.name)


def main(arguments: list[str] | None = None) -> None:
    """The command in this module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m headscope.lab.demo", description="Train headscope's demo model anew."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=N_STEPS)
    given = parser.parse_args(arguments)
    record = build_demo(
        given.out,
        seed=given.seed,
        n_steps=given.steps,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(json.dumps(record["measured"], indent=2))


if __name__ == "__main__":
    main()
