"""Training: only attention learns, batches count what they should, the same seed gives the same weights."""

import math

import pytest
import torch
from pytest import approx

from headscope.errors import ArgumentError, NonFiniteError
from headscope.training.loop import (
    Batch,
    Recipe,
    Training,
    _rate_factor,
    attention_only_gpt2,
    attention_only_llama,
    either,
    next_token_loss,
    repeats_source,
    text_source,
    train,
)
from headscope.training.measure import repeat_scores
from headscope.training.repeats import jittered_repeats

SHORT = Recipe(n_steps=4, learning_rate=1e-3, warmup_steps=2, log_every=2)


def tiny(**changes):
    arguments = {"vocab_size": 32, "bos_token_id": 0, "n_heads": 2, "d_model": 16, "n_positions": 64}
    return attention_only_llama(**arguments | changes)


def tiny_source():
    return repeats_source(vocab_size=32, bos_token_id=0, n_prompts=4, n_tokens=20, period=(3, 6), gap=(0, 2))


def test_the_mlps_add_exactly_zero_and_stay_so():
    model = tiny()
    for _ in train(model, {"repeats": tiny_source()}, SHORT):
        pass
    residual = torch.randn(1, 5, 16)
    for block in model.model.layers:
        assert not block.mlp(residual).any()


def test_training_moves_every_other_weight():
    model, before = tiny(), dict(tiny().named_parameters())
    for _ in train(model, {"repeats": tiny_source()}, SHORT):
        pass
    for name, after in model.named_parameters():
        assert torch.equal(after, before[name]) == (".mlp." in name), name


def test_the_same_seed_gives_the_same_weights_whatever_the_global_state():
    torch.manual_seed(1)
    first = tiny(seed=3)
    torch.manual_seed(2)
    second, other = tiny(seed=3), tiny(seed=4)
    for model in (first, second):
        for _ in train(model, {"repeats": tiny_source()}, SHORT):
            pass
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_building_a_model_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    tiny()
    assert torch.equal(torch.rand(1), expected)


def test_progress_comes_every_log_every_steps_and_after_the_last():
    recipe = Recipe(n_steps=5, learning_rate=1e-3, log_every=2)
    reports = list(train(tiny(), {"repeats": tiny_source()}, recipe))
    assert [report.step for report in reports] == [2, 4, 5]
    assert all(set(report.loss_nats) == {"repeats"} for report in reports)
    assert reports[0].wall_s < reports[-1].wall_s
    # An untrained model knows nothing: ln(32) = 3.47.
    assert reports[0].loss_nats["repeats"] == approx(math.log(32), abs=0.1)


def test_the_learning_rate_rises_and_falls_linearly():
    # Up over 4 steps: 1/4, 2/4, 3/4, 1. Down over the last 2: 2/2, 1/2.
    recipe = Recipe(n_steps=10, learning_rate=1.0, warmup_steps=4, decay_steps=2)
    factors = [_rate_factor(step, recipe) for step in range(1, 11)]
    assert factors == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 0.5]


def test_a_repeats_batch_counts_the_predictable_tokens_alone():
    batch = tiny_source()(torch.Generator().manual_seed(0))
    for tokens, counted in zip(batch.tokens.tolist(), batch.counted.tolist(), strict=True):
        for query in range(20):
            if counted[query]:
                assert tokens[query] in tokens[:query]
                assert tokens[query + 1] in tokens[:query]
    assert 0.2 < batch.counted.float().mean() < 0.8


def test_a_text_batch_is_cut_from_the_text_and_counts_every_next_token():
    stream = torch.arange(1, 31)
    batch = text_source(stream, bos_token_id=0, n_prompts=6, n_tokens=5)(torch.Generator().manual_seed(0))
    assert (batch.tokens[:, 0] == 0).all()
    assert (batch.tokens[:, 2:] - batch.tokens[:, 1:-1] == 1).all()
    assert batch.counted[0].tolist() == [True, True, True, True, False]


def test_the_first_and_the_last_window_of_a_text_can_be_drawn():
    # 4 tokens, windows of BOS + 3: starts 0 and 1 only.
    source = text_source(torch.arange(4), bos_token_id=9, n_prompts=50, n_tokens=4)
    starts = source(torch.Generator().manual_seed(0)).tokens[:, 1]
    assert set(starts.tolist()) == {0, 1}


def test_the_loss_is_the_mean_over_counted_queries():
    model = tiny()
    tokens = torch.tensor([[0, 5, 6, 7], [0, 8, 9, 10]])
    counted = torch.tensor([[True, False, True, False], [False, True, False, False]])
    logits = model(input_ids=tokens).logits
    by_hand = [
        -logits[row, query].log_softmax(-1)[tokens[row, query + 1]].item() for row, query in [(0, 0), (0, 2), (1, 1)]
    ]
    loss = next_token_loss(model, Batch(tokens=tokens, counted=counted))
    assert loss.item() == approx(sum(by_hand) / 3, rel=1e-6)


