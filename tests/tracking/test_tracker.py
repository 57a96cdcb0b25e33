"""The tracker: the numbers of `hs.scan`, on models that stay as they were."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model, LlamaConfig, LlamaForCausalLM

import headscope as hs
from headscope.errors import ArgumentError, ModelError, NonFiniteError
from headscope.evidence.copying import TokenSpace
from headscope.evidence.emergence.live import untouched
from headscope.evidence.emergence.tracker import Tracker

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 120, "n_positions": 96}


def gpt2(kind=GPT2LMHeadModel):
    torch.manual_seed(0)
    return kind(GPT2Config(**SHAPE, bos_token_id=0, eos_token_id=0))


def llama():
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
    return LlamaForCausalLM(LlamaConfig(**shape, intermediate_size=32, vocab_size=120, max_position_embeddings=96))


@pytest.fixture(scope="module")
def demo():
    return hs.Tracker("demo")


@pytest.fixture(scope="module")
def seen(demo):
    return demo.measure(step=7, full=True)


def test_scores_are_the_very_numbers_of_a_scan(demo, seen):
    scan = hs.scan("demo", probe=demo.probe)
    assert seen.heads == tuple(one for one in scan.scores if one.detector in ("induction", "previous_token"))
    assert seen.strongest("induction") == scan.ranked("induction")[0]
    assert seen.step == 7


def test_losses_are_those_of_the_models_own_forward_pass(demo, seen):
    model = hs.load("demo").hf
    first, second = [], []
    for prompt in demo.probe.prompts:
        ids = prompt.tolist()
        with torch.no_grad():
            losses = -model(torch.tensor([ids])).logits[0].log_softmax(-1)
        # Query i is predictable when its token, followed by the same token, stood before.
        pairs = list(pairwise(ids))
        predictable = [i for i, pair in enumerate(pairs) if pair in pairs[:i]]
        second.append(np.mean([losses[i, ids[i + 1]].item() for i in predictable]))
        first.append(np.mean([losses[i, ids[i + 1]].item() for i in range(predictable[0])]))
    assert seen.second_copy_loss_nats.mean == pytest.approx(np.mean(second), abs=1e-5)
    assert seen.first_copy_loss_nats.mean == pytest.approx(np.mean(first), abs=1e-5)
    low, high = seen.second_copy_loss_nats.ci95
    assert low < seen.second_copy_loss_nats.mean < high


def test_the_full_record_holds_what_the_evidence_says(seen):
    model = hs.load("demo")
    assert seen.full.in_context == hs.icl(model).score
    assert seen.full.copying == tuple(
        TokenSpace(model).copying([hs.HeadId(layer, head)])
        for layer in range(model.n_layers)
        for head in range(model.n_heads)
    )
    composed = hs.composition(model, ["k"])
    # Heads of layer 0 read from nobody; each of layer 1 has its strongest sender.
    assert seen.full.composition == tuple(composed.ranked(f"L1H{head}", "k")[0] for head in range(model.n_heads))
    assert seen.missing == {}


def test_scalars_name_the_strongest(seen):
    scalars = seen.scalars()
    assert scalars["headscope/induction_max"] == max(one.mean for one in seen.heads if one.detector == "induction")
    assert scalars["headscope/second_copy_loss_nats"] == seen.second_copy_loss_nats.mean
    assert scalars["headscope/in_context_nats"] == seen.full.in_context.mean
    assert scalars["headscope/copying_max"] == max(one.direct.mean for one in seen.full.copying)
    assert scalars["headscope/k_composition_max"] == max(pair.score for pair in seen.full.composition)
    assert all(isinstance(value, float) for value in scalars.values())


def test_a_snapshot_is_a_document_and_back(seen):
    assert hs.Snapshot.from_dict(seen.to_dict()) == seen
    with pytest.raises(ArgumentError, match=r"headscope\.snapshot/1"):
        hs.Snapshot.from_dict({"schema": "headscope.scan/1"})


def state_of(model):
    """Everything about a model and the process that a measurement could change."""
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": [
            {name: list(value) for name, value in vars(module).items() if "hooks" in name and isinstance(value, dict)}
            for module in model.modules()
        ],
        "instance": [sorted(vars(module)) for module in model.modules()],
        "gradients": [None if one.grad is None else one.grad.tolist() for one in model.parameters()],
        "wants": [one.requires_grad for one in model.parameters()],
        "weights": [one.tolist() for one in [*model.parameters(), *model.buffers()]],
        "device": [one.device for one in model.parameters()],
        "config": model.config.to_dict(),
        "attention": model.config._attn_implementation,
        "numpy": [np.asarray(one).tolist() for one in np.random.get_state()],
        "torch": torch.random.get_rng_state().tolist(),
        "grad_mode": torch.is_grad_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
    }


def test_random_states_are_those_from_before():
    # Python's own is tried here alone: the checks of types that run while testing draw from it.
    model = gpt2()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    wanted = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    with untouched(model):
        torch.rand(5), np.random.rand(5), random.random()
        torch.manual_seed(8)
    assert (torch.rand(1), np.random.rand(), random.random()) == wanted


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_model_in_training_stays_as_it_was(make, attention):
    model = make().train()
    model.set_attn_implementation(attention)
    next(iter(model.children())).eval()  # mixed modes
    list(model.parameters())[-1].requires_grad_(False)
    ids = torch.randint(120, (2, 20))
    model(input_ids=ids, labels=ids).loss.backward()
    before = state_of(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = torch.is_autocast_enabled("cpu")
        tracker = Tracker(model)
        tracker.measure(step=0)
        tracker.measure(step=0, full=True)
        assert torch.is_autocast_enabled("cpu") == inside
    after = state_of(model)
    assert {name for name in before if before[name] != after[name]} == set()


@pytest.fixture
def fresh_accelerate():
    """Accelerate keeps its settings for the whole process, and other tests train with others."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_autocast_around_the_call_or_the_forward_changes_no_score(fresh_accelerate):
    # Accelerate wraps a model's forward in autocast this way, and keeps the model's own beside it.
    from accelerate import Accelerator

    plain = Tracker(gpt2()).measure(step=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Tracker(gpt2()).measure(step=0).scalars() == plain.scalars()
    wrapped = Accelerator(cpu=True, mixed_precision="bf16").prepare(gpt2())
    forward = wrapped.forward
    assert Tracker(wrapped).measure(step=0).scalars() == plain.scalars()
    assert wrapped.forward is forward


# Importing torch's compiler warns of code of torch's own.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_compiled_and_parallel_models_are_unwrapped():
    plain = Tracker(gpt2()).measure(step=0).scalars()
    inner = gpt2()
    compiled = torch.compile(inner, backend="eager")
    for wrapped in (compiled, nn.DataParallel(inner), torch.compile(nn.DataParallel(inner), backend="eager")):
        tracker = Tracker(wrapped)
        assert tracker.model.hf is inner
        assert tracker.measure(step=0).scalars() == plain

    def refuse(graph, inputs):
        raise AssertionError("compiled code ran")

    inner.compile(backend=refuse)  # in place
    assert Tracker(inner).measure(step=0).scalars() == plain
    with pytest.raises(Exception, match="compiled code ran"):
        inner(torch.tensor([[1, 2]]))


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_data_parallel_processes_are_unwrapped_and_sharded_weights_refused(one_process):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    inner = gpt2()
    assert Tracker(nn.parallel.DistributedDataParallel(inner)).model.hf is inner
    tracker = Tracker(inner)
    fully_shard(inner, mesh=init_device_mesh("cpu", (1,)))
    for measure in (lambda: Tracker(inner), lambda: tracker.measure(step=0)):
        with pytest.raises(ModelError, match="distributed tensors.*headscope emergence"):
            measure()


def test_weights_that_are_not_in_memory_are_refused():
    with pytest.raises(ModelError, match="device meta"):
        Tracker(gpt2().to("meta"))


def test_what_has_no_number_says_why():
    headless = Tracker(gpt2(GPT2Model)).measure(step=0, full=True)
    assert headless.second_copy_loss_nats is None
    assert "language-modelling head" in headless.missing["second_copy_loss_nats"]
    assert headless.full.copying == ()
    assert headless.missing["copying"]
    assert "no tokenizer" in headless.missing["in_context"]
    assert "headscope/induction_max" in headless.scalars()
    unrepeated = Tracker(gpt2(), probe=hs.probe_tokens([[1, 2, 3, 4, 5]])).measure(step=0)
    assert "no token repeats" in unrepeated.missing["induction"]
    assert "second copy" in unrepeated.missing["second_copy_loss_nats"]
    assert set(unrepeated.scalars()) == {"headscope/previous_token_max"}
    with pytest.raises(ArgumentError, match="no token repeats"):
        unrepeated.strongest("induction")


def test_weights_that_became_nan_are_an_error_and_leave_the_model_in_training():
    model = gpt2().train()
    tracker = Tracker(model)
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.weight.fill_(float("nan"))
    state = torch.random.get_rng_state()
    with pytest.raises(NonFiniteError, match="NaN"):
        tracker.measure(step=0)
    assert model.training
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_default_probe_fits_itself_to_a_short_context():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**(SHAPE | {"n_positions": 40}), bos_token_id=0, eos_token_id=0))
    # period 12: spread 3, 1 + 3 + 2 * 15 + 3 = 37 of 40 tokens; 13 gives 1 + 3 + 2 * 16 + 3 = 39; 14 has spread 4: 45
    assert Tracker(model).probe.settings["period"] == 13
    probe = hs.repeated_tokens(hs.load(model), n_prompts=4, period=8)
    assert Tracker(model, probe=probe).measure(step=0).probe["period"] == 8
