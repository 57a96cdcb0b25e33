"""Where a module attends, and proof that what is seen there is what its heads do.

One pass over three prompts, the third like the first, shows each attention call and which axes are those of prompts and
heads. Then each call's z is multiplied by another factor for each head, one call at a time: every number that the next
linear map reads must come out multiplied by the factor of one head. So an edit of head h's z changes exactly what
zeroing its rows of that map changes, whatever the map is made of, in whatever order it reads heads. Results
that are added to, normalised over heads, or mixed between them fail, and are refused with that reason.

Cost: two passes, and one for each attention call, over 3 prompts of 17 tokens.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from headscope.model.attention import Attention
from headscope.model.backbone import Backbone
from headscope.model.mixing import Watch, mixing, owning
from headscope.model.names import layer_numbers, stack_of
from headscope.model.precision import widened
from headscope.model.product import Seen, Site, fitted_scale
from headscope.model.scope import evaluating
from headscope.model.taps import TOLERANCE, Route, Stop

LEAST_PART = 1e-3
"""Numbers below this share of the largest tell no factor."""


class NotProven(Exception):
    """What was seen is not what its heads do; the message says why."""


def proven_route(backbone: Backbone, tokens: Int[Tensor, "prompt position"]) -> Route | None:
    """How the attention of any module is reached; None where no softmax over its tokens mixes values.

    Args:
        backbone: The model, left as it was.
        tokens: Two different prompts.

    Raises:
        NotMixing: a softmax over tokens does not mix values as it is.
        NotProven: a head's result reaches the output in another way than through its own part of a linear map.
    """
    rows = torch.cat([tokens, tokens[:1]])
    tolerance = TOLERANCE.get(backbone.dtype, TOLERANCE[torch.float32])
    seen: list[tuple[Seen, int]] = []

    def meet(call: Seen) -> None:
        seen.append((call, watch.begun[call.owner]))

    watch = Watch(rows.shape[1], meet, lambda index, given: None)
    with torch.no_grad(), evaluating(backbone.module), owning(backbone.module, watch), watch:
        backbone.call(rows)
    if not seen:
        return None
    sites = _numbered(seen, [_laid_out(call, len(rows), tolerance) for call, _ in seen])
    route = Route(path="module", layers=_layers(sites), calls=len(seen), sites=sites)
    _prove(backbone, route, rows, tolerance)
    return route


def _laid_out(seen: Seen, n_rows: int, tolerance: float) -> Site:
    """The site's axes: on the prompts' axis the third is like the first, and the second is not."""
    leads = seen.result.shape[:-2]
    plain = Site(layer=0, call=0, n_heads=1)
    if len(leads) == 1:
        fits = [replace(plain, heads_first=order) for order in (False, True)] if leads[0] % n_rows == 0 else []
    else:
        fits = [replace(plain, axis=axis) for axis, size in enumerate(leads) if size == n_rows]
    for site in fits:
        z = site.by_head(seen.result, n_rows)
        size = tolerance * float(z.abs().max())
        if float((z[0] - z[2]).abs().max()) <= size < float((z[0] - z[1]).abs().max()):
            site = replace(site, n_heads=z.shape[1])
            return replace(site, scale=None if seen.sdpa else fitted_scale(seen, site, n_rows, tolerance))
    raise NotProven(f"of the axes {list(leads)} before its queries, none is that of the prompts")


def _numbered(seen: list[tuple[Seen, int]], found: list[Site]) -> dict[str, tuple[Site, ...]]:
    """Layer and call of each site. A module without a number in its name may hold several layers."""
    names: list[str] = []
    at: dict[tuple[str, int], int] = defaultdict(int)
    for call, begun in seen:
        number = at[call.owner, begun]
        at[call.owner, begun] += 1
        names.append(call.owner if stack_of(call.owner) is not None else f"{call.owner}@{number}")
    layers, calls = layer_numbers(names), defaultdict[int, int](int)
    sites: dict[str, list[Site]] = {}
    for (call, _), name, site in zip(seen, names, found, strict=True):
        layer = layers[name]
        sites.setdefault(call.owner, []).append(replace(site, layer=layer, call=calls[layer]))
        calls[layer] += 1
    return {owner: tuple(own) for owner, own in sites.items()}


def _layers(sites: dict[str, tuple[Site, ...]]) -> dict[str, int]:
    return {owner: own[0].layer for owner, own in sites.items()}


def _prove(backbone: Backbone, route: Route, rows: Tensor, tolerance: float) -> None:
    plain = _read(backbone, route, rows, None)
    order = sorted((site.layer, site.call, site.n_heads) for own in route.sites.values() for site in own)
    for layer, call, n_heads in order:
        factors = 1 + torch.arange(1, n_heads + 1, dtype=torch.float64) / (n_heads + 1)
        read = _read(backbone, route, rows, (layer, call, factors))
        name = f"layer {layer}"
        if (layer, call) not in plain or (layer, call) not in read:
            raise NotProven(f"no linear map reads what the heads of {name} give")
        before, after = widened(plain[layer, call]).flatten(), widened(read[layer, call]).flatten()
        if before.shape != after.shape:
            raise NotProven(f"what reads the heads of {name} changes its shape with them")
        tells = before.abs() > LEAST_PART * before.abs().max()
        ratio = after[tells] / before[tells]
        off, which = (ratio[:, None] - factors.to(ratio)).abs().min(dim=1)
        if float(off.max()) > min(0.2 / (n_heads + 1), max(tolerance, 1e-3) * 3) or len(which.unique()) < n_heads:
            raise NotProven(
                f"between the heads of {name} and the linear map that reads them their results are mixed, normalised "
                "or added to, so none of its inputs belongs to one head"
            )


def _read(
    backbone: Backbone, route: Route, rows: Tensor, edit: tuple[int, int, Tensor] | None
) -> dict[tuple[int, int], Tensor]:
    """What the linear map behind each attention call reads, with one call's heads multiplied by these factors."""
    inputs: dict[tuple[int, int], Tensor] = {}
    order: list[tuple[int, int]] = []

    def visit(attention: Attention) -> Tensor | None:
        order.append((attention.layer, attention.call))
        if edit is None or order[-1] != edit[:2]:
            return None
        return attention.z * edit[2].to(attention.z)[:, None]

    def reads(index: int, given: Tensor) -> None:
        inputs[order[index]] = given.clone()
        if edit is not None and order[index] == edit[:2]:
            raise Stop

    with torch.no_grad(), evaluating(backbone.module):
        shape = (rows.shape[0], rows.shape[1])
        with mixing(backbone.module, route.sites, shape, visit, reads=reads), suppress(Stop):
            backbone.call(rows)
    return inputs
