"""A change of names that is asked a second time: what of the first try tells whether it was carried out."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator

import pytest

from fusefs import abi
from fusefs.abi import Op
from fusefs.attributes import ROOT_ID, Caller
from fusefs.connection import Connection
from fusefs.inodes import Inodes
from fusefs.messages import Request
from fusefs.namespace import Namespace
from fusefs.opens import Opens
from fusefs.operations import Operations
from fusefs.read_counts import ReadCounts
from fusefs.resume import before, is_done
from keigo import config
from keigo.policies import make_policy
from keigo.tiers.fds import RENAME_EXCHANGE
from keigo.tiers.opening import open_volume
from tests.conftest import MakeWorld

ME = Caller(0, 0, 0)
Make = Callable[[Namespace], bytes]


@pytest.fixture
def driver() -> str:
    """None is mounted."""
    return "kernel"


@pytest.fixture
def names(make_world: MakeWorld) -> Iterator[Namespace]:
    """With the files `one` and `two`, the directory `dir`, and an attribute of `one`."""
    world = make_world()
    loaded = config.load(world.config)
    volume, _ = open_volume(loaded, world.directory, make_policy(loaded))
    made = Namespace(volume)
    for name in (b"one", b"two"):
        _, handle = made.files.create(ROOT_ID, name, 0o644, os.O_RDWR, ME)
        made.files.release(handle)
    made.names.mkdir(ROOT_ID, b"dir", 0o755, ME)
    made.nodes.setxattr(made.names.lookup(ROOT_ID, b"one").id, b"user.old", b"1", 0)
    yield made
    made.close()
    volume.close()


def of_root(op: Op, body: bytes) -> Make:
    return lambda _names: _request(op, ROOT_ID, body)


def of_one(op: Op, body: bytes) -> Make:
    return lambda names: _request(op, names.names.lookup(ROOT_ID, b"one").id, body)


def _request(op: Op, node: int, body: bytes) -> bytes:
    return abi.IN_HEADER.pack(abi.IN_HEADER.size + len(body), op, 2, node, 0, 0, 0, 0, 0) + body


def _rename(old: bytes, new: bytes, flags: int = 0) -> Make:
    return of_root(Op.RENAME2, abi.RENAME2_IN.pack(ROOT_ID, flags, 0) + old + b"\0" + new + b"\0")


def _link(new: bytes) -> Make:
    def make(names: Namespace) -> bytes:
        return _request(Op.LINK, ROOT_ID, abi.LINK_IN.pack(names.names.lookup(ROOT_ID, b"two").id) + new + b"\0")

    return make


def _set(name: bytes, value: bytes) -> Make:
    return of_one(Op.SETXATTR, abi.SETXATTR_IN.pack(len(value), 0) + name + b"\0" + value)


CREATE = abi.CREATE_IN.pack(os.O_RDWR, stat.S_IFREG | 0o644, 0, 0)
MKDIR = abi.MKDIR_IN.pack(0o755, 0)
DONE: dict[str, Make] = {
    "unlink": of_root(Op.UNLINK, b"one\0"),
    "rmdir": of_root(Op.RMDIR, b"dir\0"),
    "rename": _rename(b"one", b"new"),
    "rename of a directory": _rename(b"dir", b"new"),
    "rename over": _rename(b"one", b"two"),
    "exchange": _rename(b"one", b"two", RENAME_EXCHANGE),
    "exchange with a directory": _rename(b"one", b"dir", RENAME_EXCHANGE),
    "a new attribute": _set(b"user.new", b"2"),
    "an attribute less": of_one(Op.REMOVEXATTR, b"user.old\0"),
}
"""What is not to be done again."""
AGAIN: dict[str, Make] = {
    "create": of_root(Op.CREATE, CREATE + b"new\0"),
    "mknod": of_root(Op.MKNOD, abi.MKNOD_IN.pack(stat.S_IFREG | 0o644, 0, 0, 0) + b"new\0"),
    "mkdir": of_root(Op.MKDIR, MKDIR + b"new\0"),
    "symlink": of_root(Op.SYMLINK, b"new\0target\0"),
    "link": _link(b"new"),
}
"""What is undone, and then done again."""
VAIN: dict[str, Make] = {
    "unlink": of_root(Op.UNLINK, b"none\0"),
    "rmdir": of_root(Op.RMDIR, b"none\0"),
    "rename": _rename(b"none", b"two"),
    "exchange": _rename(b"one", b"none", RENAME_EXCHANGE),
    "an attribute that is there": _set(b"user.old", b"2"),
    "no such attribute": of_one(Op.REMOVEXATTR, b"user.none\0"),
    "create": of_root(Op.CREATE, CREATE + b"one\0"),
    "mkdir": of_root(Op.MKDIR, MKDIR + b"dir\0"),
    "link": _link(b"one"),
}
"""What was there before tells nothing: the handler decides, and says the error."""


def state(names: Namespace) -> dict[bytes, tuple[str, int]]:
    return {name: (entry.kind, entry.id) for name, entry in names.volume.names(ROOT_ID)}


def carry_out(names: Namespace, raw: bytes) -> None:
    inodes = Inodes()
    opens = Opens(names, Connection(-1), inodes, ReadCounts(inodes), None)
    request = Request(raw)
    Operations(names, inodes, opens).handlers()[request.op](request)


@pytest.mark.parametrize("case", DONE)
def test_what_was_carried_out_is_not_done_again(names: Namespace, case: str) -> None:
    raw = DONE[case](names)
    then = before(names, Request(raw))
    found = state(names)
    assert not is_done(names, Request(raw), then)
    assert state(names) == found
    carry_out(names, raw)
    found = state(names)
    assert is_done(names, Request(raw), then)
    assert state(names) == found


@pytest.mark.parametrize("case", AGAIN)
def test_what_was_made_is_made_again(names: Namespace, case: str) -> None:
    raw = AGAIN[case](names)
    then = before(names, Request(raw))
    found = state(names)
    assert not is_done(names, Request(raw), then)
    carry_out(names, raw)
    assert state(names) != found
    assert not is_done(names, Request(raw), then)
    assert state(names) == found
    carry_out(names, raw)
    assert b"new" in state(names)


@pytest.mark.parametrize("case", VAIN)
def test_what_never_could_be_is_asked_again(names: Namespace, case: str) -> None:
    raw = VAIN[case](names)
    then = before(names, Request(raw))
    found = state(names)
    assert not is_done(names, Request(raw), then)
    assert state(names) == found


def test_a_half_of_an_exchange_is_not_one(names: Namespace) -> None:
    """Were another thing at the old name, the exchange would not be what made it so."""
    raw = _rename(b"one", b"two", RENAME_EXCHANGE)(names)
    then = before(names, Request(raw))
    carry_out(names, _rename(b"one", b"two")(names))
    assert not is_done(names, Request(raw), then)


def test_a_rename_that_did_not_begin_is_not_done_by_a_name_like_the_new_one(names: Namespace) -> None:
    raw = _rename(b"one", b"two")(names)
    then = before(names, Request(raw))
    carry_out(names, of_root(Op.UNLINK, b"one\0")(names))
    assert not is_done(names, Request(raw), then)
