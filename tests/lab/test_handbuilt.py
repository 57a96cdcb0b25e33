"""The hand-built model does what its arithmetic says, and so does every decoy in it.

Attention is read from the model's own eager `output_attentions` and scored here by plain loops.
"""

import math
from collections.abc import Sequence
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from pytest import approx
from torch import Tensor
from transformers import AutoModelForCausalLM

from headscope.errors import ArgumentError
from headscope.heads import HeadId
from headscope.planted.basis import digit_code, position_code
from headscope.planted.handbuilt import COPY_GAIN, DECOYS, HandBuilt, handbuilt
from headscope.training.repeats import Repeats, jittered_repeats

N_TOKENS = 120


@cache
def plain() -> HandBuilt:
    return handbuilt(seed=1)


@cache
def with_every_decoy() -> HandBuilt:
    return handbuilt(decoys=DECOYS, seed=1)


@cache
def repeats(vocab_size: int = 256, n_tokens: int = N_TOKENS) -> Repeats:
    return jittered_repeats(
        n_prompts=6,
        n_tokens=n_tokens,
        vocab_size=vocab_size,
        bos_token_id=0,
        generator=torch.Generator().manual_seed(0),
        period=(3, n_tokens // 3),
        gap=(0, n_tokens // 8),
    )


@cache
def patterns(built: HandBuilt, prompts: Repeats) -> tuple[Tensor, ...]:
    built.model.set_attn_implementation("eager")
    with torch.no_grad():
        return built.model(input_ids=prompts.tokens, output_attentions=True).attentions


def mean_attention(built: HandBuilt, head: HeadId, key_of, prompts: Repeats | None = None) -> float:
    """Mean attention of a head from every query to `key_of(row, query)`, where that is not None."""
    prompts = prompts or repeats()
    pattern = patterns(built, prompts)[head.layer]
    found = []
    for row in range(len(prompts.tokens)):
        for query in range(prompts.tokens.shape[1]):
            key = key_of(row, query)
            if key is not None:
                found.append(pattern[row, head.head, query, key].item())
    assert found
    return sum(found) / len(found)


def previous_token_score(built: HandBuilt, head: HeadId, prompts: Repeats | None = None) -> float:
    return mean_attention(built, head, lambda row, query: query - 1 if query else None, prompts)


def induction_score(built: HandBuilt, head: HeadId, prompts: Repeats | None = None) -> float:
    keys = (prompts or repeats()).induction_key.tolist()
    return mean_attention(built, head, lambda row, query: keys[row][query] if keys[row][query] > 0 else None, prompts)


@contextmanager
def zero_ablated(built: HandBuilt, heads: Sequence[HeadId]):
    """The heads write nothing: their share of what the output projection reads is set to zero."""
    d_head = built.model.config.n_embd // built.model.config.n_head
    handles = []
    for head in heads:

        def silence(module, inputs, head=head):
            z = inputs[0].clone()
            z[..., head.head * d_head : (head.head + 1) * d_head] = 0.0
            return (z,)

        projection = built.model.transformer.h[head.layer].attn.c_proj
        handles.append(projection.register_forward_pre_hook(silence))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def second_copy(built: HandBuilt, ablate: Sequence[HeadId] = (), prompts: Repeats | None = None):
    """Accuracy and mean loss in nats on the tokens that the repetition determines."""
    prompts = prompts or repeats()
    with torch.no_grad(), zero_ablated(built, ablate):
        logits = built.model(input_ids=prompts.tokens).logits
    hits, losses = [], []
    for row, query in prompts.predictable.nonzero().tolist():
        target = prompts.tokens[row, query + 1]
        hits.append((logits[row, query].argmax() == target).item())
        losses.append(-logits[row, query].log_softmax(-1)[target].item())
    return sum(hits) / len(hits), sum(losses) / len(losses)


def only(built: HandBuilt, role: str) -> HeadId:
    (head,) = built.heads(role)
    return head


def ov_in_tokens(built: HandBuilt, head: HeadId) -> Tensor:
    """`W_E W_V W_O W_U` [token token]: what each attended token does to each logit."""
    model = built.model
    d_model = model.config.n_embd
    d_head = d_model // model.config.n_head
    where = slice(head.head * d_head, (head.head + 1) * d_head)
    block = model.transformer.h[head.layer]
    w_v = block.attn.c_attn.weight[:, 2 * d_model :][:, where]
    w_o = block.attn.c_proj.weight[where]
    return (model.transformer.wte.weight @ w_v @ w_o @ model.lm_head.weight.T).detach()


# The circuit


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_digits": 1, "vocab_size": 37, "n_positions": 56},
        {"n_digits": 3, "vocab_size": 200, "n_positions": 130},
        {"n_layers": 4, "seed": 5},
        {"decoys": DECOYS},
        {"decoys": DECOYS, "copying": "redundant", "n_layers": 3},
        {"decoys": DECOYS, "copying": "halves", "seed": 2},
    ],
    ids=str,
)
def test_the_circuit_solves_jittered_repeats(options: dict):
    built = handbuilt(**options)
    config = built.model.config
    prompts = repeats(config.vocab_size, min(N_TOKENS, config.vocab_size, config.n_positions))
    accuracy, loss = second_copy(built, prompts=prompts)
    assert accuracy == 1.0
    # Everything planted, a token's logit is at least (12 - 3) * digits and no other's more than a digit
    # less, plus 3 * digits from the positional decoy.
    assert loss < 0.02
    assert previous_token_score(built, only(built, "previous_token"), prompts) > 0.999
    for role in ("induction", "redundant_induction", "half_copier"):
        for head in built.heads(role):
            assert induction_score(built, head, prompts) > 0.999


