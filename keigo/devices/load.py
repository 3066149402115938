"""How busy the devices below the tiers are: requests under way and bytes per second, for placement and `status`.

Where a tier is on a block device, the kernel's own statistics tell of all that happens on it, whoever causes it:
`/sys/dev/block/MAJOR:MINOR/stat` and `inflight`, read through descriptors that stay open (the kernel's
Documentation/block/stat.rst). Elsewhere (tmpfs, NFS, btrfs, overlay; DAX, which goes past the block layer; a queue
whose `iostats` are off) a tier's load is what Keigo itself moves there. Tiers on one device share its figures.

Concurrency is Little's law: the time that requests took, summed, per time that passed is the mean number under way.
The kernel counts that time in ns and shows ms, so at 10 Hz it is exact to 0.01: on a virtio disk a window of 100 ms
had a standard deviation of 3 to 5% at 1 to 16 readers, where one look at `inflight` had 200 to 45%. (Devices without
a request queue, as device-mapper's, count in jiffies: right on average.) But the time of a request is added only when
it ends. So `inflight` is used for what must have been under way all through a window: see `rates`.

Threads: none here. A monitor is used by one thread at a time; `loads` may be called by any, for it only picks up a
tuple. `sample` calls the callable, which may take the locks of the file system: hold none of them.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

log = logging.getLogger(__name__)

TIME_CONSTANT: Final = 1.0  # seconds: what is so old has 37% of its weight
_SECTOR: Final = 512  # bytes in these statistics, whatever the device has
_WRAP: Final = 1 << 32  # milliseconds are shown as an unsigned int
_SYSFS: Final = Path("/sys/dev/block")

Source = Literal["device", "counted", "lost"]


@dataclass(frozen=True, slots=True)
class Counts:
    """One direction of a device: what has ended so far, since any beginning, and what is under way."""

    requests: int
    bytes: int
    milliseconds: int | None
    """Time that the requests took, summed, modulo 2**32; None where it cannot be known."""
    under_way: int

    def __add__(self, other: Counts) -> Counts:
        unknown = self.milliseconds is None or other.milliseconds is None
        return Counts(
            self.requests + other.requests,
            self.bytes + other.bytes,
            None if unknown else (self.milliseconds or 0) + (other.milliseconds or 0),
            self.under_way + other.under_way,
        )


@dataclass(frozen=True, slots=True)
class Rates:
    """One direction of a device over a window."""

    k: float | None
    """Mean number of requests under way."""
    bandwidth: float
    """Bytes per second."""
    requests: float
    """Per second."""
    ahead: float
    """Seconds of requests that were taken into `k` before they ended; for the next window."""


@dataclass(frozen=True, slots=True)
class Load:
    """A tier's load, smoothed. What is None is not known: not yet, not here, or not any more."""

    tier: str
    source: Source
    """Whose counts: the block device's, Keigo's own, or nobody's since the device is gone."""
    read_k: float | None = None
    """Mean number of reads under way."""
    write_k: float | None = None
    """Mean number of writes under way; those of the page cache's write-back are among them."""
    read_bandwidth: float | None = None
    """Bytes per second."""
    write_bandwidth: float | None = None
    read_bytes: int = 0
    """Bytes since the first sample."""
    written_bytes: int = 0
    read_rate: float | None = None
    """Requests per second. By Little's law a request takes `read_k / read_rate` seconds."""
    write_rate: float | None = None


Counted = Callable[[Sequence[str]], Sequence[tuple[Counts, Counts]]]
"""Names of tiers -> what Keigo itself (read, wrote) there."""


