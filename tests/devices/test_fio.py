"""Real runs of fio, and what is made of its output, whatever it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.devices import fio
from keigo.devices.fio import FioError, Point, parse, run
from keigo.devices.profile import Cell
from keigo.devices.scratch import Scratch, scratch_file
from tests.devices.disks import MIB, ext4, mounted

POINTS = [
    Point("read", "random", 1, 4096),
    Point("write", "random", 3, 16384),
    Point("read", "sequential", 4, 131072),
    Point("write", "sequential", 2, 4096),
    Point("read", "random", 4, 4096, beside=2),
]
SHAPES = [
    ("read", "random", 1, 4096, 0),
    ("write", "random", 3, 16384, 0),
    ("read", "sequential", 4, 131072, 0),
    ("write", "sequential", 2, 4096, 0),
    ("read", "random", 4, 4096, 2),
    ("write", "random", 2, 4096, 4),
]


def shapes(cells: list[Cell]) -> list[tuple[str, str, int, int, int]]:
    return [(cell.direction, cell.pattern, cell.k, cell.block_bytes, cell.beside) for cell in cells]


@pytest.fixture(params=["tmpfs", "ext4", "ramfs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """File systems: memory that takes O_DIRECT, a disk, and one that refuses O_DIRECT."""
    if request.param == "ext4":
        with ext4(tmp_path, 64 * MIB) as made:
            yield made
    else:
        with mounted("-t", request.param, request.param, at=tmp_path / "m") as made:
            yield made


def test_each_cell_is_what_was_asked_for(place: Path) -> None:
    with scratch_file(place, 8 * MIB, 10) as scratch:
        assert scratch.direct == (place.name == "ext4" or fstype(place) == "tmpfs")
        before = os.listdir(place)
        told: list[None] = []
        cells = run(POINTS, scratch, 0.1, lambda: told.append(None))
        assert os.fstat(scratch.fd).st_size == 8 * MIB
        assert os.listdir(place) == before
    assert told
    assert shapes(cells) == SHAPES
    for cell in cells:
        assert cell.requests >= cell.k
        assert cell.seconds >= 0.1
        assert 0 < cell.p50_us <= cell.p99_us
        # Little's law: k threads that do nothing else keep at most k requests under way.
        assert cell.requests * cell.mean_us / 1e6 <= cell.k * cell.seconds * 1.01


def fstype(place: Path) -> str:
    done = subprocess.run(["stat", "-f", "-c", "%T", place], capture_output=True, text=True)
    return done.stdout.strip()


def test_writes_stay_in_the_file_and_reads_change_nothing(tmp_path: Path) -> None:
    with scratch_file(tmp_path, 1 * MIB, 10) as scratch:
        laid = os.pread(scratch.fd, MIB, 0)
        run([Point("read", "random", 2, 4096), Point("read", "sequential", 2, 4096)], scratch, 0.05)
        assert os.pread(scratch.fd, 2 * MIB, 0) == laid
        run([Point("write", "random", 2, 4096), Point("write", "sequential", 16, 131072)], scratch, 0.05)
        after = os.pread(scratch.fd, 2 * MIB, 0)
        assert len(after) == MIB
        assert after != laid


def test_sequential_threads_have_a_part_of_the_file_each() -> None:
    scratch = Scratch(9, 8 * MIB, direct=True)
    text = fio.job_file([Point("read", "sequential", 4, 131072)], scratch, 1)
    assert f"size={2 * MIB}\noffset_increment={2 * MIB}" in text
    small = fio.job_file([Point("read", "sequential", 64, MIB)], scratch, 1)
    assert f"size={MIB}\noffset_increment=0" in small


def test_in_the_page_cache_no_thread_reads_what_another_has() -> None:
    scratch = Scratch(9, 8 * MIB, direct=False)
    text = fio.job_file([Point("read", "random", 4, 4096)], scratch, 1)
    assert f"size={2 * MIB}\noffset_increment={2 * MIB}" in text
    assert "norandommap" not in text
    assert "invalidate=1" in text


def test_a_failure_is_one_line(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(FioError, match=r"^fio (ended with exit status 1|failed).*\S$"):
            run([Point("read", "random", 1, 4096)], Scratch(fd, MIB, direct=True), 0.1)
    finally:
        os.close(fd)


def path_with(tmp_path: Path, script: str | None) -> str:
    """A PATH on which `fio` is this script, or nothing."""
    place = tmp_path / "bin"
    place.mkdir()
    if script is not None:
        (place / "fio").write_text(f"#!/bin/sh\n{script}\n")
        (place / "fio").chmod(0o755)
    return str(place)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "fio is not installed; it is in the package fio (apt-get install fio)"),
        ("echo fio-3.12", "fio 3.12 is too old, 3.25 or newer is needed (package fio)"),
        ("echo nonsense", "fio --version says 'nonsense'; reinstall the package fio"),
    ],
)
def test_an_unfit_fio(script: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", path_with(tmp_path, script))
    with pytest.raises(FioError) as caught:
        fio.version()
    assert str(caught.value) == said


def test_the_installed_fio() -> None:
    assert fio.version().startswith("3.")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("cat >/dev/null; kill -9 $$", "fio was killed by signal 9"),
        ("cat >/dev/null; echo; echo fio: broken >&2; exit 3", "fio ended with exit status 3: fio: broken"),
        ("cat >/dev/null; exit 3", "fio ended with exit status 3: without a word"),
        ("exit 0", "fio's output is not understood"),
    ],
)
def test_a_run_that_goes_wrong(script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", path_with(tmp_path, script) + ":/usr/bin:/bin")
    with scratch_file(tmp_path, MIB, 10) as scratch, pytest.raises(FioError) as caught:
        run(POINTS, scratch, 0.1)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


CHILD = """
import sys
from pathlib import Path
from keigo.devices.fio import Point, run
from keigo.devices.scratch import scratch_file
with scratch_file(Path(sys.argv[1]), 1 << 20, 10) as scratch:
    run([Point("read", "random", 1, 4096)], scratch, 300, lambda: print(flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_fio_ends_with_who_started_it(number: signal.Signals, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            below = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
            (runner,) = [int(pid) for pid in below]
            assert Path(f"/proc/{runner}/comm").read_text() == "fio\n"
            watch = os.pidfd_open(runner)
        finally:
            child.send_signal(number)
    try:
        import select

        assert select.select([watch], [], [], 30)[0], "fio is still running"
    finally:
        os.close(watch)
    assert os.listdir(tmp_path) == []


# --- what fio says, or something else does ---


def side(requests: int = 10, mean: float = 5.0) -> dict[str, Any]:
    return {
        "total_ios": requests,
        "runtime": 100,
        "lat_ns": {"mean": mean},
        "clat_ns": {"mean": mean, "percentile": {"50.000000": 4, "99.000000": 9}},
    }


def output(points: list[Point]) -> dict[str, Any]:
    jobs = []
    for number, point in enumerate(points):
        names = ["read", "write"] if point.beside else [point.direction]
        jobs += [
            {"jobname": f"{number}:{name}", "error": 0, "read": side(), "write": side(7), "extra": [1]}
            for name in names
        ]
    return {"fio version": "fio-3.33", "jobs": jobs}


def test_a_complete_account() -> None:
    cells = parse(b"fio: a warning\n" + json.dumps(output(POINTS)).encode(), POINTS)
    assert shapes(cells) == SHAPES
    assert [cell.requests for cell in cells] == [10, 7, 10, 7, 10, 7]
    assert cells[0].seconds == 0.1
    assert (cells[0].mean_us, cells[0].p50_us, cells[0].p99_us) == (0.005, 0.004, 0.009)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"error": 5}, "Input/output error"),
        ({"read": side(0)}, "no finished request"),
        ({"read": side(mean=0)}, "no finished request"),
        ({"read": {}}, "no finished request"),
        ({"read": {**side(), "clat_ns": {"mean": 5.0}}}, "no finished request"),
        ({"read": {**side(), "clat_ns": {"percentile": {"50.000000": 9, "99.000000": 4}}}}, "no finished request"),
        ({"jobname": "other"}, "has nothing of random read of 4096 bytes at k = 1"),
        ({"read": {"total_ios": "many"}}, "not understood"),
        ({"read": None}, "not understood"),
    ],
)
def test_an_incomplete_account(change: dict[str, Any], said: str) -> None:
    told = output(POINTS)
    told["jobs"][0].update(change)
    with pytest.raises(FioError, match=said):
        parse(json.dumps(told).encode(), POINTS)


def parsed_or_refused(raw: bytes) -> None:
    try:
        cells = parse(raw, POINTS)
    except FioError as error:
        assert "\n" not in str(error)
        return
    assert shapes(cells) == SHAPES
    assert all(cell.bandwidth > 0 and cell.mean_us > 0 for cell in cells)


@given(st.binary(max_size=200))
def test_any_bytes(raw: bytes) -> None:
    parsed_or_refused(raw)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
def test_an_account_with_anything_in_place_of_a_part(data: st.DataObject) -> None:
    told: Any = output(POINTS)
    place = told
    while True:
        keys = range(len(place)) if isinstance(place, list) else sorted(place)
        key = data.draw(st.sampled_from(list(keys)))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    if data.draw(st.booleans()):
        place[key] = data.draw(ANY_JSON)
    else:
        del place[key]
    parsed_or_refused(json.dumps(told).encode("utf-8", "surrogatepass"))


@given(st.integers(min_value=0, max_value=4000))
def test_an_account_that_ends_early(length: int) -> None:
    parsed_or_refused(json.dumps(output(POINTS)).encode()[:length])