def test_the_induction_score_is_the_one_that_the_gains_give():
    # Logits of a query with a match, two digits, gain 20: match 40, start token 30, keys that share one
    # digit 20: 1 / (1 + e^-10 + n e^-20) = 0.99995 for any n < 120.
    score = induction_score(plain(), only(plain(), "induction"))
    assert score == approx(1 / (1 + math.exp(-10)), abs=1e-6)


def test_a_query_without_a_match_rests_on_the_start_token():
    prompts = repeats()
    head = only(plain(), "induction")
    tokens = prompts.tokens.tolist()

    def start_if_new(row: int, query: int) -> int | None:
        return None if tokens[row][query] in tokens[row][:query] else 0

    # Rest 30 against at most 120 keys that share one digit, 20: 1 / (1 + 120 e^-10) = 0.9946.
    assert mean_attention(plain(), head, start_if_new) > 0.9946


def test_without_the_previous_token_head_nothing_is_copied():
    # No key holds anything, so every query rests on the start token, which writes nothing: all logits are
    # equal up to rounding, the loss is ln 256 = 5.545 and the first token (the start token) ranks first.
    accuracy, loss = second_copy(plain(), [only(plain(), "previous_token")])
    assert accuracy < 0.02
    assert loss == approx(math.log(256), abs=1e-3)


def test_without_the_induction_head_nothing_is_copied():
    accuracy, loss = second_copy(plain(), [only(plain(), "induction")])
    assert accuracy < 0.02
    assert loss == approx(math.log(256), abs=1e-3)


def test_the_other_heads_of_the_plain_model_do_nothing():
    built = plain()
    assert second_copy(built, built.heads("none")) == approx(second_copy(built), abs=1e-5)


def test_the_direct_path_from_embedding_to_logits_is_zero():
    model = plain().model
    assert (model.transformer.wte.weight @ model.lm_head.weight.T).abs().max() < 1e-5