def test_nearby_heads_start_out_looking_at_what_is_near():
    # Every token the same: what is left of the attention is the biases', turned by the distance.
    tokens = torch.zeros(1, 40, dtype=torch.long)
    for nearby in (True, False):
        model = tiny(n_layers=1, n_heads=8, d_model=128, nearby=nearby)
        model.set_attn_implementation("eager")
        with torch.no_grad():
            for parameter in (model.model.layers[0].self_attn.q_proj, model.model.layers[0].self_attn.k_proj):
                parameter.weight.zero_()
            last = model(input_ids=tokens, output_attentions=True).attentions[0][0, :, -1]
        assert bool((last.argmax(-1) == 39).all()) == nearby


def test_either_draws_from_each_with_equal_chances():
    short, long = (
        repeats_source(vocab_size=32, bos_token_id=0, n_prompts=1, n_tokens=n, period=(3, 4), gap=(0, 1))
        for n in (10, 20)
    )
    draw, generator = either(short, long), torch.Generator().manual_seed(0)
    lengths = [draw(generator).tokens.shape[1] for _ in range(200)]
    # 200 draws of 1/2: a standard error of 7.
    assert lengths.count(10) == approx(100, abs=30)
    assert set(lengths) == {10, 20}


def test_with_learned_positions_the_mlps_add_nothing_either():
    model = attention_only_gpt2(vocab_size=32, bos_token_id=0, n_heads=2, d_model=16, n_positions=64)
    before = {name: value.clone() for name, value in model.named_parameters()}
    for _ in train(model, {"repeats": tiny_source()}, SHORT):
        pass
    for block in model.transformer.h:
        assert not block.mlp(torch.randn(1, 5, 16)).any()
    for name, after in model.named_parameters():
        # The bias of the norm before an MLP that is nothing has no gradient.
        assert torch.equal(after, before[name]) == (".mlp." in name or name.endswith("ln_2.bias")), name


def test_a_training_put_down_after_any_step_ends_in_the_same_weights():
    recipe = Recipe(n_steps=6, learning_rate=1e-2, warmup_steps=2, decay_steps=3)
    whole = tiny()
    for _ in train(whole, {"repeats": tiny_source()}, recipe):
        pass
    for stop in range(1, 6):
        first = Training(tiny(), {"repeats": tiny_source()}, recipe)
        for _ in range(stop):
            first.advance()
        state, model = first.state(), tiny(seed=9)
        model.load_state_dict(first.model.state_dict())
        second = Training(model, {"repeats": tiny_source()}, recipe)
        second.restore(state, step=stop)
        while second.step < 6:
            second.advance()
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in whole.state_dict().items()), stop


def test_a_loss_that_is_no_number_stops_before_the_weights_move():
    model = tiny()
    model.lm_head.weight.data[3] = math.inf
    before = {name: value.clone() for name, value in model.named_parameters()}
    training = Training(model, {"repeats": tiny_source()}, SHORT)
    with pytest.raises(NonFiniteError, match="the repeats loss is nan"):
        training.advance()
    assert training.step == 0
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_bad_requests_are_refused():
    with pytest.raises(ArgumentError, match="d_model=16 does not divide among n_heads=3"):
        attention_only_gpt2(vocab_size=32, bos_token_id=0, n_heads=3, d_model=16)
    with pytest.raises(ArgumentError, match="n_heads=3 gives no even head width"):
        tiny(n_heads=3)
    with pytest.raises(ArgumentError, match="a text of 3 tokens holds no window of n_tokens=5"):
        text_source(torch.arange(3), bos_token_id=0, n_prompts=1, n_tokens=5)
    with pytest.raises(ArgumentError, match="at least one batch source"):
        next(train(tiny(), {}, SHORT))


@pytest.mark.parametrize(("n_layers", "learns"), [(2, True), (1, False)], ids=["two layers", "one layer"])
def test_two_layers_learn_induction_and_one_layer_cannot(n_layers: int, learns: bool):
    shape = {"vocab_size": 48, "bos_token_id": 0, "n_tokens": 40, "period": (6, 18), "gap": (0, 3)}
    model = attention_only_llama(
        vocab_size=48, bos_token_id=0, n_layers=n_layers, n_heads=2, d_model=32, n_positions=40
    )
    recipe = Recipe(n_steps=250, learning_rate=5e-3, log_every=250)
    for _ in train(model, {"repeats": repeats_source(**shape, n_prompts=32)}, recipe):
        pass
    unseen = jittered_repeats(**shape, n_prompts=32, generator=torch.Generator().manual_seed(9))
    scores = repeat_scores(model, unseen)
    if learns:
        assert scores.accuracy > 0.95
        assert scores.loss_nats < 0.3
        assert scores.induction[1].max() > 0.8
        assert scores.previous_token[0].max() > 0.5
    else:
        # Chance is ln 47 = 3.85. What one layer can tell is which tokens have occurred, some 20 to 35 of
        # them: ln 20 = 3.0, right in one case of 20.
        assert scores.loss_nats > 3.0
        assert scores.accuracy < 0.15
        assert scores.induction.max() < 0.2
