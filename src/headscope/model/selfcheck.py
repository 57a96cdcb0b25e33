"""Check, then claim: does what we show of a model's attention agree with the model's own forward pass?

On a short random input the model runs once as it is set (`sdpa`, `eager`) and once through ours. `exact` means:
the outputs agree within the dtype's tolerance; each layer's z is the mix of v by the very probabilities we report;
no probability is on a later token; and replacing z changes the output. A family outside transformers' attention
interface, or one that passes an argument we do not know, is watched while its own code runs; it is `exact` where its
queries and keys can be seen, and `degraded` where only its patterns can. Anything else is `unsupported`, with the
reason.

A fourth prompt shows whether anything beside that attention mixes tokens (`headscope.model.beside`): the reason says in
which layers, and the numbers are of the attention alone.

Cost: two forward passes, over 2 and over 4 prompts of 17 tokens; the third repeats the first with z replaced, the
fourth with other tokens. It does not show what long inputs do: a sliding window longer than the input is not exercised.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headscope.errors import NonFiniteError, brief
from headscope.heads import Support, Unread
from headscope.model import beside
from headscope.model.attention import Attention
from headscope.model.backbone import Backbone
from headscope.model.hooks import discovering
from headscope.model.interface import UnknownArgument, installed
from headscope.model.kernels import repeat_heads
from headscope.model.memory import out_of_memory
from headscope.model.names import layer_numbers
from headscope.model.parallel import weight_of
from headscope.model.precision import widened
from headscope.model.product import NotMixing
from headscope.model.proof import NotProven, by_patterns, proven_route
from headscope.model.rounding import moved_by_rounding, of_logits
from headscope.model.scope import evaluating, implementation
from headscope.model.taps import TOLERANCE, Route, forward
from headscope.model.unseen import Noting

_NONE_SEEN = "no softmax attention over its tokens was seen in its forward pass"
_ENCODER = "its tokens attend to later tokens: an encoder, not a decoder-only language model"
_ELSEWHERE = (
    "part of its attention is not among the tokens (it runs on patches, or on another input), and would go unseen"
)

FAMILY_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a family's own code raises on an input that it was not made for; anything else is passed on."""

KNOWN = {"transformers", "torch", "peft", "accelerate", "bitsandbytes", "torchao", "optimum"}
"""Libraries of whose modules a transformers model is made, none of which changes how its heads mix."""

N_PROMPTS, N_TOKENS = 2, 17
"""Size of the check's input: a prime length, so that no other square matrix of the model passes for a pattern."""

