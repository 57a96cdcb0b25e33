"""What a model needs and what there is: counted from headers, before any weight is read."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

import headscope as hs
from headscope.errors import ModelTooLarge
from headscope.model import budget
from headscope.model.budget import free_memory, header_numbers, refuse_too_large
from headscope.training.demo import demo_path


def write(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """A safetensors file that ends after its header."""
    header = {name: {"dtype": kind, "shape": shape, "data_offsets": [0, 0]} for name, (kind, shape) in tensors.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def needed(folder: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The least memory with which a model is not refused."""
    low, high = 0, 10**15
    while high - low > 1:
        middle = (low + high) // 2
        monkeypatch.setattr(budget, "free_memory", lambda free=middle: free)
        try:
            refuse_too_large(str(folder), None, device="cpu", dtype=dtype)
            high = middle
        except ModelTooLarge:
            low = middle
    return high


def test_the_demo_models_numbers_are_its_parameters():
    n_parameters = sum(one.numel() for one in hs.load("demo").hf.parameters())
    assert header_numbers(demo_path() / "model.safetensors") == Counter({"F32": n_parameters})


@pytest.mark.parametrize(
    ("dtype", "count"),
    # 1000 numbers of 2 bytes, 10 of 4, 7 whole numbers of 8, 5 of 1; a cast changes floating ones alone.
    [("auto", 2000 + 40 + 56 + 5), ("float32", 4000 + 40 + 56 + 5), ("bfloat16", 2000 + 20 + 56 + 5)],
)
def test_bytes_by_dtype(tmp_path, monkeypatch, dtype, count):
    tensors = {"a": ("BF16", [10, 100]), "b": ("F32", [10]), "c": ("I64", [7]), "d": ("F8_E4M3", [5])}
    write(tmp_path / "model.safetensors", tensors)
    assert needed(tmp_path, dtype, monkeypatch) == count


def test_shards_are_added_up_and_files_outside_the_index_are_not(tmp_path, monkeypatch):
    for name in ("one", "two", "other"):
        write(tmp_path / f"{name}.safetensors", {name: ("F32", [25])})
    index = {"weight_map": {"one": "one.safetensors", "two": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert needed(tmp_path, "auto", monkeypatch) == 200


def test_a_refusal_gives_both_numbers_and_comes_before_the_weights(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text((demo_path() / "config.json").read_text())
    write(tmp_path / "model.safetensors", {"w": ("F32", [10**9])})
    monkeypatch.setattr(budget, "free_memory", lambda: 3 * 10**9)
    with pytest.raises(ModelTooLarge, match=r"needs 4.0 GB for its weights, but this machine has 3.0 GB free; use a"):
        hs.load(tmp_path)


def test_gpus_count_with_the_machine_for_auto_and_beside_it_alone(tmp_path, monkeypatch):
    write(tmp_path / "model.safetensors", {"w": ("F32", [10])})
    monkeypatch.setattr(budget, "free_memory", lambda: 30)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda place: (20, 99))
    refuse_too_large(str(tmp_path), None, device="auto", dtype="auto")  # 30 + 2 * 20 for 40
    with pytest.raises(ModelTooLarge, match="but this machine has 0.0 GB"):
        refuse_too_large(str(tmp_path), None, device="cuda:1", dtype="auto")
    monkeypatch.setattr(budget, "free_memory", lambda: 50)
    with pytest.raises(ModelTooLarge, match="but cuda:1 has 0.0 GB"):
        refuse_too_large(str(tmp_path), None, device="cuda:1", dtype="auto")


def test_a_damaged_checkpoint_is_left_to_the_loader(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    assert refuse_too_large(str(tmp_path), None, device="cpu", dtype="auto") is None


def test_a_hub_model_is_counted_by_the_hub_before_it_is_fetched(monkeypatch):
    class Hub:
        def model_info(self, model: str, *, revision: str, expand: list[str]) -> SimpleNamespace:
            assert (model, revision, expand) == ("org/huge", "c" * 40, ["safetensors"])
            return SimpleNamespace(safetensors=SimpleNamespace(parameters={"BF16": 10**12}))

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    with pytest.raises(ModelTooLarge, match=r"'org/huge' needs 2,000.0 GB"):
        refuse_too_large("org/huge", "c" * 40, device="cpu", dtype="auto")


def test_without_the_hub_nothing_is_known_and_nothing_refused():
    assert refuse_too_large("org/huge", None, device="cpu", dtype="auto") is None  # HF_HUB_OFFLINE is set


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 300000\n")
    monkeypatch.setattr(budget, "_GROUPS", ((tmp_path, "memory.max", "memory.current", "inactive_file"),))
    assert free_memory() == 400_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() > 10**6
