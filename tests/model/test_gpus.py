"""What a GPU would refuse, shown without one: on tensors that say they lie on CUDA, MPS or XPU (`tests.model.places`).

They hold real numbers, since scan, verify and path patching decide by numbers; what comes out must be what the
processor gives. CUDA's two fused kernels answer with the shapes and types that PyTorch's meta kernels give on fake
tensors of `cuda:0`. Tensors of two devices, or of a device and the host, refuse to meet. Mutations show that they do.

No kernel of a GPU runs here, and nothing is said of its rounding, memory or streams: `benchmarks.cuda` measures those.
"""

from __future__ import annotations

import copy

import pytest
import torch

import headscope as hs
from benchmarks.tiny import tiny_causal_lm
from headscope.errors import ArgumentError, HeadscopeError
from headscope.evidence.scan import measure
from headscope.heads import HeadId
from headscope.interventions import ablation, paths
from headscope.interventions.paths import Paths
from headscope.model import attention, kernels, precision
from headscope.model.attention import Attention, Scores
from headscope.model.kernels import AttentionSpec, attend, flash_applies
from headscope.model.precision import brought, widened
from headscope.probes.corrupt import corrupt_pairs
from tests.model.alike import difference
from tests.model.places import CUDA, MPS, XPU, gpu, placed

ROUNDING = 2**10 * torch.finfo(torch.float32).eps
"""1.2e-4, as for layers on two devices."""

RULES = {
    "causal": lambda: {"causal": True},
    "bias": lambda: {"causal": False, "bias": torch.randn(1, 1, 9, 9)},
    "mask": lambda: {"causal": False, "bias": torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()},
    "sinks per head": lambda: {"causal": True, "sinks": torch.randn(1, 4, 1)},
    "sinks per row": lambda: {"causal": True, "sinks": torch.randn(2, 4, 9)},
    "soft-cap, bias and sinks": lambda: {
        "causal": True,
        "softcap": 2.0,
        "bias": torch.randn(2, 4, 9, 9),
        "sinks": torch.randn(1, 4, 1),
    },
}


def on(device, value):
    return value.to(device) if isinstance(value, torch.Tensor) else value


def attended(device, kernel, parts, spelt):
    """Everything that one layer's attention tells, from vectors brought to a device."""
    q, k, v = (part.to(device) for part in parts)
    rule = AttentionSpec(scale=0.3, **{name: on(device, value) for name, value in spelt.items()})
    z, lse, name = attend(q, k, v, rule, kernel)
    assert name == kernel
    seen = Attention(
        layer=0, call=0, z=z.transpose(1, 2), kernel=name, scores=Scores(q=q, k=k, v=v, rule=rule, lse=lse)
    )
    row, query, key = (torch.tensor(places, device=device) for places in ([0, 1, 1], [8, 3, 3], [2, 3, 5]))
    told = [seen.z, lse, seen.probabilities(row, query, key), seen.pattern(), *seen.allowed(row, query, key)]
    assert {one.device for one in told} == {torch.device(device)}
    return told


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kernel", ["flash", "tiled", "reference"])
def test_kernels_on_a_cuda_device_give_what_they_give_on_the_processor(kernel, rule, dtype):
    spelt = {
        name: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in RULES[rule]().items()
    }
    parts = [torch.randn(2, heads, 9, width).to(dtype) for heads, width in ((4, 12), (2, 12), (2, 5))]
    with gpu():
        if kernel == "flash" and "soft-cap" in rule:
            with pytest.raises(ArgumentError, match="cannot compute this attention"):
                attended(CUDA, kernel, parts, spelt)
            return
        given = [one.cpu() for one in attended(CUDA, kernel, parts, spelt)]
    for one, wanted in zip(given, attended("cpu", kernel, parts, spelt), strict=True):
        assert (one.shape, one.dtype) == (wanted.shape, wanted.dtype)
        # bfloat16 has 8 bits: what is rounded in another order moves by an eighth of a per cent or two
        torch.testing.assert_close(one, wanted, atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=1e-5)


def test_which_kernel_a_cuda_device_runs(monkeypatch):
    def fused(dtype, width=64):
        with gpu(), torch.no_grad():
            q = torch.zeros(1, 1, 2, width, dtype=dtype, device=CUDA)
            return flash_applies(q, q, q, AttentionSpec(scale=1.0, causal=True))

    assert [fused(one) for one in (torch.float32, torch.bfloat16, torch.float16, torch.float64)] == [True] * 3 + [False]
    assert not fused(torch.bfloat16, width=264), "its heads are wider than 256"


# --- Whole results ----------------------------------------------------------------------------------------------------


def scanned(model):
    return hs.scan(model, probe=hs.repeated_tokens(model, n_prompts=2, period=5))


def ablated(model):
    """Each head's effect, with the race's gradients: the passes of `verify`."""
    return hs.ablate_each(model, probe=hs.repeated_tokens(model, n_prompts=4, period=5), method="resample", top=1)


def verified(model):
    return hs.verify(model, probe=hs.repeated_tokens(model, n_prompts=2, period=5), top=1)


def patched(model):
    """What each head of the first layer brings to a key of the second."""
    receiver, senders = HeadId(1, 1), [frozenset({HeadId(0, head)}) for head in range(2)]
    patching = Paths(model, corrupt_pairs(hs.repeated_tokens(model, n_prompts=2, period=5), seed=0), [receiver])
    reached = patching.contents(patching.clean, patching.corrupt, senders)
    return patching.patched(patching.clean, receiver, "k", reached[receiver]["k"])


