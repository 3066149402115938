"""Requests that a daemon died over, sent again to the next: what is done already is not done twice.

Most can simply be carried out again: reads, writes at an offset, syncs, attributes. Of those that change names it
depends on whether the first daemon got so far, which what the names stood for before (`Session`) tells: while the
request is under way the kernel keeps all other changes of these names waiting.

    unlink, rmdir            done if the name is gone
    rename                   done if what was at the old name is at the new one
    setxattr, removexattr    done if the attribute was not there and is, or was and is not
    create, mkdir, link, ... if there was nothing, what is there now is the first try's, which nobody has seen, and is
                             removed: whether it was finished cannot be told

An open that got a handle keeps it (`Session`); only a create that got none is begun anew.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from fusefs import abi
from fusefs.abi import Op
from fusefs.messages import Request
from fusefs.namespace import Namespace
from fusefs.session import Before, KeptOperation, Session
from keigo.tiers.adoption import BegunLink, BegunRename, home_of, inode_at
from keigo.tiers.fds import RENAME_EXCHANGE
from keigo.tiers.rename import Name

_FIRST: Final[Mapping[int, int]] = {
    Op.CREATE: abi.CREATE_IN.size,
    Op.MKNOD: abi.MKNOD_IN.size,
    Op.MKDIR: abi.MKDIR_IN.size,
    Op.SYMLINK: 0,
    Op.LINK: abi.LINK_IN.size,
    Op.UNLINK: 0,
    Op.RMDIR: 0,
    Op.RENAME: abi.RENAME_IN.size,
    Op.RENAME2: abi.RENAME2_IN.size,
}
"""Operation -> where its names begin."""
_ATTRIBUTE: Final[Mapping[int, int]] = {Op.SETXATTR: abi.SETXATTR_IN.size, Op.REMOVEXATTR: 0}
"""Likewise, where an attribute's name begins."""
NOTED: Final = frozenset(_FIRST) | frozenset(_ATTRIBUTE)
"""Operations that cannot just be done twice: those that change names, of files or attributes."""
_MAKING: Final = frozenset({Op.CREATE, Op.MKNOD, Op.MKDIR, Op.SYMLINK, Op.LINK})
_REMOVING: Final = frozenset({Op.UNLINK, Op.RMDIR})
_RENAMING: Final = frozenset({Op.RENAME, Op.RENAME2})


def _names(request: Request) -> tuple[Name, Name | None]:
    """The names that a request changes. Raises OSError EINVAL where it is malformed."""
    start = _FIRST[request.op]
    if request.op not in _RENAMING:
        return (request.node, request.names(start, 1)[0]), None
    (parent,) = abi.RENAME_IN.unpack_from(request.body)
    old, new = request.names(start, 2)
    return (request.node, old), (parent, new)


def _flags(request: Request) -> int:
    """Of a rename, as in renameat2(2)."""
    if request.op != Op.RENAME2:
        return 0
    flags: int = abi.RENAME2_IN.unpack_from(request.body)[1]
    return flags


def _has_attribute(namespace: Namespace, request: Request) -> bool:
    (name,) = request.names(_ATTRIBUTE[request.op], 1)
    try:
        namespace.nodes.getxattr(request.node, name)
    except OSError:  # what else is wrong with it the request itself will hear
        return False
    return True


def before(namespace: Namespace, request: Request) -> Before:
    """What the names of a request stand for now. Raises OSError."""
    if request.op in _ATTRIBUTE:
        return Before(int(_has_attribute(namespace, request)))
    volume = namespace.volume
    first, second = _names(request)
    with volume.lock:
        at_first = volume.settled(*first)
        if second is None:
            return Before(0 if at_first is None else at_first.id)
        at_second = volume.settled(*second)
        return Before(
            0 if at_first is None else at_first.id,
            0 if at_second is None else at_second.id,
            0 if at_first is None else inode_at(volume, first, home_of(volume, at_first)),
            0 if at_second is None else inode_at(volume, second, home_of(volume, at_second)),
        )


def is_done(namespace: Namespace, request: Request, then: Before) -> bool:
    """Whether a request was carried out by an earlier daemon; what it left half done is removed. Raises OSError."""
    if request.op == Op.REMOVEXATTR:
        return bool(then.first) and not _has_attribute(namespace, request)
    if request.op == Op.SETXATTR:  # to set it twice is an error only where it must be new
        return not then.first and _has_attribute(namespace, request)
    volume = namespace.volume
    first, second = _names(request)
    with volume.lock:
        now = volume.lookup(*first)
        if request.op in _REMOVING:
            return bool(then.first) and now is None
        if request.op in _MAKING:
            if not then.first and now is not None:
                if now.kind == "dir":
                    volume.rmdir(*first)
                else:
                    volume.unlink(*first)
            return False
        there = None if second is None else volume.lookup(*second)
        if not then.first or there is None or there.id != then.first:
            return False
        if _flags(request) & RENAME_EXCHANGE:
            return now is not None and now.id == then.second
        return now is None


def begun(session: Session) -> tuple[list[BegunRename], list[BegunLink]]:
    """The renames and links that an earlier daemon began, for the volume."""
    renames, links = [], []
    for _, operation in session.operations():
        request = Request(operation.request)
        if request.op in _RENAMING and operation.before.first:
            renames.append(_begun_rename(operation, request))
        elif request.op == Op.LINK and not operation.before.first:
            (file,) = abi.LINK_IN.unpack_from(request.body)
            links.append(BegunLink(file, _names(request)[0]))
    return renames, links


def _begun_rename(operation: KeptOperation, request: Request) -> BegunRename:
    old, new = _names(request)
    assert new is not None  # noqa: S101
    then = operation.before
    return BegunRename(
        old,
        new,
        bool(_flags(request) & RENAME_EXCHANGE),
        then.first,
        then.second,
        then.first_inode,
        then.second_inode,
    )


def read_resent(device: int, size: int) -> list[bytes]:
    """Ask the kernel to send again what is not answered, and take all of it. Raises OSError.

    They come before all that is new (fuse_resend in fs/fuse/dev.c puts them at the head of the queue), but for
    forgotten inodes and interrupts, which have no answer. What is read beyond them is returned, too, as the last.
    """
    os.write(device, abi.OUT_HEADER.pack(abi.OUT_HEADER.size, abi.NOTIFY_RESEND, 0))
    found: list[bytes] = []
    # In memory before it is needed: see PRESENT in _datapath.c.
    buffer = bytearray(b"\1") * size
    os.set_blocking(device, False)
    try:
        while True:
            try:
                raw = bytes(memoryview(buffer)[: os.readv(device, [buffer])])
            except BlockingIOError:
                return found
            except FileNotFoundError:
                continue  # interrupted before we had it
            found.append(raw)
            request = Request(raw)
            if request.op not in (Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT) and not request.unique & abi.RESENT:
                return found
    finally:
        os.set_blocking(device, True)