def test_the_induction_head_copies_every_token_and_only_its_code():
    # OV in token space is COPY_GAIN * (digits shared): 24 on the diagonal but for the start token.
    code = digit_code(255, 2).float()
    expected = torch.zeros(256, 256)
    expected[1:, 1:] = COPY_GAIN * code @ code.T
    assert ov_in_tokens(plain(), only(plain(), "induction")) == approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # CS = |AB| / (|A| |B|) for two multiples of one rank-r projection: sqrt(r) / (sqrt(r) sqrt(r)).
        # 255 tokens in two digits of base 16: r = 32. 36 tokens in one digit: r = 36.
        ({"seed": 1}, 1 / math.sqrt(32)),
        ({"seed": 1, "n_digits": 1, "vocab_size": 37, "n_positions": 56}, 1 / 6),
    ],
)
def test_the_sender_composes_with_the_key_and_not_with_query_or_value(options: dict, expected: float):
    built = handbuilt(**options)
    model = built.model
    d_model = model.config.n_embd
    d_head = d_model // model.config.n_head

    def weights(head: HeadId):
        where = slice(head.head * d_head, (head.head + 1) * d_head)
        attention = model.transformer.h[head.layer].attn
        q, k, v = (part[:, where] for part in attention.c_attn.weight.split(d_model, dim=1))
        return q, k, v, attention.c_proj.weight[where]

    def composition(a: Tensor, b: Tensor) -> float:
        return ((a @ b).norm() / (a.norm() * b.norm())).item()

    *_, sender_v, sender_o = weights(only(built, "previous_token"))
    q, k, v, o = weights(only(built, "induction"))
    sender = sender_v @ sender_o
    start = model.transformer.wte.weight[0]
    without_start = torch.eye(d_model) - torch.outer(start, start) / start.norm() ** 2
    assert composition(sender, without_start @ k @ q.T) == approx(expected, rel=1e-4)
    assert composition(sender, q @ k.T) < 1e-5
    assert composition(sender, v @ o) < 1e-5


def test_layer_norm_does_nothing_but_subtract_a_mean_of_zero():
    built = with_every_decoy()
    inputs, outputs = [], []

    def record(module, given, result):
        inputs.append(given[0])
        outputs.append(result)

    handles = [
        module.register_forward_hook(record)
        for name, module in built.model.named_modules()
        if name.rsplit(".", 1)[-1] in ("ln_1", "ln_2", "ln_f")
    ]
    with torch.no_grad():
        built.model(input_ids=repeats().tokens)
    for handle in handles:
        handle.remove()
    assert len(inputs) == 5
    for given, result in zip(inputs, outputs, strict=True):
        # Float32 keeps 2^-24 of the largest entry.
        assert (given - result).abs().max() < 4e-6 * given.abs().max()


def test_float32_agrees_with_float64():
    built = handbuilt(decoys=DECOYS, seed=1)
    with torch.no_grad():
        single = built.model(input_ids=repeats().tokens).logits
        double = built.model.double()(input_ids=repeats().tokens).logits
    # Logits reach 24 and attention logits 160; an attention logit off by 160 * 2^-22 = 4e-5 moves a
    # probability by as much.
    assert (single - double).abs().max() < 2e-3


# The decoys


def test_the_positional_decoy_looks_a_fixed_distance_back():
    built = handbuilt(decoys=["positional"], offset=11, seed=3)
    head = only(built, "positional")
    assert mean_attention(built, head, lambda row, query: query - 11 if query >= 11 else None) > 0.999
    assert mean_attention(built, head, lambda row, query: 0 if query < 11 else None) > 0.999
    assert induction_score(built, head) < 0.2


def test_the_positional_decoy_passes_for_induction_at_a_fixed_period():
    # [BOS, r, r] of period 12: the key after the earlier copy lies 11 back, always.
    built = handbuilt(decoys=["positional"], offset=11, seed=3)
    fixed = jittered_repeats(
        n_prompts=2,
        n_tokens=25,
        vocab_size=256,
        bos_token_id=0,
        generator=torch.Generator().manual_seed(0),
        period=(12, 12),
        gap=(0, 0),
    )
    assert induction_score(built, only(built, "positional"), fixed) > 0.999


