"""What a daemon tells of itself: status, files, LSM trees, and why a file is where it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusefs.driver import Driver
from fusefs.namespace import Namespace
from keigo.config import Config
from keigo.control import ControlError, Operation, Progress
from keigo.devices.load import Load
from keigo.devices.staleness import Known
from keigo.observe.cache import cache_facts, file_facts
from keigo.observe.explain import explain
from keigo.observe.lsm import trees_of
from keigo.observe.status import file_rows, status_of
from keigo.serving.arguments import text_of
from keigo.tiers.mover import Mover

if TYPE_CHECKING:
    from keigo.cache.filler import Filler


@dataclass(frozen=True)
class Views:
    """Of one mount; any thread may look."""

    config: Config
    directory: Path
    driver: Driver
    driver_reason: str
    namespace: Namespace
    filler: Filler | None
    mover: Mover
    known: Known
    loads: Callable[[], Sequence[Load]]
    """The load of each tier, now."""
    keeper: Callable[[], str]
    """`there`, or why a daemon that dies would not be replaced."""

    def operations(self) -> Mapping[str, Operation]:
        """Request -> what answers it."""
        return {
            "status": lambda _request, _progress: self.status(),
            "ls": lambda _request, _progress: self.files(),
            "lsm": lambda _request, _progress: self.trees(),
            "explain": self._explain,
        }

    def status(self) -> dict[str, Any]:
        """As `keigo status --json` prints it."""
        namespace, volume = self.namespace, self.namespace.volume
        namespace.meter.measure_writers()
        namespace.observer.settle()
        status = status_of(volume, self.loads())
        return {
            "pid": os.getpid(),
            "volume": self.config.volume,
            "mount": str(self.directory),
            "config": str(self.config.source),
            "driver": self.driver.name,
            "driver_reason": self.driver_reason,
            "driver_facts": self.driver.facts(),
            "keeper": self.keeper(),
            "context": namespace.observer.facts(),
            "profile": self.known.facts(),
            "io_priority": None if namespace.io_priority is None else namespace.io_priority.facts(),
            **status,
            "cache": {} if self.filler is None else cache_facts(self.filler),
            "migrations": asdict(self.mover.progress),
        }

    def files(self) -> Any:  # noqa: ANN401
        """As `keigo ls --json` prints it."""
        self.namespace.observer.settle()
        cached = {} if self.filler is None else file_facts(self.filler.cache)
        return file_rows(self.namespace.volume, self.driver.reads(), cached)

    def trees(self) -> Any:  # noqa: ANN401
        """As `keigo lsm --json` prints it."""
        self.namespace.observer.settle()
        return trees_of(self.namespace.volume, self.namespace.observer)

    def _explain(self, request: Mapping[str, Any], _progress: Progress) -> Any:  # noqa: ANN401
        name = text_of(request, "name")
        self.namespace.observer.settle()
        found = explain(self.namespace.volume, name, self.mover.held)
        if found is None:
            raise ControlError(f"{name}: no such file in the volume (see keigo ls)")
        return found
