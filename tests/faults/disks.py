"""Disks that are recorded, or told to fail: loop devices over the files of `recorder`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.devices.disks import command
from tests.engines.processes import ROOT

NAMES = ("fast", "mid", "slow")


@contextmanager
def loops(images: list[Path], *options: str) -> Iterator[list[str]]:
    with ExitStack() as stack:
        found = []
        for image in images:
            device = command("losetup", "--show", "-f", *options, image)
            stack.callback(command, "losetup", "-d", device)
            found.append(device)
        yield found


def fail(disk: Path, how: str) -> None:
    """Have a recorded disk fail from now on, or, with an empty text, work again."""
    os.setxattr(disk.parent, f"user.{disk.name}", how.encode())


@contextmanager
def recorder(base: Path, log: Path, size: int) -> Iterator[list[Path]]:
    """Files that are recorded disks."""
    at = base / "disks"
    at.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.recorder", str(at), str(log), str(size), *NAMES],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield [at / name for name in NAMES]
    finally:
        subprocess.run(["umount", "-l", at], capture_output=True)
        process.wait(30)
        process.stdout.close()
