"""What can be done with each kind of object, folder and file that `headscope.load` opens, and how exact it is?

    python -m benchmarks.sources --json
    python -m benchmarks.sources --write docs/generated/sources.md

Each kind is a tiny random model. What is compared, with a tolerance of `TOLERANCE`:

* scan: every pattern with the probabilities of the module's own softmax, and a scan has to run
* ablate: for every head, the logits with its z set to zero with those of the module itself when the head's block of
  W_O is zero, relative to the largest logit, and an ablation has to run
* verify, circuit: every number with those of the same weights as a plain transformers model
* composition: likewise, or with scores computed from the module's own parameters

`exact`: the largest difference is within the tolerance. `runs`: it works, and there is nothing to compare it with.
`refused`: in one line, whose reason is given. `differs` and `breaks` are defects.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

import headscope as hs
from benchmarks.nanogpt import NanoGPT
from benchmarks.packed import Packed, quantised
from benchmarks.tiny import tiny_causal_lm, tiny_seeing
from benchmarks.written import HEADS, D, Written
from headscope.errors import HeadscopeError
from headscope.model.load import Model, load

TOLERANCE = 1e-5
USES = ("scan", "verify", "circuit", "composition", "ablate")
IDS = torch.randint(30, (3, 13), generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The module's own numbers."""

    patterns: Callable[[], list[Tensor]]
    """Of each layer, on `IDS`."""
    without: Callable[[int, int], Tensor]
    """Logits, or what a model without a head gives, where the block of W_O of a head (layer, head) is zero."""
    plain: Any | None = None
    """A plain transformers model of the same weights."""
    k_composition: Callable[[], np.ndarray] | None = None
    """Scores of all pairs of heads (of the sender, of the receiver), unfolded."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Something to open."""

    source: Any
    """What `headscope.load` is given."""
    reference: Reference
    """What is compared."""
    options: dict[str, Any] = field(default_factory=dict)
    """How it is opened."""


def kinds() -> dict[str, Callable[[Path], Kind]]:
    """By name; each is built in a folder of its own."""
    made: dict[str, Callable[[Path], Kind]] = {
        "a transformers model": lambda folder: _around(lambda hf: hf),
        "a folder that `save_pretrained` wrote": lambda folder: _saved(folder, "model"),
        "a Trainer's `checkpoint-500`": lambda folder: _saved(folder, "checkpoint-500"),
        "a `PeftModel`, LoRA not merged": lambda folder: _adapted(folder, saved=False),
        "a folder of an adapter": lambda folder: _adapted(folder, saved=True),
        "nanoGPT's `ckpt.pt`": _nanogpt,
        "GGUF": _gguf,
        "a classifier": _classifier,
        "`TransformerBridge`": _bridge,
        "nnsight's `NNsight`": _nnsight,
        "`DataParallel`": lambda folder: _around(nn.DataParallel),
        "`DistributedDataParallel`": lambda folder: _around(_distributed),
        "`torch.compile`": lambda folder: _around(lambda hf: torch.compile(hf, backend="eager")),
        "a module that holds one model": lambda folder: _around(_Holder),
        "weights of int8, as torchao keeps them": lambda folder: _packed(bits=8),
        "weights of int4 in groups, as torchao keeps them": lambda folder: _packed(bits=4, group=32),
    }
    for family in ("llava", "qwen2_vl", "qwen3_vl", "paligemma", "gemma3"):
        made[f"text of `{family}`"] = lambda folder, family=family: _seeing(family)
    choices: dict[str, dict[str, Any]] = {
        "module: `nn.Linear` for q, k, v and o": {},
        "module: one `nn.Linear` for q, k and v": {"project": "fused"},
        "module: parameters and einsum": {"project": "parameters", "attend": "einsum", "out": "einsum"},
        "module: `scaled_dot_product_attention`, grouped queries": {"attend": "sdpa", "n_kv": 2},
        "module: heads on the batch axis": {"attend": "batched"},
        "module: (d h)": {"order": "d h"},
        "module: rotary": {"positions": "rotary"},
        "module: ALiBi": {"positions": "alibi"},
        "module: parallel block, tied": {"block": "parallel", "tied": True},
        "module: post-norm": {"block": "post"},
        "module: heads mixed before the softmax": {"twist": "talking before"},
        "module: heads mixed after the softmax": {"twist": "talking"},
        "module: one softmax less another": {"twist": "differential"},
        "module: results normalised over heads": {"twist": "norm over heads"},
    }
    for name, chosen in choices.items():
        made[name] = lambda folder, chosen=chosen: _written(chosen)
    return made