LARGEST_DIFFERENCE = 0.1
"""Difference of outputs, as a share of the largest, past which no tolerance makes a model `degraded`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What the self-check found."""

    support: Support
    """`exact`, `degraded` or `unsupported`."""
    reason: str
    """Why, in one sentence."""
    max_abs_diff: float | None
    """Largest difference of outputs, ours against the model's own; None where ours did not run."""
    kernels: tuple[str, ...]
    """What computed attention: `flash`, `tiled`, or `own` for the family's own code."""
    heads: dict[int, int]
    """Query heads of each layer that has attention."""
    kv_heads: int | None
    """Key-value heads of a layer, where they can be seen; the smallest, where layers differ."""
    unread: Unread | None = None
    """Where tokens are also mixed in another way than by these heads; None where they are not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedCheck(Check):
    """The check of a model that can be used."""

    route: Route
    """How its attention is reached."""


def selfcheck(model: Backbone) -> Check:
    """Run the check of this module's description.

    Raises:
        NonFiniteError: the model's own output holds NaN or infinity.
    """
    failures: list[str] = []
    try:
        tokens = _tokens(model)
        own = _own_output(model, tokens)
        finite = bool(torch.isfinite(own).all())
    except FAMILY_ERRORS as error:
        return _unsupported(_failure("it does not run on token ids alone", error))
    if not finite:
        raise NonFiniteError(_non_finite(model.module))
    checks: list[Check] = []
    rounded: list[Check] = []
    routes, reached = _routes(model.module), False
    for find in routes:
        if reached and find is _module_route and _hooks_route in routes:
            break
        for look in find(model, tokens, failures):
            try:
                check, by_rounding = _verify(model, tokens, look, own)
            except FAMILY_ERRORS as error:
                failures.append(_failure("its attention could not be read", error))
                continue
            if by_rounding:
                rounded.append(check)
            if check.support == "exact" or (look.route.path == "interface" and check.reason == _ELSEWHERE):
                return check
            checks.append(check)
        reached = reached or (find is _interface_route and bool(checks or failures))
    degraded = rounded or [check for check in checks if check.support == "degraded"]
    if degraded:
        best = min(degraded, key=lambda check: check.max_abs_diff or 0.0)
        return replace(best, reason=_after(checks[0], best))
    if checks:
        reason = _unlike_itself(model, tokens, own) or checks[0].reason + _unlike_eager(model, tokens, own)
        return replace(checks[0], reason=reason)
    why = failures[0] if failures else _NONE_SEEN
    if not failures and not isinstance(model.module, PreTrainedModel):
        why += " (by softmax, scaled-dot-product attention or nn.MultiheadAttention; one written with exp is not seen)"
    return _unsupported(_unlike_itself(model, tokens, own) or why)


def _routes(module: nn.Module) -> list[Callable[[Backbone, Tensor, list[str]], Iterator[_Look]]]:
    """Ways to reach the attention, the best first.

    Patterns behind hooks are not proven to be those of the heads. So code is read there only where all of it is
    transformers' own, whose families are measured one by one (`benchmarks.families`); and as any module's, with proof,
    where its attention does not reach our function at all.
    """
    if not isinstance(module, PreTrainedModel):
        return [_module_route]
    if _holds_others(module):
        return [_interface_route, _module_route]
    return [_interface_route, _hooks_route, _module_route]


def _holds_others(module: nn.Module) -> bool:
    """Whether some of a transformers model's modules are of classes that are not transformers' own."""
    libraries = {type(part).__module__.split(".")[0] for part in module.modules()}
    return bool(libraries - KNOWN)


def _unsupported(reason: str) -> Check:
    return Check(support="unsupported", reason=reason, max_abs_diff=None, kernels=(), heads={}, kv_heads=None)


def _failure(what: str, error: Exception) -> str:
    """Why the family's own code failed, in one line. Running out of memory says nothing about the model."""
    if out_of_memory(error):
        raise error
    return f"{what} ({type(error).__name__}: {brief(error)})"


def _tokens(model: Backbone) -> Tensor:
    if model.n_embeddings == 0:
        raise TypeError(f"its input embedding is a {type(model.embedding).__name__}, not one table of tokens")
    n_vocab = min(model.n_embeddings, int(getattr(model.config, "vocab_size", model.n_embeddings)))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(n_vocab, (N_PROMPTS, min(N_TOKENS, model.max_tokens or N_TOKENS)), generator=generator)
    return ids.to(model.device)


def _and_edited(model: Backbone, tokens: Tensor) -> Tensor:
    """The prompts, and the first twice more: once as it is and once with other tokens; both get their z replaced."""
    special = (getattr(model.config, f"{name}_token_id", None) for name in ("pad", "bos", "eos"))
    never = frozenset(one for one in special if isinstance(one, int))
    return torch.cat([tokens, tokens[:1], beside.with_other_tokens(tokens[0], never, model.n_embeddings)[None]])


_ZERO, _OTHER = 2, 3
"""Rows of the prompt whose z is set to zero, and of the one with other tokens."""


def _own_output(model: Backbone, tokens: Tensor) -> Tensor:
    """What the model gives as it is set; by its eager attention where that cannot run here, as FlashAttention."""
    with torch.no_grad(), evaluating(model.module):
        try:
            return model.run(tokens)
        except FAMILY_ERRORS as error:
            if out_of_memory(error):
                raise
            with implementation(model.module, "eager"):
                return model.run(tokens)


def _after(first: Check, best: Check) -> str:
    """Why `best` is degraded; and why its own code is watched where our attention function ran too."""
    if "own" in first.kernels or "own" not in best.kernels:
        return best.reason
    return f"{first.reason}, so its own code is watched: patterns and z are read there, and queries and keys are hidden"


