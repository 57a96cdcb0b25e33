"""Damaged inputs: each is refused in one line, or read and what is read is true. Never a hang, never a traceback.

For model files "true" is checked by an independent route: where damaged weights still load, the scan must equal the
mean over the eager attention patterns that transformers itself returns for them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import headscope as hs
from headscope.errors import HeadscopeError
from soak.mutate import ODD, damaged_bytes, damaged_document, damaged_json

PATIENCE_S = 30
"""An attempt that takes longer hangs."""
LONGEST_LINE = 2000
"""Characters of an error, which may quote what was given."""

Attempt = Callable[[Random], bool]
"""Tries one damaged input: True when it was read, False when it was refused; anything else is a defect."""


class Hang(AssertionError):
    """An attempt that did not end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a target's inputs."""

    tried: int
    """Damaged inputs."""
    read: int
    """Read, since the damage did no harm, and what was read is true."""
    defects: tuple[str, ...]
    """What went wrong, with the seed that shows it again."""


def run(target: Attempt, *, name: str, attempts: int, seconds: float, seed: int = 0) -> Outcome:
    """Try damaged inputs until there were as many as asked for, or the time is up."""
    until = time.monotonic() + seconds
    seen: Counter[bool] = Counter()
    defects: list[str] = []
    for number in range(attempts):
        if time.monotonic() > until:
            break
        try:
            with deadline():
                seen[target(Random(f"{name} {seed} {number}"))] += 1
        except Exception as error:
            seen[False] += 1
            defects.append(f"{name} seed={seed} number={number}: {type(error).__name__}: {str(error)[:300]}")
    return Outcome(tried=seen.total(), read=seen[True], defects=tuple(defects))


