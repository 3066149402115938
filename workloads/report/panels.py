"""What all charts of a report share: sizes, colours, axes, figures in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from workloads.report import svg
from workloads.report.measured import Section

WIDTH: Final = 1000.0
LEFT: Final = 168.0
"""Where the names of setups end and their bars begin."""
STRIP_LEFT: Final = 84.0
STRIP_RIGHT: Final = WIDTH - 26
"""Where what is drawn over time begins and ends."""
_COLOURS: Final = 8
"""How many the style sheet has for setups."""


def colours(section: Section) -> dict[str, str]:
    """The colour of each setup: the base is grey, the others in turn."""
    others = [setup.name for setup in section.setups if setup.name != section.base]
    found = {name: f"var(--s{number % _COLOURS})" for number, name in enumerate(others)}
    return found if section.base is None else {section.base: "var(--base)", **found}


def tier_colours(tiers: Sequence[str]) -> dict[str, str]:
    """The colour of each tier, fast to slow: from warm to cold."""
    last = max(1, len(tiers) - 1)
    return {name: f"var(--t{number * 3 // last})" for number, name in enumerate(tiers)}


def count_text(value: float) -> str:
    """1.23 M, 45.6 k, 789."""
    for unit, scale in ((" M", 1e6), (" k", 1e3)):
        if abs(value) >= scale * 0.9995:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}"


def time_text(microseconds: float) -> str:
    """850 ns, 12 µs, 3.4 ms, 1.2 s."""
    for unit, scale in (("s", 1e6), ("ms", 1e3), ("µs", 1.0)):
        if microseconds >= scale * 0.9995:
            value = microseconds / scale
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{microseconds * 1000:.0f} ns"


def size_text(size: float) -> str:
    """1.5 GiB, 20 MiB, 0."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(size) >= scale * 0.9995:
            value = size / scale
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{size:.0f} B" if size else "0"


def size_ticks(most: float, about: int) -> list[float]:
    """As `svg.ticks`, round in the unit that `size_text` shows."""
    unit = next((scale for scale in (1 << 30, 1 << 20, 1 << 10) if most >= scale), 1)
    return [tick * unit for tick in svg.ticks(most / unit, about)]


def duration_text(seconds: float) -> str:
    """850 ms, 12.3 s, 5 min."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} min"


def time_axis(scale: svg.Linear, top: float, bottom: float, *, labelled: bool) -> str:
    """Vertical lines at round seconds, and the seconds below."""
    parts = []
    for second in svg.ticks(scale.high, 10, svg.COARSE):
        if second > scale.high * 1.0001:
            continue
        x = scale(second)
        parts.append(svg.line((x, top), (x, bottom), "grid"))
        if labelled:
            parts.append(svg.label(x, bottom + 16, f"{second:g} s" if second else "0", "tick", "middle"))
    return "".join(parts)


def value_axis(scale: Callable[[float], float], values: Sequence[float], text: Callable[[float], str]) -> str:
    """Horizontal lines across a strip at values, and the values at their left."""
    parts = []
    for value in values:
        y = scale(value)
        parts.append(svg.line((STRIP_LEFT, y), (STRIP_RIGHT, y), "axis" if value == 0 else "grid"))
        parts.append(svg.label(STRIP_LEFT - 8, y + 4, text(value), "tick", "end"))
    return "".join(parts)


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Names beside their colours, as HTML."""
    keys = (
        f'<span class="key"><i style="background:{colour}"></i>{svg.escape(name)}</span>' for name, colour in entries
    )
    return f'<div class="legend">{"".join(keys)}</div>'
