"""Run the tests of numbers as other processors and other numbers of threads would compute them.

    python -m scripts.portability          every setting that this processor has, on all tests of numbers
    python -m scripts.portability --few    two settings on a few tests, as CI runs them

A setting limits the instructions that torch's own kernels, oneDNN and MKL may use (`ATEN_CPU_CAPABILITY`,
`ONEDNN_MAX_CPU_ISA`, `MKL_ENABLE_INSTRUCTIONS`) and fixes the number of threads. One after the other, since threads of
several would wait for each other; the two of --few go beside each other.

Cost: about 10 minutes of one core for each setting; with --few two.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
NUMBERS = (
    "atlas",
    "behaviors",
    "compare",
    "detectors",
    "evidence",
    "lab",
    "model",
    "probes",
    "tracking",
    "test_course.py",
    "test_docs.py",
)
FEW = (
    "evidence/test_attention.py",
    "evidence/test_verify.py::test_every_head_of_a_handbuilt_model_is_called_what_it_is",
    "evidence/test_verify.py::test_the_demos_induction_heads_are_those_of_its_second_layer_but_one",
    "evidence/test_verify.py::test_effects_are_those_of_ablate_on_the_held_out_prompts",
    "model/test_kernels.py",
)
LIMITS = {"default": ("SSE41", "SSE4_2"), "avx2": ("AVX2", "AVX2"), "avx512": ("AVX512_CORE", "AVX512")}
"""By torch's name of the instructions: oneDNN's and MKL's."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Which instructions, on how many threads."""

    instructions: str
    threads: int

    def __str__(self) -> str:
        return f"{self.instructions}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    def environment(self) -> dict[str, str]:
        """What a process needs in its environment."""
        onednn, mkl = LIMITS[self.instructions]
        threads = str(self.threads)
        return {
            "ATEN_CPU_CAPABILITY": self.instructions,
            "ONEDNN_MAX_CPU_ISA": onednn,
            "MKL_ENABLE_INSTRUCTIONS": mkl,
            "OMP_NUM_THREADS": threads,
            "HEADSCOPE_TEST_THREADS": threads,
        }


def settings(*, here: str, few: bool) -> list[Setting]:
    """Those of a processor whose best instructions are `here`: each kind once, then the best on 2 and 4 threads."""
    names = list(LIMITS)
    usable = names[: names.index(here) + 1] if here in LIMITS else ["default"]
    if few:
        return [Setting("default", 1), Setting(usable[-1], 2)]
    return [*(Setting(name, 1) for name in usable), Setting(usable[-1], 2), Setting(usable[-1], 4)]


def run(setting: Setting, files: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The tests of these files."""
    command = [sys.executable, "-m", "pytest", "--quiet", "-m", "not browser and not soak", *files]
    environment = os.environ | setting.environment()
    return subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def main(arguments: list[str] | None = None) -> int:
    """Run them all; 1 where one failed."""
    parser = argparse.ArgumentParser(prog="python -m scripts.portability", description="Tests on other processors.")
    parser.add_argument("--few", action="store_true", help="two settings on a few tests")
    few = parser.parse_args(arguments).few
    import torch

    chosen = settings(here=torch.backends.cpu.get_cpu_capability().lower(), few=few)
    files = [f"tests/{name}" for name in (FEW if few else NUMBERS)]
    failed = []
    with ThreadPoolExecutor(len(chosen) if few else 1) as pool:
        for setting, ran in zip(chosen, pool.map(lambda setting: run(setting, files), chosen), strict=True):
            print(f"portability: {setting}\n{ran.stdout}", flush=True)
            if ran.returncode != 0:
                failed.append(str(setting))
    missed = f"; not: {'; '.join(failed)}" if failed else ""
    print(f"portability: {len(chosen) - len(failed)} of {len(chosen)} settings pass{missed}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