def _unlike_itself(model: Backbone, tokens: Tensor, own: Tensor) -> str:
    """Says so where a model's output is not a function of one prompt, so that nothing can be compared; else empty."""
    limit = TOLERANCE.get(own.dtype, TOLERANCE[torch.float32]) * max(1.0, float(own.abs().max()))
    try:
        again = float((_own_output(model, tokens) - own).abs().max())
        alone = float((_own_output(model, tokens[:1]) - own[:1]).abs().max())
    except FAMILY_ERRORS:
        return ""
    if again > limit:
        return f"its output is another each time (by {again:.2g}), as with noise, or with what it keeps between calls"
    if alone > limit:
        return (
            f"its output for one prompt depends on the other prompts of the batch (by {alone:.2g}), as where a "
            "quantised layer takes its outliers over all of them"
        )
    return ""


def _unlike_eager(model: Backbone, tokens: Tensor, own: Tensor) -> str:
    """Advice for a model whose output depends on its attention setting; empty where it does not, or cannot be seen."""
    setting = getattr(model.config, "_attn_implementation", None)
    if not isinstance(model.module, PreTrainedModel) or setting in (None, "eager"):
        return ""
    try:
        with torch.no_grad(), evaluating(model.module), implementation(model.module, "eager"):
            difference = float((model.run(tokens) - own).abs().max())
    except FAMILY_ERRORS:
        return ""
    if difference <= TOLERANCE.get(own.dtype, TOLERANCE[torch.float32]) * max(1.0, float(own.abs().max())):
        return ""
    return (
        f"; set to {setting} its output differs from that of its eager attention by {difference:.2g}: load it with "
        "attn_implementation='eager'"
    )


def _non_finite(model: nn.Module) -> str:
    bad = [
        f"{name}.{part}".lstrip(".")
        for name, module in model.named_modules()
        for part, _ in module.named_parameters(recurse=False)
        if not torch.isfinite(weight_of(module, part)).all()
    ]
    where = (
        f"in weights {', '.join(bad[:3])}" + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        if bad
        else "in its output"
    )
    return f"the model has NaN or infinite numbers {where}; every score would be meaningless: use another checkpoint."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """One pass through a route."""

    route: Route
    seen: _Seen
    output: Tensor


def _interface_route(backbone: Backbone, tokens: Tensor, failures: list[str]) -> Iterator[_Look]:
    model = backbone.module
    others = _holds_others(model)
    names = {module: name for name, module in model.named_modules()}
    called: list[str] = []

    def number(module: nn.Module) -> tuple[int, int]:
        called.append(names[module])
        return len(dict.fromkeys(called)) - 1, 0

    for additive_mask in (False, True):
        called.clear()
        seen = _Seen(n_tokens=tokens.shape[1])
        with torch.no_grad(), evaluating(model), discovering(model, tokens.shape[1]) as outside:
            try:
                with installed(model, seen, number, additive_mask=additive_mask):
                    output = backbone.run(_and_edited(backbone, tokens))
            except UnknownArgument as unknown:
                failures.append(f"its attention is called with an argument we do not know ({unknown})")
                return
            except FAMILY_ERRORS as error:  # families outside the interface may need a mask of their own kind
                failures.append(_failure("it does not run with our attention function", error))
                continue
        if called and outside and not seen.elsewhere:
            failures.append(f"part of its attention ({outside[0]}) runs outside transformers' attention interface")
        elif called and others and (unread := _unread(backbone, tokens, additive_mask)):
            failures.append(unread)
        elif called:
            layers = layer_numbers(called)
            seen.heads = {layers[name]: seen.heads[index] for index, name in enumerate(dict.fromkeys(called))}
            route = Route(path="interface", layers=layers, calls=len(called), additive_mask=additive_mask)
            yield _Look(route=route, seen=seen, output=output)


def _unread(backbone: Backbone, tokens: Tensor, additive_mask: bool) -> str | None:
    """Why part of the attention would go unseen outside of our attention function; None where there is no such part."""
    rows = torch.cat([tokens, tokens[:1]])
    noting = Noting(*rows.shape)
    ours = installed(backbone.module, lambda attention: None, lambda module: (0, 0), additive_mask=additive_mask)
    with torch.no_grad(), evaluating(backbone.module), noting, ours:
        backbone.run(rows)
    return noting.reason


