"""kill -9 of the daemon under load, again and again on one database: nothing that was acknowledged is ever missing.

KEIGO_KILLS sets how often (`scripts/soak` tries hundreds).
"""

from __future__ import annotations

import os
import random
import threading
import time

import pytest

from keigo.control import ControlError, ask
from keigo.errors import KeigoError
from tests.conftest import MakeWorld, World
from tests.engines.processes import StoreProcess

KILLS = int(os.environ.get("KEIGO_KILLS", "3"))
BATCH = 20
EXTRA = "cache: {tier: fast, capacity: 4MiB, chunk: 16KiB}\n"

pytestmark = pytest.mark.timeout(0 if KILLS > 3 else 300)


def move_about(world: World, chance: random.Random, end: threading.Event) -> None:
    """Migrate tables to and fro, until the daemon is gone."""
    while not end.is_set():
        try:
            names = [row["name"] for row in world.ls() if row["role"] == "sst" and not row["open"]]
            if names:
                ask(world.volume, "migrate", pattern=chance.choice(names), tier=chance.choice(["fast", "mid", "slow"]))
            ask(world.volume, "cache", what="warm", pattern="*")
        except (ControlError, KeigoError):
            end.wait(0.02)


def killed_under_load(world: World, chance: random.Random, first: int) -> int:
    """Write until the daemon is killed; returns the number after the last key that was acknowledged."""
    acked = first
    end = threading.Event()
    mover = threading.Thread(target=move_about, args=(world, chance, end))
    store = StoreProcess("rocksdb", world.directory / "kv", create=True)
    killer = threading.Timer(chance.uniform(0.05, 1.0), world.kill)
    try:
        mover.start()
        killer.start()
        # What passthrough has open goes on without the daemon: the store may only notice when it wants another file.
        until = time.monotonic() + 2
        for acked in store.acks(first, BATCH):  # noqa: B007
            if time.monotonic() > until:
                break
        killer.join()
        refused = world.keigo("mount", world.directory, "-d", world.config, check=False)
        assert refused.returncode == 1
        assert f"pid {store.pid}" in refused.stderr
    finally:
        end.set()
        killer.cancel()
        store.kill()
        mover.join()
    return acked


def test_every_acknowledged_key_is_there_after_each_kill(make_world: MakeWorld) -> None:
    world = make_world({"fast": "12MiB", "mid": "8MiB"}, extra=EXTRA)
    chance = random.Random(KILLS)
    world.mount()
    written = 0
    for number in range(KILLS):
        acked = killed_under_load(world, chance, written)
        world.mount()
        with StoreProcess("rocksdb", world.directory / "kv", create=True) as store:
            found = store.dump()
        assert len(found) >= acked, f"kill {number}: {len(found)} of {acked}"
        assert sorted(found) == list(range(len(found)))
        written = len(found)
    assert written
    world.umount()
    world.keigo("fsck", world.directory, "-d", world.config)
