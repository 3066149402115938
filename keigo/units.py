"""Sizes and times for people: `64MiB`, `1.5 GiB`, `10GB`, `4096`; `60s`, `1.5min`, `90`.

Binary units of size end in `iB`, decimal ones in `B`.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

_UNITS: Final = {
    "": 1,
    "b": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
    "pib": 1 << 50,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "pb": 10**15,
}
_TIMES: Final = {"": 1.0, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_SIZE: Final = re.compile(r"(\d{1,40}(?:\.\d{1,40})?)\s*([A-Za-z]*)", re.ASCII)
_LONGEST: Final = 365 * 24 * 3600  # seconds
_MOST: Final = (1 << 63) - 1  # off_t


def parse_size(text: str | int) -> int:
    """Bytes of a human size. Raises ValueError with one line that shows `text` and what is understood."""
    if isinstance(text, int):
        if text < 0:
            raise ValueError(f"{text} is negative")
        return _bounded(text, str(text))
    match = _SIZE.fullmatch(text.strip())
    unit = None if match is None else _UNITS.get(match[2].lower())
    if match is None or unit is None:
        raise ValueError(f"{text[:60]!r} is not a size (like 4096, 64MiB, 1.5GiB, 10GB)")
    return _bounded(int(Fraction(match[1]) * unit), text)


def _bounded(size: int, text: str) -> int:
    if size > _MOST:
        raise ValueError(f"{text[:60]} is more than a file system can hold")
    return size


def parse_rate(text: str | int) -> int:
    """Bytes per second of a human rate, `200MiB/s` or `200MiB`. Raises ValueError."""
    return parse_size(text.strip().removesuffix("/s") if isinstance(text, str) else text)


def parse_seconds(text: str | float) -> float:
    """Seconds of a human time, or of a number of them. Raises ValueError with one line that shows `text`."""
    seconds: float
    if isinstance(text, str):
        match = _SIZE.fullmatch(text.strip())
        unit = None if match is None else _TIMES.get(match[2].lower())
        if match is None or unit is None:
            raise ValueError(f"{text[:60]!r} is not a time (like 90, 60s, 1.5min, 2h)")
        seconds = float(match[1]) * unit
    else:
        seconds = text
    if not 0 <= seconds <= _LONGEST:
        raise ValueError(f"{str(text)[:60]} is not a time between 0 and {_LONGEST // 3600} h")
    return float(seconds)


def format_size(size: int) -> str:
    """A size in the largest binary unit that leaves at least 1, with one decimal above bytes."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if round(abs(value), 1) < 1024:  # or 1048575 would be 1024.0 KiB
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} PiB"
