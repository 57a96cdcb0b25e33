"""The verdict: what a head is called, by a published rule, with its reasons.

The rows of `headscope.evidence.head_types` are asked in their order, and the first that accepts decides:

    stripe, effect +                                     -> induction
    stripe, effect -, or none alone and - behind others  -> anti_induction
    stripe or a part of one, + behind others alone       -> redundant_induction
    stripe, none of these                                -> attends_only
    no stripe: previous token >= 0.4                     -> previous_token
               earlier copies >= 0.4, half gone          -> duplicate_token
               some fixed offset >= 2 back >= 0.4        -> positional
               removing it changes the loss              -> matters
               first token >= 0.4                        -> first_token
               otherwise                                 -> none

`headscope.evidence.verify.evidence` has the questions: stripe, effect, behind others.
"""

from __future__ import annotations

from headscope.evidence import head_types
from headscope.evidence.verify.evidence import RULE, Evidence, Restored, VerdictRule, has_stripe, q_text

__all__ = ["RULE", "VERDICTS", "Evidence", "Restored", "Verdict", "VerdictRule", "has_stripe", "judge", "q_text"]

Verdict = str
"""The name of a head type."""
VERDICTS: tuple[Verdict, ...] = tuple(one.name for one in head_types.meanings())


def judge(evidence: Evidence, rule: VerdictRule = RULE) -> tuple[Verdict, tuple[str, ...]]:
    """A head's verdict and the reasons for it, in words."""
    for one in head_types.HEAD_TYPES:
        reasons = one.judge(evidence, rule)
        if reasons is not None:
            return one.name, reasons
    raise AssertionError("the last head type accepts every head")
