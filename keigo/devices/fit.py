"""Fits the MQSSD model of `model` to measured cells.

The time of a request among k is k threads' wall time per request, `k seconds / requests`: MQSSD's W for one access.
(A mean of latencies would leave out what passes between a thread's requests, and is too low in a short cell, where
the first requests of all threads find an idle device.)

Where several block sizes were measured at one k, the time is regressed on the size, with setup and transfer not
negative and *relative* errors squared, for the times of one fit span decades. In the max form the sizes up to some one
tell of setup and the larger ones of transfer; the largest always bounds transfer, so no throughput goes beyond what was
measured. In the additive form the slope could vanish in noise, and is bounded by FASTEST.

The form is chosen for all k of a direction and pattern together: additive below some k, max from it on; that k (which
may be the first or none) is the one with the least mean of squared relative residuals, and the second measured k where
the residuals do not tell. A device with P slots and a bus behind them, in closed loop, takes

    T(k, x) = max(base + x / B, k base / P, k x / B)

which is additive at k = 1, max at large k, and in between for a few k. Fitted without noise at five sizes, for five
such devices (10..800 us, P 8..128, 0.3..7 GB/s) over all k = 1..64 and 4 KiB..1 MiB, the worst error was 20..50% with
the additive form alone, 28..32% with max alone and 13..20% with both; the median 0..10%, 0% and 0%. Choosing a form
for each k by itself gave the same errors, so the one k suffices, and it is harder for noise to change.

Where the sizes at some k are too few or all small (below a quarter of the largest size measured at any k), transfer(k)
is interpolated linearly in k from the k that have large ones, with transfer(k) / k constant beyond them, and what
remains of the measured times is setup. So many k at 4 KiB and two k with large blocks make a model. Likewise in the
max form: a transfer that setup hides at all sizes of some k, or a setup that transfer hides, is at most that of the k
where it shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from keigo.devices.model import SATURATED, SMALL_BLOCK, CostModel, DeviceModel, Form, Interference

if TYPE_CHECKING:
    from keigo.devices.profile import Cell, Direction, Pattern

Array: TypeAlias = NDArray[np.float64]

LARGE_BLOCK: Final = 1 << 20
"""Bytes of the requests by which bandwidth is told."""

LARGE_SHARE: Final = 1 / 4
"""Of the largest block measured at any k: from here on a block tells of the transfer at its k."""

FASTEST: Final = 4.0
"""No transfer is faster than this many times the highest bandwidth measured at any k and size. A disk that seeks
as long as it moves 2 MiB shows a third of its transfer rate at 1 MiB; one whose transfers vanish in the noise shows
all of it among many requests, and would have any rate alone."""

TELLING: Final = 0.02
"""Residuals below 2% of the time do not tell one form from the other: so much is noise."""

UNHINDERED: Final = 1.1
"""A request among k that takes up to so many times as long as one alone waits for nothing but noise."""

TRANSFER_BOUND: Final = 0.9
"""A time of which the transfer is more than this share tells nothing of setup, in the max form."""


def request_seconds(cell: Cell) -> float:
    """Mean seconds of one request among k: the threads' wall time per request.

    Raises ValueError where the cell holds no measurement.
    """
    usable = cell.k >= 1 and cell.block_bytes >= 1 and cell.beside >= 0 and cell.requests >= 1
    if not usable or not math.isfinite(cell.seconds) or cell.seconds <= 0:
        raise ValueError(
            f"{cell.pattern} {cell.direction} of {cell.block_bytes} bytes at k = {cell.k}:"
            f" {cell.requests} requests in {cell.seconds} s are no measurement"
        )
    return cell.k * cell.seconds / cell.requests


def fit(cells: Sequence[Cell]) -> DeviceModel:
    """The model of a device from its cells, plain and mixed, in any order.

    Needs random cells of both directions; cells below 4 KiB do not count. A direction and pattern measured at one
    block size only gets the form max with transfer = time / size: no more bandwidth than was seen, and no less time
    for smaller blocks (but a sequential request has no more setup than a random one). Raises ValueError, one line,
    without such cells or for a cell without a measurement.
    """
    for cell in cells:
        request_seconds(cell)
    cells = [cell for cell in cells if cell.modelled]
    read = _fit_random(cells, "read")
    write = _fit_random(cells, "write")
    alone = DeviceModel(read, write, _fit_sequential(cells, "read", read), _fit_sequential(cells, "write", write))
    return msgspec.structs.replace(
        alone,
        reads_beside_writes=_fit_interference(cells, "read", alone),
        writes_beside_reads=_fit_interference(cells, "write", alone),
    )


class Parameters(NamedTuple):
    """What a model, and cells of one sector, say of a device: three figures for random requests of one direction."""

    base_seconds: float
    """Setup of a request alone."""
    slots: float
    """Requests that are set up at once, where most are."""
    bandwidth: float
    """Bytes per second of transfer, where 1 MiB requests get most."""


def parameters(model: DeviceModel, direction: Direction, cells: Sequence[Cell] = ()) -> Parameters:
    """Read a device's parameters off its model; "where most" is the mean over the k within 5% of the peak.

    Slots: with T of one sector as measured in `cells`, k where T(k) is within 10% of T(1), for then nobody waits, else
    k T(1) / T(k), for then the slots set the pace. (A device may decline before they do.) Without such cells, at k = 1
    and some other k, T is the model's for 4 KiB, with base for T(1) in the second case: where these keep the bus busy
    before the slots are full, the slots are those that it leaves visible. ValueError for a cell without a measurement.
    Bandwidth: k / transfer(k) of the k with the max form where transfer exceeds setup at 1 MiB, and of the first if its
    form is additive; without such max ones (a disk seeks longer than it moves 1 MiB), of all additive ones; without
    any, of all.
    """
    cost = model.cost(direction)
    ks, transfer = np.array(cost.ks, float), np.array(cost.transfer)
    slots = _slots_of_sectors(cells, direction)
    if slots is None:
        slots = _slots(ks, np.array([cost.request_time(k, SMALL_BLOCK) for k in cost.ks]), cost.setup[0])
    rate = ks / np.array([cost.request_time(k, LARGE_BLOCK) for k in cost.ks])
    additive = np.array(cost.form) == "additive"
    bus_bound = ~additive & (np.array(cost.setup) < TRANSFER_BOUND * LARGE_BLOCK * transfer)
    told = bus_bound | (additive & ((ks == ks[0]) | ~bus_bound.any()))
    if not told.any():
        told = ks > 0
    with np.errstate(divide="ignore"):
        bandwidth = ks / transfer
    return Parameters(cost.setup[0], slots, _mean_at_peak(np.where(told, rate, 0.0), bandwidth))


def _slots_of_sectors(cells: Sequence[Cell], direction: Direction) -> float | None:
    """Slots by the smallest random requests below 4 KiB; None where they were not measured at k = 1 and beyond.

    A request among fewer takes no longer, so what is measured among more bounds its time: no other work that met the
    cell of k = 1 makes slots of nothing.
    """
    sectors = [cell for cell in cells if cell.direction == direction and not cell.modelled]
    smallest = min((cell.block_bytes for cell in sectors), default=0)
    rows = _rows([cell for cell in sectors if cell.block_bytes == smallest], direction, "random")
    if len(rows) < 2 or rows[0].k != 1:
        return None
    seconds = np.minimum.accumulate([row.seconds.min() for row in reversed(rows)])[::-1]
    return _slots(np.array([row.k for row in rows], float), seconds, seconds[0])


def _slots(ks: Array, seconds: Array, base: float) -> float:
    """The most requests that are set up at once, from the seconds of a small request among k; ks[0] waits for none."""
    parallel = np.where(seconds <= UNHINDERED * seconds[0], ks, ks * base / seconds)
    return _mean_at_peak(parallel, parallel)


def _mean_at_peak(rate: Array, values: Array) -> float:
    return float(np.mean(values[rate >= SATURATED * rate.max()]))


@dataclass(frozen=True)
class _Row:
    """What was measured at one k: block sizes, and seconds of a request, of one length."""

    k: int
    sizes: Array
    seconds: Array


class _Line(NamedTuple):
    """Setup and transfer at one k, with the mean of the squared relative residuals."""

    setup: float
    transfer: float
    residual: float


def _rows(cells: Sequence[Cell], direction: Direction, pattern: Pattern) -> list[_Row]:
    """The plain cells of a direction and pattern by k, ascending."""
    by_k: dict[int, list[Cell]] = {}
    for cell in cells:
        if cell.direction == direction and cell.pattern == pattern and not cell.beside:
            by_k.setdefault(cell.k, []).append(cell)
    return [
        _Row(k, np.array([c.block_bytes for c in found], float), np.array([request_seconds(c) for c in found]))
        for k, found in sorted(by_k.items())
    ]


def _fit_random(cells: Sequence[Cell], direction: Direction) -> CostModel:
    rows = _rows(cells, direction, "random")
    if not rows:
        raise ValueError(f"no random {direction} was measured")
    return _fit_rows(rows, None)


def _fit_sequential(cells: Sequence[Cell], direction: Direction, random: CostModel) -> CostModel | None:
    rows = _rows(cells, direction, "sequential")
    return _fit_rows(rows, random) if rows else None


def _fit_rows(rows: Sequence[_Row], random: CostModel | None) -> CostModel:
    """The tables of one direction and pattern; `random` bounds the setup of a sequential one."""
    largest = max(float(row.sizes.max()) for row in rows)
    fastest = FASTEST * max(float((row.k * row.sizes / row.seconds).max()) for row in rows)
    full = [row for row in rows if np.unique(row.sizes).size > 1 and row.sizes.max() >= LARGE_SHARE * largest]
    fitted: dict[Form, dict[int, _Line]] = {
        "additive": {row.k: _fit_additive(row, row.k / fastest) for row in full},
        "max": {row.k: _fit_max(row) for row in full},
    }
    max_from = _first_max([row.k for row in rows], fitted) if full else 0
    forms: list[Form] = ["additive" if row.k < max_from else "max" for row in rows]
    pairs = list(zip(rows, forms, strict=True))
    found = {row.k: fitted[form][row.k] for row, form in pairs if row.k in fitted[form]}
    transfers = {
        row.k: found[row.k].transfer
        for row, form in pairs
        if row.k in found
        and (form == "additive" or row.sizes.max() >= largest or _tells(found[row.k], row.sizes.max()))
    }
    lines = [_with_transfer(row, form, found.get(row.k), _between(transfers, row.k)) for row, form in pairs]
    return CostModel(
        form=tuple(forms),
        ks=tuple(row.k for row in rows),
        setup=_setups(rows, forms, lines, random),
        transfer=tuple(line.transfer for line in lines),
    )


def _tells(line: _Line, size: float) -> bool:
    """Whether a block of `size` tells of transfer in the max form: no setup hides it."""
    return line.setup < TRANSFER_BOUND * line.transfer * size


def _with_transfer(row: _Row, form: Form, line: _Line | None, transfer: float) -> _Line:
    """The line of a row, no slower in transfer than told by others."""
    if line is None:
        return _fit_setup(row, form, transfer)
    return line if form == "additive" else line._replace(transfer=min(line.transfer, transfer))


def _setups(
    rows: Sequence[_Row], forms: Sequence[Form], lines: Sequence[_Line], random: CostModel | None
) -> tuple[float, ...]:
    """Setup at each k: as fitted where the blocks tell of it, else as at the k where they do, or as random ones'."""
    told = {
        row.k: line.setup
        for row, form, line in zip(rows, forms, lines, strict=True)
        if form == "additive"
        or row.sizes.min() <= SMALL_BLOCK
        or (line.transfer * row.sizes < TRANSFER_BOUND * row.seconds).any()
    }
    setups = []
    for row, line in zip(rows, lines, strict=True):
        elsewhere = _between(told, row.k) if told or random is None else random.request_time(row.k, 0)
        setups.append(line.setup if row.k in told else min(line.setup, elsewhere))
    return tuple(setups)


