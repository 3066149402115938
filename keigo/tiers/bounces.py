"""Keeps files from going to and fro: one that has moved does not go back at once, and each time it does, less soon.

A policy that weighs heat and load against each other can want a file back where it came from as soon as it has left.
That is for the policy to avoid; here is what bounds the harm whatever the policy does: of moves of a file, each back to
where the one before came from, the n-th comes at least HOLD 2^(n - 2) after the one before, or MOST. Two hours without
a move, and it starts anew.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

HOLD: Final = 30.0  # seconds that a file stays where it is before it may go back for the first time
MOST: Final = 3600.0
_REMEMBERED: Final = 65536  # files: two hours of moves of files of 10 MiB at 100 MiB/s


@dataclass(slots=True)
class _Last:
    """The last move of a file."""

    source: str
    at: float
    returns: int
    """How many times in a row it has gone back to where it came from."""


class Bounces:
    """Which files moved lately, and where from. Times are seconds of a clock that never goes back."""

    def __init__(self) -> None:
        self._files: OrderedDict[int, _Last] = OrderedDict()
        """The one that moved last is at the end. (A `dict` finds its first by a walk over all that were deleted.)"""

    def moved(self, file: int, source: str, target: str, now: float) -> None:
        """A file has moved."""
        self.forget(now)
        last = self._files.pop(file, None)
        returns = 0 if last is None else last.returns + (last.source == target)
        self._files[file] = _Last(source, now, returns)
        if len(self._files) > _REMEMBERED:
            self._files.popitem(last=False)

    def until(self, file: int, target: str) -> float:
        """When a file may move to a tier; 0: at once."""
        last = self._files.get(file)
        if last is None or last.source != target:
            return 0.0
        return last.at + min(MOST, HOLD * 2.0 ** min(last.returns, 30))

    def forget(self, now: float) -> None:
        """Forget moves of so long ago that they do not count any more."""
        while self._files:
            file, last = next(iter(self._files.items()))
            if now < last.at + 2 * MOST:
                return
            del self._files[file]

    def __len__(self) -> int:
        return len(self._files)
