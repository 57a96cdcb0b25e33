"""`headscope circuit`: its document is the API's, its options reach it, its table says what was found."""

from __future__ import annotations

import functools
import json
import re
import xml.etree.ElementTree as xml

import pytest
import torch
from transformers import LlamaForCausalLM

import headscope as hs
from benchmarks.tiny import tiny_causal_lm, tiny_config
from headscope.evidence.circuit.measure import trace_circuit
from headscope.evidence.circuit.result import Circuit
from headscope.planted.handbuilt import handbuilt

SMALL = ("--n-prompts", 6, "--period", 12)
HEADS = ("--head", "L1H1", "--head", "1.5")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tensors this small gain nothing from a second thread, and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def run_api(*, seed=0, n_prompts=6):
    model = hs.load("demo")
    probe = hs.repeated_tokens(model, n_prompts=n_prompts, period=12, seed=seed)
    return trace_circuit(model, ["L1H1", "L1H5"], probe=probe, seed=seed)


def comparable(document):
    """Without what differs from run to run: seconds, and the command."""
    document = json.loads(json.dumps(document))
    del document["timing"]["wall_s"], document["provenance"]["command"]
    return document


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A hand-built model in a folder, and the truth about it."""
    truth = handbuilt(vocab_size=160, n_positions=160, seed=1)
    folder = tmp_path_factory.mktemp("models") / "built"
    truth.model.save_pretrained(folder)
    return folder, truth


@pytest.fixture(scope="module")
def random_llama(tmp_path_factory):
    """Random weights, and a context long enough for the verification's own prompts."""
    folder, config = tmp_path_factory.mktemp("models") / "llama", tiny_config("llama")
    config.max_position_embeddings = 256
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_json_equals_the_api(headscope):
    ran = headscope("circuit", "demo", *SMALL, *HEADS, "--json")
    assert (ran.code, ran.err) == (0, "")
    printed = json.loads(ran.out)
    assert printed["schema"] == "headscope.circuit/1"
    assert printed["provenance"]["command"].startswith("headscope circuit demo --n-prompts 6")
    assert comparable(printed) == comparable(run_api().to_dict())


def test_options_reach_the_api(headscope):
    ran = headscope("circuit", "demo", "--n-prompts", 4, "--period", 12, *HEADS, "--seed", 3, "--json")
    assert comparable(json.loads(ran.out)) == comparable(run_api(seed=3, n_prompts=4).to_dict())


def test_the_table_says_what_was_found(headscope):
    ran = headscope("circuit", "demo", *SMALL, *HEADS)
    assert ran.code == 0
    found = run_api()
    assert "6 senders tried" in ran.out
    for one in found.receivers:
        assert re.search(rf"^{one.head}  stripe {one.stripe.mean:.3f} \[", ran.out, flags=re.MULTILINE)
    for edge in found.edges:
        assert f"  {edge.sender} -> key carries {edge.share:.0%} of it" in ran.out
    best = found.edges[0]
    assert str(best.sender) == "L0H4"
    assert f"K-composition rank 1 of 6, z {best.weights.z:.0f}" in ran.out
    assert f"they restore {found.receivers[0].restored.mean:.3f} [" in ran.out
    assert f"{best.weights.margin:.2f} x the best other head" in ran.out
    assert "weights agree" in ran.out
    assert "attends to the token before" not in ran.out  # nobody was asked


def test_every_note_ends_in_one_full_stop(headscope):
    out = headscope("circuit", "demo", *SMALL, *HEADS).out
    notes = re.findall(r"^Note: .*", out, flags=re.MULTILINE)
    assert notes
    assert all(note.endswith(".") and not note.endswith("..") for note in notes)


