"""What the way through ext4, loop device, FUSE and scheduler costs by itself, to be taken off a device's times.

The server answers each request a fixed time after it sees it; what a request takes beyond that is the way. Holding
matters: with an answer at once the CPUs never fall idle, and the way looks up to 60 us shorter (20-30 us for 4 KiB)
than it is for a device that lets them sleep for a millisecond. The lower quartile counts: the median when nothing else
runs is near it, and what takes longer has waited for a CPU.
"""

from __future__ import annotations

import mmap
import os
import random
import statistics
import time
from pathlib import Path
from typing import Final

import msgspec

from testbed import server
from testbed.parameters import Device
from testbed.stack import REQUEST_BYTES

SMALL: Final = 4096
_REQUESTS: Final = {SMALL: 200, REQUEST_BYTES: 40}
_FILE_BYTES: Final = 8 << 20
MOST_HOLD_US: Final = 1000.0


class Overhead(msgspec.Struct, frozen=True):
    """Of one direction: a request of x bytes takes `us + us_per_mib * x / 2**20` on its way."""

    us: float
    us_per_mib: float


def measure(image: Path, mount: Path, device: Device) -> tuple[Overhead, Overhead]:
    """The way of reads and of writes through a mounted device; leaves the server answering at once.

    Works on a file of its own, which it removes. Raises OSError, ServerError.
    """
    path = mount / ".calibration"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
    try:
        for offset in range(0, _FILE_BYTES, REQUEST_BYTES):
            os.pwrite(fd, mmap.mmap(-1, REQUEST_BYTES), offset)
        found = []
        for writes, base_us in ((False, device.read.base_us), (True, device.write.base_us)):
            hold = min(base_us, MOST_HOLD_US)
            server.tell(image, f"hold {hold * 1e3:.0f}")
            small, large = (max(0.0, _quartile_us(fd, size, writes) - hold) for size in (SMALL, REQUEST_BYTES))
            per_byte = max(0.0, large - small) / (REQUEST_BYTES - SMALL)
            found.append(Overhead(max(0.0, small - per_byte * SMALL), per_byte * (1 << 20)))
    finally:
        os.close(fd)
        path.unlink()
        server.tell(image, "hold 0")
    return found[0], found[1]


def _quartile_us(fd: int, size: int, writes: bool) -> float:
    buffer = memoryview(mmap.mmap(-1, size))
    places = random.Random(size)  # noqa: S311 - where to read, not a secret
    taken = []
    for _ in range(_REQUESTS[size]):
        offset = places.randrange(_FILE_BYTES // size) * size
        before = time.perf_counter_ns()
        if writes:
            os.pwrite(fd, buffer, offset)
        else:
            os.preadv(fd, [buffer], offset)
        taken.append(time.perf_counter_ns() - before)
    return statistics.quantiles(taken)[0] / 1e3


def apply(image: Path, reads: Overhead, writes: Overhead) -> None:
    """From now on the server is the device. Raises ServerError."""
    numbers = [f"{part:.3f}" for way in (reads, writes) for part in (way.us * 1e3, way.us_per_mib * 1e3 / (1 << 20))]
    server.tell(image, "run " + " ".join(numbers))
