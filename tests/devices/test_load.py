"""Live load: what is made of two samples, and that the kernel's counts are those of the device below a directory."""

from __future__ import annotations

import fcntl
import itertools
import math
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.devices.load import (
    TIME_CONSTANT,
    BlockDevice,
    Counts,
    Load,
    LoadMonitor,
    Smoothed,
    is_dax,
    open_block_device,
    parse_counts,
    rates,
)
from tests.background import sync_at

MIB = 1 << 20
NONE = Counts(0, 0, 0, 0)
WRAP = 1 << 32

small = st.integers(0, 1 << 40)
counts = st.builds(Counts, small, small, st.none() | st.integers(0, WRAP - 1), st.integers(0, 1 << 20))


def no_counts(_tiers: Sequence[str]) -> list[tuple[Counts, Counts]]:
    raise AssertionError("asked for counts of tiers that are on block devices")


# --- arithmetic ---


def test_concurrency_is_time_of_requests_by_time() -> None:
    """40 requests of 50 ms in half a second: 4 under way at any time."""
    found = rates(NONE, Counts(40, 40 * 4096, 2000, 0), 0.5)
    assert found is not None
    assert (found.k, found.bandwidth, found.ahead) == (4.0, 40 * 4096 / 0.5, 0.0)


def test_nothing_happened() -> None:
    same = Counts(7, 8, 9, 0)
    found = rates(same, same, 0.1)
    assert found is not None
    assert (found.k, found.bandwidth) == (0.0, 0.0)


@given(before=counts, after=counts, dt=st.floats(-10, 10), ahead=st.floats(0, 1e6))
def test_any_counts_give_rates_or_none(before: Counts, after: Counts, dt: float, ahead: float) -> None:
    found = rates(before, after, dt, ahead)
    back = after.requests < before.requests or after.bytes < before.bytes
    assert (found is None) == (back or dt <= 0)
    if found is not None:
        assert found.k is None or found.k >= -1e-9
        assert found.bandwidth >= 0
        assert found.ahead >= -1e-9


@given(start=st.integers(0, WRAP - 1), took=st.integers(0, 1 << 20), dt=st.floats(0.01, 10))
def test_milliseconds_wrap(start: int, took: int, dt: float) -> None:
    """They are shown as 32 bits: 64 requests under way at all times wrap them in 19 hours."""
    found = rates(Counts(1, 1, start, 0), Counts(2, 2, (start + took) % WRAP, 0), dt)
    assert found is not None
    assert found.k == pytest.approx(took / 1000 / dt)


def test_unknown_times_leave_the_bandwidth() -> None:
    found = rates(Counts(0, 0, None, 0), Counts(1, 100, None, 0), 2.0)
    assert found is not None
    assert (found.k, found.bandwidth) == (None, 50.0)


def test_requests_that_hang_are_seen_before_they_end_and_count_once() -> None:
    """3 requests begin at 0 and end at 4: the kernel adds all their time then."""
    windows = [Counts(0, 0, 0, 3), Counts(0, 0, 0, 3), Counts(0, 0, 0, 3), Counts(0, 0, 0, 3), Counts(3, 3, 12_000, 0)]
    ahead, seen = 0.0, []
    for before, after in itertools.pairwise(windows):
        found = rates(before, after, 1.0, ahead)
        assert found is not None
        ahead = found.ahead
        seen.append(found.k)
    assert seen == [3.0, 3.0, 3.0, 3.0]


def kernel_at(now: int, requests: Sequence[tuple[int, int]]) -> Counts:
    """What the kernel would show at a moment (ms) of requests that began and ended then."""
    ended = [(begin, end) for begin, end in requests if end <= now]
    under_way = sum(begin < now < end for begin, end in requests)
    return Counts(len(ended), 0, sum(end - begin for begin, end in ended) % WRAP, under_way)


@given(
    requests=st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 5000)).map(lambda r: (r[0], r[0] + r[1]))),
    every=st.integers(1, 3000),
)
def test_over_time_each_request_counts_what_it_took(requests: list[tuple[int, int]], every: int) -> None:
    total, ahead, now = 0.0, 0.0, 0
    before = kernel_at(0, requests)
    end = max((end for _, end in requests), default=0)
    while now <= end:
        begin, now = now, now + every
        after = kernel_at(now, requests)
        found = rates(before, after, every / 1000, ahead)
        assert found is not None
        assert found.k is not None
        through = sum(first < begin and last > now for first, last in requests)
        if after.requests == before.requests:
            assert found.k >= through - 1e-6
        total += found.k * every / 1000
        before, ahead = after, found.ahead
    assert total == pytest.approx(sum(last - first for first, last in requests) / 1000, abs=1e-6)


