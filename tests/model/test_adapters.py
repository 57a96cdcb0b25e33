"""Models in TransformerLens's and nnsight's wrappers: the same model, the same heads, the same scores."""

from __future__ import annotations

import copy
import gc
import sys
import types
import weakref

import nnsight
import numpy as np
import pytest
import torch
from nnsight import LanguageModel, NNsight
from pytest import approx
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

import headscope as hs
from benchmarks.tiny import bridged
from headscope.errors import ArgumentError, UnsupportedModel
from headscope.heads import HeadId
from headscope.model import adapters
from headscope.model.adapters import without_bridges
from headscope.model.load import Model, load
from headscope.planted.handbuilt import handbuilt
from headscope.training.demo import demo_path

TOLERANCE = 1e-5


def randomised(hf):
    """Gains and biases random too, so that folding them shows."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in hf.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return hf.eval()


def random_gpt2():
    return randomised(GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=4, n_embd=64, n_positions=160, vocab_size=300)))


def grouped_queries():
    config = Qwen2Config(
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=64,
        intermediate_size=96,
        vocab_size=300,
    )
    return randomised(Qwen2ForCausalLM(config))


@pytest.fixture(scope="module")
def demo():
    return load("demo")


@pytest.fixture(scope="module")
def models(demo):
    """Each a transformers model and its tokenizer; tests copy the model before they wrap it."""
    return {
        "demo": (demo.hf, demo.tokenizer),
        "handbuilt": (handbuilt().model, None),
        "gpt2": (random_gpt2(), None),
        "grouped queries": (grouped_queries(), None),
    }


def means(scan):
    return {(score.head, score.detector): score.mean for score in scan.scores}


def refusal(source):
    with pytest.raises(ArgumentError) as caught:
        load.__wrapped__(source)  # the checked signature is not what users see
    message = str(caught.value)
    assert "\n" not in message
    return message


# TransformerLens


@pytest.mark.parametrize("compatibility", [False, True], ids=["plain", "compatibility mode"])
@pytest.mark.parametrize("name", ["demo", "handbuilt", "gpt2", "grouped queries"])
def test_a_bridge_scores_as_the_model_it_holds(name, compatibility, models):
    hf, tokenizer = models[name]
    wanted = hs.scan(load(hf, tokenizer=tokenizer))
    opened = load(bridged(hf, tokenizer, compatibility=compatibility))
    found = hs.scan(opened)
    assert opened.check.support == "exact"
    assert type(opened.hf) is type(hf)
    assert found.probe == wanted.probe
    assert means(found) == approx(means(wanted), abs=TOLERANCE)


@pytest.mark.parametrize("compatibility", [False, True], ids=["plain", "compatibility mode"])
@pytest.mark.parametrize("name", ["demo", "handbuilt", "gpt2", "grouped queries"])
def test_every_score_is_what_the_bridge_s_own_hooks_give(name, compatibility, models):
    hf, tokenizer = models[name]
    bridge = bridged(hf, tokenizer, compatibility=compatibility)
    scan = hs.scan(bridge)
    probe = hs.repeated_tokens(load(bridge), seed=0)
    sums: dict[tuple[HeadId, str], float] = {}
    for prompt in probe.prompts:
        with torch.no_grad():
            _, cache = bridge.run_with_cache(
                torch.from_numpy(prompt)[None], names_filter=lambda name: name.endswith("hook_pattern")
            )
        for detector in hs.DETECTORS:
            targets = detector.targets(prompt)
            for layer in range(bridge.cfg.n_layers):
                pattern = cache["pattern", layer][0]
                rows = pattern[:, targets.query, targets.key].sum(-1) / len(set(targets.query.tolist()))
                for head, value in enumerate(rows.tolist()):
                    key = HeadId(layer, head), detector.name
                    sums[key] = sums.get(key, 0.0) + value / len(probe.prompts)
    assert means(scan) == approx(sums, abs=TOLERANCE)


@pytest.mark.parametrize("compatibility", [False, True], ids=["plain", "compatibility mode"])
def test_the_bridge_is_left_as_it_was(compatibility, models):
    bridge = bridged(models["gpt2"][0], compatibility=compatibility)
    tokens = torch.arange(3, 20)[None]

    def state():
        with torch.no_grad():
            logits, cache = bridge.run_with_cache(tokens)
        weights = {name: (weight, weight.clone()) for name, weight in bridge.original_model.named_parameters()}
        hooks = [len(module._forward_hooks) for module in bridge.original_model.modules()]
        return logits, cache, weights, hooks, bridge.original_model.config._attn_implementation, bridge.training

    before = state()
    hs.scan(bridge)
    hs.ablate(bridge, "L1H1", probe=hs.repeated_tokens(load(bridge), n_prompts=2, period=10))
    after = state()
    assert torch.equal(before[0], after[0])
    assert all(torch.equal(before[1][name], after[1][name]) for name in before[1])
    assert before[2].keys() == after[2].keys()
    assert all(after[2][name][0] is weight and torch.equal(weight, was) for name, (weight, was) in before[2].items())
    assert before[3:] == after[3:]


def test_weights_are_shared_and_not_copied(models):
    bridge = bridged(models["gpt2"][0])
    theirs = {weight.data_ptr() for weight in bridge.original_model.parameters()}
    assert {weight.data_ptr() for weight in load(bridge).hf.parameters()} <= theirs


def test_modules_are_not_shared_so_that_hooks_of_one_tree_do_not_run_in_the_other(models):
    bridge = bridged(models["demo"][0])
    view = load(bridge).hf
    assert not {id(one) for one in view.modules()} & {id(one) for one in bridge.original_model.modules()}
    assert not [one for one in view.modules() if type(one).__module__.startswith("transformer_lens")]


def test_the_tree_is_copied_once_and_again_when_the_weights_were_folded(models):
    bridge = bridged(models["gpt2"][0])
    first = load(bridge)
    assert load(bridge).hf is first.hf
    before = means(hs.scan(first))
    bridge.enable_compatibility_mode(disable_warnings=True)
    second = load(bridge)
    assert second.hf is not first.hf
    assert means(hs.scan(second)) == approx(before, abs=TOLERANCE)


def test_a_bridge_is_not_kept_alive(models):
    bridge = bridged(models["gpt2"][0])
    load(bridge)
    gone = weakref.ref(bridge)
    del bridge
    gc.collect()
    assert gone() is None


def test_a_copy_that_computes_something_else_is_not_used(models, monkeypatch):
    # In compatibility mode GPT-2's fused projection keeps the old weights; without the joined ones the copy is wrong.
    bridge = bridged(models["gpt2"][0], compatibility=True)
    alone = without_bridges
    monkeypatch.setattr(adapters, "without_bridges", lambda tree, joined: alone(tree))
    opened = load(bridge)
    assert opened.hf is bridge.original_model
    assert (opened.check.support, opened.route.path) == ("exact", "module")
    wanted = hs.scan(load(models["gpt2"][0]))
    assert means(hs.scan(opened)) == approx(means(wanted), abs=TOLERANCE)


def test_the_bridge_s_tokenizer_is_used_and_can_be_replaced(demo):
    assert load(bridged(demo.hf, demo.tokenizer)).tokenizer is not None
    bridge = bridged(demo.hf, None)
    assert load(bridge).tokenizer is None
    assert load(bridge, tokenizer=demo.tokenizer).tokenizer is demo.tokenizer


def test_a_bridge_around_a_native_model_is_a_module_like_any_other():
    bridge = TransformerBridge.boot_native(
        {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_head": 8, "n_ctx": 32, "d_vocab": 20, "act_fn": "gelu"}
    )
    model = load(bridge)
    assert (model.check.support, model.route.path, model.check.heads) == ("exact", "module", {0: 2})
    assert (model.n_embeddings, model.max_tokens) == (20, 32)
    ids = torch.arange(18).reshape(2, 9)
    _, cache = bridge.run_with_cache(ids)
    seen = []
    model.run(ids, lambda attention: seen.append(attention.pattern()))
    torch.testing.assert_close(seen[0], cache["pattern", 0], atol=TOLERANCE, rtol=0)


def older(name, **fields):
    """An object of a class that TransformerLens had before 4.0, as a stand-in."""
    module = types.ModuleType("transformer_lens.HookedTransformer")
    return type(name, (), {"__module__": module.__name__, **fields})()


def test_a_bridge_to_another_process_is_refused():
    assert "RemoteBridge around no model in this process" in refusal(older("RemoteBridge"))


def test_a_bridge_around_an_unsupported_model_says_so():
    from benchmarks.tiny import tiny_causal_lm

    with pytest.raises(UnsupportedModel, match="no softmax attention"):
        load(bridged(tiny_causal_lm("mamba")))


# nnsight


def language_model(*args, **named):
    with pytest.warns(nnsight.NNsightDeprecationWarning, match="LanguageModel is deprecated"):
        return LanguageModel(*args, **named)


def test_one_model_loaded_three_ways(demo):
    hf = copy.deepcopy(demo.hf)
    ways = {
        "transformers": load(hf, tokenizer=demo.tokenizer),
        "transformer_lens": load(bridged(hf, demo.tokenizer)),
        "nnsight": load(language_model(hf, tokenizer=demo.tokenizer)),
    }
    scans = {name: hs.scan(model) for name, model in ways.items()}
    wanted = means(scans["transformers"])
    assert len(wanted) == 2 * 6 * len(hs.DETECTORS)
    assert {scan.provenance.dtype for scan in scans.values()} == {"float32"}
    for scan in scans.values():
        assert means(scan) == approx(wanted, abs=TOLERANCE)
        assert [score.head for score in scan.heads()] == [score.head for score in scans["transformers"].heads()]


@pytest.mark.parametrize("wrap", ["LanguageModel", "TransformersModel", "NNsight"])
def test_every_wrapper_of_nnsight_gives_its_model(wrap, demo):
    hf = copy.deepcopy(demo.hf)
    if wrap == "LanguageModel":
        lens = language_model(hf, tokenizer=demo.tokenizer)
    elif wrap == "TransformersModel":
        lens = nnsight.TransformersModel(hf, tokenizer=demo.tokenizer, task="text-generation")
    else:
        lens = NNsight(hf)
    opened = load(lens)
    assert opened.hf is hf
    assert opened.check.support == "exact"
    assert (opened.tokenizer is None) == (wrap == "NNsight")


def test_the_nnsight_model_still_traces_as_before(demo):
    hf = copy.deepcopy(demo.hf)
    lens = NNsight(hf)
    tokens = torch.arange(3, 20)[None]
    with torch.no_grad(), lens.trace(tokens):
        before = lens.output.logits.save()
    hs.scan(load(lens, tokenizer=demo.tokenizer))
    with torch.no_grad(), lens.trace(tokens):
        after = lens.output.logits.save()
    assert torch.equal(before, after)


def test_a_lazy_nnsight_model_loads_its_weights_first(demo):
    lens = language_model(str(demo_path()), tokenizer=demo.tokenizer)
    assert not lens.dispatched
    assert means(hs.scan(lens)) == approx(means(hs.scan(demo)), abs=TOLERANCE)
    assert lens.dispatched


def test_nnsight_around_something_else_is_refused():
    assert "nnsight's NNsight around a Linear; it needs one around a transformers model" in refusal(
        NNsight(nn.Linear(2, 2))
    )


# Both


def test_options_that_do_not_apply_to_an_object_are_refused(demo):
    with pytest.raises(ArgumentError, match="do not apply to a model object"):
        load(bridged(demo.hf), dtype="float16")


def test_no_library_is_imported_to_recognise_a_model(demo, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformer_lens", None)
    monkeypatch.setitem(sys.modules, "nnsight", None)
    assert isinstance(load(demo.hf), Model)
    assert adapters.library_of(demo.hf) is None


@pytest.mark.parametrize("route", ["to_transformerlens", "to_nnsight"])
@pytest.mark.parametrize("detector", [one.name for one in hs.DETECTORS])
def test_the_code_of_a_scan_gives_the_same_number_elsewhere(route, detector, demo, tmp_path):
    scan = hs.scan("demo", probe=hs.repeated_tokens(demo, n_prompts=3, period=12, seed=5))
    assert run(getattr(scan, route)(detector), tmp_path)["score"] == approx(
        scan.ranked(detector)[0].mean, abs=TOLERANCE
    )


@pytest.mark.parametrize("route", ["to_transformerlens", "to_nnsight"])
def test_the_code_of_a_scan_of_an_object_takes_it_from_a_variable(route, tmp_path):
    hf = random_gpt2()
    scan = hs.scan(hf, probe=hs.repeated_tokens(load(hf), n_prompts=2, period=10))
    code = getattr(scan, route)()
    assert "model = hs.load(model)  # the GPT2LMHeadModel that was scanned" in code
    assert run(code, tmp_path, model=hf)["score"] == approx(scan.ranked()[0].mean, abs=TOLERANCE)


def run(code, folder, **given):
    """As a file, since nnsight reads the source of what it traces."""
    path = folder / "code.py"
    path.write_text(code)
    namespace = {"__name__": "__main__", **given}
    exec(compile(code, str(path), "exec"), namespace)
    return namespace


def test_code_that_could_not_give_the_number_is_refused(demo):
    tokens = torch.randint(3, 100, (2, 12))
    two_back = hs.Detector("two_back", lambda tokens: hs.Targets(query=np.array([2]), key=np.array([0])))
    scan = hs.scan(demo, probe=hs.probe_tokens(tokens), detectors=["previous_token"])
    with pytest.raises(ArgumentError, match="a probe of the kind 'tokens', whose tokens it does not keep"):
        scan.to_transformerlens("previous_token")
    with pytest.raises(ArgumentError, match="no detector 'induction'; it has previous_token"):
        scan.to_transformerlens()
    with pytest.raises(ArgumentError, match="two_back is a detector of your own"):
        hs.scan(demo, detectors=[two_back]).to_transformerlens("two_back")
    from benchmarks.tiny import tiny_causal_lm

    watched = hs.scan(tiny_causal_lm("mpt"), probe=hs.probe_tokens(tokens))
    with pytest.raises(ArgumentError, match=r"is not known that .* \(degraded: its attention runs in code of its own"):
        watched.to_nnsight("previous_token")
