"""What a volume knows for placement: its policy, what the tiers are like now, and what its files are and were like.

Fed by the volume (what is created, written and unlinked), by the catalog, whose one callback is `changed`, and once a
second by the daemon (`refresh`: loads of the devices, reads of files; `felt`: pressure). Where nobody feeds it, as in
an offline drain, all of it works with what is assumed.

Threads: `refresh` is called by one thread at a time, without `Volume.lock`; `context`, `choose`, `changed` and what
counts writers are called under it; the rest by any. The locks of index and history are leaves. What others read while
`refresh` changes it is replaced as a whole.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final

from keigo import clock
from keigo.devices.load import Load
from keigo.devices.model import DeviceModel
from keigo.lsm.database import Belief
from keigo.lsm.pressure import CALM, Pressure, worst
from keigo.lsm.roles import IMMUTABLE, Role, file_number
from keigo.placement.history import History
from keigo.placement.index import FileIndex, Known
from keigo.placement.models import models_of
from keigo.placement.policy import Choice, Context, Group, NoRoom, Policy, TierState
from keigo.placement.rates import Rates, rates_of
from keigo.placement.view import View
from keigo.tiers.catalog import Catalog, FileRecord
from keigo.tiers.evacuation import Evacuation
from keigo.tiers.flow import Flow
from keigo.tiers.pins import Pins
from keigo.tiers.tier import Tier

_FRESH: Final = 10.0  # seconds for which the pressure of a database that tells nothing more is believed
_PRICED: Final = 3.0  # seconds; half-life of a price
_JOBS: Final = 64  # sets of inputs remembered; more jobs than that are not under way at once
_BATCH: Final = 256  # files whose pins are looked at in one hold of the lock: some ms


def group_of(directory: int, role: Role, family: str | None, level: int | None) -> Group:
    """The group of a file. What is no data of a database is alike wherever it is: nothing there ever moves."""
    if role is Role.SST:
        return Group(directory, family, role, level)
    if role is Role.BLOB:
        return Group(directory, family, role, None)
    return Group(directory if role is Role.WAL else 0, None, role, None)


class Placing:
    """See the module's docstring."""

    def __init__(
        self,
        tiers: Sequence[Tier],
        policy: Policy,
        pins: Pins,
        catalog: Catalog,
        evacuation: Evacuation,
        *,
        lock: threading.RLock,
        path: Callable[[int, bytes], bytes],
        is_written: Callable[[int], bool],
        is_movable: Callable[[int], bool],
    ) -> None:
        """`lock` is `Volume.lock`. `path` gives the path of a name in a directory; `is_written` and `is_movable` say
        whether a file is open for writing, and whether it could migrate now; this is asked without the lock.
        """
        self._tiers = tuple(tiers)
        self._by_name = {tier.name: tier.index for tier in tiers}
        self._pins = pins
        self._catalog = catalog
        self._evacuation = evacuation
        self._lock = lock
        self._path = path
        self._is_written = is_written
        self.policy = policy
        self.index = FileIndex(is_movable)
        self.history = History()
        self.prices: tuple[float, ...] = (0.0,) * len(tiers)
        self._priced = 0.0
        self.loads: tuple[Load, ...] = ()
        """As of the last `refresh`; empty before."""
        self.profiled: tuple[str, ...] = ()
        """Tiers whose devices were measured."""
        self.models: tuple[DeviceModel, ...] = ()
        self.rates: tuple[Rates, ...] = ()
        self.measured({})
        self._writing: dict[int, int] = {}
        """SST and blob files that are open for writing -> tier."""
        self._writers = [0] * len(tiers)
        self._flows = [Flow() for _ in tiers]
        self._pressures: dict[int, tuple[float, Pressure]] = {}
        self._jobs: dict[tuple[int, frozenset[int]], float | None] = {}
        self._expected: dict[int, float] = {}
        """SST and blob files being created -> reads per second and byte that are expected of them."""
        self._pins_seen = 0

    # --- tiers ---

    def measured(self, models: Mapping[str, DeviceModel]) -> None:
        """Set what is known of the devices, by tier."""
        self.profiled = tuple(tier.name for tier in self._tiers if tier.name in models)
        self.models = models_of([models.get(tier.name) for tier in self._tiers])
        self.rates = tuple(rates_of(model) for model in self.models)

    def tier_states(self) -> list[TierState]:
        """What a policy may know of the tiers."""
        now = clock.now()
        rates, prices = self.rates, self.prices
        states = []
        for index, tier in enumerate(self._tiers):
            room, used, flow = tier.room(), tier.used, self._flows[index]
            states.append(
                TierState(
                    tier.name,
                    tier.capacity,
                    used,
                    room,
                    rates[index],
                    prices[index],
                    self._writers[index],
                    flow.inflow(now),
                    flow.growth(used),
                    flow.swing(room),
                )
            )
        return states

    def priced(self, prices: Sequence[float], now: float) -> None:
        """Take in what the policy finds room to be worth now. Loads and pressure are of a moment, and so is that; what
        counts is the mean of the last seconds.
        """
        kept = math.exp2((self._priced - now) / _PRICED) if self._priced < now else 1.0
        self.prices = tuple(kept * old + (1 - kept) * new for old, new in zip(self.prices, prices, strict=True))
        self._priced = now

    def refresh(self, now: float, loads: Sequence[Load], reads: Mapping[int, tuple[int, int]]) -> None:
        """Take in the tiers' loads, and the (reads, bytes) of the foreground by file since the last time."""
        self.loads = tuple(loads)
        self.rates = tuple(
            rates_of(model, load.read_k or 0.0, load.write_k or 0.0, load.write_bandwidth or 0.0)
            for model, load in zip(self.models, loads, strict=True)
        )
        for tier, flow in zip(self._tiers, self._flows, strict=True):
            flow.sample(tier.room(), tier.used, now)
        for directory, (when, _) in list(self._pressures.items()):
            if when < now - _FRESH:
                self._pressures.pop(directory, None)
        for file, (count, size) in reads.items():
            known = self.index.read(file, count, now)
            if known is not None:
                self.history.read(known.group, count, size, now)
        self.index.look_again(now)
        self.index.cool(now)

    # --- databases ---

    def felt(self, directory: int, pressure: Pressure, now: float) -> None:
        """The pressure of a database, as of now."""
        self._pressures[directory] = now, pressure

    @property
    def pressure(self) -> Pressure:
        """The worst of the databases lately."""
        since = clock.now() - _FRESH
        return worst(pressure for when, pressure in list(self._pressures.values()) if when >= since)

    def _pressure_of(self, directory: int, now: float) -> Pressure:
        when, pressure = self._pressures.get(directory, (-math.inf, CALM))
        return pressure if when >= now - _FRESH else CALM

    # --- new files ---

    def context(self, directory: int, name: bytes, role: Role, belief: Belief, tid: int) -> tuple[Context, int]:
        """What a file is created for, and how many bytes it will probably have (0: not known)."""
        now = clock.now()
        group = group_of(directory, role, belief.family, belief.level)
        inherited = None
        if role in IMMUTABLE:
            self.felt(directory, belief.pressure, now)
            inherited = self._reads_of(directory, belief.inputs, now)
        context = Context(
            role,
            belief.job,
            belief.level,
            self._path(directory, name),
            belief.engine,
            belief.family,
            tid,
            self.history.expect(group, now, inherited),
            self._pressure_of(directory, now),
        )
        return context, self.expected_size(group)

    def expected_size(self, group: Group) -> int:
        """Bytes that a file of a group will probably have, by those of its group, else of its role; 0: not known."""
        return int(self.history.size(group) or self.history.size_of_role(group.role) or 0)

    def expected_of(self, record: FileRecord) -> int:
        """Bytes that a file will probably have; 0: not known."""
        if not record.links:
            return 0
        directory, _ = record.links[0]
        return self.expected_size(group_of(directory, record.role, record.family, record.level))

    def _reads_of(self, directory: int, inputs: frozenset[int], now: float) -> float | None:
        """Foreground reads per second and byte of a job's inputs, when it was first asked; None: they are not known."""
        if not inputs:
            return None
        key = directory, inputs
        if key not in self._jobs:
            reads, size = 0.0, 0
            for number in inputs:
                for suffix in (b"sst", b"ldb"):
                    entry = self._catalog.entry(directory, b"%06d.%s" % (number, suffix))
                    known = None if entry is None else self.index.known(entry.id)
                    if entry is not None and known is not None:
                        reads += self.index.heat(entry.id, now)
                        size += known.size
                        break
            if len(self._jobs) >= _JOBS:
                del self._jobs[next(iter(self._jobs))]
            self._jobs[key] = reads / size if size else None
        return self._jobs[key]

    def choose(self, context: Context, size: int) -> Choice:
        """Where a new file goes. Raises NoRoom where no tier has room for a byte."""
        states = self.well(self.tier_states())
        pinned = self._pins.tier_for(context.path)
        if pinned is not None:
            pattern, name = pinned
            index = self._by_name[name]
            if states[index].room > 0:
                return Choice(index, f"pinned by {pattern}")
        try:
            return self.policy.choose(context, size, states)
        except NoRoom:
            if not size:
                raise
        return self.policy.choose(context, 0, states)  # the size is a guess: a full volume has no room for any

    def well(self, states: list[TierState]) -> list[TierState]:
        """The tiers for files that come: one that leaves has no room, nor have degraded ones where another has."""
        if (leaving := self._evacuation.leaving) is not None:
            state = states[leaving.index]
            states[leaving.index] = replace(state, room=min(0, state.room))
        degraded = [tier.health.is_degraded for tier in self._tiers]
        if not any(degraded) or not any(state.room > 0 for state, ill in zip(states, degraded, strict=True) if not ill):
            return states
        return [replace(state, room=0) if ill else state for state, ill in zip(states, degraded, strict=True)]

    # --- files ---

    def created(self, file: int, tier: int, context: Context) -> None:
        """A file was created and is being written, on that tier until `written`."""
        self._count_writer(file, tier, context.role)
        if context.role in IMMUTABLE and context.expected is not None:
            self._expected[file] = context.expected.reads

    def writing(self, file: int, tier: int, role: Role) -> None:
        """A file's first writer has opened it. It is on that tier until `written`."""
        self._count_writer(file, tier, role)
        self.index.begin_write(file)

    def _count_writer(self, file: int, tier: int, role: Role) -> None:
        if role in IMMUTABLE and file not in self._writing:
            self._writing[file] = tier
            self._writers[tier] += 1

    def written(self, file: int, tier: int, more: int) -> None:
        """A file's last writer has closed it, on `tier`; it has grown by `more` bytes."""
        counted = self._writing.pop(file, None)
        if counted is not None:
            self._writers[counted] -= 1
        if more > 0:
            self._flows[tier].came(more, clock.now())

    def follow(self) -> None:
        """Take in all files of the catalog, and from now on each change. The lock is held."""
        now = clock.now()
        self._pins_seen = self._pins.changes
        for file, record in self._catalog.files():
            if not record.special:
                age = max(0.0, now - record.created)
                group, _ = self._put(file, record, now, written=self._is_written(file), score=record.heat, age=age)
                self.history.found(group, record.space, self.index.heat(file, now), now)
        self._catalog.changed = self.changed

    def changed(self, file: int, record: FileRecord | None) -> None:
        """A file's record is about to be stored, or the file has lost its last name. Sets the record's heat."""
        now = clock.now()
        if record is None:
            self._expected.pop(file, None)
            known = self.index.drop(file)
            if known is not None:
                self.history.died(known.group, known.size, now)
            return
        if record.special:
            return
        written = self._is_written(file)
        expected = 0.0 if written else self._expected.pop(file, 0.0)
        group, before = self._put(file, record, now, written=written, expected=expected * record.space)
        record.heat = 0.0 if before is None else before.score
        if before is None or not before.size:
            # Until its first close its size was not known; it has been there since it was created.
            self.history.born(group, record.space, now, 0.0 if before is None else now - record.created)
            return
        if before.group != group:
            self.history.regrouped(before.group, group, before.size, now)
        if before.size != record.space:
            self.history.resized(group, before.size, record.space, now)

    def _put(
        self,
        file: int,
        record: FileRecord,
        now: float,
        *,
        written: bool,
        score: float = 0.0,
        expected: float = 0.0,
        age: float = 0.0,
    ) -> tuple[Group, Known | None]:
        """Tell the index; returns the file's group and what the index had before."""
        directory, name = record.links[0]
        group = group_of(directory, record.role, record.family, record.level)
        before = self.index.put(
            file,
            self._by_name[record.home],
            group,
            record.space,
            number=file_number(name),
            pinned=self._pin_of(record),
            created=record.created,
            moved=record.moved,
            now=now,
            written=written,
            score=score,
            expected=expected,
            age=age,
        )
        return group, before

    def _pin_of(self, record: FileRecord) -> int | None:
        """The tier that a user wants a file on."""
        pinned = self._pins.tier_for(self._path(*record.links[0])) if self._pins.exist else None
        if pinned is not None:
            return self._by_name[pinned[1]]
        return self._by_name[record.home] if record.kept else None

    def paths_changed(self) -> None:
        """A directory has another path: other pins may hold for what is in it."""
        if self._pins.exist:
            self._pins_seen = -1

    def _look_at_pins(self) -> None:
        """Where pins have changed, set those of all files."""
        with self._lock:
            seen = self._pins.changes
            if self._pins_seen == seen:
                return
            self._pins_seen = seen
        files = list(self.index.ids())
        for start in range(0, len(files), _BATCH):
            with self._lock:
                for file in files[start : start + _BATCH]:
                    record = self._catalog.file(file)
                    if record is not None:
                        self.index.pin(file, self._pin_of(record))

    def view(self, now: float, without: Collection[int] = frozenset()) -> View:
        """The files as a policy sees them; `without`: ids of those that are not to move now."""
        self._look_at_pins()
        return View(self.index, now, lambda group: self.history.expect(group, now), without, self.pressure)

    def heat(self, file: int, now: float) -> float:
        """Foreground reads per second of a file, decayed."""
        return self.index.heat(file, now)

    def life(self, file: int) -> float:
        """Seconds that a file is expected to live from now on: as long as files of its group do."""
        known = self.index.known(file)
        return math.inf if known is None else self.history.expect(known.group, clock.now()).life

    def store_heat(self) -> None:
        """Write the heat of all files that have any into their records. The lock is held."""
        now = clock.now()
        for file in self.index.warm(now):
            record = self._catalog.file(file)
            if record is not None:
                self._catalog.put_file(file, record)
