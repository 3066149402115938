"""One mount for many tests: each gets a directory of its own in it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import World, new_world
from tests.fs.support import Area


@pytest.fixture(scope="session")
def shared_worlds() -> Iterator[dict[str, list[World]]]:
    """Driver -> worlds; the last is the one in use, those before it did not survive a test."""
    worlds: dict[str, list[World]] = {}
    yield worlds
    try:
        for *_, world in worlds.values():
            world.umount()
    finally:
        for made in worlds.values():
            for world in made:
                world.destroy()


def is_well(world: World) -> bool:
    try:
        os.listdir(world.directory)
    except OSError:
        return False
    return world.is_mounted()


@pytest.fixture
def area(
    driver: str,
    shared_worlds: dict[str, list[World]],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Area]:
    """A fresh directory in a mount with the tiers `fast` (memory), `mid` and `slow` (in place)."""
    worlds = shared_worlds.setdefault(driver, [])
    if not worlds or not is_well(worlds[-1]):
        world = new_world(tmp_path_factory.mktemp("shared") / "w", driver, {"fast": "256MiB", "mid": "256MiB"})
        worlds.append(world)
        world.mount()
    path = worlds[-1].directory / re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[:80]
    path.mkdir()
    yield Area(worlds[-1], path)
    shutil.rmtree(path)


@pytest.fixture(params=["000001.log", "plain"], ids=["fast", "slow"])
def file(request: pytest.FixtureRequest, area: Area) -> Path:
    """A path that no file has yet; a file made there goes to the tier of the parameter."""
    return area.path / str(request.param)
