"""Opening models: what can be opened, what is refused, and with which single line."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from benchmarks.tiny import tiny_causal_lm
from headscope.errors import (
    ArgumentError,
    HeadscopeError,
    ModelError,
    ModelNotFound,
    NonFiniteError,
    UnsafeWeights,
    UnsupportedModel,
)
from headscope.heads import HeadId
from headscope.model import load as load_module
from headscope.model.bounds import bounded
from headscope.model.load import Model, load, open_model
from headscope.model.sources import pretrained
from headscope.model.sources.transformers import backbone

pytestmark = pytest.mark.filterwarnings(r"ignore:.*weights_only=False.*:FutureWarning")


def saved(model, folder):
    """A folder as save_pretrained writes it."""
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory):
    return saved(tiny_causal_lm("llama"), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def llama():
    return load(tiny_causal_lm("llama"))


@pytest.fixture
def folder(llama_folder, tmp_path):
    """A copy that the test may break."""
    return Path(shutil.copytree(llama_folder, tmp_path / "model"))


def edit_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    config |= fields
    (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    return folder


def refusal(kind, source, **options):
    """The message with which `source` is refused: of exactly this kind, in one line."""
    with pytest.raises(HeadscopeError) as caught:
        load(source, **options)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def logits(model, ids):
    with torch.no_grad():
        return model.hf(input_ids=ids, use_cache=False).logits


# Folders


def test_a_folder_opens_with_what_was_saved_in_it(llama_folder, tokens):
    model = load(llama_folder)
    with torch.no_grad():
        wanted = tiny_causal_lm("llama")(input_ids=tokens, use_cache=False).logits
    torch.testing.assert_close(logits(model, tokens), wanted, atol=1e-5, rtol=0)
    assert isinstance(model, Model)
    assert model.check.support == "exact"
    assert (model.id, model.revision, model.family) == (str(llama_folder), None, "llama")
    assert (model.n_layers, model.n_heads, model.n_kv_heads) == (2, 4, 2)
    assert (model.n_embeddings, model.max_tokens) == (128, 128)
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert not model.hf.training


@pytest.mark.parametrize("family", ["gpt2", "openai-gpt", "bloom"])
def test_a_model_whose_class_is_called_an_lm_head_model_keeps_its_head(family, tmp_path):
    # GPT2LMHeadModel ends in "Model", as GPT2Model does
    model = load(saved(tiny_causal_lm(family), tmp_path))
    assert type(model.hf) is type(tiny_causal_lm(family))
    assert logits(model, torch.tensor([[3, 4, 5]])).shape == (1, 3, 128)


def test_a_checkpoint_without_head_opens_without_one(tmp_path):
    model = load(saved(tiny_causal_lm("gpt2").transformer, tmp_path))
    assert type(model.hf).__name__ == "GPT2Model"
    assert model.check.support == "exact"
    assert model.n_layers == 2


@pytest.mark.parametrize(("family", "start", "special"), [("llama", 1, {1, 2}), ("gpt2", 127, {126, 127})])
def test_a_folder_without_tokenizer_has_none_and_takes_its_start_token_from_the_config(
    family, start, special, tmp_path
):
    # for gpt2, transformers would make up a tokenizer of one special token
    model = load(saved(tiny_causal_lm(family), tmp_path))
    assert model.tokenizer is None
    assert model.bos_token_id == start
    assert model.special_token_ids == special


def word_tokenizer():
    words = {word: index for index, word in enumerate(["<s>", "</s>", "the", "cat", "sat"])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="</s>")), bos_token="<s>", eos_token="</s>"
    )


def test_the_tokenizer_beside_the_weights_is_used(folder):
    word_tokenizer().save_pretrained(folder)
    model = load(folder)
    assert model.tokenizer.convert_tokens_to_ids("cat") == 3
    assert model.bos_token_id == 0
    assert model.special_token_ids == {0, 1}
    given = word_tokenizer()
    assert load(folder, tokenizer=given).tokenizer is given


@pytest.mark.parametrize("text", ["{", '{"bad": 1}', ""])
def test_a_broken_tokenizer_is_refused_since_start_and_special_tokens_come_from_it(text, folder):
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match=r"tokenizer of .* cannot be read .*; fix its files, or remove them"):
        load(folder)
    (folder / "tokenizer.json").unlink()
    assert load(folder).tokenizer is None


@pytest.mark.parametrize(("dtype", "wanted"), [("float64", torch.float64), ("bfloat16", torch.bfloat16)])
def test_dtype_converts(dtype, wanted, llama_folder):
    model = load(str(llama_folder), dtype=dtype)
    assert model.dtype == wanted
    assert model.check.support == "exact"


def test_auto_keeps_the_checkpoint_s_own_dtype(tmp_path):
    assert load(saved(tiny_causal_lm("llama").half(), tmp_path)).dtype == torch.float16


def test_a_context_without_limit_has_none(checked):
    # xlnet writes -1
    model, _ = checked("xlnet")
    assert model.config.max_position_embeddings == -1
    assert backbone(model).max_tokens is None


# Model objects


def test_a_model_object_is_used_as_it_is(checked):
    hf, _ = checked("llama")
    model = load(hf)
    assert model.hf is hf
    assert model.id == "LlamaForCausalLM"
    assert load(model) is model


def test_the_check_runs_once_per_model_object(monkeypatch):
    runs = []
    real = load_module.__dict__.get("selfcheck")
    assert real is None  # imported where it is used
    import headscope.model.selfcheck as module

    monkeypatch.setattr(module, "selfcheck", lambda hf, plain=module.selfcheck: runs.append(hf) or plain(hf))
    first, second = tiny_causal_lm("llama"), tiny_causal_lm("llama")
    assert load(first).check is load(first).check
    load(second)
    assert [seen.module for seen in runs] == [first, second]


def test_options_that_cannot_apply_are_refused(checked, llama_folder):
    hf, _ = checked("llama")
    for options in ({"device": "cpu"}, {"dtype": "float16"}, {"revision": "main"}):
        assert "do not apply to a model object" in refusal(ArgumentError, hf, **options)
        assert "do not apply to a loaded Model" in refusal(ArgumentError, load(hf), **options)
    for options in ({"max_tokens": 8}, {"forward": hf}, {"gguf_file": "a.gguf"}):
        assert "do not apply to a loaded Model" in refusal(ArgumentError, load(hf), **options)


@pytest.mark.parametrize("source", [None, 3, ["gpt2"]], ids=lambda source: type(source).__name__)
def test_anything_else_is_refused_by_type(source):
    # the checked signature would refuse it first
    unchecked = open_model.__wrapped__
    with pytest.raises(ArgumentError, match=f"load got a {type(source).__name__}; it needs a hub id, a folder"):
        unchecked(source)


def test_an_unsupported_object_is_refused_by_load_and_shown_by_open_model():
    hf = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    assert "T5ForConditionalGeneration (t5) cannot be used" in refusal(UnsupportedModel, hf)
    assert open_model(hf).check.support == "unsupported"
    assert "no softmax attention over its tokens" in refusal(UnsupportedModel, tiny_causal_lm("mamba"))


# The hub's cache, offline


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache, and a function that puts a folder into it as `name`, as a download would."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(cache))

    def put(folder, name="someone/tiny-llama", commit="0123456789abcdef0123456789abcdef01234567", ref="main"):
        repository = cache / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / ref).write_text(commit)
        return name

    return put


def test_a_hub_id_opens_from_the_cache_without_network(hub, llama_folder, tokens):
    model = load(hub(llama_folder))
    assert model.id == "someone/tiny-llama"
    assert model.revision == "0123456789abcdef0123456789abcdef01234567"
    torch.testing.assert_close(logits(model, tokens), logits(load(llama_folder), tokens), atol=0, rtol=0)


def test_a_revision_is_another_commit(hub, llama_folder, tmp_path):
    name = hub(llama_folder)
    other = edit_config(shutil.copytree(llama_folder, tmp_path / "other"), bos_token_id=7)
    hub(other, commit="f" * 40, ref="step100")
    assert (load(name).bos_token_id, load(name, revision="step100").bos_token_id) == (1, 7)
    assert load(name, revision="step100").revision == "f" * 40
    assert "no model 'someone/tiny-llama'" in refusal(ModelNotFound, name, revision="step200")


def test_an_unknown_hub_id_is_not_found(hub):
    message = refusal(ModelNotFound, "someone/nothing")
    assert message.startswith("no model 'someone/nothing': it is neither a folder here nor a model that the hub")
    assert "no model 'a b/c d/e'" in refusal(ModelNotFound, "a b/c d/e")


def test_a_hub_model_with_only_pickled_weights_is_refused(hub, folder):
    torch.save(tiny_causal_lm("llama").state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    name = hub(folder)
    assert "'someone/tiny-llama' has only pickled weights" in refusal(UnsafeWeights, name)
    assert load(name, allow_pickle=True).check.support == "exact"


def test_a_hub_model_without_weights_is_not_found(hub, folder):
    (folder / "model.safetensors").unlink()
    assert "has no safetensors weights" in refusal(ModelNotFound, hub(folder))


def test_a_hub_model_of_an_unknown_type_is_not_called_missing(hub, folder):
    message = refusal(ModelError, hub(edit_config(folder, model_type="nosuch")))
    assert "the config of 'someone/tiny-llama' cannot be read" in message
    assert "nosuch" in message


# Folders that are not models


def test_paths_that_are_no_folder_are_not_looked_up_on_the_hub(tmp_path, llama_folder):
    for source in ("/nowhere/at-all", "./nowhere", "../nowhere", "~/nowhere-at-all", llama_folder / "config.json"):
        assert "is not a folder; give a folder with config.json and weights" in refusal(ModelNotFound, source)
    assert "has no config.json" in refusal(ModelNotFound, tmp_path)


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    assert "has no weights; it needs *.safetensors files beside config.json" in refusal(ModelNotFound, folder)


def cut(folder, n_bytes):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:n_bytes])


@pytest.mark.parametrize("n_bytes", [0, 4, 100, 20_000])
def test_truncated_weights(n_bytes, folder):
    cut(folder, n_bytes)
    assert "could not be loaded" in refusal(ModelError, folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"model_type": 5}', '{"model_type": "nosuch"}'])
def test_a_config_that_is_none(text, folder):
    (folder / "config.json").write_text(text)
    assert "the config of" in refusal(ModelError, folder)


@pytest.mark.parametrize("fields", [{"hidden_size": "wide"}, {"num_attention_heads": 0}])
def test_a_config_of_wrong_values(fields, folder):
    assert "cannot be read" in refusal(ModelError, edit_config(folder, **fields))


def test_a_checkpoint_that_lacks_weights_is_not_filled_up_at_random(folder):
    message = refusal(ModelError, edit_config(folder, num_hidden_layers=3))
    assert "lacks 9 of its weights (model.layers.2.input_layernorm.weight, " in message
    assert "they would be random" in message


class Found:
    def __init__(self, head, layer=None):
        self.head, self.layer = head, layer


@pytest.mark.parametrize(
    "given",
    ["L1H2", "1.2", HeadId(1, 2), (1, 2), ["L1H2"], [(1, 2)], {HeadId(1, 2)}, Found(HeadId(1, 2)), [Found(2, layer=1)],
     (one for one in ["L1H2", "1.2"]), [(np.int64(1), np.int64(2)), Found(HeadId(1, 2))]],
    ids=["name", "dotted", "id", "pair", "names", "pairs", "set", "its_head", "layer_and_head", "generator", "mixed"],
)  # fmt: skip
def test_heads_are_named_in_every_form(given, llama):
    assert Model.named.__wrapped__(llama, given) == (HeadId(1, 2),)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "there is no head"),
        (["best"], "'best' is not a head; write layer and head"),
        ([1, 2], "^1 is not a head; give names like 'L5H1', "),
        ([(1, 2, 0)], r"^\(1, 2, 0\) is not a head"),
        ([(True, 1)], r"^\(True, 1\) is not a head"),
        ([Found("L1H2")], "is not a head"),
        ([HeadId(1, 2), None], "^None is not a head"),
        ((0, 4), "has no head L0H4; it has 2 layers of up to 4 heads"),
        ([(0, -1), (-1, 0)], "has no head L0H-1, L-1H0;"),
        (HeadId(0, 0, -1), "has no head L0H0#-1"),
    ],
)
def test_what_is_no_head_of_the_model_is_refused(given, said, llama):
    with pytest.raises(ArgumentError, match=said):
        Model.named.__wrapped__(llama, given)


def test_a_name_that_the_system_refuses_is_no_folder():
    assert "no model 'xxx" in refusal(ModelNotFound, "x" * 300)
    assert "is not a folder" in refusal(ModelNotFound, "/" + "x" * 300)


def test_weights_of_other_shapes_are_named(folder):
    message = refusal(ModelError, edit_config(folder, intermediate_size=80))
    # 2 layers of up, gate and down
    assert "has 6 weights of other shapes than its config says (model.layers.0.mlp.down_proj.weight, " in message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_hidden_layers": 2_000_000}, "says num_hidden_layers=2000000, and no model has more than 10,000 layers"),
        ({"num_hidden_layers": 9_999}, "describes a model of more than"),
        ({"vocab_size": 2**31}, "describes a model of more than"),
        ({"hidden_size": 2**16, "intermediate_size": 2**20}, "describes a model of more than"),
    ],
)  # fmt: skip
def test_a_config_of_a_far_larger_model_is_refused_before_it_is_built(fields, words, folder):
    assert words in refusal(ModelError, edit_config(folder, **fields))


def test_what_another_thread_builds_meanwhile_is_not_counted():
    def build():
        torch.nn.Linear(2_000, 2_000, bias=False, device="meta")  # 4,000,000 numbers, more than 16 x 10 + 2^20

    with bounded("mine", 10):
        other = threading.Thread(target=build)
        other.start()
        other.join()
    with pytest.raises(ModelError, match="more than 4,000,000 numbers in 1 tensors"), bounded("mine", 10):
        build()
    build()


def test_nan_weights_are_named(tmp_path):
    hf = tiny_causal_lm("llama")
    hf.model.norm.weight.data[0] = float("nan")
    assert "in weights model.norm.weight" in refusal(NonFiniteError, saved(hf, tmp_path))


def test_an_encoder_decoder_is_unsupported(tmp_path):
    hf = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    message = refusal(UnsupportedModel, saved(hf, tmp_path))
    assert "is a t5 model, which is not a decoder-only language model" in message


def test_an_encoder_is_unsupported(tmp_path):
    config = json.loads((saved(tiny_causal_lm("bert"), tmp_path) / "config.json").read_text())
    assert config["is_decoder"]
    assert "attend to later tokens" in refusal(UnsupportedModel, edit_config(tmp_path, is_decoder=False))


# Safety


class _Marks:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_weights_are_refused_unread(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    torch.save({"x": _Marks(tmp_path / "ran")}, folder / "pytorch_model.bin")
    message = refusal(UnsafeWeights, folder)
    assert "has only pickled weights (pytorch_model.bin)" in message
    assert "--allow-pickle (allow_pickle=True)" in message
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_open_with_the_flag(folder, tokens):
    torch.save(tiny_causal_lm("llama").state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with torch.no_grad():
        wanted = tiny_causal_lm("llama")(input_ids=tokens, use_cache=False).logits
    torch.testing.assert_close(logits(load(folder, allow_pickle=True), tokens), wanted, atol=1e-5, rtol=0)


def test_safetensors_are_preferred_to_a_pickle_beside_them(folder, tmp_path):
    torch.save({"x": _Marks(tmp_path / "ran")}, folder / "pytorch_model.bin")
    for allowed in (False, True):
        assert load(folder, allow_pickle=allowed).check.support == "exact"
    assert not (tmp_path / "ran").exists()


def test_a_decoy_of_safetensors_does_not_open_the_pickle(folder, tmp_path):
    torch.save({"x": _Marks(tmp_path / "ran")}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder / "adapter.safetensors")
    assert "cannot be read" in refusal(ModelError, folder)
    assert not (tmp_path / "ran").exists()


def test_a_broken_pickle_is_one_line(folder):
    (folder / "pytorch_model.bin").write_bytes(b"junk")
    (folder / "model.safetensors").unlink()
    assert "could not be loaded" in refusal(ModelError, folder, allow_pickle=True)


REMOTE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM
class OurConfig(LlamaConfig):
    model_type = "ours"
class OurModel(LlamaForCausalLM):
    config_class = OurConfig
"""


