"""While a migration lands, whoever would change the file waits; others go on. No mount: threads on a volume."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusefs.attributes import Caller, Changes
from fusefs.namespace import Namespace
from keigo import failpoints
from keigo.config import load
from keigo.policies import make_policy
from keigo.tiers.catalog import ROOT
from keigo.tiers.migration import migrate
from keigo.tiers.opening import open_volume
from keigo.tiers.pace import Pace
from tests.conftest import write_config

DATA = os.urandom(200_000)
ME = Caller(os.geteuid(), os.getegid(), 0)


class Held:
    """A migration of 000001.sst from fast to mid, held right after its copy is in the target's tree."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tiers = {name: base / name for name in ("fast", "mid", "slow")}
        for path in tiers.values():
            path.mkdir()
        self.tiers = tiers
        write_config(base / "devices.yaml", "held", tiers, {})
        config = load(base / "devices.yaml")
        self.volume, _ = open_volume(config, tiers["slow"], make_policy(config))
        self.namespace = Namespace(self.volume)
        self.file = self.make(b"000001.sst")
        self.other = self.make(b"000002.sst")
        self.arrived, self.go = threading.Event(), threading.Event()
        self.error: BaseException | None = None
        monkeypatch.setattr(failpoints, "hit", self._hit)
        self.thread = threading.Thread(target=self._migrate)
        self.thread.start()
        assert self.arrived.wait(30)

    def make(self, name: bytes) -> int:
        found, handle = self.namespace.files.create(ROOT, name, 0o644, os.O_RDWR, ME)
        self.namespace.io.write(handle, 0, DATA)
        self.namespace.files.release(handle)
        return found.id

    def _hit(self, name: str) -> None:
        if name == "migrate.landed":
            self.arrived.set()
            assert self.go.wait(30)

    def _migrate(self) -> None:
        try:
            migrate(self.volume, self.file, self.volume.by_name["mid"], "test", Pace(None))
        except BaseException as error:  # noqa: BLE001  looked at by the test
            self.error = error

    def finish(self) -> None:
        self.go.set()
        self.thread.join(30)
        assert self.error is None

    def where(self, name: str) -> list[str]:
        return [tier for tier, path in self.tiers.items() if (path / name).exists()]


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    made = Held(tmp_path, monkeypatch)
    yield made
    made.go.set()
    made.thread.join(30)
    made.namespace.close()
    made.volume.close()


def unlink(held: Held) -> None:
    held.namespace.names.unlink(ROOT, b"000001.sst")


def rename(held: Held) -> None:
    held.namespace.names.rename(ROOT, b"000001.sst", ROOT, b"000003.sst", 0)


def replace(held: Held) -> None:
    held.namespace.names.rename(ROOT, b"000002.sst", ROOT, b"000001.sst", 0)


def link(held: Held) -> None:
    held.namespace.names.link(held.file, ROOT, b"000003.sst")


Change = Callable[[Held], None]


def write(held: Held) -> None:
    handle = held.namespace.files.open(held.file, os.O_RDWR)
    held.namespace.io.write(handle, 0, b"new")
    held.namespace.files.release(handle)


def truncate(held: Held) -> None:
    held.namespace.nodes.setattr(held.file, Changes(size=3))


def chmod(held: Held) -> None:
    held.namespace.nodes.setattr(held.file, Changes(mode=0o600))


def setxattr(held: Held) -> None:
    held.namespace.nodes.setxattr(held.file, b"user.x", b"y")


@pytest.mark.parametrize("change", [unlink, rename, replace, link, write, truncate, chmod, setxattr])
def test_a_change_waits_and_then_meets_the_new_home(held: Held, change: Change) -> None:
    done = threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            change(held)
        except BaseException as error:  # noqa: BLE001  looked at below
            failed.append(error)
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert not done.wait(0.3), "it did not wait"
    held.finish()
    thread.join(30)
    assert done.is_set()
    assert not failed
    check_after(held, change)


def check_after(held: Held, change: Change) -> None:
    lists: dict[Change, dict[str, list[str]]] = {
        unlink: {"000001.sst": []},
        rename: {"000001.sst": [], "000003.sst": ["mid"]},
        replace: {"000001.sst": ["fast"], "000002.sst": []},
        link: {"000001.sst": ["mid"], "000003.sst": ["mid"]},
    }
    for name, tiers in lists.get(change, {"000001.sst": ["mid"]}).items():
        assert held.where(name) == tiers
    moved = held.tiers["mid"] / "000001.sst"
    if change is write:
        assert moved.read_bytes() == b"new" + DATA[3:]
    elif change is truncate:
        assert moved.read_bytes() == DATA[:3]
    elif change is chmod:
        assert moved.stat().st_mode & 0o777 == 0o600
    elif change is setxattr:
        assert os.getxattr(moved, "user.x") == b"y"


def test_others_go_on(held: Held) -> None:
    """Reads and opens of the file itself, and anything on another file, while it lands."""
    handle = held.namespace.files.open(held.file, os.O_RDONLY)
    assert held.namespace.io.read(handle, 0, len(DATA)) == DATA
    assert held.namespace.names.lookup(ROOT, b"000001.sst").size == len(DATA)
    held.namespace.names.unlink(ROOT, b"000002.sst")
    held.make(b"000004.sst")
    held.finish()
    assert held.where("000001.sst") == ["mid"]
    assert held.namespace.io.read(handle, 0, len(DATA)) == DATA
    held.namespace.files.release(handle)


def test_a_level_learned_meanwhile_stays(held: Held) -> None:
    """The database moves a table to another level while its copy lands: both are remembered."""
    assert held.volume.set_level(held.file, 4, "default")
    held.finish()
    record = held.volume.record(held.file)
    assert (record.home, record.level, record.family) == ("mid", 4, "default")
