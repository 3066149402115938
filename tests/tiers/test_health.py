"""When a tier is taken for hung, for ill, and for well again."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from keigo.config import TierConfig
from keigo.tiers import health
from keigo.tiers.fds import O_DIR, Fd
from keigo.tiers.health import Health, Stalled, Watch
from keigo.tiers.tier import Tier


@pytest.fixture
def tier(tmp_path: Path) -> Tier:
    made = Tier(0, TierConfig("fast", tmp_path, in_place=False, capacity=None), Fd(os.open(tmp_path, O_DIR)), "fast")
    made.lock()
    return made


def test_a_device_that_ends_requests_does_not_hang_however_many_it_has() -> None:
    stalled = Stalled()
    assert [stalled.seconds(ended, 1, 10.0 * ended) for ended in range(1, 5)] == [0.0] * 4


def test_a_device_without_requests_does_not_hang() -> None:
    stalled = Stalled()
    assert [stalled.seconds(7, 0, now) for now in (0.0, 100.0, 200.0)] == [0.0] * 3
    assert stalled.seconds(7, 1, 205.0) == 5.0, "since it was last seen without one"


def test_a_device_that_ends_none_of_its_requests_hangs() -> None:
    stalled = Stalled()
    assert [stalled.seconds(7, 3, now) for now in (1.0, 5.0, 12.0)] == [0.0, 4.0, 11.0]
    assert stalled.seconds(8, 3, 13.0) == 0.0


def test_an_error_elsewhere_counts_once() -> None:
    found = Health("fast")
    for total in (2, 2, 5, 5):
        found.failed_elsewhere(total)
    assert found.errors == 5
    assert found.is_degraded


def test_an_error_that_says_nothing_of_the_device() -> None:
    found = Health("fast")
    for code in (errno.ENOSPC, errno.EDQUOT, errno.ENOENT, errno.EINVAL, errno.ENFILE):
        found.failed(OSError(code, os.strerror(code)))
    assert not found.is_degraded


def test_what_works_is_believed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    found = Health("fast")
    found.failed(OSError(errno.EIO, "x"))
    for passed, well in ((5.0, False), (4.0, False), (1.0, True)):
        now[0] += passed
        found.works()
        assert found.is_degraded is not well
    found.hangs(10.0)
    now[0] += 9.0
    found.hangs(19.0)
    now[0] += 5.0
    found.works()
    assert found.is_degraded, "it hung five seconds ago"


def test_one_look_at_a_time(tier: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs must not become a thread more every two seconds."""
    looks, go_on = [], threading.Event()

    def hang(of: Tier) -> None:
        looks.append(of)
        go_on.wait()

    monkeypatch.setattr(health, "probe", hang)
    watch = Watch([tier], lambda _index: 0)
    for _ in range(3):
        watch._look_at(tier)
    assert len(watch._looking) == 1
    go_on.set()
    watch._looking["fast"].join()
    assert looks == [tier]
    watch._look_at(tier)
    watch._looking["fast"].join()
    assert looks == [tier, tier]


def test_other_bytes_than_were_written_are_an_error(tier: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    health.probe(tier)
    monkeypatch.setattr(health, "read_file", lambda *_: b"other")
    with pytest.raises(OSError, match="other bytes"):
        health.probe(tier)
