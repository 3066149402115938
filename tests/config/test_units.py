"""Sizes for people."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.units import format_size, parse_rate, parse_seconds, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), (7, 7), ("64MiB", 64 << 20), ("1.5 GiB", 3 << 29), ("10GB", 10**10), ("1kib", 1024), ("0", 0)],
)
def test_parse(text: str | int, size: int) -> None:
    assert parse_size(text) == size


def test_fractions_are_exact() -> None:
    assert parse_size("0.5") == 0
    assert parse_size("4.35kB") == 4350
    assert parse_size("9007199254740993.0") == 9007199254740993


@pytest.mark.parametrize(
    "text", ["", "MiB", "-3", "3 apples", "1e3", "0x10", "1.", "64 Mi B", "\u0663", "9" * 5000, -1]
)
def test_not_a_size(text: str | int) -> None:
    with pytest.raises(ValueError, match="not a size|negative"):
        parse_size(text)


@pytest.mark.parametrize("text", ["8192PiB", "9" * 30, "9" * 39 + ".5", 1 << 63])
def test_no_file_system_holds_so_much(text: str | int) -> None:
    with pytest.raises(ValueError, match="is more than a file system can hold"):
        parse_size(text)


def test_rate() -> None:
    assert parse_rate("200MiB/s") == parse_rate("200MiB") == 200 << 20


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60), ("60", 60), (1.5, 1.5), ("1.5 min", 90), ("2H", 7200), ("250ms", 0.25), (0, 0)]
)
def test_time(text: str | float, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-3s", "3 weeks", "1e3", "nan", -1, float("nan"), float("inf"), 10**400])
def test_not_a_time(text: str | float) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1048575, "1.0 MiB"), (3 << 29, "1.5 GiB")]
)
def test_format(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 1 << 60))
def test_what_is_shown_is_read_back_within_its_rounding(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.06, abs=0.5)