@given(rate=st.floats(0, 1e12), windows=st.lists(st.floats(0.001, 1e5), min_size=1, max_size=50))
def test_a_steady_rate_is_its_own_mean(rate: float, windows: list[float]) -> None:
    smoothed = Smoothed()
    for dt in windows:
        smoothed.add(rate, dt)
    assert smoothed.value == pytest.approx(rate)


@given(first=st.floats(0, 1e9), second=st.floats(0, 1e9), parts=st.integers(1, 50))
def test_a_mean_does_not_depend_on_how_often_it_is_sampled(first: float, second: float, parts: int) -> None:
    whole, split = Smoothed(), Smoothed()
    for smoothed, pieces in ((whole, 1), (split, parts)):
        for rate in (first, second):
            for _ in range(pieces):
                smoothed.add(rate, 2.0 / pieces)
    assert whole.value == pytest.approx(split.value, rel=1e-6, abs=1e-6)


def test_what_is_a_time_constant_old_has_its_weight() -> None:
    smoothed = Smoothed()
    smoothed.add(1.0, 1000 * TIME_CONSTANT)
    smoothed.add(0.0, TIME_CONSTANT)
    assert smoothed.value == pytest.approx(math.exp(-1))
    smoothed.add(None, TIME_CONSTANT)
    assert smoothed.value == pytest.approx(math.exp(-1))
    assert Smoothed().value is None


# --- what the kernel writes ---

STAT = b"  2603557    32988 206386001   525361  9893713   566396 434478464  1577781        3   799636  2395268"


def test_statistics_are_parsed() -> None:
    assert parse_counts(STAT + b"  0 0 0 0 0 0\n", b"       1        2\n") == (
        Counts(2603557, 206386001 * 512, 525361, 1),
        Counts(9893713, 434478464 * 512, 1577781, 2),
    )


@given(stat=st.binary() | st.just(STAT), inflight=st.binary() | st.just(b"0 0"))
def test_other_text_is_a_value_error(stat: bytes, inflight: bytes) -> None:
    try:
        parse_counts(stat, inflight)
    except ValueError:
        assert (stat, inflight) != (STAT, b"0 0")


def test_dax_is_seen() -> None:
    """A DAX file system's reads and writes are memory's: the block layer counts none of them."""
    line = "36 35 259:0 / /mnt/pmem0 rw,noatime - ext4 /dev/pmem0 rw,{}"
    device = os.makedev(259, 0)
    assert is_dax(device, line.format("dax=always"))
    assert is_dax(device, "x y 8:1 / / rw - ext4 /dev/sda1 rw\n" + line.format("errors=continue,dax"))
    assert not is_dax(device, line.format("dax=inode"))
    assert not is_dax(os.makedev(259, 1), line.format("dax"))


# --- real devices ---


def run(*command: str) -> None:
    subprocess.run(command, check=True)


