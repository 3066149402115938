"""Power loss: whatever was acknowledged as durable is there afterwards, whatever the disks made of the rest.

Three disks with ext4 carry a volume on which RocksDB writes synced batches, files are made as careful programs make
them, and SSTs migrate and are cached. Every write and flush of the disks is recorded. Then the power fails, at many
moments: each time the disks keep what was flushed and some part of the rest (`images`), and are mounted again, and so
is the volume.

What this covers: the order of Keigo's own syncs across devices (intents, mirrors, catalog, guards, cache), above ext4
in its default mode. What it does not: a disk that lies about a flush, and file systems that promise less.
KEIGO_POWER_LOSSES sets the number of moments.
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from keigo.control import ControlError, ask
from keigo.errors import KeigoError
from tests.conftest import World, write_config
from tests.devices.disks import command, mounted
from tests.engines.processes import StoreProcess
from tests.faults.disks import NAMES, loops, recorder
from tests.faults.images import Disks, position

SIZE = 96 << 20
LOSSES = int(os.environ.get("KEIGO_POWER_LOSSES", "5"))
SECONDS = 4.0
BATCH = 20
EXTRA = "cache: {tier: fast, capacity: 4MiB, chunk: 16KiB}\n"
CAPACITY = {"fast": "12MiB", "mid": "8MiB"}

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for loop devices"),
    pytest.mark.timeout(0 if LOSSES > 5 else 300),
]


@dataclass
class Told:
    """What was acknowledged, and up to where the log went then."""

    batches: list[tuple[int, int]] = field(default_factory=list)
    """(number after the last key, position)."""
    files: list[tuple[str, int]] = field(default_factory=list)
    """(name, position); its contents follow from the name."""
    began: int = 0


def contents(name: str) -> bytes:
    return random.Random(name).randbytes(random.Random(name).randrange(1, 200_000))


def new_world(base: Path, driver: str, volume: str) -> World:
    """The world of three mounted disks below `base`; the tiers are directories in them."""
    tiers = {name: base / name / "t" for name in NAMES}
    write_config(base / "devices.yaml", volume, tiers, CAPACITY, extra=EXTRA)
    return World(base, tiers["slow"], tiers, volume, base / "devices.yaml", driver)


def write_files(world: World, log: Path, told: Told, end: threading.Event) -> None:
    """Files made as careful programs make them: written, synced, renamed, and the directory synced."""
    number = 0
    directory = os.open(world.directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        while not end.is_set():
            name = f"{number:06}.{('sst', 'txt')[number % 2]}"
            with (world.directory / f"{name}.tmp").open("wb") as file:
                file.write(contents(name))
                file.flush()
                os.fsync(file.fileno())
            (world.directory / f"{name}.tmp").rename(world.directory / name)
            os.fsync(directory)
            told.files.append((name, position(log)))
            number += 1
            end.wait(0.08)
    finally:
        os.close(directory)


def move_about(world: World, end: threading.Event) -> None:
    """Migrate SSTs to and fro, and have them cached."""
    chance = random.Random(7)
    while not end.is_set():
        names = [row["name"] for row in world.ls() if row["role"] == "sst" and not row["open"]]
        try:
            if names:
                ask(world.volume, "migrate", pattern=chance.choice(names), tier=chance.choice(NAMES))
            ask(world.volume, "cache", what="warm", pattern="*")
        except (ControlError, KeigoError):
            pass  # it is gone, or is there already, or nothing is to be cached
        end.wait(0.02)


def record(world: World, log: Path) -> Told:
    """Work on a mounted volume for some seconds."""
    told = Told(began=position(log))
    end = threading.Event()
    threads = [
        threading.Thread(target=write_files, args=(world, log, told, end)),
        threading.Thread(target=move_about, args=(world, end)),
    ]
    store = StoreProcess("rocksdb", world.directory / "kv", create=True)
    try:
        for thread in threads:
            thread.start()
        until = time.monotonic() + SECONDS
        for number in store.acks(0, BATCH):
            told.batches.append((number, position(log)))
            if time.monotonic() > until:
                break
    finally:
        end.set()
        store.kill()
        for thread in threads:
            thread.join()
    return told


def check(world: World, told: Told, at: int, seen: dict[str, int]) -> None:
    """A volume after a loss at a position of the log."""
    world.mount()
    try:
        for name, when in told.files:
            path = world.directory / name
            if when <= at:
                assert path.read_bytes() == contents(name), name
                seen["files"] += 1
            elif path.exists():
                assert path.read_bytes() == contents(name), f"{name} was renamed before it was whole"
        acked = max((number for number, when in told.batches if when <= at), default=0)
        if acked:
            with StoreProcess("rocksdb", world.directory / "kv", create=False) as store:
                found = store.dump()
            assert sorted(found) == list(range(len(found))), "keys are missing before the last"
            assert len(found) >= acked
            assert len(found) % BATCH == 0
            seen["keys"] += acked
    finally:
        world.umount()
    world.keigo("fsck", world.directory, "-d", world.config)


@pytest.mark.parametrize("driver", ["kernel", "pyfuse3"])
def test_what_was_acknowledged_survives(tmp_path: Path, driver: str) -> None:
    log = Path("/dev/shm") / f"keigo-test-{os.getpid()}-{driver}.log"
    images = [log.with_suffix(f".{name}") for name in NAMES]
    volume = f"t-power-{os.getpid()}-{driver}"
    losses = LOSSES if driver == "kernel" else max(1, LOSSES // 2)
    try:
        with ExitStack() as stack:
            files = stack.enter_context(recorder(tmp_path, log, SIZE))
            devices = stack.enter_context(loops(files, "--direct-io=on"))
            for name, device in zip(NAMES, devices, strict=True):
                command("mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard,lazy_itable_init=0", device)
                stack.enter_context(mounted(device, at=tmp_path / name))
                (tmp_path / name / "t").mkdir(mode=0o700)
            subprocess.run(["sync", "-f", *(str(tmp_path / name) for name in NAMES)], check=True)
            world = new_world(tmp_path, driver, volume)
            stack.callback(world.destroy_daemon)
            world.mount()
            try:
                told = record(world, log)
            finally:
                world.umount()
            migrations = position(log)
        assert told.batches
        assert told.files
        chance = random.Random(LOSSES)
        disks = Disks(log, len(NAMES), SIZE)
        moments = [at for at in disks.positions if told.began <= at <= migrations]
        seen = {"files": 0, "keys": 0}
        for number, at in enumerate(sorted(chance.sample(moments, min(losses, len(moments))))):
            disks.forward(at)
            kept = disks.lose(chance, images)
            base = tmp_path / f"after{number}"
            base.mkdir()
            with ExitStack() as stack:
                for name, device in zip(NAMES, stack.enter_context(loops(images)), strict=True):
                    stack.enter_context(mounted(device, at=base / name))
                after = new_world(base, driver, volume)
                stack.callback(after.destroy_daemon)
                try:
                    check(after, told, at, seen)
                except BaseException as error:
                    error.add_note(f"loss {number} at {at} of the log, kept {kept}; {after.log()}")
                    raise
        assert seen["files"]
        assert seen["keys"]
        print(f"{driver}: {losses} losses, {seen['keys']} keys and {seen['files']} files were there that had to be")
    finally:
        for path in (log, *images):
            path.unlink(missing_ok=True)
