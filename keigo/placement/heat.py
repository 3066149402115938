"""Heat: the rate of foreground reads, exponentially decayed. What was read HALF_LIFE ago counts half.

Kept of a file is its score,

    score = log2(d) + now / HALF_LIFE      d: the decayed rate, where each read adds 1 / WINDOW

which does not change while the file is not read, so cooling costs nothing. Files are told apart by the integer part k
of log2(heat / size) + now / HALF_LIFE. What that is in reads per second and byte depends on the time alone:

    2**(k - now / HALF_LIFE) <= reads per second and byte < 2**(k + 1 - now / HALF_LIFE)

`Bucket.heat` is the integer next to the lower exponent: wrong by half a class at most, and all sink together.

Of an old file the heat is d. One of age T has been seen for less than the window, and is taken for its like at first:

    heat = p v / (v + s(T - LAG)) + d WINDOW / max(LAG, v + s(T))

    s(T) = WINDOW (1 - 2**(-T / HALF_LIFE))    v = w 2**(-T / HALF_LIFE)    w = 0.3 / p, at most 10 s

where p is the rate that was expected when it was made, and s(T) is T itself for a young file. What was expected counts
as much as the third of a read, for of a group that is read much most files often are not: a mean over all of them says
little about one, and the first reads, or seconds without any, say more. (In Bayes' words: the rates of a group's files
follow a gamma distribution of shape 0.3.)
"""

from __future__ import annotations

import math
from typing import Final

HALF_LIFE: Final = 60.0
"""Seconds. Long enough that the rate of a file that is read every 10 s is known to a quarter, short enough that a
workload that has shifted is seen before some GiB could be copied. Scores are kept in catalogs: another value is another
format of `FileRecord.heat`."""
WINDOW: Final = HALF_LIFE / math.log(2)
"""Seconds; a steady rate is then its own mean."""
GROWN_UP: Final = 4 * HALF_LIFE
"""Age from which on a file is old: its like say nothing of it any more."""
COLDEST: Final = -40
"""Class of heat below which a file has (almost) no reads: one in 12 days per MiB."""
COLD: Final = -(1 << 40)
"""k of a file without reads."""
_MOST_RATE: Final = 40.0
"""log2 of reads per second that no device does. A score that says more is of a time to come: the clock was set back."""
LAG: Final = 1.5
"""Seconds; reads are told once a second, so that a file seems to have none for so long."""
_SHAPE: Final = 0.3
_MOST_WEIGHT: Final = 10.0


def score_of(rate: float, now: float) -> float:
    """The score of a decayed rate; 0 where it is 0."""
    return math.log2(rate) + now / HALF_LIFE if rate > 0 else 0.0


def rate_of(score: float, now: float) -> float:
    """The decayed rate of a score; 0 for one that cannot be, with which the next read begins anew."""
    exponent = score - now / HALF_LIFE
    return math.exp2(exponent) if exponent <= _MOST_RATE else 0.0


def heat_of(rate: float, expected: float, age: float) -> float:
    """Reads per second of a file of some age in seconds, by its decayed rate and by what was expected of it."""
    if age >= GROWN_UP:
        return rate
    left = math.exp2(-max(0.0, age) / HALF_LIFE)
    told = WINDOW * (1 - math.exp2(-max(0.0, age - LAG) / HALF_LIFE))
    weight = left * min(_MOST_WEIGHT, _SHAPE / expected if expected > 0 else math.inf)
    return expected * weight / (weight + told) + rate * WINDOW / max(LAG, weight + WINDOW * (1 - left))


def shift(now: float) -> int:
    """What k exceeds the class of heat by."""
    return math.floor(now / HALF_LIFE + 0.5)


def class_of(heat: float, size: int, now: float) -> int:
    """k of a file."""
    if heat <= 0:
        return COLD
    k = math.floor(math.log2(heat / max(size, 1)) + now / HALF_LIFE)
    return COLD if k < COLDEST + shift(now) else k
