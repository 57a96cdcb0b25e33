"""The scan: against plain loops over a model's own patterns, on heads that we know, and when something goes wrong."""

from __future__ import annotations

import jaxtyping
import numpy as np
import pytest
import torch
from pytest import approx
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model, LlamaConfig, LlamaForCausalLM

import headscope as hs
from benchmarks.tiny import tiny_causal_lm
from headscope.errors import ArgumentError, MemoryRanOut, NonFiniteError, ShapeError, TokenError
from headscope.evidence.scan import measure as scanning
from headscope.model.attention import Attention
from headscope.planted.handbuilt import DECOYS, handbuilt
from headscope.probes.probe import Probe

PERIOD = 20


def prompts_of(*rows) -> Probe:
    return hs.probe_tokens([list(row) for row in rows])


def by_head(scan, detector):
    return {score.head: score for score in scan.scores if score.detector == detector}


def same_scores(a, b, *, tolerance=0.0):
    """Both scans score the same heads for the same roles with the same numbers.

    An interval's skewed ends from few prompts move more than the means that they are made of.
    """
    first, second = (scan.to_frame() for scan in (a, b))
    assert first[["layer", "head", "call", "detector"]].equals(second[["layer", "head", "call", "detector"]])
    for column in ("mean", "ci_low", "ci_high", "chance", "control", "selectivity", "n_prompts"):
        difference = (first[column] - second[column]).abs()
        assert (first[column].isna() == second[column].isna()).all()
        limit = tolerance * (100 if column.startswith("ci_") else 1)
        assert difference.max() <= limit or difference.isna().all(), column


# ---- a model whose heads we know


@pytest.fixture(scope="module")
def built():
    return handbuilt(vocab_size=128, n_positions=128, decoys=DECOYS, offset=PERIOD - 1)


@pytest.fixture(scope="module")
def jittered(built):
    return hs.scan(built.model, probe=hs.repeated_tokens(hs.load(built.model), n_prompts=16, period=PERIOD))


@pytest.fixture(scope="module")
def classic(built):
    probe = hs.repeated_tokens(hs.load(built.model), n_prompts=16, period=PERIOD, jitter=False)
    return hs.scan(built.model, probe=probe)


def test_the_circuits_heads_score_one_in_their_roles(built, jittered, classic):
    for scan in (jittered, classic):
        (sender,), (receiver,) = built.heads("previous_token"), built.heads("induction")
        assert by_head(scan, "previous_token")[sender].mean > 0.999
        assert by_head(scan, "induction")[receiver].mean > 0.999
        assert by_head(scan, "induction_recent")[receiver].mean > 0.999
        # On the control, where the run does not recur, it rests on the start token.
        assert by_head(scan, "induction")[receiver].control < 0.01
        assert by_head(scan, "induction")[receiver].selectivity.mean > 0.99


def test_found_are_those_heads_and_those_of_the_same_pattern(built, jittered, classic):
    # `attends_only` and `anti_induction` attend like an induction head. What they write, a scan does not see.
    same_pattern = {*built.heads("induction"), *built.heads("attends_only"), *built.heads("anti_induction")}
    for scan in (jittered, classic):
        assert {score.head for score in scan.heads("induction")} == same_pattern
        assert [score.head for score in scan.heads("previous_token")] == built.heads("previous_token")
        assert [score.head for score in scan.heads("duplicate_token")] == built.heads("duplicate_token")
        assert scan.heads("current_token") == []


def test_a_duplicate_token_head_is_told_apart_by_its_score(built, jittered):
    (decoy,) = built.heads("duplicate_token")
    assert by_head(jittered, "duplicate_token")[decoy].mean > 0.99
    assert by_head(jittered, "induction")[decoy].mean < 0.001
    # 61 tokens: at one query of 60, the first after it, the start token on which it rests is the previous token.
    assert by_head(jittered, "previous_token")[decoy].mean == approx(1 / 60, abs=1e-3)


