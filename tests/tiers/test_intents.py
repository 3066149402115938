"""Intents: whatever was done before the crash, replaying gives the finished state; foreign objects are not touched."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keigo.tiers.fds import O_DIR, Fd
from keigo.tiers.intents import Ident, Intent, IntentError, IntentLog, Step, carry_out, run


def open_fd(path: Path) -> Fd:
    return Fd(os.open(path, O_DIR))


def ident(path: Path) -> Ident:
    return Ident.of(os.lstat(path))


class Trees:
    """Two tiers: `one` holds a, d/ and x; `two` holds b, d/ and y."""

    def __init__(self, base: Path) -> None:
        self.base = base
        for name in ("one", "two", "state"):
            (base / name).mkdir()
        for tier, names in (("one", "ax"), ("two", "by")):
            (base / tier / "d").mkdir()
            for name in names:
                (base / tier / name).write_text(name)
        self.roots = {tier: open_fd(base / tier) for tier in ("one", "two")}
        self.log = IntentLog(open_fd(base / "state"))

    def intent(self) -> Intent:
        """a replaces b across tiers, d moves on both, x and y change places."""
        return Intent(
            "everything at once",
            [
                Step("one", "rename", b"a", ident(self.base / "one/a"), b"b"),
                Step("two", "unlink", b"b", ident(self.base / "two/b")),
                Step("one", "rename", b"d", ident(self.base / "one/d"), b"e"),
                Step("two", "rename", b"d", ident(self.base / "two/d"), b"e"),
                Step("one", "rename", b"x", ident(self.base / "one/x"), b"y"),
                Step("two", "rename", b"y", ident(self.base / "two/y"), b"x"),
            ],
        )

    def state(self) -> dict[str, str]:
        return {
            str(path.relative_to(self.base)): path.read_text() if path.is_file() else "directory"
            for tier in ("one", "two")
            for path in sorted((self.base / tier).rglob("*"))
        }


DONE = {"one/b": "a", "one/e": "directory", "one/y": "x", "two/e": "directory", "two/x": "y"}


@settings(max_examples=60, deadline=None)
@given(done=st.integers(0, 6), replays=st.integers(1, 3), rerun=st.integers(0, 6))
def test_replay_finishes_from_any_point(done: int, replays: int, rerun: int) -> None:
    base = Path(tempfile.mkdtemp(prefix="keigo-intents-"))
    try:
        trees = Trees(base)
        intent = trees.intent()
        trees.log.write("k", intent)
        for step in intent.steps[:done]:
            run(step, trees.roots)
        for step in intent.steps[: min(done, rerun)]:  # a replay that was itself interrupted
            run(step, trees.roots)
        for number in range(replays):
            assert trees.log.replay(trees.roots) == (["everything at once"] if number == 0 else [])
        assert trees.state() == DONE
        assert trees.log.pending() == {}
    finally:
        shutil.rmtree(base)


def test_carry_out(tmp_path: Path) -> None:
    trees = Trees(tmp_path)
    assert carry_out(trees.log, "k", trees.intent(), trees.roots) is None
    assert trees.state() == DONE
    assert trees.log.pending() == {}


def test_a_step_that_fails_undoes_those_before(tmp_path: Path) -> None:
    trees = Trees(tmp_path)
    before = trees.state()
    intent = trees.intent()
    intent.steps[3] = Step("two", "rename", b"d", ident(tmp_path / "two/d"), b"no/such/directory")
    del intent.steps[1]  # an unlink cannot be undone, and is never before a step that can fail
    with pytest.raises(FileNotFoundError):
        carry_out(trees.log, "k", intent, trees.roots)
    assert trees.state() == before
    assert trees.log.pending() == {}


def test_what_took_the_name_since_is_left_alone(tmp_path: Path) -> None:
    trees = Trees(tmp_path)
    trees.log.write("k", Intent("old", [Step("two", "unlink", b"b", ident(tmp_path / "two/b"))]))
    (tmp_path / "two/b").unlink()
    (tmp_path / "two/b").write_text("new, perhaps with the same inode")
    trees.log.replay(trees.roots)
    assert (tmp_path / "two/b").read_text().startswith("new")


def test_one_that_cannot_be_read_stops_the_mount(tmp_path: Path) -> None:
    trees = Trees(tmp_path)
    (tmp_path / "state/intent/k").write_bytes(b"{")
    with pytest.raises(IntentError, match="intent/k"):
        trees.log.replay(trees.roots)
    assert (tmp_path / "state/intent/k").exists()


def test_one_for_an_absent_tier_stays(tmp_path: Path) -> None:
    trees = Trees(tmp_path)
    trees.log.write("k", trees.intent())
    with pytest.raises(IntentError, match="needs tier two"):
        trees.log.replay({"one": trees.roots["one"]})
    trees.log.replay(trees.roots)
    assert trees.state() == DONE


def test_a_torn_write_is_ignored(tmp_path: Path) -> None:
    trees = Trees(tmp_path)
    (tmp_path / "state/intent/k.tmp").write_bytes(b"{")
    assert trees.log.replay(trees.roots) == []
    assert not (tmp_path / "state/intent/k.tmp").exists()


def test_links_planted_on_a_tier_lead_nowhere(tmp_path: Path) -> None:
    trees = Trees(tmp_path)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "two/b").unlink()
    (tmp_path / "two/b").symlink_to(victim)
    run(Step("two", "unlink", b"b", ident(victim)), trees.roots)
    assert victim.exists()
    (tmp_path / "two/link").symlink_to(tmp_path)
    with pytest.raises(OSError, match="Not a directory|Too many levels"):
        run(Step("two", "unlink", b"link/victim", ident(victim)), trees.roots)
    assert victim.exists()


def failing(monkeypatch: pytest.MonkeyPatch, call: str, *numbers: int) -> None:
    """Calls of os.`call` of these numbers fail, counted from now."""
    real, calls = getattr(os, call), iter(range(1, 1000))

    def fail(*args: Any, **options: Any) -> Any:
        if next(calls) in numbers:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*args, **options)

    monkeypatch.setattr(os, call, fail)


@pytest.mark.parametrize("numbers", [(1,), (2,), (2, 3)], ids=["contents", "name", "name, and its removal"])
def test_what_was_refused_is_not_done_by_the_next_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: tuple[int, ...]
) -> None:
    """The caller was told that nothing has changed: so it must be for ever."""
    trees = Trees(tmp_path)
    with monkeypatch.context() as patch:
        failing(patch, "fsync", *numbers)
        with pytest.raises(OSError, match="Input/output error"):
            carry_out(trees.log, "key", trees.intent(), trees.roots)
    trees.log.finish(trees.roots)
    assert trees.log.pending() == {}
    assert (tmp_path / "one/a").read_text() == "a"


def test_what_could_not_be_removed_is_removed_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees = Trees(tmp_path)
    steps = [
        Step("one", "rename", b"a", ident(tmp_path / "one/a"), b"b"),
        Step("two", "unlink", b"b", ident(tmp_path / "two/b")),
    ]
    with monkeypatch.context() as patch:
        failing(patch, "unlink", 1)
        assert carry_out(trees.log, "key", Intent("a over b", steps), trees.roots) is not None
    assert (tmp_path / "two/b").exists()
    os.rename(tmp_path / "one/b", tmp_path / "one/a")  # somebody has changed his mind
    trees.log.finish(trees.roots)
    assert not (tmp_path / "two/b").exists()
    assert (tmp_path / "one/a").read_text() == "a"
    assert trees.log.pending() == {}


def test_what_was_only_not_durable_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees = Trees(tmp_path)
    with monkeypatch.context() as patch:
        failing(patch, "fsync", 3)  # after two for the intent
        assert carry_out(trees.log, "key", trees.intent(), trees.roots) is not None
    os.rename(tmp_path / "one/b", tmp_path / "one/a")
    trees.log.finish(trees.roots)
    assert (tmp_path / "one/a").read_text() == "a"
    assert trees.log.pending() == {}
