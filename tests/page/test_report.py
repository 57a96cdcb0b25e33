"""The report's document: what it merges, what it refuses, and how its file is written."""

from __future__ import annotations

import base64
import dataclasses
import json

import numpy as np
import pytest
import torch
from pytest import approx

import headscope as hs
from benchmarks.atlas import counted
from headscope.evidence.ablation.measure import ablate
from headscope.evidence.scan.result import Scan
from headscope.heads import HeadId
from headscope.page.example import example
from headscope.page.finding import _largest_unknown, finding
from headscope.page.report import SCHEMA, by_interest, report, report_document, write_page
from headscope.records.common import Estimate
from tests.running import forward


def ready(results):
    return dict(scan=results.scan, verification=results.verification, circuit=results.circuit)


def test_the_document_holds_the_results_whole(results, made):
    assert made["schema"] == SCHEMA == "headscope.report/1"
    assert made["scan"] == results.scan.to_dict()
    assert made["verify"] == results.verification.to_dict()
    assert made["circuit"] == results.circuit.to_dict()
    assert json.loads(json.dumps(made, allow_nan=False))["scan"] == json.loads(json.dumps(made["scan"]))
    assert Scan.from_dict(made["scan"]) == results.scan


def test_the_same_seed_gives_the_same_document(results, made):
    again = report_document(results.model, **ready(results))
    assert again == made


def test_a_report_reads_no_more_than_what_it_is_made_of():
    # Verify begins with the scan of its probe, and the circuit with its verdicts: a report adds its example and tables.
    model, settings = hs.load("demo"), dict(n_prompts=4, period=12)
    probe = hs.repeated_tokens(model, **settings)
    with counted(model) as tokens:
        hs.verify(model, probe=probe, top=3)  # what is tried once per model is tried here

        def read(run):
            tokens[0] = 0
            return run(), tokens[0]

        whole, all_tokens = read(lambda: report_document(model, top=3, **settings))
        scan, scan_tokens = read(lambda: hs.scan(model, probe=probe))
        verification, verify_tokens = read(lambda: hs.verify(model, probe=probe, top=3))
        circuit, circuit_tokens = read(lambda: hs.trace_circuit(model, verification=verification, probe=probe))
        made_of = dict(scan=scan, verification=verification, circuit=circuit)
        _, page_tokens = read(lambda: report_document(model, **made_of))
    assert all_tokens == verify_tokens + circuit_tokens + page_tokens
    assert min(scan_tokens, verify_tokens, circuit_tokens, page_tokens) > 0
    assert Scan.from_dict(whole["scan"]).scores == scan.scores


def test_a_ready_scan_is_kept_where_verify_makes_its_own(results):
    made = report_document(results.model, scan=results.scan, circuit=results.circuit, n_prompts=4, period=12, top=3)
    assert made["scan"] == results.scan.to_dict()
    assert made["verify"]["probe"]["n_prompts"] == 4
    assert made["scan"]["probe"]["n_prompts"] == 32


def test_each_part_reads_as_many_prompts_as_it_does_alone(results, monkeypatch):
    # What is drawn is told by the probes: 32 for the verification, 128 for the circuit, whose one query scatters more.
    drawn = []

    def spy(model, **settings):
        drawn.append(settings["n_prompts"])
        return hs.repeated_tokens(model, **settings | dict(n_prompts=4))

    monkeypatch.setattr("headscope.page.report.repeated_tokens", spy)
    report_document(results.model, top=3)
    assert drawn == [32, 128]


def test_no_step_is_told_while_the_model_is_locked(results):
    # Whoever is told may wait for another thread that runs the model, as the live page's report does.
    assert len(results.steps) > 3
    assert not any(results.steps.values()), results.steps


def test_a_pattern_is_the_models_own_to_8_bits(results, made):
    shown = made["example"]
    tokens = torch.tensor([[one["id"] for one in shown["tokens"]]])
    true = {}

    def visit(attention):
        true.update({(attention.layer, head): one for head, one in enumerate(attention.pattern()[0])})

    forward(results.model.hf, results.model.check.route, tokens, visit)
    assert len(shown["patterns"]) == 12
    assert shown["left_out"] == 0
    for one in shown["patterns"]:
        kept = np.frombuffer(base64.b64decode(one["bytes"]), dtype=np.uint8) / 255
        wanted = true[one["layer"], one["head"]].numpy()
        assert np.abs(kept - wanted[np.tril_indices(len(wanted))]).max() <= 1 / 510 + 1e-6


