"""From the start of a process to its end: imports, `--help`, and a whole scan of the packaged model.

    python -m benchmarks.start --json

scan_demo_ratio     `headscope scan demo` over `import torch; from transformers import LlamaForCausalLM`, the imports
                    that loading a Llama cannot do without; median of ratios in the same round
help_s              median seconds of `headscope --help`

Interleaved, one warm-up round, so that files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

from benchmarks.timing import interleaved, medians, ratio

COMMAND = "import sys; sys.argv = ['headscope', {}]; from headscope.cli.main import main; main()"
STARTS = {
    "import headscope": "import headscope",
    "headscope --help": COMMAND.format("'--help'"),
    "headscope scan demo": COMMAND.format("'scan', 'demo'"),
    "import torch, LlamaForCausalLM": "import torch; from transformers import LlamaForCausalLM",
    "import transformer_lens": "import transformer_lens",
    "import nnsight": "import nnsight",
}


def measure(rounds: int) -> dict[str, Any]:
    """Everything, as one JSON-ready document."""

    def start(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=os.environ)

    there = {
        name: code
        for name, code in STARTS.items()
        if not name.startswith("import ") or find_spec(code.split(";")[0][7:])
    }
    seconds = interleaved({name: lambda code=code: start(code) for name, code in there.items()}, rounds=rounds)
    found = medians(seconds)
    return {
        "schema": "headscope.benchmark.start/1",
        "scan_demo_ratio": round(ratio(seconds, "headscope scan demo", "import torch, LlamaForCausalLM"), 3),
        "help_s": found["headscope --help"],
        "bars": {"scan_demo_ratio": 1.8, "help_s": 0.3},
        "median_s": found,
        "rounds": rounds,
        "cores": os.cpu_count(),
    }


def main() -> None:
    """Print the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document, as it does anyhow")
    parser.add_argument("--rounds", type=int, default=5)
    print(json.dumps(measure(parser.parse_args().rounds), indent=1))


if __name__ == "__main__":
    main()
