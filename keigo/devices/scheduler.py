"""Which I/O scheduler orders a device's requests, and whether it heeds the level of an I/O priority.

Only BFQ does. `mq-deadline` knows priorities since Linux 5.14, but of best-effort requests all levels are one to it
(block/mq-deadline.c, ioprio_class_to_prio); `kyber` and `none` know none (Documentation/block/ioprio.rst).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_HEEDING: Final = "bfq"
_SYS: Final = Path("/sys/dev/block")


def schedulers_of(number: int, sys: Path = _SYS) -> dict[str, str]:
    """Kernel name of each disk below the device `number` (st_dev of its files) -> its scheduler.

    A partition's is its disk's. A mapping over others (LVM, LUKS, md) passes priorities on, so theirs count; a loop
    device does not, and has a scheduler of its own. Empty where nothing is known: no block device, no queue.
    """
    place = sys / f"{os.major(number)}:{os.minor(number)}"
    return _below(place.resolve()) if place.exists() else {}


def _below(place: Path) -> dict[str, str]:
    """`schedulers_of` a device's directory in /sys."""
    if (place / "partition").exists():
        return _below(place.parent)
    try:
        slaves = sorted((place / "slaves").iterdir())
    except OSError:
        slaves = []
    if slaves:
        return {name: scheduler for slave in slaves for name, scheduler in _below(slave.resolve()).items()}
    try:
        text = (place / "queue/scheduler").read_text()
    except OSError:
        return {}
    chosen = re.search(r"\[(\S+)\]", text)
    scheduler = chosen[1] if chosen else text.strip()
    return {place.name: scheduler} if scheduler else {}


def priority_notes(tiers: Iterable[tuple[str, int]], sys: Path = _SYS) -> list[str]:
    """A line for each of the tiers (name, st_dev) and disks whose scheduler makes nothing of `io_priority`."""
    return [
        f"io_priority does nothing on tier {tier}: the I/O scheduler of {disk} is {scheduler}, which ignores levels of "
        f"priority; {_HEEDING} does not (/sys/block/{disk}/queue/scheduler)"
        for tier, number in tiers
        for disk, scheduler in schedulers_of(number, sys).items()
        if scheduler != _HEEDING
    ]