def _plain(hf: Any, body: str = "model.layers", out: str = "self_attn.o_proj") -> Reference:
    """Of a transformers model, by its eager attention."""
    own = copy.deepcopy(hf).eval()
    own.set_attn_implementation("eager")

    def run(given: Any, **more: Any) -> Any:
        with torch.no_grad():
            return given(input_ids=IDS, use_cache=False, **more)

    def without(layer: int, head: int) -> Tensor:
        other = copy.deepcopy(own)
        weight = other.get_submodule(f"{body}.{layer}.{out}").weight.data
        rows = weight if out == "attn.c_proj" else weight.T  # GPT-2's has the input first
        d_head = rows.shape[0] // own.config.get_text_config().num_attention_heads
        rows[head * d_head : (head + 1) * d_head] = 0
        given = run(other)
        return given.logits if hasattr(given, "logits") else given[0]

    return Reference(
        patterns=lambda: list(run(own, output_attentions=True).attentions),
        without=without,
        plain=copy.deepcopy(own),
    )


def _distributed(hf: Any) -> Any:
    """As a process of a group of one."""
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    return nn.parallel.DistributedDataParallel(hf)


def _around(wrap: Callable[[Any], Any]) -> Kind:
    hf = tiny_causal_lm("llama")
    return Kind(source=wrap(hf), reference=_plain(hf))


def _saved(folder: Path, name: str) -> Kind:
    hf = tiny_causal_lm("llama")
    hf.save_pretrained(folder / name)
    if name != "model":
        torch.save({"state": {}}, folder / name / "optimizer.pt")
        (folder / name / "trainer_state.json").write_text('{"global_step": 500}')
    return Kind(source=folder / name, reference=_plain(hf))


def _adapted(folder: Path, *, saved: bool) -> Kind:
    import peft

    hf = tiny_causal_lm("llama")
    hf.save_pretrained(folder / "base")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False)
        adapted: Any = peft.get_peft_model(hf, config).eval()
    adapted.peft_config["default"].base_model_name_or_path = str(folder / "base")
    reference = _plain(copy.deepcopy(adapted).merge_and_unload())
    if not saved:
        return Kind(source=adapted, reference=reference)
    adapted.save_pretrained(folder / "adapter")
    return Kind(source=folder / "adapter", reference=reference)


def _nanogpt(folder: Path) -> Kind:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = NanoGPT(bias=True)
    torch.save(model.checkpoint(prefix="_orig_mod."), folder / "ckpt.pt")

    def run(given: NanoGPT) -> tuple[Tensor, list[Tensor]]:
        seen: list[Tensor] = []
        softmax = Tensor.softmax

        def spying(one: Tensor, *args: Any) -> Tensor:
            seen.append(softmax(one, *args))
            return seen[-1]

        Tensor.softmax = spying  # type: ignore[method-assign,assignment]
        try:
            with torch.no_grad():
                return given(IDS), seen
        finally:
            Tensor.softmax = softmax  # type: ignore[method-assign]

    def without(layer: int, head: int) -> Tensor:
        other = copy.deepcopy(model)
        projection: Any = other.transformer.get_submodule(f"h.{layer}.attn.c_proj")
        projection.weight.data[:, head * 8 : head * 8 + 8] = 0
        return run(other)[0]

    return Kind(
        source=folder / "ckpt.pt",
        reference=Reference(patterns=lambda: run(model)[1], without=without),
        options={"allow_pickle": True},
    )


def _gguf(folder: Path) -> Kind:
    from benchmarks.gguf_file import gguf_of

    hf = tiny_causal_lm("llama")
    return Kind(source=gguf_of(hf, folder / "tiny.gguf"), reference=_plain(hf))


def _classifier(folder: Path) -> Kind:
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf: Any = transformers.LlamaForSequenceClassification(config).eval()
    hf.save_pretrained(folder)
    return Kind(source=folder, reference=_plain(hf.model, body="layers"))


def _bridge(folder: Path) -> Kind:
    from benchmarks.tiny import bridged

    hf: Any = tiny_causal_lm("llama")
    return Kind(source=bridged(copy.deepcopy(hf)), reference=_plain(hf))


def _nnsight(folder: Path) -> Kind:
    import nnsight

    hf = tiny_causal_lm("llama")
    return Kind(source=nnsight.NNsight(hf), reference=_plain(hf))


