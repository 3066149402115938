"""Plots in a terminal: exact widths, points where the axes say, lines through their points."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from keigo.observe.profile_axes import Axis, count_label, doubling_axis, time_label, value_axis
from keigo.observe.terminal_plot import Series, plot

positive = st.floats(min_value=1e-9, max_value=1e12)


def drawn(series: list[Series], x: Axis, y: Axis, width: int, height: int, *, ascii_only: bool = False) -> list[str]:
    return [line.plain for line in plot("title", series, x, y, width=width, height=height, ascii_only=ascii_only)]


def test_a_plot_as_it_looks() -> None:
    x, y = doubling_axis(1, 16, str), value_axis([100.0, 1000.0], count_label)
    series = [Series([(1, 100.0), (4, 400.0), (16, 1000.0)], lambda k: min(100 * k, 1000), 0)]
    assert drawn(series, x, y, 26, 10) == [
        "     title                ",
        " 1k ┤              ⢀⠔⠉⠉⠉● ",
        "    │            ⡠⠊⠁      ",
        "500 ┤         ⢀●⠊         ",
        "    │       ⡠⠔⠁           ",
        "200 ┤    ⢀⡠⠊              ",
        "    │  ⢀⠔⠁                ",
        "100 ┤●⠊⠁                  ",
        "    └┬────┬────┬───┬────┬ ",
        "     1    2    4   8    16",
    ]


@given(
    st.lists(st.tuples(st.integers(1, 64), positive), min_size=1, max_size=12),
    st.integers(30, 140),
    st.integers(8, 30),
    st.booleans(),
)
def test_every_line_is_as_wide_as_asked_and_every_point_is_drawn(
    points: list[tuple[int, float]], width: int, height: int, ascii_only: bool
) -> None:
    x = doubling_axis(1, max(k for k, _ in points), str)
    y = value_axis([value for _, value in points], count_label)
    lines = drawn([Series(points, None, 0)], x, y, width, height, ascii_only=ascii_only)
    assert len(lines) == height
    assert {len(line) for line in lines} == {width}
    mark = "o" if ascii_only else "●"
    marks = sum(line.count(mark) for line in lines)
    assert 1 <= marks <= len(points)
    assert not ascii_only or "".join(lines).isascii()


def test_points_apart_are_drawn_apart() -> None:
    x, y = doubling_axis(1, 64, str), value_axis([1.0, 1e4], count_label)
    points = [(2**n, 10.0 ** (n / 2)) for n in range(7)]
    lines = drawn([Series(points, None, 0), Series([(64, 1.0)], None, 1)], x, y, 60, 20)
    rows = {column: row for row, line in enumerate(lines) for column, sign in enumerate(line) if sign == "●"}
    assert len(rows) == 7
    assert [rows[column] for column in sorted(rows)] == sorted(rows.values(), reverse=True)
    below = lines[-1].split()
    assert below == ["1", "2", "4", "8", "16", "32", "64"]
    ticks = [column for column, sign in enumerate(lines[-2]) if sign == "┬"]
    assert ticks == sorted(rows)
    assert sum(line.count("▲") for line in lines) == 1


def test_a_line_joins_its_points_without_gaps() -> None:
    x, y = doubling_axis(1, 64, str), value_axis([1.0, 1e6], count_label)
    points = [(1, 1.0), (64, 64.0**3)]
    lines = drawn([Series(points, lambda k: k**3, 0)], x, y, 60, 20)
    inside = [line[line.index("┤" if "┤" in line else "│") + 1 :] for line in lines[1:-2]]
    columns = [any(line[column] != " " for line in inside) for column in range(len(inside[0]) - 1)]
    assert all(columns)
    # Steeper than one row a column, so rows must not be skipped either.
    steep = drawn([Series([(1, 1.0), (64, 1e6)], lambda k: 1.0 if k < 8 else 1e6, 0)], x, y, 60, 20)
    assert all(any("⠀" < sign <= "⣿" or sign == "●" for sign in line) for line in steep[1:-2])


def test_a_line_beyond_the_axes_is_left_out() -> None:
    x, y = doubling_axis(1, 8, str), value_axis([1.0, 10.0], count_label)
    lines = drawn([Series([(1, 1.0), (8, 10.0)], lambda _: 1e9, 0)], x, y, 40, 12)
    assert not any("⠀" < sign <= "⣿" for line in lines for sign in line)


@given(st.lists(positive, min_size=1, max_size=20))
def test_a_value_axis_holds_its_values_and_ends_on_round_ones(values: list[float]) -> None:
    axis = value_axis(values, time_label)
    assert axis.low <= min(values) <= max(values) <= axis.high
    assert axis.low < axis.high
    assert all(0 <= axis.share(value) <= 1 for value in values)
    assert math.isclose(axis.at(axis.share(values[0])), values[0], rel_tol=1e-9)
    for end in (axis.low, axis.high):
        assert round(end / 10 ** math.floor(math.log10(end) + 1e-9), 6) in {1, 2, 5}
    assert min(values) < axis.low * 5.1  # no more than a step to spare, or two around a single value
    assert max(values) > axis.high / 5.1
    assert all(axis.low <= tick <= axis.high for tick, _ in axis.ticks)
    assert len({label for _, label in axis.ticks}) == len(axis.ticks) >= 1


def test_labels() -> None:
    assert [time_label(seconds) for seconds in (5e-8, 2e-6, 1e-4, 1e-3, 0.5, 2.0)] == [
        "50ns",
        "2us",
        "100us",
        "1ms",
        "500ms",
        "2s",
    ]
    assert [count_label(count) for count in (5, 200, 1000, 5e4, 1e6)] == ["5", "200", "1k", "50k", "1M"]
