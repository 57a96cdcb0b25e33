"""`headscope check`: do our numbers agree with the model's own forward pass?"""

from __future__ import annotations

from headscope.cli import options
from headscope.cli.following import suggest
from headscope.render.plain import say

PLACE = 12
"""Place of the command in the help."""


@options.opens()
def check(
    opening: options.Opening,
    as_json: options.JSON = False,
    seed: options.NO_SEED = 0,
) -> None:
    """Do our numbers agree with the model's own forward pass?

    The verdict is `exact`, `degraded` or `unsupported`, with the reason.

    Example: `headscope check demo`
    """
    from headscope.cli.quiet import silence

    silence()
    from headscope.evidence.check.measure import agreement
    from headscope.model.load import open_model

    found = agreement(open_model(opening.model, **opening.settings()))
    if as_json:
        say(found.to_json(), wrap=False)
        return
    about = found.model
    say(f"{about.id}: {about.support}, {about.reason}")
    if about.support != "unsupported":
        kv = "" if about.n_kv_heads in (None, about.n_heads) else f" ({about.n_kv_heads} key-value)"
        say(f"{about.family}, {about.n_layers} layers of {about.n_heads} heads{kv}; kernel {', '.join(found.kernels)}")
        suggest(["scan", *opening.words()], "which head attends like what")
