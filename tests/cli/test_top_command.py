"""`keigo top`, once and live."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree

from keigo.observe.top import top_view
from tests.conftest import World


def test_once(mounted: World) -> None:
    (mounted.directory / "000001.sst").write_bytes(b"x" * 100_000)
    out = mounted.keigo("top", mounted.directory, "--once").stdout
    assert mounted.volume in out
    for word in ("fast", "mid", "slow", "no writer waits", "migrations: 0 done", "97.7 KiB"):
        assert word in out


def test_drawn(mounted: World) -> None:
    picture = mounted.base / "top.svg"
    mounted.keigo("top", mounted.directory, "--svg", picture)
    said = "".join(ElementTree.parse(picture).getroot().itertext())
    for word in ("fast", "mid", "slow", mounted.volume):
        assert word in said
    assert "url(http" not in picture.read_text(), "whoever looks at it would fetch something"
    refused = mounted.keigo("top", mounted.directory, "--svg", mounted.base / "no" / "top.svg", check=False)
    assert refused.returncode == 1
    assert "No such file" in refused.stderr


def test_live_until_interrupted(mounted: World) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "keigo", "top", str(mounted.directory), "--every", "0.1"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = b""
    try:
        deadline = time.monotonic() + 60
        while shown.count(b"migrations:") < 3:
            assert time.monotonic() < deadline, shown
            if select.select([ours], [], [], 1)[0]:
                shown += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        while process.poll() is None:  # it may have more to say than the terminal holds
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    shown += os.read(ours, 65536)
                except OSError:  # nobody has the other end any more
                    break
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert b"Traceback" not in shown


def test_figures_that_are_not_known() -> None:
    load = dict.fromkeys(f"{way}_{what}" for way in ("read", "write") for what in ("bandwidth", "rate", "k"))
    tier = {"name": "t", "used": 1, "capacity": 2, "load": load, "degraded_for": 7.0, "errors": 3, "last_error": "E"}
    status = {
        "volume": "v", "mount": "/m", "driver": "kernel", "driver_reason": "r", "policy": "cost", "pid": 1,
        "keeper": "there", "placement": {"pressure": {"stalled": True, "level0": 1.0}}, "tiers": [tier], "cache": {},
        "migrations": {"done": 0, "bytes": 0, "waiting": 0, "failed": 0, "current": None, "paused": None},
    }  # fmt: skip
    from rich.console import Console

    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(top_view(status, {"tiers": ["t"], "databases": []}))
    text = console.export_text()
    assert "writers wait" in text
    assert "?" in text
    assert "tier t is degraded for 7 s: 3 error(s), last: E" in text
