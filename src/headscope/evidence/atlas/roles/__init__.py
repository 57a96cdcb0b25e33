"""Roles: one file each, found by listing this folder.

A role file `NAME.py` holds `ROLE = Role(...)` (`headscope.evidence.atlas.role`) and whatever it needs:

    name, order, letter, colour     `name` is the file's name; `order` is its place in legends
    sentence                        what a head with this role does, as "attends to ..."
    look_alike                      with what it is confused and what excludes that, in one sentence
    least                           least score (0.4 by default)
    score(runner) -> Scored         attention and weights alone, no interventions: [prompt, head] scores for every head,
                                    chance [head], control [prompt, head] where the role is about content. Must not
                                    depend on heads' order. Raise `NotAsked("reason")` where the model lacks what the
                                    probe needs (no tokenizer, a short context, words it cannot cut).
    score_intervenes                True where the score itself must ablate; a quick atlas then does not ask
    test(runner, scored, heads)      for the heads that have the score (at most 12, best first), by head and name the
        -> {head: {name: Sample}}   values per prompt. Positive values: the head serves the role. Names with a meaning:
                                        zero, mean      loss of the role's outcome under each ablation: necessity
                                        specific        the same for what the head reads at the role's targets alone
                                        transfer        movement of the outcome by patching z in: sufficiency
                                        look_alike...   above 0 only where the look-alike is excluded
                                    any other name is shown and decides nothing. A `Sample` with `within_nats` is a test
                                    of equivalence (TOST), for "it does nothing" claims; its values are plain changes.
    judge(finding, rule) -> Judged  only for roles with a rule of their own; by default `outcome.judge`
    targets(tokens, finding)        optional: (query, key) places that the role reads on repeated tokens; the share of a
                                    head's effect that no role explains is measured with them
    score_passes, test_passes       cost in forward passes of 4,096 tokens on GPT-2 small, for the estimate of time

`runner` gives (`headscope.evidence.atlas.runner`): `model`, `seed`, `n_prompts`; `attention(prompts, places)` reads
attention at places of your own prompts; `repeats` is the scan of repeated tokens that all roles share; `removals` what
zero and mean ablation of every head does there; `outcome_drops(...)`, `moved(...)` measure interventions on your own
prompts; `induction_heads` are the heads to ablate where induction must be excluded; `kept(name, compute)` keeps arrays
that several roles share. Everything random is drawn from `runner.seed`.

`Role` and `Scored` are in `headscope.evidence.atlas.role`, `Sample` and `NotAsked` in `.samples` beside it.
`headscope.evidence.atlas.looking` makes a whole role from one of the standard detectors. Plant a model for the role and
its decoys in `headscope.planted`, and test both at several seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from headscope.errors import ArgumentError, brief
from headscope.evidence.atlas.role import Role


@cache
def roles() -> dict[str, Role]:
    """Every role by its name, in the order of legends."""
    found = [import_module(f"{__name__}.{one.name}").ROLE for one in iter_modules(__path__)]
    return {role.name: role for role in sorted(found, key=lambda role: (role.order, role.name))}


def named(names: Sequence[str] | str | None) -> tuple[Role, ...]:
    """The roles of these names, each once and in the order of legends; all of them by default.

    Raises:
        ArgumentError: a name that no role has, or no name at all.
    """
    if names is None:
        return tuple(roles().values())
    wanted = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in wanted if name not in roles()]
    if unknown or not wanted:
        given = f"no role {brief(repr(unknown[0]))}" if unknown else "no role was named"
        raise ArgumentError(f"{given}; there are {', '.join(roles())}.")
    return tuple(role for role in roles().values() if role.name in wanted)