@contextmanager
def deadline() -> Iterator[None]:
    """Raise `Hang` in the block when it takes too long. Main thread only, as signals are."""

    def late(signum: int, frame: Any) -> None:
        raise Hang(f"still running after {PATIENCE_S} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refused(action: Callable[[], Any]) -> bool:
    """Whether an action was refused as it should be: one line, of ours, that is not empty."""
    try:
        action()
    except HeadscopeError as error:
        text = str(error)
        assert text.strip(), "an error without words"
        assert "\n" not in text, f"an error of several lines: {text[:200]!r}"
        assert len(text) < LONGEST_LINE, f"an error of {len(text)} characters"
        return True
    return False


def results(folder: Path) -> dict[str, Attempt]:
    """Saved results: scan, verification, circuit."""
    model = hs.load("demo")
    probe = hs.repeated_tokens(model, n_prompts=3, period=20)
    verification = hs.verify(model, probe=probe)
    kinds = {
        "scan": (hs.Scan, hs.scan(model, probe=probe)),
        "verify": (hs.Verification, verification),
        "circuit": (hs.Circuit, hs.trace_circuit(model, verification=verification, probe=probe)),
    }
    attempts: dict[str, Attempt] = {}
    for name, (kind, result) in kinds.items():
        whole = result.to_json()

        def attempt(random: Random, name: str = name, kind: Any = kind, whole: str = whole) -> bool:
            path = folder / f"{name}.json"
            path.write_bytes(damaged_json(whole, random))
            found: list[Any] = []
            if refused(lambda: found.append(kind.load(path))):
                return False
            again = json.loads(found[0].to_json())
            assert kind.load(_written(folder / "again.json", again)).to_json() == found[0].to_json()
            return True

        attempts[f"results {name}"] = attempt
    return attempts


def pairs(folder: Path) -> dict[str, Attempt]:
    """Files of contrastive pairs, in each form that is read."""
    own = {"id": "a", "prompt": "x = [1", "twin": "x = (1", "answer": "]", "other": ")", "form": "plain"}
    fact = {"question": "Who wrote Emma?", "correct_answer": "Austen", "incorrect_answer": "Eliot"}
    says = ("", " I think the answer is Eliot.", " I think the answer is Austen.")
    published = [{"prompt": [{"type": "human", "content": fact["question"] + one}], "base": fact} for one in says]
    written = {
        "question": "I am 40. Question: which?\n (A) one\n (B) two\nAnswer:",
        "answer_matching_behavior": " (A)",
        "answer_not_matching_behavior": " (B)",
    }
    documents = {"own": [own, {**own, "neutral": "x = 1"}], "published": published, "model-written": [written, written]}
    attempts: dict[str, Attempt] = {}
    for name, lines in documents.items():

        def jsonl(random: Random, name: str = name, lines: list[Any] = lines) -> bool:
            path = folder / f"{name}.jsonl"
            path.write_bytes(b"\n".join(damaged_json(json.dumps(line), random) for line in lines))
            return not refused(lambda: _whole(hs.load_contrast(path)))

        attempts[f"pairs {name}"] = jsonl
    table = 'id,prompt,twin,answer,other\n1,x = [1,x = (1,],)\n2,"a, b",c,d,e\n'
    toml = 'name = "x"\nlead = "so"\n[[pairs]]\nprompt = "a"\ntwin = "b"\nanswer = "c"\nother = "d"\n'
    for name, text in {"csv": table, "toml": toml}.items():

        def other(random: Random, name: str = name, text: str = text) -> bool:
            path = folder / f"pairs.{name}"
            path.write_bytes(damaged_bytes(text.encode(), random))
            return not refused(lambda: _whole(hs.load_contrast(path)))

        attempts[f"pairs {name}"] = other
    return attempts


def stores(folder: Path) -> dict[str, Attempt]:
    """A sweep's store with one damaged file. What is still read must be what was written."""
    made = hs.sweep(["demo"], folder / "store", settings={"scan": {"n_prompts": 2, "period": 12}})
    assert made.done == 1
    whole = {table: hs.open_store(folder / "store").to_arrow(table).to_pylist() for table in ("jobs", "scan")}
    (original,) = (folder / "store" / "scan").glob("*.parquet")
    data, mark = original.read_bytes(), (folder / "store" / "headscope-store.json").read_bytes()

    def read(broken: Path) -> None:
        store = hs.open_store(broken)
        for table, rows in whole.items():
            assert store.to_arrow(table).to_pylist() == rows, f"{table} was read with other rows"

    def attempt(name: str, content: bytes) -> Attempt:
        def run_one(random: Random) -> bool:
            broken = folder / "broken"
            shutil.rmtree(broken, ignore_errors=True)
            shutil.copytree(folder / "store", broken)
            (broken / name).write_bytes(damaged_bytes(content, random))
            return not refused(lambda: read(broken))

        return run_one

    return {"store file": attempt(f"scan/{original.name}", data), "store mark": attempt("headscope-store.json", mark)}


def _whole(contrast: hs.Contrast) -> None:
    for pair in contrast.pairs:
        assert pair.prompt.strip()
        assert pair.answer.strip() != pair.other.strip()
        assert pair.twin is not None or pair.neutral is not None
    assert all(problem.startswith("line ") for problem in contrast.problems)


def _written(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def tokens(folder: Path) -> dict[str, Attempt]:
    """Token ids and text of the user's own, as objects and as files."""
    model = hs.load("demo")
    good = [[1, 2, 3, 4, 1, 2, 3, 4], [9, 8, 7, 9, 8, 7]]

    def ids(random: Random) -> bool:
        given = damaged_document(good, random)
        return not refused(lambda: _finite(hs.scan(model, probe=hs.probe_tokens(given))))

    def text(random: Random) -> bool:
        given = random.choice([one for one in ODD if isinstance(one, str)]) * random.choice((1, 2, 50))
        given = damaged_bytes((given + "def f(x): return x").encode("utf-8", "surrogatepass"), random)
        words = given.decode("utf-8", random.choice(("replace", "surrogateescape")))
        return not refused(lambda: _finite(hs.scan(model, probe=hs.probe_text(model, words))))

    def file(random: Random) -> bool:
        path = folder / "ids.json"
        path.write_bytes(damaged_json(json.dumps(good), random))
        return command("scan", "demo", "--tokens", str(path), "--json") == 0

    return {"token ids": ids, "text": text, "token file": file}


def command_line(folder: Path) -> dict[str, Attempt]:
    """Options of the command line."""
    names = (
        "--n-prompts --period --n-repeats --seed --precision --detector --top --head --device --dtype --revision "
        "--text --tokens --json --no-jitter --heatmap --nothing"
    ).split()
    values = [
        *"0 1 -1 3 7 1e9 99999999999 nan inf x L1H1 L9H9 0.5 cpu cuda:99 float32 int8 auto induction".split(),
        *("", " ", "../../x", "/", ".", "\u202e", "--", "-h"),
    ]
    commands = ("scan", "check", "params", "scan", "params", "nothing", "")

    def attempt(random: Random) -> bool:
        words = [random.choice(commands), random.choice(("demo", "demo", "demo", "", ".", "/etc/passwd", "no/such"))]
        for _ in range(random.randint(0, 3)):
            words += [random.choice(names), *([random.choice(values)] if random.random() < 0.9 else [])]
        return command(*words) == 0

    return {"command line": attempt}


def command(*arguments: str) -> int:
    """Run the command line in this process: exit code 0, or 2 with one line or a usage, and no traceback."""
    from headscope.cli.main import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    arguments_given = patch.object(sys, "argv", ["headscope", *arguments])
    with arguments_given, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    assert code in (0, 2), f"{arguments} ends with {code}: {err.getvalue()[:300]}"
    assert "Traceback" not in err.getvalue()
    if code:
        assert err.getvalue().strip(), f"{arguments} ends with {code} and says nothing"
        lines = err.getvalue().strip().splitlines()
        assert not lines[0].startswith("headscope:") or len(lines) == 1, f"{arguments}: several lines: {lines[:3]}"
    return code


def folders(folder: Path) -> dict[str, Attempt]:
    """Model folders with a damaged file: weights, config, tokenizer."""
    from safetensors import safe_open
    from transformers import LlamaConfig, LlamaForCausalLM

    from headscope.training.demo import demo_path

    whole = folder / "whole"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(whole)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_path() / name, whole / name)

    def attempt(name: str) -> Attempt:
        original = (whole / name).read_bytes()
        damage = damaged_json if name == "config.json" else None

        def run_one(random: Random) -> bool:
            broken = folder / "broken"
            shutil.rmtree(broken, ignore_errors=True)
            shutil.copytree(whole, broken)
            data = damage(original.decode(), random) if damage else damaged_bytes(original, random)
            (broken / name).write_bytes(data)
            return not refused(lambda: _true_scan(broken))

        return run_one

    names = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    outside = folder / "outside"
    outside.write_bytes((whole / "model.safetensors").read_bytes())

    def copied() -> Path:
        broken = folder / "broken"
        shutil.rmtree(broken, ignore_errors=True)
        return Path(shutil.copytree(whole, broken))

    def misplaced(random: Random) -> bool:
        broken = copied()
        path = broken / random.choice(names)
        path.unlink()
        match random.choice(("pipe", "folder", "device", "outside", "nowhere")):
            case "pipe":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
            case "device":
                path.symlink_to("/dev/zero")
            case "outside":
                path.symlink_to(outside)
            case "nowhere":
                path.symlink_to(broken / "nowhere")
        return not refused(lambda: _true_scan(broken))

    def index(random: Random) -> bool:
        broken = copied()
        shard = (broken / "model.safetensors").rename(broken / "model-00001-of-00001.safetensors")
        with safe_open(shard, framework="pt") as file:
            places = dict.fromkeys(file.keys(), shard.name)
        os.mkfifo(broken / "pipe.safetensors")
        (broken / "weights.bin").write_bytes(b"\x80\x04.")
        odd = (
            "../outside",
            str(outside),
            "weights.bin",
            "pipe.safetensors",
            "/dev/zero",
            "",
            ".",
            "nowhere.safetensors",
        )
        for name in random.sample(sorted(places), random.randint(1, 3)):
            places[name] = random.choice(odd)
        (broken / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
        return not refused(lambda: _true_scan(broken))

    return {
        **{f"folder {name}": attempt(name) for name in names},
        "folder with other files": misplaced,
        "folder with an index": index,
    }


def _true_scan(folder: Path) -> None:
    """Load and scan; the stripe must be what transformers' own eager patterns say."""
    model = hs.load(folder)
    ids = [0, 5, 6, 7, 8, 5, 6, 7, 8]
    scan = hs.scan(model, probe=hs.probe_tokens([ids]), detectors=["induction"])
    _finite(scan)
    before = model.hf.config._attn_implementation or "eager"
    model.hf.set_attn_implementation("eager")
    with torch.no_grad():
        patterns = model.hf(torch.tensor([ids], device=model.device), output_attentions=True).attentions
    model.hf.set_attn_implementation(before)
    query = torch.arange(5, 9)
    for score in scan.scores:
        theirs = float(patterns[score.head.layer][0, score.head.head, query, query - 3].mean())
        assert abs(score.mean - theirs) < 1e-4, f"{score.head}: {score.mean} is not {theirs}"


def _finite(scan: Any) -> None:
    values = np.array([score.mean for score in scan.scores])
    assert np.isfinite(values).all()
    assert (values > -1e-6).all()
    assert (values < 1 + 1e-6).all()


TARGETS: dict[str, tuple[Callable[[Path], dict[str, Attempt]], int]] = {
    "results": (results, 1500),
    "tokens": (tokens, 600),
    "pairs": (pairs, 800),
    "stores": (stores, 500),
    "command line": (command_line, 700),
    "folders": (folders, 700),
}
"""What is damaged, and how many inputs each of its kinds gets in a whole run."""


def fuzz(*, share: float = 1.0, seconds: float = 300.0, seed: int = 0) -> dict[str, Outcome]:
    """Every target in turn.

    Args:
        share: Of the inputs of a whole run.
        seconds: For all targets together; each kind gets an even part.
        seed: Of the damage.
    """
    with tempfile.TemporaryDirectory() as scratch:
        kinds: list[tuple[str, Attempt, int]] = []
        for number, (build, attempts) in enumerate(TARGETS.values()):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            kinds += [(name, target, max(1, round(attempts * share))) for name, target in build(folder).items()]
        return {
            name: run(target, name=name, attempts=attempts, seconds=seconds / len(kinds), seed=seed)
            for name, target, attempts in kinds
        }