def test_out_writes_a_document_and_a_drawing(headscope, tmp_path):
    folder = tmp_path / "new" / "folder"
    ran = headscope("circuit", "demo", *SMALL, *HEADS, "--out", folder)
    assert ran.code == 0
    assert f"Results: {folder / 'circuit.json'} and {folder / 'circuit.svg'}" in ran.out.replace("\n", "")
    saved = Circuit.load(folder)
    assert comparable(saved.to_dict()) == comparable(run_api().to_dict())
    texts = {one.text for one in xml.parse(folder / "circuit.svg").iter("{http://www.w3.org/2000/svg}text")}
    assert {"L0H4", "L1H1", "L1H5"} <= texts
    # and the same beside a document on stdout
    quiet = headscope("circuit", "demo", *SMALL, *HEADS, "--json", "--out", tmp_path / "again")
    assert comparable(json.loads(quiet.out)) == comparable(saved.to_dict())
    assert (tmp_path / "again" / "circuit.svg").exists()


def test_without_a_head_the_verified_ones_are_explained(headscope, built):
    folder, truth = built
    (sender,), (receiver,) = truth.heads("previous_token"), truth.heads("induction")
    ran = headscope("circuit", folder, *SMALL)
    assert ran.code == 0
    assert re.search(rf"^{receiver} induction  stripe 1\.000", ran.out, flags=re.MULTILINE)
    assert re.search(rf"  {sender} -> key carries 100% of it  \(attends to the token before: \d\.\d\d\)", ran.out)
    assert "unexplained -0.00" in ran.out or "unexplained +0.00" in ran.out


def test_nothing_found_is_said_and_is_no_failure(headscope, random_llama, tmp_path):
    ran = headscope("circuit", random_llama, *SMALL, "--head", "L1H0", "--out", tmp_path)
    assert ran.code == 0
    assert "the corrupt prompts take less than a tenth of it, or nothing significant: they cannot ask" in ran.out
    assert "-> key" not in ran.out
    saved = Circuit.load(tmp_path)
    assert saved.edges == ()
    assert [str(one.head) for one in saved.receivers] == ["L1H0"]
    assert "L1H0" in (tmp_path / "circuit.svg").read_text()


def test_no_induction_head_is_said_and_is_no_failure(headscope, random_llama):
    ran = headscope("circuit", random_llama, "--n-prompts", 4, "--period", 8)
    assert ran.code == 0
    assert "Note: no head is called induction, so none is explained." in ran.out


CASES = {
    "a head that does not exist": (("circuit", "demo", "--head", "L9H9"), "no head L9H9"),
    "a head that is no head": (("circuit", "demo", "--head", "best"), "'best' is not a head"),
    "a head of the first layer": (("circuit", "demo", "--head", "L0H4"), "L0H4 is in the first layer with attention"),
    "one prompt": (("circuit", "demo", "--n-prompts", "1"), "--n-prompts 1; a circuit needs .* at least 2 prompts"),
    "period 2": (("circuit", "demo", "--period", "2"), "period=2.* at least 3"),
    "a probe past the context": (("circuit", "{llama}", "--period", "120"), "at most 256"),
    "a negative seed": (("circuit", "demo", "--seed", "-1"), "seed=-1"),
    "a folder that is not there": (("circuit", "./nowhere"), "not a folder"),
    "hidden queries and keys": (("circuit", "{mpt}", "--head", "L1H0"), "hides its queries and keys"),
    "an unknown dtype": (("circuit", "demo", "--dtype", "float31"), "float31.* float32"),
}


@pytest.fixture(scope="module")
def mpt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "mpt"
    tiny_causal_lm("mpt").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_exit_code_2(case, headscope, random_llama, mpt):
    arguments, said = CASES[case]
    ran = headscope(*(one.format(llama=random_llama, mpt=mpt) for one in arguments))
    assert ran.code == 2
    assert ran.out == ""
    (line,) = ran.err.splitlines()
    assert line.startswith("headscope: ")
    assert re.search(said, line), line


def test_help_shows_an_example(headscope):
    ran = headscope("circuit", "--help")
    assert ran.code == 0
    assert "headscope circuit demo --out results/demo" in ran.out
