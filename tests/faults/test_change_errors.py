"""`keigo tier add` and `remove` where a system call fails on the way: nothing has changed then, and all goes on."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest

from fusefs.attributes import ROOT_ID, Caller
from fusefs.namespace import Namespace
from keigo import config
from keigo.errors import KeigoError
from keigo.policies import make_policy
from keigo.serving import changes
from keigo.serving.changes import Changes
from keigo.tiers.fds import renameat2
from keigo.tiers.mover import Mover
from keigo.tiers.opening import members_of, open_volume
from tests.conftest import MakeWorld, World

ME = Caller(0, 0, 0)
LEVELS = "{slow: [wal, 0, 1, 2, 3, 4, 5, 6]}"
CALLS = ("open", "fsync", "rename", "unlink", "rmdir", "mkdir", "write", "fchown", "fchmod", "utime", "listdir", "link")


@pytest.fixture
def driver() -> str:
    """None is used."""
    return "kernel"


class _EndedError(Exception):
    """Instead of the end of the process."""


class _Keeper:
    """What `Changes` needs of a succession; has what is held."""

    def __init__(self) -> None:
        self.held: str | None = None

    def refuse_unkept(self, _instead: str) -> None:
        return

    def check_next(self) -> None:
        return

    def go_by(self, _text: str) -> None:
        return

    def hold(self, text: str) -> None:
        self.held = text

    def let_go(self) -> None:
        self.held = None


class _Mounted:
    """A volume in this process, with a database, and what changes its tiers."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        loaded = config.load(world.config)
        self.volume, found = open_volume(loaded, world.directory, make_policy(loaded))
        assert not found
        self.namespace = Namespace(self.volume)
        self.mover = Mover(self.volume, None)
        self.keeper = _Keeper()
        self.text = world.config.read_text()
        made = Changes(loaded, world.directory, None, self.volume, self.mover, self.keeper)  # type: ignore[arg-type]
        self.operations = made.operations()

        def end(what: str) -> None:
            self.ended = True
            if what.startswith("a daemon without tier "):
                self.is_without(what.rpartition(" ")[2])
            raise _EndedError

        self.ended = False
        """Whether the process would have ended."""

        monkeypatch.setattr(changes, "end_for_next", end)

    def make_database(self) -> int:
        """A handle of its LOCK."""
        kv = self.namespace.names.mkdir(ROOT_ID, b"kv", 0o755, ME).id
        self.namespace.names.mkdir(kv, b"below", 0o755, ME)
        handles = [self.namespace.files.create(kv, name, 0o644, os.O_RDWR, ME)[1] for name in (b"LOCK", b"CURRENT")]
        self.namespace.files.release(handles[1])
        return handles[0]

    def ends(self, op: str, request: Mapping[str, Any]) -> bool:
        """Whether a request ends the daemon; else it says why not."""
        try:
            self.operations[op](request, lambda _value: None)
        except _EndedError:
            return True
        except (KeigoError, OSError, lmdb.Error):
            return False
        raise AssertionError("it says nothing")

    def is_without(self, name: str) -> None:
        """The next daemon goes on without the tier."""
        assert name not in [tier.name for tier in config.load(self.world.config).tiers]
        assert name not in members_of(self.volume.primary).tiers
        assert os.listdir(self.world.tiers[name]) == [".keigo"]
        assert self.keeper.held == self.text
        assert len(self.volume.guards.guarded) == (len(self.volume.tiers) > 2)
        assert (self.world.directory / "kv" / "LOCK").is_dir() == (len(self.volume.tiers) > 2)

    def is_as_before(self, tiers: list[str]) -> None:
        """Nothing has changed, and all is used."""
        volume = self.volume
        assert self.world.config.read_text() == self.text
        assert self.keeper.held is None
        assert members_of(volume.primary).tiers == tiers
        assert volume.evacuation.leaving is None
        assert not self.mover._paused
        assert len(volume.guards.guarded) == 1
        assert (self.world.directory / "kv" / "LOCK").is_dir()

    def close(self) -> None:
        self.namespace.close()
        self.volume.close()


@contextmanager
def _failing(monkeypatch: pytest.MonkeyPatch, mounted: _Mounted, number: int, code: int) -> Iterator[list[str]]:
    """Of the system calls of this thread the one with that number fails; yields which."""
    failed: list[str] = []
    left = [number]
    me = threading.get_ident()

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != me or mounted.ended:
                return real(*args, **kwargs)
            left[0] -= 1
            if left[0] == 0:
                failed.append(f"{name} {args}")
                if name == "fsync":  # what it is told has failed is there all the same, until the power goes
                    real(*args, **kwargs)
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patched:
        for name in CALLS:
            patched.setattr(os, name, wrap(name, getattr(os, name)))
        patched.setattr("keigo.tiers.guard.renameat2", wrap("renameat2", renameat2))
        yield failed


@pytest.mark.parametrize("names", [("fast", "mid", "slow"), ("fast", "slow")], ids=["three", "two"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_each_system_call_of_a_removal_fails_once(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], code: int
) -> None:
    """Then the tier is used as before, and the command can be given again."""
    asked = "tier-remove", {"name": "fast"}
    for number in range(1, 100):
        mounted = _Mounted(make_world({}, LEVELS, names=names), monkeypatch)
        lock = mounted.make_database()
        assert (mounted.world.tiers["fast"] / "kv" / "LOCK").is_file()
        with _failing(monkeypatch, mounted, number, code) as failed:
            ended = mounted.ends(*asked)
        if not ended:
            assert failed
            mounted.is_as_before(list(names))
            assert mounted.namespace.io.read(lock, 0, 10) == b""
            assert mounted.ends(*asked), f"not again after a failed {failed[0]}"
        assert mounted.namespace.io.read(lock, 0, 10) == b""
        mounted.close()
        if not failed:
            return
    raise AssertionError("it never ends")


def test_each_system_call_of_an_addition_fails_once(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 200):
        mounted = _Mounted(make_world({}, LEVELS, names=("fast", "slow")), monkeypatch)
        asked = "tier-add", {"name": "mid", "path": str(mounted.world.base / "mid"), "before": "slow"}
        mounted.make_database()
        with _failing(monkeypatch, mounted, number, errno.EIO) as failed:
            ended = mounted.ends(*asked)
        if not ended:
            assert failed
            mounted.is_as_before(["fast", "slow"])
            assert mounted.ends(*asked), f"not again after a failed {failed[0]}"
        assert [tier.name for tier in config.load(mounted.world.config).tiers] == ["fast", "mid", "slow"]
        mounted.close()
        if not failed:
            return
    raise AssertionError("it never ends")


ASKED = {
    "remove": ("tier-remove", {"name": "fast"}),
    "add": ("tier-add", {"name": "new", "before": "slow"}),
    "restart": ("restart", {}),
}


@pytest.mark.parametrize("case", ASKED)
def test_a_catalog_that_cannot_be_written_changes_nothing(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str
) -> None:
    """Else the daemon would go on with tiers that its devices.yaml does not have."""
    op, request = ASKED[case]
    (tmp_path / "new").mkdir()
    mounted = _Mounted(make_world({}, LEVELS), monkeypatch)
    mounted.make_database()
    flush = mounted.volume.flush
    for number in range(1, 10):
        left = number

        def fail() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise lmdb.DiskError("no space")
            flush()

        monkeypatch.setattr(mounted.volume, "flush", fail)
        if mounted.ends(op, {**request, "path": str(tmp_path / "new")}):
            assert left > 0, "it was told"
            return
        mounted.is_as_before(["fast", "mid", "slow"])
    raise AssertionError("it never ends")
