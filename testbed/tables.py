"""What the command line prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from keigo.units import format_size
from testbed.bed import DeviceStatus
from testbed.calibrate import Overhead
from testbed.check import Point
from testbed.parameters import Way
from testbed.state import State


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def _way(way: Way) -> list[str]:
    decline = f"{way.decline:g}" if way.decline else "-"
    return [f"{way.base_us:.0f} us", str(way.slots), f"{way.bandwidth / 1e6:.1f} MB/s", decline]


def _overhead(way: Overhead | None) -> str:
    return "?" if way is None else f"{way.us:.0f} us + {way.us_per_mib:.0f} us/MiB"


def parameters_table(found: State) -> Table:
    """The parameters of each device, as dilated, and what is taken off them."""
    of_a_way = ("base", "slots", "bandwidth", "decline", "the way (taken off)")
    columns = ("device", "", *of_a_way, "flush", "reads beside writes")
    table = _table(f"devices, {found.dilation:g}x slower than the real ones", columns)
    for member in found.members:
        device = member.device
        beside = f"up to {1 + device.interference:.2g}x" if device.interference else "-"
        table.add_row(member.name, "read", *_way(device.read), _overhead(member.reads), "", beside)
        table.add_row("", "write", *_way(device.write), _overhead(member.writes), f"{device.flush_us:.0f} us", "")
    return table


def activity_table(devices: Sequence[DeviceStatus]) -> Table:
    """What each device holds and has served."""
    of_counts = ("reads", "read", "writes", "written", "flushes", "discarded", "most at once")
    table = _table("", ("device", "loop", "mounted", "size", "memory", *of_counts))
    for now in devices:
        counts = now.counts
        served = (
            [
                str(counts["reads"]),
                format_size(counts["read_bytes"]),
                str(counts["writes"]),
                format_size(counts["written_bytes"]),
                str(counts["flushes"]),
                format_size(counts["discarded_bytes"]),
                str(counts["most_under_way"]),
            ]
            if counts
            else ["-"] * 7
        )
        memory = "server is gone" if now.memory is None else format_size(now.memory)
        loops = ",".join(now.loops) or "-"
        size = format_size(now.member.device.size)
        table.add_row(now.member.name, loops, "yes" if now.mounted else "no", size, memory, *served)
    return table


def check_table(name: str, points: Sequence[Point]) -> Table:
    """Measured beside expected."""
    columns = (name, "k", "block", "requests/s", "mean", "expected", "off by", "p50", "p99", "p99/p50", "server CPU")
    table = _table("", columns)
    for point in points:
        off = point.mean_us / point.expected_us - 1
        table.add_row(
            point.direction,
            str(point.k),
            format_size(point.block_bytes),
            f"{point.rate:.0f}",
            f"{point.mean_us:.0f} us",
            f"{point.expected_us:.0f} us",
            f"{off:+.1%}",
            f"{point.p50_us:.0f} us",
            f"{point.p99_us:.0f} us",
            f"{point.p99_us / point.p50_us:.2f}",
            f"{point.cpu:.0%}",
        )
    return table