class _Holder(nn.Module):
    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.model, self.value = hf, nn.Linear(64, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids).logits


def _packed(**how: int) -> Kind:
    hf = quantised(tiny_causal_lm("llama"), **how)
    plain = tiny_causal_lm("llama")
    for name, part in hf.named_modules():
        if isinstance(getattr(part, "weight", None), Packed):
            place: Any = plain.get_submodule(name)
            place.weight.data = part.weight.dequantize()
    return Kind(source=hf, reference=_plain(plain))


def _seeing(family: str) -> Kind:
    hf = tiny_seeing(family)
    return Kind(source=hf, reference=_plain(hf, body="model.language_model.layers"))


def _written(choices: dict[str, Any]) -> Kind:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = Written(**choices).eval()

    def patterns() -> list[Tensor]:
        model.logits(IDS)
        return list(model.patterns)

    return Kind(
        source=model,
        reference=Reference(
            patterns=patterns,
            without=lambda layer, head: model.logits(IDS, (layer, head)),
            k_composition=(lambda: _own_k(model)) if {*choices} <= {"order", "project", "attend", "out"} else None,
        ),
    )


def _own_k(model: Any) -> np.ndarray:
    """|W_V W_O W_K W_Q^T| / (|W_V W_O| |W_K W_Q^T|) of each head before with each head after, from the parameters."""
    scores = np.full((2 * HEADS, 2 * HEADS), np.nan)
    first, second = (block.attention for block in model.blocks)
    senders, receivers = _by_head(first), _by_head(second)
    for sender, (_, _, w_v, w_o) in enumerate(zip(*senders, strict=True)):
        for receiver, (w_q, w_k, _, _) in enumerate(zip(*receivers, strict=True)):
            ov, kq = w_v @ w_o, w_k @ w_q.T
            scores[sender, HEADS + receiver] = float((ov @ kq).norm() / (ov.norm() * kq.norm()))
    return scores


