"""Models inside something else: the same heads and scores as the model itself, and the wrapper left as it was."""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import headscope as hs
from benchmarks import written
from benchmarks.tiny import tiny_causal_lm
from benchmarks.written import Written
from headscope.errors import ArgumentError, UnsupportedModel
from headscope.model.load import load
from headscope.model.sources.module import logits_in
from headscope.probes.probe import probe_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft


def scores(model, probe):
    return [score.mean for score in hs.scan(model, probe=probe).scores]


@pytest.fixture(scope="module")
def llama():
    hf = tiny_causal_lm("llama")
    probe = hs.repeated_tokens(hf, n_prompts=2, period=6)
    return hf, probe, scores(hf, probe)


class ValueHead(nn.Module):
    def __init__(self, hf):
        super().__init__()
        self.pretrained_model, self.v_head = hf, nn.Linear(64, 1)

    def forward(self, input_ids):
        given = self.pretrained_model(input_ids=input_ids, output_hidden_states=True)
        return given.logits, None, self.v_head(given.hidden_states[-1])


class LightningModule(nn.Module):
    """A holder of that name, whose forward pass is its owner's business."""

    def __init__(self, model):
        super().__init__()
        self.model = model


class Doubled(nn.Module):
    """No wrapper: its logits, and so the losses of its heads, are not those of the model that it holds."""

    def __init__(self, hf):
        super().__init__()
        self.inner = hf

    def forward(self, ids):
        return 2 * self.inner(input_ids=ids).logits


def whole_compiled(hf):
    hf = copy.deepcopy(hf)
    hf.compile(backend="eager")
    return hf


def forward_compiled(hf):
    hf = copy.deepcopy(hf)
    hf.forward = torch.compile(hf.forward, backend="eager")
    return hf


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "torch.compile": lambda hf: torch.compile(hf, backend="eager"),
    "model.compile": whole_compiled,
    "a compiled forward": forward_compiled,
    "a value head": ValueHead,
    "Lightning": LightningModule,
    "compiled in DataParallel": lambda hf: nn.DataParallel(torch.compile(hf, backend="eager")),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_give_the_scores_of_the_model_inside(name, llama):
    hf, probe, wanted = llama
    assert scores(WRAPPERS[name](hf), probe) == pytest.approx(wanted, abs=1e-6)


def test_a_holder_that_changes_the_logits_is_measured_itself(llama):
    hf, probe, wanted = llama
    model = load(Doubled(hf))
    assert model.family == "Doubled"
    assert scores(model, probe) == pytest.approx(wanted, abs=1e-5)  # where heads attend is the same
    ids = torch.arange(14).reshape(2, 7)
    given = model.backbone.logits(model.run(ids, lambda attention: None))
    torch.testing.assert_close(given, 2 * hf(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


def test_a_plain_module_in_a_lightning_holder_is_found():
    model = Written().eval()
    assert load(LightningModule(model)).module is model


def test_an_unmerged_adapter_is_as_good_as_merged(llama):
    hf, probe, wanted = llama
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(copy.deepcopy(hf), config).eval()
        merged = copy.deepcopy(adapted).merge_and_unload()
    given = scores(adapted, probe)
    assert given == pytest.approx(scores(merged, probe), abs=1e-5)
    assert given != pytest.approx(wanted, abs=1e-2), "the adapter changes nothing, so nothing is shown"
    k = [hs.composition(one).scores["k"] for one in (adapted, merged)]
    torch.testing.assert_close(torch.tensor(k[0]), torch.tensor(k[1]), atol=1e-5, rtol=0, equal_nan=True)


def test_a_module_that_does_not_run_on_ids_alone_is_told_the_call_to_write():
    class Needs(Written):
        def forward(self, ids, temperature):
            return super().forward(ids) / temperature

    made = Needs().eval()
    with pytest.raises(UnsupportedModel, match=r"fails on token ids alone .*; write load\(model, forward=lambda ids"):
        load(made)
    assert load(made, forward=lambda ids: made(ids, 2.0)).check.support == "exact"


def test_a_module_without_logits_for_every_token_is_told_so():
    class Classifies(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(20, 8)

        def forward(self, ids):
            return self.embedding(ids).mean(1)

    with pytest.raises(UnsupportedModel, match="Classifies gives no logits for every token of its input"):
        hs.load(Classifies().eval())


def test_logits_are_found_in_what_a_module_gives():
    ids, logits = torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5, 7)
    loss = torch.tensor(0.5)
    for given in (
        logits, (loss, logits), [None, (loss, logits)], {"loss": loss, "logits": logits},
        SimpleNamespace(logits=logits), SimpleNamespace(logits=(logits,)),
    ):  # fmt: skip
        assert logits_in(given, ids) is logits
    for given in (loss, logits[0], logits[:, :4], logits.long(), {"loss": loss}, (loss,), None, "logits"):
        assert logits_in(given, ids) is None


def test_forward_does_not_apply_to_a_name():
    with pytest.raises(ArgumentError, match="forward applies to a model object"):
        load("demo", forward=lambda ids: ids)


def test_context_16_and_vocabulary_10_need_no_option(monkeypatch):
    monkeypatch.setattr(written, "VOCABULARY", 10)
    monkeypatch.setattr(written, "CONTEXT", 16)
    model = load(Written().eval())
    # spread 1, runs of up to 5: 2 * 5 ids of 10; 1 + 2 * 5 + 1 = 12 tokens of 16. Runs of up to 6 need 12 ids.
    probe = hs.repeated_tokens(model)
    assert [probe.settings[name] for name in ("period", "usual_period", "length")] == [4, 50, 12]
    assert hs.scan(model).probe["usual_period"] == 50
    assert hs.verify(model).probe["period"] == 4
    assert hs.trace_circuit(model, ["L1H0"]).probe["period"] == 4


def test_a_probe_may_be_ids_a_mask_with_them_or_text():
    demo = load("demo")
    ids = [[5, 6, 7, 5, 6], [8, 9, 8, 9, 0]]
    for given in (ids, torch.tensor(ids), {"input_ids": ids}):
        assert [list(row) for row in probe_of(demo, given).prompts] == ids
    padded = probe_of(demo, {"input_ids": ids, "attention_mask": [[1] * 5, [1, 1, 1, 1, 0]]})
    assert [len(row) for row in padded.prompts] == [5, 4]
    assert probe_of(demo, "def f(x):").settings["kind"] == "text"
    assert hs.scan(demo, probe="def f(x): return f(x)").probe["n_prompts"] == 1
