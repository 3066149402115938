"""When a keeper goes on and when it gives up, with daemons that do nothing but end."""

from __future__ import annotations

import subprocess
import sys
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
