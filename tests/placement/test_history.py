"""What is learned of groups: held against a plain sum over all files, and by example."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from keigo.lsm.roles import Role
from keigo.placement.heat import HALF_LIFE
from keigo.placement.history import GROWTH, LONGEST, MEMORY, SIZE, YOUNG, History
from keigo.placement.policy import Group

MIB = 1 << 20
START = 1e9
WAL = Group(1, None, Role.WAL, None)


def sst(level: int | None, family: str | None = "default", database: int = 1) -> Group:
    return Group(database, family, Role.SST, level)


@dataclass
class Event:
    """A span of time with so many bytes alive, or a death."""

    group: Group
    byte_seconds: float = 0.0
    death: int = 0
    mean: float = 0.0


GROUPS = [sst(1), sst(3), sst(None)]


class Machine(RuleBasedStateMachine):
    """Any sequence of changes, held against the formulas of the module's docstring, added up from all that happened."""

    def __init__(self) -> None:
        super().__init__()
        self.history = History()
        self.now = START
        self.alive: list[tuple[Group, int]] = []
        self.events: list[Event] = []
        self.reads: list[tuple[Group, int, int, float]] = []
        self.spans: list[tuple[Group, int, float, float]] = []
        """(group, bytes, from, until)."""
        self.sizes: dict[Group, float] = {}

    def saw(self, group: Group, size: int) -> None:
        before = self.sizes.get(group)
        self.sizes[group] = size if before is None else 0.75 * before + 0.25 * size

    @rule(group=st.sampled_from(GROUPS), size=st.integers(1, 64 * MIB), age=st.sampled_from([0.0, 1.5]))
    def born(self, group: Group, size: int, age: float) -> None:
        self.history.born(group, size, self.now, age)
        self.alive.append((group, size))
        self.events.append(Event(group, byte_seconds=size * age))
        self.saw(group, size)

    @precondition(lambda self: self.alive)
    @rule(number=st.integers(0, 100))
    def died(self, number: int) -> None:
        group, size = self.alive.pop(number % len(self.alive))
        self.history.died(group, size, self.now)
        self.events.append(Event(group, death=size, mean=self.sizes[group]))

    @precondition(lambda self: self.alive)
    @rule(number=st.integers(0, 100), to=st.sampled_from(GROUPS))
    def regrouped(self, number: int, to: Group) -> None:
        group, size = self.alive.pop(number % len(self.alive))
        self.history.regrouped(group, to, size, self.now)
        self.alive.append((to, size))
        self.saw(to, size)

    @precondition(lambda self: self.alive)
    @rule(number=st.integers(0, 100), to=st.integers(1, MIB))
    def resized(self, number: int, to: int) -> None:
        group, size = self.alive.pop(number % len(self.alive))
        self.history.resized(group, size, to, self.now)
        self.alive.append((group, to))
        self.saw(group, to)

    @precondition(lambda self: self.alive)
    @rule(number=st.integers(0, 100), count=st.integers(1, 50))
    def read(self, number: int, count: int) -> None:
        group, _ = self.alive[number % len(self.alive)]
        self.history.read(group, count, count * 8192, self.now)
        self.reads.append((group, count, count * 8192, self.now))

    @rule(seconds=st.sampled_from([0.0, 0.5, 10.0, 300.0, 86400.0]))
    def wait(self, seconds: float) -> None:
        for group, size in self.alive:
            self.events.append(Event(group, byte_seconds=size * seconds))
            self.spans.append((group, size, self.now, self.now + seconds))
        self.now += seconds

    @invariant()
    def all_is_as_summed_up(self) -> None:
        for group in GROUPS:
            found = self.history.expect(group, self.now)
            assert 0 < found.life < math.inf
            assert found.learned == (group in self.sizes)
            if group not in self.sizes:
                continue
            assert found.size == pytest.approx(self.sizes[group])
            exposure = deaths = 0.0
            died = 0
            for event in self.events:
                if event.group == group:
                    exposure += event.byte_seconds
                    if event.death:
                        kept = math.exp(-event.death / (MEMORY * event.mean))
                        exposure, deaths, died = exposure * kept, deaths * kept + event.death, died + 1
            size = self.sizes[group]
            least = exposure / (deaths + size / (1 + died) ** 2)  # if an assumed life counted nothing
            most = (exposure + LONGEST * size / (1 + died) ** 2) / (deaths + size / (1 + died) ** 2)
            assert least * (1 - 1e-9) <= found.life + 1e-3
            assert found.life <= most * (1 + 1e-9) + 1e-3
            assert found.reads == pytest.approx(self.read_rate(group), rel=1e-6)

    def read_rate(self, group: Group) -> float:
        """Reads per byte-second; both faded, the second by its integral."""
        tau = HALF_LIFE / math.log(2)
        reads = sum(n * math.exp(-(self.now - when) / tau) for other, n, _, when in self.reads if other == group)
        watched = sum(
            size * tau * (math.exp(-(self.now - end) / tau) - math.exp(-(self.now - begin) / tau))
            for other, size, begin, end in self.spans
            if other == group
        )
        return reads / watched if watched > 0 else 0.0


