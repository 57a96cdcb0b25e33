"""`headscope`, and `python -m headscope`: Ctrl-C at any moment, while libraries are imported too, ends in one line.

Exit code 130. A command that keeps what it has done says itself what that is.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

from headscope.errors import STOPPED
from headscope.render.plain import say


def main() -> None:
    """Run the command line."""
    stopped = False

    def stop(*_: Any) -> None:
        nonlocal stopped
        stopped = True
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)
    try:
        from headscope.cli.main import main as run

        run()
    except SystemExit:
        raise
    except BaseException:  # of Ctrl-C a library may make another error, or it was cut off while it was imported
        if not stopped:
            raise
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        say(STOPPED, err=True)
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to stop


if __name__ == "__main__":
    main()
