"""What a tier's device takes for the requests of one more file, at its present load: plain numbers for policies.

Made from a device's model and load once a second (`rates_of`), for a CREATE has no time to ask a model: 1 us an answer.
Where a tier has no profile, `assumed` gives a model by its place in the order of tiers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from keigo.devices.model import SMALL_BLOCK, CostModel, DeviceModel, Interference

STREAM_BLOCK: Final = 256 << 10
"""Bytes of a request of a flush, a compaction or a migration; write-back sends up to 1 MiB at once."""
MOST_WRITERS: Final = 32
"""Writers beyond which one more is taken to cost what this many do."""
_ASSUMED_STEP: Final = 4.0
"""How much slower a tier without a profile is taken to be than the one before it. Devices that are sold as different
tiers differ by 3 (NVMe to SATA flash, by 4 KiB latency) to 100 (flash to disks); the order is what matters."""
_ASSUMED_SETUP: Final = 10e-6  # seconds, of a 4 KiB request of the first tier without a profile
_ASSUMED_BANDWIDTH: Final = 2e9  # bytes per second of it
_ASSUMED_SLOTS: Final = 8


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds at a load. In tables over others, number n is for one more writer beside n."""

    append: float
    """Of a write of 4 KiB that somebody waits for, beside what is under way."""
    read: float
    """Of a random read of 4 KiB, beside what is under way."""
    read_byte: float
    """Of each further byte of a random read."""
    stream: float
    """Of each byte that is read in large sequential requests."""
    writes: tuple[float, ...]
    """Of each byte that one more writes in large sequential requests."""
    delays: tuple[float, ...]
    """By which the other writers wait longer, in sum, for each byte that the one more writes."""
    disturbs: tuple[float, ...]
    """By which the readers wait longer, in sum, for each byte that the one more writes."""
    read_k: float = 0.0
    """Reads under way, by the live load."""
    write_k: float = 0.0

    def write(self, others: int) -> float:
        """`writes` beside so many."""
        return self.writes[min(others, len(self.writes) - 1)]

    def delay(self, others: int) -> float:
        """`delays` beside so many."""
        return self.delays[min(others, len(self.delays) - 1)]

    def disturb(self, others: int) -> float:
        """`disturbs` beside so many."""
        return self.disturbs[min(others, len(self.disturbs) - 1)]


PLAIN: Final = Rates(1e-5, 1e-5, 1e-9, 1e-9, (1e-9,), (0.0,), (0.0,))
"""For policies that do not look at it."""


def assumed(place: int) -> DeviceModel:
    """A model for the tier at `place` (0: the fastest) in the order of tiers, where nobody has measured."""
    slower = _ASSUMED_STEP**place
    setup, transfer = _ASSUMED_SETUP * slower, slower / _ASSUMED_BANDWIDTH
    ks = (1, _ASSUMED_SLOTS, 8 * _ASSUMED_SLOTS)
    cost = CostModel(
        ("additive", "max", "max"),
        ks,
        (setup, setup, 8 * setup),
        (transfer, _ASSUMED_SLOTS * transfer, 8 * _ASSUMED_SLOTS * transfer),
    )
    return DeviceModel(cost, cost, None, None, Interference(1.0, _ASSUMED_SLOTS), Interference(0.0, _ASSUMED_SLOTS))


def rates_of(model: DeviceModel, read_k: float = 0.0, write_k: float = 0.0, write_bandwidth: float = 0.0) -> Rates:
    """The rates of a device with `read_k` reads and `write_k` writes under way (means, real), of so many bytes/s.

    n writers and one more share what the device moves at its concurrency: each byte of one takes (n + 1) / X(K). K is
    n + 1, or what the live load says where that is more: write-back of the page cache has many requests under way for
    one writer, and a device may decline beyond some. n is at least what the present bandwidth is the work of.
    """
    time = model.request_time

    def shared(writers: float) -> float:
        """Seconds per byte of each of so many writers."""
        k = max(writers, write_k)
        return writers * time("write", k, STREAM_BLOCK, pattern="sequential", beside=read_k) / (k * STREAM_BLOCK)

    alone = shared(1.0)
    busy = min(write_bandwidth * alone, float(MOST_WRITERS))
    writes, delays, disturbs = [], [], []
    for n in range(MOST_WRITERS):
        others = max(float(n), busy)
        one = shared(others + 1)
        writes.append(one)
        # While the one writes a byte, each other loses this share of its time; below saturation it loses none.
        delays.append(others * max(0.0, 1 - shared(max(1.0, others)) / one) * one if others else 0.0)
        calm = time("read", max(1.0, read_k), SMALL_BLOCK, beside=others)
        disturbed = time("read", max(1.0, read_k), SMALL_BLOCK, beside=others + 1)
        disturbs.append(read_k * (disturbed - calm) / calm * one)
    small = time("read", read_k + 1, SMALL_BLOCK, beside=write_k)
    large = time("read", read_k + 1, STREAM_BLOCK, beside=write_k)
    return Rates(
        append=time("write", write_k + 1, SMALL_BLOCK, pattern="sequential", beside=read_k),
        read=small,
        read_byte=max(0.0, large - small) / (STREAM_BLOCK - SMALL_BLOCK),
        stream=time("read", read_k + 1, STREAM_BLOCK, pattern="sequential", beside=write_k) / STREAM_BLOCK,
        writes=tuple(writes),
        delays=tuple(delays),
        disturbs=tuple(disturbs),
        read_k=read_k,
        write_k=write_k,
    )