TestHistory = Machine.TestCase
TestHistory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def steady(history: History, group: Group, life: float, deaths: int, now: float, alive: int = 20) -> float:
    """Play a group in balance, where a file dies and another comes every life / alive seconds; returns the time."""
    for _ in range(deaths):
        now += life / alive
        history.died(group, MIB, now)
        history.born(group, MIB, now)
    return now


def grown(life: float, deaths: int) -> tuple[History, float]:
    """A history of one group in balance."""
    history = History()
    for _ in range(20):
        history.born(sst(2), MIB, START)
    return history, steady(history, sst(2), life, deaths, START)


@pytest.mark.parametrize("life", [0.5, 60.0, 86400.0])
def test_the_life_of_a_group_in_balance(life: float) -> None:
    history, now = grown(life, 300)
    assert history.expect(sst(2), now).life == pytest.approx(life, rel=0.05)


def test_lives_may_differ() -> None:
    """Half the bytes live 10 s, the other half 190 s: a byte lives 100 s in the mean."""
    history = History()
    events: list[tuple[float, Callable[[], None]]] = []
    for number in range(4000):
        at = START + number
        life = 10 if number % 2 else 190
        events.append((at, lambda at=at: history.born(sst(2), MIB, at)))  # type: ignore[misc]
        events.append((at + life, lambda at=at + life: history.died(sst(2), MIB, at)))  # type: ignore[misc]
    for at, happen in sorted(events, key=lambda event: event[0]):
        if at < START + 4000:
            happen()
    assert history.expect(sst(2), START + 4000).life == pytest.approx(100, rel=0.2)


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_a_change_is_followed_within_some_tens_of_deaths(factor: float) -> None:
    history, now = grown(100, 300)
    now = steady(history, sst(2), 100 * factor, 3 * MEMORY, now)
    assert history.expect(sst(2), now).life == pytest.approx(100 * factor, rel=0.6)
    now = steady(history, sst(2), 100 * factor, 5 * MEMORY, now)
    assert history.expect(sst(2), now).life == pytest.approx(100 * factor, rel=0.1)


def test_what_lives_on_makes_life_longer() -> None:
    """When nothing dies any more, what is alive says how long files live at least."""
    history, now = grown(100, 300)
    lives = [history.expect(sst(2), now + seconds).life for seconds in (0, 100, 1000, 10_000, 100_000)]
    assert lives == sorted(set(lives))
    assert lives[-1] > 20_000


