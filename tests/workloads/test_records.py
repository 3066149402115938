"""Keys and values as bytes."""

from __future__ import annotations

import re
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.errors import KeigoError
from workloads.records import RecordError, SeriesKeys, Stamp, UserKeys, Values, fnv64

NUMBERS = st.integers(0, (1 << 63) - 1)


def fnv_by_hand(number: int) -> int:
    """YCSB's hash as one would write it in Java."""
    hashed = 0xCBF29CE484222325
    for shift in range(0, 64, 8):
        hashed = (hashed ^ (number >> shift & 0xFF)) * 1099511628211 % (1 << 64)
    return hashed if hashed < 1 << 63 else (1 << 64) - hashed


@given(st.lists(NUMBERS, max_size=20))
def test_fnv_is_that_of_ycsb(numbers: list[int]) -> None:
    assert fnv64(np.array(numbers, np.int64)).tolist() == [fnv_by_hand(number) for number in numbers]


def test_fnv_of_a_strided_array_leaves_it_alone() -> None:
    numbers = np.arange(100, dtype=np.int64)
    assert fnv64(numbers[::7]).tolist() == [fnv_by_hand(number) for number in range(0, 100, 7)]
    assert numbers.tolist() == list(range(100))


def test_hashed_keys_are_those_of_ycsb_but_for_the_padding() -> None:
    # buildKeyName(0), (1) and (2) of YCSB with insertorder=hashed
    assert UserKeys().keys(np.arange(3, dtype=np.int64)) == [
        b"user%019d" % number for number in (fnv_by_hand(0), fnv_by_hand(1), fnv_by_hand(2))
    ]
    assert fnv_by_hand(0) == 6284781860667377211  # user6284781860667377211, the first key of every YCSB load


@given(st.lists(NUMBERS, min_size=1, max_size=20), st.integers(23, 64))
def test_keys_are_padded_decimals(numbers: list[int], size: int) -> None:
    array = np.array(numbers, np.int64)
    assert UserKeys("ordered", size).keys(array) == [b"user" + b"%0*d" % (size - 4, number) for number in numbers]
    assert UserKeys("hashed", size).keys(array) == [
        b"user" + b"%0*d" % (size - 4, fnv_by_hand(number)) for number in numbers
    ]


@pytest.mark.parametrize("size", range(5, 24))
def test_ordered_keys_may_be_short(size: int) -> None:
    most = 10 ** (size - 4) - 1 if size < 23 else (1 << 63) - 1
    numbers = np.array([0, most // 3, most], np.int64)
    keys = UserKeys("ordered", size).keys(numbers)
    assert [int(key[4:]) for key in keys] == numbers.tolist()
    assert keys == sorted(keys)


def test_hashed_keys_of_many_records_differ_and_are_out_of_order() -> None:
    keys = UserKeys().keys(np.arange(1_000_000, dtype=np.int64))
    assert len(set(keys)) == 1_000_000
    places = np.argsort(np.argsort(np.array(keys[:10_000])))
    assert abs(np.corrcoef(places, np.arange(10_000))[0, 1]) < 0.05


@given(st.integers(1, 10**8), st.lists(st.integers(0, 10**12), max_size=10))
def test_series_keys(series: int, points: list[int]) -> None:
    numbers = np.array([point * series % (1 << 62) + point % series for point in points], np.int64)
    expected = [b"%08d:%012d" % (n % series, n // series) for n in numbers.tolist()]
    fitting = [i for i, n in enumerate(numbers.tolist()) if n // series < 10**12]
    assert SeriesKeys(series).keys(numbers[fitting]) == [expected[i] for i in fitting]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"size": 22}, "key size 22: hashed keys need 23 bytes or more"),
        ({"order": "ordered", "size": 4}, "key size 4: ordered keys need 5 bytes or more"),
        ({"order": "random"}, "key order 'random': must be hashed or ordered"),
    ],
)
def test_mistakes_are_one_line(given: dict[str, Any], text: str) -> None:
    with pytest.raises(RecordError, match=re.escape(text)) as caught:
        UserKeys(**given)
    assert isinstance(caught.value, KeigoError)


def test_a_record_number_that_a_key_has_no_room_for_is_refused() -> None:
    with pytest.raises(RecordError, match="key size 6: record number 100 needs more than 2 digits"):
        UserKeys("ordered", 6).keys(np.array([5, 100], np.int64))


@given(NUMBERS, st.integers(0, (1 << 32) - 1), st.integers(0, 5000))
def test_a_value_says_whose_it_is(key: int, version: int, size: int) -> None:
    values = Values(seed=3)
    value = values.value(key, version, size)
    assert len(value) == size
    assert values.matches(value, key, version)
    assert values.stamp(value) == (Stamp(key, version) if size >= 12 else None)
    if size >= 4:
        assert not values.matches(value, key, version ^ 1)
    if size:
        broken = bytes([value[0] ^ 1]) + value[1:]
        torn = value[:-1] + bytes([value[-1] ^ 1])
        assert not values.matches(broken, key, version)
        assert not values.matches(torn, key, version)
    if size >= 12:
        assert not values.matches(value, key ^ 1, version)


@pytest.mark.parametrize("size", [(1 << 20) + 12, (1 << 20) + 13, 3 << 20])
def test_large_values(size: int) -> None:
    for key in (0, 12345, (1 << 63) - 1):
        assert len(Values().value(key, 9, size)) == size


def test_values_are_the_same_in_every_process() -> None:
    code = "from workloads.records import Values; print(Values(5).value(77, 3, 500).hex())"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert Values(5).value(77, 3, 500).hex() == there
    assert Values(6).value(77, 3, 500).hex() != there


@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0])
def test_values_compress_as_asked(ratio: float) -> None:
    values = Values(1, ratio)
    whole = b"".join(values.value(key, 1, 1000) for key in range(200))
    assert len(zlib.compress(whole)) / len(whole) == pytest.approx(ratio, abs=0.08)


@pytest.mark.parametrize("ratio", [0.0, 1.5])
def test_a_compression_ratio_is_above_0_and_at_most_1(ratio: float) -> None:
    with pytest.raises(RecordError, match=f"compression ratio {ratio}: "):
        Values(1, ratio)
