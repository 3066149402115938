"""Seconds since the epoch that never go back: for ages, rates and heat.

The wall clock as it was when the process began, and from then on what has passed, with suspensions. A wall clock that
is set meanwhile changes nothing: heat of an hour to come would stand above all others for that hour.
"""

from __future__ import annotations

import time
from typing import Final

_BEGAN: Final = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def now() -> float:
    """See the module's docstring."""
    return _BEGAN + time.clock_gettime(time.CLOCK_BOOTTIME)