def test_a_byte_counts_not_a_file() -> None:
    """Small files that come and go say little of where the bytes stay."""
    history, now = grown(1000, 300)
    for _ in range(50):
        history.born(sst(2), MIB // 1000, now)
        now += 0.1
        history.died(sst(2), MIB // 1000, now)
    assert history.expect(sst(2), now).life == pytest.approx(1000, rel=0.1)


def test_moving_to_another_level_is_no_death() -> None:
    history, now = grown(100, 300)
    before = history.expect(sst(2), now).life
    for _ in range(15):
        history.regrouped(sst(2), sst(3), MIB, now)
    assert history.expect(sst(2), now).life == before
    assert history.expect(sst(3), now).learned
    after = history.expect(sst(3), now).life
    assert history.expect(sst(3), now + 1000).life > after


def test_time_while_it_was_written_counts() -> None:
    history = History()
    for number in range(100):
        now = START + 10 * number
        history.born(WAL, MIB, now, age=10.0)
        history.died(WAL, MIB, now)
    assert history.expect(WAL, now).life == pytest.approx(10, rel=0.1)


def test_a_clock_that_goes_back_changes_nothing() -> None:
    history, now = grown(100, 300)
    before = history.expect(sst(2), now)
    assert history.expect(sst(2), now - 1000) == before
    history.born(sst(2), MIB, now - 1000)
    assert history.expect(sst(2), now).life == pytest.approx(before.life)


# --- what is assumed ---


def test_of_nothing_the_order_of_levels_is_known() -> None:
    history = History()
    lives = [history.expect(sst(level), START).life for level in range(7)]
    assert lives[0] == YOUNG
    assert lives[:4] == [YOUNG * GROWTH**level for level in range(4)]
    assert lives == sorted(lives)
    assert lives[-1] == LONGEST
    found = history.expect(sst(1), START)
    assert (found.size, found.reads, found.learned) == (SIZE, 0.0, False)


def test_a_level_never_seen_is_like_the_nearest_one() -> None:
    history, now = grown(100, 3000)
    learned = history.expect(sst(2), now)
    for level, factor in ((1, 1 / GROWTH), (3, GROWTH), (4, GROWTH**2)):
        found = history.expect(sst(level), now)
        assert found.life == pytest.approx(learned.life * factor)
        assert (found.size, found.learned) == (learned.size, False)
    assert history.expect(sst(6), now).life == pytest.approx(min(LONGEST, learned.life * GROWTH**4))
    assert history.expect(sst(1, family="other"), now).life == YOUNG * GROWTH
    assert history.expect(sst(1, database=2), now).life == YOUNG * GROWTH


def test_of_two_levels_the_nearer_one_counts() -> None:
    history = History()
    for level, life in ((0, 5.0), (5, 7000.0)):
        for _ in range(20):
            history.born(sst(level), MIB * (level + 1), START)
        steady(history, sst(level), life, 1, START)
    assert history.expect(sst(1), START + 10).size == pytest.approx(MIB, rel=0.1)
    assert history.expect(sst(4), START + 10).size > 4 * MIB


def test_a_log_and_level_0_are_like_each_other() -> None:
    history = History()
    assert history.expect(WAL, START).life == YOUNG
    for _ in range(20):
        history.born(WAL, 3 * MIB, START)
    now = START
    for _ in range(3000):
        now += 0.5
        history.died(WAL, 3 * MIB, now)
        history.born(WAL, 3 * MIB, now)
    found = history.expect(sst(0), now)
    assert found.life == pytest.approx(history.expect(WAL, now).life)
    assert found.size == 3 * MIB


def test_ten_deaths_overrule_what_was_assumed() -> None:
    """Level 3 is assumed to live 60 000 s; here it lives 600 s."""
    history = History()
    for _ in range(20):
        history.born(sst(3), MIB, START)
    now = steady(history, sst(3), 600, 10, START)
    assert 300 < history.expect(sst(3), now).life < 1200


def test_other_files_are_assumed_to_stay_and_to_be_small() -> None:
    found = History().expect(Group(0, None, Role.MANIFEST, None), START)
    assert found.life == LONGEST
    assert found.size < MIB


# --- reads ---


def test_reads_are_per_second_and_byte() -> None:
    history = History()
    for _ in range(10):
        history.born(sst(2), MIB, START)
    for second in range(600):
        history.read(sst(2), 50, 50 * 16384, START + second)
    found = history.expect(sst(2), START + 600)
    assert found.reads == pytest.approx(50 / (10 * MIB), rel=0.02)
    assert found.read_size == 16384
    assert history.expect(sst(2), START + 1200).reads < found.reads / 100


def test_what_a_file_is_made_from_says_more_than_its_like() -> None:
    history, now = grown(100, 300)
    history.read(sst(2), 1000, 1000 * 4096, now)
    assert history.expect(sst(2), now + 1, 0.0).reads == 0.0
    assert history.expect(sst(2), now + 1, 2e-6).reads == 2e-6
    assert history.expect(sst(5), now + 1, 2e-6).reads == 2e-6
    assert history.expect(sst(5), now + 1).reads == history.expect(sst(2), now + 1).reads > 0


def test_sizes_of_a_group_and_of_its_role() -> None:
    history = History()
    assert history.size(sst(1)) is None
    assert history.size_of_role(Role.SST) is None
    history.born(sst(1), 100, START)
    history.born(sst(1), 200, START)
    assert history.size(sst(1)) == history.size_of_role(Role.SST) == 125
    assert history.size(sst(2)) is None


def test_databases_that_are_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keigo.placement.history._MOST", 10)
    history = History()
    history.born(sst(1, database=1000), MIB, START)
    for database in range(50):
        history.born(sst(1, database=database), MIB, START)
        history.died(sst(1, database=database), MIB, START + 1)
    assert history.expect(sst(1, database=1000), START + 1).learned
    assert not history.expect(sst(1, database=0), START + 1).learned


def test_threads() -> None:
    history = History()

    def play(thread: int) -> None:
        for number in range(2000):
            history.born(sst(number % 3), MIB, START + number)
            history.read(sst(number % 3), 1, 4096, START + number)
            history.expect(sst(thread % 7), START + number)
            history.died(sst(number % 3), MIB, START + number + 1)

    threads = [threading.Thread(target=play, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    before = history.expect(sst(1), START + 3000).life
    assert history.expect(sst(1), START + 10_000).life == before  # nothing is alive
