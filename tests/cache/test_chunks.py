"""The C type that readers look at. The shadow holds other bytes than the home, so each byte read tells its origin."""

from __future__ import annotations

import errno
import itertools
import os
import random
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from keigo.cache._chunks import Chunks

PAGE = 4096
SHIFT = 13
CHUNK = 1 << SHIFT
THREADS = 8
HEAT_MOST = 4032


def pages(size: int) -> int:
    """Rounded up to whole pages."""
    return -(-size // PAGE) * PAGE


def heats(chunks: Chunks) -> list[int]:
    return list(struct.unpack(f"<{chunks.count}H", chunks.heat()))


def numbers(bitmap: bytes, count: int) -> set[int]:
    return {index for index in range(count) if bitmap[index // 8] >> index % 8 & 1}


@contextmanager
def opened(path: Path, data: bytes, how: int = os.O_RDWR) -> Iterator[int]:
    path.write_bytes(data)
    fd = os.open(path, how)
    try:
        yield fd
    finally:
        os.close(fd)


class Plain:
    """What `Chunks` should do, with sets and byte strings."""

    def __init__(self, home: bytes, shadow: bytes, direct: bytes | None) -> None:
        self.home, self.shadow, self.direct = home, shadow, direct
        self.size = len(home)
        self.count = -(-len(home) // CHUNK)
        self.present: set[int] = set()
        self.doubtful: set[int] = set()
        self.rotten: set[int] = set()
        self.looked: list[int] = []
        self.verifies = False
        self.counts = [0, 0, 0, 0, 0, 0, 0]

    def look(self, index: int) -> None:
        """As the cache's `_verify`."""
        self.looked.append(index)
        self.doubtful.discard(index)
        if index not in self.rotten:
            self.present.add(index)

    def has(self, index: int) -> tuple[bool, bool]:
        """Whether a chunk is in; and whether one went out for that."""
        went = False
        if index in self.doubtful and index not in self.present and self.verifies:
            self.look(index)
            went = index not in self.present
        return index in self.present, went

    def read(self, size: int, offset: int) -> tuple[bytes, int]:
        """(bytes, how many of them were cached), as by chunks.h."""
        if not (self.present or self.doubtful) or offset >= self.size:
            return self.counted(self.home[offset : offset + size], 0)
        stop, at = min(offset + size, self.size), offset
        found, served = b"", 0
        while at < stop:
            index = at >> SHIFT
            until = (index + 1) << SHIFT
            inside, went = self.has(index)
            while until < stop:
                same, gone = self.has(until >> SHIFT)
                went |= gone
                if same != inside:
                    break
                until += CHUNK
            part = min(until, stop) - at
            if inside and not went:
                room = size - (at - offset)
                past_the_cache = self.direct is not None and at % PAGE == 0 and offset % PAGE == 0
                source = self.direct if past_the_cache and pages(part) <= room else self.shadow
                assert source is not None
                found += source[at : at + part]
                served += part
            else:
                found += self.home[at : at + part]
            at += part
        return self.counted(found, served)

    def counted(self, found: bytes, served: int) -> tuple[bytes, int]:
        if served:
            self.counts[0] += served == len(found)
            self.counts[1] += served
        if served < len(found):
            self.counts[2] += 1
            self.counts[3] += len(found) - served
        return found, served


class Machine(RuleBasedStateMachine):
    """Random calls; `Plain` says what comes of them."""

    base: Path
    names = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.open: list[int] = []
        self.made = False

    def file(self, data: bytes) -> int:
        path = self.base / str(next(self.names))
        path.write_bytes(data)
        self.open.append(os.open(path, os.O_RDWR))
        path.unlink()
        return self.open[-1]

    def teardown(self) -> None:
        for fd in self.open:
            os.close(fd)

    @precondition(lambda self: not self.made)
    @rule(size=st.integers(1, 6 * CHUNK + 17) | st.sampled_from([1, PAGE, CHUNK, 3 * CHUNK, 3 * CHUNK + 1, 99_999]))
    def make(self, size: int) -> None:
        self.made = True
        self.chunks = Chunks(size, SHIFT)
        self.plain = Plain(random.Random(size).randbytes(size), b"", None)
        self.home = self.file(self.plain.home)
        assert (self.chunks.count, self.chunks.size, self.chunks.cached) == (self.plain.count, size, 0)

    def index(self, seed: int) -> int:
        return seed % self.plain.count

    @precondition(lambda self: self.made)
    @rule(seed=st.integers(0, 1 << 20), direct=st.booleans())
    def attach(self, seed: int, direct: bool) -> None:
        """Another shadow. Both descriptors of it go to files of their own, so that it shows by which it is read."""
        shadow = random.Random(seed).randbytes(pages(len(self.plain.home)))
        other = random.Random(seed + 1).randbytes(len(shadow))
        fds = self.file(shadow), self.file(other) if direct else -1
        if self.plain.present or self.plain.doubtful:
            with pytest.raises(ValueError, match="another shadow"):
                self.chunks.attach(*fds)
            return
        self.chunks.attach(*fds)
        had_direct = self.plain.direct is not None
        self.plain.shadow = shadow
        self.plain.direct = other if direct else shadow if had_direct else None

    has_shadow = precondition(lambda self: self.made and self.plain.shadow)

    @has_shadow
    @rule(seed=st.integers(0, 1 << 20))
    def fill(self, seed: int) -> None:
        index, alive = self.index(seed), bool(self.plain.size)
        assert self.chunks.fill(index) is alive
        if alive:
            self.plain.doubtful.discard(index)
            self.plain.present.add(index)

    @has_shadow
    @rule(seed=st.integers(0, 1 << 20), rotten=st.booleans())
    def doubt(self, seed: int, rotten: bool) -> None:
        index = self.index(seed)
        self.chunks.doubt(index)
        if self.plain.size and index not in self.plain.present:
            self.plain.doubtful.add(index)
        (self.plain.rotten.add if rotten else self.plain.rotten.discard)(index)

    @has_shadow
    @rule()
    def set_verify(self) -> None:
        chunks, rotten = self.chunks, self.plain.rotten
        self.looks: list[int] = []

        def look(index: int) -> None:
            self.looks.append(index)
            if index in rotten:
                chunks.evict(index)
            else:
                chunks.fill(index)

        chunks.set_verify(look)
        self.plain.verifies = True
        self.plain.looked = []

    @has_shadow
    @rule(seed=st.integers(0, 1 << 20))
    def evict(self, seed: int) -> None:
        index = self.index(seed)
        assert self.chunks.evict(index) is (index in self.plain.present | self.plain.doubtful)
        self.plain.present.discard(index)
        self.plain.doubtful.discard(index)

    @has_shadow
    @rule()
    def clear(self) -> None:
        self.chunks.clear()
        self.plain.present, self.plain.doubtful, self.plain.verifies = set(), set(), False

    @has_shadow
    @rule(sure=st.integers(0, 9))
    def end(self, sure: int) -> None:
        if sure:  # after it nothing happens any more
            return
        self.chunks.end()
        self.plain.size = 0
        self.plain.present, self.plain.doubtful, self.plain.verifies = set(), set(), False

    @precondition(lambda self: self.made)
    @rule(
        where=st.integers(0, 7 * CHUNK) | st.integers(0, 14).map(lambda page: page * PAGE),
        size=st.integers(0, 4 * CHUNK) | st.integers(0, 14).map(lambda page: page * PAGE) | st.integers(0, 9),
    )
    def read(self, where: int, size: int) -> None:
        got, served = self.chunks.read(self.home, size, where)
        expected, of_it = self.plain.read(size, where)
        assert (got == expected, served) == (True, of_it)
        assert list(self.chunks.counts()) == self.plain.counts
        if self.plain.verifies:
            assert self.looks == self.plain.looked

    @precondition(lambda self: self.made)
    @rule()
    def same(self) -> None:
        chunks, plain = self.chunks, self.plain
        assert numbers(chunks.present(), plain.count) == plain.present
        assert numbers(chunks.doubtful(), plain.count) == plain.doubtful
        assert (chunks.cached, chunks.size) == (len(plain.present | plain.doubtful), plain.size)
        for index in range(plain.count):
            assert chunks.is_present(index) is (index in plain.present)
            assert chunks.is_doubtful(index) is (index in plain.doubtful)


def test_against_a_plain_model(tmp_path: Path) -> None:
    machine = type("Machine", (Machine,), {"base": tmp_path})
    run_state_machine_as_test(machine, settings=settings(max_examples=2 * settings().max_examples, deadline=None))


def test_a_real_direct_descriptor_reads_tails_too(tmp_path: Path) -> None:
    """Through a file system that minds alignment, where there is one: all offsets about the edges."""
    size = 3 * CHUNK + 777
    home, shadow = os.urandom(size), os.urandom(pages(size))
    with opened(tmp_path / "home", home) as at_home, opened(tmp_path / "shadow", shadow) as cached:
        os.fsync(cached)
        direct = os.open(tmp_path / "shadow", os.O_RDONLY | os.O_DIRECT)
        chunks = Chunks(size, SHIFT)
        chunks.attach(cached, direct)
        os.close(direct)
        chunks.fill(1)
        chunks.fill(3)
        edges = [0, 1, 511, 512, PAGE, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK - PAGE, 3 * CHUNK, size - 1, size]
        for offset, length in itertools.product(edges, [0, 1, 512, PAGE, CHUNK, CHUNK + PAGE, 4 * CHUNK]):
            mixed = b"".join(
                (shadow if index % 2 else home)[index << SHIFT : min(size, index + 1 << SHIFT)] for index in range(4)
            )
            assert chunks.read(at_home, length, offset)[0] == mixed[offset : offset + length]
        assert chunks.counts()[6] == 0


def test_a_shadow_that_fails_is_made_up_for_at_home(tmp_path: Path) -> None:
    size = 2 * CHUNK
    home, shadow = os.urandom(size), os.urandom(size)
    with opened(tmp_path / "home", home) as at_home, opened(tmp_path / "shadow", shadow) as cached:
        chunks = Chunks(size, SHIFT)
        chunks.attach(cached, -1)
        chunks.fill(0)
        chunks.fill(1)
        assert chunks.read(at_home, size, 0) == (shadow, size)
        os.truncate(tmp_path / "shadow", CHUNK + 5)
        assert chunks.read(at_home, size, 0) == (home, 0)
        assert chunks.read(at_home, CHUNK, 0) == (shadow[:CHUNK], CHUNK)
        assert chunks.counts() == (2, 3 * CHUNK, 1, size, 0, 0, 1)
        unreadable = os.open(tmp_path / "shadow", os.O_WRONLY)
        chunks.clear()
        chunks.attach(unreadable, -1)
        os.close(unreadable)
        chunks.fill(0)
        assert chunks.read(at_home, CHUNK, 0) == (home[:CHUNK], 0)
        assert chunks.counts()[6] == 2


def test_an_error_of_home_is_told(tmp_path: Path) -> None:
    with opened(tmp_path / "home", b"x" * CHUNK, os.O_WRONLY) as unreadable:
        chunks = Chunks(CHUNK, SHIFT)
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            chunks.read(unreadable, 10, 0)
        assert caught.value.errno == errno.EBADF
        assert chunks.counts() == (0,) * 7


def test_a_verifier_that_raises_costs_the_hit_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: told.append(repr(found.exc_value)))

    def broken(index: int) -> None:
        told.append(str(index))
        raise RuntimeError("broken")

    home, shadow = os.urandom(CHUNK), os.urandom(CHUNK)
    with opened(tmp_path / "home", home) as at_home, opened(tmp_path / "shadow", shadow) as cached:
        chunks = Chunks(CHUNK, SHIFT)
        chunks.attach(cached, -1)
        chunks.set_verify(broken)
        chunks.doubt(0)
        assert chunks.read(at_home, CHUNK, 0) == (home, 0)
    assert told == ["0", "RuntimeError('broken')"]


def test_arguments_that_make_no_sense() -> None:
    for size, shift in ((0, SHIFT), (1, 11), (1, 31), (1 << 62, 12)):
        with pytest.raises(ValueError, match="no such chunks"):
            Chunks(size, shift)
    chunks = Chunks(CHUNK + 1, SHIFT)
    for call in (chunks.fill, chunks.doubt, chunks.evict, chunks.is_present, chunks.is_doubtful):
        with pytest.raises(IndexError):
            call(2)
        with pytest.raises(OverflowError):
            call(-1)
    with pytest.raises(ValueError, match="heat"):
        chunks.set_heat(b"123")
    with pytest.raises(ValueError, match="negative"):
        chunks.read(0, -1, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        chunks.attach(-1, -1)


# --- heat ---


def scan(chunks: Chunks, block: int, begin: int = 0) -> Iterator[None]:
    """Read all of a file from `begin` on, block by block."""
    for offset in range(begin, chunks.size, block):
        chunks.warm(offset, min(block, chunks.size - offset), 0)
        yield


@pytest.mark.parametrize("block", [1000, PAGE, 3 * PAGE, CHUNK, 5 * CHUNK, 1 << 20])
def test_a_scan_heats_little_whatever_its_blocks(block: int) -> None:
    chunks = Chunks(200 * CHUNK + 5, SHIFT)
    for _ in scan(chunks, block):
        pass
    found = heats(chunks)
    assert max(found) <= 1
    assert sum(found) <= max(4, -(-block // CHUNK))


def test_scans_beside_each_other_are_known() -> None:
    chunks = Chunks(400 * CHUNK, SHIFT)
    scans = [scan(chunks, PAGE, begin=part * 100 * CHUNK) for part in range(4)]
    for _ in range(100 * CHUNK // PAGE):
        for each in scans:
            next(each)
    assert sum(heats(chunks)) <= 4 * 5


@pytest.mark.parametrize("block", [1001, 2000, 3977, 5000, 9999])
def test_blocks_of_a_scan_need_not_end_at_pages(block: int) -> None:
    """A reader of blocks in direct I/O reads whole pages, and so those that two blocks have a part of twice."""
    chunks = Chunks(100 * CHUNK, SHIFT)
    for at in range(0, 90 * CHUNK, block):
        first = at // PAGE * PAGE
        chunks.warm(first, pages(at + block) - first, 0)
    found = heats(chunks)
    assert sum(found[4:]) == 0
    assert max(found) <= 1 + CHUNK // min(block, PAGE)


def test_the_same_page_read_again_and_again_is_hot() -> None:
    chunks = Chunks(100 * CHUNK, SHIFT)
    for _ in range(20):
        chunks.warm(5 * CHUNK, PAGE, 0)
    assert heats(chunks)[5] == 20


@pytest.mark.parametrize("served", [0, 1])
def test_each_read_elsewhere_heats_what_it_touches(served: int) -> None:
    chunks = Chunks(1000 * CHUNK, SHIFT)
    expected = [0] * chunks.count
    rng = random.Random(1)
    places = rng.sample(range(0, 999, 3), 333)
    for number in range(500):
        index = places[number % len(places)]
        length = rng.choice([1, 100, PAGE])
        across = number % 5 == 0
        offset = (index + 1) * CHUNK - length if across else index * CHUNK + 77
        chunks.warm(offset, length + across, served * length)
        expected[index] += 1
        expected[index + 1] += across
    assert heats(chunks) == expected
    assert chunks.counts()[5] == 500


def test_heat_ends_where_its_numbers_do_and_halves() -> None:
    chunks = Chunks(3 * CHUNK, SHIFT)
    chunks.set_heat(struct.pack("<3H", HEAT_MOST, 3, 1))
    for _ in range(3):
        chunks.warm(10, 1, 0)
    assert heats(chunks) == [HEAT_MOST, 3, 1]
    assert chunks.halve()
    assert heats(chunks) == [HEAT_MOST // 2, 1, 0]
    for _ in range(15):
        chunks.halve()
    assert heats(chunks) == [0, 0, 0]
    assert not chunks.halve()


@pytest.mark.parametrize("reads", [1, 31, 32, 63, 200, 1500])
def test_heat_is_exact_while_it_is_small_and_right_on_average_after(reads: int) -> None:
    chunks = Chunks(200 * CHUNK, SHIFT)
    for number in range(reads):
        for index in range(200):
            chunks.warm(index * CHUNK + number * 3 * 4096 % (CHUNK - 4096), 100, 0)
    found = heats(chunks)
    if reads <= 63:
        assert found == [reads] * 200
    else:
        assert abs(sum(found) / 200 - reads) < 0.04 * reads
        assert all(abs(heat - reads) < 0.6 * reads for heat in found)


@given(st.integers(0, 65535))
def test_heat_that_is_set_is_what_it_was_by_a_sixteenth(heat: int) -> None:
    chunks = Chunks(1, SHIFT)
    chunks.set_heat(struct.pack("<H", heat))
    (found,) = heats(chunks)
    assert found <= heat
    assert found >= min(heat, HEAT_MOST) * 31 / 32
    chunks.set_heat(chunks.heat())
    assert heats(chunks) == [found]


def test_what_has_ended_takes_no_heat() -> None:
    chunks = Chunks(CHUNK, SHIFT)
    chunks.end()
    chunks.warm(0, 1, 0)
    assert heats(chunks) == [0]
    assert chunks.counts()[5] == 0


def test_reads_beyond_the_last_chunk_heat_nothing_else() -> None:
    chunks = Chunks(CHUNK + 1, SHIFT)
    chunks.warm(CHUNK, 10 * CHUNK, 0)
    chunks.warm(1 << 40, 5, 0)
    assert heats(chunks) == [0, 1]


# --- threads ---

BIG_SHIFT = 17  # a read takes so long that there is time for a change in it
BIG = 1 << BIG_SHIFT
GARBAGE = b"?" * (6 * BIG)


class Hammer:
    """Threads that read one file at random places, until told; each byte must be the file's."""

    def __init__(self, chunks: Chunks, home: int, data: bytes) -> None:
        self.chunks, self.home, self.data = chunks, home, data
        self.enough = threading.Event()
        self.wrong: list[tuple[int, int]] = []
        self.reads = [0] * THREADS
        self.bytes = [0] * THREADS
        self.served = [0] * THREADS
        self.threads = [threading.Thread(target=self.run, args=(number,)) for number in range(THREADS)]

    def run(self, number: int) -> None:
        rng = random.Random(number)
        size = len(self.data)
        while not self.enough.is_set():
            offset = rng.randrange(0, size, PAGE if number % 2 else 1)
            length = rng.choice([100, PAGE, BIG, 3 * BIG])
            got, served = self.chunks.read(self.home, length, offset)
            if got != self.data[offset : offset + length]:
                self.wrong.append((offset, length))
            self.reads[number] += 1
            self.bytes[number] += len(got)
            self.served[number] += served
            self.chunks.warm(offset, len(got), served)

    def __enter__(self) -> Hammer:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.enough.set()
        for thread in self.threads:
            thread.join()

    def check(self) -> None:
        assert self.wrong == []
        hits, hit_bytes, misses, miss_bytes, useful, wanted, errors = self.chunks.counts()
        assert hits + misses >= sum(self.reads) - 0  # a read that is partly cached is a miss, and never both
        assert (hits + misses, hit_bytes) == (sum(self.reads), sum(self.served))
        assert hit_bytes + miss_bytes == sum(self.bytes)
        assert (useful <= wanted, wanted) == (True, sum(self.reads))
        assert errors == 0


LOOKING = threading.Lock()
Change = Callable[[int, Chunks, list[int], bytes], None]


def write_chunk(fd: int, index: int, data: bytes) -> None:
    os.pwrite(fd, data[index << BIG_SHIFT : (index + 1) << BIG_SHIFT], index << BIG_SHIFT)


def in_and_out(step: int, chunks: Chunks, shadows: list[int], data: bytes) -> None:
    """A chunk goes, others' bytes stand in its place, it comes back."""
    index = step * 5 % chunks.count
    chunks.evict(index)
    write_chunk(shadows[0], index, GARBAGE)
    write_chunk(shadows[0], index, data)
    chunks.fill(index)


def all_at_once(step: int, chunks: Chunks, shadows: list[int], data: bytes) -> None:
    """The file gets another shadow, of which only some is filled; the old one is overwritten."""
    if step % 10:
        in_and_out(step, chunks, [shadows[step // 10 % 2]], data)
        return
    old, new = shadows[(step // 10 + 1) % 2], shadows[step // 10 % 2]
    chunks.clear()
    os.pwrite(old, GARBAGE[: len(data)], 0)
    chunks.attach(new, new if step % 20 else -1)
    for index in range(0, chunks.count, 2):
        write_chunk(new, index, data)
        chunks.fill(index)


def doubts(step: int, chunks: Chunks, shadows: list[int], data: bytes) -> None:
    """Chunks become doubtful; half of them are not what they were."""
    index = step * 5 % chunks.count
    with LOOKING:
        chunks.evict(index)
        write_chunk(shadows[0], index, GARBAGE if step % 2 else data)
        chunks.doubt(index)

    def look(which: int) -> None:
        with LOOKING:
            if not chunks.is_doubtful(which):
                return
            at = which << BIG_SHIFT
            if os.pread(shadows[0], BIG, at)[: len(data) - at] == data[at : at + BIG]:
                chunks.fill(which)
            else:
                chunks.evict(which)

    if step == 0:
        chunks.set_verify(look)


@pytest.mark.parametrize("change", [in_and_out, all_at_once, doubts])
def test_no_wrong_byte_while_chunks_come_and_go(tmp_path: Path, change: Change) -> None:
    size = 5 * BIG + 123
    data = random.Random(5).randbytes(size)
    with (
        opened(tmp_path / "home", data) as home,
        opened(tmp_path / "a", bytes(pages(size))) as one,
        opened(tmp_path / "b", bytes(pages(size))) as two,
    ):
        chunks = Chunks(size, BIG_SHIFT)
        chunks.attach(one, one)
        with Hammer(chunks, home, data) as hammer:
            step = 0
            while sum(hammer.reads) < 25_000 or step < 500:
                change(step, chunks, [one, two], data)
                step += 1
        hammer.check()
        assert 0 < sum(hammer.served) < sum(hammer.bytes)


def test_once_ended_not_a_byte_of_the_shadow_is_served(tmp_path: Path) -> None:
    """Readers under way when it ends get what the file was; no reader gets what the shadow is afterwards."""
    size = 4 * BIG
    data = random.Random(6).randbytes(size)
    with opened(tmp_path / "home", data) as home, opened(tmp_path / "shadow", data) as cached:
        for _ in range(20):
            chunks = Chunks(size, BIG_SHIFT)
            os.pwrite(cached, data, 0)
            chunks.attach(cached, cached)
            for index in range(chunks.count):
                chunks.fill(index)
            with Hammer(chunks, home, data) as hammer:
                while sum(hammer.reads) < 100:
                    pass
                chunks.end()
                os.pwrite(cached, GARBAGE[:size], 0)
                assert not chunks.fill(3)
                chunks.doubt(2)
                ended = sum(hammer.reads)
                while sum(hammer.reads) < ended + 100:
                    pass
            assert hammer.wrong == []
            assert (chunks.cached, chunks.read(home, size, 0)) == (0, (data, 0))