def rates(before: Counts, after: Counts, dt: float, ahead: float = 0.0) -> Rates | None:
    """Rates of a window of `dt` seconds between two counts; `ahead` is that of the window before.

    None where the counts say nothing: no time has passed, or one has gone back, because it was reset.

    Of `before.under_way` requests at most as many have ended as ended at all; the others hung through the window and
    are in `k` at once. When they end, the kernel adds all their time: it is taken off again. So a device that stalls
    is seen to be busy, and over time no request counts more than it took.
    """
    ended, moved = after.requests - before.requests, after.bytes - before.bytes
    if dt <= 0 or ended < 0 or moved < 0:
        return None
    bandwidth, requests = moved / dt, ended / dt
    if before.milliseconds is None or after.milliseconds is None:
        return Rates(None, bandwidth, requests, 0.0)
    took = (after.milliseconds - before.milliseconds) % _WRAP / 1000
    hung = max(0, min(before.under_way - ended, after.under_way)) * dt
    early = min(ahead, took)
    return Rates((took - early + hung) / dt, bandwidth, requests, ahead - early + hung if after.under_way else 0.0)


class Smoothed:
    """Exponentially weighted mean of a rate over real time, with windows of any length.

    Divided by the sum of its weights, so that it does not begin at 0.
    """

    __slots__ = ("_sum", "_weight")

    def __init__(self) -> None:
        self._sum = 0.0
        self._weight = 0.0

    def add(self, rate: float | None, dt: float) -> None:
        """Take in the rate of a window of `dt` seconds; None where there is none."""
        if rate is None:
            return
        share = -math.expm1(-dt / TIME_CONSTANT)
        self._sum += share * (rate - self._sum)
        self._weight += share * (1 - self._weight)

    @property
    def value(self) -> float | None:
        """The mean; None before the first window."""
        return self._sum / self._weight if self._weight else None


def parse_counts(stat: bytes, inflight: bytes) -> tuple[Counts, Counts]:
    """(reads, writes) of a block device's `stat` and `inflight`. Raises ValueError."""
    fields = stat.split()
    if len(fields) < 11:
        raise ValueError(f"{len(fields)} fields where a block device's statistics have 11 or more")
    reading, writing = map(int, inflight.split())
    reads, _, read_sectors, read_ms, writes, _, write_sectors, write_ms = map(int, fields[:8])
    return (
        Counts(reads, read_sectors * _SECTOR, read_ms, reading),
        Counts(writes, write_sectors * _SECTOR, write_ms, writing),
    )


class BlockDevice:
    """The statistics of a block device, by `st_dev`. Raises OSError where it has none."""

    def __init__(self, device: int, sysfs: Path = _SYSFS) -> None:
        at = sysfs / _number(device)
        self._stat = (at / "stat").open("rb", buffering=0)
        try:
            self._inflight = (at / "inflight").open("rb", buffering=0)
        except OSError:
            self._stat.close()
            raise

    def counts(self) -> tuple[Counts, Counts]:
        """(reads, writes). Raises OSError when the device is gone, ValueError where the kernel writes what is new."""
        return parse_counts(os.pread(self._stat.fileno(), 512, 0), os.pread(self._inflight.fileno(), 128, 0))

    def close(self) -> None:
        """Let go of the descriptors."""
        self._stat.close()
        self._inflight.close()