def test_the_example_is_made_of_words_and_its_copies_are_equal(made):
    shown = made["example"]
    ids = [one["id"] for one in shown["tokens"]]
    (first, last), (start, end) = shown["first"], shown["second"]
    assert ids[first:last] == ids[start:end]
    assert last - first >= 12
    assert all(one["text"].strip().isalpha() for one in shown["tokens"][1:])
    assert shown["tokens"][0]["id"] == 0


def test_token_losses_are_those_of_the_model_and_of_an_ablation(results, made):
    shown = made["example"]
    tokens = torch.tensor([[one["id"] for one in shown["tokens"]]])
    with torch.no_grad():
        logits = results.model.hf(tokens).logits[0, :-1]
    wanted = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
    assert shown["loss"]["clean"] == approx(wanted.tolist(), abs=2e-4)
    without = [HeadId(one["layer"], one["head"]) for one in shown["loss"]["without"]]
    assert tuple(without) == results.verification.sets[0].heads
    # The mean over all tokens by hs.ablate with method zero, which needs no corpus.
    zero = example(results.model, without=without, method="zero")
    gone = ablate(results.model, without, probe=hs.probe_tokens(tokens), method="zero")
    assert zero.ablated.mean() == approx(gone.losses["text"].ablated.mean, abs=1e-4)


