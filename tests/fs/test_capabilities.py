"""A daemon keeps the rights of root that it uses, and no others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from keigo.capabilities import MASK
from tests.conftest import World


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give up")
def test_no_thread_has_others(mounted: World) -> None:
    (mounted.directory / "000001.sst").write_bytes(b"x")
    pid = mounted.status()["pid"]
    before = rights(Path("/proc/self/status"))
    assert before["CapEff"] & ~MASK, "nothing could be given up"
    looked_at = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            found = rights(thread / "status")
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
        looked_at += 1
        assert {name: found[name] & ~MASK for name in found} == dict.fromkeys(found, 0)
        assert found["CapEff"] == before["CapEff"] & MASK
    assert looked_at > 3


def rights(status: Path) -> dict[str, int]:
    lines = (line.split(":") for line in status.read_text().splitlines() if line.startswith("Cap"))
    return {name: int(value, 16) for name, value in lines if name in ("CapEff", "CapPrm", "CapInh", "CapBnd")}
