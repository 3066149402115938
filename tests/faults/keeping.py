"""What tests of mounts with a keeper share: such mounts, and the replacement of their daemons.

A module of tests that needs them says `driver = keeping.driver`, and `world = keeping.world`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from keigo.control import ControlError
from tests.conftest import MakeWorld, World


@pytest.fixture
def driver() -> str:
    """No other can be replaced."""
    return "kernel"


@pytest.fixture
def world(make_world: MakeWorld) -> Iterator[World]:
    """A volume whose daemon will have a keeper."""
    made = make_world({"fast": "64MiB", "mid": "64MiB"})
    yield made
    if made.is_mounted():
        made.umount()


def kept(world: World, failpoint: str = "") -> None:
    """Mount below a keeper; the first daemon dies at a failpoint."""
    world.mount(module="keigo.keeper", env={"KEIGO_FAILPOINT": failpoint})
    pid = world.pids.pop()
    world.pids += [keeper_of(pid), pid]


def keeper_of(pid: int) -> int:
    """The parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def replace(world: World) -> None:
    """Kill the daemon and wait until another serves."""
    world.kill()
    found = world.status()["pid"]
    assert found != world.pids[-1]
    world.pids.append(found)


def tiers(world: World) -> list[str]:
    """What the daemon has; it may be the next one."""
    status = world.status()
    if status["pid"] != world.pids[-1]:
        world.pids.append(status["pid"])
    return [tier["name"] for tier in status["tiers"]]


def wait_for(true: Callable[[], bool]) -> None:
    """Wait for what the kernel tells the daemon without anybody waiting for it."""
    patience = threading.Event()
    for _ in range(500):
        try:
            if true():
                return
        except ControlError:  # it died with the question
            pass
        patience.wait(0.02)
    raise AssertionError("never came true")
