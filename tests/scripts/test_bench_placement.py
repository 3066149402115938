"""bench-placement's own arithmetic: which runs there are, going on after an interruption, ratios, time to settle."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import bench_placement_phases as phases
import bench_placement_results as results
import msgspec
import pytest
from bench_placement_figure import draw
from bench_placement_plan import (
    BEST,
    COST,
    DEVICES,
    LEVELS,
    ONCE,
    PARTS,
    STEPS,
    WANTED,
    Part,
    Row,
    Sizes,
    Todo,
    level_lists,
    levels_of,
    list_name,
    rows,
    setups,
)
from bench_placement_results import Done, Results, Step, Wanted
from bench_placement_runs import percentile
from bench_placement_watch import TierColumns, Timeline, counts_of
from bench_placement_watch import levels_of as levels_of_rows
from hypothesis import given
from hypothesis import strategies as st

from keigo.config import Level
from workloads.runner.result import Latency

HEAD = {"fast": 1.0}


def done(
    part: Part, setup: str, repetition: int = 0, *, short: bool = False, error: str | None = None, rate: float = 1.0
) -> Done:
    """A run whose steps all had `rate` operations per second."""
    steps = () if error else tuple(Step(name, round(rate * 100), 100.0) for name in STEPS[part])
    return Done(part, setup, repetition, short, "", 10.0, "", steps, error)


def filled(wanted: Wanted) -> Results:
    """Results with all that is wanted."""
    found = Results(results.FORMAT, HEAD)
    while todos := results.missing(found, results.order(found, wanted)):
        todo = todos[0]
        found.add(done(todo.part, todo.setup, todo.repetition, short=todo.short))
    return found


# --- lists of levels ---


def test_the_lists_are_all_that_never_go_back_up() -> None:
    found = list(level_lists())
    assert len(found) == len(set(found)) == 15  # 4 levels on 3 tiers: C(4 + 3 - 1, 3 - 1)
    assert all(above <= below for places in found for above, below in pairwise(places))
    assert (0, 0, 0, 0) in found
    assert (2, 2, 2, 2) in found


@given(st.integers(1, 5), st.integers(1, 4))
def test_every_monotone_list_is_among_them(levels: int, tiers: int) -> None:
    found = set(level_lists(range(levels), tiers))
    # Brute force: all lists, without those that go back up.
    everything = [()]
    for _ in range(levels):
        everything = [(*places, tier) for places in everything for tier in range(tiers)]  # type: ignore[misc]
    assert found == {places for places in everything if list(places) == sorted(places)}


@given(st.sampled_from(list(level_lists())))
def test_a_list_puts_every_level_on_one_tier_and_the_wal_with_level_0(places: tuple[int, ...]) -> None:
    found = levels_of(places)
    flat: list[Level] = [level for levels in found.values() for level in levels]
    assert sorted(map(str, flat)) == ["0", "1", "2", "3", "4", "5", "6", "wal"]
    assert [name for name in DEVICES if name in found] == list(found)
    (top,) = (levels for levels in found.values() if 0 in levels)
    assert "wal" in top
    for level, tier in zip(LEVELS, places, strict=True):
        assert level in found[DEVICES[tier]]


def test_a_list_has_a_name_and_is_a_setup() -> None:
    assert list_name((0, 0, 1, 2)) == "levels-0012"
    assert {list_name(places) for places in level_lists()} <= set(setups())


# --- sizes ---


@given(st.integers(8 << 20, 1 << 30))
def test_sizes_are_to_each_other_as_the_targets_say(fast: int) -> None:
    sizes = Sizes(fast)
    assert sizes.data == pytest.approx(3 * fast)
    assert sizes.data == pytest.approx(1.2 * (fast + sizes.mid), rel=1e-6)
    assert sizes.device > 2 * sizes.data  # old tables and those that replace them, at once
    assert [tier.capacity for tier in sizes.tiers()] == [fast, sizes.mid, None]


def test_rows_speak_of_steps_that_are_run_and_setups_that_are_wanted() -> None:
    for row in rows():
        assert row.setup in WANTED[row.part]
        assert row.base in (None, BEST, *WANTED[row.part])
        assert row.base is None or row.base == BEST or row.base not in ONCE[row.part]
        assert row.base is None or row.step in STEPS[row.part]
        assert (row.least is None) != (row.most is None)


# --- which runs there are ---


def test_setups_take_turns_and_each_repetition_begins_with_another() -> None:
    found = Results(results.FORMAT, HEAD)
    todos = list(results.order(found, Wanted(repeats=3, parts=["fill"], lists=False)))
    by_repetition = [[todo.setup for todo in todos if todo.repetition == number] for number in range(3)]
    assert [names[0] for names in by_repetition] == list(WANTED["fill"])
    assert {tuple(sorted(names)) for names in by_repetition} == {tuple(sorted(WANTED["fill"]))}


def test_what_no_target_speaks_of_runs_once() -> None:
    found = filled(Wanted(repeats=3, parts=["ycsb"], lists=False))
    assert len(found.good("ycsb", "mergerfs")) == 1
    assert len(found.good("ycsb", "db_paths")) == 3


def test_another_setup_may_take_the_place_of_cost() -> None:
    found = filled(Wanted(repeats=1, of="levels", lists=False))
    assert not any(run.setup == COST for run in found.runs)
    assert {run.part for run in found.runs if run.setup == "levels"} == set(PARTS)


def test_only_named_setups_run_also_those_that_no_row_needs() -> None:
    found = filled(Wanted(repeats=2, parts=["ycsb"], setups=["all-slow", "mutant"]))
    assert {(run.setup, run.repetition, run.short) for run in found.runs} == {
        (name, number, False) for name in ("all-slow", "mutant") for number in range(2)
    }


def test_all_lists_are_tried_in_short_then_the_best_run_in_full() -> None:
    found = Results(results.FORMAT, HEAD)
    wanted = Wanted(repeats=2, parts=["shifting"])
    rates = {list_name(places): float(number + 1) for number, places in enumerate(level_lists())}
    assert results.best_lists(found, "shifting") == []
    while todos := results.missing(found, results.order(found, wanted)):
        todo = todos[0]
        found.add(done(todo.part, todo.setup, todo.repetition, short=todo.short, rate=rates.get(todo.setup, 1.0)))
    assert {run.setup for run in found.runs if run.short} == set(rates)
    best = sorted(rates, key=lambda name: -rates[name])[:3]
    assert results.best_lists(found, "shifting") == best
    full = [(run.setup, run.repetition) for run in found.runs if not run.short and run.setup.startswith("levels-")]
    assert sorted(full) == sorted((name, number) for name in best for number in range(2))


def test_the_best_lists_of_each_step_are_kept() -> None:
    found = Results(results.FORMAT, HEAD)
    names = [list_name(places) for places in level_lists()]
    for number, name in enumerate(names):
        rates = {"load": number + 1.0, "a": 100.0 - number, "b": 1.0, "c": 1.0}
        steps = tuple(Step(step, round(1000 * rate), 1000.0) for step, rate in rates.items())
        found.add(Done("ycsb", name, 0, True, "", 1.0, "", steps))
    kept = results.best_lists(found, "ycsb", kept=2)
    assert {*names[-2:], *names[:2]} <= set(kept)


def test_a_list_that_fails_does_not_hold_up_the_others() -> None:
    found = Results(results.FORMAT, HEAD)
    names = [list_name(places) for places in level_lists()]
    for name in names[1:]:
        found.add(done("fill", name, short=True))
    assert results.best_lists(found, "fill") == []
    found.add(done("fill", names[0], short=True, error="no"))
    assert len(results.best_lists(found, "fill")) == 3
    assert names[0] not in results.best_lists(found, "fill")


# --- going on ---


@given(st.data())
def test_an_interrupted_table_ends_with_the_same_runs(data: st.DataObject) -> None:
    wanted = Wanted(repeats=2, parts=data.draw(st.lists(st.sampled_from(PARTS), unique=True, min_size=1)))
    whole = filled(wanted)
    found = Results(results.FORMAT, HEAD)
    for _ in range(data.draw(st.integers(0, len(whole.runs)))):
        todo = results.missing(found, results.order(found, wanted))[0]
        error = data.draw(st.sampled_from([None, "failed"]))
        found.add(done(todo.part, todo.setup, todo.repetition, short=todo.short, error=error))
        found = msgspec.json.decode(msgspec.json.encode(found), type=Results)
    while todos := results.missing(found, results.order(found, wanted)):
        found.add(done(todos[0].part, todos[0].setup, todos[0].repetition, short=todos[0].short))
    assert {run.todo for run in found.runs} == {run.todo for run in whole.runs}
    assert len(found.runs) == len(whole.runs)
    assert all(run.error is None for run in found.runs)


def test_results_are_kept_and_not_mixed_with_others(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    found = filled(Wanted(repeats=1, parts=["fill"], lists=False))
    results.save(found, path)
    assert results.load(path, HEAD) == found
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]
    with pytest.raises(results.ResultsError, match=r"table\.json: is of other runs \(fast\)"):
        results.load(path, {"fast": 2.0})
    path.write_text("{}")
    with pytest.raises(results.ResultsError, match=r"table\.json"):
        results.load(path, HEAD)


def test_the_runs_of_a_setup_can_be_forgotten() -> None:
    found = filled(Wanted(repeats=2, lists=False))
    had = len(found.runs)
    of_cost = sum(run.setup == COST for run in found.runs)
    assert found.forget([COST]) == of_cost > 0
    assert len(found.runs) == had - of_cost
    assert all(todo.setup == COST for todo in results.missing(found, results.order(found, Wanted(2, lists=False))))


def test_a_run_is_expected_to_take_what_its_like_took() -> None:
    found = Results(results.FORMAT, HEAD)
    assert results.expected(found, Todo("fill", "all-slow", 0)) is None
    for setup, took in (("all-slow", 100.0), ("all-fast", 20.0), ("cost", 30.0)):
        found.add(msgspec.structs.replace(done("fill", setup), took=took))
    assert results.expected(found, Todo("fill", "all-slow", 1)) == 100.0
    assert results.expected(found, Todo("fill", "levels", 0)) == 30.0
    assert results.expected(found, Todo("fill", "levels", 0, short=True)) is None
    assert results.expected(found, Todo("ycsb", "all-slow", 0)) is None


# --- figures ---


def _results(*rates: tuple[str, int, float, float]) -> Results:
    """Of fillrandom: setup, repetition, seconds of 1000 operations, seconds until compactions were over."""
    found = Results(results.FORMAT, HEAD)
    for setup, repetition, seconds, settle in rates:
        found.add(Done("fill", setup, repetition, False, "", 1.0, "", (Step("fillrandom", 1000, seconds, settle),)))
    return found


ROW = Row("", "fill", "fillrandom", COST, "all-slow", least=4.0)


def test_a_ratio_is_of_medians_with_debt_and_its_spread_within_repetitions() -> None:
    found = _results(
        *((COST, number, seconds, 1.0) for number, seconds in enumerate((9.0, 4.0, 19.0))),
        *(("all-slow", number, seconds, 10.0) for number, seconds in enumerate((40.0, 40.0, 90.0))),
    )
    it = results.verdict(found, ROW)
    assert it.value == pytest.approx(50 / 10)  # medians of rates: 1000 / 10 and 1000 / 50
    assert it.unsettled == pytest.approx(40 / 9)
    assert [it.low, it.high] == pytest.approx([5.0, 10.0])
    assert (it.runs, it.met) == (3, True)


def test_what_is_missing_is_said() -> None:
    found = _results(("all-slow", 0, 1.0, 0.0))
    it = results.verdict(found, ROW)
    assert (it.met, it.lacks) == (None, "cost: not run")
    found.add(Done("fill", COST, 0, False, "", 1.0, "", (), "no such policy"))
    assert results.verdict(found, ROW).lacks == "cost: no such policy"


@pytest.mark.parametrize(("seconds", "met"), [(25.0, True), (24.0, False)])
def test_a_target_is_met_from_its_value_on(seconds: float, *, met: bool) -> None:
    least = results.verdict(_results((COST, 0, 10.0, 0.0), ("all-slow", 0, seconds, 0.0)), target(least=2.5))
    assert least.met is met
    most = results.verdict(_results((COST, 0, 10.0, 0.0), ("all-slow", 0, seconds, 0.0)), target(most=2.45))
    assert most.met is not met


def target(*, least: float | None = None, most: float | None = None) -> Row:
    return Row("", "fill", "fillrandom", COST, "all-slow", least=least, most=most)


def test_the_best_list_is_the_one_with_the_best_median_of_full_runs() -> None:
    found = Results(results.FORMAT, HEAD)
    row = Row("", "shifting", "shifting", COST, BEST, least=1.0)
    found.add(done("shifting", COST, rate=100.0))
    found.add(done("shifting", "levels-0000", rate=900.0, short=True))
    assert results.verdict(found, row).lacks == "1 of 15 lists tried"
    for number, (one, other) in enumerate([(50.0, 40.0), (50.0, 500.0), (50.0, 40.0)]):
        found.add(done("shifting", "levels-0012", number, rate=one))
        found.add(done("shifting", "levels-0122", number, rate=other))
    it = results.verdict(found, row)
    assert it.base == "levels-0012"
    assert it.value == pytest.approx(2.0)


def test_figures_of_one_setup() -> None:
    found = Results(results.FORMAT, HEAD)
    for number, (first, later) in enumerate([(1.0, 0.1), (1.0, 0.3), (0.9, 0.2)]):
        settled = [phases.Settling(0.0, 1.0, 1.0, share) for share in (first, later)]
        found.add(
            Done("shifting", COST, number, False, "", 1.0, "", (Step("shifting", 1, 1.0, phases=tuple(settled)),))
        )
        facts = {"p99": 1.0 + number / 10}
        found.add(Done("migrating", COST, number, False, "", 1.0, "", (Step("migrating", 1, 1.0, facts=facts),)))
    by_step = {row.step: results.verdict(found, row) for row in rows() if row.base is None}
    # The beginning is no shift: the first phase does not count.
    assert by_step["settling"].value == pytest.approx(0.2)
    assert by_step["settling"].met is True
    assert (by_step["p99"].value, by_step["p99"].low, by_step["p99"].high) == (1.1, 1.0, 1.2)


# --- time to settle ---


def _counts(rates: list[float], interval: float) -> list[int]:
    """Operations in each interval, of a rate in each."""
    return [round(rate * interval) for rate in rates]


def test_a_phase_that_is_slow_at_first() -> None:
    # 200 s at 1000/s; then 90 s at 100/s, more than half of the first half, and 191 s at 1000/s.
    counts = _counts([1000.0] * 200 + [100.0] * 90 + [1000.0] * 191, 1.0)
    first, second = phases.phases_of(counts, 1.0, float(len(counts)), 200_000)
    assert [first.settled, first.seconds, first.steady] == pytest.approx([0, 200, 1000])
    assert [second.began, second.seconds] == pytest.approx([200, 281])
    assert second.steady == pytest.approx(1000)
    assert second.settled == pytest.approx(90 / 281, abs=1.5 / phases.BINS)


def test_only_whole_phases_count_and_each_by_its_own_rate() -> None:
    counts = _counts([1000.0] * 10 + [200.0] * 50 + [1000.0] * 5, 1.0)
    found = phases.phases_of(counts, 1.0, 65.0, 10_000)
    assert [phase.seconds for phase in found] == pytest.approx([10.0, 50.0])
    assert [phase.settled for phase in found] == [0.0, 0.0]


def test_a_phase_that_only_gets_there_by_chance_is_not_there() -> None:
    rates = [1.0, 10.0, 1.0, 1.0, 1.0, 9.5, 10.0, 8.0, 10.0, 10.0]
    assert phases.settled_share(rates, 9.0) == 0.5
    assert phases.settled_share([1.0] * 10, 9.0) == 1.0
    assert phases.settled_share([10.0] * 10, 9.0) == 0.0


def test_the_last_interval_may_be_short() -> None:
    (phase,) = phases.phases_of([1000, 1000, 500], 1.0, 2.5, 2500)
    assert phase.seconds == pytest.approx(2.5)
    assert phase.steady == pytest.approx(1000)
    assert phase.settled == 0.0


@given(
    st.lists(st.integers(0, 5000), min_size=4, max_size=200),
    st.integers(100, 5000),
    st.floats(0.05, 2.0),
)
def test_phases_follow_each_other_and_are_as_long_as_their_operations(
    counts: list[int], phase: int, interval: float
) -> None:
    found = phases.phases_of(counts, interval, interval * len(counts), phase)
    assert len(found) <= sum(counts) // phase
    for before, after in pairwise(found):
        assert after.began >= before.began + before.seconds - 1e-6
    for it in found:
        assert 0.0 <= it.settled <= 1.0
        assert it.began + it.seconds <= interval * len(counts) + 1e-6
    assert math.fsum(it.seconds for it in found) <= interval * len(counts) + 1e-6


# --- what is drawn and counted ---


def test_percentiles_of_several_windows_together() -> None:
    def latency(values: list[int], counts: list[int]) -> Latency:
        return Latency(sum(counts), 0.0, values[0], values[-1], {}, values, counts)

    windows = [latency([10, 20], [50, 49]), latency([15, 99], [100, 1])]
    assert percentile(windows, 50.0) == 15
    assert percentile(windows, 99.0) == 20
    assert percentile(windows, 100.0) == 99


def test_levels_by_tier() -> None:
    rows_of: list[dict[str, object]] = [
        {"role": "sst", "level": 0, "tier": "nvmm", "size": 3},
        {"role": "sst", "level": 0, "tier": "nvmm", "size": 4},
        {"role": "sst", "level": None, "tier": "sata", "size": 5},
        {"role": "wal", "level": None, "tier": "nvmm", "size": 1},
        {"role": "manifest", "level": None, "tier": "sata", "size": 2},
    ]
    assert levels_of_rows(rows_of) == {"nvmm": {"L0": 7, "wal": 1}, "sata": {"L?": 5, "other": 2}}


def test_counts_of_a_block_device(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("  1 2 3 4 5 6 7 8 9 10 11 0 0 0 0 0 0\n")
    assert counts_of(tmp_path / "stat") == (3, 7, 4, 8)


def test_a_picture_is_drawn_with_and_without_a_daemon(tmp_path: Path) -> None:
    columns = TierColumns([1e6, 2e6], [0.0, 1e6], [0.5, 3.0], [0.0, 1.0], [0, 1 << 20], [None, None], [None, None])
    found = Timeline({"nvmm": columns, "sata": columns}, [1.0, 2.0], [None, None], [False] * 2, [False] * 2)
    found.marks = [(0.0, "load"), (1.5, "a")]
    draw(found, "without", tmp_path / "without.png")
    found.moved, found.levels = [0, 1 << 22], [(1.0, {"nvmm": {"L0": 1 << 24}, "sata": {"L1": 1 << 20}})]
    columns.room = [1 << 20, 0]
    draw(found, "with", tmp_path / "with.png")
    draw(Timeline({}), "nothing", tmp_path / "nothing.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["with.png", "without.png"]
