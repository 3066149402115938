"""Sizes for people."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.units import format_size, parse_rate, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), (7, 7), ("64MiB", 64 << 20), ("1.5 GiB", 3 << 29), ("10GB", 10**10), ("1kib", 1024), ("0", 0)],
)
def test_parse(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-3", "3 apples", "1e3", "0x10", "1.", "64 Mi B", "\u0663", -1])
def test_not_a_size(text: str | int) -> None:
    with pytest.raises(ValueError, match="not a size|negative"):
        parse_size(text)


def test_rate() -> None:
    assert parse_rate("200MiB/s") == parse_rate("200MiB") == 200 << 20


@given(st.integers(0, 1 << 60))
def test_what_is_shown_is_read_back_within_its_rounding(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.06, abs=0.5)