def test_a_positional_head_has_no_selectivity_and_is_not_found_even_where_it_scores_one(built, jittered, classic):
    (decoy,) = built.heads("positional")
    # Classic: 19 back is the token after the copy 20 back, at every query of the second copy; on the control too.
    fooled = by_head(classic, "induction")[decoy]
    assert fooled.mean > 0.999
    assert fooled.control == approx(fooled.mean, abs=1e-6)
    assert fooled.selectivity.mean == approx(0, abs=1e-6)
    assert decoy not in {score.head for score in classic.heads("induction")}
    # Jittered: its distance is right in few prompts only, and the control is as good there.
    jitter = by_head(jittered, "induction")[decoy]
    assert jitter.mean < 0.3
    assert jitter.selectivity.mean == approx(0, abs=0.01)


def test_a_sender_of_the_wrong_position_and_random_heads_have_no_role(built, jittered):
    (wrong,) = built.heads("wrong_position_sender")
    assert by_head(jittered, "previous_token")[wrong].mean < 0.05
    for head in (*built.heads("noise"), *built.heads("none")):
        for role in ("induction", "previous_token", "duplicate_token", "current_token"):
            assert by_head(jittered, role)[head].mean < 0.1


def test_the_second_layer_alone_has_no_induction_head(built):
    # The same induction head, weight by weight, without the head before it that tells keys what precedes them.
    (receiver,) = built.heads("induction")
    single = handbuilt(vocab_size=128, n_positions=128, decoys=DECOYS, offset=PERIOD - 1).model
    single.transformer.h = torch.nn.ModuleList([single.transformer.h[receiver.layer]])
    single.config.n_layer = 1
    model = hs.load(single)
    scan = hs.scan(model, probe=hs.repeated_tokens(model, n_prompts=8, period=PERIOD))
    assert scan.model.n_layers == 1
    assert scan.heads("induction") == []
    assert by_head(scan, "induction")[hs.HeadId(0, receiver.head)].mean < 0.05


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n_layers", [1, 2])
def test_random_weights_have_no_induction_head(seed, n_layers):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=n_layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.15,
    )
    model = hs.load(LlamaForCausalLM(config).eval())
    scan = hs.scan(model, probe=hs.repeated_tokens(model, n_prompts=8, period=PERIOD, seed=seed))
    assert len(scan.ranked("induction")) == 8 * n_layers
    assert scan.ranked("induction")[0].mean < 0.4
    assert scan.heads("induction") == scan.heads("induction_recent") == []


# ---- against plain loops


def targets(name, tokens, i):
    copies = [j for j in range(i) if tokens[j] == tokens[i]]
    return {
        "induction": {j + 1 for j in copies},
        "induction_recent": {j + 1 for j in copies[-1:]},
        "duplicate_token": set(copies),
        "previous_token": {i - 1} if i else set(),
        "current_token": {i} if i else set(),
        "first_token": {0} if i else set(),
    }[name]


@torch.no_grad()
def by_loops(hf, prompts, read, window=None):
    """{(layer, head, role): (score, chance)} by loops over the patterns that eager attention returns.

    Targets are those of `prompts`, attention is that on `read`: the prompts themselves or their controls.
    """
    sums = {}
    for tokens, seen in zip(prompts, read, strict=True):
        patterns = hf(torch.from_numpy(seen)[None], output_attentions=True, use_cache=False).attentions
        for layer, pattern in enumerate(one[0].double().numpy() for one in patterns):
            for head in range(len(pattern)):
                for role in (detector.name for detector in hs.DETECTORS):
                    mass, chance = [], []
                    for i in range(len(tokens)):
                        keys = targets(role, tokens.tolist(), i)
                        if not keys:
                            continue
                        first = 0 if window is None or window[layer] is None else max(0, i - window[layer] + 1)
                        mass.append(sum(pattern[head, i, key] for key in keys))
                        chance.append(sum(key >= first for key in keys) / (i - first + 1))
                    if mass:
                        prompt = (sum(mass) / len(mass), sum(chance) / len(chance))
                        sums.setdefault((layer, head, role), []).append(prompt)
    return {place: tuple(np.mean(values, axis=0)) for place, values in sums.items()}


