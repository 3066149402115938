"""A program whose engine waits for ever in a call that holds the GIL is ended, and nobody else is."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.workloads.engine_support import ROOT
from workloads.runner.stuck import Signs, is_at_work

SECONDS = 2
# Called by PyDLL, a function of C keeps the GIL.
WAITS = "ctypes.PyDLL(None).pause()"


def run(work: str, *places: str | Path) -> subprocess.CompletedProcess[str]:
    program = f"""
import ctypes, os, re, signal, sys, time
from pathlib import Path
from workloads.runner.stuck import ended_when_stuck
with ended_when_stuck("engine", [Path(place) for place in sys.argv[1:]], {SECONDS}):
    {work}
print("end")
"""
    command = [sys.executable, "-c", program, *map(str, places)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, start_new_session=True)


def test_a_call_that_waits_for_ever(tmp_path: Path) -> None:
    done = run(WAITS, tmp_path, tmp_path / "absent")
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: engine: stuck in a call, which did nothing for {SECONDS} s: ended. {tmp_path} has ")
    assert f"; {tmp_path}/absent: No such file or directory. " in line


def test_ctrl_c_does_not_end_the_watch(tmp_path: Path) -> None:
    """It comes to all of the program's process group; the program itself cannot obey."""
    work = f"signal.signal(signal.SIGINT, lambda *_: None); os.killpg(0, signal.SIGINT); {WAITS}"
    assert run(work, tmp_path).returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "work",
    [
        "pass",
        f"time.sleep({2 * SECONDS})",  # without the GIL: what waits so can be interrupted
        r're.match(r"(a+)+$", "a" * 26 + "b")',  # with it, for seconds, but at work
    ],
)
def test_what_is_not_stuck_is_left_alone(work: str, tmp_path: Path) -> None:
    done = run(work, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_signs_of_life() -> None:
    before = Signs(cpu=10.0, moved=5 << 20, stopped=False)
    assert not is_at_work(before, before)
    assert not is_at_work(before, replace(before, cpu=10.05, moved=before.moved + 91_000))
    assert is_at_work(before, replace(before, cpu=11.0))
    assert is_at_work(before, replace(before, moved=6 << 20))
    assert is_at_work(before, replace(before, stopped=True))


def test_a_benchmark_on_a_full_device_says_so(tiny: Path) -> None:
    """Most times RocksDB is waiting in a write when the flush fails, and then for ever."""
    program = """
import workloads.runner.stuck as stuck
from keigo.cli import main
stuck.STUCK_SECONDS = 2
main()
"""
    options = ("--workload", "a", "--value-size", "300KiB", "--write-buffer", "256KiB", "--no-wal")
    command = [sys.executable, "-c", program, "bench", "ycsb", *options, "--compression", "none", str(tiny / "db")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    line = done.stderr.splitlines()[-1]
    if done.returncode == 1:
        assert line.startswith(f"Error: rocksdb {tiny}/db: IO error: No space left on device")
    else:
        assert done.returncode == -signal.SIGKILL
        assert line.startswith(f"Error: rocksdb {tiny}/db: stuck in a call")
