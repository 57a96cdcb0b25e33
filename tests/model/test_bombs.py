"""Templates and tokenizers that cost without end: bounded in time and memory, with one line."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from benchmarks.tiny import tiny_causal_lm
from headscope.errors import HeadscopeError, ModelError
from headscope.model import confined as module
from headscope.model.confined import confined
from headscope.model.growth import refuse_growing
from headscope.model.load import load
from headscope.probes.pairs import Pair, _opening
from headscope.training.demo import demo_path


@pytest.fixture
def demo(tmp_path):
    """A copy that the test may break."""
    return Path(shutil.copytree(demo_path(), tmp_path / "demo"))


def replaced(old, new, regex=False):
    return {"type": "Replace", "pattern": {"Regex" if regex else "String": old}, "content": new}


def edit_tokenizer(folder, **fields):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def charsmap(text):
    """A SentencePiece map whose only text this is, behind an empty trie."""
    return base64.b64encode((0).to_bytes(4, "little") + text.encode() + b"\0").decode()


# 2^14 = 16,384 > 10,000
DOUBLING = {"type": "Sequence", "normalizers": [replaced("a", "aa")] * 14}
BEYOND = [DOUBLING, replaced("a", "b" * 10_001), replaced("", "b" * 10_000), replaced("a*", "b" * 10_000, regex=True),
          {"type": "Prepend", "prepend": "b" * 10_000}]  # fmt: skip
# 2^13 = 8,192; the ligature of 3 bytes that becomes 33
WITHIN = [{"type": "Sequence", "normalizers": [replaced("a", "aa")] * 13}, {"type": "NFKC"}, replaced(" ", "\u2581"),
          {"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "Lowercase"},
                                              replaced(" {2,}", " ", True)]}]  # fmt: skip


@pytest.mark.parametrize("normalizer", BEYOND, ids=range(len(BEYOND)))
def test_a_normalizer_that_grows_without_bound_is_refused_unused(normalizer, demo):
    with pytest.raises(ModelError, match="normalizer of .* can make a text more than 10,000 times as long"):
        load(edit_tokenizer(demo, normalizer=normalizer))


@pytest.mark.parametrize("normalizer", WITHIN, ids=range(len(WITHIN)))
def test_a_normalizer_that_grows_within_bounds_is_used(normalizer, demo):
    assert load(edit_tokenizer(demo, normalizer=normalizer)).tokenizer is not None


def test_a_decoder_and_a_template_are_bounded_too(demo):
    decoders = {"type": "Sequence", "decoders": [replaced("a", "aa")] * 14}
    with pytest.raises(ModelError, match="decoder of .* can make a text more than"):
        load(edit_tokenizer(demo, decoder=decoders))
    shutil.copy(demo_path() / "tokenizer.json", demo)
    post = json.loads((demo / "tokenizer.json").read_text())["post_processor"]
    with pytest.raises(ModelError, match="adds 65 tokens to each text"):
        load(edit_tokenizer(demo, post_processor=post | {"single": [*post["single"][:1] * 65, *post["single"][1:]]}))


class Part:
    def __init__(self, state):
        self.state = state

    def __getstate__(self):
        return json.dumps(self.state).encode()


class Backend:
    decoder = post_processor = None

    def __init__(self, state):
        self.normalizer = Part(state)
        self.backend_tokenizer = self


def test_a_map_of_characters_counts_by_its_longest_text():
    refuse_growing("mine", Backend({"type": "Precompiled", "precompiled_charsmap": charsmap("b" * 10_000)}))
    with pytest.raises(ModelError, match="more than 10,000 times"):
        refuse_growing("mine", Backend({"type": "Precompiled", "precompiled_charsmap": charsmap("b" * 10_001)}))


# Templates

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
LARGE = [
    "{{ 'a' * 10 ** 11 }}",
    "{% set x = namespace(t='ab') %}{% for i in range(60) %}{% set x.t = x.t ~ x.t %}{% endfor %}",
    "{{ ('%' ~ '50000000000d') % 1 }}",
    "{{ 'a'.ljust(10 ** 11) }}",
    "{{ ([0] * 10 ** 11) | length }}",
]


def opening(template):
    model = load(tiny_causal_lm("llama"), tokenizer=load("demo").tokenizer)
    model.tokenizer.chat_template = template
    pair = Pair(id="a", prompt="hello", answer="x", other="y", twin="z", lead="I think")
    return _opening(model, pair, "hello")


def test_a_template_renders_as_transformers_renders_it():
    template = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m['content'] | trim }}{% endfor %}\n"
    model = load("demo")
    model.tokenizer.chat_template = template
    turns = [{"role": "user", "content": "hello"}]
    wanted = model.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert opening(template) == (wanted + "I think", False)


@pytest.mark.parametrize("template", [ENDLESS, "{{ 9 ** (9 ** 9) }}"], ids=["loops", "power"])
def test_a_template_that_does_not_end_is_stopped(template, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.5)
    started = time.monotonic()
    with pytest.raises(ModelError, match="the chat template of .* takes more than 0 seconds"):
        opening(template)
    assert time.monotonic() - started < 60  # without the bound it takes hours


@pytest.mark.parametrize("template", LARGE, ids=range(len(LARGE)))
def test_a_template_that_takes_memory_without_end_is_stopped(template, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 2**27)
    with pytest.raises(HeadscopeError, match="the chat template of .* (takes more than|fails)"):
        opening(template)


def test_a_template_that_fails_is_one_line():
    with pytest.raises(ModelError, match=r"fails \(TemplateError: no such role\)"):
        opening("{{ raise_exception('no such role') }}")


# The copy


def test_what_the_copy_gives_comes_back_and_it_changes_nothing_here():
    seen = []
    assert confined("it", lambda: [seen.append(1), {"a": "\ud800"}, os.getpid() != 0]) == [None, {"a": "\ud800"}, True]
    assert seen == []


def test_a_long_answer_and_a_broken_copy_are_told():
    assert len(confined("it", lambda: "x" * 2**20)) == 2**20  # more than a pipe holds at once
    with pytest.raises(ModelError, match="gives more than 16,777,216 bytes"):
        confined("it", lambda: "x" * 2**25)
    with pytest.raises(ModelError, match="or breaks down"):
        confined("it", lambda: os._exit(3))
    with pytest.raises(ModelError, match=r"it fails \(ZeroDivisionError: "):
        confined("it", lambda: 1 // 0)


def test_a_copy_ends_by_itself_where_nobody_is_left_who_stops_it():
    assert 0 < confined("it", lambda: signal.alarm(0)) <= module.SECONDS + 1


def test_no_copy_is_left_over(monkeypatch):
    fork, copies = os.fork, []

    def noted() -> int:
        copies.append(fork())
        return copies[-1]

    monkeypatch.setattr(os, "fork", noted)
    confined("it", lambda: 1)
    (copy,) = copies
    with pytest.raises(ChildProcessError):  # not a child any more: it was waited for
        os.waitpid(copy, os.WNOHANG)
