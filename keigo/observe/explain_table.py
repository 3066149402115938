"""What `keigo explain` prints: why a file is where it is, drawn with rich."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from keigo.units import format_size


def explain_table(found: Mapping[str, Any]) -> RenderableType:
    """The answer of the daemon's `explain`: a head, what was predicted at create, and what holds now."""
    lines: list[RenderableType] = [_head(found), Text(f"here because: {found['reason']}")]
    if found["pinned"]:
        lines.append(Text(f"pinned to {found['pinned']}"))
    if found["open"]:
        lines.append(Text("open for writing, or just being copied: it does not move now"))
    if found["held"]:
        lines.append(Text(f"does not move now: {found['held']}"))
    if found["at_create"]:
        lines += [Text(), Text("predicted at create, by tier:", style="bold"), _at_create(found["at_create"])]
    if found["expected"]:
        lines += [Text(), _expected(found)]
    if found["now"]:
        lines += [Text("keeping it, now:", style="bold"), _now(found["now"])]
    return Group(*lines)


def _head(found: Mapping[str, Any]) -> Text:
    level = "" if found["level"] is None else f", level {found['level']}"
    if found["level"] != found["created_level"] and found["created_level"] is not None:
        level += f" (believed {found['created_level']} at create)"
    family = f", family {found['family']}" if found["family"] else ""
    what = f"{found['role']}{level}{family}, {format_size(found['size'])}"
    since = f", created {_ago(found['age'])} ago"
    if found["since_move"] is not None:
        since += f", moved {_ago(found['since_move'])} ago"
    return Text.assemble((found["name"], "bold"), f": {what}, on ", (found["tier"], "bold"), since)


def _ago(seconds: float) -> str:
    """A span of time in its largest unit."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _table(names: Sequence[str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("tier")
    for name in names:
        table.add_column(name, justify="right")
    return table


def _time(seconds: float) -> str:
    """Seconds, for people."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return "0" if seconds <= 0 else f"{seconds * 1e6:.2g} us"


def _at_create(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(["write", "read", "room", "total"])
    for row in rows:
        table.add_row(row["tier"], *(_time(row[key]) for key in ("write", "read", "room", "total")))
    return table


def _expected(found: Mapping[str, Any]) -> Text:
    expected = found["expected"]
    source = "learned" if expected["learned"] else "assumed"
    return Text(
        f"expected of such files ({source}): {format_size(int(expected['size']))}, {_ago(expected['life'])} of life, "
        f"{expected['reads'] * (1 << 20):.3g} reads/s per MiB; this one: {found['reads']:.3g} reads/s"
    )


def _now(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(["costs a second", "copy", "free"])
    table.add_column("")
    for row in rows:
        cells = _time(row["keeping"]), _time(row["copy"]) if row["copy"] else "", format_size(max(0, row["room"]))
        table.add_row(row["tier"], *cells, row["verdict"])
    return table
