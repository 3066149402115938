"""The picture of `keigo lsm`: each level a bar, in the colours of the tiers that hold it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from keigo.units import format_size

_COLOURS: Final = ("green", "cyan", "blue", "magenta", "yellow", "red")
_FILLS: Final = "█▓▒░"
"""By tier, from fast to slow: a picture without colours tells them apart, too."""
_WIDTH: Final = 40


def trees_table(trees: Mapping[str, Any]) -> RenderableType:
    """All databases of a volume; `trees` is what `keigo.observe.lsm.trees_of` gives."""
    tiers: list[str] = trees["tiers"]
    legend = Text("tiers: ", style="dim")
    for index, name in enumerate(tiers):
        legend += _fill(1, index) + Text(f" {name}  ")
    parts: list[RenderableType] = []
    for database in trees["databases"]:
        parts += [_head(database), *(_family(family, tiers) for family in database["families"]), Text()]
    if not parts:
        return Text("no SST or blob files here")
    return Group(*parts, legend)


def _head(database: Mapping[str, Any]) -> Text:
    name = " ".join(filter(None, (database["engine"], database.get("version")))) or "engine not known yet"
    head = Text.assemble((database["directory"] or ".", "bold"), (f"   {name}", "dim"))
    if database.get("problem"):
        head += Text(f"   {database['problem']}", style="red")
    return head


def _family(family: Mapping[str, Any], tiers: Sequence[str]) -> RenderableType:
    levels = family["levels"]
    largest = max((level["size"] for level in levels), default=0)
    table = Table(box=None, header_style="dim", pad_edge=False, title=family["name"] or None, title_justify="left")
    for name, justify in (("level", "left"), ("files", "right"), ("size", "right"), ("of", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("")
    table.add_column("on")
    for level in levels:
        label = "blobs" if level["role"] == "blob" else "?" if level["level"] is None else f"L{level['level']}"
        held = [(index, level["tiers"][name]) for index, name in enumerate(tiers) if name in level["tiers"]]
        table.add_row(
            label,
            str(level["files"]),
            format_size(level["size"]),
            "" if level["target"] is None else format_size(level["target"]),
            _bar(held, largest),
            ", ".join(f"{tiers[index]} {format_size(size)}" for index, size in held),
        )
    return table


def _bar(held: Sequence[tuple[int, int]], largest: int) -> Text:
    """Each tier's part of a level, so long that the largest level fills the width; nothing that is there vanishes."""
    bar = Text()
    for index, size in held:
        bar += _fill(max(1, round(_WIDTH * size / largest)) if size and largest else 0, index)
    return bar


def _fill(length: int, tier: int) -> Text:
    return Text(_FILLS[min(tier, len(_FILLS) - 1)] * length, style=_COLOURS[tier % len(_COLOURS)])
