"""The `demo` model: a real, small, trained transformer that ships with the package.

Two layers of six heads, attention only, byte-level BPE of 1,024 tokens, trained half on the Python standard
library's source and half on jittered repeats. It reads Python a little, and it has one clear previous-token
head, several induction heads that listen to it, and a head that is neither: what a first look needs.
`training.json` beside the weights holds how it was made and what was measured.

Made again, on one thread so that the number of cores changes nothing, by

    python -m headscope.training.demo --out DIR

Misleading as: a language model. Half of its training was random tokens.
"""

import argparse
import json
import sys
from pathlib import Path

from headscope.errors import ModelNotFound


def demo_path() -> Path:
    """The folder with the packaged model, tokenizer and `training.json`.

    Raises:
        ModelNotFound: The package was installed without them.
    """
    folder = Path(__file__).parent / "demo_model"
    if not (folder / "model.safetensors").is_file():
        raise ModelNotFound(
            f"demo: {folder} holds no model.safetensors; the packaged demo model is needed. "
            f"Reinstall headscope, or run `python -m headscope.training.demo --out {folder}`."
        )
    return folder


def main(arguments: list[str] | None = None) -> None:
    """The command in this module's text: progress on stderr, the measured figures on stdout."""
    parser = argparse.ArgumentParser(
        prog="python -m headscope.training.demo",
        description="Train headscope's demo model again.",
        epilog="example: python -m headscope.training.demo --out my-demo && headscope scan my-demo",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and the batches (default 0)")
    given = parser.parse_args(arguments)

    import torch

    from headscope.training.demo_training import build_demo

    # One thread adds in one order, whatever the machine: the same weights on any number of cores.
    torch.set_num_threads(1)
    record = build_demo(given.out, seed=given.seed, report=lambda line: print(line, file=sys.stderr, flush=True))
    print(json.dumps(record["measured"], indent=2))


if __name__ == "__main__":
    main()
