"""A model for every tier of a volume, where only some, or none, were measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from keigo.devices.model import SMALL_BLOCK, CostModel, DeviceModel
from keigo.placement.rates import assumed

STEP: Final = 4.0
"""How much slower a tier is taken to be than the one before it; see `rates.assumed`."""
_MOST: Final = 1e6
_LEAST: Final = 1e-15  # seconds; models have their own bounds, which a factor must not pass


def models_of(measured: Sequence[DeviceModel | None]) -> tuple[DeviceModel, ...]:
    """The model of each tier: its own, else one that keeps the order of tiers.

    Behind a measured tier each place is STEP slower. Before the next measured tier less, where that one is nearer than
    so many steps: then the places in between are equal steps of the ratio of the two's 4 KiB reads. (Never faster than
    the tier before, also where the user has listed a faster one after a slower one.) Before the first measured tier
    each place is STEP faster. With nothing measured, `assumed`.
    """
    known = [place for place, model in enumerate(measured) if model is not None]
    return tuple(model or _between(measured, known, place) for place, model in enumerate(measured))


def _between(measured: Sequence[DeviceModel | None], known: Sequence[int], place: int) -> DeviceModel:
    before = max((other for other in known if other < place), default=None)
    after = min((other for other in known if other > place), default=None)
    first = None if before is None else measured[before]
    last = None if after is None else measured[after]
    if first is None or before is None:
        return assumed(place) if last is None or after is None else scaled(last, STEP ** (place - after))
    step = STEP
    if last is not None and after is not None:
        ratio = last.request_time("read", 1, SMALL_BLOCK) / first.request_time("read", 1, SMALL_BLOCK)
        step = min(STEP, max(1.0, ratio ** (1 / (after - before))))
    return scaled(first, step ** (place - before))


def scaled(model: DeviceModel, factor: float) -> DeviceModel:
    """A device whose every request takes `factor` times as long, at the same concurrency."""

    def cost(one: CostModel) -> CostModel:
        return msgspec.structs.replace(
            one,
            setup=tuple(min(_MOST, max(_LEAST, seconds * factor)) for seconds in one.setup),
            transfer=tuple(min(_MOST, seconds * factor) for seconds in one.transfer),
        )

    return msgspec.structs.replace(
        model,
        random_read=cost(model.random_read),
        random_write=cost(model.random_write),
        sequential_read=None if model.sequential_read is None else cost(model.sequential_read),
        sequential_write=None if model.sequential_write is None else cost(model.sequential_write),
    )
