#!/usr/bin/env python3
"""What it costs to know the tiers' load: microseconds of CPU a sample, and their share of a core at the sampling rate.

First three tiers on block devices, sampled at 10 Hz. Then a mounted volume with a tier in memory, whose own counts are
looked at too, with files open on it; needs root and FUSE.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from keigo import mounts
from keigo.config import load
from keigo.devices.load import Counted, Counts, LoadMonitor, open_block_device
from keigo.serving.service import Service

ROUNDS = 2000


def cost(monitor: LoadMonitor, rounds: int = ROUNDS) -> float:
    """CPU seconds of this thread for a sample. The monitor is a new one: its clock begins at 0."""
    for now in range(10):
        monitor.sample(now)
    begin = time.thread_time()
    for now in range(10, 10 + rounds):
        monitor.sample(now)
    return (time.thread_time() - begin) / rounds


def report(what: str, seconds: float, hertz: float) -> None:
    print(f"{what:50} {seconds * 1e6:8.1f} us  {seconds * hertz:8.4%} of a core at {hertz:g} Hz", flush=True)


def block_devices(count: int) -> list[int]:
    """Numbers of block devices whose statistics can be read."""
    found = []
    for name in sorted(os.listdir("/sys/dev/block")):
        major, minor = map(int, name.split(":"))
        block = open_block_device(os.makedev(major, minor))
        if block is not None:
            block.close()
            found.append(os.makedev(major, minor))
    return found[:count]


def no_counts(_tiers: Sequence[str]) -> list[tuple[Counts, Counts]]:
    return []


def counted(service: Service, asked: list[int]) -> Counted:
    """What the service's own monitor asks; `asked` gets an entry each time."""

    def counts(tiers: Sequence[str]) -> list[tuple[Counts, Counts]]:
        asked.append(len(tiers))
        return [
            (Counts(r.requests, r.bytes, None, r.under_way), Counts(w.requests, w.bytes, None, w.under_way))
            for r, w in service.namespace.meter.traffic(tiers)
        ]

    return counts


def with_open_files(driver: str, numbers: Sequence[int]) -> None:
    """Mount a volume with a tier in memory, and sample with so many files open for reading, and one for writing."""
    with tempfile.TemporaryDirectory() as base, tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        directory = Path(base, "db")
        directory.mkdir()
        devices = Path(base, "devices.yaml")
        tiers = f"[{{name: fast, path: {memory}}}, {{name: slow, in_place: true}}]"
        levels = "{fast: [wal, 0], slow: [1, 2, 3, 4, 5, 6]}"
        devices.write_text(
            f"volume: bench-load-{os.getpid()}\ntiers: {tiers}\nplacement: {{policy: levels, levels: {levels}}}\n"
        )
        service = Service(load(devices), directory, driver=driver)

        def measure() -> None:
            try:
                sample_all(service, driver, directory, Path(memory), numbers)
            finally:
                mounts.unmount(str(directory))

        service.run(lambda _findings: threading.Thread(target=measure, name="bench").start())


def sample_all(service: Service, driver: str, directory: Path, memory: Path, numbers: Sequence[int]) -> None:
    for number in numbers:
        asked: list[int] = []
        monitor = LoadMonitor([("fast", memory.stat().st_dev)], counted(service, asked))
        with ExitStack() as stack:
            writer = stack.enter_context((directory / "000000.log").open("wb", buffering=0))
            writer.write(b"x")
            for file in range(1, number + 1):
                path = directory / f"{file:06}.log"
                path.write_bytes(b"x")
                stack.enter_context(path.open("rb"))
            spent = cost(monitor, 200)
            if len(asked) != 210:
                raise SystemExit(f"{len(asked)} of 210 samples looked at the files: what was measured is nothing")
            report(f"{driver}, a tier in memory, {len(service.volume.open_files.by_id)} files open", spent, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, nargs="*", default=[10, 100, 1000], help="how many are open")
    parser.add_argument("--driver", choices=["kernel", "pyfuse3"], default="kernel")
    args = parser.parse_args()
    numbers = block_devices(3)
    monitor = LoadMonitor([(str(number), number) for number in numbers], no_counts)
    report(f"{len(numbers)} block devices", cost(monitor), 10)
    monitor.close()
    with_open_files(args.driver, args.files)


if __name__ == "__main__":
    main()
