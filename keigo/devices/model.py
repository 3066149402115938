"""The MQSSD model of a device: what a request costs when k threads have one under way each.

    W = k (s(k) r + beta(k) n)        reads likewise, with t(k) and alpha(k)

is the time that k threads take to move n blocks each in r random accesses (MQSSD, arXiv 2507.06349). With one access
of x bytes, W is the time of one request among k: its setup part is `k s(k)`, its transfer part `k beta(k) x`. Devices
differ in how the two combine, so a cost has one of two forms:

    additive    T(k, x) = setup(k) + transfer(k) x
    max         T(k, x) = max(setup(k), transfer(k) x)

where setup(k) = k s(k) in seconds and transfer(k) = k beta(k) in seconds per byte are tabulated at the k that were
measured. The form stands beside each k, for one device has both: alone, a request is first set up and then moved;
among many, while one is set up others are moved, and the slower of the two sets the pace.

Between two measured k the time is interpolated linearly in k, of the same x. That is exact for a device with P slots
below P (T is constant) and above (T grows with k), where k s(k) is linear in k but s(k) itself is not. Beyond the
largest measured k the throughput stays what it was there, so T grows linearly; below the smallest one T is constant.

Beside w requests of the other direction a request takes T (1 + slowdown min(1, w / saturation)): the more of the
other direction's parallelism is in use, the slower, and no slower than with all of it. (This term is ours.)

Evaluation needs no numpy, for placement does it in the daemon at each CREATE; `fit` makes the tables.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final, Literal

import msgspec

if TYPE_CHECKING:
    from keigo.devices.profile import Direction, Pattern

Form = Literal["additive", "max"]

SMALL_BLOCK: Final = 4096
"""Bytes of the requests by which saturation is told."""

_MOST: Final = 1e9
_LEAST: Final = 1e-18
"""Seconds of a request, or of a byte; k and factors are no more either. Within these no arithmetic here overflows."""

SATURATED: Final = 0.95
"""Share of the peak throughput from which on a device counts as saturated."""


class CostModel(msgspec.Struct, frozen=True):
    """One direction and pattern of a device: tables over k, ascending, all of one length, at least 1.

    Raises ValueError where the tables are not so, or would make a request take no time.
    """

    form: tuple[Form, ...]
    ks: tuple[int, ...]
    setup: tuple[float, ...]
    """Seconds of setup of a request among k."""
    transfer: tuple[float, ...]
    """Seconds per byte of a request among k."""

    def __post_init__(self) -> None:
        length = len(self.ks)
        if not length or any(len(table) != length for table in (self.form, self.setup, self.transfer)):
            raise ValueError("the tables over k are empty or differ in length")
        if (
            self.ks[0] < 1
            or self.ks[-1] > _MOST
            or any(low >= high for low, high in zip(self.ks, self.ks[1:], strict=False))
        ):
            raise ValueError("the k of a table are not ascending from 1")
        if not all(0 <= value <= _MOST for value in (*self.setup, *self.transfer)):
            raise ValueError("a cost is negative, too high, or not a number")
        if any(setup + transfer < _LEAST for setup, transfer in zip(self.setup, self.transfer, strict=True)):
            raise ValueError("a request that takes no time")

    def request_time(self, k: float, block_bytes: float) -> float:
        """Mean seconds of one request of `block_bytes` among k; real k, below the first of the table as there."""
        ks = self.ks
        if k <= ks[0]:
            return self._measured(0, block_bytes)
        if k >= ks[-1]:
            return self._measured(-1, block_bytes) * k / ks[-1]
        above = bisect_right(ks, k)
        share = (k - ks[above - 1]) / (ks[above] - ks[above - 1])
        return (1 - share) * self._measured(above - 1, block_bytes) + share * self._measured(above, block_bytes)

    def _measured(self, index: int, block_bytes: float) -> float:
        setup, transfer = self.setup[index], self.transfer[index] * block_bytes
        return setup + transfer if self.form[index] == "additive" else max(setup, transfer)

    def saturation(self, block_bytes: float = SMALL_BLOCK) -> int:
        """The smallest k of the table that has 95% of the table's highest throughput."""
        rates = [k / self._measured(index, block_bytes) for index, k in enumerate(self.ks)]
        enough = SATURATED * max(rates)
        return next(k for k, rate in zip(self.ks, rates, strict=True) if rate >= enough)


class Interference(msgspec.Struct, frozen=True):
    """How much longer requests take beside w of the other direction: 1 + slowdown min(1, w / saturation)."""

    slowdown: float
    saturation: float
    """Requests of the other direction at which it is saturated."""

    def __post_init__(self) -> None:
        if not 0 <= self.slowdown <= _MOST:
            raise ValueError("a slowdown is negative, too high, or not a number")
        if not 1 / _MOST <= self.saturation <= _MOST:
            raise ValueError("a saturation is not above 0, or too high")

    def factor(self, beside: float) -> float:
        """What the time of a request alone is multiplied by."""
        return 1 + self.slowdown * min(1.0, max(0.0, beside) / self.saturation)


class DeviceModel(msgspec.Struct, frozen=True):
    """A device. Patterns that were not measured are None and cost what random ones do."""

    random_read: CostModel
    random_write: CostModel
    sequential_read: CostModel | None = None
    sequential_write: CostModel | None = None
    reads_beside_writes: Interference | None = None
    """None where it was not measured: no slower then."""
    writes_beside_reads: Interference | None = None

    def cost(self, direction: Direction, pattern: Pattern = "random") -> CostModel:
        """The cost of a direction and pattern; the random one where no sequential one was measured."""
        if direction == "read":
            random, sequential = self.random_read, self.sequential_read
        else:
            random, sequential = self.random_write, self.sequential_write
        return random if pattern == "random" or sequential is None else sequential

    def request_time(
        self,
        direction: Direction,
        k: float,
        block_bytes: float,
        *,
        pattern: Pattern = "random",
        beside: float = 0,
    ) -> float:
        """Mean seconds of one request of `block_bytes` among k, `beside` so many of the other direction.

        k and `beside` are real, as a live load's averages are; a k below 1 costs what 1 does.
        """
        alone = self.cost(direction, pattern).request_time(k, block_bytes)
        if beside <= 0:
            return alone
        found = self.reads_beside_writes if direction == "read" else self.writes_beside_reads
        return alone if found is None else alone * found.factor(beside)

    def throughput(
        self,
        direction: Direction,
        k: float,
        block_bytes: float,
        *,
        pattern: Pattern = "random",
        beside: float = 0,
    ) -> float:
        """Bytes per second of k requests together: k x / T(k, x). A k below 1 is a device busy for that share."""
        return k * block_bytes / self.request_time(direction, k, block_bytes, pattern=pattern, beside=beside)

    def saturation(self, direction: Direction) -> int:
        """k*: the smallest measured k with at least 95% of the highest random 4 KiB throughput over all k.

        A device that declines beyond some k has its highest throughput, and so its k*, before that.
        """
        return self.cost(direction).saturation()
