"""Build wheel and sdist, and try them where nothing else is installed.

    python -m scripts.release [--keep]

1. Both are built into `dist/`.
2. A wheel built from the unpacked sdist must hold the same files, byte for byte.
3. In a new environment: torch and the wheel, with the pinned versions; `pip check`; then, in an empty folder and
   without a network, `headscope --version`, `headscope scan demo` and `headscope report demo`.

Prints what was tried; any failure ends it. `--keep` leaves the environment in `build/release`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CLEAN = ROOT / "build" / "release"


def run(*command: object, cwd: Path = ROOT, **environment: str) -> str:
    """Stdout of a command; its stderr is shown, and a failure ends the script."""
    arguments = [str(one) for one in command]
    done = subprocess.run(arguments, cwd=cwd, env=os.environ | environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} ends with exit code {done.returncode}\n{done.stdout}")
    return done.stdout


def build(source: Path, target: Path, kind: str) -> Path:
    """The one file of this kind, `wheel` or `sdist`, that hatchling makes of a source tree."""
    run(sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", target, cwd=source)
    (made,) = target.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


def contents(wheel: Path) -> dict[str, str]:
    """Hash of every file in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


def main() -> None:
    """The command in this module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="leave the environment")
    keep = parser.parse_args().keep
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    wheel, sdist = build(ROOT, dist, "wheel"), build(ROOT, dist, "sdist")
    with tempfile.TemporaryDirectory() as scratch, tarfile.open(sdist) as archive:
        archive.extractall(scratch, filter="data")
        (unpacked,) = Path(scratch).iterdir()
        again = contents(build(unpacked, Path(scratch) / "dist", "wheel"))
    if odd := sorted({name for name, _ in contents(wheel).items() ^ again.items()}):
        sys.exit(f"the wheel of the sdist differs from the wheel in {', '.join(odd[:5])}")
    print(f"{wheel.name} {wheel.stat().st_size / 1e6:.1f} MB, {len(again)} files; {sdist.name} makes the same wheel")
    shutil.rmtree(CLEAN, ignore_errors=True)
    run(sys.executable, "-m", "venv", CLEAN)
    python, constraints = CLEAN / "bin" / "python", ROOT / "constraints.txt"
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", constraints)
    torch = next(line for line in constraints.read_text().splitlines() if line.startswith("torch=="))
    run(*pip, torch)
    run(*pip, wheel)
    print(run(python, "-m", "pip", "check").strip())
    with tempfile.TemporaryDirectory() as empty:
        headscope, place = CLEAN / "bin" / "headscope", Path(empty)
        print(run(headscope, "--version", cwd=place).strip())
        scan = json.loads(run(headscope, "scan", "demo", "--json", cwd=place, HF_HUB_OFFLINE="1"))
        assert scan["found"]["induction"], "the packaged model has induction heads"
        print(f"scan demo: {len(scan['found']['induction'])} induction heads")
        run(headscope, "report", "demo", "--out", "page.html", cwd=place, HF_HUB_OFFLINE="1")
        print(f"report demo: {(place / 'page.html').stat().st_size / 1e6:.1f} MB")
    if not keep:
        shutil.rmtree(CLEAN)


if __name__ == "__main__":
    main()
