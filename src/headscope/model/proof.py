"""Where a module attends, and proof that what is seen there is what its heads do.

One pass over three prompts, the third like the first, shows each attention call and which axes are those of prompts and
heads. Then each call's z is multiplied by another factor for each head, one call at a time: every number that the next
linear map reads must come out multiplied by the factor of one head. So an edit of head h's z changes exactly what
zeroing its rows of that map changes, whatever the map is made of, in whatever order it reads heads. Results
that are added to, normalised over heads, or mixed between them fail, and are refused with that reason.

Cost: two passes, and one for each attention call, over 3 prompts of 17 tokens.
"""

# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from itertools import takewhile

import torch
from jaxtyping import Int
from torch import Tensor, nn

from headscope.model.attention import Attention
from headscope.model.backbone import Backbone
from headscope.model.mixing import Watch, mixing, owning
from headscope.model.names import layer_numbers, stack_of
from headscope.model.precision import widened
from headscope.model.product import Seen, Site, fitted_scale
from headscope.model.scope import evaluating
from headscope.model.taps import TOLERANCE, Route, Stop
from headscope.model.unseen import Unseen

LEAST_PART = 1e-3
"""Numbers below this share of the largest tell no factor."""


ROUNDING = 1e-4
"""Share by which the fitted scales of heads that have one scale may differ."""


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

    readers: list[frozenset[int]] = []
    unseen = Unseen(*rows.shape)
    watch = Watch(rows.shape[1], meet, lambda indices, given: readers.append(indices), unseen)
    with torch.no_grad(), evaluating(backbone.module), owning(backbone.module, watch), watch:
        backbone.call(rows)
    if unseen.reason is not None:
        raise NotProven(unseen.reason)
    if not seen:
        return None
    groups = _groups(len(seen), readers)
    found = [_laid_out(call, len(rows), tolerance) for call, _ in seen]
    layers, sites = _numbered(backbone.module, seen, found, groups)
    route = Route(path="module", layers=layers, calls=len(groups), sites=sites)
    _prove(backbone, route, rows, tolerance)
    return route


def by_patterns(route: Route) -> Route:
    """The same route without queries and keys."""
    return replace(
        route, sites={owner: tuple(replace(site, scale=None) for site in own) for owner, own in route.sites.items()}
    )


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


def _groups(n_calls: int, readers: list[frozenset[int]]) -> list[list[int]]:
    """Calls whose results one linear map reads together: a layer's heads, computed one after another."""
    together = {min(one): sorted(one) for one in readers}
    later = {index for group in together.values() for index in group[1:]}
    return [together.get(index, [index]) for index in range(n_calls) if index not in later]


def _numbered(
    module: nn.Module, seen: list[tuple[Seen, int]], found: list[Site], groups: list[list[int]]
) -> tuple[dict[str, int], dict[str, tuple[Site, ...]]]:
    """Layers by the module that holds them, and the sites of each module, with their layer and call.

    A module without a number in its name may hold several layers.
    """
    holders: list[str] = []
    names: list[str] = []
    at: dict[tuple[str, int], int] = defaultdict(int)
    for group in groups:
        holder, begun = _common(module, [seen[index][0].owner for index in group]), seen[group[0]][1]
        number = at[holder, begun]
        at[holder, begun] += 1
        holders.append(holder)
        names.append(holder if stack_of(holder) is not None else f"{holder}@{number}")
    numbers, calls = layer_numbers(names), defaultdict[int, int](int)
    order = [numbers[name] for name in dict.fromkeys(names)]
    if order != sorted(order):
        raise NotProven(f"its layers run in the order {order}, not in that of the numbers in their names")
    layers: dict[str, int] = {}
    sites: dict[str, list[Site]] = {}
    for group, holder, name in zip(groups, holders, names, strict=True):
        layer = numbers[name]
        layers.setdefault(holder, layer)
        widths = sorted({seen[index][0].result.shape[-1] for index in group})
        if len(widths) > 1:
            raise NotProven(f"the heads of layer {layer} are {widths} numbers wide; they have to be of one width")
        scale = _one_scale([found[index].scale for index in group])
        for part, index in enumerate(group):
            site = replace(found[index], layer=layer, call=calls[layer], part=part, parts=len(group), scale=scale)
            sites.setdefault(seen[index][0].owner, []).append(site)
        calls[layer] += 1
    return layers, {owner: tuple(own) for owner, own in sites.items()}


def _one_scale(scales: list[float | None]) -> float | None:
    """The factor of q . k that heads fitted one by one share, but for rounding; None where they do not."""
    known = [one for one in scales if one is not None]
    if len(known) < len(scales) or max(known) - min(known) > ROUNDING * max(map(abs, known)):
        return None
    return sum(known) / len(known)


def _common(module: nn.Module, owners: list[str]) -> str:
    """The innermost module that runs and holds all of these."""
    if len(set(owners)) == 1:
        return owners[0]
    parts = zip(*(owner.split(".") for owner in owners), strict=False)
    found = ".".join(same[0] for same in takewhile(lambda steps: len(set(steps)) == 1, parts))
    while isinstance(module.get_submodule(found), (nn.ModuleList, nn.ModuleDict)):
        found = found.rpartition(".")[0]
    return found


def _prove(backbone: Backbone, route: Route, rows: Tensor, tolerance: float) -> None:
    plain = _read(backbone, route, rows, None)
    order: dict[tuple[int, int], int] = defaultdict(int)
    parts: dict[tuple[int, int], int] = {}
    for site in (site for own in route.sites.values() for site in own):
        order[site.layer, site.call] += site.n_heads
        parts[site.layer, site.call] = site.parts
    for (layer, call), n_heads in sorted(order.items()):
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
            one_by_one = ", or one is used before all are there" if parts[layer, call] > 1 else ""
            raise NotProven(
                f"between the heads of {name} and the linear map that reads them their results are mixed, normalised "
                f"or added to{one_by_one}, so none of its inputs belongs to one head"
            )


def _read(
    backbone: Backbone, route: Route, rows: Tensor, edit: tuple[int, int, Tensor] | None
) -> dict[tuple[int, int], Tensor]:
    """What the linear map behind each attention call reads, with one call's heads multiplied by these factors."""
    inputs: dict[tuple[int, int], Tensor] = {}

    def visit(attention: Attention) -> Tensor | None:
        if edit is None or (attention.layer, attention.call) != edit[:2]:
            return None
        return attention.z * edit[2].to(attention.z)[:, None]

    def reads(place: tuple[int, int], given: Tensor) -> None:
        inputs[place] = given.clone()
        if edit is not None and place == edit[:2]:
            raise Stop

    with torch.no_grad(), evaluating(backbone.module):
        shape = (rows.shape[0], rows.shape[1])
        with suppress(Stop), mixing(backbone.module, route.sites, shape, visit, reads=reads):
            backbone.call(rows)
    return inputs
