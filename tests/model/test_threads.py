"""A pass of someone else through the same model, at any moment of ours: neither notices the other."""

from __future__ import annotations

import copy
import pickle
import threading
from contextlib import contextmanager

import pytest
import torch

from benchmarks.tiny import tiny_causal_lm
from benchmarks.written import Written
from headscope.evidence.params.measure import count_parameters
from headscope.model.inject import queries_and_keys
from headscope.model.load import load
from headscope.model.replay import Replay
from headscope.model.scope import evaluating
from headscope.model.weights import layer_weights, vocabulary
from tests.running import forward, selfcheck

THEIRS = torch.arange(3, 22).reshape(1, 19)
OURS = torch.arange(5, 35).reshape(2, 15)


def elsewhere(job):
    """What a job gives in a thread of its own."""
    found = []

    def run():
        try:
            found.append(job())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert found, "it hangs"
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def output(model, tokens=THEIRS):
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


@contextmanager
def interrupted(model, others, *, every=1):
    """Within the block, modules that a pass of this thread calls let another thread do something first."""
    here, calls = threading.get_ident(), []

    def first(module, given):
        if threading.get_ident() == here:
            calls.append(module)
            if len(calls) % every == 0:
                elsewhere(others)

    handles = [module.register_forward_pre_hook(first) for module in model.modules()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def ways(model):
    """Each way in which headscope runs a model, as a function that gives tensors."""
    loaded = load(model)
    places = torch.tensor([[0, 3], [1, 14]])

    def seen(**options):
        found = []
        forward(model, loaded.check.route, OURS, lambda one: found.extend([one.pattern(), one.z.clone()]), **options)
        return found

    def replayed():
        replay = Replay(loaded, OURS)
        clean = replay.clean(places=places)
        return [clean, replay.logits(lambda one: one.z * 2, start=replay.start_of(1), copies=2, places=places[:1])]

    found = {
        "forward": seen,
        "stop_at_last": lambda: seen(stop_at_last=True),
        "replay": replayed,
        "check": lambda: [torch.tensor(list(selfcheck(model).heads.items()))],
    }
    if loaded.check.route.path == "interface":
        vectors = torch.randn(3, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
        found |= {
            "parameters": lambda: [torch.tensor(count_parameters(loaded).per_head)],
            "inject": lambda: list(queries_and_keys(loaded, 1, vectors, 4)),
            "weights": lambda: [layer.w_q @ layer.w_q.mT for layer in layer_weights(loaded).values()],
            "vocabulary": lambda: [vocabulary(loaded).unembedding],
        }
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "falcon"])
def test_a_pass_of_another_thread_at_every_moment_of_ours(family):
    model = tiny_causal_lm(family)
    alone, found = output(model), []
    for name, way in ways(model).items():
        wanted = way()
        with interrupted(model, lambda: found.append(torch.equal(output(model), alone)), every=3):
            given = way()
        assert all(torch.equal(x, y) for x, y in zip(given, wanted, strict=True)), name
        assert set(found) == {True}, name
        found.clear()


