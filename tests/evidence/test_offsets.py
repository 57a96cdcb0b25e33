"""Fixed offsets: heads that look a set distance back are found there, and no others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytest import approx
from transformers import GPT2Config, GPT2LMHeadModel

import headscope as hs
from benchmarks.tiny import tiny_causal_lm
from headscope.errors import ShapeError
from headscope.evidence import offsets as module
from headscope.evidence.offsets import Offsets
from headscope.evidence.scan import measure as scan
from headscope.evidence.scan.measure import scanned
from headscope.planted.handbuilt import DECOYS, handbuilt
from headscope.probes import Probe


def rows(*lengths, start=5):
    return [np.arange(start, start + length) for length in lengths]


def best_offsets(model, controls):
    """What is read while a scan reads prompts that look nothing like their controls."""
    offsets = Offsets(controls)
    prompts = tuple(np.full_like(one, 5) for one in controls)
    probe = Probe(prompts=prompts, controls=tuple(controls), settings={"kind": "tokens", "n_prompts": len(prompts)})
    scanned(model, probe=probe, watch=offsets.watch)
    return offsets.best()


@pytest.fixture(scope="module")
def uniform():
    """A GPT-2 whose queries and keys are zero: the key is any of the q + 1 that query q may see."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0))
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[:, :32] = 0
            block.attn.c_attn.bias[:32] = 0
    return hs.load(model.eval())


# ---- arithmetic


def test_an_even_pattern_by_hand(uniform):
    # 12 tokens: offsets 2 and 3. Queries 3 .. 11 look 2 back at a key that is not the first, with 1 / (q + 1) each:
    # (1/4 + ... + 1/12) / 9 = 0.141098; 3 back from query 4 on: (1/5 + ... + 1/12) / 8 = 0.127485, less.
    for best in best_offsets(uniform, rows(12)).values():
        assert best.offset == 2
        assert best.mean == approx(sum(1 / n for n in range(4, 13)) / 9, abs=1e-7)
        assert best.mean == approx(0.141098, abs=1e-6)


def test_prompts_are_averaged_and_all_heads_are_there(uniform):
    found = best_offsets(uniform, [*rows(12), *rows(12, start=30)])
    assert sorted(found) == [hs.HeadId(layer, head) for layer in range(2) for head in range(2)]
    assert found[hs.HeadId(1, 1)].mean == approx(0.141098, abs=1e-6)


def test_the_shortest_prompt_has_one_offset(uniform):
    # 11 tokens: queries 3 .. 10 are the eight that offset 2 needs.
    for best in best_offsets(uniform, rows(11)).values():
        assert best.offset == 2
        assert best.mean == approx(sum(1 / n for n in range(4, 12)) / 8, abs=1e-7)


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "bloom", "gpt_oss"])
def test_offsets_equal_those_of_plain_loops(family, rng):
    hf = tiny_causal_lm(family)
    prompts = [rng.permutation(np.arange(5, 100))[:16] for _ in range(3)]
    sums: dict[tuple[int, int, int], list[float]] = {}
    for prompt in prompts:
        patterns = hf(torch.from_numpy(prompt)[None], output_attentions=True, use_cache=False).attentions
        for layer, pattern in enumerate(one[0].double().numpy() for one in patterns):
            for head in range(len(pattern)):
                for offset in range(2, 16 - 8):
                    seen = [pattern[head, q, q - offset] for q in range(offset + 1, 16)]
                    sums.setdefault((layer, head, offset), []).append(sum(seen) / len(seen))
    found = best_offsets(hs.load(hf), prompts)
    assert len(found) == 8
    for head, best in found.items():
        wanted = {offset: np.mean(sums[head.layer, head.head, offset]) for offset in range(2, 8)}
        assert best.offset == max(wanted, key=wanted.get)
        assert best.mean == approx(wanted[best.offset], abs=1e-6)


# ---- heads that we know


@pytest.mark.parametrize("offset", [3, 11, 30])
def test_a_positional_head_is_found_at_its_offset_and_no_other_head_of_the_circuit(offset):
    built = handbuilt(vocab_size=128, n_positions=128, decoys=DECOYS, offset=offset)
    model = hs.load(built.model)
    found = best_offsets(model, hs.repeated_tokens(model, n_prompts=4, period=20).controls)
    (positional,) = built.heads("positional")
    assert found[positional].offset == offset
    assert found[positional].mean > 0.999
    # It writes what the induction head's key reads, from two back.
    (wrong,) = built.heads("wrong_position_sender")
    assert (found[wrong].offset, found[wrong].mean) == (2, approx(1, abs=1e-3))
    # One back is the previous token and no offset; those that look for content rest on the start token, left out.
    for role in ("previous_token", "induction", "duplicate_token", "attends_only", "anti_induction"):
        for head in built.heads(role):
            assert found[head].mean < 0.01, role


def test_in_repeats_of_one_period_an_induction_head_would_pass_for_a_positional_one():
    # Which is why controls are read, in which nothing repeats.
    built = handbuilt(vocab_size=128, n_positions=128)
    model = hs.load(built.model)
    probe = hs.repeated_tokens(model, n_prompts=4, period=20, jitter=False)
    (induction,) = built.heads("induction")
    # [BOS, r, r]: 41 tokens. Offset 19: queries 21 .. 39 of 20 .. 40 and 40 match; query 20 has no copy before it.
    fooled = best_offsets(model, probe.prompts)[induction]
    assert (fooled.offset, fooled.mean) == (19, approx(20 / 21, abs=1e-3))
    assert best_offsets(model, probe.controls)[induction].mean < 0.01


# ---- how it is read


def test_batches_change_nothing_and_prompts_stay_as_they_were(monkeypatch, rng):
    model = hs.load(tiny_causal_lm("llama"))
    prompts = [rng.permutation(np.arange(5, 100))[:20] for _ in range(5)]
    before = [prompt.copy() for prompt in prompts]
    together = best_offsets(model, prompts)
    for where, name, size in ((module, "BATCH_NUMBERS", 1), (scan, "BATCH_TOKENS", {"cpu": 80})):
        monkeypatch.setattr(where, name, size)
        alone = best_offsets(model, prompts)
        for head, best in together.items():
            assert alone[head].offset == best.offset
            assert alone[head].mean == approx(best.mean, abs=1e-6)
    assert all((one == two).all() for one, two in zip(prompts, before, strict=True))


@pytest.mark.parametrize(
    ("lengths", "said"), [((10,), "lengths 10 to 10"), ((12, 13), "lengths 12 to 13"), ((20, 3), "lengths 3 to 20")]
)
def test_prompts_too_short_or_of_several_lengths_are_refused(lengths, said):
    with pytest.raises(
        ShapeError, match=f"offsets are read on prompts of one length of at least 11 tokens; got {said}"
    ):
        Offsets(rows(*lengths))
