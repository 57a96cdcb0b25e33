"""A run whose induction head we switch on step by step."""

from __future__ import annotations

import pytest
import torch

from headscope.planted.handbuilt import handbuilt

STRENGTHS = {0: 0.0, 100: 0.01, 200: 0.02, 300: 0.05, 400: 0.12, 500: 0.2, 600: 0.3, 700: 0.35}
"""By step: what the induction head's queries are multiplied with. At 0 it attends evenly; from 0.3 on it is sure."""


def save(folder, strength):
    """The hand-built model with an induction head of this strength, and no other changed."""
    built = handbuilt(vocab_size=80, n_positions=96)
    (head,) = [head for head, role in built.roles.items() if role == "induction"]
    attention = built.model.transformer.h[head.layer].attn
    width = attention.head_dim
    queries = slice(head.head * width, (head.head + 1) * width)
    with torch.no_grad():
        attention.c_attn.weight[:, queries] *= strength
        attention.c_attn.bias[queries] *= strength
    built.model.save_pretrained(folder)


@pytest.fixture(scope="session")
def saved():
    """A function that writes such a checkpoint: (folder, strength)."""
    return save


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A folder of eight checkpoints; nobody changes it."""
    folder = tmp_path_factory.mktemp("run")
    for step, strength in STRENGTHS.items():
        save(folder / f"step-{step:06d}", strength)
    return folder


@pytest.fixture(scope="session")
def hub(tmp_path_factory, run):
    """The same as revisions in a folder laid out like the hub's cache: (cache, folder of the repository)."""
    cache = tmp_path_factory.mktemp("hub")
    folder = cache / "models--lab--copy"
    for number, step in enumerate(STRENGTHS):
        commit = f"{number:040x}"
        (folder / "snapshots").mkdir(parents=True, exist_ok=True)
        (folder / "snapshots" / commit).symlink_to(run / f"step-{step:06d}", target_is_directory=True)
        ref = folder / "refs" / f"step{step}"
        ref.parent.mkdir(exist_ok=True)
        ref.write_text(commit)
    (folder / "refs" / "main").write_text(f"{len(STRENGTHS) - 1:040x}")
    return cache, folder
