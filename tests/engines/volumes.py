"""What a test wants to know of a volume's trees, from outside."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from tests.conftest import World

METADATA = {"manifest", "current", "options", "identity", "infolog", "temporary", "other"}


TIER_OF_LEVEL = {0: "fast", 1: "mid", 2: "mid", 3: "slow", 4: "slow", 5: "slow", 6: "slow"}
"""Of volumes with `{fast: [wal, 0], mid: [1, 2], slow: [3, 4, 5, 6]}`."""


def wait_settled(world: World, database: str) -> None:
    """Until every SST is where its level belongs."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        rows = [row for row in world.ls() if row["role"] == "sst" and row["name"].startswith(database + "/")]
        if all(row["tier"] == TIER_OF_LEVEL[row["level"]] for row in rows):
            return
        time.sleep(0.05)
    raise AssertionError([(row["name"], row["level"], row["tier"]) for row in rows])


def sst_tiers(world: World) -> set[str]:
    """Tiers that hold an SST with something in it."""
    return {row["tier"] for row in world.ls() if row["role"] == "sst" and row["size"]}


def assert_nothing_left(world: World) -> None:
    """Of a drained and unmounted volume nothing is left but the plain files in the data directory."""
    assert not world.is_mounted()
    for name, path in world.tiers.items():
        if name != "slow":
            assert os.listdir(path) == [], f"left on {name}"
    ours = [path for path in world.directory.rglob("*") if path.name in (".keigo", "KEIGO-READ-ME")]
    assert ours == []
    assert [path for path in world.directory.rglob("LOCK") if not path.is_file()] == []


def tree(root: Path) -> dict[str, str]:
    """Path -> what is there, by type, mode and hash of the contents.

    Without info logs: the stores rotate them before they take LOCK.
    """
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.name.startswith("LOG"):
            continue
        status = path.lstat()
        contents = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[name] = f"{status.st_mode:o} {status.st_ino} {contents}"
    return found


def trees(world: World) -> dict[str, dict[str, str]]:
    """`tree` of the data directory and of each tier."""
    return {name: tree(path) for name, path in world.tiers.items()}


def refused(world: World, *args: str | Path) -> str:
    """The one line on standard error with which a command is refused."""
    done = world.keigo(*args, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def refused_mount(world: World) -> str:
    return refused(
        world,
        "mount",
        world.directory,
        "-d",
        world.config,
        "--driver",
        world.driver,
        "--log-file",
        world.log_file,
    )
