"""The contract between a volume and a placement policy, in plain data.

Tiers are known by their index, 0 the fastest, everywhere in this package.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from keigo.lsm.roles import Role
from keigo.lsm.threads import Job


@dataclass(frozen=True, slots=True)
class Context:
    """What a file is created for."""

    role: Role
    job: Job
    level: int | None
    """LSM level that an SST is for; None where it is not known."""
    path: bytes
    """Path in the volume, without a leading slash."""
    engine: str | None = None
    family: str | None = None
    """Column family of an SST or blob file."""
    thread: int = 0
    """Kernel's id of the thread that creates it; 0 where it is not known."""


@dataclass(frozen=True, slots=True)
class TierState:
    """What a policy may know of a tier."""

    name: str
    capacity: int
    used: int
    room: int
    """Bytes that may still be placed here, the reserve taken off; negative when the tier is too full."""


@dataclass(frozen=True, slots=True)
class FileState:
    """What a policy may know of a file that nobody is writing."""

    id: int
    path: bytes
    tier: int
    size: int
    role: Role
    level: int | None
    number: int | None
    """File number of the store: lower is older. None where the name has none."""
    pinned: int | None
    """Tier that the user wants it on."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a new file goes."""

    tier: int
    reason: str


@dataclass(frozen=True, slots=True)
class Move:
    """A migration that a policy wants."""

    file: int
    source: int
    target: int
    reason: str


class NoRoom(Exception):  # noqa: N818 - what happened, like StopIteration
    """No tier has room for the file."""


class Policy(Protocol):
    """Decides where files are created and which ones move.

    Pure and deterministic: the same arguments give the same answer, whatever the order of `files`. Safe to
    call from several threads at once.
    """

    @property
    def name(self) -> str:
        """What `placement.policy` in devices.yaml calls it."""
        ...

    def choose(self, context: Context, size: int, tiers: Sequence[TierState]) -> Choice:
        """The tier for a new file that is expected to have `size` bytes (0: not known). It has room for them.

        Raises NoRoom where no tier has. Pins are the caller's business.
        """
        ...

    def plan(self, files: Iterable[FileState], tiers: Sequence[TierState]) -> list[Move]:
        """The migrations that are due, in the order in which they are to be done.

        Done one after the other they never fill a tier beyond its room; once all are done, the next plan is
        empty. Only files of immutable roles move, and none leaves the tier that it is pinned to. A file moves
        twice only where files on full tiers cannot change places otherwise.
        """
        ...


def fallback_order(preferred: int, count: int) -> Iterator[int]:
    """All of `count` tiers: the preferred one, the slower ones going down, then the faster ones going up."""
    yield from range(preferred, count)
    yield from range(preferred - 1, -1, -1)


def first_fit(preferred: int, size: int, tiers: Sequence[TierState]) -> int:
    """The first tier in `fallback_order` with room for `size` bytes, and for one. Raises NoRoom."""
    for tier in fallback_order(preferred, len(tiers)):
        if tiers[tier].room >= max(size, 1):
            return tier
    raise NoRoom(f"no tier has room for {size} bytes")
