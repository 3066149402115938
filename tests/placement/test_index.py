"""The index of files: held against a plain list of what happened, and by example."""

from __future__ import annotations

import math
import threading
from array import array
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from keigo.lsm.roles import Role
from keigo.placement.heat import COLDEST, GROWN_UP, HALF_LIFE, LAG, WINDOW, rate_of, score_of
from keigo.placement.index import FileIndex, Known
from keigo.placement.policy import Expectation, Files, FileState, Group
from keigo.placement.view import View

START = 1.75e9
GROUPS = [Group(1, "default", Role.SST, level) for level in (0, 1, 6)] + [Group(2, None, Role.WAL, None)]
MIB = 1 << 20


def expect(group: Group) -> Expectation:
    return Expectation(float(GROUPS.index(group)), 1.0)


@dataclass
class Plain:
    """What was said of a file, and every read of it."""

    tier: int
    group: Group
    size: int
    number: int | None
    pinned: int | None
    created: float
    moved: float
    written: bool
    listed: float | None = None
    """When it was first put without being written."""
    expected: float = 0.0
    exact: float = 0.0
    """When it was last put or read."""
    reads: list[tuple[float, float]] = field(default_factory=list)

    def decayed(self, now: float) -> float:
        """Reads, those HALF_LIFE ago half."""
        return sum(count * 2 ** (-(now - when) / HALF_LIFE) for count, when in self.reads)

    def rate(self, now: float) -> float:
        """By the formula: over the window, or over its age and what is expected."""
        window = HALF_LIFE / math.log(2)
        age = 0.0 if self.listed is None else now - self.listed
        if age >= GROWN_UP:
            return self.decayed(now) / window
        weight = min(10.0, 0.3 / self.expected if self.expected else math.inf) * 2 ** (-age / HALF_LIFE)
        seen, told = (window * (1 - 2 ** (-max(0.0, age - lag) / HALF_LIFE)) for lag in (0, LAG))
        return self.expected * weight / (weight + told) + self.decayed(now) / max(LAG, weight + seen)

    def state(self, file: int, now: float) -> FileState:
        return FileState(
            file,
            self.tier,
            self.size,
            self.group.role,
            self.group.level,
            self.number,
            self.pinned,
            self.group,
            self.created,
            self.moved,
            self.rate(now),
        )


