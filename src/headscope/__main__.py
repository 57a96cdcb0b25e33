"""`headscope`, and `python -m headscope`: Ctrl-C at any moment, while libraries are imported too, ends in one line.

Exit code 130. `headscope.stopping` says how.
"""

from __future__ import annotations

import signal
import sys

from headscope.cli.progress import wipe
from headscope.render.plain import say
from headscope.stopping import ends


def main() -> None:
    """Run the command line."""
    ends(_last_line)
    try:
        from headscope.cli.main import main as run

        run()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to stop


def _last_line(text: str) -> None:
    """On a stream of its own: what was interrupted may be writing to the other."""
    given = sys.stderr
    with open(given.fileno(), "w", encoding=given.encoding, errors="backslashreplace", closefd=False) as sys.stderr:
        wipe()
        say(text, err=True)


if __name__ == "__main__":
    main()
