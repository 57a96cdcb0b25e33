"""What a folder may make us open: files of the wrong kind, in the wrong place, too large, or made to cost."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2ForQuestionAnswering

from benchmarks.tiny import tiny_causal_lm
from headscope.errors import HeadscopeError, ModelError, UnsafeWeights
from headscope.model.folder import MOST_HEADER, check_folder, read_json
from headscope.model.leftover import refuse_leftover
from headscope.model.load import load
from headscope.training.demo import demo_path


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "llama"
    tiny_causal_lm("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy that the test may break."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def edit_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))


def add(folder, **tensors):
    """Put more tensors into the checkpoint."""
    path = folder / "model.safetensors"
    save_file(load_file(path) | tensors, path, metadata={"format": "pt"})


def refusal(folder, **options):
    """The error of a load, which has to be one line."""
    with pytest.raises(HeadscopeError) as caught:
        load(folder, **options)
    assert "\n" not in str(caught.value)
    return caught.value


# Kind and place


class Marks:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def index_to(folder, name):
    """Let an index name this file for every tensor."""
    names = load_file(folder / "model.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.move(folder / "model.safetensors", folder.parent / "outside.safetensors")
    shutil.copy(folder.parent / "outside.safetensors", folder / "another.safetensors")


def test_an_index_does_not_open_a_pickle(folder, tmp_path):
    index_to(folder, "weights.bin")
    torch.save({"x": Marks(tmp_path / "ran")}, folder / "weights.bin")
    error = refusal(folder)
    assert isinstance(error, UnsafeWeights)
    assert "(weights.bin)" in str(error)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("allow_pickle", [False, True])
@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/dev/zero", "sub/../../outside.safetensors", "x\0.safetensors"]
)
def test_an_index_stays_in_its_folder(name, allow_pickle, folder):
    index_to(folder, name)
    assert "outside; fix its index" in str(refusal(folder, allow_pickle=allow_pickle))


def test_an_absolute_path_in_an_index_is_refused_even_to_the_folder_itself(folder):
    index_to(folder, str(folder / "another.safetensors"))
    assert "outside; fix its index" in str(refusal(folder))


def test_an_index_opens_files_below_the_folder(folder):
    index_to(folder, "sub/weights.safetensors")
    (folder / "sub").mkdir()
    shutil.move(folder / "another.safetensors", folder / "sub/weights.safetensors")
    assert load(folder).check.support == "exact"


@pytest.mark.parametrize("files", [None, {}, [], {"a": 1}], ids=["none", "empty", "a list", "no name"])
def test_an_index_names_files(files, folder):
    index_to(folder, "another.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({} if files is None else {"weight_map": files}))
    assert "has no weight_map from tensors to files; use the index as saved" in str(refusal(folder))


def test_a_folder_of_templates_is_no_link(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (folder / "additional_chat_templates").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert "is a link; copy what it leads to into the folder" in str(refusal(folder))


def test_a_config_stays_in_its_folder_too(folder):
    index_to(folder, "x.safetensors")
    edit_config(folder, transformers_weights="../outside.safetensors")
    assert "outside; fix its index" in str(refusal(folder))
    edit_config(folder, transformers_weights="another.safetensors")
    assert load(folder).check.support == "exact"


READ = ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "spiece.model"]  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_a_pipe_is_told_and_not_waited_for(name, folder):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert f"{name} is a pipe; the model needs a regular file there." in str(refusal(folder))


@pytest.mark.parametrize("name", READ)
def test_a_link_out_of_the_folder_is_refused(name, folder, tmp_path):
    (folder / name).touch()
    shutil.move(folder / name, tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    assert f"{name} leads out of its folder" in str(refusal(folder))


@pytest.mark.parametrize(
    ("target", "words"),
    [("/dev/zero", "is a device"), ("nothing", "No such file"), ("model.safetensors", "cannot be read"),
     (".", "is a folder")],
)  # fmt: skip
def test_a_link_to_what_is_no_file_is_refused(target, words, folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(target)
    assert words in str(refusal(folder))


def test_a_folder_in_place_of_a_file_is_refused(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    assert "model.safetensors is a folder" in str(refusal(folder))


def test_links_inside_a_folder_and_a_link_to_it_are_fine(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "step-100.safetensors")
    (folder / "model.safetensors").symlink_to("step-100.safetensors")
    (tmp_path / "latest").symlink_to(folder)
    assert load(tmp_path / "latest").check.support == "exact"


def test_what_no_load_reads_may_be_anything(folder):
    os.mkfifo(folder / "train.log")
    os.mkfifo(folder / ".lock.json")
    (folder / "data.parquet").symlink_to("/dev/zero")
    torch.save({}, folder / "optimizer.pt")
    assert load(folder).check.support == "exact"


def test_a_snapshot_of_the_hub_s_cache_is_made_of_links_to_its_blobs(folder, tmp_path):
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    shutil.move(folder, repository / "blobs")
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert load(snapshot).check.support == "exact"
    (tmp_path / "blobs").mkdir()  # blobs that several repositories share
    shutil.move(repository / "blobs/model.safetensors", tmp_path / "blobs/abc")
    (repository / "blobs/model.safetensors").symlink_to("../../blobs/abc")
    assert load(snapshot).check.support == "exact"
    (snapshot / "config.json").unlink()
    shutil.copy(repository / "blobs/config.json", tmp_path / "config.json")
    (snapshot / "config.json").symlink_to("../../../config.json")
    assert "leads out of its folder" in str(refusal(snapshot))


# Size and content


def with_header(folder, header):
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


def empties(n):
    return {f"x.{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(n)}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested more than 64 levels deep"),
        (b'{"a":' + b"[" * 800 + b"]" * 800 + b"}", "nested more than 64 levels deep"),
        (b"[" * 800_000, "describes more than 250,000 tensors"),
        (json.dumps(empties(100_000)).encode(), "describes 100,000 tensors, 100,000 of them empty"),
        (json.dumps({"a": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 4]}}).encode(), "gives a the shape"),
        (json.dumps({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}).encode(), "gives a the shape"),
        (json.dumps({"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}).encode(), "could not be loaded"),
        (b"[]", "holds a list, not a table"),
        (b"{", "could not be loaded"),
    ],
    ids="deep less_deep wide empty huge negative no_shape list half".split(),
)
def test_a_header_that_costs_is_refused(header, words, folder):
    with_header(folder, header)
    assert words in str(refusal(folder))


def test_a_header_is_not_read_past_its_bound(folder):
    path = folder / "model.safetensors"
    path.write_bytes((MOST_HEADER + 1).to_bytes(8, "little"))
    os.truncate(path, MOST_HEADER * 2)  # a hole, which takes no disk
    assert "its header has 33,554,433 bytes, and at most 33,554,432 are read" in str(refusal(folder))
    path.write_bytes((2**63).to_bytes(8, "little"))
    assert "no safetensors header" in str(refusal(folder))


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors.index.json", "chat_template.jinja"]
)
def test_text_is_not_read_past_its_bound(name, folder):
    index_to(folder, "another.safetensors")
    (folder / name).touch()
    os.truncate(folder / name, 10**12)  # a hole, which takes no disk
    assert f"{name} has 1,000,000,000,000 bytes, and at most 67,108,864 are read" in str(refusal(folder))


@pytest.mark.parametrize("depth", [63, 64, 65, 900, 100_000])
def test_documents_are_at_most_64_levels_deep(depth, folder):
    (folder / "config.json").write_text('{"a":' * (depth - 1) + "{}" + "}" * (depth - 1))
    if depth <= 64:
        assert list(read_json(folder / "config.json", "it")) == ["a"]
    else:
        assert "nested more than 64 levels deep" in str(refusal(folder))


@pytest.mark.parametrize("field", ["num_labels", "num_hidden_layers"])
@pytest.mark.parametrize("number", [10**9, 1e9, 10**4000], ids=["billion", "float", "digits"])
def test_a_config_that_counts_to_a_billion_is_refused_before_it_is_built(field, number, folder):
    edit_config(folder, **{field: number})
    assert f"says {field}=1" in str(refusal(folder))


@pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_kernels_that_a_config_fetches_from_the_hub_are_code(field, folder):
    edit_config(folder, **{field: "someone/kernel"})
    error = refusal(folder)
    assert isinstance(error, UnsafeWeights)
    assert f"{field}='someone/kernel'" in str(error)
    edit_config(folder, **{field: {"text_config": "someone/kernel@v1"}})
    assert isinstance(refusal(folder), UnsafeWeights)


# A checkpoint and a config that belong together


def test_attention_biases_that_the_config_drops_are_refused(folder):
    add(folder, **{"model.layers.0.self_attn.q_proj.bias": torch.ones(64)})
    assert (
        "holds 1 weights that its config has no place for (model.layers.0.self_attn.q_proj.bias); without them it is "
        "another model"
    ) in str(refusal(folder))


def test_layers_that_the_config_drops_are_refused(tmp_path):
    folder = Path(shutil.copytree(demo_path(), tmp_path / "demo"))
    edit_config(folder, num_hidden_layers=1)
    assert "model.layers.1." in str(refusal(folder)) or "h.1." in str(refusal(folder))


def test_a_model_that_answers_with_spans_is_no_language_model(tmp_path):
    config = tiny_causal_lm("gpt2").config
    GPT2ForQuestionAnswering(config).save_pretrained(tmp_path)
    message = str(refusal(tmp_path))
    assert "(qa_outputs.bias, qa_outputs.weight)" in message
    assert message.endswith("It was trained as GPT2ForQuestionAnswering.")


def test_pickled_weights_have_to_belong_too(folder):
    state = load_file(folder / "model.safetensors") | {"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "q_proj.bias" in str(refusal(folder, allow_pickle=True))


def test_masks_and_rotary_frequencies_of_old_checkpoints_are_harmless(tmp_path):
    tiny_causal_lm("gpt2").save_pretrained(tmp_path)
    mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8), "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    add(tmp_path, **mask)
    assert load(tmp_path).check.support == "exact"


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", (8,)),
        ("gpt_neox.layers.3.attention.bias", (1, 1, 64, 64)),
        ("transformer.h.0.attn.attention.bias", (1, 1, 64, 64)),
        ("transformer.h.0.attn.attention.masked_bias", ()),
        ("transformer.h.0.attn.causal_mask", (1, 1, 64, 64)),
        ("embeddings.position_ids", (1, 64)),
        ("vision_tower.encoder.layers.0.self_attn.q_proj.weight", (8, 8)),
        ("model.visual.blocks.0.attn.qkv.bias", (24,)),
    ],
)
def test_the_list_of_harmless_names(name, shape):
    refuse_leftover("mine", [name], {name: shape}, [])
    refuse_leftover("mine", [name], {}, [])
    refuse_leftover("mine", [name.split(".", 1)[1] if name.startswith("transformer.") else name], {name: shape}, [])


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.q_proj.bias", (64,)),
        ("model.layers.0.attn.bias", (64,)),  # a bias, not a mask
        ("model.layers.0.attention.bias", (1, 64)),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", (4, 64)),
        ("model.layers.0.self_attn.q_proj.weight_scale_inv", (1, 1)),
        ("model.layers.2.input_layernorm.weight", (64,)),
        ("visual_gate.weight", (64,)),
        ("model.layers.0.vision_tower.weight", (64,)),
        ("lm_head.bias", (128,)),
        ("score.weight", (2, 64)),
    ],
)
def test_all_else_is_refused(name, shape):
    with pytest.raises(ModelError, match="no place for"):
        refuse_leftover("mine", [name], {name: shape}, [])


def test_checking_a_folder_gives_what_its_headers_hold(folder):
    weights = check_folder(folder, allow_pickle=False)
    hf = tiny_causal_lm("llama")
    assert weights.numbers == {"F32": sum(parameter.numel() for parameter in hf.parameters())}
    assert weights.shapes == {name: tuple(value.shape) for name, value in hf.state_dict().items()}