class Machine(RuleBasedStateMachine):
    """Any sequence of changes: after each, every answer is what a walk over all files would give."""

    def __init__(self) -> None:
        super().__init__()
        self.still: set[int] = set()
        self.index = FileIndex(lambda file: file not in self.still)
        self.plain: dict[int, Plain] = {}
        self.now = START
        self.next = 1

    # --- changes ---

    @rule(
        tier=st.integers(0, 2),
        group=st.sampled_from(GROUPS),
        size=st.sampled_from([0, 1, 4096, 64 * MIB, 1 << 40]),
        number=st.none() | st.integers(0, 2**64 - 2),
        pinned=st.none() | st.integers(0, 2),
        written=st.booleans(),
        rate=st.sampled_from([0.0, 0.0, 1e-30, 0.5, 1e6]),
        score=st.sampled_from([0.0, 0.0, 3.0]),
        age=st.sampled_from([0.0, 5.0, 1e4]),
        again=st.none() | st.integers(0, 50),
    )
    def put(
        self,
        tier: int,
        group: Group,
        size: int,
        number: int | None,
        pinned: int | None,
        written: bool,
        rate: float,
        score: float,
        age: float,
        again: int | None,
    ) -> None:
        file = self.next if again is None else self.pick(again)
        if file is None:
            return
        self.next += again is None
        before = self.plain.get(file)
        known = self.index.put(
            file,
            tier,
            group,
            size,
            number=number,
            pinned=pinned,
            created=self.now,
            moved=self.now - 5,
            now=self.now,
            written=written,
            score=score_of(score, self.now),
            expected=rate,
            age=age,
        )
        assert (known and known[:2]) == (None if before is None else (before.group, before.size))
        plain = Plain(tier, group, size, number, pinned, self.now, self.now - 5, written)
        plain.exact = self.now
        if before is not None:
            plain.reads, plain.listed, plain.expected = before.reads, before.listed, before.expected
        if not written and plain.listed is None:
            # Single precision, as the column has.
            plain.listed, plain.expected = self.now - age, array("f", [rate])[0]
            if score > plain.decayed(self.now) / WINDOW:
                plain.reads = [(score * WINDOW, self.now)]
        self.plain[file] = plain

    def pick(self, number: int) -> int | None:
        files = sorted(self.plain)
        return files[number % len(files)] if files else None

    @precondition(lambda self: self.plain)
    @rule(number=st.integers(0, 50))
    def drop(self, number: int) -> None:
        file = self.pick(number)
        assert file is not None
        plain = self.plain.pop(file)
        self.check(self.index.drop(file), plain)

    @precondition(lambda self: self.plain)
    @rule(number=st.integers(0, 50), count=st.sampled_from([0, 1, 1, 7, 100_000]))
    def read(self, number: int, count: int) -> None:
        file = self.pick(number)
        assert file is not None
        plain = self.plain[file]
        known = self.index.read(file, count, self.now)
        if count:
            plain.reads.append((count, self.now))
            plain.exact = self.now
        self.check(known, plain)
        assert self.index.known(file) == known

    def check(self, known: Known | None, plain: Plain) -> None:
        assert known is not None
        assert (known.group, known.size) == (plain.group, plain.size)
        rate = plain.decayed(self.now) / WINDOW
        assert math.isclose(rate_of(known.score, self.now), rate, rel_tol=1e-6, abs_tol=1e-12)

    @precondition(lambda self: self.plain)
    @rule(number=st.integers(0, 50), pinned=st.none() | st.integers(0, 2))
    def pin(self, number: int, pinned: int | None) -> None:
        file = self.pick(number)
        assert file is not None
        self.index.pin(file, pinned)
        self.plain[file].pinned = pinned

    @precondition(lambda self: self.plain)
    @rule(number=st.integers(0, 50))
    def begin_write(self, number: int) -> None:
        file = self.pick(number)
        assert file is not None
        self.index.begin_write(file)
        self.plain[file].written = True

    @rule(number=st.integers(0, 50))
    def hold_still(self, number: int) -> None:
        file = self.pick(number)
        if file is not None:
            self.still ^= {file}

    @rule(seconds=st.sampled_from([0.0, 0.4, 29.0, 31.0, 60.0, 3000.0, 1e6]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.index.look_again(self.now)

    @rule(most=st.integers(0, 3))
    def cool(self, most: int) -> None:
        self.index.cool(self.now, most)

    # --- answers ---

    def seen(self) -> dict[int, Plain]:
        return {file: plain for file, plain in self.plain.items() if not plain.written}

    @invariant()
    def buckets_are_sums(self) -> None:
        view: Files = View(self.index, self.now, expect)
        buckets = view.buckets()
        keys = [(bucket.tier, bucket.group, bucket.heat, bucket.pinned) for bucket in buckets]
        assert len(set(keys)) == len(keys)
        left = self.seen()
        for bucket in buckets:
            members = list(view.members(bucket))
            assert len({state.id for state in members}) == len(members)
            assert not {state.id for state in members} & self.still
            # Those that cannot move are counted all the same.
            held = [file for file in left if file in self.still and self.is_in(file, bucket.heat, bucket.tier)]
            held = [file for file in held if left[file].group == bucket.group and left[file].pinned == bucket.pinned]
            assert bucket.files >= len(members)
            for state in members:
                same(state, left.pop(state.id).state(state.id, self.now))
                assert (state.tier, state.group, state.pinned) == (bucket.tier, bucket.group, bucket.pinned)
                assert self.is_in(state.id, bucket.heat, state.tier)
            if not held:
                assert (bucket.files, bucket.bytes) == (len(members), sum(state.size for state in members))
        assert set(left) <= self.still
        assert sum(bucket.files for bucket in buckets) == len(self.seen())
        assert sum(bucket.bytes for bucket in buckets) == sum(plain.size for plain in self.seen().values())

    def is_in(self, file: int, heat: int | None, tier: int) -> bool:
        """Whether the class is right, to half a class."""
        plain = self.plain[file]
        warmth = plain.rate(self.now) / max(plain.size, 1)
        if plain.tier != tier:
            return False
        if heat is None:
            return warmth < 2 ** (COLDEST + 0.51)
        if heat < COLDEST or warmth > 2 ** (heat + 1.51):
            return False
        # A young file is looked at when its age has doubled; until then it seems hotter than it is.
        old = plain.listed is not None and self.now - plain.listed > 2 * GROWN_UP + 2
        return warmth >= 2 ** (heat - 0.51) or not (old or plain.exact == self.now)

    @invariant()
    def walks_meet_each_file_once(self) -> None:
        view = View(self.index, self.now, expect, {2})
        states = {state.id: state for state in view}
        assert set(states) == set(self.seen()) - self.still - {2}
        for file, plain in self.plain.items():
            alone = self.index.state(file, self.now)
            assert (alone is None) == plain.written
            if alone is not None:
                same(alone, plain.state(file, self.now))
            assert math.isclose(self.index.heat(file, self.now), plain.rate(self.now), rel_tol=1e-6, abs_tol=1e-12)
        assert sorted(self.index.ids()) == sorted(self.plain)
        assert len(self.index) == len(self.plain)


def same(one: FileState, other: FileState) -> None:
    """Equal, but for rounding in the rate."""
    assert math.isclose(one.reads, other.reads, rel_tol=1e-6, abs_tol=1e-12)
    fields = ("id", "tier", "size", "role", "level", "number", "pinned", "group", "created", "moved")
    assert [getattr(one, name) for name in fields] == [getattr(other, name) for name in fields]


TestIndex = Machine.TestCase
TestIndex.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def put(
    index: FileIndex, file: int, tier: int = 0, group: Group = GROUPS[0], size: int = MIB, now: float = START
) -> None:
    index.put(file, tier, group, size, number=file, now=now)


def view(index: FileIndex, now: float = START) -> View:
    return View(index, now, expect)


def test_a_steady_rate_is_its_own_mean() -> None:
    """3 reads per second, told once a second."""
    index = FileIndex()
    put(index, 1)
    for second in range(1200):
        index.read(1, 3, START + second)
    assert index.heat(1, START + 1199.5) == pytest.approx(3, rel=0.01)


def test_what_was_expected_is_soon_forgotten() -> None:
    """Of files whose like are read 5 times a second, one is read 20 times and one never."""
    index = FileIndex()
    for file in (1, 2):
        index.put(file, 0, GROUPS[0], MIB, now=START, expected=5.0)
        assert index.heat(file, START) == pytest.approx(5)
    heats = []
    for second in range(1, 31):
        index.read(1, 20, START + second)
        index.look_again(START + second)
        heats.append((index.heat(1, START + second), index.heat(2, START + second)))
    assert heats[0][1] == pytest.approx(5)  # what is read now is told later
    assert heats[9][0] == pytest.approx(20, rel=0.2)
    assert heats[9][1] < 0.05
    assert heats[29][0] == pytest.approx(20, rel=0.1)
    hot, cold = sorted(view(index, START + 30).buckets(), key=lambda bucket: -(bucket.heat or 0))
    assert [state.id for state in view(index, START + 30).members(hot)] == [1]
    assert (hot.heat or 0) > (cold.heat or 0) + 4


def test_what_was_expected_counts_until_a_file_shows_what_it_is() -> None:
    """Nothing was expected, or little: a few reads tell."""
    for expected in (0.0, 0.001):
        index = FileIndex()
        index.put(1, 0, GROUPS[0], MIB, now=START, expected=expected)
        index.read(1, 50, START + 10)
        assert index.heat(1, START + 10) == pytest.approx(2.8, rel=0.1)


def test_young_files_are_looked_at_until_they_are_old() -> None:
    index = FileIndex()
    index.put(1, 0, GROUPS[0], MIB, now=START, expected=5.0)
    for second in range(2000):
        index.look_again(START + second)
        if second == 1:
            (young,) = view(index, START + second).buckets()
        if second == 200:
            (older,) = view(index, START + second).buckets()
    (old,) = view(index, START + 2000).buckets()
    assert young.heat is not None
    assert older.heat is not None
    assert older.heat < young.heat - 4
    assert old.heat is None
    assert not index._due


def test_heat_halves_by_itself() -> None:
    index = FileIndex()
    index.put(1, 0, GROUPS[0], MIB, now=START, age=1e6)
    index.read(1, 1000, START)
    assert index.heat(1, START + HALF_LIFE) == pytest.approx(index.heat(1, START) / 2)


def test_all_classes_sink_together_and_nothing_is_touched() -> None:
    index = FileIndex()
    for file in range(1, 6):
        index.put(file, 0, GROUPS[0], MIB, now=START, age=1e6)
        index.read(file, 8**file, START)
    first, later = (view(index, START + seconds).buckets() for seconds in (0, 10 * HALF_LIFE))
    assert len(first) == 5
    assert [(bucket.heat or 0) - 10 for bucket in first] == [bucket.heat for bucket in later]


def test_members_come_in_the_order_of_arrival() -> None:
    index = FileIndex()
    for file in (7, 3, 9, 4, 8):
        put(index, file)
    put(index, 3)  # it has not left
    put(index, 9, tier=1)
    put(index, 9, tier=0)  # it has
    index.drop(4)
    put(index, 5)
    (bucket,) = view(index).buckets()
    assert [state.id for state in view(index).members(bucket)] == [7, 3, 8, 9, 5]


def test_buckets_come_in_the_order_of_their_first_file() -> None:
    index = FileIndex()
    put(index, 1, tier=2)
    put(index, 2, tier=0)
    put(index, 3, tier=2)
    assert [bucket.tier for bucket in view(index).buckets()] == [2, 0]


def test_a_bucket_may_change_while_it_is_walked() -> None:
    """Files that leave are not met later, those that come or come back are not met, the others are met once."""
    index = FileIndex()
    count = 5000
    for file in range(1, count + 1):
        put(index, file)
    (bucket,) = view(index).buckets()
    met = []
    for state in view(index).members(bucket):
        met.append(state.id)
        if state.id % 3 == 0:  # it goes, and comes back at the end
            put(index, state.id, tier=1)
            put(index, state.id, tier=0)
        if state.id % 7 == 0:  # the one that was met is gone, and so is the next; others take their rows
            index.drop(state.id)
            index.drop(state.id + 1)
            put(index, count + state.id)
    assert met == [file for file in range(1, count + 1) if file % 7 != 1 or file == 1]


def test_a_walk_goes_on_when_all_that_it_met_has_left() -> None:
    index = FileIndex()
    for file in range(1, 301):
        put(index, file)
    (bucket,) = view(index).buckets()
    met = []
    for state in view(index).members(bucket):
        met.append(state.id)
        put(index, state.id, tier=1)
    assert met == list(range(1, 301))


def test_a_walk_does_not_begin_again_when_only_what_it_met_first_is_left() -> None:
    index = FileIndex()
    for file in range(1, 301):
        put(index, file)
    (bucket,) = view(index).buckets()
    met = []
    for state in view(index).members(bucket):
        met.append(state.id)
        if state.id > 32:
            put(index, state.id, tier=1)
    assert met == list(range(1, 301))


def test_a_file_that_grows_stays_where_it_is() -> None:
    index = FileIndex()
    for file in (1, 2):
        put(index, file, size=100)
    put(index, 1, size=250)
    (bucket,) = view(index).buckets()
    assert (bucket.files, bucket.bytes) == (2, 350)
    assert [state.size for state in view(index).members(bucket)] == [250, 100]


def test_cooling_joins_buckets() -> None:
    """A file that was read once counts as never read in the end, so that buckets do not grow in number for ever."""
    index = FileIndex()
    for file in range(1, 101):
        put(index, file, now=START + 600 * file)
        index.read(file, 1, START + 600 * file)
    now = START + 1e6
    before = view(index, now).buckets()
    assert [(bucket.heat, bucket.files) for bucket in before] == [(None, 100)]
    ids = {state.id for state in view(index, now).members(before[0])}
    assert len(index.snapshot()) == 100
    index.cool(now)
    assert len(index.snapshot()) == 1
    after = view(index, now).buckets()
    assert after == before
    assert {state.id for state in view(index, now).members(after[0])} == ids == set(range(1, 101))


def test_what_is_warm_is_told() -> None:
    index = FileIndex()
    for file in (1, 2, 3):
        put(index, file)
    index.read(2, 5, START)
    assert index.warm(START) == [2]
    known = index.known(2)
    assert known is not None
    assert index.warm(START + 1e6) == []
    other = FileIndex()
    other.put(2, 0, GROUPS[0], MIB, now=START + 30, score=known.score, age=30.0)
    assert other.heat(2, START + 30) == pytest.approx(index.heat(2, START + 30))


def test_numbers_that_no_column_holds() -> None:
    index = FileIndex()
    index.put(1, 0, GROUPS[0], MIB, number=2**64 - 1)
    index.put(2, 0, GROUPS[0], MIB, number=10**20 - 1)
    assert [state.number for state in view(index)] == [None, None]


def test_threads() -> None:
    """Changes, reads and walks at once: at the end all is as if they had come one after the other."""
    index = FileIndex()
    threads = 4
    count = 400
    errors = []

    def change(thread: int) -> None:
        try:
            for number in range(count):
                file = thread * count + number + 1
                put(index, file)
                index.read(file, 1, START)
                put(index, file, tier=number % 3)
                if number % 2:
                    index.drop(file)
        except BaseException as error:
            errors.append(error)
            raise

    def walk() -> None:
        try:
            while any(worker.is_alive() for worker in workers):
                now = view(index)
                for bucket in now.buckets():
                    ids = [state.id for state in now.members(bucket)]
                    assert len(set(ids)) == len(ids)
                list(now)
                index.cool(START + 1e5, 10)
        except BaseException as error:
            errors.append(error)
            raise

    workers = [threading.Thread(target=change, args=(number,)) for number in range(threads)]
    walker = threading.Thread(target=walk)
    for thread in (*workers, walker):
        thread.start()
    for thread in (*workers, walker):
        thread.join()
    assert not errors
    expected = {thread * count + number + 1 for thread in range(threads) for number in range(0, count, 2)}
    assert {state.id for state in view(index)} == expected
    tiers = Counter(state.tier for state in view(index))
    sums = Counter[int]()
    for bucket in view(index).buckets():
        sums[bucket.tier] += bucket.files
    assert sums == tiers
