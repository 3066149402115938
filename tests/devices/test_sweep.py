"""Which cells are measured, on which file, and that nothing is left of it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from keigo.devices import fio, scratch
from keigo.devices.fio import FioError, Point
from keigo.devices.identity import device_of
from keigo.devices.profile import ProfileError, summary_of
from keigo.devices.scratch import room_for, scratch_file
from keigo.devices.sweep import Sweep, full_sweep, measure, quick_sweep
from tests.devices.disks import MIB, ext4, mounted


def test_the_quick_sweep_has_what_a_summary_and_a_model_need() -> None:
    points = quick_sweep().points
    for way in ("read", "write"):
        small = [p.k for p in points if (p.direction, p.pattern, p.block_bytes, p.beside) == (way, "random", 4096, 0)]
        assert small == [1, 2, 4, 8, 16, 32, 64]
        assert len({p.block_bytes for p in points if (p.direction, p.pattern, p.k) == (way, "random", 1)}) >= 3
        assert any(p.pattern == "sequential" for p in points if p.direction == way)
        sectors = [p for p in points if p.direction == way and p.block_bytes < 4096]
        assert len(sectors) == 6
        assert {(p.pattern, p.block_bytes, p.beside) for p in sectors} == {("random", 512, 0)}
        assert sectors[0].k == 1
    assert any(p.beside for p in points)
    assert quick_sweep().seconds * 3 < 60


def test_the_full_sweep_has_every_k_with_every_block_size() -> None:
    points = full_sweep().points
    assert len(set(points)) == len(points)
    for way in ("read", "write"):
        plain = {(p.k, p.block_bytes) for p in points if p.direction == way and p.pattern == "random" and not p.beside}
        assert len({point for point in plain if point[1] >= 4096}) == 12 * 5
        assert {k for k, block in plain if block == 512} == {1, 2, 4, 8, 16, 32, 64}
        rows = {p.k for p in points if (p.direction, p.pattern, p.block_bytes) == (way, "sequential", 131072)}
        assert rows == {p.k for p in points}
    assert {(p.k, p.beside) for p in points if p.beside} == {(4, 4), (4, 16), (16, 4), (16, 16)}
    assert set(quick_sweep().points) <= set(points)


def test_what_was_asked_for_is_in_the_plan() -> None:
    planned = quick_sweep(size=3 * MIB, runtime=2)
    assert (planned.size, planned.runtime) == (3 * MIB, 2)
    assert planned.seconds > 2 * len(planned.points)
    assert [point for batch in planned.batches() for point in batch.points] == list(planned.points)
    assert {batch.runtime for batch in planned.batches()} == {2}


@pytest.mark.parametrize("planned", [quick_sweep(), full_sweep()])
def test_sectors_come_last_and_by_themselves(planned: Sweep) -> None:
    kinds = [{point.block_bytes < 4096 for point in batch.points} for batch in planned.batches()]
    assert kinds == sorted(kinds, key=lambda kind: kind == {True})
    assert {True} in kinds
    assert {False, True} not in kinds
    assert all(
        batch.runtime == (planned.sector_runtime or planned.runtime if kind == {True} else planned.runtime)
        for batch, kind in zip(planned.batches(), kinds, strict=True)
    )


def short(size: int) -> Sweep:
    return Sweep(quick_sweep().points[::4], 0.05, size, 5)


def test_a_real_disk(tmp_path: Path) -> None:
    with ext4(tmp_path, 96 * MIB) as place:
        (place / "precious").write_bytes(b"precious")
        free = os.statvfs(place).f_bavail
        found = measure(place, device_of(place), short(8 * MIB), 0)
        assert os.listdir(place) == ["lost+found", "precious"] or set(os.listdir(place)) == {"lost+found", "precious"}
        assert (place / "precious").read_bytes() == b"precious"
        assert abs(os.statvfs(place).f_bavail - free) < 64
    assert found.direct
    assert not found.memory
    assert found.file_bytes == 8 * MIB
    assert [cell.k for cell in found.cells] == [point.k for point in short(0).points]


SECTORS = tuple(Point(way, "random", k, block) for block in (4096, 512) for way in ("read", "write") for k in (1, 8))


@pytest.mark.parametrize(("sector", "sizes"), [(512, {512, 4096}), (4096, {4096})])
def test_sectors_are_measured_where_the_disk_has_them(sector: int, sizes: set[int], tmp_path: Path) -> None:
    with ext4(tmp_path, 64 * MIB, sector) as place:
        found = measure(place, device_of(place), Sweep(SECTORS, 0.05, 8 * MIB, 5), 0)
    assert found.direct
    assert {cell.block_bytes for cell in found.cells} == sizes
    assert len(found.cells) == 4 * len(sizes)


def test_sectors_are_not_measured_where_they_reach_no_disk(tmp_path: Path) -> None:
    for filesystem in ("tmpfs", "ramfs"):
        with mounted("-t", filesystem, filesystem, at=tmp_path / filesystem) as place:
            found = measure(place, device_of(place), Sweep(SECTORS, 0.05, 8 * MIB, 5), 0)
        assert {cell.block_bytes for cell in found.cells} == {4096}


def test_memory_that_refuses_direct_io(tmp_path: Path) -> None:
    with mounted("-t", "ramfs", "ramfs", at=tmp_path / "m") as place:
        found = measure(place, device_of(place), short(8 * MIB), 0)
        assert os.listdir(place) == []
    assert not found.direct
    assert found.memory
    assert summary_of(found.cells, "read").latency_us > 0


def test_a_file_system_that_refuses_only_the_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "preadv", refuse)
    with scratch_file(tmp_path, MIB, 5) as made:
        assert not made.direct


def test_a_small_file_has_no_large_requests(tmp_path: Path) -> None:
    points = tuple(Point("read", "random", 1, block) for block in (MIB // 4, MIB // 2, MIB))
    found = measure(tmp_path, device_of(tmp_path), Sweep(points, 0.05, MIB, 5), 0)
    assert found.file_bytes == MIB
    assert [cell.block_bytes for cell in found.cells] == [MIB // 4]


def test_the_file_holds_random_bytes_and_has_no_name(tmp_path: Path) -> None:
    steps: list[None] = []
    with scratch_file(tmp_path, 3 * MIB, 5, lambda: steps.append(None)) as made:
        content = os.pread(made.fd, 4 * MIB, 0)
        assert len(content) == made.size == 3 * MIB
        assert len({content[at : at + 4096] for at in range(0, 3 * MIB, 4096)}) == 3 * 256
        assert os.fstat(made.fd).st_nlink == 0
        assert os.listdir(tmp_path) == []
    assert len(steps) == 3


def test_a_slow_device_gets_a_smaller_file(tmp_path: Path) -> None:
    with scratch_file(tmp_path, 64 * MIB, 0) as made:
        assert made.size == scratch.LEAST
        assert os.fstat(made.fd).st_size == scratch.LEAST


def test_where_unnamed_files_are_unknown_it_is_unlinked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    with scratch_file(tmp_path, MIB, 5) as made:
        assert os.listdir(tmp_path) == []
        assert made.size == MIB


def test_a_nearly_full_device_is_refused(tmp_path: Path) -> None:
    with ext4(tmp_path, 64 * MIB) as place:
        assert room_for(place, "ext4", 8 * MIB, 0) == 8 * MIB
        with pytest.raises(ProfileError, match=r"is too full to be measured: .* are free, of which 5[0-9.]+ MiB must"):
            room_for(place, "ext4", 8 * MIB, 50 * MIB)
        free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
        (place / "full").write_bytes(os.urandom(free - 6 * MIB))
        with pytest.raises(ProfileError, match="is too full") as caught:
            measure(place, device_of(place), short(8 * MIB), 0)
        assert "\n" not in str(caught.value)
        assert str(place) in str(caught.value)
        assert set(os.listdir(place)) == {"lost+found", "full"}


def test_a_share_of_what_is_free_is_taken(tmp_path: Path) -> None:
    with mounted("-t", "tmpfs", "-o", "size=64M", "tmpfs", at=tmp_path / "m") as place:
        assert room_for(place, "tmpfs", 1024 * MIB, 0) == 16 * MIB


def test_a_device_that_fills_up_meanwhile(tmp_path: Path) -> None:
    with mounted("-t", "tmpfs", "-o", "size=4M", "tmpfs", at=tmp_path / "m") as place:
        with (
            pytest.raises(ProfileError, match="cannot be written: No space left on device"),
            scratch_file(place, 8 * MIB, 5),
        ):
            raise AssertionError
        assert os.listdir(place) == []
        assert os.statvfs(place).f_bfree == os.statvfs(place).f_blocks


def test_when_fio_fails_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise FioError("fio failed")

    monkeypatch.setattr(fio, "run", fail)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FioError):
        measure(tmp_path, device_of(tmp_path), short(MIB), 0)
    assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    with (
        mounted("-t", "tmpfs", "-o", "ro", "tmpfs", at=tmp_path / "m") as place,
        pytest.raises(ProfileError, match="cannot be made: Read-only file system"),
        scratch_file(place, MIB, 5),
    ):
        raise AssertionError
