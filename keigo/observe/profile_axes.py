"""The axes that the plots of a profile share, in the terminal and in the picture: all logarithmic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

_FEW: Final = 6
"""More labels than these are a crowd on ten lines of a terminal."""


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis from `low` to `high`, both above 0, with labels at the ticks that lie between."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]

    def share(self, value: float) -> float:
        """Where a value lies: 0 at `low`, 1 at `high`."""
        return math.log(value / self.low) / math.log(self.high / self.low)

    def at(self, share: float) -> float:
        """The value that lies there: the inverse of `share`."""
        return self.low * math.pow(self.high / self.low, share)


def doubling_axis(low: int, high: float, label: Callable[[int], str], step: int = 2) -> Axis:
    """From `low` to `high`, at least twice as much, with ticks at low and each `step` times the one before."""
    high = max(2.0 * low, high)
    ticks = [low * step**n for n in range(int(math.log(high / low, step) + 1e-9) + 1)]
    return Axis(low, high, [(tick, label(tick)) for tick in ticks])


def value_axis(values: Sequence[float], label: Callable[[float], str]) -> Axis:
    """An axis that holds the values, all above 0: it ends on 1, 2 or 5 times a power of ten.

    Ticks are at all of these where they are few, at the powers of ten otherwise.
    """
    decades = range(math.floor(math.log10(min(values))) - 1, math.ceil(math.log10(max(values))) + 1)
    steps = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    first = max(at for at, step in enumerate(steps) if step <= min(values))
    last = min(at for at, step in enumerate(steps) if step >= max(values))
    if first == last:
        first, last = first - 1, last + 1
    inside = steps[first : last + 1]
    shown = inside if len(inside) <= _FEW else [step for step in inside if round(math.log10(step), 6).is_integer()]
    return Axis(inside[0], inside[-1], [(step, label(step)) for step in shown])


def time_label(seconds: float) -> str:
    """50us, 10ms, 2s."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale * 0.999:
            return f"{seconds / scale:.3g}{unit}"
    return f"{seconds / 1e-9:.3g}ns"


def count_label(count: float) -> str:
    """200, 5k, 1M."""
    for unit, scale in (("M", 1e6), ("k", 1e3)):
        if count >= scale * 0.999:
            return f"{count / scale:.3g}{unit}"
    return f"{count:.3g}"
