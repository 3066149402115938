"""How fast a migration may copy, now: pure functions of the devices' models, their load and the databases' pressure.

A copy is one stream that has at most one request, of C bytes, under way: it reads a chunk, then writes it. Each is a
*leg*: a device and a direction. So on idle devices a copy is as fast as one sequential stream, without asking a model.
While a chunk is under way, those who use the device lose, by its model at its present load (the copy's own taken off),

    loss  = max of  min(1, k) (T(k + 1) / T(k) - 1)     its own direction: one more among k
                    min(1, k) (C / B)^2 / (2 t T(1))    its own direction: small ones wait while the chunk is moved
                    min(1, k') (f(1) - 1)               the other one, k' under way; f is the model's interference
                    min(1, k) (b + C / t - B) / B       either: more is asked than the device can move
                    min(1, k) SLOWDOWN / RARE           either, where C / B > TAIL max(T(1), slowest)

of their time, where T(k) is the time of 4 KiB among k, t that of a chunk alone, B what the device moves at best, b
what it moves now. (The second line is the mean rest of a service that is in the way, as in any queue in the order of
arrival.) A thread that waits for the device all the time (k = 1) counts in full, one that does so for a tenth of its
time for a tenth. The last line is for those who are unlucky: the mean says nothing of them. Who comes while a chunk is
moved waits for up to C / B; where that is more than a part of what their request takes anyway (or one of the slowest
device that is read: the database's slowest requests are those), no more than RARE of them may come then.

What others lose by the copy is to stay within SLOWDOWN, so from the beginning of one chunk, whose legs took the times
x, to that of the next there pass at least

    period  = max(sum x, sum (x loss) / SLOWDOWN) / (1 - level0)

seconds: a duty cycle of measured times. Models err by factors, and give no more here than ratios. Where level 0 fills,
compaction needs the devices more than any migration; writers that wait stop the copy. A copy that makes room is
urgent: it never rests, whatever it costs, for a tier that is full stops the database.

Of the sizes in CHUNKS, C is the one that the model says to be the fastest: large where nobody waits behind a chunk,
small where many would. Each part of a loss is taken at its worst over all loads up to the present one: a model's tables
may have bumps, and the loss of each among k is greatest at the device's saturation k* (T does not grow below it, and
beyond it 1 / k is less and less). So never is more allowed at a higher load. Nothing here was fitted to a device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keigo.devices.model import SMALL_BLOCK, CostModel, DeviceModel, Interference
from keigo.lsm.pressure import Pressure

if TYPE_CHECKING:
    from keigo.devices.profile import Direction

SLOWDOWN: Final = 0.1
"""Of the time of those who use a device, the share that a copy may cost them."""
TAIL: Final = 1 / 3
"""Of the time of a small request alone, what may be added to it without being seen among the slowest of them: the 99th
percentile of a device in use is further from its mean than that."""
RARE: Final = 0.01
"""Share of requests beyond those that a 99th percentile is of."""
CHUNKS: Final = (256 << 10, 128 << 10, 64 << 10, 32 << 10, 16 << 10, 8 << 10, 4 << 10)
"""Bytes of a request of a copy. On a virtio disk, a copy in direct I/O by chunks of 256 KiB has 80% of the speed that
chunks of 1 MiB have, and one reader of 4 KiB beside it a p99 of 0.5 ms, not 1.1 ms (0.2 ms without a copy). The small
ones are for slow devices that are read: a chunk of 16 KiB that takes a third of a small request may be copied once in a
hundred, one of 8 KiB nearly all the time. On fast devices, where each chunk takes longer in Python (50 us) than on the
device, larger ones do."""


@dataclass(frozen=True, slots=True)
class Use:
    """What is done on a device: mean numbers of requests under way, and bytes per second."""

    read_k: float = 0.0
    write_k: float = 0.0
    read_bandwidth: float = 0.0
    write_bandwidth: float = 0.0

    def less(self, own: Use) -> Use:
        """Without what is one's own."""
        return Use(
            max(0.0, self.read_k - own.read_k),
            max(0.0, self.write_k - own.write_k),
            max(0.0, self.read_bandwidth - own.read_bandwidth),
            max(0.0, self.write_bandwidth - own.write_bandwidth),
        )


IDLE: Final = Use()


@dataclass(frozen=True, slots=True)
class Leg:
    """What a copy does on one device: sequential requests, one at a time, beside what others do there."""

    model: DeviceModel
    use: Use
    direction: Direction
    slowest: float = 0.0
    """Seconds of a small read of the slowest device that others read: see `slowest_read`."""