def test_the_duplicate_token_decoy_looks_at_the_earlier_copy_itself():
    built = handbuilt(decoys=["duplicate_token"], seed=3)
    head = only(built, "duplicate_token")
    tokens = repeats().tokens.tolist()

    def earlier_copy(row: int, query: int) -> int | None:
        return tokens[row].index(tokens[row][query]) if tokens[row][query] in tokens[row][:query] else None

    assert mean_attention(built, head, earlier_copy) > 0.99
    assert induction_score(built, head) < 0.01
    assert second_copy(built, [head]) == approx(second_copy(built), abs=1e-5)


def test_the_attends_only_decoy_has_the_pattern_and_writes_nothing():
    built = handbuilt(decoys=["attends_only"], seed=3)
    head = only(built, "attends_only")
    assert induction_score(built, head) > 0.999
    assert not ov_in_tokens(built, head).any()
    assert second_copy(built, [head]) == second_copy(built)


def test_the_anti_induction_decoy_has_the_pattern_and_lowers_the_copied_token():
    built = handbuilt(decoys=["anti_induction"], seed=3)
    head = only(built, "anti_induction")
    assert induction_score(built, head) > 0.999
    # It writes -3 of a code with two digits: -6 on the diagonal.
    assert ov_in_tokens(built, head).diagonal()[1:] == approx(torch.full((255,), -6.0), abs=1e-3)
    accuracy, loss = second_copy(built)
    accuracy_without, loss_without = second_copy(built, [head])
    assert accuracy == accuracy_without == 1.0
    assert loss_without < loss


def test_the_noise_decoy_writes_much_that_matters_to_nobody():
    built = handbuilt(decoys=["noise"], seed=3)
    head, induction = only(built, "noise"), only(built, "induction")
    d_model = built.model.config.n_embd
    d_head = d_model // built.model.config.n_head

    def ov_norm(of: HeadId) -> float:
        where = slice(of.head * d_head, (of.head + 1) * d_head)
        attention = built.model.transformer.h[of.layer].attn
        return (attention.c_attn.weight[:, 2 * d_model :][:, where] @ attention.c_proj.weight[where]).norm().item()

    assert ov_norm(head) == approx(10 * ov_norm(induction), rel=1e-4)
    assert induction_score(built, head) < 0.1
    assert second_copy(built, [head]) == approx(second_copy(built), abs=1e-5)


def test_the_wrong_position_sender_writes_as_the_sender_does_but_from_two_back():
    built = handbuilt(decoys=["wrong_position_sender"], seed=3)
    decoy, sender = only(built, "wrong_position_sender"), only(built, "previous_token")
    assert previous_token_score(built, decoy) < 0.01
    assert mean_attention(built, decoy, lambda row, query: query - 2 if query >= 2 else None) > 0.999
    # It matters little without, and cannot stand in for the sender.
    assert second_copy(built, [decoy])[0] == 1.0
    assert second_copy(built, [sender])[0] < 0.02


def test_the_wrong_position_sender_composes_exactly_as_the_sender_does():
    built = handbuilt(decoys=["wrong_position_sender"], seed=3)
    d_model = built.model.config.n_embd
    d_head = d_model // built.model.config.n_head

    def ov(head: HeadId) -> Tensor:
        where = slice(head.head * d_head, (head.head + 1) * d_head)
        attention = built.model.transformer.h[head.layer].attn
        return attention.c_attn.weight[:, 2 * d_model :][:, where] @ attention.c_proj.weight[where]

    decoy, sender = ov(only(built, "wrong_position_sender")), ov(only(built, "previous_token"))
    cosine = torch.nn.functional.cosine_similarity(decoy.flatten(), sender.flatten(), dim=0)
    assert cosine.item() == approx(1.0, abs=1e-5)


def test_two_redundant_heads_hide_each_other():
    built = handbuilt(copying="redundant", seed=3)
    heads = built.heads("redundant_induction")
    assert len(heads) == 2
    for head in heads:
        accuracy, loss = second_copy(built, [head])
        assert accuracy == 1.0
        # 30 tokens share a digit with the right one and lie 12 below it: 30 e^-12 = 2e-4.
        assert loss < 4e-4
    accuracy, loss = second_copy(built, heads)
    assert accuracy < 0.02
    assert loss == approx(math.log(256), abs=1e-3)


