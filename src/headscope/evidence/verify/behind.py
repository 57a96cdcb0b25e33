"""What a head does where others do not stand in for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from headscope.evidence.verify.evidence import RULE, Restored, significant
from headscope.evidence.verify.trial import FEW_PROMPTS, Trial
from headscope.heads import HeadId
from headscope.records.common import Estimate
from headscope.stats import benjamini_hochberg, p_values


class Behind:
    """Candidates ablated alone, and stripe heads restored while the others stay ablated; with q-values over all.

    A head that does nothing alone, nor behind the other heads with a stripe, may have a stand-in that attends a little
    less than a stripe asks for. So such heads are tried once more with those ablated too, which are then tried as well.

    Heads are restored in a few prompts first. What a head does alone decides its verdict if it does anything
    (`decided`), and then the few are all; the other heads are restored in every prompt.
    """

    def __init__(
        self,
        trial: Trial,
        candidates: Sequence[HeadId],
        stripes: Sequence[HeadId],
        partial: Sequence[HeadId],
        decided: Callable[[HeadId, Restored], bool],
    ) -> None:
        self._trial = trial
        self._gone: dict[HeadId, frozenset[HeadId]] = {}
        self._alone = list(candidates)
        everyone = frozenset(stripes)
        self._restore(stripes if len(stripes) > 1 else [], everyone, n=FEW_PROMPTS)
        self._settle(everyone, decided)
        idle = [
            head
            for head in stripes
            if not significant(self.removed.get(head)) and not significant(self.restored.get(head))
        ]
        if idle and partial:
            self._restore([*idle, *partial], everyone | frozenset(partial))
            self._settle(everyone, decided)
        self.tests: int = len(self.removed) + len(self.restored)

    def _settle(self, everyone: frozenset[HeadId], decided: Callable[[HeadId, Restored], bool]) -> None:
        """Test, and restore in every prompt what is open; more prompts change all q-values, and so what is open."""
        self._test()
        while unread := [
            head
            for head, row in self._rows.items()
            if len(row) < self._trial.n_prompts and not decided(head, self.removed[head])
        ]:
            self._restore(unread, everyone)
            self._test()

    def _restore(self, heads: Sequence[HeadId], gone: frozenset[HeadId], *, n: int | None = None) -> None:
        self._gone |= dict.fromkeys(heads, gone)
        if heads:
            # Restoring one head starts from the pass without all of them, at the layer of that head.
            self._trial.run([gone, *(gone - {head} for head in heads)], base=gone, n=n)

    def _test(self) -> None:
        trial = self._trial
        rows = [trial.delta([head]) for head in self._alone]
        self._rows = {head: self._restoring(head) for head in self._gone}
        rows += self._rows.values()
        q = benjamini_hochberg(np.asarray([float(p_values(row)) for row in rows])) if rows else np.empty(0)
        estimates = map(Estimate.of_loss, rows)
        found = [Restored(delta_loss_nats=one, q_value=float(p)) for one, p in zip(estimates, q, strict=True)]
        n = len(self._alone)
        self.removed: dict[HeadId, Restored] = dict(zip(self._alone, found[:n], strict=True))
        self.restored: dict[HeadId, Restored] = dict(zip(self._gone, found[n:], strict=True))

    def _restoring(self, head: HeadId) -> Float[np.ndarray, " prompt"]:
        """Loss without all of them minus the loss with this one alone, in the prompts that were read both ways."""
        gone = self._gone[head]
        without, alone = self._trial.delta(gone), self._trial.delta(gone - {head})
        n = min(len(without), len(alone))
        return without[:n] - alone[:n]

    def ablated(self, head: HeadId) -> tuple[HeadId, ...]:
        """The other heads that stayed ablated when this one was restored."""
        return tuple(sorted(self._gone.get(head, frozenset()) - {head}))

    def interchangeable(self, head: HeadId) -> tuple[HeadId, ...]:
        """The other heads that do all of the work alone, if this one does too."""
        enough = [one for one in self._gone if self._suffices(one)]
        return tuple(sorted(one for one in enough if one != head)) if head in enough else ()

    def _suffices(self, head: HeadId) -> bool:
        """Whether it is not needed, and alone restores what all of them restore."""
        whole = float(self._trial.delta(self._gone[head]).mean())
        return (
            not significant(self.removed.get(head))
            and significant(self.restored[head]) > 0
            and float(self._rows[head].mean()) >= RULE.suffices * whole
        )
