"""`make portability`: what it runs is what it says, and is there to run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from scripts.portability import FEW, LIMITS, NUMBERS, Setting, settings

TESTS = Path(__file__).parent


def test_every_kind_of_instruction_that_is_there_is_run_and_1_2_and_4_threads():
    assert [str(one) for one in settings(here="avx512", few=False)] == [
        "default, 1 thread",
        "avx2, 1 thread",
        "avx512, 1 thread",
        "avx512, 2 threads",
        "avx512, 4 threads",
    ]
    assert {one.instructions for one in settings(here="avx2", few=False)} == {"default", "avx2"}
    assert {one.instructions for one in settings(here="neon", few=False)} == {"default"}
    assert len(settings(here="avx2", few=True)) == 2
    assert set(LIMITS) >= {one.instructions for one in settings(here="avx512", few=True)}


def test_what_it_runs_is_there():
    for name in (*NUMBERS, *FEW):
        file, _, test = name.partition("::")
        assert (TESTS / file).exists(), name
        assert not test or f"\ndef {test}(" in (TESTS / file).read_text(), name


def test_a_setting_reaches_torch():
    code = "import torch; print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())"
    environment = os.environ | Setting("default", 2).environment()
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.split() in (["DEFAULT", "2"], ["NO", "AVX", "2"])


def test_the_number_of_threads_of_these_tests_is_the_settings():
    assert torch.get_num_threads() == int(os.environ.get("HEADSCOPE_TEST_THREADS", "1"))
