"""The catalog against a dictionary, and what becomes of it after a crash."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from keigo.lsm.roles import Role
from keigo.tiers.catalog import FORMAT, Catalog, Entry, FileRecord, State
from keigo.tiers.fds import O_DIR, Fd

NAMES = st.sampled_from([b"a", b"b", b"\xff\x00-is-not-a-name"[:1], b"n" * 255])
DIRECTORIES = st.sampled_from([1, 2, 256, 2**40])


def directory_fd(path: Path) -> Fd:
    return Fd(os.open(path, O_DIR))


class CatalogMachine(RuleBasedStateMachine):
    """Any sequence of changes, flushes and reopenings gives what a dictionary gives."""

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp(prefix="keigo-catalog-"))
        self.state = directory_fd(self.path)
        self.catalog = Catalog.open(self.state)
        self.names: dict[tuple[int, bytes], Entry] = {}
        self.files: dict[int, FileRecord] = {}
        self.ids: set[int] = set()

    @rule(directory=DIRECTORIES, name=NAMES, kind=st.sampled_from(["dir", "file", "special"]))
    def put(self, directory: int, name: bytes, kind: str) -> None:
        new = self.catalog.new_id()
        assert new not in self.ids
        self.ids.add(new)
        entry = Entry(kind, new)  # type: ignore[arg-type]
        self.catalog.put_entry(directory, name, entry)
        self.names[directory, name] = entry
        if kind != "dir":
            record = FileRecord("fast", [(directory, name)], size=new * 3, role=Role.SST, checksum=2**64 - new)
            self.catalog.put_file(new, record)
            self.files[new] = record

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.names)))
        entry = self.names.pop(key)
        self.catalog.drop_entry(*key)
        if entry.id in self.files:
            self.catalog.drop_file(entry.id)
            del self.files[entry.id]

    @rule()
    def flush(self) -> None:
        self.catalog.flush()

    @rule()
    def reopen(self) -> None:
        self.catalog.close()
        self.catalog = Catalog.open(self.state)
        assert self.catalog.was_clean

    @rule()
    def crash_after_flush(self) -> None:
        self.catalog.flush()
        self.catalog.abandon()
        self.catalog = Catalog.open(self.state)
        assert not self.catalog.was_clean
        # An id handed out after the last flush may come again; those in use may not.
        self.ids = {entry.id for entry in self.names.values()}

    @invariant()
    def agrees(self) -> None:
        for key, entry in self.names.items():
            assert self.catalog.entry(*key) == entry
        for directory in {directory for directory, _ in self.names} | {1}:
            listed = self.catalog.names(directory)
            expected = {name: entry for (where, name), entry in self.names.items() if where == directory}
            assert dict(listed) == expected
            assert len(listed) == len(expected)
            assert self.catalog.empty(directory) == (not expected)
        assert dict(self.catalog.files()) == self.files

    def teardown(self) -> None:
        self.catalog.abandon()
        shutil.rmtree(self.path)


TestCatalog = CatalogMachine.TestCase
TestCatalog.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def make(path: Path) -> Catalog:
    catalog = Catalog.open(directory_fd(path))
    catalog.put_entry(1, b"x", Entry("file", catalog.new_id()))
    catalog.flush()
    return catalog


def test_after_a_machine_crash_it_is_discarded(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    with catalog._env.begin(catalog._meta.db, write=True) as txn:
        txn.put(b"state", msgspec.json.encode(State(FORMAT, clean=False, boot="another boot", next_id=9)))
    catalog.abandon()
    assert Catalog.open(directory_fd(tmp_path)).entry(1, b"x") is None


def test_after_a_daemon_crash_it_is_kept(tmp_path: Path) -> None:
    make(tmp_path).abandon()
    assert Catalog.open(directory_fd(tmp_path)).entry(1, b"x") is not None


@pytest.mark.parametrize("garbage", [b"", b"\0" * 8192, os.urandom(8192)], ids=["empty", "zeros", "random"])
def test_a_damaged_one_is_rebuilt(tmp_path: Path, garbage: bytes) -> None:
    make(tmp_path).close()
    (tmp_path / "catalog" / "data.mdb").write_bytes(garbage)
    assert Catalog.open(directory_fd(tmp_path)).entry(1, b"x") is None


def test_closed_it_holds_no_file(tmp_path: Path) -> None:
    """The next mount refuses while any process has a file open below the directory, as this one may still be."""
    for end in (Catalog.close, Catalog.abandon):
        catalog = Catalog.open(directory_fd(tmp_path))
        assert open_below(tmp_path)
        end(catalog)
        assert open_below(tmp_path) == []


def open_below(path: Path) -> list[str]:
    """Files, not directories, that this process has open below `path`."""
    found = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{fd}")
    ]
    return [name for name in found if name.startswith(f"{path}/") and not os.path.isdir(name)]


def test_held_it_commits_nothing(tmp_path: Path) -> None:
    make(tmp_path).close()
    before = (tmp_path / "catalog" / "data.mdb").read_bytes()
    held = Catalog.open(directory_fd(tmp_path), hold=True)
    for number in range(5000):
        held.put_entry(2, b"%d" % number, Entry("file", number))
    assert len(held.names(2)) == 5000
    held.abandon()
    assert (tmp_path / "catalog" / "data.mdb").read_bytes() == before
