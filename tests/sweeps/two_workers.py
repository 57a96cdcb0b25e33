"""Run by test_hub, with a hub of its own: what a plan makes of it, then two processes that load one model at once.

Prints one JSON document. The processes are forked, so that what takes long is imported once.
"""

from __future__ import annotations

import json
import os
import sys

import torch
from transformers.utils import logging

import headscope as hs
from headscope.evidence.scan import measure as attention  # noqa: F401
from headscope.evidence.verify import measure as verify  # noqa: F401
from headscope.sweeps.plan import make_plan

torch.set_num_threads(1)
logging.disable_progress_bar()
store = sys.argv[1]

made = make_plan(["org/tiny", "org/tiny@step1", "org/tiny@step7", "org/none"])
children = []
for number in range(2):
    if (child := os.fork()) == 0:
        found = hs.sweep(["org/tiny@step1"], f"{store}-{number}", settings={"scan": {"n_prompts": 2, "period": 8}})
        for one in found.failures:
            print(one, file=sys.stderr, flush=True)
        os._exit(0 if found.done == 1 else 1)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
jobs = [(job.revision, job.commit) for job in made.jobs]
refused = [(one.job.model, one.job.revision, str(one.error)) for one in made.refused]
print(json.dumps({"jobs": jobs, "refused": refused, "codes": codes}))