@pytest.fixture
def remote(folder, tmp_path, monkeypatch):
    """A folder that brings code of its own, and the file that exists once the code ran."""
    marker = tmp_path / "ran"
    (folder / "ours.py").write_text(REMOTE.format(marker=str(marker)))
    edit_config(
        folder,
        model_type="ours",
        architectures=["OurModel"],
        auto_map={"AutoConfig": "ours.OurConfig", "AutoModelForCausalLM": "ours.OurModel"},
    )
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return folder, marker


def test_code_of_the_repository_is_refused_and_does_not_run(remote):
    folder, marker = remote
    message = refusal(UnsafeWeights, folder)
    assert "brings model code of its own" in message
    assert "--trust-remote-code (trust_remote_code=True)" in message
    assert not marker.exists()


def test_code_of_the_repository_runs_with_the_flag(remote):
    folder, marker = remote
    model = load(folder, trust_remote_code=True)
    assert marker.exists()
    assert type(model.hf).__name__ == "OurModel"
    assert model.check.support == "exact"


def test_code_beside_a_known_architecture_is_left_alone(remote):
    # the architecture is transformers' own, so its class is used
    folder, marker = remote
    edit_config(folder, model_type="llama")
    assert type(load(folder).hf).__module__.startswith("transformers.models.llama")
    assert not marker.exists()


# Options


def test_a_revision_of_a_folder_is_refused_rather_than_recorded(llama_folder):
    assert "revision='v1' does not apply to a folder" in refusal(ArgumentError, llama_folder, revision="v1")


@pytest.mark.parametrize("dtype", ["float8", "int8", "half", "torch.float16", ""])
def test_an_unknown_dtype_lists_the_known(dtype, llama_folder):
    message = refusal(ArgumentError, llama_folder, dtype=dtype)
    assert message == f"dtype={dtype!r} is not known; use one of auto, float32, float64, float16, bfloat16."


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "mps:7", ""])
def test_a_device_that_is_not_there_is_an_argument_error(device, llama_folder):
    message = refusal(ArgumentError, llama_folder, device=device)
    assert message.startswith(f"device={device!r} is not there: ")
    assert message.endswith("; use 'cpu', or leave the choice open.")


def test_auto_needs_accelerate(llama_folder, monkeypatch):
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    assert "device='auto' needs the package accelerate" in refusal(ArgumentError, llama_folder, device="auto")


def test_a_bad_option_is_refused_before_anything_is_read(tmp_path):
    assert "dtype='int8'" in refusal(ArgumentError, "someone/nothing", dtype="int8")
