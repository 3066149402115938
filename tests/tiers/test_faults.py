"""One call of the system fails in a migration, whichever it is; then life goes on, and at last the daemon dies.

No mount: operations on a volume. After each of them contents and room are right, and whatever copy is in a tree and not
in the volume has an intent that removes it; when the volume is open again, no copy is left.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fusefs.attributes import Caller
from fusefs.namespace import Namespace
from keigo.config import load
from keigo.policies import make_policy
from keigo.tiers.catalog import ROOT
from keigo.tiers.fds import RENAME_EXCHANGE
from keigo.tiers.migration import NotMovableError, migrate
from keigo.tiers.opening import open_volume
from keigo.tiers.pace import Pace
from keigo.tiers.tier import space_of
from keigo.tiers.volume import Volume
from tests.conftest import write_config

ME = Caller(os.geteuid(), os.getegid(), 0)
DATA = os.urandom(9001)
TABLE, LINK = b"d/000001.sst", b"e/000002.sst"
CALLS = ("link", "unlink", "fsync", "rename", "write", "pwritev", "preadv", "posix_fallocate", "open", "dup2", "mkdir")


class Bed:
    """A volume with a file that has a name in each of two directories, on the fast tier."""

    def __init__(self, base: Path) -> None:
        base.mkdir()
        self.tiers = {name: base / name for name in ("fast", "mid", "slow")}
        for path in self.tiers.values():
            path.mkdir()
        self.config = base / "devices.yaml"
        write_config(self.config, "faults", self.tiers, {})
        self.volume: Volume
        self.namespace: Namespace
        self.open()
        for name in (b"d", b"e"):
            self.namespace.names.mkdir(ROOT, name, 0o755, ME)
        self.model: dict[bytes, bytes] = {}
        self.put(TABLE, DATA)
        self.namespace.names.link(self.id(TABLE), *self.at(LINK))
        self.model[LINK] = DATA

    def open(self) -> None:
        config = load(self.config)
        self.volume, _ = open_volume(config, self.tiers["slow"], make_policy(config))
        self.namespace = Namespace(self.volume)

    def at(self, path: bytes) -> tuple[int, bytes]:
        directory, _, name = path.partition(b"/")
        return self.namespace.names.lookup(ROOT, directory).id, name

    def id(self, path: bytes) -> int:
        return self.namespace.names.lookup(*self.at(path)).id

    # --- what goes on ---

    def put(self, path: bytes, data: bytes) -> None:
        _, handle = self.namespace.files.create(*self.at(path), 0o644, os.O_RDWR, ME)
        self.namespace.io.write(handle, 0, data)
        self.namespace.files.release(handle)
        self.model[path] = data

    def overwrite(self) -> None:
        handle = self.namespace.files.open(self.id(TABLE), os.O_RDWR)
        self.namespace.io.write(handle, 3, b"OVER")
        self.namespace.files.release(handle)
        for path in self.model:
            self.model[path] = DATA[:3] + b"OVER" + DATA[7:]

    def migrate(self, tier: str) -> None:
        try:
            migrate(self.volume, self.id(TABLE), self.volume.by_name[tier], "test", Pace(None))
        except NotMovableError:
            assert self.volume.record(self.id(TABLE)).home == tier

    def unlink(self) -> None:
        for path in list(self.model):
            self.namespace.names.unlink(*self.at(path))
            del self.model[path]

    def exchange_directories(self) -> None:
        self.namespace.names.rename(ROOT, b"d", ROOT, b"e", RENAME_EXCHANGE)
        self.model = {(b"e" if path[:1] == b"d" else b"d") + path[1:]: data for path, data in self.model.items()}

    def die(self, *, lose_catalog: bool) -> None:
        """The process ends, and another opens the volume."""
        self.volume.close_tables()
        for tier in self.volume.tiers:
            tier.close()
        if lose_catalog:
            shutil.rmtree(self.tiers["slow"] / ".keigo" / "catalog")
        self.open()

    def close(self) -> None:
        self.namespace.close()
        self.volume.close()

    # --- what is so ---

    def check(self, *, strays: bool) -> None:
        """Names, contents, room; and whether there may be copies, under an intent."""
        for path, data in self.model.items():
            handle = self.namespace.files.open(self.id(path), os.O_RDONLY)
            assert self.namespace.io.read(handle, 0, 1 << 20) == data
            self.namespace.files.release(handle)
        for tier in self.volume.tiers:
            found = [record for _, record in self.volume.catalog.files() if record.home == tier.name]
            paths = {self.volume.path(*link) for record in found for link in record.links}
            here = self.tiers[tier.name]
            trees = {os.fsencode(path.relative_to(here)) for name in "de" for path in (here / name).glob("*")}
            files = [os.stat(os.path.join(os.fsencode(here), self.volume.path(*record.links[0]))) for record in found]
            assert (tier.used, tier.files, tier.promised) == (sum(map(space_of, files)), len(found), 0)
            assert paths <= trees
            intents = self.volume.intents.pending().values()
            known = {step.path for intent in intents for step in intent.steps if step.tier == tier.name}
            assert trees - paths <= (known if strays else set())
        assert sorted(path for _, record in self.volume.catalog.files() for path in self.paths(record.links)) == sorted(
            self.model
        )

    def paths(self, links: list[tuple[int, bytes]]) -> list[bytes]:
        return [self.volume.path(*link) for link in links]


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, call: str, number: int, *, on: bool) -> Iterator[list[int]]:
    """The `number`-th call of os.`call` fails, and with `on` all that follow; yields how many have failed."""
    real: Callable[..., Any] = getattr(os, call)
    calls = 0
    failed: list[int] = []

    def fail(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number or (on and calls > number):
            failed.append(calls)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        yield failed


def nothing(_bed: Bed) -> None:
    pass


def the_same_move(bed: Bed) -> None:
    bed.migrate("mid")


def there_and_back(bed: Bed) -> None:
    bed.migrate("mid")
    bed.migrate("fast")


def another_move(bed: Bed) -> None:
    bed.migrate("slow")


def another_file_of_that_name(bed: Bed) -> None:
    bed.unlink()
    bed.put(TABLE, b"second")


def a_rename_above_and_an_unlink(bed: Bed) -> None:
    bed.exchange_directories()
    bed.unlink()


THEN: tuple[Callable[[Bed], None], ...] = (
    nothing,
    the_same_move,
    there_and_back,
    another_move,
    Bed.overwrite,
    another_file_of_that_name,
    a_rename_above_and_an_unlink,
)


@pytest.mark.parametrize("on", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("call", CALLS)
def test_no_copy_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, on: bool) -> None:
    number = 0
    while True:
        number += 1
        for act in THEN:
            where = tmp_path / f"{number}-{act.__name__}"
            bed = Bed(where)
            try:
                reader = bed.namespace.files.open(bed.id(TABLE), os.O_RDONLY)
                with failing(monkeypatch, call, number, on=on) as failed:
                    try:
                        bed.migrate("mid")
                    except OSError as error:
                        assert error.errno == errno.ENOSPC
                assert bed.namespace.io.read(reader, 0, 1 << 20) == DATA
                bed.namespace.files.release(reader)
                if not failed:
                    assert number > 1, "it is never called"
                    return
                # Where both intents may be the written one, a copy can come back when the daemon dies then.
                if not (on and undecided(bed)):
                    bed.check(strays=True)
                    act(bed)
                    bed.check(strays=True)
                    bed.die(lose_catalog=number % 2 == 0)
                bed.check(strays=False)
            finally:
                bed.close()
                shutil.rmtree(where)


def test_a_create_that_fails_half_way_leaves_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(tmp_path / "bed")
    try:
        with (
            failing(monkeypatch, "fchmod", 1, on=True) as failed,
            pytest.raises(OSError, match=os.strerror(errno.ENOSPC)),
        ):
            bed.put(b"d/000003.sst", b"never")
        assert failed
        bed.check(strays=False)
        bed.put(b"d/000003.sst", DATA)
        bed.check(strays=False)
    finally:
        bed.close()


def undecided(bed: Bed) -> bool:
    """Whether the redo intent is there although the file is where it was; finishes the undo then."""
    home = bed.volume.record(bed.id(TABLE)).home
    found = [step.tier for intent in bed.volume.intents.pending().values() for step in intent.steps]
    if home not in found:
        return False
    bed.migrate("mid")
    return True
