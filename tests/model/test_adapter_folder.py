"""Folders of PEFT: the base with the adapter on it, or an error; never the base's numbers under the adapter's name."""

from __future__ import annotations

import copy
import json
import shutil
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

import headscope as hs
from benchmarks.tiny import tiny_causal_lm
from headscope.errors import ArgumentError, ModelError, ModelNotFound, UnsafeWeights, UnsupportedModel
from headscope.model.load import load
from headscope.model.sources import adapter_folder
from tests.model.test_load import hub, refusal  # noqa: F401

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft

IDS = torch.arange(14).reshape(2, 7)
CLOSE = 1e-4
"""Merged and unmerged weights differ by float32 rounding alone; the adapter moves logits by more than 0.1."""


def logits(model):
    with torch.no_grad():
        return model.backbone.run(IDS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A base's folder, an adapter's folder that names it, and the logits of the two merged, by PEFT itself."""
    root = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    base = tiny_causal_lm("llama")
    base.save_pretrained(root / "base")
    config = peft.LoraConfig(
        r=4,
        target_modules=["q_proj", "v_proj", "o_proj"],
        init_lora_weights=False,
        base_model_name_or_path=str(root / "base"),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        adapted = peft.get_peft_model(copy.deepcopy(base), config).eval()
        adapted.peft_config["default"].base_model_name_or_path = str(root / "base")
        adapted.save_pretrained(root / "adapter")
        merged = adapted.merge_and_unload()
    with torch.no_grad():
        wanted, plain = merged(input_ids=IDS).logits, base(input_ids=IDS).logits
    assert float((wanted - plain).abs().max()) > 0.1, "the adapter changes nothing, so nothing is shown"
    return root / "base", root / "adapter", wanted


@pytest.fixture
def adapter(trained, tmp_path):
    """A copy of the adapter's folder that the test may break."""
    return shutil.copytree(trained[1], tmp_path / "adapter")


def edit(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def test_an_adapter_folder_is_its_base_with_the_adapter(trained, adapter):
    model = load(adapter)
    torch.testing.assert_close(logits(model), trained[2], atol=CLOSE, rtol=0)
    assert model.check.support == "exact"
    assert model.id == str(adapter)


def test_a_folder_of_base_and_adapter_is_the_two_together(trained, adapter):
    for path in trained[0].iterdir():
        shutil.copy(path, adapter / path.name)
    edit(adapter, base_model_name_or_path="no/such-base")
    torch.testing.assert_close(logits(load(adapter)), trained[2], atol=CLOSE, rtol=0)


def test_an_adapter_and_its_base_may_be_in_the_hub_s_cache(trained, adapter, hub):  # noqa: F811
    commit = "89abcdef0123456789abcdef0123456789abcdef"
    hub(trained[0], "someone/base")
    edit(adapter, base_model_name_or_path="someone/base")
    model = load(hub(adapter, "someone/adapter", commit=commit))
    torch.testing.assert_close(logits(model), trained[2], atol=CLOSE, rtol=0)
    assert (model.id, model.revision) == ("someone/adapter", commit)


@pytest.mark.parametrize("together", [False, True])
def test_without_peft_there_is_an_error_and_not_the_base(together, trained, adapter, monkeypatch):
    if together:
        for path in trained[0].iterdir():
            shutil.copy(path, adapter / path.name)
    monkeypatch.setattr(adapter_folder, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "peft", None)
    message = refusal(UnsupportedModel, adapter)
    assert "is an adapter, which needs the package peft; install it" in message


def test_pickled_adapters_need_the_flag(trained, adapter):
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    assert "has only pickled weights (adapter_model.bin)" in refusal(UnsafeWeights, adapter)
    torch.testing.assert_close(logits(load(adapter, allow_pickle=True)), trained[2], atol=CLOSE, rtol=0)


def test_an_adapter_that_lacks_weights_is_not_filled_up_at_random(adapter):
    tensors = load_file(adapter / "adapter_model.safetensors")
    del tensors[next(name for name in tensors if "layers.1.self_attn.q_proj.lora_B" in name)]
    save_file(tensors, adapter / "adapter_model.safetensors")
    assert "lacks 1 weights (base_model.model.model.layers.1.self_attn.q_proj.lora_B" in refusal(ModelError, adapter)


def test_an_adapter_of_a_larger_model_is_refused(adapter):
    tensors = load_file(adapter / "adapter_model.safetensors")
    more = {name.replace("layers.1.", "layers.7."): one.clone() for name, one in tensors.items() if "layers.1." in name}
    save_file(tensors | more, adapter / "adapter_model.safetensors")
    assert "its base has no place for them" in refusal(ModelError, adapter)


def test_adapters_that_cannot_be_put_on_are_one_line(adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "weights")
    assert "has no adapter_model.safetensors" in refusal(ModelNotFound, adapter)
    (adapter / "weights").rename(adapter / "adapter_model.safetensors")
    for fields, words in (
        ({"base_model_name_or_path": None}, "does not name its base"),
        ({"base_model_name_or_path": str(adapter)}, "an adapter itself"),
        ({"peft_type": "NO_SUCH_KIND"}, "could not be put on its base"),
        ({"target_modules": ["nothing"]}, "could not be put on its base"),
        ({"r": 10**7}, "describes a model of more than"),
    ):
        before = (adapter / "adapter_config.json").read_text()
        assert words in refusal(ModelError, edit(adapter, **fields)), fields
        (adapter / "adapter_config.json").write_text(before)


def test_an_adapter_reads_files_of_its_folder_alone(adapter, tmp_path):
    outside = tmp_path / "elsewhere.safetensors"
    shutil.move(adapter / "adapter_model.safetensors", outside)
    (adapter / "adapter_model.safetensors").symlink_to(outside)
    assert "leads out of its folder" in refusal(ModelError, adapter)


def test_prompts_of_an_adapter_are_refused():
    hf = tiny_causal_lm("llama")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(hf, config)
    with pytest.raises(ArgumentError, match="puts tokens of its own before the input"):
        load(adapted)


def adapted_by(config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(tiny_causal_lm("llama"), config).eval()


def test_a_lora_that_acts_behind_certain_tokens_alone_is_refused():
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", alora_invocation_tokens=[3, 5])
    adapted = adapted_by(config)
    with pytest.raises(ArgumentError, match=r"acts only behind the tokens \[3, 5\] of its input"):
        load(adapted)


def test_vectors_that_all_layers_share_are_in_the_file_once(trained, tmp_path):
    base, _, _ = trained
    config = peft.VBLoRAConfig(r=4, target_modules=["q_proj", "o_proj"], num_vectors=16, vector_length=16, topk=2)
    adapted = adapted_by(config)
    with torch.no_grad():
        for weight in (one for one in adapted.parameters() if one.requires_grad):
            weight.add_(torch.randn_like(weight))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        wanted, plain = adapted(input_ids=IDS).logits, adapted.get_base_model()(input_ids=IDS).logits
    torch.testing.assert_close(logits(load(tmp_path / "adapter")), wanted, atol=CLOSE, rtol=CLOSE)
    torch.testing.assert_close(plain, wanted)  # the model inside has the adapter's share


def test_composition_is_that_of_the_merged_model(trained, adapter):
    own = load(adapter)
    merged = tiny_causal_lm("llama")
    config = load_file(adapter / "adapter_model.safetensors")
    for name, b in config.items():
        if "lora_B" in name:
            a = config[name.replace("lora_B", "lora_A")]
            place = name.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
            weight = merged.get_submodule(place).weight
            assert isinstance(weight, torch.Tensor)
            weight.data += 8 / 4 * b @ a  # lora_alpha / r
    k = [hs.composition(model).scores["k"] for model in (own, merged)]
    torch.testing.assert_close(torch.tensor(k[0]), torch.tensor(k[1]), atol=1e-5, rtol=0, equal_nan=True)
