"""The control socket: whatever comes over it, the daemon answers in one line and goes on."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keigo import control
from keigo.control import ControlError, ControlServer, ask, socket_path
from tests.conftest import World

OPERATIONS = ["status", "ls", "lsm", "explain", "pin", "unpin", "migrate", "cache", "nonsense"]  # but umount and drain
VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.lists(st.text(max_size=3), max_size=3)
KEYS = st.sampled_from(["name", "pattern", "tier", "what", "op"]) | st.text(max_size=5)
REQUESTS = st.builds(lambda op, rest: json.dumps(rest | {"op": op}).encode(), st.sampled_from(OPERATIONS),
                     st.dictionaries(KEYS, VALUES, max_size=4))  # fmt: skip


def said(volume: str, line: bytes) -> list[dict[str, Any]]:
    """What the daemon answers to a line, up to the end of the connection."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(socket_path(volume)))
        client.sendall(line + b"\n")
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as answers:
            return [json.loads(answer) for answer in answers]


@pytest.mark.parametrize("driver", ["kernel"])
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(line=REQUESTS | st.binary(min_size=1, max_size=300).filter(lambda raw: b"\n" not in raw))
def test_any_request_is_answered_in_one_line(mounted: World, line: bytes) -> None:
    *_, last = said(mounted.volume, line)
    assert len(last) == 1
    if "error" in last:
        assert "\n" not in last["error"]
        assert "the daemon failed" not in last["error"], last
    else:
        assert "result" in last
    assert ask(mounted.volume, "status")["volume"] == mounted.volume


@pytest.mark.parametrize("driver", ["kernel"])
def test_one_who_says_nothing_does_not_keep_the_daemon(mounted: World) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(socket_path(mounted.volume)))
        client.sendall(b"{")
        mounted.umount()
        mounted.wait_dead()


@pytest.mark.parametrize("driver", ["kernel"])
def test_the_socket_is_closed_to_others(mounted: World) -> None:
    path = socket_path(mounted.volume)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o077 == 0


def test_a_directory_that_another_could_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "keigo-7" / "keigo"
    monkeypatch.setattr(control, "runtime_dir", lambda: place)
    for wrong in ("mode", "mode above", "owner"):
        place.mkdir(parents=True)
        if wrong == "owner":
            os.chown(place, 4711, 4711)
        else:
            (place if wrong == "mode" else place.parent).chmod(0o777)
        with pytest.raises(ControlError, match="only this user can write to"):
            ControlServer("v")
        place.rmdir()
        place.parent.rmdir()
    (tmp_path / "elsewhere").mkdir()
    place.parent.mkdir()
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ControlError, match="only this user can write to"):
        ControlServer("v")
