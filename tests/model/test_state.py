"""What was proven of a model holds for the module that was checked, and for no other."""

from __future__ import annotations

import copy
import threading
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import headscope as hs
from benchmarks.tiny import tiny_causal_lm
from benchmarks.written import Written
from headscope.errors import HeadscopeError, NonFiniteError
from headscope.model import selfcheck as module
from headscope.model.replay import Replay
from headscope.model.state import once, state_of


@pytest.fixture
def hf():
    return tiny_causal_lm("llama")


@pytest.fixture
def checks(monkeypatch):
    """The modules that were checked, in order."""
    seen, check = [], module.selfcheck
    monkeypatch.setattr(module, "selfcheck", lambda backbone: (seen.append(backbone.module), check(backbone))[1])
    return seen


def test_a_model_that_has_not_changed_is_checked_once(hf, checks):
    model = hs.load(hf)
    assert hs.load(hf).check is model.check
    scores(model)
    hs.ablate(model, ["L0H0"], probe=probe_of(model))
    assert hs.load(model) is model
    assert len(checks) == 1


def probe_of(model):
    return hs.repeated_tokens(model, n_prompts=2, period=6)


def scores(model):
    return hs.scan(model, probe=probe_of(model)).scores


def weights_in_place(hf):
    with torch.no_grad():
        hf.model.layers[1].self_attn.o_proj.weight.mul_(2)


def weights_by_data(hf):
    hf.model.layers[1].self_attn.o_proj.weight.data.mul_(2)


def another_weight(hf):
    hf.model.layers[1].mlp.up_proj.weight = nn.Parameter(hf.model.layers[1].mlp.up_proj.weight.clone())


def another_module(hf):
    hf.model.layers[1] = copy.deepcopy(hf.model.layers[1])


def fewer_layers(hf):
    del hf.model.layers[1:]
    hf.config.num_hidden_layers = 1


def an_adapter(hf):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an older name
        get_peft_model(hf, LoraConfig(target_modules=["k_proj"], r=2))


def a_hook(hf):
    hf.model.layers[0].self_attn.register_forward_hook(lambda module, arguments, output: output)


def another_type(hf):
    hf.double()


CHANGES = [
    weights_in_place,
    weights_by_data,
    another_weight,
    another_module,
    fewer_layers,
    an_adapter,
    a_hook,
    another_type,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda one: one.__name__)
def test_a_model_that_changed_is_checked_again(hf, checks, change):
    model = hs.load(hf)
    change(hf)
    new = hs.load(hf)
    assert len(checks) == 2
    assert new.check is not model.check
    assert hs.load(model).check is new.check  # the Model of before is opened again, and its check is known
    assert len(checks) == 2
    assert scores(model) == scores(hf)


@pytest.mark.parametrize("opened_before", [False, True], ids=["object", "Model"])
def test_weights_that_became_nan_are_told(hf, opened_before):
    model = hs.load(hf)
    probe = probe_of(model)
    hf.model.layers[1].self_attn.q_proj.weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"layers\.1\.self_attn\.q_proj\.weight"):
        hs.scan(model if opened_before else hf, probe=probe)


def test_an_attention_that_is_none_any_more_gives_no_number(hf):
    """Patterns as before, and a layer that does not use them: the check of before would still say `exact`."""

    class Skips(nn.Module):
        def forward(self, hidden_states, **arguments):
            return hidden_states, None

    model = hs.load(hf)
    assert model.check.heads == {0: 4, 1: 4}
    hf.model.layers[1].self_attn = Skips()
    assert hs.load(model).check.heads == {0: 4}
    with pytest.raises(HeadscopeError, match="has no head L1H0"):
        hs.ablate(model, ["L1H0"], probe=probe_of(model))


@pytest.mark.parametrize(
    ("path", "made"),
    [
        ("interface", lambda: tiny_causal_lm("llama")),
        ("hooks", lambda: tiny_causal_lm("mpt")),
        ("module", Written),
    ],
)
def test_what_a_pass_of_ours_puts_on_is_no_change(path, made):
    hf = made()
    model = hs.load(hf)
    assert model.route.path == path
    before, during = state_of(hf), []

    def look(attention):
        during.append(state_of(hf))

    model.run(torch.arange(8)[None], look)
    assert set(during) == {before} == {state_of(hf)}


def test_what_is_kept_on_a_module_is_no_change(hf):
    before = state_of(hf)
    replay = Replay(hs.load(hf), torch.arange(16).reshape(2, 8))
    replay.clean()
    during = []
    replay.logits(lambda attention: during.append(state_of(hf)), start=1, copies=2)
    assert set(during) == {before} == {state_of(hf)}


class Kinds(nn.Module):
    """Weights of kinds that are not read as plain real numbers one after the other."""

    def __init__(self):
        super().__init__()
        self.register_buffer("turns", torch.polar(torch.ones(4, 4), torch.arange(16.0).reshape(4, 4)))
        self.register_buffer("sparse", torch.eye(3).to_sparse())
        self.register_buffer("bits", torch.tensor([True, False]))
        self.register_buffer("eighth", torch.ones(4, 4).to(torch.float8_e4m3fn))
        self.register_buffer("scalar", torch.tensor(3))
        self.register_buffer("empty", torch.empty(0))
        self.across = nn.Parameter(torch.arange(64.0).reshape(8, 8).T)

    def forward(self):
        raise AssertionError("nothing runs")


def test_weights_of_any_kind_have_a_state():
    module = Kinds()
    before = state_of(module)
    assert state_of(module) == before
    for change in (
        lambda: module.turns.data.mul_(1j),  # turned by a quarter: the real parts alone are not all of it
        lambda: module.across.data.add_(1),
        lambda: module.bits.data.logical_not_(),
        lambda: module.scalar.data.add_(1),
    ):
        change()
        assert state_of(module) != before
        before = state_of(module)


def test_a_check_of_other_calls_is_not_taken_for_that_of_the_module(hf, checks):
    hs.load(hf, forward=lambda ids: hf(ids).logits)
    hs.load(hf, max_tokens=3)
    assert hs.load(hf).check is hs.load(hf).check
    assert len(checks) == 3


def test_a_pass_in_another_thread_is_no_change(hf, checks):
    model, inside, go_on = hs.load(hf), threading.Event(), threading.Event()

    def look(attention):
        inside.set()
        assert go_on.wait(60)

    thread = threading.Thread(target=model.run, args=(torch.arange(8)[None], look))
    thread.start()
    assert inside.wait(60)
    assert hs.load(model) is model
    go_on.set()
    thread.join()
    assert len(checks) == 1


def test_what_was_found_out_is_found_out_again_after_a_change(hf):
    calls = []
    count = once(lambda model: calls.append(model) or len(calls))
    assert [count(hs.load(hf)), count(hs.load(hf))] == [1, 1]
    weights_in_place(hf)
    assert count(hs.load(hf)) == 2


def test_a_tracker_looks_at_the_module_that_is_trained_now(hf):
    tracker = hs.Tracker(hf)
    fewer_layers(hf)
    assert {one.head.layer for one in tracker.measure(step=1).heads} == {0}
