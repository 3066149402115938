"""The copy speed limit, with a clock of the test's own."""

from __future__ import annotations

import threading

import pytest

from keigo.tiers import migration


class Clock(threading.Event):
    """Time passes only while somebody waits."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.now += timeout
        return False


def run(monkeypatch: pytest.MonkeyPatch, limit: int | None, chunks: int, size: int) -> float:
    clock = Clock()
    monkeypatch.setattr(migration, "time", clock)
    pace = migration.Pace(limit)
    for _ in range(chunks):
        pace.spend(size, clock)
    return clock.now - 1000.0


@pytest.mark.parametrize("size", [1 << 10, 1 << 20])
def test_bytes_per_second(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    limit = 2 << 20
    total = 64 << 20
    took = run(monkeypatch, limit, total // size, size)
    assert total / (limit * 1.02) - 0.2 <= took <= total / limit + 0.2


def test_no_limit_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, None, 1000, 1 << 20) == 0.0