def _hooks_route(backbone: Backbone, tokens: Tensor, failures: list[str]) -> Iterator[_Look]:
    model, n_tokens = backbone.module, tokens.shape[1]
    for name in ("sdpa", "eager") if model._supports_sdpa else ("eager",):
        with (
            torch.no_grad(),
            evaluating(model),
            implementation(model, name),
            discovering(model, n_tokens) as projections,
        ):
            try:
                backbone.call(tokens)
            except FAMILY_ERRORS as error:
                failures.append(_failure(f"it does not run with {name} attention", error))
                continue
        if projections:
            layers = layer_numbers(projections)
            route = Route(path="hooks", layers=layers, calls=len(projections), implementation=name)
            seen = _Seen(n_tokens=tokens.shape[1])
            try:
                output = backbone.output(forward(backbone, route, _and_edited(backbone, tokens), seen))
            except FAMILY_ERRORS as error:
                failures.append(_failure("its attention could not be read", error))
                continue
            yield _Look(route=route, seen=seen, output=output)


def _module_route(backbone: Backbone, tokens: Tensor, failures: list[str]) -> Iterator[_Look]:
    """With queries and keys where they were found; then by patterns alone, which rounded logits make others."""
    try:
        route = proven_route(backbone, tokens)
        for one in () if route is None else (route, by_patterns(route)):
            seen = _Seen(n_tokens=tokens.shape[1])
            output = backbone.output(forward(backbone, one, _and_edited(backbone, tokens), seen))
            yield _Look(route=one, seen=seen, output=output)
    except (NotMixing, NotProven) as why:
        failures.append(str(why))
    except FAMILY_ERRORS as error:
        failures.append(_failure("its attention could not be read", error))


@dataclass(slots=True)
class _Seen:
    """What one checked pass showed."""

    n_tokens: int
    elsewhere: bool = False
    """Whether a call's queries or keys are not the tokens."""
    heads: dict[int, int] = field(default_factory=dict)
    kv_heads: set[int] = field(default_factory=set)
    kernels: set[str] = field(default_factory=set)
    patterns_only: bool = False
    mixing_error: float = 0.0
    logit_error: float = 0.0
    row_error: float = 0.0
    future: float = 0.0
    other_keys: int = 0
    read_elsewhere: float = 0.0
    """By how much queries, keys or values depend on other tokens, where no head can have moved them."""

    def __call__(self, attention: Attention) -> Tensor:
        """Look, then replace z of the last two prompts."""
        edited = attention.z.clone()
        edited[_ZERO] = 0
        beside.hold(edited, _OTHER, 0)
        self._look(attention)
        return edited

    def _look(self, attention: Attention) -> None:
        self.heads[attention.layer] = attention.n_heads
        self.kernels.add(attention.kernel)
        pattern = widened(attention.pattern())
        n_query, n_key = pattern.shape[-2:]
        if n_query != self.n_tokens or n_key < self.n_tokens:
            self.elsewhere = True
            return
        later = torch.ones(n_query, n_key, dtype=torch.bool, device=pattern.device).triu(1)
        later[:, n_query:] = False
        self.read_elsewhere = _worse(self.read_elsewhere, beside.read_elsewhere(attention, _OTHER, 0))
        self.future = _worse(self.future, float((pattern * later).sum(-1).max()))
        self.other_keys = max(self.other_keys, n_key - n_query)
        rows = pattern.sum(-1)
        scores = attention.scores
        if scores is None:
            self.patterns_only = True
        else:
            self.kv_heads.add(scores.k.shape[1])
            self.logit_error = _worse(self.logit_error, of_logits(scores))
            if scores.rule.sinks is not None:
                rows = rows + torch.exp(widened(scores.rule.sinks) - widened(scores.lse))
            mixed = (pattern @ widened(repeat_heads(scores.v, attention.n_heads))).transpose(1, 2)
            error = float((mixed - widened(attention.z)).abs().max()) / max(1.0, float(mixed.abs().max()))
            self.mixing_error = _worse(self.mixing_error, error)
        self.row_error = _worse(self.row_error, float((rows - 1).abs().max()))