def traced(model):
    return hs.trace_circuit(model, ["L1H1"], probe=hs.repeated_tokens(model, n_prompts=2, period=5))


def on_cuda(hf, kernel, *asked):
    """Results on an imitated CUDA device, if `kernel` is what its layers ran through."""
    with gpu():
        model = hs.load(placed(copy.deepcopy(hf), CUDA))
        assert (model.device, model.check.kernels) == (CUDA, (kernel,)), model.check.reason
        return [ask(model) for ask in asked]


@pytest.mark.parametrize(
    ("family", "kernel", "asked"),
    [
        ("llama", "flash", (scanned, ablated, patched)),
        ("gemma2", "tiled", (scanned, patched)),
        pytest.param("llama", "flash", (verified, traced), marks=pytest.mark.slow),
    ],
)
def test_results_of_a_cuda_device_are_those_of_the_processor(family, kernel, asked):
    hf = tiny_causal_lm(family)
    model = hs.load(hf)
    for given, ask in zip(on_cuda(hf, kernel, *asked), asked, strict=True):
        wanted = ask(model)
        if ask is patched:
            assert given == pytest.approx(wanted, abs=ROUNDING)
            continue
        assert (wanted.provenance.device, given.provenance.device) == ("cpu", "cuda:0")
        assert difference(told(given), told(wanted)) < ROUNDING, ask


def told(result):
    """A result's document, but for what names the device and its kernels."""
    return {name: value for name, value in result.to_dict().items() if name != "provenance"}


def changed(owner, name, wrap):
    """A mutation: `owner.name` gives way to what `wrap` makes of it."""
    return lambda monkeypatch: monkeypatch.setattr(owner, name, wrap(getattr(owner, name)))


def brought_back(function):
    """Its first result brought to the host."""

    def mutated(*given, **named):
        first, *rest = function(*given, **named)
        return first.cpu(), *rest

    return mutated


MUTATIONS = {
    "z of the fused kernel on the host": (
        changed(kernels, "KERNELS", lambda own: own | {"flash": brought_back(kernels.flash)}),
        scanned,
    ),
    "keys gathered by an index that lies on the host": (
        changed(
            attention,
            "_gathered",
            lambda own: lambda s, rows, *places: own(s, rows, *(one.cpu() for one in places)),
        ),
        scanned,
    ),
    "targets left on the host": (
        changed(measure._Targets, "_on", lambda own: lambda self, device: own(self, torch.device("cpu"))),
        scanned,
    ),
    "a mask of heads on the host": (
        changed(
            ablation.Ablator,
            "edited",
            lambda own: lambda self, seen, mask, substitute: own(self, seen, mask.cpu(), substitute),
        ),
        ablated,
    ),
    "what reaches a receiver brought to the host": (
        changed(
            paths.Paths,
            "_contents_of",
            lambda own: lambda *given: {name: part.cpu() for name, part in own(*given).items()},
        ),
        patched,
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_tensor_of_another_device_is_found_out(mutation, monkeypatch):
    mutate, asked = MUTATIONS[mutation]
    hf = tiny_causal_lm("llama")
    mutate(monkeypatch)
    with pytest.raises((RuntimeError, TypeError, HeadscopeError, AssertionError), match="device|cuda"):
        on_cuda(hf, "flash", asked)


# --- A device without float64 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [MPS, XPU], ids=str)
def test_float64_is_refused_here_as_there(place):
    with gpu():
        one = torch.ones(2).to(place)
        assert (one + one).device == place
        for asked in (one.double, lambda: one.to("cpu", torch.float64), lambda: torch.ones(2).double().to(place)):
            with pytest.raises(TypeError, match=f"{place.type} doesn't support float64"):
                asked()
        assert one.cpu().double().dtype == torch.float64
        assert brought(torch.ones(2).double(), place).dtype == widened(one).dtype == torch.float32
    assert widened(torch.ones(2)).dtype == brought(torch.ones(2).double(), torch.device("cpu")).dtype == torch.float64


def composed(model):
    return hs.composition(model)


def learned(model):
    return hs.icl(model, tokens=[range(3, 67)] * 4, window=32, early=8, late=20)


def asked_of_the_atlas(model):
    return hs.atlas(model, quick=True)


@pytest.mark.parametrize(
    ("place", "asked"),
    [
        (MPS, (scanned, ablated, patched)),
        (XPU, (scanned, ablated)),
        (MPS, (composed, learned)),
        pytest.param(MPS, (verified, traced, asked_of_the_atlas), marks=pytest.mark.slow),
    ],
)
def test_results_of_a_device_without_float64_are_those_of_the_processor(place, asked):
    hf = tiny_causal_lm("llama")
    model = hs.load(hf)
    with gpu():
        there = hs.load(placed(copy.deepcopy(hf), place))
        assert (there.device, there.check.kernels) == (place, ("tiled",)), there.check.reason
        found = [ask(there) for ask in asked]
    for given, ask in zip(found, asked, strict=True):
        if ask is patched:
            assert given == pytest.approx(patched(model), abs=ROUNDING)
        else:
            assert difference(told(given), told(ask(model))) < ROUNDING, ask


def test_float64_on_the_way_is_found_out(monkeypatch):
    monkeypatch.setattr(precision, "widest", lambda device: torch.float64)
    with gpu(), pytest.raises(HeadscopeError, match="mps doesn't support float64"):
        hs.load(placed(tiny_causal_lm("llama"), MPS))
