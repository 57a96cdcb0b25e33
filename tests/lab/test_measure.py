"""The lab's own measurements, against plain loops and closed forms."""

import math

import torch
from pytest import approx

from headscope.training.loop import attention_only_llama
from headscope.training.measure import repeat_scores, text_loss, unigram_entropy
from headscope.training.repeats import jittered_repeats


def tiny_model():
    return attention_only_llama(vocab_size=40, bos_token_id=0, n_heads=2, d_model=16, seed=1).eval()


def tiny_repeats():
    return jittered_repeats(
        n_prompts=3,
        n_tokens=24,
        vocab_size=40,
        bos_token_id=0,
        generator=torch.Generator().manual_seed(0),
        period=(3, 8),
        gap=(0, 3),
    )


def test_scores_are_the_means_that_plain_loops_find():
    model, repeats = tiny_model(), tiny_repeats()
    scores = repeat_scores(model, repeats)
    model.set_attn_implementation("eager")
    out = model(input_ids=repeats.tokens, output_attentions=True)
    losses, hits = [], []
    for layer in range(2):
        for head in range(2):
            on_target, on_previous = [], []
            for row in range(3):
                for query in range(24):
                    key = repeats.induction_key[row, query].item()
                    if query >= 1:
                        on_previous.append(out.attentions[layer][row, head, query, query - 1].item())
                    if key < 0:
                        continue
                    on_target.append(out.attentions[layer][row, head, query, key].item())
                    logits, target = out.logits[row, query], repeats.tokens[row, query + 1]
                    losses.append(-logits.log_softmax(-1)[target].item())
                    hits.append(logits.argmax() == target)
            assert scores.induction[layer, head].item() == approx(sum(on_target) / len(on_target))
            assert scores.previous_token[layer, head].item() == approx(sum(on_previous) / len(on_previous))
    assert scores.loss_nats == approx(sum(losses) / len(losses))
    assert scores.accuracy == approx(sum(hits) / len(hits))


def test_measuring_leaves_model_and_prompts_as_they_were():
    model, repeats = tiny_model(), tiny_repeats()
    implementation, tokens = model.config._attn_implementation, repeats.tokens.clone()
    repeat_scores(model, repeats)
    assert model.config._attn_implementation == implementation
    assert torch.equal(repeats.tokens, tokens)


def test_the_loss_of_a_model_that_knows_nothing_is_the_log_of_the_vocabulary():
    model = tiny_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    # 100 tokens in windows of 11 after the start token: 9 windows, 1 token left out.
    loss = text_loss(model, torch.arange(100) % 40, bos_token_id=0, n_tokens=12)
    assert loss == approx(math.log(40))


def test_the_entropy_of_a_text():
    # 3 of 4 tokens are id 1: 3/4 ln(4/3) + 1/4 ln 4
    expected = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert unigram_entropy(torch.tensor([1, 1, 0, 1]), vocab_size=9) == approx(expected)
    assert unigram_entropy(torch.tensor([5, 5]), vocab_size=9) == 0.0
