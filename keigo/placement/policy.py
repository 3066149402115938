"""The contract between a volume and a placement policy, in plain data.

Tiers are known by their index, 0 the fastest, everywhere in this package. Times are seconds, sizes bytes, rates per
second; `now` is seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from keigo.lsm.pressure import CALM, Pressure
from keigo.lsm.roles import Role
from keigo.lsm.threads import Job
from keigo.placement.rates import PLAIN, Rates


class Group(NamedTuple):
    """Files that are alike: what is learned of some is expected of the others."""

    database: int
    """Id of the directory."""
    family: str | None
    """Column family of an SST or blob file."""
    role: Role
    level: int | None
    """LSM level of an SST; None where it is not known."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a new file of a group is expected to be. Real numbers; `life` is above 0."""

    size: float
    """Bytes."""
    life: float
    """Seconds from create to unlink."""
    reads: float = 0.0
    """Foreground reads per second and byte of the file that reach its device."""
    read_size: float = 4096.0
    """Mean bytes of such a read."""
    learned: bool = False
    """Whether files of the group were seen, or this is what is assumed of a group never seen."""


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
    expected: Expectation | None = None
    """What is known of files like it; None: nothing at all."""
    pressure: Pressure = CALM
    """Of its database."""


@dataclass(frozen=True, slots=True)
class TierState:
    """What a policy may know of a tier."""

    name: str
    capacity: int
    used: int
    room: int
    """Bytes that may still be placed here, the reserve taken off; negative when the tier is too full."""
    rates: Rates = PLAIN
    """What the device takes for a request at its present load."""
    price: float = 0.0
    """What the last plan found room here to be worth: seconds of requests saved per byte and second that a file is
    here rather than elsewhere, of the files that just do not fit. 0 where there is room for all."""
    writers: int = 0
    """SST and blob files that are open for writing here, now."""
    inflow: float = 0.0
    """Bytes per second that have lately been created here."""
    growth: int = 0
    """By how many bytes more are in use here than some seconds ago; negative where it is less."""
    swing: int = 0
    """How much less room there was at the least in the last minute: what comes and goes takes so much of it."""


@dataclass(frozen=True, slots=True)
class FileState:
    """What a policy may know of a file that nobody is writing."""

    id: int
    tier: int
    size: int
    role: Role
    level: int | None
    number: int | None
    """File number of the store: lower is older. None where the name has none."""
    pinned: int | None
    """Tier that the user wants it on."""
    group: Group | None = None
    created: float = 0.0
    moved: float = 0.0
    """When it last migrated; 0: never."""
    reads: float = 0.0
    """Foreground reads per second that reached its device, decayed."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Files that nobody is writing and that are alike to a policy: same tier, group, pin and class of heat."""

    tier: int
    group: Group
    heat: int | None
    """Reads per second and byte: at least 2**heat, less than 2**(heat + 1); None: (almost) none."""
    pinned: int | None
    files: int
    bytes: int


class Files(Protocol):
    """The files of a volume, as a policy sees them. A snapshot of each answer, not of all together."""

    def __iter__(self) -> Iterator[FileState]:
        """Every file that nobody is writing, in no order."""
        ...

    def buckets(self) -> Sequence[Bucket]:
        """All buckets, in the order of their first file's arrival. Their number does not grow with that of files."""
        ...

    def members(self, bucket: Bucket) -> Iterator[FileState]:
        """The files of a bucket that can move now, the one that is longest in it first."""
        ...

    def expect(self, group: Group) -> Expectation:
        """What is expected of files of a group."""
        ...

    @property
    def now(self) -> float:
        """When this was asked for."""
        ...

    @property
    def pressure(self) -> Pressure:
        """The worst of the databases, lately."""
        ...


@dataclass(frozen=True, slots=True)
class TierCost:
    """Predicted seconds that a file costs on one tier over its expected life, weighted by who waits for them."""

    write: float
    """Writing it, and what others wait longer meanwhile."""
    read: float
    """Reading it: foreground reads, and the compaction that ends it."""
    room: float
    """The room that it takes from what is worth more there."""

    @property
    def total(self) -> float:
        """All together."""
        return self.write + self.read + self.room


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a new file goes."""

    tier: int
    reason: str
    costs: tuple[TierCost, ...] | None = None
    """By tier, where the policy reckons with costs."""


@dataclass(frozen=True, slots=True)
class Move:
    """A migration that a policy wants."""

    file: int
    source: int
    target: int
    reason: str
    urgent: bool = False
    """Whether room is needed now: it is then done at full speed."""


@dataclass(frozen=True, slots=True)
class Prospect:
    """What keeping a closed file on a tier is predicted to cost, and what a policy makes of it."""

    tier: int
    keeping: float
    """Seconds per second that the file lives."""
    copy: float
    """Seconds that moving it there takes; 0 where it is."""
    verdict: str
    """Why it is here, or would or would not move there."""


class NoRoom(Exception):  # noqa: N818 - what happened, like StopIteration
    """No tier has room for the file."""


class Policy(Protocol):
    """Decides where files are created and which ones move.

    Pure and deterministic: the same arguments give the same answer. Safe to call from several threads at once.
    """

    @property
    def name(self) -> str:
        """What `placement.policy` in devices.yaml calls it."""
        ...

    @property
    def period(self) -> float | None:
        """Seconds after which to plan again although nothing was closed or deleted; None: no need."""
        ...

    def choose(self, context: Context, size: int, tiers: Sequence[TierState]) -> Choice:
        """The tier for a new file that is expected to have `size` bytes (0: not known). It has room for them.

        Raises NoRoom where no tier has. Pins are the caller's business.
        """
        ...

    def plan(self, files: Files, tiers: Sequence[TierState]) -> list[Move]:
        """The migrations that are due, in the order in which they are to be done.

        Done one after the other they never fill a tier beyond its room. While nothing else changes, planning and doing
        so comes to an end; for all but `cost` after one plan. Only files of immutable roles move, and none leaves the
        tier that it is pinned to. A file moves twice only where files on full tiers cannot change places otherwise.
        """
        ...

    def prospects(self, file: FileState, files: Files, tiers: Sequence[TierState]) -> list[Prospect]:
        """A prospect per tier, for people who ask about a file; empty where the policy does not reckon so."""
        ...

    def prices(self, files: Files, tiers: Sequence[TierState]) -> tuple[float, ...]:
        """`TierState.price` of each tier; 0 for all where the policy knows no such thing."""
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
