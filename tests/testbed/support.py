"""Running the testbed's command line, and seeing what it left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from keigo import mounts
from testbed import server, stack

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "testbed")
MIB = 1 << 20

FAST = """
about: fast
size: 64MiB
read: {base_us: 1, slots: 64, bandwidth: 10GB/s}
write: {base_us: 1, slots: 64, bandwidth: 10GB/s}
"""


def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, args)], cwd=ROOT, capture_output=True, text=True, timeout=120)


def good(*args: str | Path) -> str:
    done = run(*args)
    assert done.returncode == 0, done.stderr
    return done.stdout


def error_of(*args: str | Path) -> str:
    """The one line with which a command fails."""
    done = run(*args)
    assert done.returncode == 1, (done.stdout, done.stderr)
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("note: ") and " is up: " not in line]
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


def start(*args: str | Path) -> subprocess.Popen[Any]:
    return subprocess.Popen([*COMMAND, *map(str, args)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def left_of(directory: Path, *names: str) -> list[str]:
    """Mounts, loop devices and servers that are there of a testbed."""
    found = [mount.path for mount in mounts.mounts_below(str(directory))]
    for name in names:
        image = stack.places(directory, name).image
        found += stack.loops_of(image)
        found += ["server"] if server.find(image) else []
    return found
