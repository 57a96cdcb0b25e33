"""Pairs: what a tokenizer makes of them, which token decides, and what is left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import headscope as hs
from headscope.errors import TokenError
from headscope.planted.deferring import AblatedHeads, tokenizer
from headscope.probes.pairs import Contrast, Pair, claim_places, read_pairs, shared_end, shared_start
from headscope.training.loop import attention_only_llama


@pytest.fixture(scope="module")
def words():
    """An untrained model of the planted language: one word is one token."""
    hf = attention_only_llama(vocab_size=256, bos_token_id=0, n_heads=2, d_model=16)
    return hs.load(hf.eval(), tokenizer=tokenizer())


@pytest.fixture(scope="module")
def demo():
    return hs.load("demo")


def many(pair: Pair, count: int = 16) -> Contrast:
    return Contrast(name="test", pairs=tuple(replace(pair, id=str(number)) for number in range(count)))


PLAIN = Pair(id="x", prompt="x = values[name", twin="x = values(name", answer="]", other=")")


def test_the_deciding_token_is_the_first_in_which_the_answers_differ(words):
    reading = read_pairs(words, AblatedHeads.of(0).facts())
    pair = reading.pairs[0]
    ids = words.tokenizer.get_vocab()
    assert reading.tokens["prompt"][0].tolist() == [0, *(ids[word] for word in pair.prompt.split())]
    assert reading.answer["prompt"][0] == ids[pair.answer.strip()]
    assert reading.other["neutral"][0] == ids[pair.other.strip()]


def test_answers_of_several_tokens_are_read_up_to_where_they_part(demo):
    # The tokenizer of demo spells these words with several tokens; they begin alike.
    pair = replace(PLAIN, answer=" interstellar", other=" interstate")
    reading = read_pairs(demo, many(pair))
    whole = [demo.tokenizer(pair.prompt + answer)["input_ids"] for answer in (pair.answer, pair.other)]
    parted = next(i for i, (one, two) in enumerate(zip(*whole, strict=False)) if one != two)
    assert parted > len(demo.tokenizer(pair.prompt)["input_ids"])
    assert reading.tokens["prompt"][0].tolist() == whole[0][:parted]
    assert (reading.answer["prompt"][0], reading.other["prompt"][0]) == (whole[0][parted], whole[1][parted])


def test_a_user_speaks_in_a_dialogue_where_there_is_no_chat_template(demo):
    pair = Pair(id="x", prompt="Is it 3?", neutral="What is it?", answer="four", other="three", lead="It is")
    reading = read_pairs(demo, many(pair))
    text = demo.tokenizer.decode(reading.tokens["prompt"][0], skip_special_tokens=True)
    assert text.startswith("User: Is it 3?\nAssistant: It is")


TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)


def test_the_tokenizers_own_chat_template_is_used_also_for_earlier_turns(demo):
    chat = replace(demo, tokenizer=hs.load("demo").tokenizer)
    chat.tokenizer.chat_template = TEMPLATE
    turns = "What is it?\nAssistant: It is four.\nUser: Are you sure?"
    pair = Pair(id="x", prompt=turns, neutral="What is it?", answer="three", other="four", lead="It is")
    reading = read_pairs(chat, many(pair))
    expected = "<user>What is it?\n<assistant>It is four.\n<user>Are you sure?\n<assistant>\nIt is"
    whole = chat.tokenizer(expected + " three", add_special_tokens=False)["input_ids"]
    found = reading.tokens["prompt"][0].tolist()
    assert found == whole[: len(found)]
    assert chat.tokenizer.decode(found).startswith(expected)
    # No lead: the answer follows the template's own end without a space.
    bare = read_pairs(chat, many(replace(pair, lead="")))
    whole = chat.tokenizer("<user>What is it?\n<assistant>\nfour", add_special_tokens=False)["input_ids"]
    at = len(bare.tokens["neutral"][0])
    assert [*bare.tokens["neutral"][0], bare.other["neutral"][0]] == whole[: at + 1]


def test_pairs_that_cannot_be_read_are_left_out_with_their_reason(demo):
    same = replace(PLAIN, id="same", answer="]", other="]]")
    long = replace(PLAIN, id="long", prompt="x " * 600 + "[")
    contrast = many(PLAIN)
    reading = read_pairs(demo, replace(contrast, pairs=(same, *contrast.pairs, long)))
    assert reading.pairs == contrast.pairs
    assert set(reading.left_out) == {"same", "long"}
    assert "it reads at most 512" in reading.left_out["long"]


def test_too_few_readable_pairs_are_refused_with_a_reason(demo, words):
    with pytest.raises(TokenError, match="can read 15 of the 15 pairs of test, and 16 are needed"):
        read_pairs(demo, many(PLAIN, 15))
    with pytest.raises(TokenError, match="can read 0 of the 16 pairs of test"):
        read_pairs(words, many(PLAIN))
    with pytest.raises(TokenError, match="has no tokenizer"):
        read_pairs(replace(words, tokenizer=None), many(PLAIN))


def test_the_claim_is_where_the_twins_differ():
    prompt, twin = np.array([0, 5, 6, 7, 8, 3]), np.array([0, 5, 9, 8, 3])
    assert claim_places(prompt, twin).tolist() == [2, 3]
    assert (shared_start(prompt, twin), shared_end(prompt, twin)) == (2, 2)
    assert claim_places(prompt, prompt).tolist() == []


@pytest.mark.parametrize(
    ("answer", "verbatim"), [(" Lyon", True), ("lyon", True), ("Ly", False), ("Paris", False), ("(A)", True)]
)
def test_verbatim_means_that_the_whole_answer_stands_in_the_prompt(answer, verbatim):
    pair = Pair(id="x", prompt="(A) It is Lyon, I think.", neutral="", answer=answer, other="x")
    assert pair.verbatim == verbatim


def test_a_contrast_has_the_kinds_that_all_its_pairs_have():
    both = replace(PLAIN, neutral="x = ")
    assert Contrast(name="x", pairs=(both, both)).kinds == ("prompt", "twin", "neutral")
    assert Contrast(name="x", pairs=(both, PLAIN)).kinds == ("prompt", "twin")


def test_the_difference_is_the_log_ratio_of_the_answers_probabilities(words):
    # One word is one token here, so that d is log p(answer) - log p(other) and nothing is approximate.
    from headscope.evidence.behavior.measure import ContrastRunner, ForwardCounter

    reading = read_pairs(words, AblatedHeads.of(0).praise())
    runner = ContrastRunner(words, reading, ForwardCounter(0))
    for kind in ("prompt", "twin", "neutral"):
        tokens = torch.from_numpy(np.stack(reading.tokens[kind]))
        with torch.no_grad():
            log_p = words.hf(input_ids=tokens).logits[:, -1].double().log_softmax(-1)
        ids = [torch.from_numpy(part[kind])[:, None] for part in (reading.answer, reading.other)]
        wanted = (log_p.gather(1, ids[0]) - log_p.gather(1, ids[1]))[:, 0]
        np.testing.assert_allclose(runner.clean[kind], wanted.numpy(), atol=1e-5)
