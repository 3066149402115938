"""What is read of processes and tiers while a phase runs."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from keigo.control import ControlError, ask
from keigo.mounts import Mount as MountEntry
from keigo.mounts import mounts, real_path
from workloads.runner.result import Machine, Mount, Samples


def filesystem_of(directory: Path) -> MountEntry:
    """The mount that a directory is on."""
    path = real_path(directory)
    on = [mount for mount in mounts() if path == mount.path or path.startswith(mount.path.rstrip("/") + "/")]
    longest = max(len(mount.path) for mount in on)
    return next(mount for mount in reversed(on) if len(mount.path) == longest)


def machine() -> Machine:
    """This one."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return Machine(
        model,
        len(os.sched_getaffinity(0)),
        psutil.virtual_memory().total,
        platform.release(),
        platform.python_version(),
    )


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything at one moment; counts are since any beginning."""

    moment: float
    database_cpu: float
    daemon_cpu: float | None
    tiers: dict[str, tuple[int, int, int]]
    """Tier -> bytes read, written, used."""


class Meters:
    """Reads the CPU time of this process and, where the directory is on a Keigo mount, of its daemon and its tiers.

    A daemon that stops answering during a run is told by the engine's errors; here its figures just end.
    """

    def __init__(self, directory: Path) -> None:
        found = filesystem_of(directory)
        self.filesystem = found.fstype
        self._volume = found.volume
        self._daemon: psutil.Process | None = None
        self.daemon_pid: int | None = None
        self.mount: Mount | None = None
        if found.volume is not None:
            status = ask(found.volume, "status")
            self.daemon_pid = int(status["pid"])
            self._daemon = psutil.Process(self.daemon_pid)
            tiers = [tier["name"] for tier in status["tiers"]]
            self.mount = Mount(found.volume, found.path, status["driver"], status["policy"], tiers)

    def read(self) -> Reading:
        """Now. Takes a millisecond where there is a daemon to ask."""
        own = time.process_time()
        tiers: dict[str, tuple[int, int, int]] = {}
        daemon_cpu = None
        if self._volume is not None and self._daemon is not None:
            try:
                times = self._daemon.cpu_times()
                daemon_cpu = times.user + times.system
                tiers = {tier["name"]: _bytes(tier) for tier in ask(self._volume, "status")["tiers"]}
            except (psutil.NoSuchProcess, ControlError):
                self._volume = None
        return Reading(time.monotonic(), own, daemon_cpu, tiers)


def _bytes(tier: dict[str, Any]) -> tuple[int, int, int]:
    load = tier["load"]
    return load["read_bytes"], load["written_bytes"], tier["used"]


_READ: Final = 0
_WRITTEN: Final = 1
_USED: Final = 2


@dataclass(slots=True)
class Sampler:
    """Readings of one phase, from its beginning on."""

    meters: Meters
    readings: list[Reading] = field(default_factory=list)

    def sample(self) -> None:
        """Take one."""
        self.readings.append(self.meters.read())

    def samples(self) -> Samples:
        """All of them, as columns."""
        first = self.readings[0]
        asked = [it for it in self.readings if it.tiers]
        daemon = [it.daemon_cpu - (first.daemon_cpu or 0.0) for it in self.readings if it.daemon_cpu is not None]
        return Samples(
            [it.moment - first.moment for it in self.readings],
            [it.database_cpu - first.database_cpu for it in self.readings],
            daemon,
            {name: [it.tiers[name][_READ] - first.tiers[name][_READ] for it in asked] for name in first.tiers},
            {name: [it.tiers[name][_WRITTEN] - first.tiers[name][_WRITTEN] for it in asked] for name in first.tiers},
            {name: [it.tiers[name][_USED] for it in asked] for name in first.tiers},
        )
