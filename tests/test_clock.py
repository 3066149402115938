"""The clock that never goes back."""

from __future__ import annotations

import time

import pytest

from keigo import clock


def test_it_is_the_wall_clock() -> None:
    assert abs(clock.now() - time.time()) < 60


def test_setting_the_wall_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = clock.now()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert before <= clock.now() < before + 60