class Loops:
    """Loop devices, taken down by `close` whatever happened."""

    def __init__(self, base: Path, stack: ExitStack) -> None:
        self.base = base
        self._stack = stack

    def attach(self, image: Path, size: int) -> Path:
        """A new device of `size` bytes; its node."""
        with image.open("wb") as file:
            file.truncate(size)
        command = ["losetup", "--find", "--show", "--partscan", str(image)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        device = Path(done.stdout.strip())
        self._stack.callback(run, "losetup", "-d", str(device))
        return device

    def mount(self, name: str, size: int = 64 * MIB) -> Path:
        """A new ext4 on a new loop device; its root."""
        device = self.attach(self.base / f"{name}.img", size)
        subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0", "-O", "^has_journal", device], check=True)
        root = self.base / name
        root.mkdir()
        subprocess.run(["mount", "-o", "noatime", device, root], check=True)
        self._stack.callback(run, "umount", str(root))
        return root

    def without_statistics(self, device: int) -> None:
        """Switch a device's statistics off: a loop device would be without them for ever."""
        switch = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/queue/iostats")
        self._stack.callback(switch.write_text, "1")
        switch.write_text("0")

    def freeze(self, root: Path) -> Callable[[], None]:
        """Make writes to a file system wait; returns what lets them go on, which may be called again."""
        subprocess.run(["fsfreeze", "-f", root], check=True)

        def thaw() -> None:
            subprocess.run(["fsfreeze", "-u", root], capture_output=True)

        self._stack.callback(thaw)
        return thaw

    def end_with(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for a process before the devices that it uses are taken down."""
        self._stack.callback(process.wait)


@pytest.fixture
def loops() -> Iterator[Loops]:
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("needs root and loop devices")
    with tempfile.TemporaryDirectory(prefix="keigo-load-", dir="/dev/shm") as base, ExitStack() as stack:
        yield Loops(Path(base), stack)


def device_of(path: Path) -> int:
    return path.stat().st_dev


def fio(file: Path, direction: str, size: int) -> None:
    """Move `size` bytes of a file past the page cache, in random order, by two threads."""
    job = ["--name=x", f"--filename={file}", f"--size={size}", f"--rw={direction}", "--bs=64k", "--direct=1"]
    how = ["--numjobs=2", "--thread", f"--io_size={size // 2}", "--norandommap=0", "--minimal"]
    subprocess.run(["fio", *job, *how], check=True, capture_output=True, cwd=file.parent)


def test_bytes_are_those_that_the_device_moved(loops: Loops) -> None:
    root = loops.mount("tier")
    file = root / "data"
    file.write_bytes(os.urandom(16 * MIB))
    sync_at(root)
    monitor = LoadMonitor([("tier", device_of(root))], no_counts)
    monitor.sample(1.0)
    assert monitor.loads() == (Load("tier", "device"),)
    fio(file, "randread", 16 * MIB)
    monitor.sample(2.0)
    (reading,) = monitor.loads()
    assert 16 * MIB <= reading.read_bytes < 17 * MIB
    assert reading.written_bytes < MIB
    assert reading.read_bandwidth == reading.read_bytes
    assert reading.read_k is not None
    assert reading.read_k > 0
    fio(file, "randwrite", 16 * MIB)
    monitor.sample(3.0)
    (writing,) = monitor.loads()
    assert 16 * MIB <= writing.written_bytes < 18 * MIB
    assert writing.read_bytes - reading.read_bytes < MIB
    assert writing.write_k is not None
    assert writing.write_k > 0
    monitor.close()


def test_tiers_on_one_device_share_its_load_and_others_do_not(loops: Loops) -> None:
    one, other = loops.mount("one"), loops.mount("other")
    (one / "sub").mkdir()
    tiers = [("a", device_of(one)), ("b", device_of(other)), ("c", device_of(one / "sub"))]
    monitor = LoadMonitor(tiers, no_counts)
    monitor.sample(1.0)
    subprocess.run(["dd", "if=/dev/zero", f"of={one}/x", "bs=1M", "count=8", "oflag=direct", "status=none"], check=True)
    monitor.sample(2.0)
    a, b, c = monitor.loads()
    assert 8 * MIB <= a.written_bytes < 9 * MIB
    assert (a.written_bytes, a.write_k, a.write_bandwidth) == (c.written_bytes, c.write_k, c.write_bandwidth)
    assert b.written_bytes == 0
    assert b.write_k == b.write_bandwidth == 0.0
    monitor.close()


def test_a_partition_has_counts_of_its_own(loops: Loops) -> None:
    device = loops.attach(loops.base / "disk.img", 32 * MIB)
    for number, first in ((1, 2048), (2, 20480)):
        run("addpart", str(device), str(number), str(first), "16384")
    tiers = [(str(number), _device_number(f"{device.name}p{number}")) for number in (1, 2)]
    monitor = LoadMonitor(tiers, no_counts)
    monitor.sample(1.0)
    run("dd", "if=/dev/zero", f"of={device}p2", "bs=1M", "count=4", "oflag=direct", "status=none")
    monitor.sample(2.0)
    assert [load.written_bytes for load in monitor.loads()] == [0, 4 * MIB]
    monitor.close()


def _device_number(name: str) -> int:
    major, minor = Path(f"/sys/class/block/{name}/dev").read_text().split(":")
    return os.makedev(int(major), int(minor))


def test_a_queue_that_is_not_counted_is_no_source(loops: Loops) -> None:
    root = loops.mount("tier")
    number = device_of(root)
    found = open_block_device(number)
    assert found is not None
    found.close()
    loops.without_statistics(number)
    assert open_block_device(number) is None


def test_memory_is_no_block_device() -> None:
    assert open_block_device(device_of(Path("/dev/shm"))) is None


def test_a_device_that_stalls_is_seen_to_be_busy(loops: Loops) -> None:
    """A loop device over a file on a frozen file system: a write to it hangs until the thaw."""
    below = loops.mount("below")
    device = loops.attach(below / "above.img", 8 * MIB)
    subprocess.run(["dd", "if=/dev/zero", f"of={device}", "bs=1M", "oflag=direct"], capture_output=True)
    thaw = loops.freeze(below)
    command = ["dd", "if=/dev/zero", f"of={device}", "bs=4096", "count=1", "oflag=direct", "status=none"]
    writer = subprocess.Popen(command)
    loops.end_with(writer)
    number = os.stat(device).st_rdev
    block = BlockDevice(number)
    hung = threading.Event()
    while block.counts()[1].under_way == 0:
        assert writer.poll() is None
        hung.wait(0.01)
    monitor = LoadMonitor([("tier", number)], no_counts)
    for now in range(1, 5):
        monitor.sample(float(now))
        (load,) = monitor.loads()
        assert load.write_k == (None if now == 1 else 1.0)
    thaw()
    assert writer.wait() == 0
    monitor.sample(5.0)
    (load,) = monitor.loads()
    assert load.write_k is not None
    assert load.write_k < 1.0  # its time was taken in already
    assert load.written_bytes == 4096
    block.close()
    monitor.close()


LOOP_ADD, LOOP_REMOVE = 0x4C80, 0x4C81


@pytest.fixture
def short_lived() -> Iterator[tuple[int, Callable[[], None]]]:
    """A block device that nobody uses, and what removes it."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("needs root and loop devices")
    control = os.open("/dev/loop-control", os.O_RDWR)
    number = fcntl.ioctl(control, LOOP_ADD, 4000 + os.getpid() % 100_000)  # far from those that losetup takes

    def remove() -> None:
        try:
            fcntl.ioctl(control, LOOP_REMOVE, number)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno != 19:  # ENODEV: removed by the test
                raise

    yield _device_number(f"loop{number}"), remove
    remove()
    os.close(control)


def test_the_load_of_a_device_that_vanishes_is_unknown(
    short_lived: tuple[int, Callable[[], None]], caplog: pytest.LogCaptureFixture
) -> None:
    number, remove = short_lived
    monitor = LoadMonitor([("gone", number), ("also", number)], no_counts)
    monitor.sample(1.0)
    monitor.sample(2.0)
    assert [load.read_k for load in monitor.loads()] == [0.0, 0.0]
    remove()
    for now in (3.0, 4.0, 5.0):
        monitor.sample(now)
        assert monitor.loads() == (Load("gone", "lost"), Load("also", "lost"))
    assert len(caplog.records) == 1
    assert "gone, also" in caplog.text
    monitor.close()


# --- tiers that are on no block device ---


def test_own_counts_are_asked_for_together_and_add_up_on_one_device() -> None:
    moved = {"a": Counts(0, 0, 0, 0), "b": Counts(0, 0, 0, 0), "c": Counts(0, 0, None, 0)}
    asked = []

    def counted(tiers: Sequence[str]) -> list[tuple[Counts, Counts]]:
        asked.append(list(tiers))
        return [(moved[tier], NONE) for tier in tiers]

    monitor = LoadMonitor([("a", 1), ("c", 2), ("b", 1)], counted, lambda _device: None)
    monitor.sample(0.0)
    moved |= {"a": Counts(1, 100, 500, 0), "b": Counts(1, 300, 1500, 0), "c": Counts(1, 7, None, 0)}
    monitor.sample(1.0)
    a, c, b = monitor.loads()
    assert asked == [["a", "b", "c"]] * 2
    assert (a.source, a.read_bytes, a.read_bandwidth, a.read_k) == ("counted", 400, 400.0, 2.0)
    assert (b.read_bytes, b.read_k, b.write_k) == (400, 2.0, 0.0)
    assert (c.read_bytes, c.read_k) == (7, None)
    assert c.read_bandwidth == pytest.approx(7.0)


def test_samples_out_of_order_change_nothing() -> None:
    moved = [Counts(0, 0, 0, 0)]
    monitor = LoadMonitor([("a", 1)], lambda _tiers: [(moved[0], moved[0])], lambda _device: None)
    monitor.sample(5.0)
    moved[0] = Counts(1, 10, 10, 0)
    monitor.sample(6.0)
    before = monitor.loads()
    moved[0] = Counts(9, 90, 90, 0)
    for now in (6.0, 4.0):
        monitor.sample(now)
        assert monitor.loads() == before
    monitor.sample(7.0)
    assert monitor.loads()[0].read_bytes == 90
    assert monitor.loads()[0].read_bandwidth is not None


def test_counts_that_begin_anew_are_left_out() -> None:
    """What happened until the reset is lost; what comes after it counts."""
    moved = [Counts(50, 500, 1000, 0)]
    monitor = LoadMonitor([("a", 1)], lambda _tiers: [(moved[0], NONE)], lambda _device: None)
    for now, counts in enumerate((moved[0], Counts(60, 600, 2000, 0), Counts(5, 50, 10, 0), Counts(6, 60, 1010, 0))):
        moved[0] = counts
        monitor.sample(float(now))
    (load,) = monitor.loads()
    assert load.read_bytes == 110
    assert load.read_k == pytest.approx(1.0)
