"""The picture of `keigo top`: what a mounted volume does now."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any, Final

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from keigo.observe.lsm_table import trees_table
from keigo.observe.tables import bar, cache_lines, degraded_lines, head_line, migration_line
from keigo.units import format_size

_WIDTH: Final = 138  # columns of a drawn picture


def top_view(status: Mapping[str, Any], trees: Mapping[str, Any]) -> RenderableType:
    """`status` and `trees` are what the daemon answers to `status` and `lsm`."""
    pressure = status["placement"]["pressure"]
    stalled = Text("writers wait", style="bold red") if pressure["stalled"] else Text("no writer waits", style="green")
    waits = Text.assemble("databases: ", stalled, f", level 0 at {pressure['level0']:.0%} of what slows writers down")
    parts: list[RenderableType] = [head_line(status), _tiers(status), waits, migration_line(status["migrations"])]
    parts += degraded_lines(status["tiers"])
    if status["cache"]:
        parts += cache_lines(status["cache"])
    return Group(*parts, Rule(style="dim"), trees_table(trees))


def draw(view: RenderableType, title: str) -> str:
    """The picture as SVG, with the reader's own fixed-width font: none is fetched."""
    console = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(view)
    plain = re.sub(r"@font-face \{\{.*?\n    \}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    return console.export_svg(title=title, code_format=plain)


def _tiers(status: Mapping[str, Any]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("tier")
    table.add_column("used", justify="right")
    table.add_column("")
    for way in ("reads", "writes"):
        for name in (way, "a second", "each takes", "under way"):
            table.add_column(name, justify="right")
    for tier in status["tiers"]:
        load = tier["load"]
        cells = [cell for way in ("read", "write") for cell in _direction(load, way)]
        table.add_row(tier["name"], format_size(tier["used"]), bar(tier["used"], tier["capacity"]), *cells)
    return table


def _direction(load: Mapping[str, Any], way: str) -> list[str]:
    """Bytes per second, requests per second, the time of one by Little's law, requests under way."""
    bandwidth, rate, k = load[f"{way}_bandwidth"], load[f"{way}_rate"], load[f"{way}_k"]
    if bandwidth is None or rate is None:
        return ["?", "?", "?", "?"]
    takes = "" if k is None or rate < 1 else _time(k / rate)
    return [f"{format_size(round(bandwidth))}/s", f"{rate:,.0f}", takes, "?" if k is None else f"{k:.1f}"]


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"
