"""The models that MQSSD is to beat, fitted to the same cells: DAM, PDAM and affine; and the errors of all four.

None of them knows of queues, so what k requests at once take is our reading of each: DAM and affine serve one request
after another, PDAM P blocks in each step. A request among k waits for the others, so its time is that of all k. All
are fitted to squared errors of ln(time), for times span decades; each direction and pattern apart, as MQSSD is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from keigo.devices.fit import fit, request_seconds

if TYPE_CHECKING:
    from keigo.devices.profile import Cell, Direction, Pattern

Array: TypeAlias = NDArray[np.float64]

SLOTS_TRIED: Final = range(1, 513)
"""Values of P: 64 threads with two requests of each of the smallest blocks that PDAM may take for its own."""

ROUNDING: Final = 1e-9
"""Below this a share of a step is the rounding of a division."""


class RequestTimes(Protocol):
    """What predicts the time of a request, as `DeviceModel` does."""

    def request_time(
        self, direction: Direction, k: float, block_bytes: float, *, pattern: Pattern = "random", beside: float = 0
    ) -> float:
        """Mean seconds of one request of `block_bytes` among k, `beside` so many of the other direction."""


class Cost(Protocol):
    """One direction and pattern of a baseline."""

    def request_time(self, k: float, block_bytes: float) -> float:
        """Mean seconds of one request of `block_bytes` among k >= 1."""


@dataclass(frozen=True)
class Dam:
    """Disk access machine: every block takes one step, one after another.

        T(k, x) = k ceil(x / B) u        B = block_bytes, u = step_seconds

    Source: Aggarwal and Vitter, "The Input/Output Complexity of Sorting and Related Problems", CACM 31(9), 1988.
    """

    name: ClassVar[str] = "DAM"
    block_bytes: int
    step_seconds: float

    def request_time(self, k: float, block_bytes: float) -> float:
        """Seconds of one request among k."""
        return self.step_seconds * k * _steps(block_bytes / self.block_bytes)


@dataclass(frozen=True)
class Pdam:
    """Parallel disk access machine: up to P blocks in each step, of whatever requests.

        T(k, x) = ceil(k ceil(x / B) / P) u        B = block_bytes, P = slots, u = step_seconds

    Source: Bender et al., "Small Refinements to the DAM Can Have Big Consequences for Data-Structure Design",
    SPAA 2019.
    """

    name: ClassVar[str] = "PDAM"
    block_bytes: int
    slots: int
    step_seconds: float

    def request_time(self, k: float, block_bytes: float) -> float:
        """Seconds of one request among k."""
        return self.step_seconds * _steps(k * _steps(block_bytes / self.block_bytes) / self.slots)


@dataclass(frozen=True)
class Affine:
    """Affine: a setup and a transfer by size, one request after another.

        T(k, x) = k (s + t x)        s = setup_seconds, t = byte_seconds

    Source: Bender et al., SPAA 2019, as for PDAM (there 1 + alpha x, in units of the setup).
    """

    name: ClassVar[str] = "affine"
    setup_seconds: float
    byte_seconds: float

    def request_time(self, k: float, block_bytes: float) -> float:
        """Seconds of one request among k."""
        return k * (self.setup_seconds + self.byte_seconds * block_bytes)


@dataclass(frozen=True)
class Baseline:
    """A device by one of the baselines. Patterns without a cost of their own cost what random ones do."""

    name: str
    costs: Mapping[tuple[Direction, Pattern], Cost]

    def request_time(
        self, direction: Direction, k: float, block_bytes: float, *, pattern: Pattern = "random", beside: float = 0
    ) -> float:
        """Mean seconds of one request among k; none of the baselines knows of `beside`, nor of a k below 1."""
        del beside
        cost = self.costs.get((direction, pattern)) or self.costs[direction, "random"]
        return cost.request_time(max(1.0, k), block_bytes)


def fit_dam(cells: Sequence[Cell]) -> Baseline:
    """DAM, with B the measured block size that fits best. Raises ValueError as `fit` does."""
    return _fit_each(Dam.name, cells, _fit_dam)


def fit_pdam(cells: Sequence[Cell]) -> Baseline:
    """PDAM, with B as for DAM, and P in 1..512. Raises ValueError as `fit` does."""
    return _fit_each(Pdam.name, cells, _fit_pdam)


def fit_affine(cells: Sequence[Cell]) -> Baseline:
    """Affine. Raises ValueError as `fit` does."""
    return _fit_each(Affine.name, cells, _fit_affine)


class Errors(NamedTuple):
    """Relative errors |predicted - measured| / measured of a model over cells."""

    cells: int
    median: float
    p90: float


class HeldOut(NamedTuple):
    """How well one model predicts what it was not fitted to."""

    model: str
    """MQSSD, DAM, PDAM or affine."""
    direction: Direction
    errors: Errors


def errors(model: RequestTimes, cells: Sequence[Cell]) -> Errors:
    """The errors of a model over cells, mixed ones included. Raises ValueError without cells.

    Cells below 4 KiB, which no model is fitted to, do not belong among them.
    """
    if not cells:
        raise ValueError("no cells to compare a model with")
    return _errors([_error(model, cell) for cell in cells])


def held_out(cells: Sequence[Cell], seed: int, *, folds: int = 5) -> list[HeldOut]:
    """Cross-validate all four models over the plain cells from 4 KiB up: a row for each model and direction.

    The cells of a direction and pattern are dealt at random, by `seed`, into `folds` parts of one size; each part is
    predicted by models fitted to the other parts, so every cell is predicted once, by models that have not seen it.
    Raises ValueError where a fit does (a direction with a single random cell, say).
    """
    parts = _deal([cell for cell in cells if cell.modelled and not cell.beside], seed, folds)
    found: dict[tuple[str, Direction], list[float]] = {}
    for index, part in enumerate(parts):
        rest = [cell for other in (*parts[:index], *parts[index + 1 :]) for cell in other]
        for name, fitted in FITS.items():
            model = fitted(rest)
            for cell in part:
                found.setdefault((name, cell.direction), []).append(_error(model, cell))
    directions: tuple[Direction, ...] = ("read", "write")
    return [HeldOut(name, side, _errors(found[name, side])) for side in directions for name in FITS]


FITS: Final[Mapping[str, Callable[[Sequence[Cell]], RequestTimes]]] = {
    "MQSSD": fit,
    Dam.name: fit_dam,
    Pdam.name: fit_pdam,
    Affine.name: fit_affine,
}


def _deal(cells: Sequence[Cell], seed: int, folds: int) -> list[list[Cell]]:
    groups: dict[tuple[Direction, Pattern], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.direction, cell.pattern), []).append(cell)
    parts: list[list[Cell]] = [[] for _ in range(folds)]
    shuffle = random.Random(seed)  # noqa: S311 - not for secrets
    for group in groups.values():
        shuffle.shuffle(group)
        for index, cell in enumerate(group):
            parts[index % folds].append(cell)
    return [part for part in parts if part]


def _error(model: RequestTimes, cell: Cell) -> float:
    seconds = request_seconds(cell)
    predicted = model.request_time(cell.direction, cell.k, cell.block_bytes, pattern=cell.pattern, beside=cell.beside)
    return abs(predicted / seconds - 1)


def _errors(relative: Sequence[float]) -> Errors:
    return Errors(len(relative), float(np.median(relative)), float(np.quantile(relative, 0.9)))


@dataclass(frozen=True)
class _Points:
    """Measured cells of one direction and pattern, as columns of one length."""

    ks: Array
    sizes: Array
    logs: Array
    """ln(seconds of a request)."""

    def scale(self, shape: Array) -> tuple[float, float]:
        """The factor u of `shape`, seconds of a request but for u, and the mean of the squared errors of ln."""
        off = self.logs - np.log(shape)
        return math.exp(float(off.mean())), float(off.var())


def _fit_each(name: str, cells: Sequence[Cell], fit_one: Callable[[_Points], Cost]) -> Baseline:
    groups: dict[tuple[Direction, Pattern], list[Cell]] = {}
    for cell in cells:
        if cell.modelled and not cell.beside:
            groups.setdefault((cell.direction, cell.pattern), []).append(cell)
    for direction in ("read", "write"):
        if (direction, "random") not in groups:
            raise ValueError(f"no random {direction} was measured")
    return Baseline(name, {key: fit_one(_points(group)) for key, group in groups.items()})


def _points(cells: Sequence[Cell]) -> _Points:
    return _Points(
        np.array([cell.k for cell in cells], float),
        np.array([cell.block_bytes for cell in cells], float),
        np.log([request_seconds(cell) for cell in cells]),
    )


def _fit_dam(points: _Points) -> Dam:
    tried = []
    for block in np.unique(points.sizes):
        step, loss = points.scale(points.ks * np.ceil(points.sizes / block))
        tried.append((loss, Dam(int(block), step)))
    return min(tried, key=lambda found: found[0])[1]


def _fit_pdam(points: _Points) -> Pdam:
    tried = []
    for block in np.unique(points.sizes):
        blocks = points.ks * np.ceil(points.sizes / block)
        for slots in SLOTS_TRIED:
            step, loss = points.scale(np.ceil(blocks / slots - ROUNDING))
            tried.append((loss, Pdam(int(block), slots, step)))
    return min(tried, key=lambda found: found[0])[1]


def _fit_affine(points: _Points) -> Affine:
    def shape(log_alpha: float) -> Array:
        return points.ks * (1 + math.exp(log_alpha) * points.sizes)

    # alpha x in 0.001..1000 at the largest and smallest size: beyond that the one or the other term is gone.
    bounds = (math.log(1e-3 / points.sizes.max()), math.log(1e3 / points.sizes.min()))
    log_alpha = float(minimize_scalar(lambda tried: points.scale(shape(tried))[1], bounds=bounds, method="bounded").x)
    setup, _ = points.scale(shape(log_alpha))
    return Affine(setup, setup * math.exp(log_alpha))


def _steps(steps: float) -> int:
    return math.ceil(steps - ROUNDING)
