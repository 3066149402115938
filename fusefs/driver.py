"""What a driver is: the carrier between a namespace and the kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from fusefs.namespace import Namespace

# The kernel may keep names and attributes this long (seconds): all changes come through it, so they do not go stale.
CACHE_TIMEOUT: Final = 3600.0


class DriverError(Exception):
    """The driver cannot mount here; the text is one line that says why."""


class Driver(Protocol):
    """Mounts a namespace and serves it. One object serves one mount."""

    name: str

    def facts(self) -> dict[str, int]:
        """Sizes of the driver's own tables, for `status`."""

    def reads(self) -> dict[int, dict[str, tuple[int, int]]]:
        """Node -> class of thread -> (reads, bytes) that reached the daemon, for nodes that the kernel remembers."""

    def fresh_reads(self) -> dict[int, tuple[int, int]]:
        """Node -> (reads, bytes) of the foreground that reached the daemon since last asked. For one caller; costs by
        the files that were read, not by those that are open.
        """

    def kept(self) -> Mapping[str, int]:
        """Descriptors with which the next daemon can take over the mount; none where it cannot."""

    def mount(self, namespace: Namespace, path: str, source: str, *, allow_other: bool) -> None:
        """Mount at `path`; requests wait until `serve`. Raises DriverError with nothing mounted."""

    def serve(self, ready: Callable[[], None], stop: Callable[[], None]) -> None:
        """Answer requests until the file system is unmounted; call `ready` once the first can be answered.

        `stop` is called, in a thread of its own, on SIGTERM and SIGINT. Must be called in the main thread.
        """
