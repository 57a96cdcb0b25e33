"""A user's own tokens and text: what is read of them, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import headscope as hs
from benchmarks.tiny import tiny_causal_lm
from headscope import Probe, probe_text, probe_tokens
from headscope.errors import TokenError
from headscope.probes.probe import check_fits, probe_of


def lists(probe: Probe) -> list[list[int]]:
    return [prompt.tolist() for prompt in probe.prompts]


def word_tokenizer(*, start: str | None = "<s>", adds_start: bool = False) -> PreTrainedTokenizerFast:
    """Ids: <s> 0, <unk> 1, the 2, cat 3, sat 4."""
    words = ["<s>", "<unk>", "the", "cat", "sat"]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if adds_start:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", **({"bos_token": start} if start else {}))


@pytest.fixture(scope="module")
def gpt2():
    # 128 token ids, 128 positions; the config's start token is 127.
    return tiny_causal_lm("gpt2")


# ---- probe_tokens


@pytest.mark.parametrize(
    ("token_ids", "wanted"),
    [
        ([5, 6, 7], [[5, 6, 7]]),
        ((5, 6, 7), [[5, 6, 7]]),
        ([[5, 6, 7], [8, 9, 5]], [[5, 6, 7], [8, 9, 5]]),
        ([[5, 6, 7], [8]], [[5, 6, 7], [8]]),
        ([(5, 6), np.array([7])], [[5, 6], [7]]),
        (iter([[5], [6, 7]]), [[5], [6, 7]]),
        (np.array([5, 6, 7], dtype=np.uint8), [[5, 6, 7]]),
        (np.array([[5, 6], [7, 8]], dtype=np.int32), [[5, 6], [7, 8]]),
        (torch.tensor([5, 6]), [[5, 6]]),
        (torch.tensor([[5, 6], [7, 8]]), [[5, 6], [7, 8]]),
        ([torch.tensor([5, 6]), torch.tensor([7])], [[5, 6], [7]]),
        ([0], [[0]]),
    ],
)
def test_token_ids_are_read_from_lists_arrays_and_tensors(token_ids, wanted):
    probe = probe_tokens(token_ids)
    assert lists(probe) == wanted
    assert {prompt.dtype for prompt in probe.prompts} == {np.dtype(np.int64)}
    assert probe.settings == {"kind": "tokens", "n_prompts": len(wanted)}
    assert probe.n_tokens == sum(map(len, wanted))
    assert probe.controls is None
    assert probe.more is None


def test_the_probe_does_not_share_memory_with_what_it_was_made_from():
    given = np.array([[5, 6, 7]])
    probe = probe_tokens(given)
    given[0, 0] = 99
    assert lists(probe) == [[5, 6, 7]]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda mask: np.array(mask, dtype=bool)])
def test_padding_is_cut_off_on_either_side(kind):
    # The pad id, 0, is also a token of prompt 1: only the mask tells.
    ids = [[0, 0, 5, 6], [7, 0, 8, 9], [5, 6, 0, 0], [0, 5, 6, 0]]
    mask = [[0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 0]]
    assert lists(probe_tokens(ids, attention_mask=kind(mask))) == [[5, 6], [7, 0, 8, 9], [5, 6], [5, 6]]


def test_a_mask_of_ragged_prompts_is_ragged():
    assert lists(probe_tokens([[0, 5], [6, 7, 8]], attention_mask=[[0, 1], [1, 1, 1]])) == [[5], [6, 7, 8]]
    assert lists(probe_tokens([0, 5, 6], attention_mask=[0, 1, 1])) == [[5, 6]]


def test_a_mask_that_does_not_fit_is_refused():
    with pytest.raises(TokenError, match="the attention mask of prompt 1 has a hole"):
        probe_tokens([[5, 6, 7], [5, 6, 7]], attention_mask=[[1, 1, 1], [1, 0, 1]])
    with pytest.raises(TokenError, match="the attention mask and the token ids differ in shape"):
        probe_tokens([[5, 6, 7]], attention_mask=[[1, 1]])
    with pytest.raises(TokenError, match="the attention mask and the token ids differ in shape"):
        probe_tokens([[5, 6], [7, 8]], attention_mask=[[1, 1]])
    with pytest.raises(TokenError, match="prompt 1 is empty"):
        probe_tokens([[5, 6], [0, 0]], attention_mask=[[1, 1], [0, 0]])


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [
        ([], "there is no prompt"),
        (np.zeros((0, 4), dtype=int), "there is no prompt"),
        ([[]], "prompt 0 is empty"),
        ([[5], []], "prompt 1 is empty"),
        (torch.zeros(2, 0, dtype=torch.long), "prompt 0 is empty"),
        ([[5, -1]], "prompt 0 holds token id -1"),
        ([[5], [6, -100]], "prompt 1 holds token id -100"),
        ([[5.0, 6.0]], "prompt 0 is not a list of whole numbers"),
        ([[5], [6.5]], "prompt 1 is not a list of whole numbers"),
        (torch.tensor([[0.5]]), "prompt 0 is not a list of whole numbers"),
        ([[True, False]], "prompt 0 is not a list of whole numbers"),
        ([["5"]], "prompt 0 is not a list of whole numbers"),
        ("cat", "prompt 0 is not a list of whole numbers"),
        ([[5, [6, 7]]], "prompt 0 is not a list of whole numbers"),
        ([[[5, 6]]], "prompt 0 is not a list of whole numbers"),
        ([None], "prompt 0 is not a list of whole numbers"),
        (torch.zeros(1, 2, 3, dtype=torch.long), r"\[prompt, position\]"),
        (5, r"\[prompt, position\]"),
        (None, r"\[prompt, position\]"),
    ],
)
def test_what_are_no_token_ids_is_refused(token_ids, message):
    with pytest.raises(TokenError, match=message):
        probe_tokens(token_ids)


# ---- probe_text


def test_text_starts_with_the_start_token_once(gpt2):
    plain = hs.load(gpt2, tokenizer=word_tokenizer())
    adding = hs.load(gpt2, tokenizer=word_tokenizer(adds_start=True))
    for model in (plain, adding):
        assert lists(probe_text(model, "the cat sat")) == [[0, 2, 3, 4]]
    assert lists(probe_text(plain, "the cat sat", bos=False)) == [[2, 3, 4]]
    # Text that spells the start token does not get a second one.
    assert lists(probe_text(plain, "<s> cat")) == [[0, 3]]


def test_text_without_a_start_token_is_left_alone(gpt2):
    # The config has one (127), but the tokenizer, which knows better, has none.
    model = hs.load(gpt2, tokenizer=word_tokenizer(start=None))
    assert lists(probe_text(model, "the cat")) == [[2, 3]]


def test_several_texts_are_several_prompts_of_their_own_length(gpt2):
    model = hs.load(gpt2, tokenizer=word_tokenizer())
    probe = probe_text(model, ["the cat sat", "cat"])
    assert lists(probe) == [[0, 2, 3, 4], [0, 3]]
    assert probe.settings == {"kind": "text", "n_prompts": 2, "bos": True}


@pytest.mark.parametrize("text", ["", "   ", [], ["the", ""]])
def test_empty_text_is_refused(gpt2, text):
    with pytest.raises(TokenError, match="the text is empty"):
        probe_text(hs.load(gpt2, tokenizer=word_tokenizer()), text)


def test_text_without_a_tokenizer_is_refused(gpt2):
    with pytest.raises(TokenError, match="has no tokenizer, so it cannot read text; give token ids, or load it with"):
        probe_text(hs.load(gpt2), "the cat")


def test_probes_are_compared_as_objects():
    # Arrays have no truth value: `==` of two probes with equal tokens must not raise, nor must a set of probes.
    one, other = probe_tokens([5, 6]), probe_tokens([5, 6])
    assert one == one
    assert one != other
    assert len({one, other}) == 2


# ---- check_fits


def test_a_prompt_must_fit_the_context(gpt2):
    model = hs.load(gpt2)
    check_fits(probe_tokens([[1] * 128]), model)
    with pytest.raises(TokenError, match="a prompt has 129 tokens, but .* reads at most 128; shorten"):
        check_fits(probe_tokens([[1], [1] * 129]), model)


def test_a_token_must_be_in_the_vocabulary(gpt2):
    model = hs.load(gpt2)
    check_fits(probe_tokens([0, 127]), model)
    with pytest.raises(TokenError, match="token id 128 is outside the vocabulary of .*, whose ids run from 0 to 127"):
        check_fits(probe_tokens([[1], [0, 128]]), model)


def test_a_probe_made_by_hand_is_checked_too(gpt2):
    def made(*prompts, controls=None):
        rows = [tuple(np.asarray(row, dtype=np.int64) for row in given) for given in (prompts, controls or ())]
        return Probe(prompts=rows[0], controls=rows[1] if controls else None, settings={})

    model = hs.load(gpt2)
    check_fits(made([1, 2], controls=[[1, 3]]), model)
    with pytest.raises(TokenError, match="token id 128 is outside"):
        check_fits(made([1, 2], controls=[[1, 128]]), model)
    with pytest.raises(TokenError, match="the controls and the prompts differ in length"):
        check_fits(made([1, 2], [3, 4], controls=[[1, 3]]), model)
    with pytest.raises(TokenError, match="prompt 0 holds token id -1"):
        check_fits(made([1, -1]), model)
    with pytest.raises(TokenError, match="there is no prompt"):
        check_fits(made(), model)


def test_half_of_a_surrogate_pair_is_no_text(gpt2):
    model = hs.load(gpt2, tokenizer=word_tokenizer())
    with pytest.raises(TokenError, match=r"text 1 holds half of a surrogate pair at character 4, .*; read the file"):
        probe_text(model, ["the cat", "the \ud800 cat"])


# ---- templated text, and padding


@pytest.mark.parametrize("adds_start", [True, False])
@pytest.mark.parametrize("text", ["<s> the cat sat", "the cat sat"])
def test_a_text_gets_one_start_token_whoever_writes_it(gpt2, adds_start, text):
    # A chat template writes the start token, and the tokenizer adds its own: two, where one is meant.
    model = hs.load(gpt2, tokenizer=word_tokenizer(adds_start=adds_start))
    assert lists(probe_text(model, text)) == [[0, 2, 3, 4]]


def padded(pad: str) -> PreTrainedTokenizerFast:
    tokenizer = word_tokenizer()
    tokenizer.pad_token = pad
    return tokenizer


@pytest.mark.parametrize(
    ("pad", "rows", "says"),
    [
        ("<unk>", [[2, 3, 4], [1, 1, 4]], "prompt 1 begins with 2 padding tokens"),
        ("<unk>", [[2, 3, 4], [2, 3, 1]], "prompt 1 ends with 1 padding token"),
        ("<s>", [[0, 2, 3, 4], [0, 0, 0, 4]], "prompt 1 begins with 3 padding tokens"),
    ],
)
def test_padding_without_a_mask_is_refused_and_with_one_cut_off(gpt2, pad, rows, says):
    model = hs.load(gpt2, tokenizer=padded(pad))
    with pytest.raises(TokenError, match=f"{says}.*attention_mask"):
        check_fits(probe_tokens(rows), model)
    own = model.pad_token_id
    mask = [[int(one != own) for one in row] for row in rows]
    check_fits(probe_tokens(rows, attention_mask=mask), model)


def test_a_start_token_that_also_pads_may_stand_alone(gpt2):
    check_fits(probe_tokens([[0, 2, 3], [2, 3, 0]]), hs.load(gpt2, tokenizer=padded("<s>")))


# ---- messages


def test_messages_go_through_the_chat_template_without_a_second_start_token(gpt2):
    tokenizer = word_tokenizer(adds_start=True)
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %} the {{ m['content'] }}{% endfor %}"
    model = hs.load(gpt2, tokenizer=tokenizer)
    turns = [{"role": "user", "content": "cat sat"}, {"role": "assistant", "content": "sat"}]
    # <s>, then of each turn "the" and its words; the start token that the tokenizer adds to text is not put before it.
    assert lists(probe_of(model, turns)) == [[0, 2, 3, 4, 2, 4]]


def test_messages_need_a_chat_template(gpt2):
    model = hs.load(gpt2, tokenizer=word_tokenizer())
    with pytest.raises(TokenError, match="has no chat template, so it cannot read messages; give text or token ids"):
        probe_of(model, [{"role": "user", "content": "cat"}])