@pytest.mark.parametrize("family", ["llama", "bloom"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_our_pass_at_every_moment_of_another_s(family, implementation):
    # masks are made at the start of a pass, for the implementation that the configs name then
    model = tiny_causal_lm(family)
    if model._supports_sdpa:
        model.set_attn_implementation(implementation)
    alone, way = output(model), ways(model)["stop_at_last"]
    wanted = way()
    here, found = threading.get_ident(), []

    def first(module, given):
        if threading.get_ident() == here:
            found.append(elsewhere(way))

    for module in list(model.modules()):
        module.register_forward_pre_hook(first)
    assert torch.equal(output(model), alone)
    assert len(found) > 10
    assert all(torch.equal(x, y) for one in found for x, y in zip(one, wanted, strict=True))


def test_threads_where_probabilities_mix_values():
    # a module of no known library, whose attention is seen where it multiplies
    loaded = load(Written())
    model = loaded.module

    def alone():
        with torch.no_grad():
            return model(OURS % 30)

    def seen():
        found = []
        loaded.run(OURS % 30, lambda one: found.extend([one.pattern(), one.z.clone()]))
        return found

    assert loaded.route.path == "module"
    theirs, ours, found = alone(), seen(), []
    with interrupted(model, lambda: found.append(torch.equal(alone(), theirs)), every=5):
        given = seen()
    assert set(found) == {True}
    assert all(torch.equal(x, y) for x, y in zip(given, ours, strict=True))
    with interrupted(model, lambda: found.append(all(map(torch.equal, seen(), ours))), every=5):
        assert torch.equal(alone(), theirs)
    assert set(found) == {True}


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_a_visit_may_run_the_model_that_it_sees(family):
    model = tiny_causal_lm(family)
    check, alone, seen = selfcheck(model), output(model), []

    def visit(attention):
        seen.append(attention.layer)
        assert torch.equal(output(model), alone)
        inner = []
        forward(model, check.route, OURS, lambda one: inner.append(one.layer), stop_at_last=True)
        assert len(inner) == check.route.calls

    forward(model, check.route, OURS, visit)
    assert len(seen) == check.route.calls


def test_generation_in_another_thread():
    model = tiny_causal_lm("llama")
    check = selfcheck(model)

    def generated():
        return model.generate(THEIRS, max_new_tokens=5, do_sample=False, pad_token_id=0)

    alone, found = generated(), []
    with interrupted(model, lambda: found.append(torch.equal(generated(), alone)), every=7):
        forward(model, check.route, OURS, lambda attention: None)
    assert set(found) == {True}


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_another_thread_goes_on_training(family):
    model = tiny_causal_lm(family).train()
    kinds = [type(module) for module in model.modules()]
    check, found = selfcheck(model), []

    def look():
        copied = copy.deepcopy(model)
        found.append(
            all(module.training for module in model.modules())
            and [type(module) for module in copied.modules()] == kinds
        )

    def visit(attention):
        elsewhere(look)
        assert model.training  # a visit, too, sees the model as its owner left it

    with interrupted(model, lambda: found.append(model.training), every=9):
        forward(model, check.route, OURS, visit)
    assert set(found) == {True}
    assert [type(module) for module in model.modules()] == kinds
    assert all(module.training for module in model.modules())


def test_a_mode_set_meanwhile_stays_set():
    model = tiny_causal_lm("llama").train()
    with evaluating(model):
        assert not model.training
        assert type(pickle.loads(pickle.dumps(model.lm_head))) is torch.nn.Linear
        elsewhere(model.eval)
    assert not any(module.training for module in model.modules())
    with evaluating(model):
        elsewhere(model.train)
        assert elsewhere(lambda: model.training)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("family", ["llama", "falcon"])
def test_compiled_code_of_another_thread(family):
    # fullgraph: whatever the compiler cannot follow is an error of its owner's
    model = tiny_causal_lm(family)
    check, alone = selfcheck(model), output(model)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)

    def agrees():
        torch.testing.assert_close(output(compiled), alone)

    agrees()
    forward(model, check.route, OURS, lambda attention: elsewhere(agrees))
    assert model.config._attn_implementation == "eager"
    agrees()


@pytest.mark.parametrize("how", ["whole", "wrapped"])
def test_a_model_that_was_compiled_in_place_is_read_uncompiled(how):
    model = tiny_causal_lm("llama")
    wanted, alone = ways(model)["replay"](), output(model)
    torch.compiler.reset()
    layers = next(part for part in model.modules() if isinstance(part, torch.nn.ModuleList))
    if how == "whole":
        model.compile(backend="eager")
    else:
        layers[0] = torch.compile(layers[0], backend="eager")
    kept = [
        (part, name, value)
        for part in model.modules()
        for name, value in vars(part).items()
        if "forw" in name or "call_i" in name
    ]

    def agrees():
        torch.testing.assert_close(output(model), alone)

    for once in (agrees, lambda: None):  # before its first call, and after it was compiled
        given = ways(model)["replay"]()
        assert all(torch.equal(x, y) for x, y in zip(given, wanted, strict=True))
        once()
    forward(model, selfcheck(model).route, OURS, lambda attention: elsewhere(agrees))
    assert all(vars(part)[name] is value for part, name, value in kept)
    agrees()