def _between(known: Mapping[int, float], k: int) -> float:
    """A table's value at k: linear between those known, proportional to k beyond them; infinite where none is."""
    if not known:
        return math.inf
    ks = list(known)
    nearest = min(max(k, ks[0]), ks[-1])
    return k / nearest * float(np.interp(nearest, ks, list(known.values())))


def _first_max(ks: Sequence[int], fitted: Mapping[Form, Mapping[int, _Line]]) -> float:
    """The k from which the form is max, by the least mean residual; the second k where that does not tell."""

    def residual(max_from: float) -> float:
        chosen = [fitted["additive" if k < max_from else "max"][k].residual for k in fitted["max"]]
        return max(TELLING**2, sum(chosen) / len(chosen))

    return min([*ks[1:], ks[0], math.inf], key=residual)


def _fit_additive(row: _Row, least: float) -> _Line:
    """setup + transfer x, with transfer >= least."""
    weights = 1 / row.seconds
    found, _ = nnls(np.column_stack((weights, row.sizes * weights)), 1 - least * row.sizes * weights)
    return _judged(row, "additive", float(found[0]), float(found[1]) + least)


def _fit_max(row: _Row) -> _Line:
    """max(setup, transfer x): sizes up to some one tell of setup, the larger, or the largest, of transfer."""
    order = np.argsort(row.sizes, kind="stable")
    sizes, seconds = row.sizes[order], row.seconds[order]
    tried = []
    for split in range(1, len(sizes)):
        transfer = _scale(sizes[split:], seconds[split:])
        tried.append(_judged(row, "max", _scale(np.ones(split), seconds[:split]), transfer))
    return min(tried, key=lambda line: line.residual)