def slowest_read(models: Sequence[DeviceModel], uses: Sequence[Use]) -> float:
    """Seconds of a small read alone, of the slowest of these devices that more than RARE of all reads go to.

    The slowest of a database's requests are those; what is added to a request of a faster device is not seen there.
    0 where nobody reads.
    """
    times = [model.request_time("read", 1, SMALL_BLOCK) for model in models]
    rates = [use.read_k / time for use, time in zip(uses, times, strict=True)]
    return max((time for time, rate in zip(times, rates, strict=True) if rate > RARE * sum(rates)), default=0.0)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a copy may do until it asks again."""

    chunk: int
    """Bytes of a request."""
    losses: tuple[float, ...] = ()
    """Share of their time that others lose while a chunk is under way, by leg; none: it does not matter."""
    spare: float = 1.0
    """Share of what it could do then that is left to it."""
    paused: str | None = None
    """Why it may do nothing at all."""

    def period(self, times: Sequence[float]) -> float:
        """Seconds from the beginning of a chunk, whose legs took so long each, to that of the next; may be infinite."""
        if self.paused is not None:
            return math.inf
        lost = sum(time * loss for time, loss in zip(times, self.losses, strict=False))
        return max(sum(times), lost / SLOWDOWN) / self.spare


def budget(legs: Sequence[Leg], pressure: Pressure, *, urgent: bool = False) -> Budget:
    """What a copy may do that does `legs` (one at least) with each chunk, in turn. See the module's docstring."""
    if urgent:
        return Budget(CHUNKS[0])
    paused = paused_by(pressure)
    if paused is not None:
        return Budget(CHUNKS[0], paused=paused)
    found = [Budget(chunk, tuple(_loss(leg, chunk) for leg in legs), 1 - pressure.level0) for chunk in CHUNKS]
    return max(found, key=lambda each: (predicted(legs, each), each.chunk))


def paused_by(pressure: Pressure) -> str | None:
    """Why no copy may go on that is not urgent; None: it may."""
    if pressure.stalled or pressure.level0 >= 1:
        return "writers wait for the database's own background work"
    return None


def predicted(legs: Sequence[Leg], given: Budget) -> float:
    """Bytes per second of a copy, by the devices' models at their load."""
    return given.chunk / given.period([_chunk_time(leg, given.chunk) for leg in legs])


def _chunk_time(leg: Leg, chunk: int) -> float:
    """Seconds of one of the copy's requests beside what is under way."""
    cost = leg.model.cost(leg.direction, "sequential")
    k, beside = _ks(leg)
    time = _worst(lambda under_way: cost.request_time(under_way + 1, chunk), cost, k)
    return time * _factor(_interference(leg.model, leg.direction), beside)


def _loss(leg: Leg, chunk: int) -> float:
    """Share of their time that others lose while a chunk is under way."""
    own = leg.model.cost(leg.direction)
    k, other_k = _ks(leg)
    crowded = _worst(lambda n: own.request_time(n + 1, SMALL_BLOCK) / own.request_time(n, SMALL_BLOCK) - 1, own, k)
    other: Direction = "write" if leg.direction == "read" else "read"
    disturbed = _factor(_interference(leg.model, other), 1.0) - 1
    # The chunk as it is alone: beside others it is slower because of them, and they would seem to lose less.
    alone = leg.model.request_time(leg.direction, 1, chunk, pattern="sequential")
    moving = chunk / _peak(leg.model, leg.direction)
    queued = moving**2 / (2 * alone * own.request_time(1, SMALL_BLOCK))
    asked = max(0.0, _busy(leg) + moving / alone - 1)
    small, other_small = (
        max(leg.slowest, leg.model.request_time(way, 1, SMALL_BLOCK)) for way in (leg.direction, other)
    )
    return max(
        0.0,
        min(1.0, k) * max(crowded, queued, asked, _unlucky(moving, small)),
        min(1.0, other_k) * max(disturbed, asked, _unlucky(moving, other_small)),
    )


def _unlucky(moving: float, small: float) -> float:
    """What bounds the share of those who wait for a whole chunk, of `moving` seconds, before their `small` request."""
    return SLOWDOWN / RARE if moving > TAIL * small else 0.0


def _busy(leg: Leg) -> float:
    """What a device moves now, as a share of what it can move."""
    use, model = leg.use, leg.model
    return use.read_bandwidth / _peak(model, "read") + use.write_bandwidth / _peak(model, "write")


def _peak(model: DeviceModel, direction: Direction) -> float:
    """Bytes per second that a device moves at best, in large sequential requests."""
    cost = model.cost(direction, "sequential")
    return max(k * CHUNKS[0] / cost.request_time(k, CHUNKS[0]) for k in cost.ks)


def _ks(leg: Leg) -> tuple[float, float]:
    """(requests of others under way in the leg's direction, in the other one)."""
    use = leg.use
    return (use.read_k, use.write_k) if leg.direction == "read" else (use.write_k, use.read_k)


def _interference(model: DeviceModel, direction: Direction) -> Interference | None:
    return model.reads_beside_writes if direction == "read" else model.writes_beside_reads


def _factor(interference: Interference | None, beside: float) -> float:
    return 1.0 if interference is None else interference.factor(beside)


def _worst(measure: Callable[[float], float], cost: CostModel, k: float) -> float:
    """The highest that a measure has at any load up to `k`.

    T is linear in k between the table's k, so T(k + 1), and its quotient by T(k), rise or fall all the way between
    these and those less one: they are highest at one of them, or at `k`.
    """
    edges = {float(edge) for at in cost.ks for edge in (at, at - 1) if edge < k}
    return max(measure(at) for at in (edges | {0.0, k}))