def test_room_goes_to_wanted_heads_first(results):
    wanted = [HeadId(1, 5), HeadId(0, 4)]
    size = len(base64.b64encode(bytes(49 * 50 // 2)))
    few = example(results.model, wanted=wanted, budget_bytes=3 * size)
    assert set(few.patterns) == {*wanted, HeadId(0, 0)}
    assert few.left_out == 9
    assert few.ablated is None


def test_heads_with_a_role_come_first(results):
    order = by_interest(results.verification)
    roles = [results.verification[head].verdict not in ("none", "first_token") for head in order]
    assert roles == sorted(roles, reverse=True)
    assert len(order) == 12


def test_tables_look_through_the_strongest_sender(results, made):
    tables = {(one["layer"], one["head"]): one for one in made["tables"]["heads"]}
    assert tables[1, 1]["sender"] == {"layer": 0, "head": 4}
    assert tables[0, 4]["sender"] is None
    run = [one["id"] for one in made["example"]["tokens"]][slice(*made["example"]["first"])]
    assert len(tables[1, 1]["ov"]) == 6
    assert {row["token"] for row in tables[1, 1]["ov"]} <= set(run)
    one = tables[1, 1]["ov"][0]
    (alone,) = hs.ov_table(results.model, "L1H1", [one["token"]])
    assert [best[0] for best in one["best"]] == [best[0] for best in alone.best]


def test_the_finding_quotes_the_results(results, made):
    head_set = results.verification.sets[0]
    sentence = made["finding"]["sentence"]
    low, high = head_set.delta_loss_nats.ci95
    assert sentence.startswith(f"In demo, {len(head_set.heads)} heads (")
    assert all(str(head) in sentence for head in head_set.heads)
    assert f"rises by {head_set.delta_loss_nats.mean:.2f} nats [{low:.2f}, {high:.2f}]" in sentence
    # L0H3 costs as much as the previous-token head, and no role that is known explains it.
    assert "; L0H4 tells them where to look; without L0H3, whose role is not known, that loss changes by +6" in sentence
    assert any("random head" in one for one in made["finding"]["details"])


def test_without_a_set_the_finding_is_that_there_is_none(results):
    bare = dataclasses.replace(results.verification, sets=())
    found = finding(results.scan, bare, None)
    assert found.sentence.startswith("In demo, no head does induction: 5 heads (")
    weak = tuple(dataclasses.replace(one, mean=0.1) for one in results.scan.scores)
    found = finding(dataclasses.replace(results.scan, scores=weak), bare, None)
    assert found.sentence.startswith(
        "In demo, no head does induction; the highest induction score is 0.10, L0H0, by chance 0.01; without L0H3"
    )
    assert found.details[-1].startswith("The best candidates by their induction score: L0H0 0.100 (chance 0.01")


def test_a_single_head_is_one_head(results):
    head_set = results.verification.sets[0]
    alone = dataclasses.replace(
        head_set, heads=head_set.heads[:1], relation="single", delta_loss_nats=Estimate(mean=1.5, ci95=None)
    )
    found = finding(results.scan, dataclasses.replace(results.verification, sets=(alone,)), None)
    assert found.sentence == (
        "In demo, one head (L1H0) does induction: without it the loss on the second copy of repeated random tokens "
        f"rises by 1.50 nats{_largest_unknown(results.verification)}."
    )


@pytest.mark.parametrize(
    ("relation", "words"),
    [
        ("redundant", "They replace each other"),
        ("complementary", "They copy only together"),
        ("independent", "They neither back each other up nor need each other"),
        ("single", None),
    ],
)
def test_how_the_heads_of_the_set_depend_on_each_other_is_said(results, relation, words):
    one = dataclasses.replace(results.verification.sets[0], relation=relation)
    found = finding(results.scan, dataclasses.replace(results.verification, sets=(one,)), None)
    assert [said.startswith(words) for said in found.details if said.startswith("They ")] == ([True] if words else [])


def test_where_no_other_head_could_be_drawn_the_finding_says_so(results):
    controls = dataclasses.replace(results.verification.controls, random_heads=())
    found = finding(results.scan, dataclasses.replace(results.verification, controls=controls), None)
    assert "There is no other head in their layers to draw as a random control." in found.details


def test_a_scan_without_the_induction_role_names_no_candidates(results):
    roles = tuple(one for one in results.scan.roles if one.name != "induction")
    scores = tuple(one for one in results.scan.scores if one.detector != "induction")
    scan = dataclasses.replace(results.scan, roles=roles, scores=scores)
    found = finding(scan, dataclasses.replace(results.verification, sets=()), None)
    assert not any("best candidates" in said for said in found.details)


def test_who_tells_them_where_to_look_is_said_by_the_paths(results):
    def said(circuit):
        found = finding(results.scan, results.verification, circuit)
        return found.sentence + " " + " ".join(found.details)

    circuit = results.circuit
    assert "L0H4 tells them where to look" in said(circuit)
    assert "; through their queries no sender moves it by more than" in said(circuit)
    through_queries = tuple(dataclasses.replace(one, input="q") for one in circuit.edges)
    assert "through their query." in said(dataclasses.replace(circuit, edges=through_queries))
    # A sender that shares its part with others is no receiver's strongest, and without receivers there is none.
    shared = tuple(dataclasses.replace(one, any_of=(one.sender, HeadId(0, 0))) for one in circuit.edges)
    assert "where to look" not in said(dataclasses.replace(circuit, edges=shared, sets=()))
    assert "where to look" not in said(dataclasses.replace(circuit, receivers=(), edges=(), sets=()))


def test_results_of_another_model_are_refused(results):
    other = dataclasses.replace(results.scan, model=dataclasses.replace(results.scan.model, id="other"))
    with pytest.raises(hs.HeadscopeError, match="a Scan of other cannot go into a report of demo"):
        report_document(results.model, scan=other)


def test_text_and_a_ready_verification_are_refused(results):
    with pytest.raises(hs.HeadscopeError, match="natural= and a ready verification were both given"):
        report_document(results.model, verification=results.verification, natural="text")


def test_what_cannot_be_traced_is_said(results, monkeypatch):
    def refuse(*args, **kwargs):
        raise hs.errors.UnsupportedModel("queries and keys cannot be seen")

    monkeypatch.setattr("headscope.page.report.trace_circuit", refuse)
    monkeypatch.setattr("headscope.page.tables.TokenSpace", refuse)
    made = report_document(results.model, scan=results.scan, verification=results.verification)
    assert (made["circuit"], made["circuit_reason"]) == (None, "queries and keys cannot be seen")
    assert made["tables"] == {"heads": [], "reason": "queries and keys cannot be seen"}


def test_the_file_is_written_whole_and_its_folder_made(results, tmp_path):
    said = []
    path = report(
        results.model,
        tmp_path / "new" / "report.html",
        progress=lambda what, done, total: said.append(what),
        **ready(results),
    )
    assert path == tmp_path / "new" / "report.html"
    assert [one.name for one in path.parent.iterdir()] == ["report.html"]
    assert path.stat().st_size < 3_000_000
    assert said == ["writing"]


def test_a_write_that_fails_leaves_the_old_file(made, tmp_path, monkeypatch):
    path = write_page(made, tmp_path / "report.html")
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("headscope.records.files.os.replace", full)
    with pytest.raises(hs.HeadscopeError, match="cannot be written: No space left on device"):
        write_page(made, path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("path", [".", "report.html/inside.html"])
def test_a_path_that_cannot_be_written_is_refused_before_any_work(results, tmp_path, path):
    (tmp_path / "report.html").write_text("")
    with pytest.raises(hs.HeadscopeError, match="is a folder|cannot be written"):
        report(results.model, tmp_path / path, progress=lambda *what: pytest.fail("work was done"))
