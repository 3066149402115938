"""When a keeper goes on and when it gives up, with daemons that do nothing but end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from keigo import keeper
from keigo.keeper import Keeper

DAEMON = """
import os, sys
from keigo.keeper import Link
link = Link(int(sys.argv[sys.argv.index("--keeper-fd") + 1]))
if "--kept" not in sys.argv:
    link.keep({"device": os.open("/dev/null", os.O_RDONLY)})
if %(serves)r:
    link.serving()
left = int(open(%(count)r).read())
open(%(count)r, "w").write(str(left - 1))
if left == 1:
    sys.exit(0)
if %(status)d < 0:
    os.kill(os.getpid(), -%(status)d)
sys.exit(%(status)d)
"""

ENDING = """
import os, signal, sys, time
from keigo.keeper import Link
link = Link(int(sys.argv[sys.argv.index("--keeper-fd") + 1]))
if "--kept" not in sys.argv:
    link.keep({"device": os.open("/dev/null", os.O_RDONLY)})
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(0.2)  # a signal that comes now ends it
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
link.serving()
time.sleep(3)
sys.exit(3)
"""


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """A keeper takes the signals of its process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_between_two_daemons_is_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen
    started: list[str] = []

    def starting(command: list[str], **how: Any) -> subprocess.Popen[bytes]:
        if len(started) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        started.append(command[-1])
        return start([sys.executable, "-c", ENDING, *command[3:]], **how)

    monkeypatch.setattr("keigo.keeper.subprocess.Popen", starting)
    monkeypatch.setattr(keeper, "_WAITS", (0.0,) * 10)
    assert Keeper(["mount"]).run() == 0
    assert len(started) == 2


@pytest.mark.parametrize(
    ("serves", "status", "runs"),
    [(False, 1, 11), (True, 1, 11), (True, -11, 11), (True, -9, 30), (True, 75, 30), (False, -9, 11)],
)
def test_so_many_daemons_are_started(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, serves: bool, status: int, runs: int
) -> None:
    count = tmp_path / "count"
    count.write_text("30")
    script = DAEMON % {"serves": serves, "status": status, "count": str(count)}
    start = subprocess.Popen

    def started(command: list[str], **how: Any) -> subprocess.Popen[bytes]:
        return start([sys.executable, "-c", script, *command[3:]], **how)

    monkeypatch.setattr("keigo.keeper.subprocess.Popen", started)
    monkeypatch.setattr(keeper, "_WAITS", (0.0,) * 10)
    ended = Keeper(["mount"]).run()
    assert 30 - int(count.read_text()) == runs
    assert ended == (0 if runs == 30 else 1)
