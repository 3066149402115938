"""Log lines of decisions."""

from __future__ import annotations

import json
import re

from hypothesis import given
from hypothesis import strategies as st

from keigo.decisions import line
from tests.conftest import MakeWorld


def parsed(text: str) -> dict[str, str]:
    """Keys and values of a line."""
    found = re.findall(r' (\w+)=("(?:[^"\\]|\\.)*"|\S+)', text)
    return {key: json.loads(value) if value.startswith('"') else value for key, value in found}


@given(st.dictionaries(st.sampled_from(["path", "tier", "reason"]), st.text()))
def test_every_value_can_be_read_back(facts: dict[str, str]) -> None:
    told = line("create", dict(facts))
    assert told.isprintable() or not told.isascii()
    assert "\n" not in told
    assert parsed(told) == facts


def test_what_is_not_known_is_left_out() -> None:
    assert line("move", {"a": None, "b": 1.23456789, "c": 7}) == "decided move b=1.23457 c=7"


def test_a_mount_with_debug_logs_them(make_world: MakeWorld) -> None:
    world = make_world()
    world.mount("--debug")
    (world.directory / "000001.log").write_bytes(b"x")
    (world.directory / "000002.sst").write_bytes(b"x" * 1000)
    world.wait_closed()
    world.keigo("migrate", world.directory, "000002.sst", "mid")
    lines = [
        parsed(text) | {"what": text.split("decided ")[1].split()[0]}
        for text in world.log().splitlines()
        if "decided" in text
    ]
    created = {found["path"]: found for found in lines if found["what"] == "create"}
    assert created["000001.log"]["tier"] == world.tier_of("000001.log") == "fast"
    assert created["000001.log"]["role"] == "wal"
    (moved,) = [found for found in lines if found["what"] == "move"]
    assert (moved["path"], moved["target"], moved["reason"]) == ("000002.sst", "mid", "moved to mid by command")
