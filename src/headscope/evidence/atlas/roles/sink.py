"""Sink: rests on the first token, or writes next to nothing; and whether that head is dormant, shown by equivalence.

    score       attention on key 0; a head also has the score whose output is at most a tenth of its layer's mean
    dormant     zero and mean ablation both within +-0.01 nats, on repeated and on fresh tokens: `primary`
    bias        zero ablation hurts, mean ablation is within: it writes a constant: `secondary`
    active_dormant    dormant on one of the two, with an effect on the other: `secondary`
    active      rests on average, and its removal has an effect on both: `correlate`

Where the tests are too weak to show either, the outcome is `correlate`: that no effect was found shows nothing. The
look-alike is a head of small norm that matters: equivalence fails for it.

Reference:
    Sandoval-Segura et al. 2025, arXiv:2504.03889, for the output norm: attention alone misses inactive heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headscope.evidence.atlas.finding import RoleFinding
from headscope.evidence.atlas.outcome import RULE, Judged, OutcomeRule, in_words, shows_none, sign
from headscope.evidence.atlas.role import Role, Scored
from headscope.evidence.atlas.runner import METHODS, RoleRunner
from headscope.evidence.atlas.samples import Sample
from headscope.evidence.scan.result import THRESHOLD
from headscope.heads import HeadId

SMALL = 0.1
"""Share of its layer's mean output at or below which a head writes next to nothing."""
DOMAINS = ("second_copy", "first_copy")


def _score(runner: RoleRunner) -> Scored:
    score = runner.repeats["first_token"]
    has = score.mean(0) >= THRESHOLD
    measures = {}
    if "output" in runner.shapes:
        measures = {"output": runner.shapes["output"]}
        has = has | (runner.shapes["output"].mean(0) <= SMALL)
    return Scored(
        heads=runner.heads,
        score=score,
        chance=runner.repeats["first_token chance"],
        measures=measures,
        has_score=has,
        always=True,
        probe=dict(runner.probe.settings),
    )


def _test(runner: RoleRunner, scored: Scored, heads: Sequence[HeadId]) -> Mapping[HeadId, Mapping[str, Sample]]:
    found: dict[HeadId, dict[str, Sample]] = {}
    for head in heads:
        found[head] = {}
        for method in METHODS:
            for domain in DOMAINS:
                values = runner.removal(head, f"{method} {domain}")
                name = method if domain == "second_copy" else f"{method}_{domain}"
                found[head][name] = Sample(values=values)
                found[head][f"no_effect_{method}_{domain}"] = Sample(values=values, within_nats=RULE.within_nats)
    return found


def _judge(finding: RoleFinding, rule: OutcomeRule = RULE) -> Judged:
    if not finding.has_score:
        return Judged(outcome="null", reasons=())
    tests = finding.tests
    if not tests:
        return Judged(outcome=None, reasons=("no intervention was tried",))
    silent = {
        (method, domain): shows_none(tests[f"no_effect_{method}_{domain}"], rule)
        for method in METHODS
        for domain in DOMAINS
    }
    dormant = [domain for domain in DOMAINS if all(silent[method, domain] for method in METHODS)]
    effect = {
        (method, domain): sign(tests[method if domain == "second_copy" else f"{method}_{domain}"], rule)
        for method in METHODS
        for domain in DOMAINS
    }
    acts = [domain for domain in DOMAINS if any(effect[method, domain] for method in METHODS)]
    reasons = tuple(in_words(name, test) for name, test in tests.items() if name.startswith("no_effect"))
    if len(dormant) == len(DOMAINS):
        return Judged(outcome="primary", reasons=reasons, variant="dormant")
    if all(silent["mean", domain] for domain in DOMAINS) and any(effect["zero", domain] > 0 for domain in DOMAINS):
        return Judged(outcome="secondary", reasons=reasons, variant="bias")
    if len(dormant) == 1 and acts:
        return Judged(outcome="secondary", reasons=reasons, variant="active_dormant")
    return Judged(outcome="correlate", reasons=reasons, variant="active" if acts else None)


ROLE = Role(
    name="sink",
    order=80,
    letter="S",
    colour="#b8c0ca",
    sentence="rests on the first token or writes next to nothing",
    look_alike="a head of small norm that matters: two one-sided tests must show that its removal changes nothing",
    score=_score,
    test=_test,
    judge=_judge,
    explains=False,
    tested=1_000_000,
    score_passes=0.0,
    test_passes=0.0,
)