def test_two_half_copiers_copy_only_together():
    built = handbuilt(copying="halves", seed=3)
    heads = built.heads("half_copier")
    assert len(heads) == 2

    def top_one(ov: Tensor) -> float:
        return (ov[1:, 1:].argmax(dim=1) == torch.arange(255)).float().mean().item()

    first, second = (ov_in_tokens(built, head) for head in heads)
    assert top_one(first + second) == 1.0
    assert second_copy(built)[0] == 1.0
    for head, ov in zip(heads, (first, second), strict=True):
        assert top_one(ov) < 0.35
        accuracy, loss = second_copy(built, [head])
        assert accuracy < 0.35
        assert loss > 3


# The disguise


def test_roles_name_every_head_once():
    built = with_every_decoy()
    config = built.model.config
    assert set(built.roles) == {HeadId(layer, head) for layer in range(config.n_layer) for head in range(config.n_head)}
    for role in ("previous_token", "induction", *DECOYS):
        assert len(built.heads(role)) == 1
    assert built.heads("half_copier") == []


def test_place_and_width_depend_on_the_seed():
    models = [handbuilt(vocab_size=32, n_positions=16, n_layers=4, seed=seed) for seed in range(12)]
    assert len({only(built, "induction") for built in models}) > 4
    assert len({only(built, "previous_token") for built in models}) > 4
    assert len({built.model.config.n_embd for built in models}) > 1
    for built in models:
        assert only(built, "previous_token").layer < only(built, "induction").layer


def test_the_same_seed_gives_the_same_model_and_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = handbuilt(seed=4)
    assert torch.equal(torch.rand(1), expected)
    second = handbuilt(seed=4)
    assert first.roles == second.roles
    for mine, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_no_weight_shows_the_one_hots():
    # In the unrotated basis almost every entry of the embedding is zero; in the rotated one, none is.
    assert (plain().model.transformer.wte.weight == 0).float().mean() < 0.01


def test_saving_and_loading_gives_the_same_logits(tmp_path):
    built = with_every_decoy()
    built.model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    built.model.set_attn_implementation("eager")
    tokens = repeats().tokens[:2]
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=tokens).logits, built.model(input_ids=tokens).logits)


# The code


def test_codes_count_shared_digits():
    # Base 4: 11 = 23 and 9 = 21 share the upper digit, 11 and 7 = 13 the lower one, 11 and 4 = 10 none.
    code = digit_code(16, 2)
    assert [int(code[11] @ code[other]) for other in (11, 9, 7, 4)] == [2, 1, 1, 0]
    assert torch.equal(digit_code(5, 1), torch.eye(5, dtype=torch.float64))


@pytest.mark.parametrize("n_values", [1, 2, 16, 17, 255])
def test_no_two_values_share_all_digits(n_values: int):
    code = digit_code(n_values, 2)
    overlap = code @ code.T
    overlap.fill_diagonal_(0)
    assert overlap.max() < 2


def test_the_code_of_an_earlier_position():
    code, shifted = position_code(10, 2), position_code(10, 2, back=3)
    assert not shifted[:3].any()
    assert torch.equal(shifted[3:], code[:7])
    # Full match 2 on the diagonal, and position 0 shares nothing with the rest.
    assert (code @ code.T).diagonal() == approx(torch.full((10,), 2.0, dtype=torch.float64))
    assert not (code[1:] @ code[0]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_layers": 1}, "n_layers=1 must be at least 2"),
        ({"vocab_size": 1}, "vocab_size=1 must be at least 2"),
        ({"n_positions": 2}, "n_positions=2 must be at least 3"),
        ({"n_digits": 0}, "n_digits=0 must be at least 1"),
        ({"decoys": ["noise", "noise"]}, "decoys must be named once each"),
        ({"decoys": ["positional"], "offset": 256}, r"offset=256 must lie in 1 \.\. 255"),
    ],
)
def test_impossible_requests_are_refused(options: dict, message: str):
    with pytest.raises(ArgumentError, match=message):
        handbuilt(**options)
