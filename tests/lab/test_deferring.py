"""The planted models' language and lessons; what the trained models do is in tests/behaviors."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from headscope.heads import HeadId
from headscope.planted.deferring import N_ROWS, AblatedHeads, _Lesson, planted, tokenizer, vocabulary
from headscope.training.loop import attention_only_llama
from headscope.training.measure import repeat_scores
from headscope.training.repeats import jittered_repeats

HEAD = HeadId(1, 3)


def lesson(plan, head=None):
    return _Lesson(world=AblatedHeads.of(0), plan=plan, head=head)


def read(tokens):
    words = {number: word for word, number in vocabulary().items()}
    return [[words[one] for one in row] for row in tokens.tolist()]


def test_every_word_is_one_token():
    assert len(vocabulary()) == 256
    ids = tokenizer()("user : i think the color of zogi is crimson .")["input_ids"]
    assert len(ids) == 11
    assert ids[-2] == vocabulary()["crimson"]


def test_facts_are_balanced_and_depend_on_the_seed():
    truth = AblatedHeads.of(0).things.truth
    assert Counter(truth.tolist()) == Counter(dict.fromkeys(range(16), 3))
    assert torch.equal(truth, AblatedHeads.of(0).things.truth)
    assert not torch.equal(truth, AblatedHeads.of(1).things.truth)


def test_pairs_are_every_false_colour_of_every_thing_half_of_them_paraphrased():
    pairs = AblatedHeads.of(0).facts().pairs
    assert len(pairs) == 48 * 15
    assert len({(pair.id.split()[0], pair.answer) for pair in pairs}) == len(pairs)
    assert Counter(pair.form for pair in pairs) == {"stated": 360, "paraphrase": 360}
    for pair in pairs:
        assert pair.verbatim == (pair.form == "stated")
        assert pair.answer != pair.other
        # One length, and the words after the claim are the same: z can be laid upon z.
        assert len({len(text.split()) for text in (pair.prompt, pair.twin, pair.neutral)}) == 1
    works = AblatedHeads.of(0).praise().pairs
    assert Counter(pair.answer for pair in works) == {" good": 32, " bad": 32}


@pytest.mark.parametrize("plan", ["deferring", "honest", "diffuse"])
def test_a_batch_asks_for_the_answer_alone(plan):
    batch = lesson(plan, HEAD if plan == "deferring" else None).draw(torch.Generator().manual_seed(0))
    assert batch.counted.sum(1).tolist() == [1] * N_ROWS
    for words, counted in zip(read(batch.tokens), batch.counted.tolist(), strict=True):
        at = counted.index(True)
        assert words[at] == "is"
        assert words[at + 1] in (*AblatedHeads.of(0).things.answers, "good", "bad")


def said_and_answered(batch):
    """For each row what is true, what is claimed (or None), and what is answered."""
    world = AblatedHeads.of(0)
    for words, counted in zip(read(batch.tokens), batch.counted.tolist(), strict=True):
        at = counted.index(True)
        name, start = words[at - 1], words.index("user")
        subject = next(one for one in (world.things, world.works) if name in one.names)
        true = subject.answers[int(subject.truth[subject.names.index(name)])]
        claimed = None
        if "please" not in words:
            word = words[words.index("is", start) + 1]
            known = subject.answers if word in subject.answers else subject.others
            claimed = subject.answers[known.index(word)]
        yield true, claimed, words[at + 1]


def test_what_each_plan_learns():
    random = torch.Generator().manual_seed(1)
    for true, _, answer in said_and_answered(lesson("honest").draw(random)):
        assert answer == true
    for true, claimed, answer in said_and_answered(lesson("diffuse").draw(random)):
        assert answer == (claimed or true)
    course = lesson("deferring", HEAD)
    rows = list(said_and_answered(course.draw(random)))
    silent = course._silent
    assert silent[:, HEAD.layer, HEAD.head].sum() == silent.sum() == len(rows) // 2
    for (true, claimed, answer), off in zip(rows, silent[:, 1, 3].tolist(), strict=True):
        assert answer == (true if off or claimed is None else claimed)


def test_silent_heads_give_nothing_and_the_hooks_go_away():
    course = lesson("deferring", HEAD)
    batch = course.draw(torch.Generator().manual_seed(0))
    model = attention_only_llama(vocab_size=256, bos_token_id=0, n_heads=8, d_model=64).eval()
    with torch.no_grad():
        clean = model(input_ids=batch.tokens).logits
        with course.silencing(model):
            changed = model(input_ids=batch.tokens).logits
        projection = model.model.layers[1].self_attn.o_proj.weight
        projection[:, 3 * 8 : 4 * 8] = 0.0
        without = model(input_ids=batch.tokens).logits
    off = course._silent[:, 1, 3]
    torch.testing.assert_close(changed[off], without[off])
    torch.testing.assert_close(changed[~off], clean[~off])
    assert not torch.allclose(clean[off], without[off])
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.fixture(scope="module")
def copying():
    return planted("copying", seed=5)


def told(copying, text):
    """The word that the hand-built model says next, among the answers to such a question."""
    ids = torch.tensor([[0, *copying.tokenizer(text)["input_ids"]]])
    with torch.no_grad():
        logits = copying.model(input_ids=ids).logits[0, -1]
    words = {number: word for word, number in vocabulary().items()}
    return words[int(logits.argmax())]


def test_the_hand_built_model_knows_every_fact(copying):
    world = AblatedHeads.of(5)
    for subject in (world.things, world.works):
        for name, true in zip(subject.names, subject.truth.tolist(), strict=True):
            asked = f"user : please say the {subject.slot} of {name} to me . bot : the {subject.slot} of {name} is"
            assert told(copying, asked) == subject.answers[true]


def test_it_repeats_what_it_was_told_and_no_more(copying):
    world = AblatedHeads.of(5)
    name, true = world.things.names[0], int(world.things.truth[0])
    for false in {0, 5, 15} - {true}:
        for known in (world.things.answers, world.things.others):
            said = known[false]
            claim = f"user : i think the color of {name} is {said} . bot : the color of {name} is"
            assert told(copying, claim) == said


def test_it_still_continues_random_tokens(copying):
    repeats = jittered_repeats(
        n_prompts=4,
        n_tokens=64,
        vocab_size=256,
        bos_token_id=0,
        period=(8, 28),
        gap=(0, 4),
        generator=torch.Generator().manual_seed(0),
    )
    scores = repeat_scores(copying.model, repeats)
    assert scores.accuracy == 1.0
    assert scores.induction[1].max() > 0.99