def _by_head(attention: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W_Q, W_K, W_V [head d_model d] and W_O [head d d_model] as the module's own parameters."""
    d, choices = attention.d_head, attention.choices
    match choices.project:
        case "separate":
            projections = [one.weight.T.reshape(D, HEADS, d) for one in (attention.q, attention.k, attention.v)]
        case "fused":
            projections = [one.T.reshape(D, HEADS, d) for one in attention.qkv.weight.split(D)]
        case _:
            projections = [one.transpose(0, 1) for one in (attention.w_q, attention.w_k, attention.w_v)]
    w_o = attention.o.weight.T if choices.out == "linear" else attention.w_o
    w_o = w_o.view(HEADS, d, D) if choices.order == "h d" else w_o.view(d, HEADS, D).transpose(0, 1)
    w_q, w_k, w_v = (one.transpose(0, 1).double().detach() for one in projections)
    return w_q, w_k, w_v, w_o.double().detach()


# What is tried


def measure(names: list[str] | None = None) -> dict[str, Any]:
    """The document: of each kind, each use's outcome and largest difference."""
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}
    for name, make in kinds().items():
        if names and name not in names:
            continue
        print(name, file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            found[name] = json.loads(json.dumps(_outcomes(make(Path(folder)))).replace(folder, "FOLDER"))
    return {
        "schema": "headscope.benchmark.sources/1",
        "tolerance": TOLERANCE,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "kinds": found,
    }


def _outcomes(kind: Kind) -> dict[str, dict[str, Any]]:
    try:
        model = load(kind.source, **kind.options)
    except HeadscopeError as error:
        return {use: {"outcome": "refused", "reason": str(error)} for use in USES}
    plain = None if kind.reference.plain is None else load(kind.reference.plain)
    return {use: _outcome(_TRIES[use], model, kind.reference, plain) for use in USES}


def _outcome(
    use: Callable[[Model, Reference, Model | None], float | None], model: Model, own: Reference, plain: Model | None
) -> dict[str, Any]:
    try:
        difference = use(model, own, plain)
    except HeadscopeError as error:
        return {"outcome": "refused", "reason": str(error)}
    except Exception as error:  # a defect, whatever it is
        return {"outcome": "breaks", "reason": f"{type(error).__name__}: {error}"}
    if difference is None:
        return {"outcome": "runs"}
    return {"outcome": "exact" if difference <= TOLERANCE else "differs", "difference": difference}


def _probe(model: Model) -> Any:
    return hs.repeated_tokens(model, n_prompts=6, period=8)


def _scan(model: Model, own: Reference, plain: Model | None) -> float:
    hs.scan(model, probe=_probe(model))
    seen: dict[int, Tensor] = {}
    model.run(IDS, lambda attention: seen.update({attention.layer: attention.pattern().clone()}))
    return max(float((seen[layer] - pattern).abs().max()) for layer, pattern in enumerate(own.patterns()))


def _ablate(model: Model, own: Reference, plain: Model | None) -> float:
    largest = 0.0
    for layer, n_heads in model.check.heads.items():
        for head in range(n_heads):

            def edit(attention: Any, layer: int = layer, head: int = head) -> Tensor | None:
                if attention.layer != layer:
                    return None
                z = attention.z.clone()
                z[:, :, head] = 0
                return z

            given, wanted = model.backbone.output(model.run(IDS, edit)), own.without(layer, head)
            largest = max(largest, float((given - wanted).abs().max() / wanted.abs().max()))
    hs.ablate(model, ["L0H0"], probe=_probe(model), method="zero")
    return largest


def _verify(model: Model, own: Reference, plain: Model | None) -> float | None:
    both = [None if one is None else hs.verify(one, ["L0H0", "L1H1"], probe=_probe(model)) for one in (model, plain)]
    return _apart(both, ("heads",))


def _circuit(model: Model, own: Reference, plain: Model | None) -> float | None:
    both = [None if one is None else hs.trace_circuit(one, ["L1H0"], probe=_probe(model)) for one in (model, plain)]
    return _apart(both, ("receivers", "edges"))


def _composition(model: Model, own: Reference, plain: Model | None) -> float | None:
    if own.k_composition is not None:
        given, wanted = hs.composition(model, fold=False).scores["k"], own.k_composition()
    else:
        given = hs.composition(model).scores["k"]
        if plain is None:
            return None
        wanted = hs.composition(plain).scores["k"]
    if not np.array_equal(np.isnan(given), np.isnan(wanted)):
        return float("inf")
    return float(np.nanmax(np.abs(np.asarray(given) - wanted)))


_TRIES = {"scan": _scan, "verify": _verify, "circuit": _circuit, "composition": _composition, "ablate": _ablate}


def _apart(both: list[Any], parts: tuple[str, ...]) -> float | None:
    """Largest difference between two results' numbers, infinite where one has what the other lacks."""
    documents = [json.loads(one.to_json()) for one in both if one is not None]
    if len(documents) < 2:
        return None
    first, second = (list(_numbers([document[part] for part in parts])) for document in documents)
    if len(first) != len(second):
        return float("inf")
    return max((abs(a - b) for a, b in zip(first, second, strict=True)), default=0.0)


def _numbers(given: Any) -> Iterator[float]:
    if isinstance(given, dict):
        given = [given[name] for name in sorted(given)]
    if isinstance(given, list):
        for one in given:
            yield from _numbers(one)
    elif isinstance(given, (int, float)) and not isinstance(given, bool):
        yield float(given)


def markdown(found: dict[str, Any]) -> str:
    """The table of the page of supported models."""
    lines = [
        "Made by `python -m benchmarks.sources --write docs/generated/sources.md` with transformers "
        f"{found['versions']['transformers']} and torch {found['versions']['torch']}.",
        "",
        f"| object | {' | '.join(USES)} |",
        f"| --- | {' | '.join('---' for _ in USES)} |",
    ]
    reasons: list[str] = []
    for name, uses in found["kinds"].items():
        lines.append(f"| {name} | {' | '.join(_cell(uses[use], reasons) for use in USES)} |")
    lines += ["", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1)), ""]
    return "\n".join(lines)


def _cell(outcome: dict[str, Any], reasons: list[str]) -> str:
    if "reason" not in outcome:
        return outcome["outcome"]
    reason = outcome["reason"].replace("|", "\\|")
    if reason not in reasons:
        reasons.append(reason)
    return f"{outcome['outcome']} ({reasons.index(reason) + 1})"


def main() -> None:
    """Print the document, or the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table of the page of supported models")
    parser.add_argument("kinds", nargs="*", help="only these")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    found = measure(options.kinds)
    if options.write:
        options.write.write_text(markdown(found), encoding="utf-8")
    print(json.dumps(found, indent=1) if options.json else markdown(found))


if __name__ == "__main__":
    main()
