"""How a script that mounts things ends: whatever ends it, its `finally` blocks run, and they find what they know of.

A shell starts what runs in the background with SIGINT ignored, and SIGTERM ends a program on the spot.
"""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from types import FrameType


def end_by_sigterm() -> None:
    """From now on SIGTERM raises SystemExit, once: the second one must not end what cleans up after the first.

    subprocess.run kills its child when that comes, so none is left behind.
    """

    def end(number: int, _: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)


def run_to_end(*command: str | Path) -> str:
    """Standard output of a command that must not be killed half way, like a mount. SystemExit where it fails."""
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        out, err = process.communicate()  # leaving the block early waits for the process, unlike subprocess.run
    if process.returncode != 0:
        raise SystemExit(err)
    return out
