"""Tables for people, drawn with rich."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from keigo.units import format_size


def bar(used: int, capacity: int, width: int = 20) -> Text:
    """How full a tier is."""
    share = min(1.0, used / capacity) if capacity else 0.0
    filled = round(share * width)
    colour = "red" if share > 0.95 else "yellow" if share > 0.8 else "green"
    return Text("█" * filled, style=colour) + Text("░" * (width - filled), style="dim") + Text(f" {share:4.0%}")


def _rate(load: Mapping[str, Any], direction: str) -> str:
    """Bytes per second and mean number of requests under way, as far as they are known."""
    bandwidth, k = load[f"{direction}_bandwidth"], load[f"{direction}_k"]
    if bandwidth is None:
        return "?"
    return f"{format_size(round(bandwidth))}/s" + ("" if k is None else f" k={k:.1f}")


def degraded_lines(tiers: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """Tiers whose devices do not work."""
    return [
        Text(
            f"tier {tier['name']} is degraded for {tier['degraded_for']:.0f} s: {tier['errors']} error(s), last: "
            f"{tier['last_error']}; new files go elsewhere",
            style="bold red",
        )
        for tier in tiers
        if tier["degraded_for"] is not None
    ]


def cache_lines(cache: Mapping[str, Any]) -> list[RenderableType]:
    """What the read cache holds and is worth."""
    used, capacity = format_size(cache["used"]), format_size(cache["capacity"])
    line = f"cache on {cache['tier']}: {used} of {capacity}, {cache['files']} file(s)"
    if cache["recent_hit_ratio"] is not None:
        line += f", hits {cache['recent_hit_ratio']:.1%} lately"
    if cache["hit_ratio"] is not None:
        line += f", {cache['hit_ratio']:.1%} since the mount, {cache['seconds_saved']:.1f} s of the devices saved"
    lines: list[RenderableType] = [Text(line)]
    doing = []
    if cache["waiting"]:
        doing.append(f"{cache['waiting']} chunk(s) are being copied at {format_size(round(cache['speed']))}/s")
    if cache["paused"]:
        doing.append(f"paused: {cache['paused']}")
    if cache["unverified"]:
        doing.append(f"{cache['unverified']} chunk(s) are to be checked before they are used")
    if cache["errors"]:
        doing.append(f"{cache['errors']} error(s) (last: {cache['last_error']})")
    if doing:
        lines.append(Text("cache: " + ", ".join(doing)))
    return lines


def head_line(status: Mapping[str, Any]) -> Text:
    """Which volume it is."""
    return Text.assemble(
        ("volume ", "dim"),
        (str(status["volume"]), "bold"),
        (" at ", "dim"),
        str(status["mount"]),
        (f"   driver {status['driver']} ({status['driver_reason']}), policy {status['policy']}, ", "dim"),
        (f"pid {status['pid']}", "dim"),
        ("" if status["keeper"] == "there" else f"   a daemon that dies is not replaced: {status['keeper']}", "yellow"),
    )


def migration_line(moves: Mapping[str, Any]) -> Text:
    """What the mover has done and does."""
    line = f"migrations: {moves['done']} done ({format_size(moves['bytes'])}), {moves['waiting']} waiting"
    if moves["failed"]:
        line += f", {moves['failed']} failed (last: {moves['last_error']})"
    if moves["current"]:
        line += f", now {moves['current']} at {format_size(round(moves['speed']))}/s"
    if moves["paused"]:
        line += f", paused: {moves['paused']}"
    return Text(line)


def status_table(status: Mapping[str, Any]) -> RenderableType:
    """A volume's state: a head line, a row per tier, and what the mover does."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, justify in (("tier", "left"), ("path", "left"), ("files", "right"), ("used", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("capacity", justify="right")
    table.add_column("")
    table.add_column("reads", justify="right")
    table.add_column("writes", justify="right")
    for tier in status["tiers"]:
        place = f"{tier['path']} (in place)" if tier["in_place"] else tier["path"]
        table.add_row(
            tier["name"],
            place,
            str(tier["files"]),
            format_size(tier["used"]),
            format_size(tier["capacity"]),
            bar(tier["used"], tier["capacity"]),
            _rate(tier["load"], "read"),
            _rate(tier["load"], "write"),
        )
    lines: list[RenderableType] = [head_line(status), table, migration_line(status["migrations"])]
    lines += degraded_lines(status["tiers"])
    if status["cache"]:
        lines += cache_lines(status["cache"])
    priority = status["io_priority"]
    if priority is not None:
        text = f"io_priority: {priority['lowered']} thread(s) lowered"
        lines.append(Text(text + (f", {priority['refused']} refused" if priority["refused"] else "")))
    if status["draining"]:
        left = "all files are in place" if not status["guards"] else "files are being brought back"
        lines.append(Text(f"draining: {left}", style="yellow"))
    if status["pins"]:
        pins = ", ".join(f"{pattern} -> {tier}" for pattern, tier in status["pins"].items())
        lines.append(Text(f"pins: {pins}"))
    return Group(*lines)


def files_table(rows: Sequence[Mapping[str, Any]], *, why: bool) -> RenderableType:
    """A row per file."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("name", overflow="fold")
    table.add_column("role")
    table.add_column("level", justify="right")
    table.add_column("at create", justify="right")
    table.add_column("family")
    table.add_column("tier")
    table.add_column("size", justify="right")
    if why:
        table.add_column("why", overflow="fold")
    for row in rows:
        level, created = ("" if row[key] is None else str(row[key]) for key in ("level", "created_level"))
        cells = [row["name"], row["role"], level, created, row["family"] or "", row["tier"], format_size(row["size"])]
        table.add_row(*cells, *([row["reason"]] if why else []))
    return table


def where_table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Which kinds of files went to which tier, and why: one row for each combination."""
    groups: dict[tuple[str, str, str, str], list[int]] = defaultdict(list)
    for row in rows:
        level = "" if row["level"] is None else str(row["level"])
        groups[row["tier"], row["role"], level, row["reason"]].append(row["size"])
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("tier", "role"):
        table.add_column(name)
    for name in ("level", "files", "size"):
        table.add_column(name, justify="right")
    table.add_column("why", overflow="fold")
    for (tier, role, level, reason), sizes in groups.items():
        table.add_row(tier, role, level, str(len(sizes)), format_size(sum(sizes)), reason)
    return table