def _scale(shape: Array, seconds: Array) -> float:
    """The factor of `shape` with the least squared relative errors."""
    ratio = shape / seconds
    return float(ratio.sum() / (ratio * ratio).sum())


def _judged(row: _Row, form: Form, setup: float, transfer: float) -> _Line:
    moved = transfer * row.sizes
    predicted = setup + moved if form == "additive" else np.maximum(setup, moved)
    return _Line(setup, transfer, float(np.mean((predicted / row.seconds - 1) ** 2)))


def _fit_setup(row: _Row, form: Form, transfer: float) -> _Line:
    """Setup where the blocks do not tell of transfer; that is no more than was measured."""
    transfer = min(transfer, float((row.seconds / row.sizes).min()))
    moved = transfer * row.sizes
    if form == "max":
        setups = row.seconds[moved < TRANSFER_BOUND * row.seconds]
        setup = _scale(np.ones(setups.size), setups) if setups.size else float(row.seconds.min())
    else:
        weights = 1 / row.seconds
        setup = max(0.0, float(((1 - moved * weights) * weights).sum() / (weights * weights).sum()))
    return _judged(row, form, setup, transfer)


def _fit_interference(cells: Sequence[Cell], direction: Direction, alone: DeviceModel) -> Interference | None:
    """The slowdown with the least squared relative errors over the mixed cells; None where there are none."""
    mixed = [cell for cell in cells if cell.direction == direction and cell.beside]
    if not mixed:
        return None
    measured = {_place(cell): request_seconds(cell) for cell in cells if not cell.beside}
    saturation = float(alone.saturation("write" if direction == "read" else "read"))
    busy = np.array([min(1.0, cell.beside / saturation) for cell in mixed])
    slower = np.array(
        [
            request_seconds(cell)
            / (
                measured.get(_place(cell))
                or alone.request_time(direction, cell.k, cell.block_bytes, pattern=cell.pattern)
            )
            for cell in mixed
        ]
    )
    weights = busy / slower
    slowdown = float((weights * (1 - 1 / slower)).sum() / (weights * weights).sum())
    return Interference(max(0.0, slowdown), saturation)


def _place(cell: Cell) -> tuple[Direction, Pattern, int, int]:
    return cell.direction, cell.pattern, cell.k, cell.block_bytes