FAMILIES = {
    # family: how far each of its layers looks back
    "gpt2": None,
    "llama": None,  # 4 query heads share 2 KV heads
    "mistral": [8, 8],
    "gemma2": [8, None],  # and a soft-cap
    "bloom": None,  # runs in its own code
}


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_controls_and_chance_equal_those_of_plain_loops(family, rng):
    hf = tiny_causal_lm(family)
    model = hs.load(hf)
    # Three lengths; ids from 6, so that tokens have many copies, some of them side by side; controls from all ids.
    prompts = tuple(rng.integers(5, 11, size=n) for n in (14, 9, 14, 11))
    controls = tuple(rng.integers(5, 100, size=len(prompt)) for prompt in prompts)
    scan = hs.scan(model, probe=Probe(prompts=prompts, controls=controls, settings={}))
    wanted = by_loops(hf, prompts, prompts, FAMILIES[family])
    without = by_loops(hf, prompts, controls, FAMILIES[family])
    assert len(scan.scores) == len(wanted) == model.n_layers * model.n_heads * 6
    for score in scan.scores:
        place = (score.head.layer, score.head.head, score.detector)
        assert score.mean == approx(wanted[place][0], abs=1e-6)
        assert score.chance == approx(wanted[place][1], abs=1e-6)
        assert score.control == approx(without[place][0], abs=1e-6)
        assert score.selectivity.mean == approx(wanted[place][0] - without[place][0], abs=2e-6)
        assert score.n_prompts == 4


def test_in_float64_they_equal_plain_loops_to_the_last_digits(rng):
    # What differs above, 1e-6, is float32's rounding and nothing else. (A llama's own softmax is float32 always.)
    hf = tiny_causal_lm("gpt2").double()
    prompts = tuple(rng.integers(5, 11, size=12) for _ in range(3))
    wanted = by_loops(hf, prompts, prompts)
    scan = hs.scan(hf, probe=prompts_of(*prompts))
    assert scan.provenance.dtype == "float64"
    for score in scan.scores:
        assert score.mean == approx(wanted[score.head.layer, score.head.head, score.detector][0], abs=1e-13)


@pytest.mark.parametrize("kernel", ["flash", "tiled", "reference"])
def test_every_kernel_gives_the_same_scores(kernel):
    model = hs.load(tiny_causal_lm("llama"))
    probe = hs.repeated_tokens(model, n_prompts=4, period=8)
    scan = hs.scan(model, probe=probe, kernel=kernel)
    assert scan.provenance.kernels == (kernel,)
    same_scores(scan, hs.scan(model, probe=probe), tolerance=1e-6)


# ---- chance


