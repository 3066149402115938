"""Profiles of devices that are simulated: P slots of a base time each, then one bus a direction.

A request takes the first slot to be free for the base time, then goes over the bus of its direction at B bytes per
second, in the order in which the slots were left. k clients each have one request under way, in simulated time: a
cell costs milliseconds, and the parameters behind it are known.
"""

from __future__ import annotations

import functools
import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from keigo.devices.fit import fit
from keigo.devices.profile import FORMAT, SECTOR, Cell, DeviceId, Direction, Pattern, Profile, TierProfile

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

QUICK_KS = (1, 2, 4, 8, 16, 32, 64)
FULL_KS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
QUICK_SECTOR_KS = {"read": (1, 2, 4, 8, 16, 64), "write": (1, 2, 4, 8, 16, 32)}
BLOCKS = (4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB)


@dataclass(frozen=True)
class Lane:
    """One direction of a device."""

    base: float
    """Seconds in a slot."""
    slots: int
    bandwidth: float
    """Bytes per second of the bus."""
    decline: float = 0.0
    """With n > slots requests under way a slot's time and the bus's slow by 1 + decline (n - slots) / slots."""
    sequential: float = 1.0
    """Base time of a sequential request relative to a random one."""


@dataclass(frozen=True)
class Device:
    read: Lane
    write: Lane
    interference: float = 0.0
    """Beside w writers a read's base time is 1 + interference min(w, slots) / slots times as long."""


NVMM = Device(Lane(40e-6, 16, 600e6), Lane(60e-6, 4, 230e6, decline=0.08), interference=0.8)
NVME = Device(Lane(800e-6, 32, 320e6), Lane(200e-6, 16, 180e6), interference=1.5)
SATA = Device(Lane(1.5e-3, 8, 52e6, sequential=0.4), Lane(0.9e-3, 4, 45e6, sequential=0.5), interference=1.0)
DISK = Device(Lane(80e-3, 1, 18e6, sequential=0.01), Lane(60e-3, 1, 17e6, sequential=0.01))
ARCHIVE = Device(Lane(120e-3, 2, 9e6), Lane(200e-3, 2, 6e6))

DEVICES = {"nvmm": NVMM, "nvme": NVME, "sata": SATA, "hdd": DISK, "archive": ARCHIVE}
"""Fast to slow."""


def measure(
    lane: Lane,
    direction: Direction,
    k: int,
    block_bytes: int,
    *,
    pattern: Pattern = "random",
    beside: int = 0,
    noise: float = 0.1,
    seed: int = 0,
) -> Cell:
    """Run k clients for 40 requests each, at least 400; `noise` is the standard deviation of ln(base time)."""
    chance = random.Random(f"{seed} {direction} {pattern} {k} {block_bytes} {beside}")
    slow = 1 + lane.decline * max(0, k - lane.slots) / lane.slots
    base = lane.base * slow * (lane.sequential if pattern == "sequential" else 1.0)
    transfer = block_bytes * slow / lane.bandwidth
    slots = [0.0] * lane.slots
    bus = 0.0
    # In the order in which requests ask: (time, None) submits one, (time, submitted) asks for the bus.
    events: list[tuple[float, int, float | None]] = [(0.0, client, None) for client in range(k)]
    times: list[float] = []
    wanted = max(400, 40 * k)
    end = 0.0
    while len(times) < wanted:
        now, client, submitted = heapq.heappop(events)
        if submitted is None:
            left = max(now, slots[0]) + base * chance.lognormvariate(0.0, noise)
            heapq.heapreplace(slots, left)
            heapq.heappush(events, (left, client, now))
        else:
            bus = end = max(bus, now) + transfer
            times.append(end - submitted)
            heapq.heappush(events, (end, client, None))
    times.sort()
    return Cell(
        direction=direction,
        pattern=pattern,
        k=k,
        block_bytes=block_bytes,
        requests=len(times),
        seconds=end,
        mean_us=sum(times) / len(times) * 1e6,
        p50_us=times[len(times) // 2] * 1e6,
        p99_us=times[len(times) * 99 // 100] * 1e6,
        beside=beside,
    )


def measure_device(device: Device, *, quick: bool = False, noise: float = 0.1, seed: int = 0) -> list[Cell]:
    """The cells of a whole device: all k at 4 KiB, larger blocks at all k (quick: at 1 and 16), and some mixed ones."""
    cells: list[Cell] = []
    lanes: tuple[tuple[Direction, Lane, Lane], ...] = (
        ("read", device.read, device.write),
        ("write", device.write, device.read),
    )
    for direction, lane, other in lanes:
        points = [(k, 4 * KIB) for k in (QUICK_KS if quick else FULL_KS)]
        points += [
            (k, block) for k in ((1, 16) if quick else FULL_KS) for block in BLOCKS[1:] if not quick or block > 16 * KIB
        ]
        cells += [measure(lane, direction, k, block, noise=noise, seed=seed) for k, block in points]
        if not quick:
            points = [(k, block) for k in (1, 4, 16) for block in (4 * KIB, 128 * KIB, MIB)]
            cells += [measure(lane, direction, *p, pattern="sequential", noise=noise, seed=seed) for p in points]
        for k in (16,) if quick else (4, 16):
            share = min(k, other.slots) / other.slots * device.interference * (1.0 if direction == "read" else 0.25)
            slowed = replace(lane, base=lane.base * (1 + share))
            cells.append(measure(slowed, direction, k, 4 * KIB, beside=k, noise=noise, seed=seed))
    return cells


def measure_sectors(
    device: Device, *, quick: bool = False, noise: float = 0.1, seed: int = 0, modify: float = 1.0
) -> list[Cell]:
    """The cells of one sector, set up `modify` times as long as 4 KiB are, as where a page around it is modified."""
    lanes: tuple[tuple[Direction, Lane], ...] = (("read", device.read), ("write", device.write))
    return [
        measure(replace(lane, base=lane.base * modify), direction, k, SECTOR, noise=noise, seed=seed)
        for direction, lane in lanes
        for k in (QUICK_SECTOR_KS[direction] if quick else QUICK_KS)
    ]


def tier_profile(name: str, cells: Sequence[Cell]) -> TierProfile:
    """A tier with these cells and the model that is fitted to them."""
    return TierProfile(
        tier=name,
        device=DeviceId(
            filesystem="ext4",
            uuid="7c0f5a1e-0000-4000-8000-000000000001",
            disk="loop0",
            model="",
            serial="",
            size_bytes=GIB,
        ),
        direct=True,
        memory=False,
        file_bytes=128 * MIB,
        cells=tuple(cells),
        model=fit(cells),
    )


def profile_of(tiers: Sequence[TierProfile], *, quick: bool = False) -> Profile:
    return Profile(
        format=FORMAT,
        created="2026-11-21T16:00:00+00:00",
        kernel="6.18.0",
        fio="3.33",
        quick=quick,
        tiers=tuple(tiers),
    )


@functools.cache
def synthetic_profile(names: tuple[str, ...] = ("nvmm", "nvme", "sata"), *, quick: bool = False) -> Profile:
    """A profile of the named devices of DEVICES."""
    tiers = [tier_profile(name, measure_device(DEVICES[name], quick=quick)) for name in names]
    return profile_of(tiers, quick=quick)