def _worse(first: float, second: float) -> float:
    """The larger; NaN, once seen, stays."""
    return first if math.isnan(first) or second <= first else second


def _verify(model: Backbone, tokens: Tensor, look: _Look, own: Tensor) -> tuple[Check, bool]:
    """The check of one route, and whether it is degraded by rounding alone, which hides nothing."""
    route, seen, ours, edited = look.route, look.seen, look.output[:_ZERO], look.output[_ZERO]
    size = max(1.0, float(own.abs().max()))
    tolerance = max(TOLERANCE.get(dtype, TOLERANCE[torch.float32]) for dtype in (own.dtype, model.dtype))
    mistake = _worse(seen.mixing_error, seen.row_error)
    difference = float((ours - own).abs().max())
    moved = float((edited - ours[0]).abs().max())
    limit, rounded = tolerance * size, 0.0
    if difference > limit and model.embedding is not None:
        rounded = moved_by_rounding(model.embedding, lambda: _own_output(model, tokens), own, ours, limit)
    support: Support = "exact"
    if seen.elsewhere:
        support, reason = "unsupported", _ELSEWHERE
    elif seen.future > tolerance:
        support, reason = "unsupported", _ENCODER
    elif not (difference <= min(100 * tolerance, LARGEST_DIFFERENCE) * size or rounded > 0):
        support, reason = "unsupported", f"its output through our attention differs from its own by {difference:.2g}"
    elif not mistake <= tolerance + seen.logit_error:
        support, reason = (
            "unsupported",
            f"its heads' results are not the mix of their values by the probabilities seen (off by {mistake:.2g})",
        )
    elif difference > limit:
        support, reason = "degraded", f"its output through our attention differs from its own by {difference:.2g}"
        if rounded > 0:
            reason += (
                f", and rounding its embedding otherwise moves its own by {rounded:.2g}: it magnifies rounding, as "
                "routers of experts and quantised activations do"
            )
    elif moved <= limit:
        support, reason = "degraded", "heads can be read, but replacing their results does not change the output"
    elif seen.patterns_only:
        support, reason = (
            "degraded",
            (
                "its attention runs in code of its own: patterns and z are read there, O(n^2) memory for one layer at "
                "a time, and queries and keys cannot be seen"
            ),
        )
    elif seen.other_keys > 0:
        support, reason = (
            "degraded",
            f"it attends to {seen.other_keys} keys that are not tokens; scores cover the tokens",
        )
    else:
        how = {
            "interface": "our attention function",
            "hooks": "its own call of scaled-dot-product attention",
            "module": "its own code, seen where probabilities mix values,",
        }[route.path]
        reason = f"through {how} its output differs from its own by {difference:.2g}"
    unread = None if support == "unsupported" else _beside(model, tokens, look, tolerance)
    if unread is not None:
        reason += f"; {unread}"
        if beside.counted_as_seen(route):
            support, reason = "degraded", f"{reason}, so layers are counted by the attention that is read"
    check = Check(
        support=support,
        reason=reason,
        max_abs_diff=difference,
        kernels=tuple(sorted(seen.kernels)),
        heads=dict(sorted(seen.heads.items())),
        kv_heads=min(seen.kv_heads, default=None),
        unread=unread,
    )
    if support == "unsupported":
        return check, False
    routed = RoutedCheck(**{one.name: getattr(check, one.name) for one in fields(check)}, route=route)
    return routed, support == "degraded" and rounded > 0 and not seen.patterns_only


def _beside(model: Backbone, tokens: Tensor, look: _Look, tolerance: float) -> Unread | None:
    """What else mixes tokens; None where nothing does. Where queries and keys are hidden, modules before them tell."""
    apart = max(look.seen.read_elsewhere, beside.difference(look.output[0], look.output[_OTHER], axis=0))
    if apart <= tolerance and not look.seen.patterns_only:
        return None
    return beside.found(model, look.route, _and_edited(model, tokens)[[0, _OTHER]], tolerance)
