"""fio: the job file of a few cells, one run of it, and what its JSON says.

k threads with one synchronous request each (psync) is what an LSM's foreground and compaction threads do, and works
alike on every file system; one thread with a deep queue does not. Cells run one after another in one fio process
(`stonewall`), for a start costs 0.3 s and a further cell 0.2 s. Only the file that is handed over is touched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from keigo.devices.profile import Cell, Direction, Pattern, ProfileError
from keigo.devices.scratch import Scratch

START_SECONDS: Final = 0.3
CELL_SECONDS: Final = 0.22
"""What fio adds to the running time of each cell: it looks every 100 ms whether its threads have ended."""
TICK: Final = 0.2
"""Seconds between two calls of `told` while fio runs."""

_OLDEST: Final = (3, 25)  # Debian 11; older ones have no sync=dsync
_OPPOSITE: Final[dict[Direction, Direction]] = {"read": "write", "write": "read"}


class FioError(ProfileError):
    """fio is missing, too old, or failed; one line."""


@dataclass(frozen=True, slots=True)
class Point:
    """A cell to be measured: k threads, and `beside` more that do the same in the other direction."""

    direction: Direction
    pattern: Pattern
    k: int
    block_bytes: int
    beside: int = 0


class _Latency(msgspec.Struct):
    mean: float = 0.0
    percentile: dict[str, float] = {}


class _Side(msgspec.Struct):
    total_ios: int = 0
    runtime: int = 0
    """Milliseconds."""
    lat_ns: _Latency = msgspec.field(default_factory=_Latency)
    clat_ns: _Latency = msgspec.field(default_factory=_Latency)


class _Job(msgspec.Struct):
    jobname: str
    read: _Side
    write: _Side
    error: int = 0


class _Output(msgspec.Struct):
    jobs: list[_Job]


def version() -> str:
    """Version of the installed fio, "3.33". Raises FioError where it is missing or too old."""
    try:
        done = subprocess.run(["fio", "--version"], capture_output=True, text=True, check=False)
    except OSError:
        raise FioError("fio is not installed; it is in the package fio (apt-get install fio)") from None
    match = re.search(r"(\d+)\.(\d+)", done.stdout)
    if match is None:
        raise FioError(f"fio --version says {done.stdout.strip()[:60]!r}; reinstall the package fio")
    if (int(match[1]), int(match[2])) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise FioError(f"fio {match[0]} is too old, {oldest} or newer is needed (package fio)")
    return match[0]


def planned_seconds(points: Sequence[Point], runtime: float) -> float:
    """How long a run of these takes, as long as no request takes longer than `runtime`."""
    return START_SECONDS + len(points) * (runtime + CELL_SECONDS)


def job_file(points: Sequence[Point], scratch: Scratch, runtime: float) -> str:
    """The text for fio. `runtime` in seconds, for each point."""
    lines = [
        "[global]",
        "ioengine=psync",
        "thread",
        f"filename={scratch.path}",
        "allow_file_create=0",
        f"runtime={round(runtime * 1000)}ms",
        "time_based",
        "group_reporting",
        "randrepeat=0",  # or each cell would visit the blocks of the one before, which a cache may still hold
    ]
    # Without O_DIRECT: drop what is cached before each cell, and have each write reach the device before it returns.
    lines += ["direct=1", "norandommap"] if scratch.direct else ["direct=0", "invalidate=1", "sync=dsync"]
    for number, point in enumerate(points):
        lines += [f"[{number}:{point.direction}]", "stonewall", *_threads(point, point.direction, point.k, scratch)]
        if point.beside:
            other = _OPPOSITE[point.direction]
            lines += [f"[{number}:{other}]", "new_group", *_threads(point, other, point.beside, scratch)]
    return "\n".join(lines) + "\n"


def _threads(point: Point, direction: Direction, k: int, scratch: Scratch) -> list[str]:
    lines = [f"numjobs={k}", f"bs={point.block_bytes}"]
    if point.pattern == "random":
        lines.append(f"rw=rand{direction}")
        if scratch.direct:
            return [*lines, f"size={scratch.size}"]
    else:
        lines.append(f"rw={direction}")
    # Sequential: each thread has a file of its own, so to speak. Random in the page cache: a block that another
    # thread has read would not come from the device.
    region = max(point.block_bytes, scratch.size // k // point.block_bytes * point.block_bytes)
    increment = region if region * k <= scratch.size else 0
    return [*lines, f"size={region}", f"offset_increment={increment}"]


def parse(raw: bytes, points: Sequence[Point]) -> list[Cell]:
    """The cells that fio's JSON tells of, in the order of `points`; a point with some beside it gives two.

    Raises FioError for anything that is not a complete account of these points.
    """
    # Warnings may precede the JSON.
    start = raw.find(b"{")
    try:
        output = msgspec.json.decode(raw[max(start, 0) :], type=_Output)
    except msgspec.MsgspecError as error:
        raise FioError(f"fio's output is not understood: {error}") from error
    found = {job.jobname: job for job in output.jobs}
    cells = []
    for number, point in enumerate(points):
        cells.append(_cell(found, number, point, point.direction, point.k, point.beside))
        if point.beside:
            cells.append(_cell(found, number, point, _OPPOSITE[point.direction], point.beside, point.k))
    return cells


def _cell(found: dict[str, _Job], number: int, point: Point, direction: Direction, k: int, beside: int) -> Cell:
    job = found.get(f"{number}:{direction}")
    what = f"{point.pattern} {direction} of {point.block_bytes} bytes at k = {k}"
    if job is None:
        raise FioError(f"fio's output has nothing of {what}")
    if job.error:
        raise FioError(f"fio failed at {what}: {os.strerror(job.error)}")
    side = job.read if direction == "read" else job.write
    # Percentiles are of "clat"; a synchronous request has no other part, and `lat` has no percentiles.
    p50, p99 = (side.clat_ns.percentile.get(f"{share}.000000", 0.0) for share in (50, 99))
    if not (side.total_ios > 0 and side.runtime > 0 and side.lat_ns.mean > 0 and p99 >= p50 > 0):
        raise FioError(f"fio's output has no finished request of {what}")
    return Cell(
        direction=direction,
        pattern=point.pattern,
        k=k,
        block_bytes=point.block_bytes,
        requests=side.total_ios,
        seconds=side.runtime / 1000,
        mean_us=side.lat_ns.mean / 1000,
        p50_us=p50 / 1000,
        p99_us=p99 / 1000,
        beside=beside,
    )


def run(
    points: Sequence[Point], scratch: Scratch, runtime: float, told: Callable[[], None] = lambda: None
) -> list[Cell]:
    """Measure points, `runtime` seconds each; `told` is called every TICK while fio runs. Raises FioError.

    Whatever ends this call, fio has ended before it returns.
    """
    # Without us nobody wants the figures: a killed parent takes fio along.
    leash = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    command = [*leash, "fio", "--output-format=json", "--eta=never", "-"]
    try:
        fio = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(scratch.fd,),
            cwd="/",
        )
    except OSError as error:
        raise FioError(f"fio cannot be started: {error.strerror}") from error
    with fio:
        try:
            out, err = _followed(fio, job_file(points, scratch, runtime).encode(), told)
        except BaseException:
            fio.kill()
            fio.wait()  # leaving `with` by KeyboardInterrupt does not
            raise
    if fio.returncode != 0:
        raise FioError(_why(fio.returncode, out, err))
    return parse(out, points)


def _followed(fio: subprocess.Popen[bytes], jobs: bytes, told: Callable[[], None]) -> tuple[bytes, bytes]:
    given: bytes | None = jobs
    while True:
        try:
            return fio.communicate(given, timeout=TICK)
        except subprocess.TimeoutExpired:
            given = None
            told()


def _why(code: int, out: bytes, err: bytes) -> str:
    """One line on a run that failed: fio's own last words."""
    if code < 0:
        return f"fio was killed by signal {-code}"
    text = (err or out.partition(b"{")[0]).decode(errors="replace").strip()
    said = text.splitlines()[-1] if text else "without a word"
    return f"fio ended with exit status {code}: {said[:200]}"