def _number(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


def is_dax(device: int, mountinfo: str) -> bool:
    """Whether a file system is mounted with DAX for all files, by /proc/self/mountinfo: its I/O is memory's."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        options = after.split(" ")[-1].split(",")
        if before.split(" ")[2] == _number(device) and not {"dax", "dax=always"}.isdisjoint(options):
            return True
    return False


def open_block_device(device: int, sysfs: Path = _SYSFS) -> BlockDevice | None:
    """The block device with this `st_dev`, if it is one, and if what happens on it is counted."""
    try:
        if is_dax(device, Path("/proc/self/mountinfo").read_text(errors="surrogateescape")):
            return None
        at = (sysfs / _number(device)).resolve(strict=True)
        queue = at / "queue"
        if not queue.exists():
            queue = at.parent / "queue"  # of a partition's disk
        if (queue / "iostats").read_text().strip() == "0":
            return None
        return BlockDevice(device, sysfs)
    except OSError:
        return None


class _Direction:
    """One direction of a device: its last counts and its smoothed rates."""

    __slots__ = ("ahead", "bandwidth", "bytes", "k", "last", "requests")

    def __init__(self) -> None:
        self.last: Counts | None = None
        self.ahead = 0.0
        self.bytes = 0
        self.k = Smoothed()
        self.bandwidth = Smoothed()
        self.requests = Smoothed()

    def take(self, counts: Counts, dt: float) -> None:
        before, self.last = self.last, counts
        if before is None:
            return
        found = rates(before, counts, dt, self.ahead)
        if found is None:
            self.ahead = 0.0
            return
        self.ahead = found.ahead
        self.bytes += counts.bytes - before.bytes
        self.k.add(found.k, dt)
        self.bandwidth.add(found.bandwidth, dt)
        self.requests.add(found.requests, dt)


class _Device:
    """A device and the tiers on it."""

    __slots__ = ("block", "lost", "reads", "sampled", "tiers", "writes")

    def __init__(self, block: BlockDevice | None) -> None:
        self.tiers: list[str] = []
        self.block = block
        self.lost = False
        self.sampled = -math.inf
        self.reads = _Direction()
        self.writes = _Direction()

    def take(self, counts: tuple[Counts, Counts], now: float) -> None:
        self.reads.take(counts[0], now - self.sampled)
        self.writes.take(counts[1], now - self.sampled)
        self.sampled = now

    def lose(self, error: Exception) -> None:
        log.warning("%s: the load of the device is not known any more: %s", ", ".join(self.tiers), error)
        self.lost = True
        if self.block is not None:
            self.block.close()

    def load(self, tier: str) -> Load:
        reads, writes = self.reads, self.writes
        if self.lost:
            return Load(tier, "lost", read_bytes=reads.bytes, written_bytes=writes.bytes)
        return Load(
            tier,
            "counted" if self.block is None else "device",
            reads.k.value,
            writes.k.value,
            reads.bandwidth.value,
            writes.bandwidth.value,
            reads.bytes,
            writes.bytes,
            reads.requests.value,
            writes.requests.value,
        )


class LoadMonitor:
    """The load of a volume's tiers. See the module's docstring."""

    def __init__(
        self,
        tiers: Sequence[tuple[str, int]],
        counted: Counted,
        open_block: Callable[[int], BlockDevice | None] = open_block_device,
    ) -> None:
        """`tiers`: names and the `st_dev` of their directories."""
        self._counted = counted
        self._devices: dict[int, _Device] = {}
        self._tiers: list[tuple[str, _Device]] = []
        for name, number in tiers:
            device = self._devices.get(number)
            if device is None:
                device = self._devices[number] = _Device(open_block(number))
            device.tiers.append(name)
            self._tiers.append((name, device))
        self._loads = tuple(device.load(name) for name, device in self._tiers)

    def sample(self, now: float) -> None:
        """Take in what has happened until `now`, in seconds of a clock that never goes back.

        For any interval; meant for 10 Hz. Raises nothing on account of a device: one that cannot be read any more is
        lost until the next mount.
        """
        own = []
        for device in self._devices.values():
            if device.lost or now <= device.sampled:
                continue
            if device.block is None:
                own.append(device)
                continue
            try:
                counts = device.block.counts()
            except (OSError, ValueError) as error:
                device.lose(error)
            else:
                device.take(counts, now)
        if own:
            self._take_counted(own, now)
        self._loads = tuple(device.load(name) for name, device in self._tiers)

    def _take_counted(self, devices: Sequence[_Device], now: float) -> None:
        """Ask once for all tiers: those on one device add up."""
        names = [name for device in devices for name in device.tiers]
        try:
            found = dict(zip(names, self._counted(names), strict=True))
        except OSError as error:
            for device in devices:
                device.lose(error)
            return
        for device in devices:
            first, *others = (found[name] for name in device.tiers)
            reads, writes = first
            for more in others:
                reads, writes = reads + more[0], writes + more[1]
            device.take((reads, writes), now)

    def loads(self) -> tuple[Load, ...]:
        """The load of each tier, in the tiers' order, as of the last sample."""
        return self._loads

    def close(self) -> None:
        """Let go of the devices."""
        for device in self._devices.values():
            if device.block is not None:
                device.block.close()