@pytest.fixture(scope="module")
def uniform():
    """A GPT-2 whose queries and keys are zero: every head spreads its attention evenly over what it sees."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0))
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[:, :32] = 0
            block.attn.c_attn.bias[:32] = 0
    return hs.load(model.eval())


def test_a_uniform_head_scores_chance_in_every_role(uniform):
    # [BOS, r, r] of period 3: queries 4, 5, 6 see 5, 6, 7 keys -> (1/5 + 1/6 + 1/7) / 3 = 107/630 = 0.170.
    probe = hs.repeated_tokens(uniform, n_prompts=3, period=3, jitter=False)
    for score in hs.scan(uniform, probe=probe).scores:
        assert score.mean == approx(score.chance, abs=1e-6)
        wanted = 107 / 630 if score.detector in ("induction", "induction_recent", "duplicate_token") else 223 / 840
        assert score.chance == approx(wanted, abs=1e-6)
        assert score.selectivity.mean == approx(0, abs=1e-6)


def test_chance_counts_every_copy_and_the_window():
    # 7 7 7 7: query 1, 2, 3 have 1, 2, 3 targets of 2, 3, 4 keys -> (1/2 + 2/3 + 3/4) / 3 = 23/36.
    probe = prompts_of([7] * 4)
    (score, *_) = hs.scan(tiny_causal_lm("llama"), probe=probe, detectors="induction").scores
    assert score.chance == approx(23 / 36)
    # A window of 8 hides the start from queries 8 and 9: (1/2 + 1/3 + ... + 1/8 + 0 + 0) / 9 = 0.190873.
    (score, *_) = hs.scan(tiny_causal_lm("mistral"), probe=prompts_of(range(20, 30)), detectors="first_token").scores
    assert score.chance == approx(sum(1 / n for n in range(2, 9)) / 9)
    assert score.mean < 1


# ---- prompts of any length, one by one or together


def test_ragged_prompts_score_as_they_do_one_at_a_time():
    model = hs.load(tiny_causal_lm("llama"))
    rows = [[5, 6, 7, 5, 6], [8, 9, 8], [5, 6, 7, 6, 7, 6, 5, 9], [9, 8, 9], [5, 5]]
    together = by_head(hs.scan(model, probe=prompts_of(*rows)), "induction")
    alone = [by_head(hs.scan(model, probe=prompts_of(row)), "induction") for row in rows]
    for head, score in together.items():
        assert score.mean == approx(np.mean([one[head].mean for one in alone]), abs=1e-6)
        assert score.chance == approx(np.mean([one[head].chance for one in alone]), abs=1e-6)
    # And the order of the prompts does not matter.
    same_scores(hs.scan(model, probe=prompts_of(*rows)), hs.scan(model, probe=prompts_of(*rows[::-1])), tolerance=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side):
    model = hs.load(tiny_causal_lm("gpt2"))  # learned positions: padding that stayed would shift them
    rows = [[5, 6, 7, 5, 6, 7, 5], [8, 9, 8, 9]]
    pad = [99] * 3
    padded = [rows[0], pad + rows[1] if side == "left" else rows[1] + pad]
    mask = [[1] * 7, [0] * 3 + [1] * 4 if side == "left" else [1] * 4 + [0] * 3]
    probe = hs.probe_tokens(torch.tensor(padded), attention_mask=torch.tensor(mask))
    same_scores(hs.scan(model, probe=probe), hs.scan(model, probe=prompts_of(*rows)))


def test_a_prompt_without_a_target_does_not_count():
    model = hs.load(tiny_causal_lm("gpt2"))
    mixed = hs.scan(model, probe=prompts_of([5, 6, 5, 6], [5, 6, 7, 8], [7, 8, 7, 8]))
    repeats = hs.scan(model, probe=prompts_of([5, 6, 5, 6], [7, 8, 7, 8]))
    assert {score.n_prompts for score in mixed.ranked("induction")} == {2}
    assert {score.n_prompts for score in mixed.ranked("previous_token")} == {3}
    for head, score in by_head(mixed, "induction").items():
        wanted = by_head(repeats, "induction")[head]
        assert (score.mean, score.ci95) == (wanted.mean, wanted.ci95)


def test_a_role_without_a_target_is_absent_and_says_why():
    model = hs.load(tiny_causal_lm("gpt2"))
    scan = hs.scan(model, probe=prompts_of([5, 6, 7], [8, 9]))
    reason = "no prompt has a target for it: no token repeats"
    assert scan.unscored == {"induction": reason, "induction_recent": reason, "duplicate_token": reason}
    assert [role.name for role in scan.roles] == ["previous_token", "current_token", "first_token"]
    assert "induction" not in scan.to_dict()["found"]
    with pytest.raises(ArgumentError, match=f"this scan has no score for induction: {reason}"):
        scan.heads("induction")
    single = hs.scan(model, probe=prompts_of([5]))
    assert single.scores == ()
    assert single.unscored["previous_token"] == "no prompt has a target for it"
    assert len(single.to_frame()) == 0


# ---- detectors and their order


def test_a_choice_of_detectors_gives_the_same_numbers_in_the_order_asked_for():
    model = hs.load(tiny_causal_lm("llama"))
    probe = hs.repeated_tokens(model, n_prompts=4, period=8)
    everything = hs.scan(model, probe=probe)
    some = hs.scan(model, probe=probe, detectors=["first_token", hs.DETECTORS[0]])
    assert [role.name for role in some.roles] == ["first_token", "induction"]
    assert [score.detector for score in some.scores[:2]] == ["first_token", "induction"]
    for name in ("first_token", "induction"):
        for head, score in by_head(some, name).items():
            assert score.mean == approx(by_head(everything, name)[head].mean, abs=1e-7)
            assert score.ci95 == approx(by_head(everything, name)[head].ci95, abs=1e-7)


def test_scores_come_by_layer_head_and_role_and_selectivity_is_paired():
    model = hs.load(tiny_causal_lm("llama"))
    scan = hs.scan(model, probe=hs.repeated_tokens(model, n_prompts=4, period=8))
    roles = [detector.name for detector in hs.DETECTORS]
    wanted = [(hs.HeadId(layer, head), role) for layer in range(2) for head in range(4) for role in roles]
    assert [(score.head, score.detector) for score in scan.scores] == wanted
    for score in scan.scores:
        assert score.selectivity.mean == approx(score.mean - score.control)
        assert 0 <= score.ci95[0] <= score.mean <= score.ci95[1] <= 1


# ---- precision


def longer_sides(scan):
    for score in scan.scores:
        for one in (score, score.selectivity):
            yield max(one.ci95[1] - one.mean, one.mean - one.ci95[0])


def test_precision_draws_until_every_interval_is_as_narrow():
    model = hs.load(tiny_causal_lm("llama"))
    probe = hs.repeated_tokens(model, n_prompts=4, period=8)
    rough, fine = hs.scan(model, probe=probe), hs.scan(model, probe=probe, precision=0.02)
    assert max(longer_sides(rough)) > 0.02 >= max(longer_sides(fine))
    assert fine.probe["n_prompts"] > 4
    assert fine.probe["precision"] == 0.02
    assert {score.n_prompts for score in fine.scores} == {fine.probe["n_prompts"]}
    # Every prompt was drawn by the probe itself, in order.
    again = hs.scan(model, probe=hs.repeated_tokens(model, n_prompts=fine.probe["n_prompts"], period=8))
    same_scores(fine, again, tolerance=1e-6)
    assert fine.timing.tokens == again.timing.tokens
    # The same probe object again: drawing has not used it up.
    same_scores(fine, hs.scan(model, probe=probe, precision=0.02))


def test_precision_counts_the_side_of_an_interval_that_is_not_cut_off(built):
    # 19 back hits by chance in a prompt of 12. After 24 prompts its interval is [0, 0.264] around 0.042: cut off below,
    # so that half of its width is 0.132, though it reaches 0.222 above the mean.
    (positional,) = built.heads("positional")
    model = hs.load(built.model)
    probe = hs.repeated_tokens(model, n_prompts=24, period=PERIOD)
    rough = by_head(hs.scan(model, probe=probe, detectors="induction"), "induction")[positional]
    assert rough.ci95[0] == 0
    assert (rough.ci95[1] - rough.ci95[0]) / 2 < 0.18 < rough.ci95[1] - rough.mean
    fine = by_head(hs.scan(model, probe=probe, detectors="induction", precision=0.18), "induction")[positional]
    assert fine.n_prompts > 24
    assert fine.ci95[1] - fine.mean <= 0.18


def test_precision_starts_from_a_single_prompt_and_stops_where_it_is_reached():
    model = hs.load(tiny_causal_lm("llama"))
    single = hs.repeated_tokens(model, n_prompts=1, period=8)
    assert max(longer_sides(hs.scan(model, probe=single, precision=0.05, detectors="induction"))) <= 0.05
    enough = hs.repeated_tokens(model, n_prompts=8, period=8)
    assert hs.scan(model, probe=enough, precision=0.9).probe["n_prompts"] == 8


def test_precision_ends_at_the_largest_number_of_prompts(monkeypatch):
    monkeypatch.setattr(scanning, "MAX_PROMPTS", 24)
    model = hs.load(tiny_causal_lm("llama"))
    scan = hs.scan(model, probe=hs.repeated_tokens(model, n_prompts=4, period=8), precision=1e-9)
    assert scan.probe["n_prompts"] == 24


def test_a_precision_whose_square_is_no_number_ends_there_too_and_what_was_reached_is_known(monkeypatch):
    # (0.1 / 1e-200)^2 = 1e398, which no float holds
    monkeypatch.setattr(scanning, "MAX_PROMPTS", 8)
    model = hs.load(tiny_causal_lm("llama"))
    scan = hs.scan(model, probe=hs.repeated_tokens(model, n_prompts=4, period=8), precision=1e-200)
    assert scan.probe["n_prompts"] == 8
    assert scan.widest == max(longer_sides(scan)) > 1e-200


def test_the_control_is_the_mean_of_what_the_selectivity_is_made_of(monkeypatch):
    # A kernel that rounds probabilities up, to 1.25 each: score and control are cut off at 1, and 1 - 1 = 0.
    monkeypatch.setattr(
        Attention,
        "probabilities",
        lambda self, batch, query, key: torch.full((len(batch), self.n_heads), 1.25),
    )
    model = hs.load(tiny_causal_lm("gpt2"))
    scan = hs.scan(model, probe=hs.repeated_tokens(model, n_prompts=2, period=8), detectors=["previous_token"])
    assert {(one.mean, one.control, one.selectivity.mean) for one in scan.scores} == {(1.0, 1.0, 0.0)}


def test_layers_that_share_a_mask_share_its_chance(monkeypatch):
    # gemma2's first layer has a sliding window and its second none, mistral's two have the same one: 2 masks and 1
    asked = []
    plain = Attention.allowed
    monkeypatch.setattr(Attention, "allowed", lambda self, *places: asked.append(self.layer) or plain(self, *places))
    for family, layers in (("mistral", [0]), ("gemma2", [0, 1])):
        asked.clear()
        model = hs.load(tiny_causal_lm(family))
        hs.scan(model, probe=hs.repeated_tokens(model, n_prompts=2, period=8))
        assert asked == layers


def test_precision_does_not_draw_for_a_role_that_has_no_target():
    model = hs.load(tiny_causal_lm("llama"))
    never = hs.Detector("never", lambda tokens: hs.Targets(query=np.zeros(0, int), key=np.zeros(0, int)))
    probe = hs.repeated_tokens(model, n_prompts=4, period=8)
    scan = hs.scan(model, probe=probe, detectors=[never], precision=0.01)
    assert (scan.scores, scan.probe["n_prompts"]) == ((), 4)


@pytest.mark.parametrize("precision", [0.0, -0.1, float("nan"), float("inf")])
def test_a_precision_that_is_not_positive_is_refused(precision):
    with pytest.raises(ArgumentError, match="it needs a positive number, like 0.02"):
        hs.scan(tiny_causal_lm("gpt2"), precision=precision)


def test_precision_with_tokens_of_ones_own_is_refused():
    with pytest.raises(ArgumentError, match="precision needs a probe that can draw more prompts"):
        hs.scan(tiny_causal_lm("gpt2"), probe=prompts_of([5, 6]), precision=0.1)


# ---- memory and progress


def limited(monkeypatch, hf, largest):
    """Let the model run out of memory on batches above `largest`; returns the sizes it was asked for."""
    forward, asked = type(hf).forward, []

    def checked(self, *args, **kwargs):
        asked.append(len(kwargs["input_ids"]))
        if asked[-1] > largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return forward(self, *args, **kwargs)

    # on the class: a forward put on the model itself is a change, after which it is checked again
    monkeypatch.setattr(type(hf), "forward", checked)
    return asked


def test_running_out_of_memory_halves_the_batch_and_changes_no_score(monkeypatch):
    hf = tiny_causal_lm("llama")
    model = hs.load(hf)
    probe = hs.repeated_tokens(model, n_prompts=9, period=8)
    wanted = hs.scan(model, probe=probe)
    asked = limited(monkeypatch, hf, 5)
    # 9 prompts and 9 controls: 18, then 4 + 4 = 8, then 2 + 2 = 4 fit, four times, and the last 1 + 1.
    same_scores(hs.scan(model, probe=probe), wanted, tolerance=1e-6)
    assert asked == [18, 8, 4, 4, 4, 4, 2]


def test_memory_that_does_not_hold_one_prompt_is_said_so(monkeypatch):
    hf = tiny_causal_lm("llama")
    model = hs.load(hf)
    limited(monkeypatch, hf, 1)
    with pytest.raises(MemoryRanOut, match="memory ran out with a single prompt"):
        hs.scan(model, probe=hs.repeated_tokens(model, n_prompts=3, period=8))
    assert hf.config._attn_implementation == "eager"


def test_another_error_of_the_model_is_not_taken_for_memory(monkeypatch):
    hf = tiny_causal_lm("llama")
    model = hs.load(hf)

    def broken(*args, **kwargs):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(type(hf), "forward", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        hs.scan(model, probe=prompts_of([5, 6]))


def test_progress_grows_to_the_total(monkeypatch):
    monkeypatch.setitem(scanning.BATCH_TOKENS, "cpu", 100)
    model = hs.load(tiny_causal_lm("llama"))
    calls: list[tuple[int, int]] = []
    probe = hs.repeated_tokens(model, n_prompts=5, period=8)
    scan = hs.scan(model, probe=probe, progress=lambda done, total: calls.append((done, total)))
    # 25 tokens and 25 of the control: 2 prompts fill a batch of 100.
    assert calls == [(100, 250), (200, 250), (250, 250)]
    assert scan.timing.tokens == probe.n_tokens == 250
    assert scan.timing.wall_s > 0


# ---- models of every kind


def test_a_model_without_a_head_scans():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0)
    with_head = GPT2LMHeadModel(config).eval()
    headless = GPT2Model(config).eval()
    headless.load_state_dict(with_head.transformer.state_dict())
    probe = prompts_of([5, 6, 7, 5, 6, 7])
    same_scores(hs.scan(headless, probe=probe), hs.scan(with_head, probe=probe), tolerance=1e-7)


def test_a_looped_model_gives_one_score_for_each_call():
    model = hs.load(tiny_causal_lm("hrm_text"))
    scan = hs.scan(model, probe=hs.repeated_tokens(model, n_prompts=2, period=5), detectors=["previous_token"])
    calls = {(score.head.layer, score.head.call) for score in scan.scores}
    assert max(call for _, call in calls) > 0
    assert len(scan.scores) == len(calls) * model.n_heads
    again = [score for score in scan.scores if score.head.call == 1]
    assert str(again[0].head).endswith("#1")
    assert {entry.get("call", 0) for entry in scan.to_dict()["heads"]} == {call for _, call in calls}
    assert hs.Scan.from_dict(scan.to_dict()) == scan


def test_what_load_takes_scan_takes():
    hf = tiny_causal_lm("gpt2")
    probe = prompts_of([5, 6, 7, 5, 6])
    same_scores(hs.scan(hf, probe=probe), hs.scan(hs.load(hf), probe=probe))
    with pytest.raises(ArgumentError, match="load got a dict"):
        hs.scan({}, probe=probe)


def test_a_scan_says_how_to_repeat_it():
    hf = tiny_causal_lm("llama")
    scan = hs.scan(hf, probe=prompts_of([5, 6, 7]))
    assert scan.model.family == "llama"
    assert (scan.model.n_layers, scan.model.n_heads, scan.model.n_kv_heads) == (2, 4, 2)
    assert (scan.model.support, scan.model.reason) == (hs.load(hf).check.support, hs.load(hf).check.reason)
    assert (scan.provenance.dtype, scan.provenance.device, scan.provenance.kernels) == ("float32", "cpu", ("flash",))
    assert set(scan.provenance.versions) >= {"headscope", "torch", "transformers", "python"}
    assert scan.provenance.versions["torch"] == torch.__version__
    assert scan.provenance.command
    assert scan.probe == {"kind": "tokens", "n_prompts": 1}


def test_the_default_probe_is_the_one_the_design_spells_out():
    hf = tiny_causal_lm("llama")
    hf.config.max_position_embeddings = 160
    model = hs.load(hf)
    spelled_out = hs.repeated_tokens(model, n_prompts=32, period=50, seed=3, token_ids=None)
    same_scores(hs.scan(model, seed=3), hs.scan(model, probe=spelled_out))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    model = hs.load(tiny_causal_lm("llama"))
    scans = [hs.scan(model, probe=hs.repeated_tokens(model, n_prompts=4, period=8, seed=seed)) for seed in (5, 5, 6)]
    assert scans[0].scores == scans[1].scores
    assert all(a.mean != b.mean for a, b in zip(scans[0].scores, scans[2].scores, strict=True))
    assert [scan.provenance.seed for scan in scans] == [5, 5, 6]
    assert hs.scan(model, probe=prompts_of([5, 6])).provenance.seed is None


def test_the_model_is_left_as_it_was():
    hf = tiny_causal_lm("llama")
    model = hs.load(hf)
    hf.train()
    hf.model.layers[0].eval()
    tokens = torch.tensor([[5, 6, 7, 5, 6]])
    state = {name: value.clone() for name, value in hf.state_dict().items()}
    modes = {name: module.training for name, module in hf.named_modules()}
    hs.scan(model, probe=hs.repeated_tokens(model, n_prompts=2, period=8))
    assert {name: module.training for name, module in hf.named_modules()} == modes
    assert hf.config._attn_implementation == "eager"
    assert all(torch.equal(value, state[name]) for name, value in hf.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in hf.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in hf.modules())
    assert hf(tokens).logits.requires_grad


def test_scores_that_are_no_numbers_are_refused():
    hf = tiny_causal_lm("llama")
    model = hs.load(hf)
    hf.model.layers[1].self_attn.q_proj.weight.data[0, 1] = float("nan")  # too few numbers to be checked again
    with pytest.raises(NonFiniteError, match="the scores of .* hold NaN or infinity"):
        hs.scan(model, probe=prompts_of([5, 6, 5, 6]))


def test_a_control_whose_scores_are_no_numbers_is_refused_too():
    hf = tiny_causal_lm("gpt2")
    model = hs.load(hf)
    hf.transformer.wte.weight.data[77, 1] = float("inf")  # a token that only the control holds
    rows = tuple(np.asarray([row]) for row in ([5, 6, 5, 6], [5, 6, 77, 8]))
    with pytest.raises(NonFiniteError, match="the scores of .* hold NaN or infinity"):
        hs.scan(model, probe=Probe(prompts=tuple(rows[0]), controls=tuple(rows[1]), settings={}))


def test_an_unknown_kernel_is_refused(monkeypatch):
    # Without the type checks of these tests, which refuse it first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ArgumentError, match="kernel='fast' is not known; use one of flash, tiled, reference, or None."):
        hs.scan(tiny_causal_lm("gpt2"), probe=prompts_of([5, 6]), kernel="fast")


def test_what_does_not_fit_is_refused_before_the_model_runs(monkeypatch):
    hf = tiny_causal_lm("gpt2")
    model = hs.load(hf)
    asked = limited(monkeypatch, hf, 100)
    with pytest.raises(TokenError, match="a prompt has 129 tokens, but .* reads at most 128"):
        hs.scan(model, probe=prompts_of([5] * 129))
    with pytest.raises(TokenError, match="token id 128 is outside the vocabulary"):
        hs.scan(model, probe=prompts_of([5, 128]))
    with pytest.raises(ArgumentError, match="no detector 'nothing'"):
        hs.scan(model, detectors=["nothing"])
    ahead = hs.Detector("ahead", lambda tokens: hs.Targets(query=np.array([0]), key=np.array([1])))
    with pytest.raises(ShapeError, match="a target is outside the prompt"):
        hs.scan(model, probe=prompts_of([5, 6]), detectors=[ahead])
    with pytest.raises(ShapeError, match="give prompts of 149 tokens, but .* reads at most 128"):
        hs.scan(model, probe=hs.repeated_tokens(model, period=50))
    assert asked == []
