"""What a shadow says of itself, whatever has happened to its files: it is as it was, or it is of no use."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from keigo.cache.shadow import (
    ALIGNMENT,
    MAGIC,
    Home,
    Shadow,
    ShadowError,
    chunk_space,
    chunks_of,
    map_space,
    parse_head,
)
from keigo.cache.store import Store, remove_store
from keigo.config import TierConfig
from keigo.tiers.fds import Fd, open_dir
from keigo.tiers.tier import Tier

SHIFT = 14
CHUNK = 1 << SHIFT
SIZE = 5 * CHUNK + 4321
SUMS = ALIGNMENT  # where they begin in a map
PATH = b"db/000123.sst"
HOME = Home("slow", 4711, SIZE, 10**18 + 1, 10**18 + 2)
DATA = bytes(range(256)) * (SIZE // 256 + 1)


def content(index: int, shadow: Shadow, data: bytes = DATA) -> bytes:
    return data[index << shadow.shift :][: shadow.length(index)]


def put(shadow: Shadow, index: int, data: bytes = DATA) -> None:
    """What the filler does to a chunk."""
    part = content(index, shadow, data)
    os.pwrite(shadow.data.fd, part, index << shadow.shift)
    shadow.seal(index, memoryview(part))


@pytest.fixture
def directory(tmp_path: Path) -> Fd:
    (tmp_path / "cache").mkdir()
    return open_dir(os.fsencode(tmp_path / "cache"), -1)


@pytest.fixture
def shadow(directory: Fd) -> Shadow:
    """With chunks 0, 2 and 5, which is the last."""
    made = Shadow.create(directory, b"7", PATH, HOME, SHIFT)
    for index in (0, 2, 5):
        put(made, index)
    made.write_heat(bytes(range(2 * made.count)))
    made.sync()
    return made


def check_is_whole(found: Shadow) -> None:
    assert (found.head.path, found.head.home, found.count) == (PATH, HOME, 6)
    assert [index for index, value in enumerate(found.sums()) if value] == [0, 2, 5]
    assert [index for index in range(found.count) if found.check(index)] == [0, 2, 5]
    assert found.heat() == bytes(range(2 * found.count))


def test_a_shadow_comes_back_as_it_was(directory: Fd, shadow: Shadow) -> None:
    check_is_whole(shadow)
    assert not shadow.dirty
    check_is_whole(Shadow.load(directory, b"7", SHIFT))


@pytest.mark.parametrize("size", [1, ALIGNMENT, CHUNK - 1, CHUNK, CHUNK + 1, 777 * CHUNK])
def test_what_it_takes_is_what_is_reckoned(directory: Fd, size: int) -> None:
    home = msgspec.structs.replace(HOME, size=size)
    made = Shadow.create(directory, b"1", PATH, home, SHIFT)
    data = DATA * (size // SIZE + 1)
    there = {0, made.count - 1, made.count // 2}
    for index in there:
        put(made, index, data)
    made.write_heat(bytes(2 * made.count))
    made.sync()
    most = map_space(size, SHIFT) + sum(chunk_space(size, SHIFT, index) for index in there)
    assert made.count == chunks_of(size, SHIFT)
    assert 0 < made.space() <= most
    for index in there:
        made.punch(index)
    assert made.space() <= map_space(size, SHIFT)
    assert not any(made.sums())
    made.delete()
    assert os.listdir(directory.fd) == []


def test_a_chunk_that_was_punched_is_none(directory: Fd, shadow: Shadow) -> None:
    shadow.punch(2)
    found = Shadow.load(directory, b"7", SHIFT)
    assert [index for index in range(6) if found.check(index)] == [0, 5]
    assert os.pread(found.data.fd, CHUNK, 2 * CHUNK) == bytes(CHUNK)


def test_each_chunk_has_its_place(shadow: Shadow) -> None:
    """A chunk's bytes and checksum are no other chunk's, be its bytes the same."""
    same = Shadow.create(shadow._directory, b"8", PATH, HOME, SHIFT)
    put(same, 0, bytes(SIZE))
    sums = bytearray(os.pread(same._map.fd, 8 * same.count, SUMS))
    os.pwrite(same._map.fd, sums[:8] * same.count, SUMS)
    assert [index for index in range(same.count) if same.check(index)] == [0]


def test_what_another_shadow_left_behind_is_no_chunk(directory: Fd, shadow: Shadow) -> None:
    """Same file, same bytes in another shadow: blocks of it that turn up in this one, sums and all."""
    other = Shadow.create(directory, b"8", PATH, HOME, SHIFT)
    old = bytes(reversed(DATA))
    for index in range(other.count):
        put(other, index, old)
    everything = os.pread(other.data.fd, other.size, 0)
    os.pwrite(shadow.data.fd, everything, 0)
    assert not any(shadow.check(index) for index in range(shadow.count))
    os.pwrite(shadow._map.fd, os.pread(other._map.fd, 8 * other.count, SUMS), SUMS)
    assert all(other.check(index) for index in range(other.count))
    assert not any(shadow.check(index) for index in range(shadow.count))


def test_a_path_that_does_not_fit(directory: Fd) -> None:
    with pytest.raises(OSError, match="too long"):
        Shadow.create(directory, b"1", b"x" * 4090, HOME, SHIFT)
    assert os.listdir(directory.fd) == []


# --- damage ---


def flipped(raw: bytes, where: int, bit: int) -> bytes:
    where %= len(raw) or 1
    return raw[:where] + bytes(byte ^ 1 << bit for byte in raw[where : where + 1]) + raw[where + 1 :]


def overwritten(raw: bytes, where: int, with_: bytes) -> bytes:
    where %= len(raw) or 1
    return raw[:where] + with_ + raw[where + len(with_) :]


Damage = Callable[[bytes], bytes]
places = st.integers(0, 200) | st.integers(SUMS, SUMS + 60) | st.integers(0, 1 << 20)
damages = st.one_of(
    st.builds(lambda where, bit: lambda raw: flipped(raw, where, bit), places, st.integers(0, 7)),
    st.builds(lambda where, with_: lambda raw: overwritten(raw, where, with_), places, st.binary(min_size=1)),
    st.builds(lambda where: lambda raw: raw[: where % (len(raw) + 1)], places),
    st.builds(lambda more: lambda raw: raw + more, st.binary(min_size=1)),
    st.builds(lambda new: lambda _raw: new, st.binary(max_size=100)),
    st.builds(lambda where: lambda raw: overwritten(raw, where, bytes(ALIGNMENT)), places),
)


@given(st.sampled_from([b"7.map", b"7.map", b"7.data"]), st.lists(damages, min_size=1, max_size=3))
@settings(max_examples=10 * settings().max_examples)
def test_damage_is_an_error_or_costs_chunks(name: bytes, several: list[Damage]) -> None:
    base = tempfile.mkdtemp(prefix="keigo-test-", dir="/dev/shm")
    try:
        directory = open_dir(os.fsencode(base), -1)
        made = Shadow.create(directory, b"7", PATH, HOME, SHIFT)
        for index in (0, 2, 5):
            put(made, index)
        path = Path(base) / os.fsdecode(name)
        raw = path.read_bytes()
        for damage in several:
            raw = damage(raw)
        path.write_bytes(raw)
        try:
            found = Shadow.load(directory, b"7", SHIFT)
            sums, heat = found.sums(), found.heat()
        except ShadowError:
            return
        assert found.head == made.head
        assert (len(sums), len(heat)) == (found.count, 2 * found.count)
        for index in range(found.count):
            if found.check(index):
                assert os.pread(found.data.fd, found.length(index), index << SHIFT) == content(index, made)
    finally:
        shutil.rmtree(base)


things = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=6,
)
numbers = st.integers(-(1 << 63), (1 << 64) - 1) | st.integers(-1, 40)
heads = st.tuples(
    st.binary() | things,
    st.tuples(st.text(), numbers, numbers, numbers, numbers) | things,
    numbers | things,
    numbers | things,
)


def head_of(body: bytes, length: int | None = None) -> bytes:
    """A block of a map that says `body`, with a right checksum."""
    found = MAGIC + (len(body) if length is None else length).to_bytes(4, "little") + body
    return (found + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")).ljust(ALIGNMENT, b"\0")[:ALIGNMENT]


@given(
    heads.map(lambda value: head_of(msgspec.msgpack.encode(value)))
    | st.binary(max_size=300).map(head_of)
    | st.tuples(st.binary(max_size=50), st.integers(0, (1 << 32) - 1)).map(lambda pair: head_of(*pair))
    | st.binary(max_size=100).map(lambda raw: (MAGIC + raw).ljust(ALIGNMENT, b"\0"))
    | st.binary()
)
@settings(max_examples=2 * settings().max_examples)
def test_no_head_is_more_than_an_error(raw: bytes) -> None:
    try:
        head = parse_head(raw)
    except ShadowError:
        return
    assert isinstance(head.path, bytes)
    assert isinstance(head.home.tier, str)
    assert 0 < head.home.size < 1 << 62
    assert 12 <= head.shift <= 30
    assert map_space(head.home.size, head.shift) > 0


@pytest.mark.parametrize(
    "body",
    [
        b"\x94\xc4\x01x\x95\xa2\xff\xfe\x01\x02\x03\x04\x0e\x05",
        msgspec.msgpack.encode((b"x", ("slow", (1 << 64) - 1, (1 << 64) - 1, 0, 0), 14, 1)),
        b"\x95\xc4\x01x\x95\xa1x\x01\x02\x03\x04\x0e\x05" + b"\x91" * 4000 + b"\xc0",
    ],
    ids=["text that is none", "numbers beyond all", "nested beyond all"],
)
def test_heads_that_msgpack_can_say_and_nobody_else(body: bytes) -> None:
    with pytest.raises(ShadowError, match="none|cannot be"):
        parse_head(head_of(body))


# --- the store ---


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[Tier]:
    root = tmp_path / "tier"
    root.mkdir()
    found = Tier(0, TierConfig("fast", root, False, None), open_dir(os.fsencode(root), -1), str(root))
    found.lock()
    yield found
    found.close()


def filled(store: Store, paths: list[bytes]) -> list[Shadow]:
    made = [store.create(path, HOME) for path in paths]
    for each in made:
        put(each, 1)
    return made


def load(tier: Tier, known: dict[bytes, Home], shift: int = SHIFT) -> tuple[bool, list[Shadow]]:
    """(whether the last end was clean, the shadows)."""
    store = Store(tier, shift)
    return store.was_clean, list(store.load(known.get))


def cache_of(tier: Tier) -> Path:
    return Path(tier.label) / ".keigo" / "cache"


def test_what_is_closed_is_clean_once(tier: Tier) -> None:
    store = Store(tier, SHIFT)
    assert not store.was_clean
    shadows = filled(store, [b"a", b"b"])
    store.close(shadows)
    assert not any(shadow.dirty for shadow in shadows)
    known = dict.fromkeys([b"a", b"b"], HOME)
    clean, found = load(tier, known)
    assert (clean, sorted(each.head.path for each in found)) == (True, [b"a", b"b"])
    assert all(each.check(1) for each in found)
    clean, found = load(tier, known)
    assert (clean, len(found)) == (False, 2)


def test_a_mount_that_dies_at_once_was_not_clean(tier: Tier) -> None:
    store = Store(tier, SHIFT)
    store.close(filled(store, [b"a"]))
    assert Store(tier, SHIFT).was_clean
    assert not Store(tier, SHIFT).was_clean


def test_a_new_shadow_takes_no_name_that_is_there(tier: Tier) -> None:
    filled(Store(tier, SHIFT), [b"a", b"b", b"c"])
    store = Store(tier, SHIFT)
    (kept,) = store.load({b"c": HOME}.get)
    assert kept.name == b"2"
    assert store.create(b"d", HOME).name == b"3"


@pytest.mark.parametrize("field", ["tier", "ino", "size", "mtime_ns", "ctime_ns"])
def test_another_file_of_the_name_is_not_the_same(tier: Tier, field: str) -> None:
    filled(Store(tier, SHIFT), [b"a", b"b"])
    value = "mid" if field == "tier" else getattr(HOME, field) + 1
    _, found = load(tier, {b"a": msgspec.structs.replace(HOME, **{field: value}), b"b": HOME})
    assert [each.head.path for each in found] == [b"b"]
    assert sorted(os.listdir(cache_of(tier))) == ["1.data", "1.map"]


def test_a_file_that_is_gone_takes_its_shadow_along(tier: Tier) -> None:
    filled(Store(tier, SHIFT), [b"a"])
    assert load(tier, {}) == (False, [])
    assert os.listdir(cache_of(tier)) == []


@pytest.mark.parametrize("left", ["0.map", "0.data"])
def test_half_of_a_pair_goes(tier: Tier, left: str) -> None:
    filled(Store(tier, SHIFT), [b"a", b"b"])
    (cache_of(tier) / ("0.map" if left == "0.data" else "0.data")).unlink()
    _, found = load(tier, dict.fromkeys([b"a", b"b"], HOME))
    assert [each.head.path for each in found] == [b"b"]
    assert sorted(os.listdir(cache_of(tier))) == ["1.data", "1.map"]


def test_another_chunk_size_begins_anew(tier: Tier) -> None:
    store = Store(tier, SHIFT)
    store.close(filled(store, [b"a"]))
    assert load(tier, {b"a": HOME}, SHIFT + 1) == (True, [])
    assert os.listdir(cache_of(tier)) == []


def test_lengths_that_do_not_fit_go(tier: Tier) -> None:
    filled(Store(tier, SHIFT), [b"a", b"b", b"c"])
    os.truncate(cache_of(tier) / "0.data", SIZE)
    os.truncate(cache_of(tier) / "1.map", map_space(SIZE, SHIFT) + 1)
    _, found = load(tier, dict.fromkeys([b"a", b"b", b"c"], HOME))
    assert [each.head.path for each in found] == [b"c"]


def test_strangers_are_removed_whatever_they_are(tier: Tier, tmp_path: Path) -> None:
    filled(Store(tier, SHIFT), [b"a"])
    place, outside = cache_of(tier), tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"kept")
    (place / "notes.txt").write_bytes(b"?")
    (place / "x.data").write_bytes(b"?")
    (place / "1.map.tmp").write_bytes(b"?")
    (place / "٣.map").write_bytes(b"?")  # a digit, but not one of ours
    (place / "deep" / "er").mkdir(parents=True)
    (place / "link").symlink_to(outside)
    os.mkfifo(place / "pipe")
    os.mkfifo(place / "3.data")
    os.mkfifo(place / "3.map")
    (place / "4.data").symlink_to(outside / "precious")
    (place / "4.map").symlink_to(outside / "precious")
    (place / "5.data" / "deep").mkdir(parents=True)
    (place / "5.map").mkdir()
    (place / "6.map").mkdir()
    _, found = load(tier, {b"a": HOME})
    assert [each.head.path for each in found] == [b"a"]
    assert sorted(os.listdir(place)) == ["0.data", "0.map"]
    assert (outside / "precious").read_bytes() == b"kept"


def test_a_store_is_removed_as_a_whole(tier: Tier) -> None:
    filled(Store(tier, SHIFT), [b"a"])
    remove_store(tier)
    assert not cache_of(tier).exists()
    remove_store(tier)
