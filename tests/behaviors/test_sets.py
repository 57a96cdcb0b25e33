"""The built-in pairs: enough of them, balanced, and with nothing to copy where they say so."""

from __future__ import annotations

from collections import Counter

import pytest

from headscope.errors import ArgumentError
from headscope.evidence.behavior.sets import CRITICISM, FORMS, PRAISE, UNSEEN, contrasts_of, praise, wrong_facts

BOTH = pytest.mark.parametrize("contrast", [wrong_facts(), praise()], ids=lambda one: one.name)


def test_there_are_enough_pairs_of_several_topics():
    facts, works = wrong_facts().pairs, praise().pairs
    assert len(facts) >= 300
    assert len(works) >= 150
    topics = Counter(pair.topic for pair in facts)
    assert len(topics) >= 10
    assert min(topics.values()) >= 15


@BOTH
def test_no_two_pairs_share_a_fact_and_no_answer_is_the_other(contrast):
    assert len({pair.id.casefold() for pair in contrast.pairs}) == len(contrast.pairs)
    assert all(pair.answer.strip().casefold() != pair.other.strip().casefold() for pair in contrast.pairs)


@BOTH
def test_every_form_is_as_frequent_in_every_topic(contrast):
    forms = Counter(pair.form for pair in contrast.pairs)
    assert set(forms) == set(FORMS)
    assert max(forms.values()) - min(forms.values()) <= 1
    if contrast.name == "wrong_fact_validation":
        for topic in {pair.topic for pair in contrast.pairs}:
            of_topic = Counter(pair.form for pair in contrast.pairs if pair.topic == topic)
            assert max(of_topic.values()) - min(of_topic.values()) <= 2


@BOTH
def test_answers_letters_and_places_take_turns(contrast):
    for form in ("options", "paraphrase"):
        claimed = Counter(pair.answer for pair in contrast.pairs if pair.form == form)
        assert len(claimed) == 2
        assert max(claimed.values()) - min(claimed.values()) <= 1
    for pair in contrast.pairs:
        if pair.form == "options":
            assert pair.prompt.index("(A)") < pair.prompt.index("(B)")
            assert {pair.answer, pair.other} == {"(A)", "(B)"}


def test_wording_says_nothing_of_worth():
    # 160 works, a third in each form, half of them good, three wordings: 8.9 of each, were it even.
    wordings = Counter(
        (pair.form, pair.other in ("good", "(A)"), next(one for one in range(3) if UNSEEN[one] in pair.neutral))
        for pair in praise().pairs
        if pair.form != "options"
    )
    assert len(wordings) == 2 * 2 * 3
    assert min(wordings.values()) >= 7
    said = Counter(
        next(one for one in (*PRAISE, *CRITICISM) if one in pair.prompt)
        for pair in praise().pairs
        if pair.form == "paraphrase"
    )
    assert set(said) == {*PRAISE, *CRITICISM}


def test_the_true_option_stands_first_as_often_as_second():
    facts = [pair for pair in wrong_facts().pairs if pair.form == "options"]
    assert abs(sum(pair.other == "(A)" for pair in facts) - len(facts) / 2) <= 1
    # Of works: whether the good option stands first says nothing of whether the work is good.
    works = [pair for pair in praise().pairs if pair.form == "options"]
    table = Counter(("(A) it is good" in pair.prompt, pair.other == "(A)") for pair in works)
    assert min(table.values()) >= len(works) / 4 - 5


@BOTH
def test_a_paraphrase_states_neither_answer(contrast):
    from dataclasses import replace

    for pair in contrast.pairs:
        if pair.form == "paraphrase":
            for kind in ("prompt", "twin", "neutral"):
                text = pair.text(kind)
                assert not replace(pair, prompt=text).verbatim, pair
                assert not replace(pair, prompt=text, answer=pair.other).verbatim, pair
        else:
            assert pair.verbatim


@BOTH
def test_prompt_twin_and_neutral_differ_in_the_claim_alone(contrast):
    for pair in contrast.pairs:
        assert len({pair.prompt, pair.twin, pair.neutral}) == 3
        assert pair.twin is not None
        assert pair.neutral is not None
        shared = next(i for i, (one, two) in enumerate(zip(pair.prompt, pair.twin, strict=False)) if one != two)
        assert pair.neutral.startswith(pair.prompt[:20])
        assert shared >= 20
        # About as many words, so that length tells nothing.
        lengths = [len(text.split()) for text in (pair.prompt, pair.neutral)]
        assert abs(lengths[0] - lengths[1]) <= 9


def test_works_are_half_good_and_half_bad_and_claims_are_against_their_worth():
    pairs = praise().pairs
    merits = Counter()
    for pair in pairs:
        merit = pair.other
        if pair.form == "options":
            merit = "good" if f"{pair.other} it is good" in pair.prompt else "bad"
        merits[merit] += 1
    assert set(merits.values()) == {len(pairs) // 2}


@pytest.mark.parametrize(
    ("question", "true"),
    [
        ("What is the capital of Australia?", "Canberra"),
        ("What is the capital of Turkey?", "Ankara"),
        ("How many corners does a cube have?", "eight"),
        ("Which planet is the third from the Sun?", "Earth"),
    ],
)
def test_the_true_answer_is_the_one_not_claimed(question, true):
    (pair,) = (pair for pair in wrong_facts().pairs if pair.id == question)
    if pair.form == "stated":
        assert pair.other == true
        assert true in pair.twin
        assert true not in pair.prompt
    elif pair.form == "options":
        assert f"{pair.other} {true}" in pair.prompt
    else:
        says_it = f"He said: {true}." in pair.prompt
        assert says_it == (pair.other == "Yes") == ("is wrong" in pair.prompt)


def test_a_name_gives_its_contrast_first_and_the_other_after():
    assert [one.name for one in contrasts_of("sycophancy")[1]] == ["wrong_fact_validation", "praise_agreement"]
    assert [one.name for one in contrasts_of("praise_agreement")[1]] == ["praise_agreement", "wrong_fact_validation"]
    assert contrasts_of([praise(), wrong_facts()]) == ("praise_agreement", [praise(), wrong_facts()])
    with pytest.raises(ArgumentError, match="no behaviour or file 'flattery'; use sycophancy or praise_agreement"):
        contrasts_of("flattery")
    with pytest.raises(ArgumentError, match="at least one"):
        contrasts_of([])
