"""fio against a device, beside what its parameters say: does the emulation hold on this machine, as loaded as it is?"""

from __future__ import annotations

import mmap
import os
import subprocess
import time
from pathlib import Path
from typing import Final

import msgspec

from keigo import mounts
from keigo.errors import KeigoError
from testbed import server, stack
from testbed.parameters import Direction
from testbed.state import Member

_FILE_BYTES: Final = 64 << 20
_POINTS: Final = (*((k, 4096) for k in (1, 2, 4, 8, 16, 32, 64)), (1, 1 << 16), (1, 1 << 20), (4, 1 << 20))
"""Threads, and bytes of a request."""


class CheckError(KeigoError):
    """fio is missing or failed."""


class _Percentiles(msgspec.Struct):
    p50: float = msgspec.field(name="50.000000")
    p99: float = msgspec.field(name="99.000000")


class _Times(msgspec.Struct):
    mean: float
    percentile: _Percentiles


class _Result(msgspec.Struct):
    """One direction of a job in fio's JSON; times in nanoseconds."""

    iops: float
    clat_ns: _Times


class _Output(msgspec.Struct):
    jobs: list[dict[str, object]]


class Point(msgspec.Struct, frozen=True):
    """One measurement: `k` threads with one random request each under way."""

    direction: Direction
    k: int
    block_bytes: int
    rate: float
    """Requests per second."""
    mean_us: float
    p50_us: float
    p99_us: float
    expected_us: float
    cpu: float
    """Share of one CPU that the device's server used."""


def measure(directory: Path, member: Member, seconds: float) -> list[Point]:
    """Measure a device of a testbed, at each point for some seconds. Raises CheckError, KeigoError."""
    where = stack.places(Path(mounts.real_path(directory)), member.name)
    path = where.mount / ".check"
    process = server.find(where.image)
    if process is None:
        raise CheckError(f"{member.name}: its server is gone: scripts/testbed down {directory}")
    found = []
    size = min(_FILE_BYTES, member.device.size // 4 // stack.REQUEST_BYTES * stack.REQUEST_BYTES)
    try:
        _lay_out(path, size)
        for direction in ("read", "write"):
            for k, block_bytes in _POINTS:
                before = sum(process.cpu_times()[:2])
                start = time.monotonic()
                result = _fio(path, size, direction, k, block_bytes, seconds)
                cpu = (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - start)
                found.append(
                    Point(
                        direction,
                        k,
                        block_bytes,
                        result.iops,
                        result.clat_ns.mean / 1e3,
                        result.clat_ns.percentile.p50 / 1e3,
                        result.clat_ns.percentile.p99 / 1e3,
                        member.device.expected_us(direction, k, block_bytes),
                        cpu,
                    )
                )
    finally:
        path.unlink(missing_ok=True)
    return found


def _lay_out(path: Path, size: int) -> None:
    """Write the file past the page cache: write-back must not go on beside the first measurement."""
    block = mmap.mmap(-1, stack.REQUEST_BYTES)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT, 0o600)
    try:
        for offset in range(0, size, stack.REQUEST_BYTES):
            os.pwrite(fd, block, offset)
        os.fsync(fd)
    finally:
        os.close(fd)


def _fio(path: Path, size: int, direction: Direction, k: int, block_bytes: int, seconds: float) -> _Result:
    command = [
        "fio",
        "--name=check",
        f"--filename={path}",
        f"--size={size}",
        f"--rw=rand{direction}",
        f"--bs={block_bytes}",
        f"--numjobs={k}",
        f"--runtime={seconds}",
        *("--ioengine=psync", "--thread", "--direct=1", "--time_based", "--group_reporting", "--output-format=json"),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CheckError("fio is missing: run scripts/setup bench") from error
    if done.returncode != 0:
        raise CheckError(f"fio: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    try:
        # fio prints its warnings before the JSON; of the direction that did nothing it gives no percentiles.
        jobs = msgspec.json.decode(done.stdout[done.stdout.index("{") :], type=_Output).jobs
        return msgspec.convert(jobs[0][direction], _Result)
    except (ValueError, LookupError, msgspec.MsgspecError) as error:
        raise CheckError(f"fio: its output is not understood: {error}") from error
