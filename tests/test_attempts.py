"""Work that is tried again and again."""

from __future__ import annotations

import logging

import pytest

from keigo.attempts import Attempts


def test_a_failure_is_told_once_until_it_changes_or_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    attempts = Attempts()
    errors: list[Exception | None] = [OSError(5, "a"), OSError(5, "a"), OSError(28, "b"), None, None, OSError(5, "a")]

    def work() -> None:
        error = errors.pop(0)
        if error is not None:
            raise error

    assert [attempts.attempt("cannot flush", work) for _ in range(6)] == [False, False, False, True, True, False]
    assert [record.getMessage() for record in caplog.records] == [
        "cannot flush",
        "cannot flush",
        "cannot flush: not any more",
        "cannot flush",
    ]
    assert caplog.records[0].exc_info is not None


def test_one_thing_s_failure_is_not_another_s(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    attempts = Attempts()
    for what in ("one", "two", "one"):
        assert not attempts.attempt(what, lambda: 1 // 0)
    assert [record.getMessage() for record in caplog.records] == ["one", "two"]
